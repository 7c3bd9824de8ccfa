package hsmstore_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"chancery/admin"
	"chancery/audit"
	"chancery/hsmstore"

	"github.com/miekg/pkcs11"
)

// look opens a member's token in this process and calls fn for all objects.
func look(t *testing.T, m hsmstore.MemberConfig, fn func(get func(uint) []byte, class uint)) {
	t.Helper()
	k, v, _ := strings.Cut(m.Env[0], "=")
	t.Setenv(k, v)
	p := pkcs11.New(m.Module)
	must(p.Initialize())
	defer p.Destroy()
	defer p.Finalize()
	slots, err := p.GetSlotList(true)
	must(err)
	session, err := p.OpenSession(slots[0], pkcs11.CKF_SERIAL_SESSION)
	must(err)
	pin, err := m.PIN()
	must(err)
	must(p.Login(session, pkcs11.CKU_USER, pin))
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
				probe := strings.HasPrefix(label, "chancery:probe:")
				if !is(pkcs11.CKA_SENSITIVE) || !is(pkcs11.CKA_PRIVATE) || is(pkcs11.CKA_MODIFIABLE) || is(pkcs11.CKA_DECRYPT) || is(pkcs11.CKA_UNWRAP) || is(pkcs11.CKA_DERIVE) || !is(pkcs11.CKA_SIGN) {
					t.Errorf("member %s: %s is too weak", m.Name, label)
				}
				if is(pkcs11.CKA_EXTRACTABLE) && !is(pkcs11.CKA_WRAP_WITH_TRUSTED) || is(pkcs11.CKA_EXTRACTABLE) == probe {
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
	stop, err := c.open(t.Context(), func(cfg *hsmstore.Config) { cfg.Members = cfg.Members[:1] })
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
	for i, p := range c.db.applied {
		if _, last := p.(hsmstore.KeyUsable); last && i == len(c.db.applied)-1 {
			c.db.applied = c.db.applied[:i]
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
	n := len(allSpecs) + 1
	want := map[string]int{"genesis/genesis": 1, "member-add/event": 2, "key-generate/event": n + 2, "key-replicate/event": n, "key-proof/intent": 2*n + 2, "key-proof/done": 2*n + 2}
	if fmt.Sprint(count) != fmt.Sprint(want) {
		t.Errorf("leaves %v, expected %v", count, want)
	}
	for _, k := range c.store.Keys() {
		if !k.Usable || len(k.Ready) != len(k.Members) {
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
