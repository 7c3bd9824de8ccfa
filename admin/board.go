package admin

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"chancery/audit"
)

// Executor carries out the acts of a grant; it spends them where they are carried
// out. result becomes JSON of at most 4 KiB that everyone with the admin token may
// read, and the text of err is stored: neither holds a secret.
type Executor func(ctx context.Context, g *Grant, parameters []byte) (result any, err error)

// Action is one kind of deed that officers decide about.
type Action struct {
	// Acts derives from the parameters (canonical JSON) what the grant has to list, and
	// refuses parameters that could not be carried out; the error is for who asks.
	Acts    func(parameters []byte) ([]string, error)
	Execute Executor
}

// Config of a [Board]. Every field without a remark must be set.
type Config struct {
	Ledger  Ledger
	Storage Storage
	Rosters History           // up to the one in force; the caller held it against the ledger, see [History.Check]
	Actions map[string]Action // by Proposal.Action; the board adds [ChangeRoster]
	// RosterChanged tells others of a roster that came into force; nil: nobody. What it
	// returns stands in the result of the act.
	RosterChanged func(ctx context.Context, h History) error
	Log           *slog.Logger     // nil: slog.Default
	Now           func() time.Time // nil: time.Now
}

// Board is where proposals are made, voted on and carried out. [Board.Run] must run.
type Board struct {
	cfg Config

	mu     sync.Mutex
	now    inForce
	queue  []job
	made   map[[32]byte]bool // proposals whose grant this process made, or tried to
	queued chan struct{}
}

// NewBoard checks cfg.
func NewBoard(cfg Config) (*Board, error) {
	if cfg.Ledger == nil || cfg.Storage == nil || len(cfg.Actions) == 0 {
		return nil, errors.New("admin: Ledger, Storage and Actions must be set")
	}
	if err := cfg.Rosters.Current().Check(); err != nil {
		return nil, fmt.Errorf("officers: %w", err)
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	b := &Board{cfg: cfg, now: inForceOf(cfg.Rosters), made: map[[32]byte]bool{}, queued: make(chan struct{}, 1)}
	b.cfg.Actions = maps.Clone(cfg.Actions)
	b.cfg.Actions[ChangeRoster] = Action{Acts: RosterActs, Execute: b.changeRoster}
	return b, nil
}

// Terms is what one needs to know to make a proposal.
type Terms struct {
	Ledger       audit.LedgerID
	Roster       Roster
	RosterDigest [32]byte
	PolicyDigest [32]byte
}

// Terms of the proposals that are accepted now. Errors: those of the storage, and
// audit.ErrTampered for a roster that the officers did not decide.
func (b *Board) Terms(ctx context.Context) (Terms, error) {
	f, err := b.refresh(ctx)
	return f.terms(b.cfg.Ledger.ID()), err
}

// Draft makes an unsigned proposal: what [Board.Propose] makes for the admin token,
// and an officer signs. parameters are canonical; lifetime 0 is [DefaultLifetime].
func (t Terms) Draft(action string, acts []string, parameters []byte, requester string, now time.Time, lifetime time.Duration) Proposal {
	if lifetime == 0 {
		lifetime = DefaultLifetime
	}
	p := Proposal{Ledger: t.Ledger, Action: action, Parameters: ParametersDigest(parameters), Acts: acts, Policy: t.PolicyDigest, Roster: t.RosterDigest,
		Requester: requester, NotBefore: now.UTC().Truncate(time.Second)}
	p.Expires = p.NotBefore.Add(lifetime.Truncate(time.Second))
	rand.Read(p.Nonce[:])
	return p
}

// Ask is a request for a sensitive act.
type Ask struct {
	Action     string
	Parameters []byte        // JSON
	Lifetime   time.Duration // 0: [DefaultLifetime]; not with Proposal

	// An officer who asks made the proposal and signed it, with decision Request, so
	// that nobody can ask in that name. Without them the admin token asks.
	Officer   string
	Passkey   []byte // ID of the credential that signed; nil: the officer's CLI key
	Proposal  []byte
	Signature []byte

	Requester string // with Officer "": who asks, see [Principal.Requester]; "": the admin token
}

// maxPending bounds the proposals that wait.
const maxPending = 100

// maxSkew is how far the clock of an officer's machine may be ahead of ours.
const maxSkew = 5 * time.Minute

// Propose records a request. Errors: *Refusal, and those of the ledger.
func (b *Board) Propose(ctx context.Context, a Ask) (*Approval, error) {
	f, err := b.refresh(ctx)
	if err != nil {
		return nil, err
	}
	action, ok := b.cfg.Actions[a.Action]
	if !ok {
		return nil, refuse(BadProposal, "action", "there is no action %q that officers decide about", audit.Text(a.Action, 64))
	}
	parameters, err := CanonicalParameters(a.Parameters)
	if err != nil {
		return nil, refuse(BadProposal, "parameters", "%v", err)
	}
	if err := checkReason(parameters); err != nil {
		return nil, err
	}
	acts, err := action.Acts(parameters)
	if err != nil {
		return nil, refuse(BadProposal, "parameters", "%v", err)
	}
	if err := f.mayChange(a.Action, parameters); err != nil {
		return nil, err
	}
	waiting, err := b.cfg.Storage.Proposals(ctx, Pending, maxPending)
	if err != nil {
		return nil, fmt.Errorf("listing proposals: %w", err)
	}
	if len(waiting) == maxPending {
		return nil, refuse(Closed, "", "%d proposals wait for the officers already; decide or cancel some", maxPending)
	}
	p, raw, key, err := b.proposal(f, a, parameters, acts)
	if err != nil {
		return nil, err
	}
	rec := Record{Hash: ProposalHash(raw), Proposal: raw, Parameters: parameters, Signature: a.Signature, Expires: p.Expires, State: Pending}
	var fields audit.Fields
	fields.Bytes(audit.TagProposal, raw)
	fields.Hash(audit.TagProposalHash, rec.Hash)
	if key != nil {
		fields.Hash(audit.TagOfficer, sha256.Sum256(key))
		fields.Bytes(audit.TagVote, a.Signature)
	}
	leaf, err := b.cfg.Ledger.Append(ctx, audit.Event(audit.OpProposal, fields), PutProposal{rec})
	if errors.Is(err, audit.ErrExists) {
		return nil, refuse(Closed, "proposal", "this very proposal was made before; make a new one")
	}
	if err != nil {
		return nil, fmt.Errorf("recording the proposal: %w", err)
	}
	rec.Leaf = leaf.Index
	return b.approval(rec, nil)
}

// proposal is what is asked for: made here for who is no officer, or by an officer, with
// key, and then held against everything that this server knows.
func (b *Board) proposal(f inForce, a Ask, parameters []byte, acts []string) (p Proposal, raw, key []byte, err error) {
	terms := f.terms(b.cfg.Ledger.ID())
	if a.Officer == "" {
		if len(a.Proposal)+len(a.Signature) > 0 {
			return p, nil, nil, refuse(BadProposal, "officer", "a signed proposal names its officer")
		}
		if a.Requester == "" {
			a.Requester = AdminToken
		}
		if strings.HasPrefix(a.Requester, OfficerRequester("")) {
			return p, nil, nil, refuse(VoteRefused, "proposal", "an officer signs what they ask for")
		}
		p = terms.Draft(a.Action, acts, parameters, a.Requester, b.cfg.Now(), a.Lifetime)
		if raw, err = p.Encode(); err != nil {
			return p, nil, nil, refuse(BadProposal, "", "%v", err)
		}
		if !f.roster.possible(p.Requester, nil) {
			return p, nil, nil, refuse(VoteRefused, "", "too few officers are left who may approve what %s asks for", p.Requester)
		}
		return p, raw, nil, nil
	}
	o, ok := f.roster.Officer(a.Officer)
	if !ok {
		return p, nil, nil, refuse(VoteRefused, "officer", "%q is no officer of this CA", audit.Text(a.Officer, 64))
	}
	if p, err = DecodeProposal(a.Proposal); err != nil {
		return p, nil, nil, refuse(BadProposal, "proposal", "%v", err)
	}
	want := terms.Draft(a.Action, acts, parameters, OfficerRequester(o.Name), p.NotBefore, p.Expires.Sub(p.NotBefore))
	want.Nonce = p.Nonce
	expected, err := want.Encode()
	now := b.cfg.Now()
	switch {
	case err != nil:
		return p, nil, nil, refuse(BadProposal, "", "%v", err)
	case !bytes.Equal(expected, a.Proposal):
		return p, nil, nil, refuse(BadProposal, "proposal", "it is not for this ledger, these parameters, these officers and this policy")
	case p.NotBefore.After(now.Add(maxSkew)) || !p.Expires.After(now):
		return p, nil, nil, refuse(BadProposal, "proposal", "its time is %s to %s, here it is %s; set the clock", p.NotBefore.Format(time.RFC3339), p.Expires.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case !f.roster.possible(p.Requester, nil):
		return p, nil, nil, refuse(VoteRefused, "officer", "officer %s cannot approve what officer %s asks for, and without that vote %d approvals are not possible; another officer or the admin token must ask", o.Name, o.Name, f.roster.Quorum)
	}
	if key, err = f.roster.signed(o, a.Passkey, Request, a.Proposal, a.Signature); err != nil {
		return p, nil, nil, refuse(VoteRefused, "signature", "%v", err)
	}
	return p, a.Proposal, key, nil
}

// Ballot is an officer's vote as it is handed in.
type Ballot struct {
	Officer   string
	Passkey   []byte // ID of the credential that signed; nil: the officer's CLI key
	Decision  Decision
	Signature []byte // of the CLI key, see [VoteText], or an encoded [Assertion]
}

// Vote records an officer's vote, final, and makes the grant when it is the last that
// was needed; [Board.Run] carries it out. Errors: *Refusal, and those of the ledger.
func (b *Board) Vote(ctx context.Context, id string, v Ballot) (*Approval, error) {
	f, err := b.refresh(ctx)
	if err != nil {
		return nil, err
	}
	rec, err := b.record(ctx, id)
	if err != nil {
		return nil, err
	}
	o, key, err := b.mayVote(f, rec, v)
	if err != nil {
		return nil, err
	}
	var fields audit.Fields
	fields.Hash(audit.TagProposalHash, rec.Hash)
	fields.Hash(audit.TagOfficer, sha256.Sum256(key))
	fields.Uint8(audit.TagDecision, uint8(v.Decision))
	fields.Bytes(audit.TagVote, v.Signature)
	_, err = b.cfg.Ledger.Append(ctx, audit.Event(audit.OpVote, fields), PutVote{Proposal: rec.Hash, Officer: o.Name, SPKI: key, Decision: v.Decision, Signature: v.Signature, At: b.cfg.Now()})
	switch {
	case errors.Is(err, audit.ErrExists):
		return nil, refuse(VoteRefused, "officer", "officer %s has voted on this proposal; a vote is final", o.Name)
	case errors.Is(err, audit.ErrConflict):
		return nil, refuse(Closed, "", "the proposal was decided meanwhile")
	case err != nil:
		return nil, fmt.Errorf("recording the vote: %w", err)
	}
	if err := b.settle(ctx, rec); err != nil {
		return nil, err
	}
	return b.Show(ctx, id)
}

// mayVote holds a vote against the rules; key is what signed it.
func (b *Board) mayVote(f inForce, rec Record, v Ballot) (o Officer, key []byte, err error) {
	p, err := DecodeProposal(rec.Proposal)
	if err != nil {
		return o, nil, fmt.Errorf("%w: proposal %s: %v", audit.ErrTampered, ProposalID(rec.Hash), err)
	}
	now := b.cfg.Now()
	o, ok := f.roster.Officer(v.Officer)
	switch {
	case v.Decision != Approve && v.Decision != Reject:
		return o, nil, refuse(BadProposal, "decision", "a vote is approve or reject")
	case rec.State != Pending:
		return o, nil, refuse(Closed, "", "the proposal is %s; nobody votes on it any more", rec.State)
	case p.Ledger != b.cfg.Ledger.ID():
		return o, nil, refuse(VoteRefused, "", "the proposal belongs to another ledger")
	case p.Roster != f.digest:
		return o, nil, refuse(VoteRefused, "", "the officers or the quorum have changed since the proposal was made; make a new one")
	case p.Policy != f.roster.PolicyDigest():
		return o, nil, refuse(VoteRefused, "", "the policy has changed since the proposal was made; make a new one")
	case now.Before(p.NotBefore):
		return o, nil, refuse(VoteRefused, "", "the proposal holds from %s; here it is %s", p.NotBefore.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case !now.Before(p.Expires):
		return o, nil, refuse(Closed, "", "the proposal expired at %s; make a new one", p.Expires.Format(time.RFC3339))
	case !ok || !f.roster.Votes(o):
		return o, nil, refuse(VoteRefused, "officer", "%q is no officer of this CA who votes", audit.Text(v.Officer, 64))
	case asksAs(p.Requester, o.Name):
		return o, nil, refuse(VoteRefused, "officer", "officer %s asked for it; others must decide", o.Name)
	}
	if key, err = f.roster.signed(o, v.Passkey, v.Decision, rec.Proposal, v.Signature); err != nil {
		return o, nil, refuse(VoteRefused, "signature", "%v", err)
	}
	return o, key, nil
}

// settle moves a pending proposal on if its votes, its age or a change of the roster
// allow it. Another who was faster is no error.
func (b *Board) settle(ctx context.Context, rec Record) error {
	f, err := b.refresh(ctx)
	if err != nil {
		return err
	}
	p, err := DecodeProposal(rec.Proposal)
	if err != nil {
		return fmt.Errorf("%w: proposal %s: %v", audit.ErrTampered, ProposalID(rec.Hash), err)
	}
	votes, err := b.cfg.Storage.Votes(ctx, rec.Hash)
	if err != nil {
		return fmt.Errorf("reading votes: %w", err)
	}
	var rejected []string
	var approvals []VoteRecord
	for _, v := range votes {
		if v.Decision == Approve {
			approvals = append(approvals, v)
		} else {
			rejected = append(rejected, v.Officer)
		}
	}
	enough, ok := f.roster.enough(approvals)
	switch {
	case !b.cfg.Now().Before(p.Expires):
		err = b.end(ctx, rec, Pending, Expired, nil, "")
	case p.Roster != f.digest:
		err = b.end(ctx, rec, Pending, Cancelled, nil, "the roster of the officers changed")
	case ok:
		return b.grant(ctx, f, rec, p, enough)
	case !f.roster.possible(p.Requester, rejected):
		err = b.end(ctx, rec, Pending, Rejected, nil, "")
	}
	if errors.Is(err, audit.ErrConflict) {
		return nil
	}
	return err
}

// grant spends a proposal: of all who try at once, one gets past the database.
func (b *Board) grant(ctx context.Context, f inForce, rec Record, p Proposal, votes []VoteRecord) error {
	w := &Warrant{Proposal: rec.Proposal, Votes: votes, Roster: f.roster}
	now := b.cfg.Now()
	acts, _, err := w.Check(b.cfg.Ledger.ID(), f.digest, now)
	if err != nil {
		return fmt.Errorf("%w: proposal %s: %w", audit.ErrTampered, ProposalID(rec.Hash), err)
	}
	if ParametersDigest(rec.Parameters) != p.Parameters {
		return fmt.Errorf("%w: proposal %s: the stored parameters are not those that were signed", audit.ErrTampered, ProposalID(rec.Hash))
	}
	spend := SpendProposal{Proposal: rec.Hash, Grant: w.Grant(), Roster: f.roster.Version, Node: b.cfg.Ledger.Node(), At: now}
	for _, v := range votes {
		spend.Votes = append(spend.Votes, v.Leaf)
	}
	var fields audit.Fields
	fields.Hash(audit.TagGrant, spend.Grant)
	fields.Hash(audit.TagProposalHash, rec.Hash)
	fields.Bytes(audit.TagVotes, voteIndexes(spend.Votes))
	b.mu.Lock()
	b.made[rec.Hash] = true // before it can be found in the database
	b.mu.Unlock()
	_, err = b.cfg.Ledger.Append(ctx, audit.Event(audit.OpGrant, fields), spend)
	if errors.Is(err, audit.ErrConflict) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("recording the grant: %w", err)
	}
	rec.Grant, rec.State = spend.Grant, Approved
	b.enqueue(job{rec: rec, p: p, grant: officersGrant(w, acts)})
	return nil
}

// officersGrant makes the grant of a warrant that was checked and spent.
func officersGrant(w *Warrant, acts []string) *Grant {
	g := &Grant{hash: w.Grant(), warrant: w, left: make(map[string]int)}
	for _, a := range acts {
		g.left[a]++
	}
	return g
}

// end records the last state of a proposal.
func (b *Board) end(ctx context.Context, rec Record, from, to State, result []byte, reason string) error {
	op := audit.OpProposalEnd
	var f audit.Fields
	f.Hash(audit.TagProposalHash, rec.Hash)
	f.Text(audit.TagOutcome, string(to))
	f.Text(audit.TagReason, reason)
	if from == Approved {
		op = audit.OpGrantResult
		f.Hash(audit.TagGrant, rec.Grant)
	}
	if result != nil {
		f.Hash(audit.TagSubject, audit.Digest("result", result))
	}
	_, err := b.cfg.Ledger.Append(ctx, audit.Event(op, f), EndProposal{Proposal: rec.Hash, From: from, To: to, Result: result, Reason: reason})
	if err != nil {
		return fmt.Errorf("recording that proposal %s is %s: %w", ProposalID(rec.Hash), to, err)
	}
	return nil
}

// Cancel ends a pending proposal: the admin token may take back what waits, whoever
// asked for it. Errors: *Refusal, and those of the ledger.
func (b *Board) Cancel(ctx context.Context, id string) (*Approval, error) {
	rec, err := b.record(ctx, id)
	if err != nil {
		return nil, err
	}
	err = b.end(ctx, rec, Pending, Cancelled, nil, "")
	if errors.Is(err, audit.ErrConflict) {
		return nil, refuse(Closed, "", "the proposal is not pending any more; only what waits can be cancelled")
	}
	if err != nil {
		return nil, err
	}
	return b.Show(ctx, id)
}

func (b *Board) record(ctx context.Context, id string) (Record, error) {
	rec, err := b.cfg.Storage.Proposal(ctx, id)
	if errors.Is(err, audit.ErrNotFound) {
		return rec, refuse(NotFound, "id", "there is no proposal with this id")
	}
	if err == nil && ProposalHash(rec.Proposal) != rec.Hash {
		err = fmt.Errorf("%w: proposal %s is not what its hash says", audit.ErrTampered, id)
	}
	return rec, err
}

// Approval is a proposal with its votes and what became of it.
type Approval struct {
	Record
	ID     string
	Asked  Proposal // Record.Proposal, decoded
	Votes  []VoteRecord
	Quorum int // of the roster that the proposal was made under; 0 if it is not known
}

func (b *Board) approval(rec Record, votes []VoteRecord) (*Approval, error) {
	p, err := DecodeProposal(rec.Proposal)
	if err != nil {
		return nil, fmt.Errorf("%w: proposal %s: %v", audit.ErrTampered, ProposalID(rec.Hash), err)
	}
	return &Approval{Record: rec, ID: ProposalID(rec.Hash), Asked: p, Votes: votes, Quorum: b.quorumOf(p)}, nil
}

// Show returns one proposal. Errors: *Refusal, and those of the storage.
func (b *Board) Show(ctx context.Context, id string) (*Approval, error) {
	rec, err := b.record(ctx, id)
	if err != nil {
		return nil, err
	}
	votes, err := b.cfg.Storage.Votes(ctx, rec.Hash)
	if err != nil {
		return nil, fmt.Errorf("reading votes: %w", err)
	}
	return b.approval(rec, votes)
}

// listed is how many proposals a list has at most.
const listed = 200

// List returns the newest proposals in a state, or in all ("").
func (b *Board) List(ctx context.Context, state State) ([]*Approval, error) {
	if state != "" && !slices.Contains(States, state) {
		return nil, refuse(BadProposal, "state", "there is no such state; allowed: %v", States)
	}
	recs, err := b.cfg.Storage.Proposals(ctx, state, listed)
	if err != nil {
		return nil, fmt.Errorf("listing proposals: %w", err)
	}
	out := make([]*Approval, len(recs))
	for i, rec := range recs {
		votes, err := b.cfg.Storage.Votes(ctx, rec.Hash)
		if err != nil {
			return nil, fmt.Errorf("reading votes: %w", err)
		}
		if out[i], err = b.approval(rec, votes); err != nil {
			return nil, err
		}
	}
	return out, nil
}
