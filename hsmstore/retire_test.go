package hsmstore_test

import (
	"context"
	"errors"
	"testing"

	"chancery/admin"
	"chancery/hsmstore"
)

// A retired cluster signs nothing any more, whatever the database says later: workers
// and ceremony processes have written it down themselves.
func TestRetire(t *testing.T) {
	c, tokens := withBackups(t, "far")
	rec := c.designate(t, tokens["far"])
	if _, err := c.store.Backup(t.Context(), granting(admin.BackupAct("far", rec.Serial)), "far"); err != nil {
		t.Fatal(err)
	}
	key := c.key(t, "issuing")
	if err := c.store.Retire(t.Context(), granting(admin.BackupAct("far", rec.Serial)), "test", nil); !errors.Is(err, admin.ErrNotGranted) {
		t.Fatalf("retired without a grant: %v", err)
	}
	must(once(t.Context(), key, issue(t, nil)))
	signed := false
	must(c.store.Retire(t.Context(), granting(admin.RetireAct()), "elsewhere", func(context.Context) error { signed = true; return nil }))
	size := c.db.size()
	if err := once(t.Context(), key, issue(t, nil)); !errors.Is(err, hsmstore.ErrUnavailable) || !signed {
		t.Errorf("a retired cluster signs: %v", err)
	}
	if _, err := c.store.VerifyBackup(t.Context(), "far"); !errors.Is(err, hsmstore.ErrUnavailable) {
		t.Errorf("a retired cluster proves its backup: %v", err)
	}
	if c.db.size() != size {
		t.Errorf("%d leaves after the end", c.db.size()-size)
	}
	if c.store.Ready() {
		t.Error("ready")
	}
	must(c.store.Close())
	// Somebody who writes to the database undoes it there.
	c.db.mu.Lock()
	for i, p := range c.db.applied {
		if s, ok := p.(hsmstore.SetStanding); ok && s.To == hsmstore.StandingRetired {
			s.To = hsmstore.StandingActive
			c.db.applied[i] = s
		}
	}
	c.db.mu.Unlock()
	old := c.store
	stop, err := c.open(context.Background())
	if err == nil {
		err = once(t.Context(), c.key(t, "issuing"), issue(t, nil))
		stop()
	}
	if err == nil {
		t.Error("ATTACK WORKED: it signs again")
	}
	c.store = old // for the cleanup
	t.Log(err)
}
