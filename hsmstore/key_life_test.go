package hsmstore_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"chancery/admin"
	"chancery/audit"
	"chancery/dbstore"
	"chancery/hsmstore"
	"chancery/test/hsmfault"

	"golang.org/x/crypto/ocsp"
)

// granting is a grant as if of officers.
func granting(acts ...string) *admin.Grant {
	g, err := admin.Genesis(audit.Head{}, acts)
	must(err)
	return g
}

// use signs one message of an OCSP key through the door and returns the signature.
func use(ctx context.Context, k *hsmstore.Key, req hsmstore.SignRequest) ([]byte, error) {
	op, err := k.Begin(ctx, req)
	if err != nil {
		return nil, err
	}
	defer op.Close()
	sig, err := op.SignMessage(nil, req.Message, k.Hash())
	if err != nil {
		return nil, err
	}
	_, err = op.Commit(ctx, audit.Done{Artefact: sha256.Sum256(sig)})
	return sig, err
}

// verifyGo checks a signature by the Go library alone.
func verifyGo(k *hsmstore.Key, message, sig []byte) bool {
	digest := message
	if k.Hash() != 0 {
		h := k.Hash().New()
		h.Write(message)
		digest = h.Sum(nil)
	}
	switch pub := k.Public().(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(pub, digest, sig)
	case ed25519.PublicKey:
		return ed25519.Verify(pub, message, sig)
	case *rsa.PublicKey:
		if strings.Contains(k.Algorithm(), "PSS") {
			return rsa.VerifyPSS(pub, crypto.SHA256, digest, sig, &rsa.PSSOptions{SaltLength: 32}) == nil
		}
		return rsa.VerifyPKCS1v15(pub, crypto.SHA256, digest, sig) == nil
	}
	return false
}

// verifyOpenSSL checks a signature by the openssl command.
func verifyOpenSSL(t *testing.T, k *hsmstore.Key, message, sig []byte) {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		p := filepath.Join(dir, name)
		must(os.WriteFile(p, b, 0o600))
		return p
	}
	pub := write("pub.pem", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: k.SPKI()}))
	args := []string{"pkeyutl", "-verify", "-pubin", "-inkey", pub, "-rawin", "-in", write("message", message), "-sigfile", write("sig", sig)}
	if k.Hash() != 0 {
		args = append(args, "-digest", strings.ToLower(strings.ReplaceAll(k.Hash().String(), "-", "")))
	}
	if strings.Contains(k.Algorithm(), "PSS") {
		args = append(args, "-pkeyopt", "rsa_padding_mode:pss", "-pkeyopt", "rsa_pss_saltlen:32", "-pkeyopt", "rsa_mgf1_md:sha256")
	}
	if out, err := exec.Command("openssl", args...).CombinedOutput(); err != nil {
		t.Errorf("openssl does not verify a signature of %s: %v\n%s", k.Algorithm(), err, out)
	}
}

// Keys of every algorithm are born, copied where they can be, and sign what Go and
// openssl verify.
func TestEveryAlgorithm(t *testing.T) {
	c := newCluster(t)
	var specs []hsmstore.KeySpec
	var acts []string
	for _, alg := range hsmstore.Algorithms() {
		if alg == "AES-256" {
			continue // TestSecretKey
		}
		spec := hsmstore.KeySpec{Name: "every-" + strings.ToLower(alg), Purpose: audit.PurposeOCSP, Algorithm: alg}
		if alg == "Ed25519" || strings.HasSuffix(alg, "4096") {
			spec.Members = []string{"m2"}
		}
		specs, acts = append(specs, spec), append(acts, spec.Act())
	}
	keys, err := c.store.GenerateKeys(t.Context(), granting(acts...), specs...)
	if err != nil {
		t.Fatal(err)
	}
	for i, k := range keys {
		message := responseData(t, ocsp.Good)
		sig, err := use(t.Context(), k, hsmstore.SignRequest{Op: audit.OpOCSP, Message: message})
		if err != nil {
			t.Errorf("%s: %v", k.Algorithm(), err)
			continue
		}
		if !verifyGo(k, message, sig) {
			t.Errorf("%s: Go does not verify the signature", k.Algorithm())
		}
		verifyOpenSSL(t, k, message, sig)
		attributes, err := c.store.Attributes(t.Context(), k.Name())
		must(err)
		for _, a := range attributes {
			if a.Err != "" || len(a.Objects) != 1 || len(a.Objects[0].Mechanisms) != 1 || a.Objects[0].Bits == 0 || string(a.Objects[0].SPKI) != string(k.SPKI()) {
				t.Errorf("%s on %s: %+v", k.Algorithm(), a.Member, a)
			}
		}
		if want := max(1, 2-len(specs[i].Members)); len(attributes) != want {
			t.Errorf("%s is on %d members, not %d", k.Algorithm(), len(attributes), want)
		}
	}
}

// An Ed25519 key for two members is refused before anything happens, and so is a key
// of a vendor's cluster that another member shall hold too.
func TestKeysThatCannotSpread(t *testing.T) {
	c := newCluster(t, func(cfg *hsmstore.Config) {
		cfg.Members = slices.Clone(cfg.Members)
		cfg.Members[1].Replication = hsmstore.ReplicateNative
		for i := range cfg.Enrolled {
			if cfg.Enrolled[i].Name == "m2" {
				cfg.Enrolled[i].Replication = hsmstore.ReplicateNative
			}
		}
	})
	size := c.db.size()
	for _, spec := range []hsmstore.KeySpec{
		{Name: "x", Purpose: audit.PurposeOCSP, Algorithm: "Ed25519"},
		{Name: "x", Purpose: audit.PurposeOCSP, Algorithm: "P-256"},
		{Name: "x", Purpose: audit.PurposeOCSP, Algorithm: "P-256", Members: []string{"m2", "m1"}},
	} {
		g := granting(spec.Act())
		if _, err := c.store.GenerateKey(t.Context(), g, spec); err == nil || !strings.Contains(err.Error(), "one of m1, m2") {
			t.Errorf("%+v: %v", spec, err)
		}
		if err := g.Spend(spec.Act()); err != nil {
			t.Errorf("the act was spent: %v", err)
		}
	}
	if c.db.size() != size {
		t.Error("leaves were written")
	}
}

// A key that is born on a vendor's cluster is non-extractable, and becomes usable
// after three proofs in a row.
func TestKeyOnNativeMember(t *testing.T) {
	c := newCluster(t, func(cfg *hsmstore.Config) {
		cfg.Members = slices.Clone(cfg.Members)
		cfg.Members[1].Replication = hsmstore.ReplicateNative
		for i := range cfg.Enrolled {
			if cfg.Enrolled[i].Name == "m2" {
				cfg.Enrolled[i].Replication = hsmstore.ReplicateNative
			}
		}
	})
	spec := hsmstore.KeySpec{Name: "native", Purpose: audit.PurposeOCSP, Algorithm: "P-256", Members: []string{"m2"}}
	before := c.db.size()
	k, err := c.store.GenerateKey(t.Context(), granting(spec.Act()), spec)
	if err != nil {
		t.Fatal(err)
	}
	proofs := 0
	for i := before; i < c.db.size(); i++ {
		if l := c.db.leaf(i); l.Op == audit.OpKeyProof && l.Kind == audit.KindDone {
			proofs++
		}
	}
	if proofs != 3 {
		t.Errorf("%d proofs, not 3", proofs)
	}
	a, err := c.store.Attributes(t.Context(), k.Name())
	must(err)
	if len(a) != 1 || len(a[0].Objects) != 1 || !slices.Contains(a[0].Objects[0].Attributes, "EXTRACTABLE=false") || !slices.Contains(a[0].Objects[0].Attributes, "NEVER_EXTRACTABLE=true") {
		t.Errorf("attributes: %+v", a)
	}
}

// A PSS key is bound to PSS on the token: a database that calls it a PKCS #1 v1.5 key
// gets no signature, and the other way round.
func TestPaddingIsBoundOnToken(t *testing.T) {
	c := copyCluster(t)
	stop, err := c.open(t.Context())
	must(err)
	pss := hsmstore.KeySpec{Name: "pss", Purpose: audit.PurposeOCSP, Algorithm: "RSA-PSS-2048"}
	v15 := hsmstore.KeySpec{Name: "v15", Purpose: audit.PurposeOCSP, Algorithm: "RSA-2048"}
	_, err = c.store.GenerateKeys(t.Context(), granting(pss.Act(), v15.Act()), pss, v15)
	stop()
	must(err)
	stop, err = c.open(t.Context(), func(cfg *hsmstore.Config) {
		for i, k := range cfg.Keys {
			switch k.Name {
			case "pss":
				cfg.Keys[i].Algorithm = "RSA-2048"
			case "v15":
				cfg.Keys[i].Algorithm = "RSA-PSS-2048"
			}
		}
	})
	must(err)
	defer stop()
	for _, n := range []string{"pss", "v15"} {
		if _, err := use(t.Context(), c.key(t, n), hsmstore.SignRequest{Op: audit.OpOCSP, Message: responseData(t, ocsp.Good)}); !errors.Is(err, hsmstore.ErrUnavailable) {
			t.Errorf("%s: %v", n, err)
		}
	}
	if !strings.Contains(c.log.String(), "CKA_ALLOWED_MECHANISMS") {
		t.Error("the log does not say why")
	}
}

// A key is disabled and enabled on the ledger, described, and found.
func TestDisableEnableDescribeFind(t *testing.T) {
	c := newCluster(t)
	ctx := t.Context()
	k := c.key(t, "ocsp")
	req := hsmstore.SignRequest{Op: audit.OpOCSP, Message: responseData(t, ocsp.Good)}
	if err := c.store.Disable(ctx, "ocsp", "suspected misuse"); err != nil {
		t.Fatal(err)
	}
	if l := c.db.leaf(c.db.size() - 1); l.Op != audit.OpKeyState {
		t.Errorf("last leaf is %s", l.Op)
	}
	if _, err := k.Begin(ctx, req); !errors.Is(err, hsmstore.ErrNoKey) {
		t.Errorf("a disabled key: %v", err)
	}
	if _, err := c.store.Key("ocsp"); !errors.Is(err, hsmstore.ErrNoKey) {
		t.Errorf("a disabled key was given out: %v", err)
	}
	if err := c.store.Disable(ctx, "ocsp", "again"); !errors.Is(err, hsmstore.ErrNoKey) {
		t.Errorf("disabled twice: %v", err)
	}
	if err := c.store.Enable(ctx, "ocsp", "test"); err != nil {
		t.Fatal(err)
	}
	if _, err := use(ctx, k, req); err != nil {
		t.Error(err)
	}
	if err := c.store.Enable(ctx, "ocsp", "test"); !errors.Is(err, hsmstore.ErrNoKey) {
		t.Errorf("enabled twice: %v", err)
	}
	for _, n := range []string{hsmstore.CheckpointKeyName("m1"), hsmstore.ProbeKeyName("m1")} {
		if err := c.store.Disable(ctx, n, "no"); err == nil {
			t.Errorf("%s was disabled", n)
		}
	}
	c.db.set(audit.ErrUncertain)
	if err := c.store.Disable(ctx, "ocsp", "ledger is down"); err == nil || k.State() != hsmstore.KeyUsable {
		t.Errorf("without a leaf: %v, %s", err, k.State())
	}
	c.db.set(nil)

	must(c.store.Describe(ctx, "document", "invoices of the Osaka office"))
	for _, r := range c.db.keys() {
		hash := sha256.Sum256(r.SPKI)
		for _, q := range []string{r.Name, hex.EncodeToString(hash[:6]), hex.EncodeToString(r.ID[:])} {
			if found := c.store.Find(q); len(found) != 1 || found[0].Name != r.Name {
				t.Errorf("%q finds %v", q, found)
			}
		}
		if (r.Description != "") != (r.Name == "document") {
			t.Errorf("key %s is described as %q", r.Name, r.Description)
		}
	}
	if d := c.store.Find("document")[0].Description; d != "invoices of the Osaka office" {
		t.Errorf("description %q", d)
	}
	if found := c.store.Find(""); found != nil {
		t.Errorf("nothing finds %v", found)
	}
}

// A key is destroyed on every member; the leaf lists every copy and backup, and the
// name stays taken.
func TestDestroy(t *testing.T) {
	var inUse string
	c := newCluster(t, func(cfg *hsmstore.Config) {
		cfg.InUse = func(string) string { return inUse }
		cfg.Backups = func(hsmstore.KeyID) []string { return []string{"vault-2"} }
	})
	ctx := t.Context()
	k := c.key(t, "document")
	act := admin.DestroyKeyAct("document", k.SPKIHash())
	inUse = "it signs for the console"
	if _, err := c.store.Destroy(ctx, granting(act), "document"); err == nil || !strings.Contains(err.Error(), inUse) {
		t.Errorf("a key in use: %v", err)
	}
	inUse = ""
	if _, err := c.store.Destroy(ctx, granting(admin.DestroyKeyAct("document", [32]byte{})), "document"); !errors.Is(err, admin.ErrNotGranted) {
		t.Errorf("a grant for another key: %v", err)
	}
	if k.State() != hsmstore.KeyUsable {
		t.Fatalf("a refused destruction left the key %s", k.State())
	}
	report, err := c.store.Destroy(ctx, granting(act), "document")
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Copies) != 2 || len(report.Left) != 0 || !slices.Equal(report.Backups, []string{"vault-2"}) {
		t.Errorf("report %+v", report)
	}
	l := c.db.leaf(c.db.size() - 1)
	list, _ := l.Get(audit.TagCopies)
	items, err := audit.ParseList(list)
	if err != nil || l.Op != audit.OpKeyDestroy || len(items) != 3 || string(items[2]) != "backup vault-2" {
		t.Errorf("leaf %s lists %s: %v", l.Op, items, err)
	}
	for _, m := range c.members {
		look(t, m, func(get func(uint) []byte, _ uint) {
			if label := string(get(3)); strings.HasSuffix(label, ":document") { // CKA_LABEL
				t.Errorf("member %s still has %s", m.Name, label)
			}
		})
	}
	if _, err := k.Begin(ctx, hsmstore.SignRequest{Op: audit.OpCMS}); !errors.Is(err, hsmstore.ErrNoKey) {
		t.Errorf("a destroyed key: %v", err)
	}
	if _, err := c.store.GenerateKey(ctx, granting(documentSpec.Act()), documentSpec); !errors.Is(err, audit.ErrExists) {
		t.Errorf("the name was free again: %v", err)
	}
	if _, err := c.store.Destroy(ctx, granting(act), "document"); !errors.Is(err, hsmstore.ErrNoKey) {
		t.Errorf("destroyed twice: %v", err)
	}
	for _, n := range []string{hsmstore.CheckpointKeyName("m1"), hsmstore.ProbeKeyName("m1")} {
		k := c.store.AnyKey(n)
		if _, err := c.store.Destroy(ctx, granting(admin.DestroyKeyAct(n, k.SPKIHash())), n); err == nil {
			t.Errorf("%s was destroyed", n)
		}
	}
	for _, r := range c.db.keys() {
		if r.Name == "document" && (r.State != hsmstore.KeyDestroyed || len(r.Members) != 0) {
			t.Errorf("record %+v", r)
		}
	}
}

// A copy that cannot be destroyed keeps the key disabled, and a second try ends it.
func TestDestroyIsRepeatable(t *testing.T) {
	c := newCluster(t)
	ctx := t.Context()
	k := c.key(t, "tsa")
	act := admin.DestroyKeyAct("tsa", k.SPKIHash())
	// The PIN of m2 is not to be had for a moment: its worker is up, its ceremony fails.
	pin := filepath.Join(c.dir, "hsm", "m2", "pin")
	must(os.Rename(pin, pin+".away"))
	report, err := c.store.Destroy(ctx, granting(act), "tsa")
	if err == nil || !slices.Equal(report.Left, []string{"m2"}) || !strings.Contains(err.Error(), "m2") {
		t.Fatalf("%+v: %v", report, err)
	}
	if k.State() != hsmstore.KeyDisabled || fmt.Sprint(k.Members()) != "[m2]" {
		t.Errorf("key is %s on %v", k.State(), k.Members())
	}
	must(os.Rename(pin+".away", pin))
	if report, err = c.store.Destroy(ctx, granting(act), "tsa"); err != nil || len(report.Copies) != 1 || k.State() != hsmstore.KeyDestroyed {
		t.Errorf("%+v: %v, key is %s", report, err, k.State())
	}
}

// A token whose random source is constant, or starts from one state every time, is
// fenced before it signs; the others go on.
func TestAttack_HSM_15(t *testing.T) {
	for what, breakIt := range map[string]func(*hsmfault.Control){
		"constant":   func(c *hsmfault.Control) { c.ConstantRandom(0xa5) },
		"all zeros":  func(c *hsmfault.Control) { c.ConstantRandom(0) },
		"repetitive": func(c *hsmfault.Control) { c.RepeatRandom(7) },
	} {
		t.Run(what, func(t *testing.T) {
			f := copyFaulty(t)
			breakIt(f.ctl["m2"])
			for range 2 { // a source that repeats itself shows at the second start
				stop, err := f.open(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				st := f.status("m2")
				err = once(t.Context(), f.key(t, "issuing"), issue(t, f.key(t, "issuing")))
				stop()
				if err != nil {
					t.Errorf("the other member does not sign: %v", err)
				}
				if st.State == hsmstore.Fenced {
					if !errors.Is(st.Err, hsmstore.ErrRandom) {
						t.Errorf("fenced for %v", st.Err)
					}
					return
				}
			}
			t.Error("the member is in use")
		})
	}
}

// The life of a key on the real database: adopted, described, disabled, destroyed, and
// all of it known after a restart.
func TestKeyLifeOnDatabase(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	m, err := hsmstore.WriteSoftHSMConf(dir, "m1")
	must(err)
	must(hsmstore.InitToken(ctx, m, m.TokenLabel))
	start := func() (*dbstore.Store, *audit.Ledger, *hsmstore.Store, func()) {
		t.Helper()
		db, err := dbstore.Open(ctx, "sqlite:"+filepath.Join(dir, "chancery.db"))
		must(err)
		ledger, err := audit.Open(ctx, db, audit.Options{Node: "n1", Build: "test"})
		must(err)
		run, cancel := context.WithCancel(context.Background())
		ended := make(chan struct{})
		go func() { defer close(ended); ledger.Run(run) }()
		keys, err := db.Keys(ctx)
		must(err)
		enrolled, err := db.Members(ctx)
		must(err)
		s, err := hsmstore.Open(ctx, hsmstore.Config{Members: []hsmstore.MemberConfig{m}, Ledger: ledger, Keys: keys, Enrolled: enrolled})
		must(err)
		return db, ledger, s, func() { s.Close(); cancel(); <-ended; db.Close() }
	}
	_, ledger, s, stop := start()
	acts := s.GenesisActs(ocspSpec)
	grant, err := admin.Genesis(ledger.Head(), acts)
	must(err)
	must(s.Genesis(ctx, grant, audit.Genesis{Random: [32]byte{3}, Dev: true, Domain: "ca.example", Acts: acts}, ocspSpec))
	pkcs11Tool(t, m, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "theirs", "--id", "42")
	report, err := s.InspectKey(ctx, "m1", []byte{0x42}, "")
	must(err)
	spec := hsmstore.AdoptSpec{Name: "theirs", Purpose: audit.PurposeDocument, Algorithm: "P-256", Member: "m1", CKAID: []byte{0x42}, AcceptWeak: report.Weak, DryRun: true}
	report, err = s.Adopt(ctx, nil, spec)
	must(err)
	spec.DryRun = false
	if _, err := s.Adopt(ctx, granting(report.Act), spec); err != nil {
		t.Fatal(err)
	}
	must(s.Describe(ctx, "theirs", "from the old CA"))
	must(s.Disable(ctx, "theirs", "for a while"))
	stop()

	_, _, s, stop = start()
	found := s.Find("42")
	if len(found) != 1 || found[0].State != hsmstore.KeyDisabled || found[0].Description != "from the old CA" || found[0].Adopted == nil {
		t.Fatalf("after a restart: %+v", found)
	}
	must(s.Enable(ctx, "theirs", "test"))
	k, err := s.Key("theirs")
	must(err)
	if _, err := use(ctx, k, hsmstore.SignRequest{Op: audit.OpCMS, Message: attributes(oidData, 32)}); err != nil {
		t.Fatal(err)
	}
	if d, err := s.Verify(ctx); err != nil || len(d.Findings) != 0 {
		t.Errorf("verify: %+v, %v", d.Findings, err)
	}
	if _, err := s.Destroy(ctx, granting(admin.DestroyKeyAct("theirs", k.SPKIHash())), "theirs"); err != nil {
		t.Fatal(err)
	}
	stop()

	_, _, s, stop = start()
	defer stop()
	if k := s.AnyKey("theirs"); k == nil || k.State() != hsmstore.KeyDestroyed || len(k.Members()) != 0 {
		t.Errorf("after its end: %+v", k)
	}
	if d, err := s.Verify(ctx); err != nil || len(d.Findings) != 0 {
		t.Errorf("verify: %+v, %v", d.Findings, err)
	}
}
