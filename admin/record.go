package admin

import (
	"context"
	"time"

	"chancery/audit"
)

// State is where a proposal stands. The words stand in the database.
type State string

// The states: pending → approved → done or failed; or pending → rejected, expired
// or cancelled.
const (
	Pending   State = "pending"
	Approved  State = "approved" // spent on a grant, whose acts are being carried out
	Done      State = "done"
	Failed    State = "failed"
	Rejected  State = "rejected" // too few officers are left to approve
	Expired   State = "expired"
	Cancelled State = "cancelled"
)

// States lists all of them.
var States = []State{Pending, Approved, Done, Failed, Rejected, Expired, Cancelled}

// Record is a proposal as the database keeps it. Hash, Proposal, Parameters, Signature
// and Leaf never change.
type Record struct {
	Hash       [32]byte // H("proposal", Proposal)
	Proposal   []byte
	Parameters []byte // canonical JSON
	Signature  []byte // the requesting officer's, over decision Request; nil: the admin token asked
	Leaf       uint64 // index of the OpProposal leaf; as a projection: 0, the leaf at hand is meant
	Expires    time.Time

	State     State
	Grant     [32]byte // once approved
	GrantLeaf uint64   // once approved
	Node      string   // that carries the grant out, once approved
	EndLeaf   uint64   // once ended
	Result    []byte   // JSON, once done
	Reason    string   // once failed
}

// PutProposal stores a pending proposal with its OpProposal leaf.
type PutProposal struct{ Record }

// PutVote stores a vote with its OpVote leaf. A proposal that is not pending at At is
// audit.ErrConflict; a second vote of an officer, by name or by key, audit.ErrExists.
type PutVote struct {
	Proposal  [32]byte
	Officer   string // name
	SPKI      []byte // of the key that signed
	Decision  Decision
	Signature []byte
	At        time.Time
}

// SpendProposal makes a pending proposal approved, with its OpGrant leaf: the one
// moment at which a grant comes into being. A proposal that is not pending at At, or
// has not these approvals, is audit.ErrConflict.
type SpendProposal struct {
	Proposal [32]byte
	Grant    [32]byte
	Votes    []uint64 // leaf indexes
	Roster   uint64   // version of the one in force; another one: audit.ErrConflict
	Node     string
	At       time.Time
}

// EndProposal moves a proposal from one state to its last, with the OpGrantResult
// leaf (done, failed) or the OpProposalEnd leaf. Another state than From is
// audit.ErrConflict.
type EndProposal struct {
	Proposal [32]byte
	From, To State
	Result   []byte
	Reason   string
}

// PutRoster stores the officers at genesis, with all rosters before them. A roster that is there already is
// audit.ErrExists.
type PutRoster struct{ History }

// PutRosterChange stores the next roster with its OpRoster leaf. A version that is there
// already is audit.ErrExists.
type PutRosterChange struct{ RosterChange }

// Projection marks the types as audit.Projection; dbstore carries them out.
func (PutProposal) Projection()     {}
func (PutVote) Projection()         {}
func (SpendProposal) Projection()   {}
func (EndProposal) Projection()     {}
func (PutRoster) Projection()       {}
func (PutRosterChange) Projection() {}

// Storage reads what the projections wrote. Package dbstore implements it.
type Storage interface {
	// Proposals lists the proposals in a state ("": all), newest first, at most limit.
	Proposals(ctx context.Context, state State, limit int) ([]Record, error)
	// Proposal finds a proposal by [ProposalID]; none is audit.ErrNotFound.
	Proposal(ctx context.Context, id string) (Record, error)
	// Rosters reads all rosters that were ever in force.
	Rosters(ctx context.Context) (History, error)
	// Votes lists the votes on a proposal by leaf index.
	Votes(ctx context.Context, proposal [32]byte) ([]VoteRecord, error)
}

// Ledger is what the board asks of the ledger; *audit.Ledger is one.
type Ledger interface {
	ID() audit.LedgerID
	Node() string
	Leaf(ctx context.Context, index uint64) (audit.Leaf, error)
	Append(ctx context.Context, e audit.Entry, p ...audit.Projection) (audit.Appended, error)
}
