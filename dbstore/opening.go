package dbstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"chancery/audit"
)

func (t *tx) applyOpening(p audit.Projection, at *audit.StoredLeaf) (handled bool, err error) {
	switch p := p.(type) {
	case audit.PutOpenings:
		err = t.putOpenings(openingRow{int64(at.Index), p.RetainUntil.Unix(), audit.EncodeOpenings(p.Openings)})
	case audit.EraseOpenings:
		err = t.eraseOpenings(p)
	default:
		return false, nil
	}
	return true, err
}

// openingRow is a row of opening.
type openingRow struct {
	index, until int64
	data         []byte
}

// putOpenings stores a row; on PostgreSQL together with the leaves, as a statement for each
// would be a round trip for each.
func (t *tx) putOpenings(r openingRow) error {
	if t.s.name == "postgres" {
		t.openings = append(t.openings, r)
		return nil
	}
	_, err := t.exec("INSERT INTO opening (idx, retain_until, data) VALUES (?, ?, ?)", r.index, r.until, r.data)
	return err
}

// storeOpenings stores what putOpenings has collected.
func (t *tx) storeOpenings() error {
	if len(t.openings) == 0 {
		return nil
	}
	var index, until []int64
	var data [][]byte
	for _, r := range t.openings {
		index, until, data = append(index, r.index), append(until, r.until), append(data, r.data)
	}
	t.openings = nil
	_, err := t.exec("INSERT INTO opening (idx, retain_until, data) SELECT * FROM unnest(?::bigint[], ?::bigint[], ?::bytea[])", index, until, data)
	return err
}

// eraseOpenings takes openings out of their rows. SQLite overwrites what it deletes here;
// it costs too much to do so always.
func (t *tx) eraseOpenings(p audit.EraseOpenings) error {
	if t.s.name == "sqlite" {
		// Not by t.exec: the pragma works when it is prepared.
		if _, err := t.s.conn.ExecContext(t.ctx, "PRAGMA secure_delete = ON"); err != nil {
			return mapError(err)
		}
		defer t.s.conn.ExecContext(t.ctx, "PRAGMA secure_delete = FAST")
	}
	for refs := p.Refs; len(refs) > 0; {
		n := 1
		for n < len(refs) && refs[n].Index == refs[0].Index {
			n++
		}
		if err := t.eraseOf(refs[:n]); err != nil {
			return err
		}
		refs = refs[n:]
	}
	return nil
}

// eraseOf erases openings of one leaf.
func (t *tx) eraseOf(refs []audit.OpeningRef) error {
	index := int64(refs[0].Index)
	var data []byte
	err := t.row([]any{&data}, "SELECT data FROM opening WHERE idx = ?", index)
	if errors.Is(err, audit.ErrNotFound) {
		return fmt.Errorf("%w: the openings of entry %d are gone", audit.ErrConflict, index)
	}
	if err != nil {
		return err
	}
	stored, err := audit.DecodeOpenings(data)
	if err != nil {
		return fmt.Errorf("%w: openings of entry %d: %w", audit.ErrTampered, index, err)
	}
	left := slices.DeleteFunc(slices.Clone(stored), func(o audit.Opening) bool {
		return slices.ContainsFunc(refs, func(r audit.OpeningRef) bool { return r.Tag == o.Tag })
	})
	switch {
	case len(left) != len(stored)-len(refs):
		return fmt.Errorf("%w: openings of entry %d are gone", audit.ErrConflict, index)
	case len(left) == 0:
		return t.cas("DELETE FROM opening WHERE idx = ?", index)
	}
	return t.cas("UPDATE opening SET data = ? WHERE idx = ?", audit.EncodeOpenings(left), index)
}

// Openings implements [audit.Storage].
func (s *Store) Openings(ctx context.Context, q audit.OpeningQuery, fn func(audit.StoredOpenings) error) error {
	query, args := "SELECT idx, retain_until, data FROM opening WHERE idx >= ? AND idx < ?", []any{int64(q.From), int64(q.To)}
	if !q.Before.IsZero() {
		query, args = query+" AND retain_until < ?", append(args, q.Before.Unix())
	}
	return s.each(ctx, func(r *sql.Rows) error {
		var index, until int64
		var data []byte
		if err := r.Scan(&index, &until, &data); err != nil {
			return err
		}
		open, err := audit.DecodeOpenings(data)
		if err != nil {
			return fmt.Errorf("%w: openings of entry %d: %w", audit.ErrTampered, index, err)
		}
		return fn(audit.StoredOpenings{Index: uint64(index), RetainUntil: time.Unix(until, 0).UTC(), Openings: open})
	}, query+" ORDER BY idx", args...)
}

// scrubTries and scrubPause bound how long readers of older states are waited for.
const (
	scrubTries = 40
	scrubPause = 50 * time.Millisecond
)

// Scrub implements [audit.Storage]: SQLite's write-ahead log, which has the pages as they
// were, is carried into the database and cut to nothing. PostgreSQL keeps dead rows until
// its VACUUM and its log until that is recycled; that is its operator's.
func (s *Store) Scrub(ctx context.Context) error {
	if s.name != "sqlite" {
		return nil
	}
	for range scrubTries {
		if left, err := s.truncateWAL(ctx); err != nil || !left {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(scrubPause):
		}
	}
	return errors.New("a reader of an older state holds SQLite's write-ahead log")
}

// truncateWAL tells whether something is left because a reader still needs it. It never
// waits for one: the next commit would wait with it.
func (s *Store) truncateWAL(ctx context.Context) (left bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.conn.ExecContext(ctx, "PRAGMA busy_timeout = 0"); err != nil {
		return false, err
	}
	defer s.conn.ExecContext(context.WithoutCancel(ctx), "PRAGMA busy_timeout = 10000")
	var busy, log, done int
	err = s.conn.QueryRowContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)").Scan(&busy, &log, &done)
	if mapped := mapError(err); errors.Is(mapped, audit.ErrUnavailable) {
		return true, nil // locked
	}
	return busy != 0, err
}
