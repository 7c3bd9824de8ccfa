package test

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/admin"
	"chancery/audit"
)

// voter is an officer with one of his keys.
type voter struct {
	name string
	spki []byte
	sign func(decision admin.Decision, proposal []byte) []byte
}

// cliVoter is officer i of leaf 0.
func (l *made) cliVoter(i int) voter {
	return voter{l.base.Officers[i].Name, l.base.Officers[i].SPKI, func(d admin.Decision, raw []byte) []byte { return l.sign(l.officers[i], byte(d), raw) }}
}

// clientData is what a browser says about an assertion (W3C WebAuthn Level 3 §5.8.1).
type clientData struct {
	Type        string `json:"type"`
	Challenge   string `json:"challenge"`
	Origin      string `json:"origin"`
	CrossOrigin bool   `json:"crossOrigin"`
}

// passkey is one in software; edit changes what is signed.
func passkey(t testing.TB, name string, key crypto.Signer, edit func(c *clientData, data []byte)) voter {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return voter{name, spki, func(d admin.Decision, raw []byte) []byte {
		challenge := admin.ApprovalDigest(d, raw)
		c := clientData{Type: "webauthn.get", Challenge: base64.RawURLEncoding.EncodeToString(challenge[:]), Origin: "https://ca.example"}
		rp := sha256.Sum256([]byte("ca.example"))
		data := append(rp[:], 5, 0, 0, 0, 1)
		if edit != nil {
			edit(&c, data)
		}
		text, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		inner := sha256.Sum256(text)
		message, opts := append(slices.Clone(data), inner[:]...), crypto.Hash(0)
		if _, ed := key.(ed25519.PrivateKey); !ed {
			sum := sha256.Sum256(message)
			message, opts = sum[:], crypto.SHA256
		}
		sig, err := key.Sign(rand.Reader, message, opts)
		if err != nil {
			t.Fatal(err)
		}
		return admin.Assertion{AuthenticatorData: data, ClientDataJSON: text, Signature: sig}.Encode()
	}}
}

// ballot writes a vote down.
func (l *made) ballot(raw []byte, v voter, d admin.Decision) uint64 {
	l.t.Helper()
	return l.event(audit.OpVote, func(f *audit.Fields) {
		f.Hash(audit.TagProposalHash, audit.Digest("proposal", raw))
		f.Hash(audit.TagOfficer, sha256.Sum256(v.spki))
		f.Uint8(audit.TagDecision, uint8(d))
		f.Bytes(audit.TagVote, v.sign(d, raw))
	})
}

// decide goes the whole way to a grant. last is the entry of the last vote.
func (l *made) decide(raw []byte, voters ...voter) (w admin.Warrant, grant [32]byte, last, at uint64) {
	l.t.Helper()
	l.propose(raw)
	w = admin.Warrant{Proposal: raw, Roster: l.roster}
	var leaves []uint64
	for _, v := range voters {
		last = l.ballot(raw, v, admin.Approve)
		leaves = append(leaves, last)
		w.Votes = append(w.Votes, admin.VoteRecord{Officer: v.name, SPKI: v.spki, Decision: admin.Approve, Signature: v.sign(admin.Approve, raw), Leaf: last})
	}
	at, grant = l.grant(raw, leaves...)
	return w, grant, last, at
}

// changeTo is a proposal that another roster follows the one in force.
func (l *made) changeTo(next admin.Roster) []byte {
	return l.proposal(func(p *admin.Proposal) {
		p.Action, p.Acts = admin.ChangeRoster, []string{admin.ChangeRosterAct(next.Version, l.roster.Digest(), next.Digest())}
	})
}

// follows writes the entry of a change.
func (l *made) follows(next admin.Roster, grant [32]byte) uint64 {
	l.t.Helper()
	return l.event(audit.OpRoster, func(f *audit.Fields) {
		f.Hash(audit.TagGrant, grant)
		f.Hash(audit.TagRoster, next.Digest())
		f.Uint64(audit.TagVersion, next.Version)
	})
}

// change has officers decide that another roster follows, and puts it into force.
func (l *made) change(next admin.Roster, voters ...voter) (at uint64, grant [32]byte) {
	l.t.Helper()
	w, grant, _, _ := l.decide(l.changeTo(next), voters...)
	at = l.follows(next, grant)
	l.changes = append(l.changes, admin.RosterChange{Roster: next, Warrant: w, Leaf: at})
	l.roster = next
	return at, grant
}

// rosterFile is chancery/roster.json.
func (l *made) rosterFile() any {
	if len(l.changes) == 0 {
		return l.base
	}
	return struct {
		admin.Roster
		Changes []admin.RosterChange `json:"changes"`
	}{l.base, l.changes}
}

// rosterSource is a made ledger as a database would hold it, with the rows that its entries
// make; of a ledger that has only officers' decisions.
type rosterSource struct {
	l      *made
	leaves [][]byte
}

func (l *made) source() *rosterSource {
	s := &rosterSource{l: l}
	for b := l.bundle; len(b) > 0; {
		n := 2 + int(binary.BigEndian.Uint16(b))
		s.leaves, b = append(s.leaves, b[2:n]), b[n:]
	}
	return s
}

func (s *rosterSource) Head(context.Context) (audit.Head, error) {
	h := audit.Head{Size: s.l.size, Range: slices.Clone(s.l.rng)}
	return h, nil
}

func (s *rosterSource) Leaves(_ context.Context, from, to uint64, fn func(uint64, []byte) error) error {
	for i := from; i < to && i < uint64(len(s.leaves)); i++ {
		if err := fn(i, s.leaves[i]); err != nil {
			return err
		}
	}
	return nil
}

func (s *rosterSource) StoredLeaves(ctx context.Context, from, to uint64, fn func(audit.StoredLeaf) error) error {
	return s.Leaves(ctx, from, to, func(i uint64, b []byte) error {
		l, err := audit.DecodeLeaf(b)
		if err != nil {
			return err
		}
		return fn(audit.StoredLeaf{Index: i, Kind: l.Kind, Closes: l.Closes, Bytes: b})
	})
}

// each calls fn for every entry.
func (s *rosterSource) each(fn func(i uint64, l audit.Leaf)) {
	for i, b := range s.leaves {
		if l, err := audit.DecodeLeaf(b); err == nil {
			fn(uint64(i), l)
		}
	}
}

func (s *rosterSource) ProposalRows(_ context.Context, fn func(audit.ProposalRow) error) error {
	rows := map[[32]byte]*audit.ProposalRow{}
	var order [][32]byte
	s.each(func(i uint64, l audit.Leaf) {
		hash, ok := l.Hash(audit.TagProposalHash)
		r := rows[hash]
		if !ok || r == nil && l.Op != audit.OpProposal {
			return
		}
		switch l.Op {
		case audit.OpProposal:
			raw, _ := l.Get(audit.TagProposal)
			rows[hash], order = &audit.ProposalRow{Hash: hash, Leaf: i, State: "pending", Proposal: raw, Parameters: madeParameters}, append(order, hash)
		case audit.OpVote:
			r.Votes++
		case audit.OpGrant:
			r.Grant, _ = l.Hash(audit.TagGrant)
			r.State, r.GrantLeaf = "approved", i
		}
	})
	for _, h := range order {
		if err := fn(*rows[h]); err != nil {
			return err
		}
	}
	return nil
}

func (s *rosterSource) VoteRows(_ context.Context, fn func(audit.VoteRow) error) error {
	var err error
	s.each(func(i uint64, l audit.Leaf) {
		if err != nil || l.Op != audit.OpVote {
			return
		}
		r := audit.VoteRow{Leaf: i}
		r.Proposal, _ = l.Hash(audit.TagProposalHash)
		by, _ := l.Hash(audit.TagOfficer)
		d, _ := l.Uint(audit.TagDecision)
		r.Decision = uint8(d)
		r.Signature, _ = l.Get(audit.TagVote)
		for _, roster := range append([]admin.Roster{s.l.base}, rostersOf(s.l.changes)...) {
			for _, o := range roster.Officers {
				for _, k := range append([]admin.Passkey{{SPKI: o.SPKI}}, o.Passkeys...) {
					if sha256.Sum256(k.SPKI) == by {
						r.Officer, r.SPKI = o.Name, k.SPKI
					}
				}
			}
		}
		err = fn(r)
	})
	return err
}

func rostersOf(changes []admin.RosterChange) (out []admin.Roster) {
	for _, c := range changes {
		out = append(out, c.Roster)
	}
	return out
}

func (s *rosterSource) RosterRows(context.Context) ([]audit.RosterRow, error) {
	out := []audit.RosterRow{{Electorate: s.l.base}}
	for _, c := range s.l.changes {
		out = append(out, audit.RosterRow{Electorate: c.Roster, Version: c.Roster.Version, Leaf: c.Leaf, Ledger: s.l.id, Follows: c.Follows})
	}
	return out, nil
}

func (*rosterSource) Tile(context.Context, int, uint64) ([]byte, error) {
	return nil, audit.ErrNotFound
}
func (*rosterSource) Recoveries(context.Context) ([]uint64, error)               { return nil, nil }
func (*rosterSource) Beyond(context.Context, uint64) (int, error)                { return 0, nil }
func (*rosterSource) OpenRows(context.Context, func(uint64, string) error) error { return nil }
func (*rosterSource) Checkpoints(context.Context, func(uint64, string, string) error) error {
	return nil
}
func (*rosterSource) Artefacts(context.Context, uint64, uint64, func(audit.Artefact) error) error {
	return nil
}
func (*rosterSource) SerialRows(context.Context, func(audit.SerialRow) error) error { return nil }
func (*rosterSource) RevocationRows(context.Context, func(audit.RevocationRow) error) error {
	return nil
}
func (*rosterSource) IssuerRows(context.Context, func(audit.IssuerRow) error) error       { return nil }
func (*rosterSource) KeyRows(context.Context, func(audit.KeyRow) error) error             { return nil }
func (*rosterSource) MemberRows(context.Context, func(audit.MemberRow) error) error       { return nil }
func (*rosterSource) RecipientRows(context.Context, func(audit.RecipientRow) error) error { return nil }
func (*rosterSource) BackupRows(context.Context, func(audit.BackupRow) error) error       { return nil }
func (*rosterSource) Openings(context.Context, audit.OpeningQuery, func(audit.StoredOpenings) error) error {
	return nil
}

var _ audit.VerifySource = (*rosterSource)(nil)

// madeParameters are those of all proposals of [made.proposal].
var madeParameters = []byte(`{"made":true}`)

// TestHSM11Rosters has a CA write decisions that its officers did not make, in every way that
// changes of the roster, passkeys and groups open. audit verify and chancery-verify, which
// share no code, both name the entry.
func TestHSM11Rosters(t *testing.T) {
	_, edKey, _ := ed25519.GenerateKey(rand.Reader)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	danKey := newECDSA(t)
	dan, eve, fay := passkey(t, "dan", danKey, nil), passkey(t, "eve", edKey, nil), passkey(t, "fay", rsaKey, nil)
	danCLI := newECDSA(t)
	co := []admin.Assignment{{Role: admin.CryptoOfficer}}
	none := ^uint64(0)
	person := func(v voter, spki []byte, roles []admin.Assignment) admin.Officer {
		return admin.Officer{Name: v.name, SPKI: spki, Passkeys: []admin.Passkey{{ID: []byte(v.name), SPKI: v.spki, Label: "key"}}, Roles: roles}
	}
	// Officers 1 to 3 of leaf 0 decide on these: dan, eve and fay with passkeys, dan with a
	// CLI key too; gus looks on.
	gus := passkey(t, "gus", newECDSA(t), nil)
	second := func(l *made) admin.Roster {
		n := l.roster.Successor()
		n.RPID, n.Origins = "ca.example", []string{"https://ca.example"}
		n.Officers = append(n.Officers, person(dan, spkiOf(t, danCLI), co), person(eve, nil, co), person(fay, nil, co), person(gus, nil, []admin.Assignment{{Role: admin.Auditor}}))
		return n
	}
	// Then officer-1 leaves, and groups come.
	third := func(l *made) admin.Roster {
		n := l.roster.Successor()
		n.Officers = n.Officers[1:]
		n.CLI = 1
		n.Groups = []admin.Group{{Name: "old", Quorum: 1, Members: []string{"officer-2", "officer-3"}}, {Name: "new", Quorum: 1, Members: []string{"dan", "eve", "fay"}}}
		return n
	}
	act := func(l *made) []byte { return l.proposal(nil) }
	for name, story := range map[string]struct {
		says, audit string // what chancery-verify and audit verify say
		do          func(l *made) uint64
	}{
		"all is well": {"", "", func(l *made) uint64 {
			l.decide(act(l), l.cliVoter(1), dan)
			l.decide(act(l), l.cliVoter(2), eve)
			l.decide(act(l), l.cliVoter(1), fay)
			next := l.roster.Successor()
			next.Quorum = 3
			l.change(next, eve, l.cliVoter(1))
			l.decide(act(l), dan, fay, l.cliVoter(2))
			return none
		}},
		"pending under officers who are not in force any more": {"", "", func(l *made) uint64 {
			raw := act(l)
			l.propose(raw)
			l.ballot(raw, dan, admin.Approve)
			l.change(l.roster.Successor(), eve, l.cliVoter(1))
			l.ballot(raw, eve, admin.Approve)
			return none
		}},
		"an officer who left": {"no officer signed", "no officer signed", func(l *made) uint64 {
			_, _, last, _ := l.decide(act(l), dan, l.cliVoter(0))
			return last
		}},
		"officers of before decide": {"not in force", "other officers", func(l *made) uint64 {
			now := l.roster
			l.roster = l.base
			raw := act(l)
			l.roster = now
			_, _, _, at := l.decide(raw, l.cliVoter(0), l.cliVoter(1))
			return at
		}},
		"the officers change before the grant": {"not in force", "other officers", func(l *made) uint64 {
			raw := act(l)
			l.propose(raw)
			a, b := l.ballot(raw, dan, admin.Approve), l.ballot(raw, l.cliVoter(1), admin.Approve)
			l.change(l.roster.Successor(), eve, l.cliVoter(1))
			at, _ := l.grant(raw, a, b)
			return at
		}},
		"a change without a grant": {"without a grant", "without a grant", func(l *made) uint64 {
			next := l.roster.Successor()
			return l.event(audit.OpRoster, func(f *audit.Fields) {
				f.Hash(audit.TagRoster, next.Digest())
				f.Uint64(audit.TagVersion, next.Version)
			})
		}},
		"a change by the grant of genesis": {"no officers allowed", "no officers allowed", func(l *made) uint64 { return l.follows(l.roster.Successor(), genesisGrant()) }},
		"another roster than was decided": {"no officers allowed", "no officers allowed", func(l *made) uint64 {
			next := l.roster.Successor()
			_, grant, _, _ := l.decide(l.changeTo(next), dan, l.cliVoter(1))
			next.Quorum, next.Groups = 3, nil
			return l.follows(next, grant)
		}},
		"the same change a second time": {"no officers allowed", "no officers allowed", func(l *made) uint64 {
			next := l.roster.Successor()
			_, grant := l.change(next, dan, l.cliVoter(1))
			return l.follows(next, grant)
		}},
		"the first change again": {"no officers allowed", "no officers allowed", func(l *made) uint64 {
			return l.follows(l.changes[0].Roster, l.changes[0].Warrant.Grant())
		}},
		"a change from another roster than the one in force": {"no officers allowed", "no officers allowed", func(l *made) uint64 {
			next := l.roster.Successor()
			raw := l.proposal(func(p *admin.Proposal) {
				p.Action, p.Acts = admin.ChangeRoster, []string{admin.ChangeRosterAct(next.Version, l.base.Digest(), next.Digest())}
			})
			_, grant, _, _ := l.decide(raw, dan, l.cliVoter(1))
			return l.follows(next, grant)
		}},
		"a version is left out": {"follows none of version 6", "after roster 2", func(l *made) uint64 {
			next := l.roster.Successor()
			next.Version = 7
			at, _ := l.change(next, dan, l.cliVoter(1))
			return at
		}},
		"a roster that the database lost": {"does not hold the roster", "does not hold the roster", func(l *made) uint64 {
			at, _ := l.change(l.roster.Successor(), dan, l.cliVoter(1))
			l.changes = l.changes[:2]
			return at
		}},
		"another roster in the database": {"does not hold the roster", "did not decide", func(l *made) uint64 {
			at, _ := l.change(l.roster.Successor(), dan, l.cliVoter(1))
			l.changes[2].Roster.Quorum = 1 + l.changes[2].Roster.Quorum
			return at
		}},
		"a roster of another entry": {"does not hold the roster", "does not hold the roster", func(l *made) uint64 {
			at, _ := l.change(l.roster.Successor(), dan, l.cliVoter(1))
			l.changes[2].Leaf--
			return at
		}},
		"one officer with two keys": {"votes again", "votes again", func(l *made) uint64 {
			_, _, last, _ := l.decide(act(l), l.cliVoter(1), dan, voter{"dan", spkiOf(t, danCLI), func(d admin.Decision, raw []byte) []byte { return l.sign(danCLI, byte(d), raw) }})
			return last
		}},
		"a passkey for another origin": {"no officer signed", "no officer signed", func(l *made) uint64 {
			_, _, last, _ := l.decide(act(l), l.cliVoter(1), passkey(t, "dan", danKey, func(c *clientData, _ []byte) { c.Origin = "https://evil.example" }))
			return last
		}},
		"a passkey for another relying party": {"no officer signed", "no officer signed", func(l *made) uint64 {
			_, _, last, _ := l.decide(act(l), l.cliVoter(1), passkey(t, "dan", danKey, func(_ *clientData, d []byte) { d[0] ^= 1 }))
			return last
		}},
		"a passkey whose user nobody verified": {"no officer signed", "no officer signed", func(l *made) uint64 {
			_, _, last, _ := l.decide(act(l), l.cliVoter(1), passkey(t, "dan", danKey, func(_ *clientData, d []byte) { d[32] = 1 }))
			return last
		}},
		"a passkey that signed something else": {"no officer signed", "no officer signed", func(l *made) uint64 {
			_, _, last, _ := l.decide(act(l), l.cliVoter(1), voter{"dan", dan.spki, func(admin.Decision, []byte) []byte { return dan.sign(admin.Approve, []byte("x")) }})
			return last
		}},
		"a passkey that signs as a CLI key does": {"no officer signed", "no officer signed", func(l *made) uint64 {
			_, _, last, _ := l.decide(act(l), l.cliVoter(1), voter{"dan", dan.spki, func(d admin.Decision, raw []byte) []byte { return l.sign(danKey, byte(d), raw) }})
			return last
		}},
		"a rejection counted as an approval": {"no officer signed", "no officer signed", func(l *made) uint64 {
			_, _, last, _ := l.decide(act(l), l.cliVoter(1), voter{"dan", dan.spki, func(_ admin.Decision, raw []byte) []byte { return dan.sign(admin.Reject, raw) }})
			return last
		}},
		"a vote of who does not vote": {"no officer signed", "no officer signed", func(l *made) uint64 {
			_, _, last, _ := l.decide(act(l), l.cliVoter(1), gus)
			return last
		}},
		"a group that did not agree": {"in group", "of group", func(l *made) uint64 {
			_, _, _, at := l.decide(act(l), l.cliVoter(1), l.cliVoter(2))
			return at
		}},
		"too few CLI keys": {"by CLI keys", "by a CLI key", func(l *made) uint64 {
			n := l.roster.Successor()
			n.Groups = nil
			l.change(n, dan, l.cliVoter(1))
			_, _, _, at := l.decide(act(l), eve, fay)
			return at
		}},
		"an own machine's request": {"who asks has no vote", "who asks has no vote", func(l *made) uint64 {
			_, _, last, _ := l.decide(l.proposal(func(p *admin.Proposal) { p.Requester = "machine:ci/officer:dan" }), l.cliVoter(1), dan)
			return last
		}},
		"an officer asks without a signature": {"asks without a signature", "asks without a signature", func(l *made) uint64 {
			return l.propose(l.proposal(func(p *admin.Proposal) { p.Requester = "officer:dan" }))
		}},
		"an officer signs what a machine asks for": {"is not the one who asks", "is not the one who asks", func(l *made) uint64 {
			raw := l.proposal(func(p *admin.Proposal) { p.Requester = "machine:ci/officer:dan" })
			return l.event(audit.OpProposal, func(f *audit.Fields) {
				f.Bytes(audit.TagProposal, raw)
				f.Hash(audit.TagProposalHash, audit.Digest("proposal", raw))
				f.Hash(audit.TagOfficer, sha256.Sum256(dan.spki))
				f.Bytes(audit.TagVote, dan.sign(admin.Request, raw))
			})
		}},
		"a vote before its time": {"not in force", "not in force", func(l *made) uint64 {
			raw := l.proposal(func(p *admin.Proposal) { p.NotBefore, p.Expires = p.NotBefore.Add(time.Hour), p.Expires.Add(time.Hour) })
			l.propose(raw)
			return l.ballot(raw, dan, admin.Approve)
		}},
		"a grant that was written down a little late": {"", "", func(l *made) uint64 {
			l.decide(l.proposal(func(p *admin.Proposal) {
				p.NotBefore, p.Expires = p.NotBefore.Add(-time.Hour), p.NotBefore.Add(-30*time.Second)
			}), l.cliVoter(1), dan)
			return none
		}},
		"a roster that lets one decide": {"roster 3 lets 1 officers decide", "quorum of 1", func(l *made) uint64 {
			n := l.roster.Successor()
			n.Quorum, n.CLI, n.Groups = 1, 0, nil
			at, _ := l.change(n, dan, l.cliVoter(1))
			return at
		}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newMade(t, nil)
			l.change(second(l), l.cliVoter(0), l.cliVoter(2))
			l.change(third(l), l.cliVoter(0), fay)
			index := story.do(l)
			source := l.source()
			dir := l.finish()
			_, err := audit.Verify(t.Context(), source, nil)
			if index == none {
				verifyExport(t, 0, dir)
				if err != nil {
					t.Errorf("audit verify: %v", err)
				}
				return
			}
			at := index
			if strings.HasPrefix(story.says, "roster ") { // of all rosters of the export, before any entry
				at = 0
			}
			broken(t, at, story.says, dir)
			var v *audit.Violation
			if !errors.As(err, &v) || v.Index != index || !strings.Contains(v.What, story.audit) {
				t.Errorf("audit verify: %v; want entry %d and %q", err, index, story.audit)
			}
		})
	}
}

// TestAttack_HSM_11_UnboundRoster: digests of rosters do not bind everything that an export
// could say: of the first roster only names, keys and the quorum, of numbers 16 bits. What a
// CA adds there decides nothing.
func TestAttack_HSM_11_UnboundRoster(t *testing.T) {
	mal, mel := passkey(t, "officer-1", newECDSA(t), nil), passkey(t, "officer-2", newECDSA(t), nil)
	grouped := func(l *made, members ...string) {
		n := l.roster.Successor()
		n.CLI, n.Groups = 2, []admin.Group{{Name: "old", Quorum: 2, Members: members}}
		l.change(n, l.cliVoter(0), l.cliVoter(1))
	}
	for name, story := range map[string]struct {
		says string
		do   func(l *made)
	}{
		"passkeys for the officers of leaf 0": {"roster 0 has more than its digest says", func(l *made) {
			l.base.RPID, l.base.Origins, l.base.Officers = "ca.example", []string{"https://ca.example"}, slices.Clone(l.base.Officers)
			for i, v := range []voter{mal, mel} {
				l.base.Officers[i].Passkeys = []admin.Passkey{{ID: []byte{1}, SPKI: v.spki}}
			}
			l.decide(l.proposal(nil), mal, mel)
		}},
		"a group's quorum beyond 16 bits": {"roster 1 has a group", func(l *made) {
			grouped(l, "officer-1", "officer-2")
			l.changes[0].Roster.Groups[0].Quorum -= 1 << 16
			l.decide(l.proposal(nil), l.cliVoter(1), l.cliVoter(2))
		}},
		"CLI votes beyond 16 bits": {"roster 1 wants", func(l *made) {
			grouped(l, "officer-1", "officer-2")
			l.changes[0].Roster.CLI -= 1 << 16
			l.decide(l.proposal(nil), l.cliVoter(0), l.cliVoter(1))
		}},
		"a member of a group twice": {"roster 1 has a group", func(l *made) {
			grouped(l, "officer-2", "officer-2", "officer-1")
			l.decide(l.proposal(nil), l.cliVoter(1), l.cliVoter(2))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newMade(t, nil)
			story.do(l)
			broken(t, 0, story.says, l.finish())
		})
	}
}
