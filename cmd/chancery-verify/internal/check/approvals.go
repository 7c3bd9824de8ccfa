package check

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"time"

	"chancery/cmd/chancery-verify/internal/leaf"
)

// request is a proposal, taken apart: tags 1 to 10, each once and in order.
type request struct {
	ledger, roster     leaf.Hash
	action, requester  string
	targets            [][]byte
	notBefore, expires int64 // seconds since 1970
}

func readRequest(b []byte) (q request, err error) {
	var values [11][]byte
	for tag := 1; tag <= 10; tag++ {
		if len(b) < 6 || int(binary.BigEndian.Uint16(b)) != tag || uint64(len(b)-6) < uint64(binary.BigEndian.Uint32(b[2:])) {
			return q, errors.New("the proposal is not encoded as it must be")
		}
		n := 6 + int(binary.BigEndian.Uint32(b[2:]))
		values[tag], b = b[6:n], b[n:]
	}
	for _, tag := range []int{1, 3, 5, 6, 8} {
		if len(values[tag]) != 32 {
			return q, errors.New("the proposal is not encoded as it must be")
		}
	}
	if len(b) > 0 || len(values[9]) != 8 || len(values[10]) != 8 {
		return q, errors.New("the proposal is not encoded as it must be")
	}
	q = request{ledger: leaf.Hash(values[1]), roster: leaf.Hash(values[6]), action: string(values[2]), requester: string(values[7]),
		notBefore: int64(binary.BigEndian.Uint64(values[9])), expires: int64(binary.BigEndian.Uint64(values[10]))}
	q.targets, err = leaf.List(values[4])
	return q, err
}

// slack is how much the clock of who decides and that of who writes it down may differ.
const slack = time.Minute

func (q request) inForce(us int64, slack time.Duration) bool {
	t, s := us/1_000_000, int64(slack/time.Second)
	return t >= q.notBefore-s && t <= q.expires+s
}

// proposal is one, and what has become of it.
type proposal struct {
	Raw   []byte          `json:"raw"`
	State string          `json:"state"`
	Votes map[uint64]vote `json:"votes"` // by the index of their entry
	Grant leaf.Hash       `json:"grant"`
}

// vote is a decision.
type vote struct {
	Officer  leaf.Hash `json:"officer"` // SHA-256 of the SPKI of the key that signed
	Decision uint64    `json:"decision"`
}

// approval follows proposals, votes, grants and their ends (P7).
func (v *verifier) approval(index uint64, l *leaf.Leaf) error {
	s := v.s
	hash, named := l.Hash(leaf.TagProposalHash)
	p := s.Proposals[hash]
	switch {
	case v.rosters.why != "":
		return bad(0, "%s", v.rosters.why)
	case !named || (p == nil) != (l.Op == leaf.OpProposal):
		return bad(index, "its proposal is not known, or known already")
	}
	switch l.Op {
	case leaf.OpProposal:
		return v.propose(index, l, hash)
	case leaf.OpVote:
		return v.vote(index, l, p)
	case leaf.OpGrant:
		return v.grant(index, l, p, hash)
	}
	from, allowed := "pending", []string{"rejected", "expired", "cancelled"}
	if l.Op == leaf.OpGrantResult {
		from, allowed = "approved", []string{"done", "failed"}
	}
	outcome := l.Text(leaf.TagOutcome)
	if g, _ := l.Hash(leaf.TagGrant); p.State != from || !slices.Contains(allowed, outcome) || g != p.Grant {
		return bad(index, "a proposal that is %s ends as %.20q", p.State, outcome)
	}
	if m := v.s.Grants[p.Grant]; m != nil && l.Op == leaf.OpGrantResult {
		m.Ended = true
	}
	p.State, p.Raw, p.Votes = outcome, nil, nil // it is not needed any more
	return nil
}

func (v *verifier) propose(index uint64, l *leaf.Leaf, hash leaf.Hash) error {
	raw := bytes.Clone(l.Get(leaf.TagProposal))
	q, err := readRequest(raw)
	switch {
	case leaf.Digest("proposal", raw) != hash:
		return bad(index, "the proposal has another hash")
	case err != nil:
		return bad(index, "%v", err)
	case q.ledger != v.s.Ledger || v.rosters.by[q.roster] == nil:
		return bad(index, "the proposal is for another ledger or other officers")
	}
	r := v.rosters.by[q.roster]
	by, personal := l.Hash(leaf.TagOfficer)
	switch {
	case personal && !r.signed(by, asks, raw, l.Get(leaf.TagVote)):
		return bad(index, "no officer signed this")
	case personal && q.requester != "officer:"+r.keys[by].officer:
		return bad(index, "the officer who signed is not the one who asks")
	case !personal && strings.HasPrefix(q.requester, "officer:"):
		return bad(index, "an officer asks without a signature")
	}
	v.s.Proposals[hash] = &proposal{Raw: raw, State: "pending", Votes: map[uint64]vote{}}
	return nil
}

func (v *verifier) vote(index uint64, l *leaf.Leaf, p *proposal) error {
	by, _ := l.Hash(leaf.TagOfficer)
	decision, _ := l.Uint(leaf.TagDecision)
	if p.State != "pending" || decision != approves && decision != rejects {
		return bad(index, "a vote on a proposal that is %s, or of no known kind", p.State)
	}
	q, err := readRequest(p.Raw)
	r := v.rosters.by[q.roster]
	switch {
	case err != nil:
		return bad(index, "%v", err)
	case r == nil || !r.signed(by, byte(decision), p.Raw, l.Get(leaf.TagVote)):
		return bad(index, "no officer signed this")
	case asked(q.requester, r.keys[by].officer):
		return bad(index, "who asks has no vote")
	case !q.inForce(l.Time, slack):
		return bad(index, "a vote on a proposal that is not in force")
	}
	for other, b := range p.Votes {
		if r.keys[b.Officer].officer == r.keys[by].officer {
			return bad(index, "the officer of entry %d votes again", other)
		}
	}
	p.Votes[index] = vote{by, decision}
	return nil
}

func (v *verifier) grant(index uint64, l *leaf.Leaf, p *proposal, hash leaf.Hash) error {
	list := l.Get(leaf.TagVotes)
	grant, _ := l.Hash(leaf.TagGrant)
	if p.State != "pending" || len(list)%8 != 0 || leaf.Digest("grant", hash[:], list) != grant {
		return bad(index, "a grant of a proposal that is %s, or with another hash", p.State)
	}
	var keys []leaf.Hash
	last := uint64(0)
	for ; len(list) > 0; list = list[8:] {
		at := binary.BigEndian.Uint64(list)
		if b, ok := p.Votes[at]; !ok || b.Decision != approves || len(keys) > 0 && at <= last {
			return bad(index, "the grant rests on entry %d, which approves nothing here", at)
		}
		keys, last = append(keys, p.Votes[at].Officer), at
	}
	q, err := readRequest(p.Raw)
	if err != nil || !q.inForce(l.Time, slack) || q.roster != v.s.Roster {
		return bad(index, "a grant of a proposal that is not in force")
	}
	r := v.rosters.by[q.roster]
	if r == nil { // an earlier run knew them, this export does not
		return bad(index, "the export does not hold the officers of the grant")
	}
	if why := r.enough(keys); why != "" {
		return bad(index, "the grant rests on %s", why)
	}
	p.State, p.Grant = "approved", grant
	v.s.Grants[grant] = newMandate(q.targets)
	v.s.Counts.Grants++
	return nil
}
