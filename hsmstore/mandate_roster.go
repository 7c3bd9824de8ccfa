package hsmstore

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"chancery/admin"
	"chancery/audit"
)

// The officers change, and a ceremony process follows them by itself: the server shows the
// rosters that followed one another, each with the decision of the officers before, and the
// account goes on from the one that it knows. A roster that was left behind decides nothing
// any more, whatever the database says.

// rosterChain is what the server shows: a roster, and those that followed it.
type rosterChain struct {
	Ledger  string               `json:"ledger,omitempty"`  // hex; of which the changes must be
	Roster  string               `json:"roster,omitempty"`  // hex; digest of leaf 0, or of the genesis to come
	Changes []admin.RosterChange `json:"changes,omitempty"` // after that, up to the one in force
}

func chainOf(ledger audit.LedgerID, first [32]byte, changes []admin.RosterChange) rosterChain {
	return rosterChain{Ledger: hex.EncodeToString(ledger[:]), Roster: hex.EncodeToString(first[:]), Changes: changes}
}

// current is the digest of the roster in force, hex; "" if the server shows none.
func (c rosterChain) current() string {
	if n := len(c.Changes); n > 0 {
		d := c.Changes[n-1].Roster.Digest()
		return hex.EncodeToString(d[:])
	}
	return c.Roster
}

// follow returns the rosters that the account has to learn, in their order: each was decided
// by the officers of the one before it, and in this ledger. It refuses rosters among which
// the one that the account knows is not: they are older ones, or others.
func (a *account) follow(c rosterChain) (learn []string, err error) {
	if c.Roster == "" {
		return nil, nil
	}
	known, at := a.roster, -1
	if known == "" {
		known, learn = c.Roster, append(learn, c.Roster)
	}
	if known == c.Roster {
		at = 0
	}
	for i, change := range c.Changes {
		if d := change.Roster.Digest(); hex.EncodeToString(d[:]) == known {
			at = i + 1
		}
	}
	if at < 0 {
		return nil, fmt.Errorf("%w: the officers in the database are older than those that this token knows (%.16s), or others: the database was put back, or someone wrote to it. Use a database that has the newest change of the roster", admin.ErrNotGranted, known)
	}
	before, err := digestOf(known)
	if err != nil {
		return nil, err
	}
	ledger, err := digestOf(c.Ledger)
	if err != nil && at < len(c.Changes) {
		return nil, err
	}
	for _, change := range c.Changes[at:] {
		if err := change.Follows(before); err != nil {
			return nil, fmt.Errorf("%w: %w", admin.ErrNotGranted, err)
		}
		if p, err := admin.DecodeProposal(change.Warrant.Proposal); err != nil || p.Ledger != audit.LedgerID(ledger) {
			return nil, fmt.Errorf("%w: roster %d was decided in another ledger", admin.ErrNotGranted, change.Roster.Version)
		}
		before = change.Roster.Digest()
		learn = append(learn, hex.EncodeToString(before[:]))
	}
	return learn, nil
}

// learn writes rosters down, durably, each before the next.
func (a *account) learn(rosters []string) error {
	for _, r := range rosters {
		if err := a.add("roster %s", r); err != nil {
			return err
		}
		a.roster = r
	}
	return nil
}

func digestOf(text string) (d [32]byte, err error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != len(d) {
		return d, faultf(exitProtocol, "%.80q is no digest", text)
	}
	return [32]byte(b), nil
}

// learnRosters takes rosters from the store; what is wrong with them, it says.
func (w *worker) learnRosters(f frame) {
	var c rosterChain
	if err := json.Unmarshal(f.payload, &c); err != nil {
		w.fail(faultf(exitProtocol, "rosters: %v", err))
		return
	}
	w.mu.RLock()
	ledger := w.ledger
	w.mu.RUnlock()
	a, err := readAccount(w.account)
	if err != nil {
		w.fail(&fault{exitJournal, err})
		return
	}
	learn, err := a.follow(c)
	if err == nil && ledger != (audit.LedgerID{}) && c.Ledger != hex.EncodeToString(ledger[:]) {
		err = fmt.Errorf("%w: the rosters are of another ledger", admin.ErrNotGranted)
	}
	if err != nil {
		w.reply(f.id, statusRefused, []byte(err.Error()))
		return
	}
	if err := a.learn(learn); err != nil {
		w.fail(&fault{exitJournal, err})
		return
	}
	w.replyJSON(f.id, struct{}{})
}

// rosters are those from leaf 0 to the one in force, as the database has them. Before
// genesis there are none.
func (s *Store) rosters(ctx context.Context) (rosterChain, error) {
	if s.ledger.Head().Size == 0 {
		return rosterChain{}, nil
	}
	leaf, err := s.ledger.Leaf(ctx, 0)
	if err != nil {
		return rosterChain{}, fmt.Errorf("reading leaf 0: %w", err)
	}
	first, _ := leaf.Hash(audit.TagRoster)
	var changes []admin.RosterChange
	if s.cfg.Rosters != nil {
		h, err := s.cfg.Rosters(ctx)
		if err != nil {
			return rosterChain{}, fmt.Errorf("reading the officers: %w", err)
		}
		if len(h.Changes) > 0 {
			if changes, err = h.CheckChain(first); err != nil {
				return rosterChain{}, err
			}
		}
	}
	return chainOf(s.ledger.ID(), first, changes), nil
}

// RosterChanged tells all workers that run of the roster that came into force: from then
// on a ceremony of theirs takes no warrant of an older one, whatever the database says. The
// error names the members that could not be told; they learn it at their next ceremony, or
// when this is called again. Errors wrap audit.ErrTampered for a history that leaf 0 does
// not begin, and for one that a member knows to be older than what was in force.
func (s *Store) RosterChanged(ctx context.Context, h admin.History) error {
	leaf, err := s.ledger.Leaf(ctx, 0)
	if err != nil {
		return fmt.Errorf("reading leaf 0: %w", err)
	}
	first, _ := leaf.Hash(audit.TagRoster)
	changes, err := h.CheckChain(first)
	if err != nil {
		return err
	}
	return s.tellMembers(ctx, chainOf(s.ledger.ID(), first, changes))
}

// tellRostersAll is [Store.RosterChanged] with what another node has put into force.
func (s *Store) tellRostersAll(ctx context.Context) error {
	chain, err := s.rosters(ctx)
	if err != nil || len(chain.Changes) == 0 {
		return err
	}
	return s.tellMembers(ctx, chain)
}

func (s *Store) tellMembers(ctx context.Context, chain rosterChain) error {
	var errs []error
	for _, m := range s.list() {
		if err := m.learnRosters(ctx, chain); err != nil {
			errs = append(errs, fmt.Errorf("telling member %s of the officers: %w", m.cfg.Name, err))
		}
	}
	return errors.Join(errs...)
}

// CheckRosters holds the rosters of a database that no server uses against what the members
// of this node know of them. An error that wraps admin.ErrNotGranted says that a member knows
// later officers, who alone decide anything with its token.
func CheckRosters(members []MemberConfig, ledger audit.LedgerID, first [32]byte, h admin.History) error {
	changes, err := h.CheckChain(first)
	if err != nil {
		return err
	}
	for _, m := range members {
		a, err := readAccount(m.JournalPath + ".mandates")
		if err == nil {
			_, err = a.follow(chainOf(ledger, first, changes))
		}
		if err != nil {
			return fmt.Errorf("member %s: %w", m.Name, err)
		}
	}
	return nil
}

// tellRosters tells a worker that starts. A member that was away when they changed learns
// of them before it signs again.
func (s *Store) tellRosters(ctx context.Context, m *member, l *link) error {
	chain, err := s.rosters(ctx)
	if err != nil || chain.Roster == "" {
		return err
	}
	return m.tellRosters(ctx, l, chain)
}

var errNotTold = errors.New("its worker does not run; it learns of them at its next ceremony")

func (m *member) learnRosters(ctx context.Context, c rosterChain) error {
	m.mu.Lock()
	l := m.link
	m.mu.Unlock()
	return m.tellRosters(ctx, l, c)
}

// tellRosters tells a worker what its account does not know yet; l is nil if none runs.
func (m *member) tellRosters(ctx context.Context, l *link, c rosterChain) error {
	a, err := readAccount(m.cfg.JournalPath + ".mandates")
	if err != nil || a.retired || a.roster == c.current() || a.roster == "" && len(c.Changes) == 0 {
		return err
	}
	if _, err := a.follow(c); err != nil {
		return fmt.Errorf("%w: %w", audit.ErrTampered, err)
	}
	if l == nil {
		return errNotTold
	}
	var ok json.RawMessage
	return l.control(ctx, opRosters, c, &ok)
}
