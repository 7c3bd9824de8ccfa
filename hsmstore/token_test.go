package hsmstore_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/asn1"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"chancery/admin"
	"chancery/audit"
	"chancery/hsmstore"

	"github.com/miekg/pkcs11"
	"golang.org/x/crypto/ocsp"
	"golang.org/x/mod/sumdb/tlog"
)

// inToken opens a member's token in this process, with its user logged in.
func inToken(t *testing.T, m hsmstore.MemberConfig, fn func(*pkcs11.Ctx, pkcs11.SessionHandle)) {
	t.Helper()
	k, v, _ := strings.Cut(m.Env[0], "=")
	t.Setenv(k, v)
	p := pkcs11.New(m.Module)
	must(p.Initialize())
	defer p.Destroy()
	defer p.Finalize()
	slots, err := p.GetSlotList(true)
	must(err)
	session, err := p.OpenSession(slots[0], pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	must(err)
	pin, err := m.PIN()
	must(err)
	must(p.Login(session, pkcs11.CKU_USER, pin))
	fn(p, session)
}

// look calls fn for all objects of a member's token.
func look(t *testing.T, m hsmstore.MemberConfig, fn func(get func(uint) []byte, class uint)) {
	t.Helper()
	inToken(t, m, func(p *pkcs11.Ctx, session pkcs11.SessionHandle) { lookAt(t, p, session, fn) })
}

func lookAt(t *testing.T, p *pkcs11.Ctx, session pkcs11.SessionHandle, fn func(get func(uint) []byte, class uint)) {
	t.Helper()
	must(p.FindObjectsInit(session, nil))
	hs, _, err := p.FindObjects(session, 1000)
	must(err)
	must(p.FindObjectsFinal(session))
	for _, h := range hs {
		get := func(a uint) []byte {
			as, err := p.GetAttributeValue(session, h, []*pkcs11.Attribute{pkcs11.NewAttribute(a, nil)})
			if err != nil {
				t.Fatalf("attribute %#x: %v", a, err)
			}
			return as[0].Value
		}
		fn(get, uint(get(pkcs11.CKA_CLASS)[0]))
	}
}

// What is on the tokens after the ceremonies: key pairs with the attributes that
// P5 demands, and nothing else – no KEK, no transport key.
func TestObjectsOnTokens(t *testing.T) {
	c := copyCluster(t)
	for _, m := range c.members {
		private, public := map[string]bool{}, map[string]bool{}
		look(t, m, func(get func(uint) []byte, class uint) {
			label := string(get(pkcs11.CKA_LABEL))
			is := func(a uint) bool { return get(a)[0] == 1 }
			switch class {
			case pkcs11.CKO_PRIVATE_KEY:
				private[label] = true
				own := strings.HasPrefix(label, "chancery:probe:") || strings.HasPrefix(label, "chancery:checkpoint:")
				if !is(pkcs11.CKA_SENSITIVE) || !is(pkcs11.CKA_PRIVATE) || is(pkcs11.CKA_MODIFIABLE) || is(pkcs11.CKA_DECRYPT) || is(pkcs11.CKA_UNWRAP) || is(pkcs11.CKA_DERIVE) || !is(pkcs11.CKA_SIGN) {
					t.Errorf("member %s: %s is too weak", m.Name, label)
				}
				if is(pkcs11.CKA_EXTRACTABLE) && !is(pkcs11.CKA_WRAP_WITH_TRUSTED) || is(pkcs11.CKA_EXTRACTABLE) == own {
					t.Errorf("member %s: %s: extractable %t", m.Name, label, is(pkcs11.CKA_EXTRACTABLE))
				}
				if subject := get(pkcs11.CKA_SUBJECT); (len(subject) > 0) != strings.HasPrefix(label, "chancery:issuer:") {
					t.Errorf("member %s: %s is bound to subject %x", m.Name, label, subject)
				}
			case pkcs11.CKO_PUBLIC_KEY:
				public[label] = true
				if is(pkcs11.CKA_MODIFIABLE) || is(pkcs11.CKA_WRAP) || is(pkcs11.CKA_TRUSTED) {
					t.Errorf("member %s: public object of %s can do too much", m.Name, label)
				}
			default:
				t.Errorf("member %s: object %q of class %d is left over", m.Name, label, class)
			}
		})
		want := len(allSpecs) + 2 // checkpoint, probe
		if len(private) != want || fmt.Sprint(private) != fmt.Sprint(public) {
			t.Errorf("member %s: private keys %v, public keys %v", m.Name, private, public)
		}
	}
}

// A grant is spent, a name is unique, and a key that is not proved is not given out.
func TestGenerateNeedsGrant(t *testing.T) {
	c := newCluster(t)
	spec := hsmstore.KeySpec{Name: "late", Purpose: audit.PurposeOCSP, Algorithm: "P-256"}
	size := c.db.size()
	if _, err := c.store.GenerateKey(t.Context(), nil, spec); !errors.Is(err, admin.ErrNotGranted) {
		t.Errorf("without a grant: %v", err)
	}
	grant := func(acts ...string) *admin.Grant { // as if of officers
		g, err := admin.Genesis(audit.Head{}, acts)
		must(err)
		return g
	}
	if _, err := c.store.GenerateKey(t.Context(), grant(ocspSpec.Act()), spec); !errors.Is(err, admin.ErrNotGranted) {
		t.Errorf("with a grant for another key: %v", err)
	}
	if _, err := c.store.GenerateKey(t.Context(), grant(ocspSpec.Act()), ocspSpec); !errors.Is(err, audit.ErrExists) {
		t.Errorf("a name that is taken: %v", err)
	}
	for what, bad := range map[string]hsmstore.KeySpec{
		"no purpose":              {Name: "x", Algorithm: "P-256"},
		"no algorithm":            {Name: "x", Purpose: audit.PurposeOCSP},
		"issuer without subject":  {Name: "x", Purpose: audit.PurposeIssuer, Algorithm: "P-256"},
		"name with a colon":       {Name: "x:y", Purpose: audit.PurposeOCSP, Algorithm: "P-256"},
		"member that is not here": {Name: "x", Purpose: audit.PurposeOCSP, Algorithm: "P-256", Members: []string{"m9"}},
	} {
		if _, err := c.store.GenerateKey(t.Context(), grant(bad.Act()), bad); err == nil {
			t.Errorf("%s: a key was born", what)
		}
	}
	if c.db.size() != size {
		t.Error("leaves were written")
	}
	if _, err := c.store.Key("nobody"); !errors.Is(err, hsmstore.ErrNoKey) {
		t.Errorf("unknown key: %v", err)
	}
}

// A ceremony that a crash cut short after the birth is taken up: the key is copied,
// proved and then usable.
func TestUnfinishedKeyIsTakenUp(t *testing.T) {
	c := copyCluster(t)
	stop, err := c.open(t.Context(), func(cfg *hsmstore.Config) { cfg.Members, cfg.Enrolled = cfg.Members[:1], nil })
	if err != nil {
		t.Fatal(err)
	}
	spec := hsmstore.KeySpec{Name: "late", Purpose: audit.PurposeOCSP, Algorithm: "P-384"}
	g, err := admin.Genesis(audit.Head{}, []string{spec.Act()})
	must(err)
	if _, err = c.store.GenerateKey(t.Context(), g, spec); err != nil {
		t.Fatal(err)
	}
	stop()
	// The database forgets the proof: as if the process had died before it.
	for i, p := range slices.Backward(c.db.applied) {
		if _, last := p.(hsmstore.SetKeyState); last {
			c.db.applied = slices.Delete(c.db.applied, i, i+1)
			break
		}
	}
	if stop, err = c.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer stop()
	if _, err := c.store.Key("late"); !errors.Is(err, hsmstore.ErrNoKey) {
		t.Fatalf("an unproved key was given out: %v", err)
	}
	if c.store.ActDone(spec.Act()) || !c.store.ActDone(ocspSpec.Act()) {
		t.Error("ActDone is wrong")
	}
	g, err = admin.Genesis(audit.Head{}, []string{spec.Act()})
	must(err)
	if _, err = c.store.GenerateKey(t.Context(), g, spec); err != nil {
		t.Fatal(err)
	}
	for _, m := range []string{"m1", "m2"} {
		text := hsmstore.ProofText(c.ledger.ID(), c.key(t, "late").SPKIHash(), c.status(m).Serial, [32]byte{1})
		if _, err := c.store.SignOn(t.Context(), c.key(t, "late"), m, 1, text); err != nil {
			t.Error(err)
		}
	}
}

// The leaves of the genesis tell the whole story of every key.
func TestGenesisLeaves(t *testing.T) {
	c := newCluster(t)
	count := map[string]int{}
	for i := range c.db.size() {
		l := c.db.leaf(i)
		count[l.Op.String()+"/"+l.Kind.String()]++
		if l.Op == audit.OpKeyGenerate || l.Op == audit.OpKeyReplicate {
			list, _ := l.Get(audit.TagAttributes)
			items, err := audit.ParseList(list)
			if err != nil || !strings.Contains(fmt.Sprintf("%s", items), "SENSITIVE=true") {
				t.Errorf("leaf %d: attributes %s", i, items)
			}
		}
		if g, ok := l.Hash(audit.TagGrant); l.Op != audit.OpGenesis && l.Kind != audit.KindDone && (!ok || g == [32]byte{}) {
			t.Errorf("leaf %d (%s %s) names no grant", i, l.Op, l.Kind)
		}
	}
	n, own := len(allSpecs), 2*2 // each member has a checkpoint key and a probe key of its own
	want := map[string]int{"genesis/genesis": 1, "member-add/event": 2, "key-generate/event": n + own, "key-replicate/event": n, "key-proof/intent": 2*n + own, "key-proof/done": 2*n + own}
	if fmt.Sprint(count) != fmt.Sprint(want) {
		t.Errorf("leaves %v, expected %v", count, want)
	}
	for _, k := range c.store.Keys() {
		if k.State != hsmstore.KeyUsable || len(k.Ready) != len(k.Members) {
			t.Errorf("key %s: %+v", k.Name, k)
		}
	}
	if !c.store.Ready() {
		t.Error("not ready")
	}
}

func TestSoftHSMLayoutIsPrivate(t *testing.T) {
	dir := t.TempDir()
	a, err := hsmstore.WriteSoftHSMConf(dir, "m1")
	must(err)
	b, err := hsmstore.WriteSoftHSMConf(dir, "m1")
	must(err)
	p1, err := a.PIN()
	must(err)
	p2, err := b.PIN()
	must(err)
	so, err := a.SOPIN()
	must(err)
	if p1 != p2 || p1 == so || len(p1) < 20 {
		t.Error("PINs changed, are alike or short")
	}
	for _, f := range []string{"pin", "so-pin", "softhsm2.conf"} {
		st, err := os.Stat(dir + "/hsm/m1/" + f)
		must(err)
		if st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o", f, st.Mode().Perm())
		}
	}
	must(os.Chmod(dir+"/hsm/m1/pin", 0o644))
	if _, err := a.PIN(); err == nil {
		t.Error("a PIN file that others may read was used")
	}
	if _, err := hsmstore.WriteSoftHSMConf(dir, "../x"); err == nil {
		t.Error("a member name climbed out")
	}
}

// plant puts a key pair on a token as somebody with the user PIN could, and gives
// its record.
func plant(t *testing.T, m hsmstore.MemberConfig, label string, rec hsmstore.KeyRecord, change map[uint]bool) hsmstore.KeyRecord {
	t.Helper()
	a := pkcs11.NewAttribute
	flags := map[uint]bool{pkcs11.CKA_TOKEN: true, pkcs11.CKA_PRIVATE: true, pkcs11.CKA_SENSITIVE: true, pkcs11.CKA_SIGN: true, pkcs11.CKA_EXTRACTABLE: true,
		pkcs11.CKA_WRAP_WITH_TRUSTED: true, pkcs11.CKA_DECRYPT: false, pkcs11.CKA_UNWRAP: false, pkcs11.CKA_MODIFIABLE: false}
	maps.Copy(flags, change)
	names := []*pkcs11.Attribute{a(pkcs11.CKA_ID, rec.ID[:]), a(pkcs11.CKA_LABEL, label)}
	if rec.Subject != nil {
		names = append(names, a(pkcs11.CKA_SUBJECT, rec.Subject))
	}
	private := slices.Clone(names)
	for f, v := range flags {
		private = append(private, a(f, v))
	}
	public := append(names, a(pkcs11.CKA_TOKEN, true), a(pkcs11.CKA_VERIFY, true), a(pkcs11.CKA_EC_PARAMS, marshal(asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7})))
	inToken(t, m, func(p *pkcs11.Ctx, session pkcs11.SessionHandle) {
		h, _, err := p.GenerateKeyPair(session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_EC_KEY_PAIR_GEN, nil)}, public, private)
		must(err)
		as, err := p.GetAttributeValue(session, h, []*pkcs11.Attribute{a(pkcs11.CKA_EC_POINT, nil)})
		must(err)
		var point []byte
		_, err = asn1.Unmarshal(as[0].Value, &point)
		must(err)
		pub, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
		must(err)
		rec.SPKI = marshalSPKI(pub)
	})
	rec.Algorithm, rec.Origin, rec.Members, rec.State = "P-256", m.Name, []string{m.Name}, hsmstore.KeyUsable
	return rec
}

// A key whose attributes are too weak, or whose label binds no purpose, does not
// sign, whatever the database says of it.
func TestWeakKeysAreRefused(t *testing.T) {
	c := copyCluster(t)
	var recs []hsmstore.KeyRecord
	for i, tc := range []struct {
		label  string
		change map[uint]bool
	}{
		{"chancery:ocsp:k", map[uint]bool{pkcs11.CKA_SENSITIVE: false}},
		{"chancery:ocsp:k", map[uint]bool{pkcs11.CKA_WRAP_WITH_TRUSTED: false}},
		{"chancery:ocsp:k", map[uint]bool{pkcs11.CKA_MODIFIABLE: true}},
		{"chancery:ocsp:k", map[uint]bool{pkcs11.CKA_DECRYPT: true}},
		{"chancery:ocsp:k", map[uint]bool{pkcs11.CKA_UNWRAP: true}},
		{"my key", nil},
		{"chancery:anything:k", nil},
		{"chancery:ocsp:good", nil},
	} {
		rec := hsmstore.KeyRecord{ID: [16]byte{byte(i + 1)}, Name: fmt.Sprintf("planted-%d", i), Purpose: audit.PurposeOCSP}
		recs = append(recs, plant(t, c.members[0], tc.label, rec, tc.change))
	}
	stop, err := c.open(t.Context(), func(cfg *hsmstore.Config) { cfg.Keys = append(cfg.Keys, recs...) })
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	req := hsmstore.SignRequest{Op: audit.OpOCSP, Message: responseData(t, ocsp.Good)}
	for i, r := range recs {
		err := once(t.Context(), c.key(t, r.Name), req)
		if good := i == len(recs)-1; good && err != nil || !good && !errors.Is(err, hsmstore.ErrUnavailable) {
			t.Errorf("key %d: %v", i, err)
		}
	}
}

// The worker believes the token in what a key is for: a database that calls a
// document key an issuer gets no certificate from it.
func TestDatabaseCannotChangePurpose(t *testing.T) {
	c := copyCluster(t)
	rec := plant(t, c.members[0], "chancery:document:d", hsmstore.KeyRecord{ID: [16]byte{1}, Name: "turned", Purpose: audit.PurposeIssuer}, nil)
	rec.Subject = name("Issuing CA")
	other := plant(t, c.members[0], "chancery:issuer:o", hsmstore.KeyRecord{ID: [16]byte{2}, Name: "renamed", Purpose: audit.PurposeIssuer, Subject: name("Other CA")}, nil)
	other.Subject = name("Issuing CA")
	stop, err := c.open(t.Context(), func(cfg *hsmstore.Config) { cfg.Keys = append(cfg.Keys, rec, other) })
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	for _, n := range []string{"turned", "renamed"} {
		op, err := c.key(t, n).Begin(t.Context(), issue(t, nil))
		if n == "turned" && errors.Is(err, hsmstore.ErrUnavailable) {
			continue // its label says something else: no member can use it
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := op.SignMessage(nil, op.Message(), crypto.SHA256); !errors.Is(err, hsmstore.ErrRefused) {
			t.Errorf("%s: %v", n, err)
		}
		if err := op.Close(); err != nil || c.db.closing(op.Index()) != audit.KindFailed {
			t.Errorf("%s: closed as %v: %v", n, c.db.closing(op.Index()), err)
		}
	}
}

// A genesis that a crash cut short right after leaf 0 is finished by the next
// start, under the same grant.
func TestResumeGenesis(t *testing.T) {
	c := copyCluster(t)
	c.db.leaves, c.db.applied = c.db.leaves[:1], c.db.applied[:2]
	c.db.head = audit.Head{Size: 1, Range: []tlog.Hash{audit.LeafHash(c.db.leaves[0])}}
	stop, err := c.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	if _, err := c.store.CheckpointSigner().SignCheckpoint(t.Context(), checkpoint(c.ledger.Origin(), 2, 1)); !errors.Is(err, hsmstore.ErrNoKey) {
		t.Errorf("the checkpoint key is usable before its proof: %v", err)
	}
	grant, err := admin.ResumeGenesis(c.db.leaf(0), c.store.ActDone)
	must(err)
	if err := c.store.ResumeGenesis(t.Context(), grant); err != nil {
		t.Fatal(err)
	}
	if _, err := c.store.GenerateKey(t.Context(), grant, issuerSpec); err != nil {
		t.Fatal(err)
	}
	if err := once(t.Context(), c.key(t, "issuing"), issue(t, nil)); err != nil {
		t.Error(err)
	}
	if _, err := c.store.CheckpointSigner().SignCheckpoint(t.Context(), checkpoint(c.ledger.Origin(), 3, 1)); err != nil {
		t.Error(err)
	}
	c.store.ProbeNow(t.Context())
	if n := c.store.TakeCounts(); n[0].Probes != 1 || n[1].Probes != 1 {
		t.Errorf("probes: %+v", n)
	}
	if again, err := admin.ResumeGenesis(c.db.leaf(0), c.store.ActDone); err != nil || again.Spend(issuerSpec.Act()) == nil {
		t.Errorf("a birth was granted twice (%v)", err)
	}
}
