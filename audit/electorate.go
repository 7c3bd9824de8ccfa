package audit

import (
	"context"
	"slices"
)

// Electorate is a roster of officers as those ask it who verify decisions; package admin
// has the one implementation of the server. [cmd/chancery-verify] has a second one.
type Electorate interface {
	// Digest is what leaf 0, proposals and OpRoster leaves name it by.
	Digest() [32]byte
	// Signer names the officer whose key, by the SHA-256 of its SPKI, signed a decision about
	// a proposal; cli: it is a CLI key. An error: nobody's does.
	Signer(key [32]byte, decision uint8, proposal, signature []byte) (officer string, cli bool, err error)
	// Enough tells whether approvals of these officers decide, cli of them by CLI keys; if not, why.
	Enough(officers []string, cli int) error
	// Asked tells whether a requester is this officer, who then has no vote.
	Asked(requester, officer string) bool
}

// RosterRow is a roster as the database holds it.
type RosterRow struct {
	Electorate
	Version uint64
	Leaf    uint64   // its OpRoster leaf; 0: of the first one, and of those of a ledger before this one
	Ledger  LedgerID // in which it was decided; zero for the first one
	// Follows tells whether the officers of the roster with this digest decided it; nil for
	// the first one.
	Follows func(before [32]byte) error
}

// rosterReader reads the rosters, oldest first.
type rosterReader interface {
	RosterRows(ctx context.Context) ([]RosterRow, error)
}

// electorates are the rosters of a database, held against each other and against leaf 0.
type electorates struct {
	rows  []RosterRow
	first int // of rows: that of leaf 0
}

// readElectorates checks that each roster follows the one before, and that one of them is
// that of leaf 0. A ledger without officers has none.
func readElectorates(ctx context.Context, src rosterReader, leaf0 [32]byte) (e electorates, err error) {
	if e.rows, err = src.RosterRows(ctx); err != nil {
		return e, err
	}
	e.first = -1
	for i, r := range e.rows {
		if r.Digest() == leaf0 {
			e.first = i
		}
		if i == 0 {
			continue
		}
		before := e.rows[i-1]
		if r.Version != before.Version+1 {
			return e, violate(r.Leaf, "the database holds roster %d after roster %d", r.Version, before.Version)
		}
		if err := r.Follows(before.Digest()); err != nil {
			return e, violate(r.Leaf, "the database holds a roster that the officers did not decide: %v", err)
		}
	}
	if len(e.rows) > 0 && e.first < 0 {
		return e, violate(0, "the officers or the quorum in the database are not those that it names")
	}
	return e, nil
}

// by finds a roster by its digest.
func (e electorates) by(digest []byte) (Electorate, bool) {
	for _, r := range e.rows {
		if d := r.Digest(); string(d[:]) == string(digest) {
			return r, true
		}
	}
	return nil, false
}

// changes are the rosters that came into force on this ledger.
func (e electorates) changes() []RosterRow {
	if len(e.rows) == 0 {
		return nil
	}
	return e.rows[e.first+1:]
}

// before are those of ledgers before this one, up to that of leaf 0.
func (e electorates) before() []RosterRow {
	if len(e.rows) == 0 {
		return nil
	}
	return e.rows[:e.first+1]
}

// restored tells whether the officers of leaf 0 are those of leaf 0 of a predecessor, or
// followed from them by decisions in its ledger.
func (e electorates) restored(digest [32]byte, predecessor LedgerID) bool {
	before := e.before()
	at := slices.IndexFunc(before, func(r RosterRow) bool { return r.Digest() == digest })
	return at >= 0 && !slices.ContainsFunc(before[at+1:], func(r RosterRow) bool { return r.Ledger != predecessor })
}

// inForce is the roster that decided at an index.
func (e electorates) inForce(index uint64) (found Electorate, ok bool) {
	for i, r := range e.rows {
		if i <= e.first || r.Leaf < index {
			found, ok = r, true
		}
	}
	return found, ok
}
