package admin

import (
	"context"
	"encoding/hex"
	"encoding/json/v2"
	"errors"
	"fmt"

	"chancery/audit"
)

// RosterChange is a roster that followed another one, with the officers' decision. It
// proves itself to whoever knows the one before.
type RosterChange struct {
	Roster  Roster  `json:"roster"`
	Warrant Warrant `json:"warrant"`       // of the officers before
	Leaf    uint64  `json:"leaf,omitzero"` // its OpRoster leaf; 0: it is of a ledger before this one
}

// History is every roster that was ever in force: the first, and each that followed.
type History struct {
	Base    Roster         `json:"base"`
	Changes []RosterChange `json:"changes,omitempty"`
}

// Current is the roster in force.
func (h History) Current() Roster {
	if n := len(h.Changes); n > 0 {
		return h.Changes[n-1].Roster
	}
	return h.Base
}

// Follows tells whether the officers of the roster with the digest before decided that
// this one follows: its warrant is for exactly that, with enough of their signatures. When
// they decided it is not looked at, as it may be long ago.
func (c RosterChange) Follows(before [32]byte) error {
	if err := c.Roster.Check(); err != nil {
		return fmt.Errorf("roster %d: %w", c.Roster.Version, err)
	}
	p, err := DecodeProposal(c.Warrant.Proposal)
	if err != nil {
		return fmt.Errorf("roster %d: %w", c.Roster.Version, err)
	}
	acts, _, err := c.Warrant.Check(p.Ledger, before, p.NotBefore)
	want := ChangeRosterAct(c.Roster.Version, before, c.Roster.Digest())
	switch {
	case err != nil:
		return fmt.Errorf("roster %d: %w", c.Roster.Version, err)
	case len(acts) != 1 || acts[0] != want || p.Action != ChangeRoster:
		return fmt.Errorf("%w: roster %d: the officers did not sign %q", ErrNotGranted, c.Roster.Version, want)
	case c.Roster.Version != c.Warrant.Roster.Version+1:
		return fmt.Errorf("%w: roster %d cannot follow roster %d", ErrNotGranted, c.Roster.Version, c.Warrant.Roster.Version)
	}
	return nil
}

// CheckChain tells whether each roster follows the one before, and one of them is that of
// leaf 0, whose digest is first. It returns the changes after that one. Errors wrap
// audit.ErrTampered.
func (h History) CheckChain(first [32]byte) (after []RosterChange, err error) {
	digest := h.Base.Digest()
	begun := digest == first
	after = h.Changes
	for i, c := range h.Changes {
		if err := c.Follows(digest); err != nil {
			return nil, fmt.Errorf("%w: %w", audit.ErrTampered, err)
		}
		if digest = c.Roster.Digest(); digest == first {
			begun, after = true, h.Changes[i+1:]
		}
	}
	if !begun {
		return nil, fmt.Errorf("%w: the officers or the quorum in the database are not those that leaf 0 names; put the database back from a backup", audit.ErrTampered)
	}
	if err := h.Base.Check(); err != nil {
		return nil, fmt.Errorf("%w: the officers: %w", audit.ErrTampered, err)
	}
	return after, nil
}

// Check holds a stored history against leaf 0 and the leaves of its changes: what the
// officers did not decide, or the ledger does not know, decides nothing. Errors wrap
// audit.ErrTampered, or are those of reading leaves.
func (h History) Check(ctx context.Context, leaf func(ctx context.Context, index uint64) (audit.Leaf, error)) error {
	zero, err := leaf(ctx, 0)
	if err != nil {
		return fmt.Errorf("reading leaf 0: %w", err)
	}
	first, _ := zero.Hash(audit.TagRoster)
	after, err := h.CheckChain(first)
	if err != nil {
		return err
	}
	for _, c := range after {
		if err := c.recorded(ctx, leaf); err != nil {
			return err
		}
	}
	return nil
}

// recorded holds a change against its leaf.
func (c RosterChange) recorded(ctx context.Context, leaf func(ctx context.Context, index uint64) (audit.Leaf, error)) error {
	l, err := leaf(ctx, c.Leaf)
	if err != nil {
		return fmt.Errorf("reading the entry of roster %d: %w", c.Roster.Version, err)
	}
	digest, _ := l.Hash(audit.TagRoster)
	grant, _ := l.Hash(audit.TagGrant)
	if c.Leaf == 0 || l.Op != audit.OpRoster || digest != c.Roster.Digest() || grant != c.Warrant.Grant() {
		return fmt.Errorf("%w: entry %d does not record roster %d", audit.ErrTampered, c.Leaf, c.Roster.Version)
	}
	return nil
}

// inForce is the roster in force, with what follows from it.
type inForce struct {
	history History
	roster  Roster
	digest  [32]byte
}

func inForceOf(h History) inForce {
	r := h.Current()
	return inForce{history: h, roster: r, digest: r.Digest()}
}

func (f inForce) terms(ledger audit.LedgerID) Terms {
	return Terms{Ledger: ledger, Roster: f.roster, RosterDigest: f.digest, PolicyDigest: f.roster.PolicyDigest()}
}

// Rosters are all rosters up to the one in force. Errors: those of the storage, and
// audit.ErrTampered for what the officers did not decide.
func (b *Board) Rosters(ctx context.Context) (History, error) {
	f, err := b.refresh(ctx)
	return f.history, err
}

// refresh takes up what another node has changed. A history that went back, or that the
// ledger does not know, is audit.ErrTampered: nothing is decided then.
func (b *Board) refresh(ctx context.Context) (inForce, error) {
	b.mu.Lock()
	now := b.now // before the database is read: what it holds then is not older
	b.mu.Unlock()
	stored, err := b.cfg.Storage.Rosters(ctx)
	if err != nil {
		return inForce{}, fmt.Errorf("reading the roster: %w", err)
	}
	if len(stored.Changes) < len(now.history.Changes) {
		return inForce{}, fmt.Errorf("%w: the database lost roster %d; put it back from a backup", audit.ErrTampered, now.roster.Version)
	}
	next := now
	for _, c := range stored.Changes[len(now.history.Changes):] {
		if err := c.Follows(next.digest); err != nil {
			return inForce{}, fmt.Errorf("%w: %w", audit.ErrTampered, err)
		}
		if err := c.recorded(ctx, b.cfg.Ledger.Leaf); err != nil {
			return inForce{}, err
		}
		h := next.history
		h.Changes = append(h.Changes[:len(h.Changes):len(h.Changes)], c)
		next = inForceOf(h)
	}
	if got := stored.Current().Digest(); got != next.digest {
		return inForce{}, fmt.Errorf("%w: the roster in the database is another than this server knows", audit.ErrTampered)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(next.history.Changes) > len(b.now.history.Changes) {
		b.now = next
	}
	return next, nil
}

// quorumOf is the quorum of the roster that a proposal was made under, 0 if it is not known.
func (b *Board) quorumOf(p Proposal) int {
	b.mu.Lock()
	h := b.now.history
	b.mu.Unlock()
	if h.Base.Digest() == p.Roster {
		return h.Base.Quorum
	}
	for _, c := range h.Changes {
		if c.Roster.Digest() == p.Roster {
			return c.Roster.Quorum
		}
	}
	return 0
}

// RosterActs derives the act of [ChangeRoster] from its parameters (canonical JSON).
func RosterActs(parameters []byte) ([]string, error) {
	p, err := rosterParameters(parameters)
	if err != nil {
		return nil, err
	}
	before, err := hex.DecodeString(p.Before)
	if err != nil || len(before) != 32 {
		return nil, errors.New("before must be the digest of the roster in force, 64 hex digits")
	}
	if err := p.Roster.Check(); err != nil {
		return nil, err
	}
	if p.Roster.Version == 0 {
		return nil, errors.New("roster.version must be one more than that of the roster in force")
	}
	return []string{ChangeRosterAct(p.Roster.Version, [32]byte(before), p.Roster.Digest())}, nil
}

func rosterParameters(parameters []byte) (p RosterParameters, err error) {
	if err := json.Unmarshal(parameters, &p, json.RejectUnknownMembers(true)); err != nil {
		return p, fmt.Errorf("the roster: %w", err)
	}
	return p, nil
}

// mayChange refuses a change of the roster that does not begin at the one in force.
func (f inForce) mayChange(action string, parameters []byte) error {
	if action != ChangeRoster {
		return nil
	}
	p, err := rosterParameters(parameters)
	if err != nil {
		return refuse(BadProposal, "parameters", "%v", err)
	}
	if p.Before != hex.EncodeToString(f.digest[:]) || p.Roster.Version != f.roster.Version+1 {
		return refuse(BadProposal, "parameters", "the roster in force has version %d and digest %x; the next one has version %d and names that digest", f.roster.Version, f.digest, f.roster.Version+1)
	}
	return nil
}

// changeRoster carries [ChangeRoster] out: the officers' signatures are verified once more
// here, then entry and row come into force together.
func (b *Board) changeRoster(ctx context.Context, g *Grant, parameters []byte) (any, error) {
	f, err := b.refresh(ctx)
	if err != nil {
		return nil, err
	}
	if err := f.mayChange(ChangeRoster, parameters); err != nil {
		return nil, err
	}
	p, err := rosterParameters(parameters)
	if err != nil {
		return nil, err
	}
	w, ok := g.Warrant()
	if !ok {
		return nil, fmt.Errorf("%w: a roster follows only by the officers' decision", ErrNotGranted)
	}
	c := RosterChange{Roster: p.Roster, Warrant: *w}
	if err := c.Follows(f.digest); err != nil {
		return nil, err
	}
	digest := c.Roster.Digest()
	if err := g.Spend(ChangeRosterAct(c.Roster.Version, f.digest, digest)); err != nil {
		return nil, err
	}
	var fields audit.Fields
	fields.Hash(audit.TagGrant, g.Hash())
	fields.Hash(audit.TagRoster, digest)
	fields.Uint64(audit.TagVersion, c.Roster.Version)
	leaf, err := b.cfg.Ledger.Append(ctx, audit.Event(audit.OpRoster, fields), PutRosterChange{c})
	if errors.Is(err, audit.ErrExists) {
		return nil, errors.New("another change of the roster came first; look at it, then ask again")
	}
	if err != nil {
		return nil, fmt.Errorf("recording the roster: %w", err)
	}
	result := map[string]any{"version": c.Roster.Version, "roster": hex.EncodeToString(digest[:]), "entry": leaf.Index}
	if f, err = b.refresh(ctx); err != nil {
		return nil, err
	}
	if b.cfg.RosterChanged != nil {
		if err := b.cfg.RosterChanged(ctx, f.history); err != nil {
			b.cfg.Log.Warn("the roster is in force; not everyone could be told, and learns it at the next act", "version", c.Roster.Version, "err", err)
			result["note"] = audit.Text(err.Error(), 500)
		}
	}
	b.sweep(ctx)
	return result, nil
}
