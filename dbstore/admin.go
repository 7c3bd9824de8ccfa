package dbstore

import (
	"context"
	"database/sql"
	"encoding/json/v2"
	"errors"
	"fmt"
	"time"

	"chancery/admin"
	"chancery/audit"
)

var _ admin.Storage = (*Store)(nil)

func (t *tx) applyAdmin(p audit.Projection, at *audit.StoredLeaf) (handled bool, err error) {
	switch p := p.(type) {
	case admin.PutRoster:
		err = t.putRoster(p)
	case admin.PutRosterChange:
		p.Leaf = at.Index
		err = t.putRosterChange(p.RosterChange)
	case admin.PutEnrolment:
		err = t.putEnrolment(p)
	case admin.AddPasskey:
		err = t.addPasskey(p)
	case admin.CloseEnrolment:
		err = t.closeEnrolment(p, at)
	case admin.PutMachine:
		err = t.putMachine(p)
	case admin.RevokeMachine:
		err = t.cas("UPDATE machine SET revoked = ? WHERE id = ? AND revoked = 0", p.At.Unix(), p.ID)
	case admin.TouchMachine:
		_, err = t.exec("UPDATE machine SET last_used = ? WHERE id = ?", p.At.Unix(), p.ID)
	case admin.PutProposal:
		_, err = t.exec("INSERT INTO proposal (hash, id, leaf, state, expires, proposal, parameters, signature, votes, node, reason) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, '', '')",
			p.Hash[:], admin.ProposalID(p.Hash), int64(at.Index), string(admin.Pending), p.Expires.Unix(), p.Proposal, p.Parameters, p.Signature)
	case admin.PutVote:
		err = t.putVote(p, at)
	case admin.SpendProposal:
		err = t.spend(p, at)
	case admin.EndProposal:
		err = t.cas("UPDATE proposal SET state = ?, end_leaf = ?, result = ?, reason = ? WHERE hash = ? AND state = ?",
			string(p.To), int64(at.Index), p.Result, p.Reason, p.Proposal[:], string(p.From))
	default:
		return false, nil
	}
	return true, err
}

func (t *tx) putRoster(p admin.PutRoster) error {
	if _, err := t.exec("INSERT INTO roster (id, quorum) VALUES (1, ?)", p.Base.Quorum); err != nil {
		return err
	}
	for _, o := range p.Base.Officers {
		if _, err := t.exec("INSERT INTO officer (name, spki) VALUES (?, ?)", o.Name, o.SPKI); err != nil {
			return err
		}
	}
	for _, c := range p.Changes {
		c.Leaf = 0
		if err := t.putRosterChange(c); err != nil {
			return err
		}
	}
	return nil
}

func (t *tx) putRosterChange(c admin.RosterChange) error {
	roster, err := json.Marshal(c.Roster)
	if err != nil {
		return err
	}
	warrant, err := json.Marshal(c.Warrant)
	if err != nil {
		return err
	}
	_, err = t.exec("INSERT INTO roster_change (version, leaf, roster, warrant) VALUES (?, ?, ?, ?)", int64(c.Roster.Version), int64(c.Leaf), roster, warrant)
	return err
}

// putVote counts the vote first: that also locks the proposal until the commit.
func (t *tx) putVote(p admin.PutVote, at *audit.StoredLeaf) error {
	err := t.cas("UPDATE proposal SET votes = votes + 1 WHERE hash = ? AND state = ? AND expires > ?", p.Proposal[:], string(admin.Pending), p.At.Unix())
	if err != nil {
		return err
	}
	_, err = t.exec("INSERT INTO vote (leaf, proposal, officer, spki, decision, signature) VALUES (?, ?, ?, ?, ?, ?)",
		int64(at.Index), p.Proposal[:], p.Officer, p.SPKI, int(p.Decision), p.Signature)
	return err
}

func (t *tx) spend(p admin.SpendProposal, at *audit.StoredLeaf) error {
	var version int64
	if err := t.row([]any{&version}, "SELECT coalesce(max(version), 0) FROM roster_change"); err != nil {
		return err
	}
	if uint64(version) != p.Roster {
		return fmt.Errorf("roster %d came into force: %w", version, audit.ErrConflict)
	}
	for _, leaf := range p.Votes {
		var n int
		if err := t.row([]any{&n}, "SELECT count(*) FROM vote WHERE leaf = ? AND proposal = ? AND decision = ?", int64(leaf), p.Proposal[:], int(admin.Approve)); err != nil {
			return err
		}
		if n != 1 {
			return fmt.Errorf("vote %d approves nothing here: %w", leaf, audit.ErrConflict)
		}
	}
	return t.cas("UPDATE proposal SET state = ?, grant_hash = ?, grant_leaf = ?, node = ? WHERE hash = ? AND state = ? AND expires > ?",
		string(admin.Approved), p.Grant[:], int64(at.Index), p.Node, p.Proposal[:], string(admin.Pending), p.At.Unix())
}

// Rosters implements [admin.Storage]; without officers, none were stored.
func (s *Store) Rosters(ctx context.Context) (h admin.History, err error) {
	if h.Base, err = s.firstRoster(ctx); err != nil {
		return h, err
	}
	err = s.each(ctx, func(rows *sql.Rows) error {
		var c admin.RosterChange
		var version, leaf int64
		var roster, warrant []byte
		if err := rows.Scan(&version, &leaf, &roster, &warrant); err != nil {
			return err
		}
		c.Leaf = uint64(leaf)
		if err := errors.Join(json.Unmarshal(roster, &c.Roster), json.Unmarshal(warrant, &c.Warrant)); err != nil || c.Roster.Version != uint64(version) {
			return fmt.Errorf("%w: the row of roster %d cannot be read", audit.ErrTampered, version)
		}
		h.Changes = append(h.Changes, c)
		return nil
	}, "SELECT version, leaf, roster, warrant FROM roster_change ORDER BY version")
	return h, err
}

func (s *Store) firstRoster(ctx context.Context) (r admin.Roster, err error) {
	err = s.each(ctx, func(rows *sql.Rows) error {
		var o admin.Officer
		err := rows.Scan(&o.Name, &o.SPKI, &r.Quorum)
		r.Officers = append(r.Officers, o)
		return err
	}, "SELECT o.name, o.spki, r.quorum FROM officer o, roster r ORDER BY o.name")
	return r, err
}

const recordColumns = "SELECT hash, leaf, state, expires, proposal, parameters, signature, grant_hash, grant_leaf, node, end_leaf, result, reason FROM proposal "

func scanRecord(rows *sql.Rows) (r admin.Record, err error) {
	var hash, grant []byte
	var leaf, expires int64
	var state string
	var grantLeaf, endLeaf sql.NullInt64
	err = rows.Scan(&hash, &leaf, &state, &expires, &r.Proposal, &r.Parameters, &r.Signature, &grant, &grantLeaf, &r.Node, &endLeaf, &r.Result, &r.Reason)
	r.Hash, r.Grant, r.State = hash32(hash), hash32(grant), admin.State(state)
	r.Leaf, r.GrantLeaf, r.EndLeaf = uint64(leaf), uint64(grantLeaf.Int64), uint64(endLeaf.Int64)
	r.Expires = time.Unix(expires, 0).UTC()
	return r, err
}

// Proposals implements [admin.Storage].
func (s *Store) Proposals(ctx context.Context, state admin.State, limit int) (out []admin.Record, err error) {
	err = s.each(ctx, func(rows *sql.Rows) error {
		r, err := scanRecord(rows)
		out = append(out, r)
		return err
	}, recordColumns+"WHERE state = ? OR ? = '' ORDER BY leaf DESC LIMIT ?", string(state), string(state), limit)
	return out, err
}

// Proposal implements [admin.Storage].
func (s *Store) Proposal(ctx context.Context, id string) (out admin.Record, err error) {
	found := audit.ErrNotFound
	err = s.each(ctx, func(rows *sql.Rows) (err error) {
		found = nil
		out, err = scanRecord(rows)
		return err
	}, recordColumns+"WHERE id = ?", id)
	if err == nil {
		err = found
	}
	return out, err
}

// Votes implements [admin.Storage].
func (s *Store) Votes(ctx context.Context, proposal [32]byte) (out []admin.VoteRecord, err error) {
	err = s.each(ctx, func(rows *sql.Rows) error {
		var v admin.VoteRecord
		var leaf int64
		err := rows.Scan(&leaf, &v.Officer, &v.SPKI, &v.Decision, &v.Signature)
		v.Leaf = uint64(leaf)
		out = append(out, v)
		return err
	}, "SELECT leaf, officer, spki, decision, signature FROM vote WHERE proposal = ? ORDER BY leaf", proposal[:])
	return out, err
}

// RosterRows implements [audit.VerifySource].
func (s *Store) RosterRows(ctx context.Context) ([]audit.RosterRow, error) {
	h, err := s.Rosters(ctx)
	if err != nil || len(h.Base.Officers) == 0 && len(h.Changes) == 0 {
		return nil, err
	}
	out := []audit.RosterRow{{Electorate: h.Base}}
	for _, c := range h.Changes {
		p, err := admin.DecodeProposal(c.Warrant.Proposal)
		if err != nil {
			return nil, fmt.Errorf("%w: the warrant of roster %d: %w", audit.ErrTampered, c.Roster.Version, err)
		}
		out = append(out, audit.RosterRow{Electorate: c.Roster, Version: c.Roster.Version, Leaf: c.Leaf, Ledger: p.Ledger, Follows: c.Follows})
	}
	return out, nil
}

// ProposalRows implements [audit.VerifySource].
func (s *Store) ProposalRows(ctx context.Context, fn func(audit.ProposalRow) error) error {
	return s.each(ctx, func(rows *sql.Rows) error {
		var r audit.ProposalRow
		var hash, grant []byte
		var leaf int64
		var grantLeaf, endLeaf sql.NullInt64
		if err := rows.Scan(&hash, &leaf, &r.State, &r.Proposal, &r.Parameters, &r.Votes, &grant, &grantLeaf, &endLeaf, &r.Result); err != nil {
			return err
		}
		r.Hash, r.Grant, r.Leaf, r.GrantLeaf, r.EndLeaf = hash32(hash), hash32(grant), uint64(leaf), uint64(grantLeaf.Int64), uint64(endLeaf.Int64)
		return fn(r)
	}, "SELECT hash, leaf, state, proposal, parameters, votes, grant_hash, grant_leaf, end_leaf, result FROM proposal")
}

// VoteRows implements [audit.VerifySource].
func (s *Store) VoteRows(ctx context.Context, fn func(audit.VoteRow) error) error {
	return s.each(ctx, func(rows *sql.Rows) error {
		var r audit.VoteRow
		var hash []byte
		var leaf int64
		if err := rows.Scan(&leaf, &hash, &r.Officer, &r.SPKI, &r.Decision, &r.Signature); err != nil {
			return err
		}
		r.Proposal, r.Leaf = hash32(hash), uint64(leaf)
		return fn(r)
	}, "SELECT leaf, proposal, officer, spki, decision, signature FROM vote")
}
