package hsmstore_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"chancery/admin"
	"chancery/audit"
	"chancery/hsmstore"
)

// begin makes a cluster of its own with a genesis.
func begin(t *testing.T, genesis func(c *cluster) error, names ...string) *cluster {
	t.Helper()
	c := &cluster{dir: t.TempDir(), db: newMemory(), log: &logBuffer{}}
	for _, n := range names {
		role := hsmstore.RoleAll
		n, of, has := strings.Cut(n, ":")
		if has {
			role = hsmstore.Role(of)
		}
		m := c.newToken(t, n)
		m.Role = role
		c.members = append(c.members, m)
	}
	stop, err := c.open(t.Context())
	if err != nil {
		t.Fatalf("%v\n%s", err, c.log)
	}
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			t.Logf("log:\n%s", c.log)
		}
	})
	if err := genesis(c); err != nil {
		t.Fatal(err)
	}
	return c
}

// usual is the genesis of today with two keys besides.
func usual(c *cluster) error {
	acts := c.store.GenesisActs(issuerSpec, ocspSpec)
	grant, err := admin.Genesis(c.ledger.Head(), acts)
	must(err)
	return c.store.Genesis(context.Background(), grant, audit.Genesis{Random: [32]byte{1}, Dev: true, Domain: "ca.example", Acts: acts}, issuerSpec, ocspSpec)
}

// lines wants a line of just these keys for a checkpoint, each by that very key.
func (c *cluster) lines(t *testing.T, size uint64, names ...string) {
	t.Helper()
	body := checkpoint(c.ledger.Origin(), size, 1)
	lines, err := c.store.CheckpointSigner().SignCheckpoint(t.Context(), body)
	if err != nil {
		t.Fatal(err)
	}
	var signed []string
	for _, l := range lines {
		if l.Err != nil {
			continue
		}
		signed = append(signed, l.Key)
		sum := sha256.Sum256(body)
		ok := false
		switch pub := c.store.AnyKey(l.Key).Public().(type) {
		case ed25519.PublicKey:
			ok = ed25519.Verify(pub, body, l.Signature)
		case *ecdsa.PublicKey:
			ok = ecdsa.VerifyASN1(pub, sum[:], l.Signature)
		}
		if !ok {
			t.Errorf("the line of %s does not verify", l.Key)
		}
	}
	if !slices.Equal(signed, names) {
		t.Errorf("signed by %v, want %v", signed, names)
	}
}

// A member that is away costs its line, not the checkpoint; the last member that has a
// checkpoint key cannot leave; one that leaves takes its key with it.
func TestCheckpointLines(t *testing.T) {
	c := begin(t, usual, "m1", "m2")
	ctx := t.Context()
	list, _ := c.db.leaf(0).Get(audit.TagCheckpointKeys)
	spkis, err := audit.ParseList(list)
	if err != nil || len(spkis) != 2 || !slices.Equal(spkis[1], c.key(t, "checkpoint-m2").SPKI()) {
		t.Fatalf("leaf 0 names %d keys: %v", len(spkis), err)
	}
	c.lines(t, 10, "checkpoint-m1", "checkpoint-m2")
	back := c.away(t, "m2")
	c.lines(t, 11, "checkpoint-m1")
	c.await(t, "m2", func(s hsmstore.MemberStatus) bool { return s.State != hsmstore.Up })
	c.lines(t, 11, "checkpoint-m1")
	if !c.store.Ready() {
		t.Error("without one checkpoint key the cluster is not ready")
	}
	back()
	c.await(t, "m2", func(s hsmstore.MemberStatus) bool { return s.State == hsmstore.Up })
	c.lines(t, 12, "checkpoint-m1", "checkpoint-m2")

	serial := c.status("m2").Serial
	must(c.store.Drain(ctx, "m2", "test", false))
	must(c.store.RemoveMember(ctx, granting(admin.RemoveMemberAct("m2", serial)), "m2"))
	if s := c.store.AnyKey("checkpoint-m2").State(); s != hsmstore.KeyDestroyed {
		t.Errorf("the key of a member that left is %s", s)
	}
	c.lines(t, 13, "checkpoint-m1")
	must(c.store.Drain(ctx, "m1", "test", true))
	if err := c.store.RemoveMember(ctx, granting(admin.RemoveMemberAct("m1", c.status("m1").Serial)), "m1"); !errors.Is(err, hsmstore.ErrStanding) {
		t.Errorf("the last member left: %v", err)
	}
	must(c.store.Admit(ctx, "m1", "back"))

	again := c.members[1]
	again.TokenSerial = ""
	c.join(t, again) // under another name of its key
	c.lines(t, 14, "checkpoint-m1", "checkpoint-m2-2")
	must(c.store.Drain(ctx, "m1", "test", false))
	c.lines(t, 15, "checkpoint-m2-2")
	if err := c.store.RemoveMember(ctx, granting(admin.RemoveMemberAct("m1", c.status("m1").Serial)), "m1"); !errors.Is(err, hsmstore.ErrStanding) {
		t.Errorf("the last key of leaf 0 left: %v", err)
	}
	must(c.store.Admit(ctx, "m1", "back"))
	for _, name := range []string{"checkpoint-m1", "checkpoint-m2-2"} {
		k := c.key(t, name)
		if a, err := c.store.Attributes(ctx, name); err != nil || len(a) != 1 || !strings.Contains(fmt.Sprint(a), "EXTRACTABLE=false") {
			t.Errorf("%s: %v: %v", name, a, err)
		}
		if _, err := c.store.GenerateKey(ctx, granting("x"), hsmstore.KeySpec{Name: "more", Purpose: audit.PurposeCheckpoint, Algorithm: "P-256"}); err == nil || !strings.Contains(err.Error(), "never leaves") {
			t.Errorf("a checkpoint key for all members: %v", err)
		}
		if err := c.store.Repair(ctx, granting(admin.RepairKeyAct(name, k.Members()[0])), name, k.Members()[0]); err == nil {
			t.Errorf("%s was repaired", name)
		}
	}
}

// One member's journal knows a later tree than the database: the database was rolled back,
// whatever the other members say.
func TestOneMemberNoticesRollback(t *testing.T) {
	c := newCluster(t)
	if _, err := c.store.SignExempt(t.Context(), c.key(t, "checkpoint-m2"), checkpoint(c.ledger.Origin(), 1<<40, 1)); err != nil {
		t.Fatal(err)
	}
	if err := audit.NewCheckpointer(c.ledger, c.store.CheckpointSigner(), "").Sign(t.Context()); !errors.Is(err, audit.ErrTampered) {
		t.Errorf("Sign: %v", err)
	}
	if _, err := c.key(t, "issuing").Begin(t.Context(), issue(t, nil)); !errors.Is(err, audit.ErrTampered) {
		t.Errorf("Begin: %v", err)
	}
}

// A member of role checkpoint holds its own keys and nothing else: the store gives it none,
// its token takes none and signs nothing else, and the role cannot be changed behind the
// officers' backs.
func TestRoleCheckpoint(t *testing.T) {
	c := begin(t, usual, "m1", "m2:checkpoint", "m3")
	ctx := t.Context()
	for _, k := range c.store.Keys() {
		own := k.Name == "checkpoint-m2" || k.Name == "probe-m2"
		if slices.Contains(k.Members, "m2") != own || k.Purpose == audit.PurposeCheckpoint && !own {
			t.Errorf("key %s is on %v", k.Name, k.Members)
		}
	}
	c.lines(t, 30, "checkpoint-m2")
	if err := once(ctx, c.key(t, "issuing"), issue(t, nil)); err != nil {
		t.Fatal(err)
	}
	for op := range 2 {
		spec := hsmstore.KeySpec{Name: "more", Purpose: audit.PurposeDocument, Algorithm: "P-256", Members: []string{"m2"}}
		if _, err := c.store.GenerateKey(ctx, granting(spec.Act()), spec); err == nil || !strings.Contains(err.Error(), "has the role checkpoint") {
			t.Errorf("a document key for m2: %v", err)
		}
		if op == 1 { // copied there
			spec.Members = []string{"m1", "m2"}
			if _, err := c.store.GenerateKey(ctx, granting(spec.Act()), spec); err == nil || !strings.Contains(err.Error(), "has the role checkpoint") {
				t.Errorf("a copy of a document key for m2: %v", err)
			}
		}
		c.store.SetRole("m2", hsmstore.RoleAll) // a server that lies: the token's own account decides
	}
	c.store.SetRole("m2", hsmstore.RoleCheckpoint)

	m4 := c.newToken(t, "m4")
	c.join(t, m4) // no checkpoint key: there is a member for that
	if k := c.store.AnyKey("checkpoint-m4"); k != nil {
		t.Errorf("m4 has checkpoint key %s", k.Name())
	}
	m5 := c.newToken(t, "m5")
	m5.Role = hsmstore.RoleCheckpoint
	m5.SOPIN = nil
	c.join(t, m5)
	c.lines(t, 60, "checkpoint-m2", "checkpoint-m5")
	for _, k := range c.store.Keys() {
		if slices.Contains(k.Members, "m5") != strings.HasSuffix(k.Name, "-m5") {
			t.Errorf("key %s is on %v", k.Name, k.Members)
		}
	}
	// The role stands in the database and in the token's account.
	c.members = append(c.members, m4, m5)
	c.store.Close()
	c.members[1].Role = hsmstore.RoleAll
	again := *c
	if _, err := again.open(ctx); !errors.Is(err, hsmstore.ErrToken) || !strings.Contains(err.Error(), "role") {
		t.Errorf("the configuration forgot the role: %v", err)
	}
	fresh := &cluster{dir: c.dir, db: newMemory(), log: c.log, members: slices.Clone(c.members[1:2])}
	if _, err := fresh.open(ctx); !errors.Is(err, hsmstore.ErrToken) || !strings.Contains(err.Error(), "bound to role") {
		t.Errorf("configuration and database forgot the role: %v", err)
	}
	// A token that has other keys is not for that role.
	fresh.members = []hsmstore.MemberConfig{c.members[0], c.members[2]}
	fresh.members[1].Role = hsmstore.RoleCheckpoint
	stop, err := fresh.open(ctx)
	must(err)
	defer stop()
	if st := fresh.status("m3"); st.State != hsmstore.Fenced || st.Err == nil || !strings.Contains(st.Err.Error(), "a token of its own") {
		t.Errorf("m3 is %s: %v", st.State, st.Err)
	}
}

// A ledger that began with one checkpoint key for all members goes on as it is; members
// that join get that key and one of their own.
func TestOldCheckpointKey(t *testing.T) {
	old := hsmstore.KeySpec{Name: "checkpoint", Purpose: audit.PurposeCheckpoint, Algorithm: "P-256"}
	c := begin(t, func(c *cluster) error {
		acts := []string{old.Act(), ocspSpec.Act()}
		for _, m := range c.store.Members() {
			acts = append(acts, admin.AddMemberAct(m.Name, m.Serial, ""), c.store.ProbeSpec(m.Name).Act())
		}
		grant, err := admin.Genesis(c.ledger.Head(), acts)
		must(err)
		return c.store.GenesisOfOld(context.Background(), grant, audit.Genesis{Random: [32]byte{1}, Dev: true, Domain: "ca.example", Acts: acts}, old, ocspSpec)
	}, "m1", "m2")
	c.lines(t, 20, "checkpoint")
	must(c.store.Drain(t.Context(), "m1", "test", false))
	c.lines(t, 21, "checkpoint")
	must(c.store.Admit(t.Context(), "m1", "back"))
	c.join(t, c.newToken(t, "m3"))
	if k := c.key(t, "checkpoint"); !slices.Equal(k.Members(), []string{"m1", "m2", "m3"}) {
		t.Errorf("the old key is on %v", k.Members())
	}
	c.lines(t, 22, "checkpoint", "checkpoint-m3")
	for _, m := range []string{"m1", "m2"} {
		must(c.store.Drain(t.Context(), m, "test", false))
		must(c.store.RemoveMember(t.Context(), granting(admin.RemoveMemberAct(m, c.status(m).Serial)), m))
	}
	c.lines(t, 23, "checkpoint", "checkpoint-m3")
}
