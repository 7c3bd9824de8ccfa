package hsmstore_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/admin"
	"chancery/audit"
	"chancery/hsmstore"

	"github.com/miekg/pkcs11"
)

// pkcs11Tool runs OpenSC's tool on a member's token, as operators of other CAs do.
func pkcs11Tool(t *testing.T, m hsmstore.MemberConfig, args ...string) {
	t.Helper()
	pin, err := m.PIN()
	must(err)
	cmd := exec.Command("pkcs11-tool", append([]string{"--module", m.Module, "--token-label", m.TokenLabel, "--login", "--pin", pin}, args...)...)
	cmd.Env = append(os.Environ(), m.Env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("pkcs11-tool %v: %v\n%s", args, err, out)
	}
}

// adopting is the grant for a spec, from what a dry run says.
func adopting(t *testing.T, c *cluster, spec hsmstore.AdoptSpec) *admin.Grant {
	t.Helper()
	spec.DryRun = true
	report, err := c.store.Adopt(t.Context(), nil, spec)
	if err != nil {
		t.Fatalf("dry run for %s: %v", spec.Name, err)
	}
	return granting(report.Act)
}

// Keys that pkcs11-tool made, as for EJBCA or Vault, are adopted where they are: the
// report names what is weak, officers accept it, and the keys sign.
func TestAdopt(t *testing.T) {
	c := newCluster(t)
	ctx := t.Context()
	m := c.members[0]
	pkcs11Tool(t, m, "--keypairgen", "--key-type", "rsa:2048", "--label", "signKey", "--usage-sign", "--usage-decrypt")
	pkcs11Tool(t, m, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "vault-ca", "--id", "a1b2c3")

	report, err := c.store.InspectKey(ctx, "m1", nil, "signKey")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(report.Weak, []string{"DECRYPT=true", "MODIFIABLE=true", "UNWRAP=true", "WRAP=true"}) || len(report.Never) != 0 || report.Object.Bits != 2048 || report.Object.Found != "public key object" || !slices.Equal(report.Algorithms, []string{"RSA-2048", "RSA-PSS-2048"}) {
		t.Fatalf("report %+v", report)
	}
	spec := hsmstore.AdoptSpec{Name: "old-document", Purpose: audit.PurposeDocument, Algorithm: "RSA-2048", Member: "m1", Label: "signKey", Attestation: []byte("vendor evidence")}
	size := c.db.size()
	for what, change := range map[string]func(*hsmstore.AdoptSpec){
		"nothing is accepted":          func(*hsmstore.AdoptSpec) {},
		"less is accepted":             func(s *hsmstore.AdoptSpec) { s.AcceptWeak = report.Weak[1:] },
		"more is accepted":             func(s *hsmstore.AdoptSpec) { s.AcceptWeak = append(slices.Clone(report.Weak), "SENSITIVE=false") },
		"another algorithm":            func(s *hsmstore.AdoptSpec) { s.Algorithm, s.AcceptWeak = "P-256", report.Weak },
		"a name that is taken":         func(s *hsmstore.AdoptSpec) { s.Name, s.AcceptWeak = "document", report.Weak },
		"an issuer without a subject":  func(s *hsmstore.AdoptSpec) { s.Purpose, s.AcceptWeak = audit.PurposeIssuer, report.Weak },
		"a checkpoint key":             func(s *hsmstore.AdoptSpec) { s.Purpose, s.AcceptWeak = audit.PurposeCheckpoint, report.Weak },
		"too much evidence":            func(s *hsmstore.AdoptSpec) { s.Attestation, s.AcceptWeak = make([]byte, 1<<16), report.Weak },
		"no member of that name":       func(s *hsmstore.AdoptSpec) { s.Member, s.AcceptWeak = "m9", report.Weak },
		"neither CKA_ID nor label":     func(s *hsmstore.AdoptSpec) { s.Label, s.AcceptWeak = "", report.Weak },
		"a label that nothing has":     func(s *hsmstore.AdoptSpec) { s.Label, s.AcceptWeak = "signKey2", report.Weak },
		"one of our own keys":          func(s *hsmstore.AdoptSpec) { s.Label = "chancery:ocsp:ocsp" },
		"a grant that accepts nothing": func(s *hsmstore.AdoptSpec) { s.AcceptWeak = report.Weak },
	} {
		bad := spec
		change(&bad)
		g := granting(admin.AdoptKeyAct(bad.Name, bad.Purpose.String(), bad.Algorithm, bad.Subject, sha256.Sum256(report.Object.SPKI)))
		if _, err := c.store.Adopt(ctx, g, bad); err == nil {
			t.Errorf("%s: adopted", what)
		}
	}
	spec.AcceptWeak = report.Weak
	grant := adopting(t, c, spec)
	if c.db.size() != size {
		t.Fatal("leaves were written before an adoption")
	}
	if _, err := c.store.Adopt(ctx, grant, spec); err != nil {
		t.Fatal(err)
	}
	l := c.db.leaf(size)
	evidence, _ := l.Get(audit.TagAttestation)
	list, _ := l.Get(audit.TagWeak)
	weak, err := audit.ParseList(list)
	if l.Op != audit.OpKeyAdopt || string(evidence) != "vendor evidence" || err != nil || len(weak) != len(report.Weak) {
		t.Errorf("leaf %s: evidence %q, weak %s", l.Op, evidence, weak)
	}
	k := c.key(t, "old-document")
	message := attributes(oidData, 32)
	sig, err := use(ctx, k, hsmstore.SignRequest{Op: audit.OpCMS, Message: message})
	if err != nil {
		t.Fatal(err)
	}
	verifyOpenSSL(t, k, message, sig)

	// The CA key comes with the subject of its certificate, and signs under no other name.
	id, _ := hex.DecodeString("a1b2c3")
	issuer := hsmstore.AdoptSpec{Name: "vault-ca", Purpose: audit.PurposeIssuer, Algorithm: "P-256", Subject: name("Vault CA"), Member: "m1", CKAID: id}
	if report, err = c.store.InspectKey(ctx, "m1", id, ""); err != nil {
		t.Fatal(err)
	}
	issuer.AcceptWeak = report.Weak
	if _, err := c.store.Adopt(ctx, adopting(t, c, issuer), issuer); err != nil {
		t.Fatal(err)
	}
	serial := newSerial()
	if err := once(ctx, c.key(t, "vault-ca"), hsmstore.SignRequest{Op: audit.OpCertificate, Message: tbs(t, "Vault CA", serial), Serial: serial.Bytes()}); err != nil {
		t.Error(err)
	}
	if err := once(ctx, c.key(t, "vault-ca"), hsmstore.SignRequest{Op: audit.OpCertificate, Message: tbs(t, "Issuing CA", serial), Serial: serial.Bytes()}); !errors.Is(err, hsmstore.ErrRefused) {
		t.Errorf("another issuer's name: %v", err)
	}
	if _, err := c.store.Adopt(ctx, nil, issuer); !errors.Is(err, audit.ErrExists) {
		t.Errorf("adopted twice: %v", err)
	}
}

// The public half is found in a certificate or in the private object where the token
// has no public key object; where it is nowhere, and where one label has two keys, the
// error says what to do.
func TestAdoptFindsPublicHalf(t *testing.T) {
	c := newCluster(t)
	ctx := t.Context()
	m := c.members[0]
	pkcs11Tool(t, m, "--keypairgen", "--key-type", "rsa:2048", "--label", "lonely-rsa", "--id", "01")
	pkcs11Tool(t, m, "--keypairgen", "--key-type", "EC:secp384r1", "--label", "lonely-ec", "--id", "02")
	pkcs11Tool(t, m, "--keypairgen", "--key-type", "EC:secp384r1", "--label", "twin", "--id", "03")
	pkcs11Tool(t, m, "--keypairgen", "--key-type", "EC:secp384r1", "--label", "twin", "--id", "04")
	before, err := c.store.InspectKey(ctx, "m1", []byte{2}, "")
	must(err)
	pkcs11Tool(t, m, "--delete-object", "--type", "pubkey", "--id", "01")
	pkcs11Tool(t, m, "--delete-object", "--type", "pubkey", "--id", "02")

	report, err := c.store.InspectKey(ctx, "m1", []byte{1}, "")
	if err != nil || report.Object.Found != "private key object" || len(report.Never) != 0 {
		t.Errorf("RSA without a public object: %+v, %v", report, err)
	}
	report, err = c.store.InspectKey(ctx, "m1", []byte{2}, "")
	if err != nil || len(report.Never) != 1 || !strings.Contains(report.Never[0], "certificate") {
		t.Errorf("EC without a public object: %+v, %v", report, err)
	}
	cert := filepath.Join(t.TempDir(), "cert.der")
	must(os.WriteFile(cert, certificateFor(t, before.Object.SPKI), 0o600))
	pkcs11Tool(t, m, "--write-object", cert, "--type", "cert", "--id", "02")
	report, err = c.store.InspectKey(ctx, "m1", []byte{2}, "")
	if err != nil || report.Object.Found != "certificate" || !bytes.Equal(report.Object.SPKI, before.Object.SPKI) {
		t.Fatalf("EC with a certificate: %+v, %v", report, err)
	}
	spec := hsmstore.AdoptSpec{Name: "lonely", Purpose: audit.PurposeOCSP, Algorithm: "P-384", Member: "m1", CKAID: []byte{2}, AcceptWeak: report.Weak}
	if _, err := c.store.Adopt(ctx, adopting(t, c, spec), spec); err != nil {
		t.Error(err)
	}

	_, err = c.store.InspectKey(ctx, "m1", nil, "twin")
	if err == nil || !strings.Contains(err.Error(), "CKA_ID 03") || !strings.Contains(err.Error(), "CKA_ID 04") {
		t.Errorf("two keys with one label: %v", err)
	}
	report, err = c.store.InspectKey(ctx, "m1", []byte{4}, "twin")
	must(err)
	spec = hsmstore.AdoptSpec{Name: "twin-4", Purpose: audit.PurposeOCSP, Algorithm: "P-384", Member: "m1", CKAID: []byte{4}, Label: "twin", AcceptWeak: report.Weak}
	if _, err := c.store.Adopt(ctx, adopting(t, c, spec), spec); err != nil {
		t.Error(err)
	}
}

// A key whose value the token would give away is never adopted, whatever is accepted:
// SENSITIVE=false, EXTRACTABLE=true without WRAP_WITH_TRUSTED, a TRUSTED public half.
func TestAttack_HSM_06(t *testing.T) {
	c := newCluster(t)
	for i, tc := range []struct {
		change map[uint]bool
		want   string
	}{
		{map[uint]bool{pkcs11.CKA_SENSITIVE: false}, "SENSITIVE=false"},
		{map[uint]bool{pkcs11.CKA_WRAP_WITH_TRUSTED: false}, "EXTRACTABLE=true without WRAP_WITH_TRUSTED"},
	} {
		id := [16]byte{0xad, byte(i)}
		rec := plant(t, c.members[0], "other ca", hsmstore.KeyRecord{ID: id}, tc.change)
		report, err := c.store.InspectKey(t.Context(), "m1", id[:], "")
		if err != nil || !slices.Contains(report.Never, tc.want) {
			t.Errorf("%s: %+v, %v", tc.want, report, err)
		}
		spec := hsmstore.AdoptSpec{Name: "leaky", Purpose: audit.PurposeOCSP, Algorithm: "P-256", Member: "m1", CKAID: id[:], AcceptWeak: append(report.Weak, tc.want)}
		g := granting(admin.AdoptKeyAct(spec.Name, spec.Purpose.String(), spec.Algorithm, nil, sha256.Sum256(rec.SPKI), spec.AcceptWeak...))
		if _, err := c.store.Adopt(t.Context(), g, spec); !errors.Is(err, hsmstore.ErrWeak) {
			t.Errorf("%s: %v", tc.want, err)
		}
	}
}

// The worker's journal keeps what an adopted key is for: a database that says
// otherwise afterwards gets no signature.
func TestDatabaseCannotChangeAdoptedKey(t *testing.T) {
	c := copyCluster(t)
	pkcs11Tool(t, c.members[0], "--keypairgen", "--key-type", "EC:prime256v1", "--label", "theirs", "--id", "77")
	stop, err := c.open(t.Context())
	must(err)
	report, err := c.store.InspectKey(t.Context(), "m1", []byte{0x77}, "")
	must(err)
	spec := hsmstore.AdoptSpec{Name: "theirs", Purpose: audit.PurposeDocument, Algorithm: "P-256", Member: "m1", CKAID: []byte{0x77}, AcceptWeak: report.Weak}
	if _, err := c.store.Adopt(t.Context(), adopting(t, c, spec), spec); err != nil {
		t.Fatal(err)
	}
	stop()
	stop, err = c.open(t.Context(), func(cfg *hsmstore.Config) {
		for i, k := range cfg.Keys {
			if k.Name == "theirs" {
				cfg.Keys[i].Purpose, cfg.Keys[i].Subject = audit.PurposeIssuer, name("Issuing CA")
			}
		}
	})
	must(err)
	defer stop()
	k := c.key(t, "theirs")
	if err := once(t.Context(), k, issue(t, k)); !errors.Is(err, hsmstore.ErrUnavailable) {
		t.Errorf("a certificate from an adopted document key: %v", err)
	}
	if !strings.Contains(c.log.String(), "another purpose or subject") {
		t.Error("the log does not say why")
	}
}

// certificateFor is a certificate over a public key.
func certificateFor(t *testing.T, spki []byte) []byte {
	t.Helper()
	pub, err := x509.ParsePKIXPublicKey(spki)
	must(err)
	template := &x509.Certificate{SerialNumber: newSerial(), Subject: pkix.Name{CommonName: "old"}, NotAfter: time.Unix(2e9, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, pub, lintKey())
	must(err)
	return der
}

// A row that calls a key that was born here an adopted one, for another purpose, changes
// nothing: its label on the token says what it is for.
func TestAttack_HSM_06_RelabelledByTheDatabase(t *testing.T) {
	for what, adopted := range map[string]bool{"as adopted": true, "as it is": false} {
		c := copyCluster(t)
		stop, err := c.open(t.Context())
		must(err)
		spec := hsmstore.KeySpec{Name: "docs", Purpose: audit.PurposeDocument, Algorithm: "P-256"}
		if _, err := c.store.GenerateKey(t.Context(), granting(spec.Act()), spec); err != nil {
			t.Fatal(err)
		}
		stop()
		stop, err = c.open(t.Context(), func(cfg *hsmstore.Config) {
			for i, k := range cfg.Keys {
				if k.Name == "docs" {
					cfg.Keys[i].Purpose, cfg.Keys[i].Subject = audit.PurposeIssuer, name("Issuing CA")
					if adopted {
						cfg.Keys[i].Adopted = &hsmstore.Adopted{CKAID: k.ID[:]}
					}
				}
			}
		})
		must(err)
		k := c.key(t, "docs")
		if err := once(t.Context(), k, issue(t, k)); err == nil {
			t.Errorf("ATTACK WORKED: a document key %s signs a certificate", what)
		}
		stop()
	}
}
