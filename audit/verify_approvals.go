package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"
)

// ProposalRow is a proposal as its row shows it.
type ProposalRow struct {
	Hash       [32]byte
	Leaf       uint64
	State      string
	Proposal   []byte
	Parameters []byte // canonical JSON
	Votes      int
	Grant      [32]byte // zero unless it was approved
	GrantLeaf  uint64
	EndLeaf    uint64
	Result     []byte
}

// VoteRow is a vote as its row shows it.
type VoteRow struct {
	Leaf      uint64
	Proposal  [32]byte
	Officer   string
	SPKI      []byte
	Decision  uint8
	Signature []byte
}

// approvals is what the leaves say about officers' decisions (P7).
type approvals struct {
	proposals map[[32]byte]*proposalSeen
	votes     map[uint64]voteSeen
	grants    map[[32]byte]*mandate // of genesis and of the officers
	zero      [32]byte              // grant of genesis
	roster    [32]byte              // digest in leaf 0
	inForce   [32]byte              // digest of the roster in force
	changes   []rosterSeen          // OpRoster leaves
	made      uint64                // grants of the officers
	ledger    LedgerID
	restoring restoring

	recoveries map[uint64]*warrantSeen // by index of their leaf
	root       [32]byte                // of the entries before the recovery at hand

	succeeds string // hex of the predecessor's id, once its warrant is verified
}

type proposalSeen struct {
	leaf, grantLeaf, endLeaf uint64
	state                    string
	raw                      []byte
	votes                    []uint64 // leaf indexes
	counted                  []uint64 // those of the grant
	grant                    [32]byte
	result                   [32]byte
}

type rosterSeen struct {
	leaf, version uint64
	digest        [32]byte
}

type voteSeen struct {
	proposal, officer [32]byte // officer: SHA-256 of the SPKI of the key that signed
	decision          uint8
	signature         []byte
}

const (
	decisionRequest = 0
	decisionApprove = 1
	decisionReject  = 2
)

func newApprovals() approvals {
	return approvals{proposals: map[[32]byte]*proposalSeen{}, votes: map[uint64]voteSeen{}, grants: map[[32]byte]*mandate{}, recoveries: map[uint64]*warrantSeen{}}
}

// genesis notes the grant of leaf 0: a proposal, its list of acts, without votes.
func (a *approvals) genesis(l Leaf) {
	a.roster, _ = l.Hash(TagRoster)
	a.inForce = a.roster
	a.restoring.genesis(l)
	acts, _ := l.Get(TagActs)
	a.zero = genesisGrant(acts)
	a.grants[a.zero] = newMandate(acts)
	a.ledger = l.Ledger
}

// genesisGrant is the grant of leaf 0, which no officer voted for.
func genesisGrant(acts []byte) [32]byte {
	proposal := Digest("proposal", acts)
	return Digest("grant", proposal[:])
}

// event follows proposals, votes and grants, and wants a grant for what is done with one.
func (a *approvals) event(index uint64, l Leaf) error {
	hash, named := l.Hash(TagProposalHash)
	p := a.proposals[hash]
	switch l.Op {
	case OpProposal, OpVote, OpGrant, OpGrantResult, OpProposalEnd:
		if !named || (p == nil) != (l.Op == OpProposal) {
			return violate(index, "its proposal is not known, or known already")
		}
	case OpKeyGenerate, OpKeyAdopt, OpKeyImport, OpKeyReplicate, OpMemberAdd, OpKeyDestroy:
		if _, ok := l.Hash(TagGrant); !ok {
			return violate(index, "it was done without a grant")
		}
		return a.granted(index, l)
	case OpMemberState: // what ends a member for ever; the rest protects
		state, _ := l.Get(TagState)
		if _, ok := l.Hash(TagGrant); !ok && (string(state) == "removed" || string(state) == "retired") {
			return violate(index, "it was done without a grant")
		}
		return a.granted(index, l)
	case OpRoster:
		return a.change(index, l)
	case OpRestore:
		if _, ok := l.Hash(TagGrant); !ok {
			return violate(index, "it was done without a grant")
		}
		if err := a.restoring.event(index, l); err != nil {
			return err
		}
		return a.granted(index, l)
	case OpRecovery:
		if list, ok := l.Get(TagWarrant); ok {
			if err := a.recovery(index, l, list); err != nil {
				return err
			}
		}
		if _, ok := l.Hash(TagGrant); !ok {
			return violate(index, "it was done without a grant")
		}
		return a.granted(index, l)
	case OpBackup: // a manifest alone gives nothing away
		_, key := l.Get(TagKey)
		_, state := l.Get(TagState)
		if _, ok := l.Hash(TagGrant); !ok && (key || state) {
			return violate(index, "it was done without a grant")
		}
		return a.granted(index, l)
	default:
		return a.granted(index, l)
	}
	switch l.Op {
	case OpProposal:
		return a.propose(index, l, hash)
	case OpVote:
		return a.vote(index, l, p, hash)
	case OpGrant:
		return a.grant(index, l, p, hash)
	}
	return a.end(index, l, p)
}

// change follows a change of the roster: the officers of the one in force allowed exactly
// that one to follow.
func (a *approvals) change(index uint64, l Leaf) error {
	g, ok := l.Hash(TagGrant)
	digest, named := l.Hash(TagRoster)
	version, counted := l.Uint(TagVersion)
	if !ok || !named || !counted {
		return violate(index, "it changes the roster without a grant, or without saying to what")
	}
	m := a.grants[g]
	if m == nil || m.ended || !m.once(fmt.Sprintf("change-roster %d %x %x", version, a.inForce, digest)) {
		return violate(index, "no officers allowed this roster to follow the one in force")
	}
	a.inForce = digest
	a.changes = append(a.changes, rosterSeen{index, version, digest})
	return nil
}

// granted wants a grant that is named to be there already.
func (a *approvals) granted(index uint64, l Leaf) error {
	g, ok := l.Hash(TagGrant)
	if !ok {
		return nil
	}
	m := a.grants[g]
	if m == nil {
		return violate(index, "the grant %x that it names was never made", g[:8])
	}
	if l.Kind == KindEvent && !m.allows(l) {
		return violate(index, "the grant %x that it names is for something else, or is used up", g[:8])
	}
	return nil
}

func (a *approvals) propose(index uint64, l Leaf, hash [32]byte) error {
	raw, _ := l.Get(TagProposal)
	if Digest("proposal", raw) != hash {
		return violate(index, "the proposal has another hash")
	}
	officer, asked := l.Hash(TagOfficer)
	if !asked && bytes.HasPrefix(proposalField(raw, 7), []byte("officer:")) {
		return violate(index, "an officer asks without a signature")
	}
	if asked {
		sig, _ := l.Get(TagVote)
		a.votes[index] = voteSeen{hash, officer, decisionRequest, sig}
	}
	a.proposals[hash] = &proposalSeen{leaf: index, state: "pending", raw: raw}
	return nil
}

func (a *approvals) vote(index uint64, l Leaf, p *proposalSeen, hash [32]byte) error {
	v := voteSeen{proposal: hash}
	v.officer, _ = l.Hash(TagOfficer)
	v.signature, _ = l.Get(TagVote)
	d, _ := l.Uint(TagDecision)
	if v.decision = uint8(d); p.state != "pending" || v.decision != decisionApprove && v.decision != decisionReject {
		return violate(index, "a vote on a proposal that is %s", p.state)
	}
	if !p.inForce(l.Time) {
		return violate(index, "a vote on a proposal that is not in force")
	}
	for _, other := range p.votes {
		if a.votes[other].officer == v.officer {
			return violate(index, "the officer of entry %d votes again", other)
		}
	}
	a.votes[index] = v
	p.votes = append(p.votes, index)
	return nil
}

// decisionSlack is how much the clock of who decides and the time of the entry, which may
// have waited for the database, may differ.
const decisionSlack = time.Minute

// inForce tells whether the proposal held at a time.
func (p *proposalSeen) inForce(at time.Time) bool {
	from, until := proposalField(p.raw, 9), proposalField(p.raw, 10)
	t, slack := at.Unix(), int64(decisionSlack/time.Second)
	return len(from) == 8 && len(until) == 8 && t >= int64(binary.BigEndian.Uint64(from))-slack && t <= int64(binary.BigEndian.Uint64(until))+slack
}

func (a *approvals) grant(index uint64, l Leaf, p *proposalSeen, hash [32]byte) error {
	if !bytes.Equal(proposalField(p.raw, 1), a.ledger[:]) || !bytes.Equal(proposalField(p.raw, 6), a.inForce[:]) || !p.inForce(l.Time) {
		return violate(index, "the proposal is of another ledger or other officers, or it is granted outside of its time")
	}
	list, _ := l.Get(TagVotes)
	p.grant, _ = l.Hash(TagGrant)
	if p.state != "pending" || len(list)%8 != 0 || Digest("grant", append(hash[:], list...)) != p.grant {
		return violate(index, "a grant of a proposal that is %s, or with another hash", p.state)
	}
	for b := list; len(b) > 0; b = b[8:] {
		leaf := binary.BigEndian.Uint64(b)
		if n := len(p.counted); !slices.Contains(p.votes, leaf) || a.votes[leaf].decision != decisionApprove || n > 0 && p.counted[n-1] >= leaf {
			return violate(index, "the grant rests on entry %d, which approves nothing here", leaf)
		}
		p.counted = append(p.counted, leaf)
	}
	p.state, p.grantLeaf = "approved", index
	a.grants[p.grant] = newMandate(proposalField(p.raw, 4))
	a.made++
	return nil
}

func (a *approvals) end(index uint64, l Leaf, p *proposalSeen) error {
	outcome, _ := l.Get(TagOutcome)
	from, allowed := "pending", []string{"rejected", "expired", "cancelled"}
	if l.Op == OpGrantResult {
		from, allowed = "approved", []string{"done", "failed"}
	}
	if g, _ := l.Hash(TagGrant); p.state != from || !slices.Contains(allowed, string(outcome)) || g != p.grant {
		return violate(index, "a proposal that is %s ends as %q", p.state, outcome)
	}
	if m := a.grants[p.grant]; m != nil && l.Op == OpGrantResult {
		m.ended = true
	}
	p.result, _ = l.Hash(TagSubject)
	p.state, p.endLeaf = string(outcome), index
	return nil
}

// finish holds the rows against what the leaves have said, and the signatures against
// the rosters.
func (a *approvals) finish(ctx context.Context, src VerifySource) error {
	e, err := readElectorates(ctx, src, a.roster)
	if err != nil {
		return err
	}
	if len(e.rows) == 0 && (len(a.proposals) > 0 || len(a.recoveries) > 0 || a.restoring.previous != "") {
		return violate(0, "the officers or the quorum in the database are not those that it names")
	}
	if err := a.rosters(e); err != nil {
		return err
	}
	names := map[uint64]string{} // of who voted, by the index of the vote
	cli := map[uint64]bool{}
	for index, v := range a.votes {
		p := a.proposals[v.proposal]
		electorate, known := e.by(proposalField(p.raw, 6))
		if !known {
			return violate(p.leaf, "its proposal names officers that the database does not hold")
		}
		var err error
		if names[index], cli[index], err = electorate.Signer(v.officer, v.decision, p.raw, v.signature); err != nil {
			return violate(index, "no officer signed this: %v", err)
		}
		requester := string(proposalField(p.raw, 7))
		if v.decision == decisionRequest && requester != "officer:"+names[index] {
			return violate(index, "the officer who signed is not the one who asks")
		}
		if asked := electorate.Asked(requester, names[index]); asked != (v.decision == decisionRequest) {
			return violate(index, "who asks has no vote")
		}
	}
	for _, p := range a.proposals {
		if err := p.decided(e, names, cli); err != nil {
			return err
		}
	}
	if a.succeeds, err = a.restoring.finish(e); err != nil {
		return err
	}
	for _, w := range a.recoveries {
		electorate, ok := e.by(proposalField(w.proposal, 6))
		if !ok {
			return violate(w.leaf, "its warrant is of officers that the database does not hold")
		}
		if err := w.signed(electorate); err != nil {
			return err
		}
	}
	return a.rows(ctx, src, names)
}

// decided: each officer voted once, with whatever key, and the grant rests on enough of them.
func (p *proposalSeen) decided(e electorates, names map[uint64]string, cli map[uint64]bool) error {
	seen := map[string]bool{}
	for _, v := range p.votes {
		if seen[names[v]] {
			return violate(v, "officer %s votes again", Text(names[v], 64))
		}
		seen[names[v]] = true
	}
	if p.grantLeaf == 0 {
		return nil
	}
	electorate, _ := e.by(proposalField(p.raw, 6))
	var approved []string
	n := 0
	for _, v := range p.counted {
		approved = append(approved, names[v])
		if cli[v] {
			n++
		}
	}
	if electorate == nil {
		return violate(p.grantLeaf, "the grant is of officers that the database does not hold")
	}
	if err := electorate.Enough(approved, n); err != nil {
		return violate(p.grantLeaf, "the grant rests on too little: %v", err)
	}
	return nil
}

// rosters holds the stored rosters against the leaves that put them into force.
func (a *approvals) rosters(e electorates) error {
	stored := e.changes()
	for _, r := range e.before() {
		if r.Leaf != 0 {
			return violate(r.Leaf, "the database says that it put a roster into force that was so before this ledger")
		}
	}
	for i, c := range a.changes {
		if i >= len(stored) || stored[i].Leaf != c.leaf || stored[i].Version != c.version || stored[i].Digest() != c.digest {
			return violate(c.leaf, "the database does not hold the roster that it put into force")
		}
	}
	if len(stored) > len(a.changes) {
		return violate(stored[len(a.changes)].Leaf, "the database holds a roster that no entry put into force")
	}
	return nil
}

// held looks, more often than [approvals.finish], whether the database still holds every
// roster that entries put into force: with one taken away, officers who left would decide
// again. It may hold newer ones.
func (a *approvals) held(ctx context.Context, src rosterReader) error {
	if len(a.changes) == 0 {
		return nil
	}
	rows, err := src.RosterRows(ctx)
	if err != nil && !errors.Is(err, ErrTampered) {
		return err
	}
	for _, c := range a.changes {
		if !slices.ContainsFunc(rows, func(r RosterRow) bool { return r.Leaf == c.leaf && r.Version == c.version && r.Digest() == c.digest }) {
			return breaks("P7", violate(c.leaf, "the database does not hold the roster that it put into force"))
		}
	}
	return nil
}

func (a *approvals) rows(ctx context.Context, src VerifySource, names map[uint64]string) error {
	stored := 0
	err := src.ProposalRows(ctx, func(r ProposalRow) error {
		stored++
		p := a.proposals[r.Hash]
		if p == nil || r.Leaf != p.leaf || !bytes.Equal(r.Proposal, p.raw) {
			return violate(r.Leaf, "the database holds a proposal that it does not record")
		}
		parameters := Digest("parameters", r.Parameters)
		switch {
		case r.State != p.state || r.Votes != len(p.votes) || r.GrantLeaf != p.grantLeaf || r.EndLeaf != p.endLeaf || r.Grant != p.grant:
			return violate(p.leaf, "the row of its proposal is %s with %d votes, the entries make it %s with %d", r.State, r.Votes, p.state, len(p.votes))
		case !bytes.Equal(proposalField(p.raw, 3), parameters[:]):
			return violate(p.leaf, "the stored parameters are not those of the proposal")
		case r.Result != nil && Digest("result", r.Result) != p.result:
			return violate(p.endLeaf, "the stored result is not the one that was recorded")
		}
		return nil
	})
	if err != nil {
		return err
	}
	if stored != len(a.proposals) {
		return violate(0, "%d proposals are stored, the entries record %d", stored, len(a.proposals))
	}
	votes := 0
	err = src.VoteRows(ctx, func(r VoteRow) error {
		votes++
		v, ok := a.votes[r.Leaf]
		if !ok || v.decision == decisionRequest || r.Proposal != v.proposal || r.Officer != names[r.Leaf] || sha256.Sum256(r.SPKI) != v.officer || r.Decision != v.decision || !bytes.Equal(r.Signature, v.signature) {
			return violate(r.Leaf, "the row of its vote says something else")
		}
		return nil
	})
	if err != nil {
		return err
	}
	recorded := 0
	for _, p := range a.proposals {
		recorded += len(p.votes)
	}
	if votes != recorded {
		return violate(0, "%d votes are stored, the entries record %d", votes, recorded)
	}
	return nil
}

// proposalField is the value of a tag of a proposal: u16 tag ‖ u32 length ‖ value, each.
func proposalField(proposal []byte, tag uint16) []byte {
	for b := proposal; len(b) >= 6; {
		n := uint64(binary.BigEndian.Uint32(b[2:]))
		if uint64(len(b)-6) < n {
			return nil
		}
		if binary.BigEndian.Uint16(b) == tag {
			return b[6 : 6+n]
		}
		b = b[6+n:]
	}
	return nil
}
