package hsmstore_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"chancery/admin"
	"chancery/audit"
	"chancery/hsmstore"
)

// newToken makes a member with an empty token.
func (c *cluster) newToken(t testing.TB, name string) hsmstore.MemberConfig {
	t.Helper()
	m := layout(c.dir, name)
	if err := hsmstore.InitToken(context.Background(), m, m.TokenLabel); err != nil {
		t.Fatal(err)
	}
	return m
}

// join adds a member with a grant for it.
func (c *cluster) join(t testing.TB, m hsmstore.MemberConfig) {
	t.Helper()
	cand, err := c.store.Inspect(context.Background(), m)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.store.AddMember(context.Background(), granting(cand.Acts...), m, func(step string) { t.Log(step) }); err != nil {
		t.Fatal(err)
	}
}

// A member joins under load with eleven keys; nobody notices, and it carries its share.
func TestAddMemberUnderLoad(t *testing.T) {
	c := newCluster(t)
	for i := range 11 - len(allSpecs) - 1 {
		spec := hsmstore.KeySpec{Name: fmt.Sprintf("more-%d", i), Purpose: audit.PurposeOCSP, Algorithm: "P-384"}
		if _, err := c.store.GenerateKey(t.Context(), granting(spec.Act()), spec); err != nil {
			t.Fatal(err)
		}
	}
	m3 := c.newToken(t, "m3")
	stop := c.load(t, 24)
	began := time.Now()
	c.join(t, m3)
	took := time.Since(began)
	c.await(t, "m3", func(s hsmstore.MemberStatus) bool { return s.State == hsmstore.Up && s.Calls > 200 })
	done, failed, worst := stop()
	t.Logf("joined in %v; %d certificates meanwhile, %d errors, worst call %v", took, done, failed, worst)
	if failed != 0 || done == 0 {
		t.Errorf("%d of %d callers saw an error", failed, done)
	}
	if took > 15*time.Second {
		t.Errorf("joining took %v", took)
	}
	for _, k := range c.store.Keys() {
		if k.Purpose != audit.PurposeProbe && k.Purpose != audit.PurposeCheckpoint && (len(k.Members) != 3 || len(k.Ready) != 3) {
			t.Errorf("key %s is on %v, ready on %v", k.Name, k.Members, k.Ready)
		}
	}
	// Everything is in the database: the next start has three members.
	c.members = append(c.members, m3)
	c.store.Close()
	stop2, err := c.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer stop2()
	for _, m := range c.store.Members() {
		if m.State != hsmstore.Up || len(m.Bad) != 0 {
			t.Errorf("after a restart: %+v", m)
		}
	}
	for _, m := range []string{"m1", "m2"} {
		if err := c.store.Drain(t.Context(), m, "test", false); err != nil {
			t.Errorf("draining %s: %v", m, err)
		}
	}
	if err := once(t.Context(), c.key(t, "issuing"), issue(t, nil)); err != nil {
		t.Errorf("the new member alone: %v", err)
	}
	if err := c.store.Drain(t.Context(), "m3", "test", false); !errors.Is(err, hsmstore.ErrStanding) {
		t.Errorf("the last member was drained: %v", err)
	}
}

// What must not join does not, and leaves nothing behind.
func TestAddMemberRefused(t *testing.T) {
	c := newCluster(t)
	m3 := c.newToken(t, "m3")
	cand, err := c.store.Inspect(t.Context(), m3)
	if err != nil {
		t.Fatal(err)
	}
	size := c.db.size()
	twice := m3
	twice.Name = "m1"
	sameToken := c.members[0]
	sameToken.Name = "m9"
	wrongPIN := m3
	wrongPIN.PIN = func() (string, error) { return "0000", nil }
	for what, tc := range map[string]struct {
		cfg   hsmstore.MemberConfig
		grant *admin.Grant
		want  error
	}{
		"no grant":              {m3, nil, admin.ErrNotGranted},
		"grant for another":     {m3, granting(admin.AddMemberAct("m3", "0000000000000000", ""), cand.Acts[1], cand.Acts[2]), admin.ErrNotGranted},
		"a name that is taken":  {twice, granting(cand.Acts...), audit.ErrExists},
		"a token that is taken": {sameToken, granting(cand.Acts...), audit.ErrExists},
		"a wrong PIN":           {wrongPIN, granting(cand.Acts...), hsmstore.ErrPIN},
	} {
		if err := c.store.AddMember(t.Context(), tc.grant, tc.cfg, nil); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if n := len(c.store.Members()); n != 2 || c.db.size() != size {
		t.Errorf("%d members, %d new leaves", n, c.db.size()-size)
	}
	c.join(t, m3)
}

// Drain, fence, admit, remove, and a second joining by the old name.
func TestMemberLife(t *testing.T) {
	c := newCluster(t)
	ctx := t.Context()
	stop := c.load(t, 8)
	state := func(name string, want hsmstore.State) {
		t.Helper()
		if st := c.status(name); st.State != want {
			t.Fatalf("member %s is %s (%v), expected %s", name, st.State, st.Err, want)
		}
	}
	if err := c.store.Drain(ctx, "m2", "maintenance", false); err != nil {
		t.Fatal(err)
	}
	state("m2", hsmstore.Out)
	if p := c.store.WorkerProcess("m2"); p != nil {
		t.Error("a drained member has a worker")
	}
	if err := c.store.Admit(ctx, "m2", "back"); err != nil {
		t.Fatal(err)
	}
	state("m2", hsmstore.Up)
	if err := c.store.Fence(ctx, "m2", "looks odd"); err != nil {
		t.Fatal(err)
	}
	state("m2", hsmstore.Fenced)
	if err := c.store.RemoveMember(ctx, nil, "m1"); !errors.Is(err, hsmstore.ErrStanding) {
		t.Errorf("removing a member that is up: %v", err)
	}
	serial := c.status("m2").Serial
	if err := c.store.RemoveMember(ctx, granting(admin.RemoveMemberAct("m2", "x")), "m2"); !errors.Is(err, admin.ErrNotGranted) {
		t.Errorf("removing with a grant for another token: %v", err)
	}
	if err := c.store.RemoveMember(ctx, granting(admin.RemoveMemberAct("m2", serial)), "m2"); err != nil {
		t.Fatal(err)
	}
	if n := len(c.store.Members()); n != 1 {
		t.Errorf("%d members", n)
	}
	if err := c.store.Admit(ctx, "m2", ""); !errors.Is(err, hsmstore.ErrNoMember) {
		t.Errorf("admitting a member that left: %v", err)
	}
	fresh := c.members[1]
	fresh.TokenSerial = ""
	c.join(t, fresh) // the same token: its copies are taken as they are and proved
	state("m2", hsmstore.Up)
	if _, failed, _ := stop(); failed != 0 {
		t.Errorf("%d errors", failed)
	}
	standing := map[string]hsmstore.Standing{}
	for _, m := range c.db.members() {
		standing[m.Name] = m.Standing
	}
	if fmt.Sprint(standing) != "map[m1:active m2:active]" {
		t.Errorf("database: %v", standing)
	}
}

// What people decided about a member holds after a restart.
func TestStandingOutlivesRestart(t *testing.T) {
	c := newCluster(t)
	if err := c.store.Fence(t.Context(), "m2", "test"); err != nil {
		t.Fatal(err)
	}
	c.store.Close()
	stop, err := c.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	if st := c.status("m2"); st.State != hsmstore.Fenced || st.Starts != 0 {
		t.Errorf("after a restart: %+v", st)
	}
	if err := c.store.Admit(t.Context(), "m2", "looked at"); err != nil {
		t.Fatal(err)
	}
	if st := c.status("m2"); st.State != hsmstore.Up {
		t.Errorf("admitted: %+v", st)
	}
}
