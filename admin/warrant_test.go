package admin_test

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/admin"
	"chancery/audit"
)

// college is a roster with its private keys.
type college struct {
	keys   []*admin.OfficerKey
	roster admin.Roster
}

func newCollege(quorum int, names ...string) *college {
	c := &college{roster: admin.Roster{Quorum: quorum}}
	for _, n := range names {
		k := must(admin.NewOfficerKey(n))
		c.keys = append(c.keys, k)
		c.roster.Officers = append(c.roster.Officers, must(k.Officer()))
	}
	return c
}

func (c *college) terms(ledger audit.LedgerID) admin.Terms {
	return admin.Terms{Ledger: ledger, Roster: c.roster, RosterDigest: c.roster.Digest(), PolicyDigest: c.roster.PolicyDigest()}
}

func (c *college) vote(i int, proposal []byte, leaf uint64) admin.VoteRecord {
	o := c.roster.Officers[i]
	return admin.VoteRecord{Officer: o.Name, SPKI: o.SPKI, Decision: admin.Approve, Signature: must(c.keys[i].SignVote(admin.Approve, proposal)), Leaf: leaf}
}

func TestWarrantCheck(t *testing.T) {
	c := newCollege(2, "ada", "bob", "cyd")
	ledger := audit.LedgerID{7}
	now := time.Unix(1790000100, 0)
	act := admin.GenerateKeyAct("k", "code", "P-256", nil)
	make3 := func(edit func(*admin.Proposal)) *admin.Warrant {
		p := c.terms(ledger).Draft("generate-key", []string{act}, []byte("{}"), admin.OfficerRequester("cyd"), time.Unix(1790000000, 0), time.Hour)
		edit(&p)
		raw := must(p.Encode())
		return &admin.Warrant{Proposal: raw, Votes: []admin.VoteRecord{c.vote(0, raw, 3), c.vote(1, raw, 5)}, Roster: c.roster}
	}
	fresh := func() *admin.Warrant { return make3(func(*admin.Proposal) {}) }

	w := fresh()
	b, err := json.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	var back admin.Warrant
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	acts, nonce, err := back.Check(ledger, c.roster.Digest(), now)
	if err != nil || !slices.Equal(acts, []string{act}) || nonce == ([32]byte{}) {
		t.Fatalf("a good warrant: %v %x %v", acts, nonce, err)
	}
	if back.Grant() != admin.GrantHash(admin.ProposalHash(w.Proposal), []uint64{3, 5}) {
		t.Error("the warrant stands behind another grant")
	}

	stranger := newCollege(2, "eve", "mal")
	twin := must(admin.ParseOfficer("ada2", c.roster.Officers[0].SPKI))
	for name, x := range map[string]struct {
		edit func(*admin.Warrant)
		of   func(*admin.Proposal)
		at   time.Time
		led  audit.LedgerID
		says string
	}{
		"no vote":          {edit: func(w *admin.Warrant) { w.Votes = nil }, says: "0 approvals, 2 needed"},
		"M-1 votes":        {edit: func(w *admin.Warrant) { w.Votes = w.Votes[:1] }, says: "1 approvals, 2 needed"},
		"quorum 1":         {edit: func(w *admin.Warrant) { w.Roster.Quorum, w.Votes = 1, w.Votes[:1] }, says: "quorum of 1"},
		"quorum of others": {edit: func(w *admin.Warrant) { w.Roster.Quorum = 3; w.Votes = append(w.Votes, c.vote(2, w.Proposal, 9)) }, says: "not those in force"},
		"own roster": {edit: func(w *admin.Warrant) {
			w.Roster = stranger.roster
			w.Votes = []admin.VoteRecord{stranger.vote(0, w.Proposal, 3), stranger.vote(1, w.Proposal, 4)}
		}, says: "not those in force"},
		"roster without one": {edit: func(w *admin.Warrant) { w.Roster.Officers = w.Roster.Officers[:2] }, says: "not those in force"},
		"twin on the roster": {edit: func(w *admin.Warrant) { w.Roster.Officers = append(slices.Clone(w.Roster.Officers), twin) }, says: "same name or key twice"},
		"same vote twice":    {edit: func(w *admin.Warrant) { w.Votes[1] = w.Votes[0]; w.Votes[1].Leaf = 5 }, says: "approved twice"},
		"same key, other name": {edit: func(w *admin.Warrant) {
			w.Votes[1] = w.Votes[0]
			w.Votes[1].Officer, w.Votes[1].Leaf = "bob", 5
		}, says: "has this key on the roster"},
		"signed again":     {edit: func(w *admin.Warrant) { w.Votes[1] = c.vote(0, w.Proposal, 5) }, says: "approved twice"},
		"requester":        {edit: func(w *admin.Warrant) { w.Votes[1] = c.vote(2, w.Proposal, 5) }, says: "cannot approve it"},
		"stranger":         {edit: func(w *admin.Warrant) { w.Votes[1] = stranger.vote(0, w.Proposal, 5) }, says: "has this key on the roster"},
		"rejection":        {edit: func(w *admin.Warrant) { w.Votes[1].Signature = must(c.keys[1].SignVote(admin.Reject, w.Proposal)) }, says: "not by officer bob"},
		"said rejection":   {edit: func(w *admin.Warrant) { w.Votes[1].Decision = admin.Reject }, says: "did not approve"},
		"request as vote":  {edit: func(w *admin.Warrant) { w.Votes[1].Signature = must(c.keys[1].SignVote(admin.Request, w.Proposal)) }, says: "not by officer bob"},
		"flipped bit":      {edit: func(w *admin.Warrant) { w.Votes[0].Signature[9] ^= 1 }, says: "not by officer ada"},
		"no signature":     {edit: func(w *admin.Warrant) { w.Votes[0].Signature = nil }, says: "not by officer ada"},
		"leaves backwards": {edit: func(w *admin.Warrant) { w.Votes[0].Leaf, w.Votes[1].Leaf = 5, 3 }, says: "must rise"},
		"one leaf":         {edit: func(w *admin.Warrant) { w.Votes[0].Leaf = 5 }, says: "must rise"},
		"other proposal":   {edit: func(w *admin.Warrant) { w.Proposal = fresh().Proposal }, says: "not by officer ada"},
		"cut proposal":     {edit: func(w *admin.Warrant) { w.Proposal = w.Proposal[:40] }, says: "invalid proposal"},
		"one bad of three": {edit: func(w *admin.Warrant) { w.Votes = append(w.Votes, w.Votes[1]) }, says: "approved twice"},
		"other ledger":     {led: audit.LedgerID{8}, says: "belongs to ledger"},
		"too early":        {at: time.Unix(1789999999, 0), says: "holds from"},
		"the last second":  {at: time.Unix(1790003600, 0), says: "holds from"},
		"old policy":       {of: func(p *admin.Proposal) { p.Policy[0]++ }, says: "another policy"},
		"old roster":       {of: func(p *admin.Proposal) { p.Roster[0]++ }, says: "not those in force"},
	} {
		w := fresh()
		if x.of != nil {
			w = make3(x.of)
		}
		if x.edit != nil {
			x.edit(w)
		}
		at, led := now, ledger
		if !x.at.IsZero() {
			at = x.at
		}
		if x.led != (audit.LedgerID{}) {
			led = x.led
		}
		acts, _, err := w.Check(led, c.roster.Digest(), at)
		if !errors.Is(err, admin.ErrNotGranted) || !strings.Contains(err.Error(), x.says) || acts != nil {
			t.Errorf("%s: %v %v; want %q", name, acts, err, x.says)
		}
	}
	if _, _, err := (*admin.Warrant)(nil).Check(ledger, c.roster.Digest(), now); !errors.Is(err, admin.ErrNotGranted) {
		t.Errorf("nil: %v", err)
	}
}

func TestCheckRoster(t *testing.T) {
	c := newCollege(2, "ada", "bob")
	first := c.roster.Digest()
	if _, err := (admin.History{Base: c.roster}).CheckChain(first); err != nil {
		t.Error(err)
	}
	lowered := admin.Roster{Officers: c.roster.Officers, Quorum: 1}
	for _, r := range []admin.Roster{{}, lowered, newCollege(2, "eve", "mal").roster} {
		if _, err := (admin.History{Base: r}).CheckChain(first); err == nil {
			t.Errorf("%+v passes for the roster of leaf 0", r)
		}
	}
	if err := lowered.Check(); err == nil {
		t.Error("a quorum of one")
	}
}
