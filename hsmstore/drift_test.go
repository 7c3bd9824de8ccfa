package hsmstore_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/admin"
	"chancery/audit"
	"chancery/hsmstore"

	"github.com/miekg/pkcs11"
	"golang.org/x/crypto/ocsp"
)

// verify checks all keys and returns the findings as kind/key/member.
func (c *cluster) verify(t *testing.T) (out []string) {
	t.Helper()
	d, err := c.store.Verify(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range d.Findings {
		t.Logf("%s; %s", f, f.Cure)
		out = append(out, string(f.Kind)+"/"+f.Key+"/"+f.Member)
	}
	return out
}

// destroyObjects destroys objects of a member's token as somebody with the PIN could.
func destroyObjects(t *testing.T, m hsmstore.MemberConfig, class uint, label string) {
	t.Helper()
	inToken(t, m, func(p *pkcs11.Ctx, session pkcs11.SessionHandle) {
		must(p.FindObjectsInit(session, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, class), pkcs11.NewAttribute(pkcs11.CKA_LABEL, label)}))
		hs, _, err := p.FindObjects(session, 10)
		must(err)
		must(p.FindObjectsFinal(session))
		if len(hs) == 0 {
			t.Errorf("member %s has no %s", m.Name, label)
		}
		for _, h := range hs {
			must(p.DestroyObject(session, h))
		}
	})
}

// copies of an intact cluster show nothing; each copy is proved, and a leaf is written
// only when the findings change.
func TestVerifyClean(t *testing.T) {
	c := newCluster(t, func(cfg *hsmstore.Config) { cfg.CeremonyOnly = func(name string) bool { return name == "root" } })
	before := c.db.size()
	if found := c.verify(t); found != nil {
		t.Fatalf("an intact cluster shows %v", found)
	}
	proofs := 0
	for i := before; i < c.db.size(); i++ {
		l := c.db.leaf(i)
		if l.Op != audit.OpKeyProof {
			t.Errorf("leaf %d is %s", i, l.Op)
		}
		if key, _ := l.Hash(audit.TagKey); key == c.key(t, "root").SPKIHash() {
			t.Error("the root was used outside a ceremony")
		}
		if l.Kind == audit.KindDone {
			proofs++
		}
	}
	if want := 2 * (len(allSpecs) + 1 - 1); proofs != want { // and the checkpoint key, without the root
		t.Errorf("%d proofs, not %d", proofs, want)
	}
	if d, ok := c.store.LastDrift(); !ok || len(d.Findings) != 0 || len(d.Asked) != 2 {
		t.Errorf("last drift %+v, %t", d, ok)
	}
}

// A copy that is lost is found out, not used, and repaired; elsewhere the key signs
// all the time.
func TestDriftAndRepair(t *testing.T) {
	c := newCluster(t)
	ctx := t.Context()
	req := hsmstore.SignRequest{Op: audit.OpOCSP, Message: responseData(t, ocsp.Good)}
	destroyObjects(t, c.members[1], pkcs11.CKO_PRIVATE_KEY, "chancery:ocsp:ocsp")
	destroyObjects(t, c.members[1], pkcs11.CKO_PUBLIC_KEY, "chancery:issuer:issuing")
	before := c.db.size()
	if found := c.verify(t); !slices.Equal(found, []string{"absent/ocsp/m2", "changed/issuing/m2"}) {
		t.Errorf("findings %v", found)
	}
	drifts := func() (n int) {
		for i := before; i < c.db.size(); i++ {
			if l := c.db.leaf(i); l.Op == audit.OpKeyDrift {
				n++
			}
		}
		return n
	}
	if c.verify(t); drifts() != 1 {
		t.Errorf("%d leaves about one set of findings", drifts())
	}
	for range 8 {
		if _, err := use(ctx, c.key(t, "ocsp"), req); err != nil {
			t.Fatal(err)
		}
	}
	for _, info := range c.store.Keys() {
		if info.Name == "ocsp" && !slices.Equal(info.Ready, []string{"m1"}) {
			t.Errorf("ready on %v", info.Ready)
		}
	}
	act := admin.RepairKeyAct("ocsp", "m2")
	for what, try := range map[string]error{
		"without a grant":  c.store.Repair(ctx, nil, "ocsp", "m2"),
		"another member":   c.store.Repair(ctx, granting(act), "ocsp", "m9"),
		"no good copy":     c.store.Repair(ctx, granting(admin.RepairKeyAct("ocsp", "m1")), "ocsp", "m1"),
		"a probe key":      c.store.Repair(ctx, granting(act), hsmstore.ProbeKeyName("m2"), "m2"),
		"an unknown key":   c.store.Repair(ctx, granting(act), "nobody", "m2"),
		"grant for others": c.store.Repair(ctx, granting(act), "issuing", "m2"),
	} {
		if try == nil {
			t.Errorf("%s: repaired", what)
		}
	}
	for _, n := range []string{"ocsp", "issuing"} {
		if err := c.store.Repair(ctx, granting(admin.RepairKeyAct(n, "m2")), n, "m2"); err != nil {
			t.Fatal(err)
		}
	}
	if found := c.verify(t); found != nil {
		t.Errorf("after the repair: %v", found)
	}
	if drifts() != 2 {
		t.Errorf("%d leaves about drift and its end", drifts())
	}
	text := hsmstore.ProofText(c.ledger.ID(), c.key(t, "ocsp").SPKIHash(), c.status("m2").Serial, [32]byte{1})
	if _, err := c.store.SignOn(ctx, c.key(t, "ocsp"), "m2", 1, text); err != nil {
		t.Error(err)
	}
}

// A token that is restored from a backup shows: a destroyed key is back and is not
// used, a key that was born later is gone, and both are alarms.
func TestAttack_HSM_13(t *testing.T) {
	c := copyCluster(t)
	ctx := t.Context()
	stop, err := c.open(ctx)
	must(err)
	home := filepath.Join(c.dir, "hsm", "m2", "tokens")
	backup := filepath.Join(t.TempDir(), "tokens")
	must(os.CopyFS(backup, os.DirFS(home)))
	k := c.key(t, "tsa")
	if _, err := c.store.Destroy(ctx, granting(admin.DestroyKeyAct("tsa", k.SPKIHash())), "tsa"); err != nil {
		t.Fatal(err)
	}
	late := hsmstore.KeySpec{Name: "late", Purpose: audit.PurposeOCSP, Algorithm: "P-256"}
	if _, err := c.store.GenerateKey(ctx, granting(late.Act()), late); err != nil {
		t.Fatal(err)
	}
	stop()
	must(os.RemoveAll(home))
	must(os.CopyFS(home, os.DirFS(backup)))
	stop, err = c.open(ctx)
	must(err)
	defer stop()
	found := c.verify(t)
	if !slices.Equal(found, []string{"absent/late/m2", "returned/tsa/m2"}) {
		t.Errorf("findings %v", found)
	}
	if _, err := c.store.SignOn(ctx, c.store.AnyKey("tsa"), "m2", 1, attributes(oidTSTInfo, 32)); err == nil {
		t.Error("a destroyed key signed")
	}
	if !strings.Contains(c.log.String(), "returned") {
		t.Error("no alarm in the log")
	}
}

// What nobody enrolled shows too: an object under a label of ours, a second key with
// the CKA_ID of one of ours, a stored wrapping key, and a key in the database that the
// ledger knows nothing of.
func TestDriftFindsStrangers(t *testing.T) {
	c := copyCluster(t)
	m := c.members[0]
	planted := plant(t, m, "chancery:ocsp:planted", hsmstore.KeyRecord{ID: [16]byte{9}, Name: "planted", Purpose: audit.PurposeOCSP, Birth: 2}, nil)
	plant(t, m, "chancery:issuer:ghost", hsmstore.KeyRecord{ID: [16]byte{8}}, nil)
	var document hsmstore.KeyRecord
	for _, r := range c.db.keys() {
		if r.Name == "document" {
			document = r
		}
	}
	plant(t, m, "double", hsmstore.KeyRecord{ID: document.ID}, nil)
	inToken(t, m, func(p *pkcs11.Ctx, session pkcs11.SessionHandle) {
		a := pkcs11.NewAttribute
		_, err := p.GenerateKey(session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, []*pkcs11.Attribute{
			a(pkcs11.CKA_TOKEN, true), a(pkcs11.CKA_VALUE_LEN, 32), a(pkcs11.CKA_WRAP, true), a(pkcs11.CKA_DECRYPT, true), a(pkcs11.CKA_LABEL, "wrapper")})
		must(err)
	})
	stop, err := c.open(t.Context(), func(cfg *hsmstore.Config) { cfg.Keys = append(cfg.Keys, planted) })
	must(err)
	defer stop()
	found := c.verify(t)
	for _, want := range []string{"no-birth/planted/", "unknown//m1", "changed/document/m1", "duplicate/document/m1", "wrapping//m1"} {
		if !slices.Contains(found, want) {
			t.Errorf("%s is not found", want)
		}
	}
	if _, err := use(t.Context(), c.key(t, "planted"), hsmstore.SignRequest{Op: audit.OpOCSP, Message: responseData(t, ocsp.Good)}); !errors.Is(err, hsmstore.ErrUnavailable) {
		t.Errorf("a key without a birth signed: %v", err)
	}
}

// A caller who goes away ends no worker, and a check that is cut short puts nothing back
// into use.
func TestCallersWhoGoAway(t *testing.T) {
	c := newCluster(t, func(cfg *hsmstore.Config) {
		for i := range cfg.Keys {
			if cfg.Keys[i].Name == "issuing" {
				cfg.Keys[i].Birth = 1
			}
		}
	})
	if found := c.verify(t); !slices.Equal(found, []string{"no-birth/issuing/"}) {
		t.Fatalf("findings %v", found)
	}
	k := c.key(t, "issuing")
	starts := c.status("m1").Starts + c.status("m2").Starts
	for i := range 30 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*time.Millisecond/2)
		_, _ = c.store.Verify(ctx)
		_, _ = c.store.Attributes(ctx, "ocsp")
		cancel()
		if err := once(t.Context(), k, issue(t, k)); err == nil {
			t.Fatal("ATTACK WORKED: a key without a birth signs after a check that was cut short")
		}
	}
	if err := once(t.Context(), c.key(t, "document"), hsmstore.SignRequest{Op: audit.OpCMS, Message: attributes(oidData, 32), Requester: "test"}); err != nil {
		t.Error(err)
	}
	if now := c.status("m1").Starts + c.status("m2").Starts; now != starts {
		t.Errorf("callers who went away ended %d workers", now-starts)
	}
}
