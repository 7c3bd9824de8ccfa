package check

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"chancery/cmd/chancery-verify/internal/folder"
	"chancery/cmd/chancery-verify/internal/leaf"
)

// The decisions of an officer.
const (
	asks     = 0
	approves = 1
	rejects  = 2
)

// roster is who may decide, and how many must.
type roster struct {
	quorum   int
	officers map[leaf.Hash]officer // by SPKI
	why      string                // it cannot be used because; "" if it can
}

type officer struct {
	name string
	key  *ecdsa.PublicKey
}

// readRoster takes the officers of the export if their digest stands in leaf 0:
// H("roster", quorum u16 ‖ (name, SPKI)*), texts behind u32 lengths, by SPKI. Otherwise
// it is only an error once a decision is to be checked.
func readRoster(f *folder.Folder, g leaf.Leaf) (r roster, err error) {
	file, err := f.Roster()
	if errors.Is(err, folder.ErrMissing) {
		return roster{why: "the export does not say who the officers are"}, nil
	} else if err != nil {
		return r, err
	}
	r = roster{quorum: file.Quorum, officers: map[leaf.Hash]officer{}}
	slices.SortFunc(file.Officers, func(a, b folder.Officer) int { return bytes.Compare(a.SPKI, b.SPKI) })
	b := binary.BigEndian.AppendUint16(nil, uint16(file.Quorum))
	for _, o := range file.Officers {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(o.Name))), o.Name...)
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(o.SPKI))), o.SPKI...)
		pub, err := x509.ParsePKIXPublicKey(o.SPKI)
		key, ok := pub.(*ecdsa.PublicKey)
		if err != nil || !ok {
			r.why = fmt.Sprintf("the key of officer %.100q is none", o.Name)
		}
		r.officers[leaf.Sum(o.SPKI)] = officer{o.Name, key}
	}
	if want, _ := g.Hash(leaf.TagRoster); file.Quorum < 0 || file.Quorum > 0xffff || leaf.Digest("roster", b) != want {
		r.why = "the officers or the quorum in the export are not those that it names"
	}
	return r, nil
}

// signed tells whether an officer signed a decision over a proposal (ENCODINGS, D).
func (r roster) signed(by leaf.Hash, decision byte, proposal, signature []byte) bool {
	o, ok := r.officers[by]
	d := leaf.Digest("approval", []byte{decision}, proposal)
	sum := sha256.Sum256([]byte("chancery/approval/v1\n" + hex.EncodeToString(d[:]) + "\n"))
	return ok && r.why == "" && ecdsa.VerifyASN1(o.key, sum[:], signature)
}

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
	Officer  leaf.Hash `json:"officer"`
	Decision uint64    `json:"decision"`
}

// approval follows proposals, votes, grants and their ends (P7).
func (v *verifier) approval(index uint64, l *leaf.Leaf) error {
	s := v.s
	hash, named := l.Hash(leaf.TagProposalHash)
	p := s.Proposals[hash]
	switch {
	case v.roster.why != "":
		return bad(0, "%s", v.roster.why)
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
	case q.ledger != v.s.Ledger || q.roster != v.s.Roster:
		return bad(index, "the proposal is for another ledger or other officers")
	}
	by, asked := l.Hash(leaf.TagOfficer)
	o := v.roster.officers[by]
	switch {
	case asked && !v.roster.signed(by, asks, raw, l.Get(leaf.TagVote)):
		return bad(index, "no officer signed this")
	case asked && q.requester != "officer:"+o.name:
		return bad(index, "the officer who signed is not the one who asks")
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
	switch {
	case err != nil:
		return bad(index, "%v", err)
	case !v.roster.signed(by, byte(decision), p.Raw, l.Get(leaf.TagVote)):
		return bad(index, "no officer signed this")
	case q.requester == "officer:"+v.roster.officers[by].name:
		return bad(index, "who asks has no vote")
	case !q.inForce(l.Time, slack):
		return bad(index, "a vote on a proposal that is not in force")
	}
	for other, b := range p.Votes {
		if b.Officer == by {
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
	n, last := 0, uint64(0)
	for ; len(list) > 0; list = list[8:] {
		at := binary.BigEndian.Uint64(list)
		if b, ok := p.Votes[at]; !ok || b.Decision != approves || n > 0 && at <= last {
			return bad(index, "the grant rests on entry %d, which approves nothing here", at)
		}
		n, last = n+1, at
	}
	if n < v.roster.quorum || n == 0 {
		return bad(index, "the grant rests on %d approvals of %d", n, v.roster.quorum)
	}
	q, err := readRequest(p.Raw)
	if err != nil || !q.inForce(l.Time, slack) {
		return bad(index, "a grant of a proposal that is not in force")
	}
	p.State, p.Grant = "approved", grant
	v.s.Grants[grant] = newMandate(q.targets)
	v.s.Counts.Grants++
	return nil
}
