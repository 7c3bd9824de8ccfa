package hsmstore_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"chancery/admin"
	"chancery/audit"
	"chancery/hsmstore"

	"golang.org/x/crypto/ocsp"
)

// wrapFor wraps a private key to an import session with the openssl command, as AWS
// CloudHSM's guide to importing keys does.
func wrapFor(t *testing.T, i *hsmstore.ImportSession, mechanism string, key crypto.Signer) []byte {
	t.Helper()
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	must(err)
	return wrapOctets(t, i, mechanism, pkcs8)
}

func wrapOctets(t *testing.T, i *hsmstore.ImportSession, mechanism string, clear []byte) []byte {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		p := filepath.Join(dir, name)
		must(os.WriteFile(p, b, 0o600))
		return p
	}
	openssl := func(args ...string) []byte {
		out := filepath.Join(dir, "out")
		if text, err := exec.Command("openssl", append(args, "-out", out)...).CombinedOutput(); err != nil {
			t.Fatalf("openssl %v: %v\n%s", args, err, text)
		}
		b, err := os.ReadFile(out)
		must(err)
		return b
	}
	hash := strings.ToLower(strings.ReplaceAll(i.Hash(), "-", ""))
	oaep := func(clear []byte) []byte {
		return openssl("pkeyutl", "-encrypt", "-pubin", "-inkey", write("wrapping.pem", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: i.WrappingKey()})), "-in", write("clear", clear),
			"-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:"+hash, "-pkeyopt", "rsa_mgf1_md:"+hash)
	}
	if mechanism == hsmstore.ImportRSAOAEP {
		return oaep(clear)
	}
	aes := make([]byte, 32)
	rand.Read(aes)
	return append(oaep(aes), openssl("enc", "-id-aes256-wrap-pad", "-iv", "A65959A6", "-K", hex.EncodeToString(aes), "-in", write("key.der", clear))...)
}

// importing begins a session on m1.
func (c *cluster) importing(t *testing.T) *hsmstore.ImportSession {
	t.Helper()
	i, err := c.store.BeginImport(t.Context(), "m1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { i.Close() })
	return i
}

// Keys from outside come in wrapped by openssl, are copied, and sign on every member;
// the leaf shows that they were not born in an HSM.
func TestImport(t *testing.T) {
	c := newCluster(t)
	ctx := t.Context()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	must(err)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	must(err)
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	for _, tc := range []struct {
		name, algorithm, mechanism string
		key                        crypto.Signer
		members                    []string
	}{
		{"imported-rsa", "RSA-2048", hsmstore.ImportRSAAES, rsaKey, nil},
		{"imported-p384", "P-384", hsmstore.ImportRSAAES, p384, []string{"m1"}},
		{"imported-p256", "P-256", hsmstore.ImportRSAOAEP, p256, nil},
	} {
		i := c.importing(t)
		spec := hsmstore.ImportSpec{Name: tc.name, Purpose: audit.PurposeOCSP, Algorithm: tc.algorithm, SPKI: marshalSPKI(tc.key.Public()), Mechanism: tc.mechanism,
			Blob: wrapFor(t, i, tc.mechanism, tc.key), Members: tc.members}
		before := c.db.size()
		k, err := i.Finish(ctx, granting(spec.Act()), spec)
		if err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		l := c.db.leaf(before)
		list, _ := l.Get(audit.TagAttributes)
		how, _ := l.Get(audit.TagMechanism)
		if l.Op != audit.OpKeyImport || !bytes.Contains(list, []byte("LOCAL=false")) || !bytes.Contains(list, []byte("SENSITIVE=true")) {
			t.Errorf("leaf %s: %s", l.Op, list)
		}
		t.Logf("%s", how)
		if want := max(1, 2-len(tc.members)); len(k.Members()) != want {
			t.Errorf("%s is on %v", tc.name, k.Members())
		}
		message := responseData(t, ocsp.Good)
		sig, err := use(ctx, k, hsmstore.SignRequest{Op: audit.OpOCSP, Message: message})
		if err != nil {
			t.Fatal(err)
		}
		verifyOpenSSL(t, k, message, sig)
		for _, m := range k.Members() {
			text := hsmstore.ProofText(c.ledger.ID(), k.SPKIHash(), c.status(m).Serial, [32]byte{1})
			if _, err := c.store.SignOn(ctx, k, m, 1, text); err != nil {
				t.Errorf("%s on %s: %v", tc.name, m, err)
			}
		}
		if _, err := i.Finish(ctx, granting(spec.Act()), spec); err == nil {
			t.Error("a session took two blobs")
		}
	}
	if found := c.verify(t); found != nil {
		t.Errorf("after the imports: %v", found)
	}
}

// Whatever is wrong with a blob, the answer is the same, the session is over, and
// nothing stays on the token.
func TestAttack_HSM_09(t *testing.T) {
	c := newCluster(t)
	ctx := t.Context()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	must(err)
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	must(err)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	otherEC, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	flip := func(at int) func([]byte) []byte {
		return func(b []byte) []byte {
			if at < 0 {
				at += len(b)
			}
			b[at] ^= 1
			return b
		}
	}
	answers := map[string][]string{}
	for what, tc := range map[string]struct {
		wrapped, named crypto.Signer
		change         func([]byte) []byte
	}{
		"OAEP is damaged":           {rsaKey, rsaKey, flip(20)},
		"AES key wrap is damaged":   {rsaKey, rsaKey, flip(-1)},
		"AES key wrap is cut short": {rsaKey, rsaKey, func(b []byte) []byte { return b[:len(b)-8] }},
		"another RSA key":           {other, rsaKey, nil},
		"an EC key for an RSA key":  {ec, rsaKey, nil},
		"an RSA key for an EC key":  {rsaKey, ec, nil},
		"another EC key":            {otherEC, ec, nil},
		"all zeros":                 {rsaKey, rsaKey, func(b []byte) []byte { return make([]byte, len(b)) }},
	} {
		i := c.importing(t)
		alg := "RSA-2048"
		if _, is := tc.named.(*ecdsa.PrivateKey); is {
			alg = "P-256"
		}
		blob := wrapFor(t, i, hsmstore.ImportRSAAES, tc.wrapped)
		if tc.change != nil {
			blob = tc.change(blob)
		}
		spec := hsmstore.ImportSpec{Name: "oracle-" + strings.ReplaceAll(strings.ToLower(what), " ", "-"), Purpose: audit.PurposeOCSP, Algorithm: alg, SPKI: marshalSPKI(tc.named.Public()),
			Mechanism: hsmstore.ImportRSAAES, Blob: blob}
		_, err := i.Finish(ctx, granting(spec.Act()), spec)
		if !errors.Is(err, hsmstore.ErrImport) {
			t.Errorf("%s: %v", what, err)
			continue
		}
		text := strings.ReplaceAll(err.Error(), spec.Name, "NAME")
		answers[text] = append(answers[text], what)
		if _, err := i.Finish(ctx, granting(spec.Act()), spec); err == nil || errors.Is(err, hsmstore.ErrImport) {
			t.Errorf("%s: the session took another blob: %v", what, err)
		}
	}
	if len(answers) != 1 {
		t.Errorf("%d answers: %v", len(answers), answers)
	}
	for _, m := range c.members {
		look(t, m, func(get func(uint) []byte, _ uint) {
			if label := string(get(3)); strings.Contains(label, "oracle") {
				t.Errorf("member %s keeps %s", m.Name, label)
			}
		})
	}
	if st := c.status("m1"); st.State != hsmstore.Up {
		t.Errorf("m1 is %s", st.State)
	}
	if found := c.verify(t); found != nil {
		t.Errorf("afterwards: %v", found)
	}
}

// What can be seen to be wrong before the token sees the blob is said, and the session
// goes on.
func TestImportRefuses(t *testing.T) {
	c := newCluster(t)
	ctx := t.Context()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must(err)
	i := c.importing(t)
	if i.Hash() != "SHA-1" || !slices.Equal(i.Mechanisms(), []string{hsmstore.ImportRSAAES, hsmstore.ImportRSAOAEP}) {
		t.Errorf("session: %s, %v", i.Hash(), i.Mechanisms())
	}
	if _, err := c.store.BeginImport(ctx, "m2"); !errors.Is(err, hsmstore.ErrBusy) {
		t.Errorf("a second session: %v", err)
	}
	good := hsmstore.ImportSpec{Name: "later", Purpose: audit.PurposeOCSP, Algorithm: "RSA-2048", SPKI: marshalSPKI(key.Public()), Mechanism: hsmstore.ImportRSAAES, Blob: wrapFor(t, i, hsmstore.ImportRSAAES, key)}
	for what, change := range map[string]func(*hsmstore.ImportSpec){
		"an RSA key by OAEP alone": func(s *hsmstore.ImportSpec) { s.Mechanism = hsmstore.ImportRSAOAEP },
		"an unknown mechanism":     func(s *hsmstore.ImportSpec) { s.Mechanism = "PKCS1" },
		"a name that is taken":     func(s *hsmstore.ImportSpec) { s.Name = "ocsp" },
		"a key that is here":       func(s *hsmstore.ImportSpec) { s.SPKI = c.key(t, "document").SPKI() },
		"another algorithm":        func(s *hsmstore.ImportSpec) { s.Algorithm = "P-256" },
		"no members of the kind":   func(s *hsmstore.ImportSpec) { s.Members = []string{"m2"} },
		"a blob that is too short": func(s *hsmstore.ImportSpec) { s.Blob = s.Blob[:100] },
		"a checkpoint key":         func(s *hsmstore.ImportSpec) { s.Purpose = audit.PurposeCheckpoint },
		"an issuer sans subject":   func(s *hsmstore.ImportSpec) { s.Purpose = audit.PurposeIssuer },
	} {
		bad := good
		change(&bad)
		if _, err := i.Finish(ctx, granting(bad.Act()), bad); err == nil || errors.Is(err, hsmstore.ErrImport) || errors.Is(err, hsmstore.ErrUsed) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := i.Finish(ctx, nil, good); !errors.Is(err, admin.ErrNotGranted) {
		t.Errorf("without a grant: %v", err)
	}
	if _, err := i.Finish(ctx, granting(good.Act()), good); err != nil {
		t.Errorf("the good one at last: %v", err)
	}
	if _, err := c.store.BeginImport(ctx, "m9"); !errors.Is(err, hsmstore.ErrUnavailable) {
		t.Errorf("no member: %v", err)
	}
}
