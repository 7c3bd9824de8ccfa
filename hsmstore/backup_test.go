package hsmstore_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"chancery/admin"
	"chancery/audit"
	"chancery/hsmstore"
)

// Recipients and Backups are what a database would hold.
func (m *memory) Recipients(context.Context) (out []hsmstore.RecipientRecord, _ error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.recipients != nil {
		return m.recipients, nil
	}
	for _, p := range m.applied {
		switch p := p.(type) {
		case hsmstore.PutRecipient:
			out = slices.DeleteFunc(out, func(r hsmstore.RecipientRecord) bool { return r.Name == p.Name })
			out = append(out, p.RecipientRecord)
		case hsmstore.RecipientRemoved:
			for i := range out {
				out[i].Removed = out[i].Removed || out[i].Name == p.Name
			}
		}
	}
	return out, nil
}

func (m *memory) Backups(_ context.Context, name string) (out []hsmstore.BackupRecord, _ error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.applied {
		switch p := p.(type) {
		case hsmstore.PutBackup:
			if p.Recipient == name {
				out = append(out, p.BackupRecord)
			}
		}
	}
	return out, nil
}

// withBackups is a cluster whose configuration names backup tokens; away can hide one.
func withBackups(t *testing.T, names ...string) (c *cluster, tokens map[string]hsmstore.MemberConfig) {
	t.Helper()
	tokens = map[string]hsmstore.MemberConfig{}
	c = copyCluster(t)
	for _, n := range names {
		tokens[n] = c.newToken(t, n)
	}
	stop, err := c.open(context.Background(), func(cfg *hsmstore.Config) {
		cfg.Backup = c.db
		cfg.BackupToken = func(name string) (hsmstore.MemberConfig, error) {
			if m, ok := tokens[name]; ok {
				return m, nil
			}
			return hsmstore.MemberConfig{}, fmt.Errorf("%w: hsm.backups has no %s", hsmstore.ErrUnavailable, name)
		}
		cfg.Backups = func(id hsmstore.KeyID) (out []string) {
			for _, n := range names {
				all, _ := c.db.Backups(context.Background(), n)
				if slices.ContainsFunc(all, func(b hsmstore.BackupRecord) bool { return b.Key == id }) {
					out = append(out, n)
				}
			}
			return out
		}
	})
	if err != nil {
		t.Fatalf("opening the store: %v\n%s", err, c.log)
	}
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			t.Logf("log:\n%s", c.log)
		}
	})
	return c, tokens
}

func (c *cluster) designate(t *testing.T, m hsmstore.MemberConfig) hsmstore.RecipientRecord {
	t.Helper()
	cand, err := c.store.InspectRecipient(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	rec, err := c.store.Designate(t.Context(), granting(cand.Acts...), m)
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

func names(keys []hsmstore.BackupKey) (out []string) {
	for _, k := range keys {
		out = append(out, k.Name)
	}
	slices.Sort(out)
	return out
}

// Keys that are there are wrapped by Backup, new ones at birth; each proves itself on the
// recipient, and nothing of a backup helps who has all of it and the recipient's PIN.
func TestBackup(t *testing.T) {
	c, tokens := withBackups(t, "far", "other")
	far := tokens["far"]
	if _, err := c.store.Backup(t.Context(), granting(admin.BackupAct("far", "x")), "far"); !errors.Is(err, hsmstore.ErrNoRecipient) {
		t.Errorf("a backup to nobody: %v", err)
	}
	if _, err := c.store.Designate(t.Context(), granting(admin.BackupAct("far", "x")), far); !errors.Is(err, admin.ErrNotGranted) {
		t.Errorf("designated without a grant: %v", err)
	}
	if _, err := c.store.InspectRecipient(t.Context(), c.members[0]); !errors.Is(err, audit.ErrExists) {
		t.Errorf("a member of the cluster as recipient: %v", err)
	}
	rec := c.designate(t, far)
	missing, err := c.store.MissingBackups(t.Context(), "far")
	if err != nil || len(missing) != len(allSpecs) {
		t.Fatalf("missing: %v %v", missing, err)
	}
	if _, err := c.store.Backup(t.Context(), granting(admin.BackupAct("other", rec.Serial)), "far"); !errors.Is(err, admin.ErrNotGranted) {
		t.Errorf("a backup without a grant: %v", err)
	}
	before := c.db.size()
	done, err := c.store.Backup(t.Context(), granting(admin.BackupAct("far", rec.Serial)), "far")
	if err != nil || len(done) != len(allSpecs) {
		t.Fatalf("backed up %v: %v", done, err)
	}
	count := map[audit.Op]int{}
	for i := before; i < c.db.size(); i++ {
		l := c.db.leaf(i)
		count[l.Op]++
		if l.Op != audit.OpBackup {
			continue
		}
		recipient, _ := l.Get(audit.TagRecipient)
		_, subject := l.Hash(audit.TagSubject)
		if _, ok := l.Hash(audit.TagGrant); !ok || string(recipient) != "far" || !subject {
			t.Errorf("leaf %d lacks what it should say", i)
		}
	}
	if count[audit.OpBackup] != len(allSpecs) || count[audit.OpKeyProof] != 2*len(allSpecs) {
		t.Errorf("leaves: %v", count)
	}
	// At birth, EC and RSA.
	for _, spec := range []hsmstore.KeySpec{{Name: "new-ec", Purpose: audit.PurposeOCSP, Algorithm: "P-384"}, {Name: "new-rsa", Purpose: audit.PurposeDocument, Algorithm: "RSA-2048"},
		{Name: "alone", Purpose: audit.PurposeOCSP, Algorithm: "P-256", Members: []string{"m1"}}} {
		if _, err := c.store.GenerateKey(t.Context(), granting(spec.Act()), spec); err != nil {
			t.Fatal(err)
		}
	}
	keys, err := c.store.BackupKeys(t.Context(), "far")
	want := []string{"document", "issuing", "new-ec", "new-rsa", "ocsp", "root", "tsa"}
	if err != nil || !slices.Equal(names(keys), want) {
		t.Fatalf("the backup has %v, not %v: %v", names(keys), want, err)
	}
	if missing, err := c.store.MissingBackups(t.Context(), "far"); err != nil || len(missing) != 0 {
		t.Errorf("missing: %v %v", missing, err)
	}
	if left := c.store.LeftOut(); left["alone"] == "" || left["checkpoint-m1"] == "" || left["issuing"] != "" {
		t.Errorf("left out: %v", left)
	}
	checks, err := c.store.VerifyBackup(t.Context(), "far")
	if err != nil || len(checks) != len(want) {
		t.Fatalf("verify: %v %v", checks, err)
	}
	for _, k := range checks {
		if !k.OK {
			t.Errorf("key %s: %s", k.Key, k.Why)
		}
	}
	if open, _ := c.db.OpenIntents(t.Context(), "n1"); len(open) != 0 {
		t.Errorf("%d intents stay open", len(open))
	}
	// Without a server.
	checks, err = hsmstore.Rehearse(t.Context(), far, rec, c.ledger.ID(), keys)
	if err != nil || slices.ContainsFunc(checks, func(k hsmstore.BackupCheck) bool { return !k.OK }) {
		t.Errorf("rehearsal: %+v %v", checks, err)
	}
	keys[0].Blob = append([]byte(nil), keys[0].Blob...)
	keys[0].Blob[5] ^= 1
	keys[1].SPKI = keys[2].SPKI
	checks, err = hsmstore.Rehearse(t.Context(), far, rec, c.ledger.ID(), keys)
	if err != nil || checks[0].OK || checks[1].OK || !checks[2].OK {
		t.Errorf("rehearsal with damage: %+v %v", checks, err)
	}
	keys, _ = c.store.BackupKeys(t.Context(), "far")
	// On another token a backup is nothing, whatever it is called.
	if _, err := hsmstore.Rehearse(t.Context(), tokens["other"], rec, c.ledger.ID(), keys); !errors.Is(err, hsmstore.ErrToken) {
		t.Errorf("another token: %v", err)
	}
	stranger, err := c.store.InspectRecipient(t.Context(), tokens["other"])
	if err != nil {
		t.Fatal(err)
	}
	forged := rec
	forged.Serial = stranger.Serial
	if checks, err := hsmstore.Rehearse(t.Context(), tokens["other"], forged, c.ledger.ID(), keys); err != nil || slices.ContainsFunc(checks, func(k hsmstore.BackupCheck) bool { return k.OK }) {
		t.Errorf("another token took a backup: %+v %v", checks, err)
	}
	// A destroyed key is named with the backups that still hold it.
	k := c.key(t, "new-ec")
	report, err := c.store.Destroy(t.Context(), granting(admin.DestroyKeyAct("new-ec", k.SPKIHash())), "new-ec")
	if err != nil || !slices.Equal(report.Backups, []string{"far"}) {
		t.Errorf("destroyed: %+v %v", report, err)
	}
	hsmstore.AttackBackup(t, far, rec, keys)
}

// A recipient that is away stops a birth before anything happens; without its designation
// keys are born again.
func TestBackupRecipientAway(t *testing.T) {
	c, tokens := withBackups(t, "far")
	rec := c.designate(t, tokens["far"])
	far := tokens["far"]
	delete(tokens, "far")
	spec := hsmstore.KeySpec{Name: "late", Purpose: audit.PurposeOCSP, Algorithm: "P-256"}
	grant := granting(spec.Act(), admin.RemoveRecipientAct("far", rec.Serial))
	before := c.db.size()
	_, err := c.store.GenerateKey(t.Context(), grant, spec)
	if !errors.Is(err, hsmstore.ErrUnavailable) || !strings.Contains(err.Error(), "far") || !strings.Contains(err.Error(), "--remove") || c.db.size() != before {
		t.Fatalf("born without its backup, or not said well: %v", err)
	}
	noSO := far
	noSO.SOPIN = nil
	tokens["far"] = noSO
	if _, err := c.store.GenerateKey(t.Context(), grant, spec); !errors.Is(err, hsmstore.ErrPIN) || c.db.size() != before {
		t.Fatalf("born without the SO PIN of the recipient: %v", err)
	}
	delete(tokens, "far")
	if err := c.store.RemoveRecipient(t.Context(), grant, "far"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.store.GenerateKey(t.Context(), grant, spec); err != nil {
		t.Fatal(err)
	}
	// Designated again it gets everything anew.
	tokens["far"] = far
	c.designate(t, far)
	if done, err := c.store.Backup(t.Context(), granting(admin.BackupAct("far", rec.Serial)), "far"); err != nil || !slices.Contains(done, "late") {
		t.Errorf("%v %v", done, err)
	}
}

// Whoever has the recipient's user PIN exchanges a KEK, with a twin that decrypts: nothing
// is ever wrapped to it, as every ceremony makes its own, and the daily proof notices.
func TestAttack_HSM_BackupKEKExchanged(t *testing.T) {
	c, tokens := withBackups(t, "far")
	rec := c.designate(t, tokens["far"])
	if _, err := c.store.Backup(t.Context(), granting(admin.BackupAct("far", rec.Serial)), "far"); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	before, err := c.store.BackupKeys(t.Context(), "far")
	must(err)
	for _, k := range before {
		seen[string(k.KEK.CKAID)] = true
	}
	hsmstore.ExchangeKEK(t, tokens["far"], rec.Serial, before[0].KEK)
	if checks, err := c.store.VerifyBackup(t.Context(), "far"); err == nil || !strings.Contains(err.Error(), "check value") {
		t.Errorf("nobody noticed: %+v %v", checks, err)
	}
	for _, name := range []string{"first", "second"} {
		spec := hsmstore.KeySpec{Name: name, Purpose: audit.PurposeOCSP, Algorithm: "P-256"}
		if _, err := c.store.GenerateKey(t.Context(), granting(spec.Act()), spec); err != nil {
			t.Fatal(err)
		}
		now, err := c.store.BackupKeys(t.Context(), "far")
		must(err)
		if last := now[len(now)-1]; last.Name != name || seen[string(last.KEK.CKAID)] {
			t.Errorf("ATTACK WORKED: key %s is wrapped to a KEK that was there before", last.Name)
		} else {
			seen[string(last.KEK.CKAID)] = true
		}
	}
}

// A row of the database designates nobody.
func TestAttack_HSM_RecipientWithoutDesignation(t *testing.T) {
	c, tokens := withBackups(t, "far", "other")
	rec := c.designate(t, tokens["far"])
	stranger, err := c.store.InspectRecipient(t.Context(), tokens["other"])
	must(err)
	spec := hsmstore.KeySpec{Name: "late", Purpose: audit.PurposeOCSP, Algorithm: "P-256"}
	for what, row := range map[string]hsmstore.RecipientRecord{
		"another token": {Name: "far", Serial: stranger.Serial, Leaf: rec.Leaf}, "another name": {Name: "other", Serial: rec.Serial, Leaf: rec.Leaf}, "no leaf": {Name: "other", Serial: stranger.Serial, Leaf: 0},
	} {
		c.db.mu.Lock()
		c.db.recipients = append(c.db.recipients[:0:0], row)
		c.db.mu.Unlock()
		if _, err := c.store.GenerateKey(t.Context(), granting(spec.Act()), spec); !errors.Is(err, audit.ErrTampered) {
			t.Errorf("ATTACK WORKED: %s: %v", what, err)
		}
		if _, err := c.store.Backup(t.Context(), granting(admin.BackupAct(row.Name, row.Serial)), row.Name); !errors.Is(err, audit.ErrTampered) {
			t.Errorf("ATTACK WORKED: %s: %v", what, err)
		}
	}
}

// A wrong PIN is noticed before anything is promised.
func TestBackupWrongPIN(t *testing.T) {
	c, tokens := withBackups(t, "far")
	rec := c.designate(t, tokens["far"])
	if _, err := c.store.Backup(t.Context(), granting(admin.BackupAct("far", rec.Serial)), "far"); err != nil {
		t.Fatal(err)
	}
	far := tokens["far"]
	far.PIN = func() (string, error) { return "99999999", nil }
	tokens["far"] = far
	before := c.db.size()
	if _, err := c.store.VerifyBackup(t.Context(), "far"); !errors.Is(err, hsmstore.ErrPIN) || c.db.size() != before {
		t.Errorf("%d leaves: %v", c.db.size()-before, err)
	}
}

// A token that receives backups does not join the cluster.
func TestRecipientIsNoMember(t *testing.T) {
	c, tokens := withBackups(t, "far")
	c.designate(t, tokens["far"])
	m := tokens["far"]
	m.Name = "m3"
	cand, err := c.store.Inspect(t.Context(), m)
	must(err)
	if err := c.store.AddMember(t.Context(), granting(cand.Acts...), m, nil); !errors.Is(err, audit.ErrExists) || !strings.Contains(err.Error(), "far") {
		t.Errorf("it joined: %v", err)
	}
}
