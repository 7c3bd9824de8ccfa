package hsmstore

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
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
	return c.warrantTo(t, "generate-key", nonce, acts...)
}

func (c *chamber) warrantTo(t *testing.T, action string, nonce byte, acts ...string) *admin.Warrant {
	t.Helper()
	return c.signed(t, admin.Proposal{Ledger: c.ledger, Action: action, Parameters: [32]byte{1}, Acts: acts, Policy: c.roster.PolicyDigest(), Roster: c.roster.Digest(),
		Requester: "admin-token", Nonce: [32]byte{nonce}, NotBefore: c.now.Add(-time.Minute), Expires: c.now.Add(time.Hour)})
}

// signed is the warrant for a proposal, by the first two officers.
func (c *chamber) signed(t *testing.T, p admin.Proposal) *admin.Warrant {
	t.Helper()
	b, err := p.Encode()
	check(t, err)
	w := &admin.Warrant{Proposal: b, Roster: c.roster}
	for i, k := range c.keys[:2] {
		sig, err := k.SignVote(admin.Approve, b)
		check(t, err)
		o, err := k.Officer()
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

// successor has the first two officers decide on another roster.
func (c *chamber) successor(t *testing.T, nonce byte, edit func(*admin.Roster)) admin.RosterChange {
	t.Helper()
	next := c.roster.Successor()
	edit(&next)
	return admin.RosterChange{Roster: next, Warrant: *c.warrantTo(t, admin.ChangeRoster, nonce, admin.ChangeRosterAct(next.Version, c.roster.Digest(), next.Digest()))}
}

// The account of a token follows the roster, by the officers' decisions alone: who left has
// no vote there any more, whatever the server says, and no old decision counts again.
func TestAttack_HSM_11_RosterOfTheToken(t *testing.T) {
	c := newChamber(t)
	act := admin.RotateSOPINAct("m1", 2)
	first := c.roster.Digest()
	account := filepath.Join(t.TempDir(), "m1.mandates")
	of := func(c *chamber, nonce byte, changes ...admin.RosterChange) mandate {
		return mandate{Acts: []string{act}, Session: fmt.Sprint(nonce), Account: account, Warrant: c.warrant(t, nonce, act), rosterChain: chainOf(c.ledger, first, changes)}
	}
	accept := func(what string, m mandate, ok bool) {
		t.Helper()
		if err := m.accept(c.now); ok && err != nil || !ok && !errors.Is(err, admin.ErrNotGranted) {
			t.Errorf("%s: %v", what, err)
		}
	}
	accept("the first roster", of(c, 1), true)

	// ada and bob put eve out and mallory in her place.
	mallory, err := admin.NewOfficerKey("mallory")
	check(t, err)
	o, err := mallory.Officer()
	check(t, err)
	change := c.successor(t, 10, func(n *admin.Roster) { n.Officers[2].Name, n.Officers[2].SPKI = "mallory", o.SPKI })
	after := &chamber{keys: []*admin.OfficerKey{c.keys[0], mallory}, roster: change.Roster, ledger: c.ledger, now: c.now}
	afterEve := &chamber{keys: []*admin.OfficerKey{c.keys[1], c.keys[2]}, roster: c.roster, ledger: c.ledger, now: c.now}
	warp := func(edit func(*admin.RosterChange)) admin.RosterChange {
		bad := change
		bad.Warrant.Votes = slices.Clone(change.Warrant.Votes)
		edit(&bad)
		return bad
	}
	stranger := newChamber(t)
	accept("a roster without a decision", of(after, 2), false)
	accept("one vote", of(after, 2, warp(func(b *admin.RosterChange) { b.Warrant.Votes = b.Warrant.Votes[:1] })), false)
	accept("a forged vote", of(after, 2, warp(func(b *admin.RosterChange) {
		b.Warrant.Votes[0].Signature = slices.Clone(b.Warrant.Votes[0].Signature)
		b.Warrant.Votes[0].Signature[9] ^= 1
	})), false)
	accept("another roster than was decided", of(stranger, 2, warp(func(b *admin.RosterChange) { b.Roster = stranger.roster })), false)
	otherLedger := *c
	otherLedger.ledger = audit.LedgerID{9}
	accept("a decision for another ledger", of(after, 2, otherLedger.successor(t, 10, func(n *admin.Roster) { n.Officers[2].Name, n.Officers[2].SPKI = "mallory", o.SPKI })), false)
	if a, err := readAccount(account); err != nil || a.roster != hex.EncodeToString(first[:]) {
		t.Fatalf("the account knows %s, %v", a.roster, err)
	}
	accept("decided", of(after, 2, change), true)
	accept("who left votes on the old roster", of(afterEve, 3), false)
	accept("who left votes on the old roster, with the change", of(afterEve, 3, change), false)

	// And back again: the change does not count a second time.
	back := after.successor(t, 11, func(n *admin.Roster) { n.Officers = slices.Clone(c.roster.Successor().Officers) })
	again := &chamber{keys: c.keys, roster: back.Roster, ledger: c.ledger, now: c.now}
	a, err := readAccount(account)
	check(t, err)
	learn, err := a.follow(chainOf(c.ledger, first, []admin.RosterChange{change, back}))
	check(t, err)
	check(t, a.learn(learn))
	accept("the roster of before, anew", of(again, 4, change, back), true)
	accept("the first change replayed", of(after, 5, change), false)
	accept("a hole", of(after, 5, back), false)
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
