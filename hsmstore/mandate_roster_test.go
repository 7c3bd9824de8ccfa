package hsmstore

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"chancery/admin"
	"chancery/audit"
)

// succeed is the decision of a chamber that another roster follows, and the chamber after it.
func (c *chamber) succeed(t *testing.T, nonce byte, change func(*admin.Roster)) (admin.RosterChange, *chamber) {
	t.Helper()
	next := c.roster.Successor()
	change(&next)
	p := admin.Proposal{Ledger: c.ledger, Action: admin.ChangeRoster, Parameters: [32]byte{1}, Acts: []string{admin.ChangeRosterAct(next.Version, c.roster.Digest(), next.Digest())},
		Policy: c.roster.PolicyDigest(), Roster: c.roster.Digest(), Requester: "admin-token", Nonce: [32]byte{nonce}, NotBefore: c.now.Add(-1e9), Expires: c.now.Add(3600e9)}
	after := &chamber{roster: next, ledger: c.ledger, now: c.now}
	for _, k := range c.keys {
		if _, ok := next.Officer(k.Name); ok {
			after.keys = append(after.keys, k)
		}
	}
	return admin.RosterChange{Roster: next, Warrant: *c.signed(t, p), Leaf: 9}, after
}

// without leaves an officer out.
func without(name string) func(*admin.Roster) {
	return func(r *admin.Roster) {
		r.Officers = slices.DeleteFunc(r.Officers, func(o admin.Officer) bool { return o.Name == name })
	}
}

// rosterAccount is an account that knows a roster, or a fresh one.
func rosterAccount(t *testing.T, known ...[32]byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "m1.mandates")
	for _, d := range known {
		a, err := readAccount(path)
		check(t, err)
		check(t, a.learn([]string{hex.EncodeToString(d[:])}))
	}
	return path
}

func knows(t *testing.T, path string) string {
	t.Helper()
	a, err := readAccount(path)
	check(t, err)
	return a.roster
}

// A token follows the officers by what they decided, whatever the server and its database
// say: who was revoked decides nothing there any more, and no older roster comes back.
func TestAttack_HSM_11_RosterInTheCeremony(t *testing.T) {
	a := newChamber(t)
	ab, b := a.succeed(t, 1, without("ada"))
	bc, c := b.succeed(t, 2, func(r *admin.Roster) {
		r.Groups = []admin.Group{{Name: "board", Quorum: 1, Members: []string{"bob"}}}
	})
	first := a.roster.Digest()
	act := admin.RotateSOPINAct("m1", 2)
	hexOf := func(r admin.Roster) string { d := r.Digest(); return hex.EncodeToString(d[:]) }
	foreign := *a
	foreign.ledger = audit.LedgerID{8}
	elsewhere, _ := foreign.succeed(t, 3, without("ada"))
	forged, _ := a.succeed(t, 4, without("ada"))
	forged.Warrant.Votes[1].Signature[9] ^= 1
	alone, _ := a.succeed(t, 5, without("ada"))
	alone.Warrant.Votes = alone.Warrant.Votes[:1]
	swapped := ab
	swapped.Roster = a.roster.Successor()
	back, _ := c.succeed(t, 6, func(r *admin.Roster) { r.Version = 1 })
	byRevoked := bc // the officers of before decide about those after
	byRevoked.Warrant = *a.signed(t, admin.Proposal{Ledger: a.ledger, Action: admin.ChangeRoster, Parameters: [32]byte{1}, Acts: []string{admin.ChangeRosterAct(2, b.roster.Digest(), c.roster.Digest())},
		Policy: a.roster.PolicyDigest(), Roster: a.roster.Digest(), Requester: "admin-token", Nonce: [32]byte{7}, NotBefore: a.now.Add(-1e9), Expires: a.now.Add(3600e9)})
	none := [][32]byte(nil)
	for _, x := range []struct {
		what    string
		known   [][32]byte
		changes []admin.RosterChange
		by      *chamber // who signed the warrant at hand
		ok      bool
		then    string // what the account knows afterwards
	}{
		{"no change", [][32]byte{first}, nil, a, true, hexOf(a.roster)},
		{"one change", [][32]byte{first}, []admin.RosterChange{ab}, b, true, hexOf(b.roster)},
		{"two changes at once", [][32]byte{first}, []admin.RosterChange{ab, bc}, c, true, hexOf(c.roster)},
		{"the second change", [][32]byte{first, b.roster.Digest()}, []admin.RosterChange{ab, bc}, c, true, hexOf(c.roster)},
		{"first use", none, []admin.RosterChange{ab, bc}, c, true, hexOf(c.roster)},
		{"an old warrant teaches all the same", [][32]byte{first}, []admin.RosterChange{ab}, a, false, hexOf(b.roster)},
		{"first use, of a warrant by the revoked", none, []admin.RosterChange{ab}, a, false, ""},
		{"rows taken away", [][32]byte{first, b.roster.Digest()}, nil, a, false, hexOf(b.roster)},
		{"the first change again, after the second", [][32]byte{first, b.roster.Digest(), c.roster.Digest()}, []admin.RosterChange{ab}, b, false, hexOf(c.roster)},
		{"another first change, after the first", [][32]byte{first, b.roster.Digest()}, []admin.RosterChange{swapped}, a, false, hexOf(b.roster)},
		{"a hole", [][32]byte{first}, []admin.RosterChange{bc}, c, false, hexOf(a.roster)},
		{"a hole, first use", none, []admin.RosterChange{bc}, c, false, ""},
		{"turned round", [][32]byte{first}, []admin.RosterChange{bc, ab}, b, false, hexOf(a.roster)},
		{"a forged vote", [][32]byte{first}, []admin.RosterChange{forged}, b, false, hexOf(a.roster)},
		{"one vote", [][32]byte{first}, []admin.RosterChange{alone}, b, false, hexOf(a.roster)},
		{"another roster under the warrant", [][32]byte{first}, []admin.RosterChange{swapped}, b, false, hexOf(a.roster)},
		{"a change of another ledger", [][32]byte{first}, []admin.RosterChange{elsewhere}, b, false, hexOf(a.roster)},
		{"a change of another ledger, first use", none, []admin.RosterChange{elsewhere}, b, false, ""},
		{"the version goes back", [][32]byte{first}, []admin.RosterChange{ab, bc, back}, c, false, hexOf(a.roster)},
		{"the revoked decide about the next", [][32]byte{first, b.roster.Digest()}, []admin.RosterChange{ab, byRevoked}, c, false, hexOf(b.roster)},
	} {
		account := rosterAccount(t, x.known...)
		m := mandate{Acts: []string{act}, Session: "one", Account: account, Warrant: x.by.warrant(t, 9, act), rosterChain: chainOf(a.ledger, first, x.changes)}
		if err := m.accept(a.now); x.ok && err != nil || !x.ok && !errors.Is(err, admin.ErrNotGranted) {
			t.Errorf("%s: %v", x.what, err)
		}
		if got := knows(t, account); got != x.then {
			t.Errorf("%s: the account knows %.16s, want %.16s", x.what, got, x.then)
		}
	}
}

// A worker that runs is told at once, and from then on refuses the warrant that the old
// officers gave before, though the database still says what it said.
func TestHSM11WorkerIsToldOfARoster(t *testing.T) {
	a := newChamber(t)
	first, act := a.roster.Digest(), admin.RotateSOPINAct("m1", 2)
	ab, b := a.succeed(t, 1, without("ada"))
	w := &worker{ledger: a.ledger, account: rosterAccount(t, first), out: make(chan []byte, 1), failed: make(chan *fault, 1)}
	tell := func(c rosterChain) byte {
		t.Helper()
		payload, err := json.Marshal(c)
		check(t, err)
		w.learnRosters(frame{id: 1, payload: payload})
		return (<-w.out)[12]
	}
	old := mandate{Acts: []string{act}, Session: "one", Account: w.account, Warrant: a.warrant(t, 9, act), rosterChain: chainOf(a.ledger, first, nil)}
	if got := tell(chainOf(audit.LedgerID{8}, first, nil)); got != statusRefused {
		t.Errorf("rosters of another ledger: status %d", got)
	}
	forged := ab
	forged.Warrant.Votes = forged.Warrant.Votes[:1]
	if got := tell(chainOf(a.ledger, first, []admin.RosterChange{forged})); got != statusRefused {
		t.Errorf("a change without a quorum: status %d", got)
	}
	if got := tell(chainOf(a.ledger, first, []admin.RosterChange{ab})); got != statusOK {
		t.Errorf("status %d", got)
	}
	if err := old.accept(a.now); !errors.Is(err, admin.ErrNotGranted) || !strings.Contains(err.Error(), "older than those that this token knows") {
		t.Errorf("ATTACK WORKED: the warrant of a revoked officer: %v", err)
	}
	if got := tell(chainOf(a.ledger, first, nil)); got != statusRefused {
		t.Errorf("the roster of before: status %d", got)
	}
	now := old
	now.Warrant, now.Changes = b.warrant(t, 10, act), []admin.RosterChange{ab}
	check(t, now.accept(a.now))
	if lines, _ := os.ReadFile(w.account); strings.Count(string(lines), "roster ") != 2 {
		t.Errorf("%s", lines)
	}
}

// A member that cannot be told is named, unless it knows already, or its cluster is retired.
func TestHSM11MemberThatIsAway(t *testing.T) {
	a := newChamber(t)
	first := a.roster.Digest()
	ab, b := a.succeed(t, 1, without("ada"))
	now := chainOf(a.ledger, first, []admin.RosterChange{ab})
	for what, c := range map[string]struct {
		known   [][32]byte
		retired bool
		chain   rosterChain
		want    error
	}{
		"it does not know":          {[][32]byte{first}, false, now, errNotTold},
		"it never had a ceremony":   {nil, false, now, errNotTold},
		"it knows":                  {[][32]byte{first, b.roster.Digest()}, false, now, nil},
		"nothing changed":           {nil, false, chainOf(a.ledger, first, nil), nil},
		"it is retired":             {[][32]byte{first}, true, now, nil},
		"it knows later ones":       {[][32]byte{first, b.roster.Digest()}, false, chainOf(a.ledger, first, nil), audit.ErrTampered},
		"it knows others of leaf 0": {[][32]byte{{1}}, false, now, audit.ErrTampered},
	} {
		journal := filepath.Join(t.TempDir(), "hsm-m1.journal")
		account, err := readAccount(journal + ".mandates")
		check(t, err)
		for _, d := range c.known {
			check(t, account.learn([]string{hex.EncodeToString(d[:])}))
		}
		if c.retired {
			check(t, account.add("retired"))
		}
		m := &member{cfg: MemberConfig{Name: "m1", JournalPath: journal}}
		if err := m.tellRosters(t.Context(), nil, c.chain); !errors.Is(err, c.want) || c.want == nil && err != nil {
			t.Errorf("%s: %v, want %v", what, err, c.want)
		}
		history := admin.History{Base: a.roster, Changes: c.chain.Changes}
		err = CheckRosters([]MemberConfig{m.cfg}, a.ledger, first, history)
		if refused := errors.Is(err, admin.ErrNotGranted); refused != (c.want == audit.ErrTampered) {
			t.Errorf("%s: a recovery: %v", what, err)
		}
	}
}
