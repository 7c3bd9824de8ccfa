package hsmstore_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/admin"
	"chancery/audit"
	"chancery/hsmstore"
)

// sharesOf reads share sets as a database would.
type sharesOf struct{ db *memory }

func (s sharesOf) Shares(_ context.Context, member string) (current, next *hsmstore.ShareSet, _ error) {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	for _, p := range s.db.applied {
		if p, ok := p.(hsmstore.PutShares); ok && p.Set.Member == member {
			set := p.Set
			if p.Current {
				current, next = &set, nil
			} else {
				next = &set
			}
		}
	}
	return current, next, nil
}

// people makes officers with keys.
func people(t testing.TB, n int) (keys []*admin.OfficerKey, officers []admin.Officer) {
	t.Helper()
	for i := range n {
		k, err := admin.NewOfficerKey(fmt.Sprintf("officer-%d", i+1))
		if err != nil {
			t.Fatal(err)
		}
		o, err := k.Officer()
		if err != nil {
			t.Fatal(err)
		}
		keys, officers = append(keys, k), append(officers, o)
	}
	return keys, officers
}

// rosterOf is a roster of officers that never changed.
func rosterOf(officers []admin.Officer) func(context.Context) (admin.History, error) {
	return func(context.Context) (admin.History, error) {
		return admin.History{Base: admin.Roster{Officers: officers, Quorum: 2}}, nil
	}
}

// collecting waits for a ceremony of a member that wants shares.
func (c *cluster) collecting(t testing.TB, member string) hsmstore.Collection {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		for _, one := range c.store.Collecting() {
			if one.Member == member {
				return one
			}
		}
	}
	t.Fatalf("no ceremony of member %s waits for shares", member)
	return hsmstore.Collection{}
}

// The SO PINs of both members are split 2 of 3; a key is then born with the shares of
// two officers, and the PIN is another one afterwards.
func TestSplitSOPIN(t *testing.T) {
	c := copyCluster(t)
	keys, officers := people(t, 3)
	change := func(cfg *hsmstore.Config) {
		cfg.Shares, cfg.Rosters = sharesOf{c.db}, rosterOf(officers)
	}
	stop, err := c.open(t.Context(), change)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.store.SplitSOPIN(t.Context(), nil, "m1", 2); !errors.Is(err, admin.ErrNotGranted) {
		t.Errorf("without a grant: %v", err)
	}
	for _, m := range []string{"m1", "m2"} {
		if err := c.store.SplitSOPIN(t.Context(), granting(admin.RotateSOPINAct(m, 2)), m, 2); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(c.dir, "hsm", m, "so-pin")); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	for i := range c.members {
		c.members[i].SplitSO, c.members[i].SOPIN = true, nil
	}
	if stop, err = c.open(t.Context(), change); err != nil {
		t.Fatal(err)
	}
	defer stop()
	before, _, _ := sharesOf{c.db}.Shares(t.Context(), "m1")
	born := func(name string, give func(one hsmstore.Collection)) error {
		spec := hsmstore.KeySpec{Name: name, Purpose: audit.PurposeOCSP, Algorithm: "P-256"}
		var wg sync.WaitGroup
		for _, m := range []string{"m1", "m2"} {
			wg.Go(func() { give(c.collecting(t, m)) })
		}
		defer wg.Wait()
		_, err := c.store.GenerateKey(t.Context(), granting(spec.Act()), spec)
		return err
	}
	give := func(one hsmstore.Collection, k *admin.OfficerKey, set hsmstore.ShareSet) error {
		box, err := set.OpenFor(k, one.Key)
		if err != nil {
			return err
		}
		return c.store.GiveShare(t.Context(), one.ID, k.Name, set.ID, box)
	}
	err = born("shared", func(one hsmstore.Collection) {
		set := one.Sets[0]
		// What is no share costs nothing: it is refused before any login.
		forged, err := admin.SealTo(one.Key, "chancery/so-share/v1 ceremony "+one.Member+" "+set.ID, append([]byte{1}, make([]byte, 32)...))
		if err != nil {
			t.Error(err)
		}
		for what, box := range map[string][]byte{"forged": forged, "garbage": []byte("x")} {
			if err := c.store.GiveShare(t.Context(), one.ID, "officer-1", set.ID, box); !errors.Is(err, hsmstore.ErrRefused) {
				t.Errorf("a %s share: %v", what, err)
			}
		}
		for _, k := range []*admin.OfficerKey{keys[0], keys[0], keys[2]} { // the same twice is one
			if err := give(one, k, set); err != nil {
				t.Error(err)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := once(t.Context(), c.key(t, "issuing"), issue(t, nil)); err != nil {
		t.Error(err)
	}
	after, _, _ := sharesOf{c.db}.Shares(t.Context(), "m1")
	if before.ID == after.ID {
		t.Error("the SO PIN was not changed after its use")
	}
	// The old shares open nothing any more.
	err = born("late", func(one hsmstore.Collection) {
		if err := give(one, keys[0], *before); !errors.Is(err, hsmstore.ErrRefused) && one.Member == "m1" {
			t.Errorf("an old share: %v", err)
		}
		for _, k := range keys[:2] {
			if err := give(one, k, one.Sets[0]); err != nil {
				t.Error(err)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	// A crash came after the new PIN was in force and before it was recorded: both
	// sets are asked for, and each PIN is tried once.
	c.db.mu.Lock()
	for i, p := range c.db.applied {
		if p, ok := p.(hsmstore.PutShares); ok && p.Current && p.Set.Member == "m1" {
			last, _, _ := after, 0, 0
			if p.Set.ID != last.ID && p.Set.ID != before.ID {
				p.Current = false
				c.db.applied[i] = p
			}
		}
	}
	c.db.mu.Unlock()
	account := c.members[0].JournalPath + ".mandates"
	text, err := os.ReadFile(account)
	must(err)
	lines := strings.SplitAfter(strings.TrimSuffix(string(text), "\n"), "\n")
	if !strings.HasPrefix(lines[len(lines)-1], "split ") {
		t.Fatalf("the account ends with %q", lines[len(lines)-1])
	}
	must(os.WriteFile(account, []byte(strings.Join(lines[:len(lines)-1], "")), 0o600))
	crashed := len(c.db.applied)
	err = born("after-crash", func(one hsmstore.Collection) {
		if one.Member == "m1" && len(one.Sets) != 2 {
			t.Errorf("%d sets of m1", len(one.Sets))
		}
		for _, k := range keys[1:] {
			for _, set := range one.Sets {
				if err := give(one, k, set); err != nil {
					t.Error(err)
				}
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	// What was found to be in force was on record before another was drawn: two crashes in a
	// row lose nothing.
	c.db.mu.Lock()
	var order []bool
	for _, p := range c.db.applied[crashed:] {
		if p, ok := p.(hsmstore.PutShares); ok && p.Set.Member == "m1" {
			order = append(order, p.Current)
		}
	}
	c.db.mu.Unlock()
	if !slices.Equal(order, []bool{true, false, true}) {
		t.Errorf("sets of m1 were stored as current: %v", order)
	}
	// A set that somebody wrote to the database is not asked for: nobody types a wrong PIN.
	c.db.mu.Lock()
	forged := *after
	forged.ID = "forged"
	c.db.applied = append(c.db.applied, hsmstore.PutShares{Set: forged, Current: true})
	c.db.mu.Unlock()
	if err := c.store.SplitSOPIN(t.Context(), granting(admin.RotateSOPINAct("m1", 2)), "m1", 2); !errors.Is(err, admin.ErrNotGranted) || !strings.Contains(err.Error(), "not those that were made") {
		t.Errorf("ATTACK WORKED: a ceremony takes shares of a forged set: %v", err)
	}
}

// A person who hangs up while giving a share does not end the ceremony of the others.
func TestShareOfWhoHangsUp(t *testing.T) {
	c := copyCluster(t)
	keys, officers := people(t, 3)
	change := func(cfg *hsmstore.Config) {
		cfg.Shares, cfg.Rosters = sharesOf{c.db}, rosterOf(officers)
	}
	stop, err := c.open(t.Context(), change)
	must(err)
	must(c.store.SplitSOPIN(t.Context(), granting(admin.RotateSOPINAct("m1", 2)), "m1", 2))
	stop()
	c.members[0].SplitSO, c.members[0].SOPIN = true, nil
	stop, err = c.open(t.Context(), change)
	must(err)
	defer stop()
	done := make(chan error, 1)
	go func() {
		spec := hsmstore.KeySpec{Name: "x", Purpose: audit.PurposeOCSP, Algorithm: "P-256"}
		_, err := c.store.GenerateKey(t.Context(), granting(spec.Act()), spec)
		done <- err
	}()
	one := c.collecting(t, "m1")
	gone, cut := context.WithCancel(t.Context())
	cut()
	if err := c.store.GiveShare(gone, one.ID, "nobody", "none", []byte("x")); !errors.Is(err, hsmstore.ErrRefused) {
		t.Errorf("garbage: %v", err)
	}
	for _, k := range keys[:2] {
		box, err := one.Sets[0].OpenFor(k, one.Key)
		must(err)
		must(c.store.GiveShare(gone, one.ID, k.Name, one.Sets[0].ID, box))
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
