package hsmstore

import (
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"chancery/admin"
	"chancery/audit"
)

// warrantFor is a warrant of 2 of 3 officers for acts, signed with their own keys.
type chamber struct {
	keys   []*admin.OfficerKey
	roster admin.Roster
	ledger audit.LedgerID
	now    time.Time
}

func newChamber(t *testing.T) *chamber {
	t.Helper()
	c := &chamber{roster: admin.Roster{Quorum: 2}, ledger: audit.LedgerID{7}, now: time.Unix(2e9, 0)}
	for _, name := range []string{"ada", "bob", "eve"} {
		k, err := admin.NewOfficerKey(name)
		check(t, err)
		o, err := k.Officer()
		check(t, err)
		c.keys, c.roster.Officers = append(c.keys, k), append(c.roster.Officers, o)
	}
	return c
}

func (c *chamber) warrant(t *testing.T, nonce byte, acts ...string) *admin.Warrant {
	t.Helper()
	return c.signed(t, admin.Proposal{Ledger: c.ledger, Action: "generate-key", Parameters: [32]byte{1}, Acts: acts, Policy: c.roster.PolicyDigest(), Roster: c.roster.Digest(),
		Requester: "admin-token", Nonce: [32]byte{nonce}, NotBefore: c.now.Add(-time.Minute), Expires: c.now.Add(time.Hour)})
}

// signed is the warrant for a proposal, by the first two officers.
func (c *chamber) signed(t *testing.T, p admin.Proposal) *admin.Warrant {
	t.Helper()
	b, err := p.Encode()
	check(t, err)
	w := &admin.Warrant{Proposal: b, Roster: c.roster}
	for i, k := range c.keys[:2] {
		o, err := k.Officer()
		check(t, err)
		sig, err := k.SignVote(admin.Approve, b)
		check(t, err)
		w.Votes = append(w.Votes, admin.VoteRecord{Officer: k.Name, SPKI: o.SPKI, Decision: admin.Approve, Signature: sig, Leaf: uint64(i)})
	}
	return w
}

// A ceremony process holds each mandate against its own account, whatever the server
// and its database say.
func TestAttack_HSM_11_CeremonyChecksTheWarrant(t *testing.T) {
	c := newChamber(t)
	digest := c.roster.Digest()
	act, other := admin.RotateSOPINAct("m1", 2), admin.RotateSOPINAct("m2", 2)
	account := filepath.Join(t.TempDir(), "m1.mandates")
	base := mandate{Acts: []string{act}, Session: "one", Account: account, rosterChain: chainOf(c.ledger, digest, nil)}
	with := func(change func(*mandate)) mandate {
		m := base
		m.Warrant = c.warrant(t, 1, act)
		change(&m)
		return m
	}
	accept := func(what string, m mandate, at time.Time, ok bool) {
		t.Helper()
		if err := m.accept(at); ok && err != nil || !ok && !errors.Is(err, admin.ErrNotGranted) {
			t.Errorf("%s: %v", what, err)
		}
	}
	accept("genesis", base, c.now, true)
	accept("genesis goes on", base, c.now, true)
	accept("only looking", mandate{Account: account}, c.now, true)
	accept("an act that nobody signed", with(func(m *mandate) { m.Acts = []string{act, other} }), c.now, false)
	accept("another ledger", with(func(m *mandate) { m.Ledger = hex.EncodeToString(make([]byte, 32)) }), c.now, false)
	accept("another roster in the database", with(func(m *mandate) { m.Roster = hex.EncodeToString(make([]byte, 32)) }), c.now, false)
	accept("another roster altogether", with(func(m *mandate) {
		d := newChamber(t)
		m.Warrant = d.warrant(t, 1, act)
		h := d.roster.Digest()
		m.Roster = hex.EncodeToString(h[:])
	}), c.now, false)
	accept("one vote", with(func(m *mandate) { m.Warrant.Votes = m.Warrant.Votes[:1] }), c.now, false)
	accept("the quorum lowered", with(func(m *mandate) { m.Warrant.Votes, m.Warrant.Roster.Quorum = m.Warrant.Votes[:1], 1 }), c.now, false)
	accept("a vote altered", with(func(m *mandate) { m.Warrant.Votes[0].Signature[9] ^= 1 }), c.now, false)
	accept("the proposal altered", with(func(m *mandate) { m.Warrant.Proposal[len(m.Warrant.Proposal)-1] ^= 1 }), c.now, false)
	accept("too late", with(func(m *mandate) {}), c.now.Add(2*time.Hour), false)
	accept("genesis still open", base, c.now, true)

	good := with(func(*mandate) {})
	accept("the warrant", good, c.now, true)
	accept("the same act, its next process", good, c.now.Add(time.Minute), true)
	accept("the same act, much later", good, c.now.Add(warrantPatience+time.Minute), false)
	accept("used a second time", with(func(m *mandate) { m.Session = "two" }), c.now, false)
	accept("another warrant", with(func(m *mandate) { m.Session, m.Warrant = "two", c.warrant(t, 2, act) }), c.now, true)
	accept("genesis after a warrant", base, c.now, false)

	if err := os.WriteFile(account, []byte("rosster x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := good.accept(c.now); err == nil {
		t.Error("a damaged account was accepted")
	}
}

// The server does not choose who gets shares of a new SO PIN, nor that fewer are enough.
func TestAttack_HSM_11_SharesForOfficersOnly(t *testing.T) {
	c := newChamber(t)
	act := admin.RotateSOPINAct("m1", 2)
	cer := &ceremony{open: openCeremony{mandate: mandate{Acts: []string{act}, Warrant: c.warrant(t, 1, act), Account: filepath.Join(t.TempDir(), "m1.mandates")}}, serial: "0a1b"}
	stranger := newChamber(t).roster.Officers
	for what, officers := range map[string][]admin.Officer{"strangers": stranger, "too few": c.roster.Officers[:2], "one twice": {c.roster.Officers[0], c.roster.Officers[0], c.roster.Officers[1]}, "one stranger": {c.roster.Officers[0], stranger[1]}} {
		if _, err := cer.newShares(newShares{Member: "m1", Officers: officers, Threshold: 2}); !errors.Is(err, admin.ErrNotGranted) {
			t.Errorf("ATTACK WORKED: %s: %v", what, err)
		}
	}
	if _, err := cer.newShares(newShares{Member: "m1", Officers: c.roster.Officers, Threshold: 3}); !errors.Is(err, admin.ErrNotGranted) {
		t.Errorf("another threshold than the officers approved: %v", err)
	}
	if _, err := cer.newShares(newShares{Member: "m1", Officers: c.roster.Officers, Threshold: 2}); err != nil {
		t.Fatal(err)
	}
	// After a ceremony for something else that used the shares.
	cer.open.Acts, cer.share = []string{"other"}, shareState{joined: true, sets: []ShareSet{{Threshold: 3}}}
	for threshold, ok := range map[int]bool{2: false, 3: true} {
		if _, err := cer.newShares(newShares{Member: "m1", Officers: c.roster.Officers, Threshold: threshold}); (err == nil) != ok {
			t.Errorf("ATTACK WORKED: %d of 3 are enough: %v", threshold, err)
		}
	}
}

// A torn last line – the disk was full, or the power went – is cut: what it was for never
// happened. Everything before it stands.
func TestAccountWithATornLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m1.mandates")
	check(t, os.WriteFile(path, []byte("sealed\nspent aa one 5\nspent bb"), 0o600))
	a, err := readAccount(path)
	check(t, err)
	if !a.sealed || len(a.spent) != 1 {
		t.Errorf("%+v", a)
	}
	check(t, a.add("spent cc two 6"))
	if a, err = readAccount(path); err != nil || len(a.spent) != 2 || a.spent["cc"].session != "two" {
		t.Errorf("%+v %v", a, err)
	}
}
