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

// eraseOpenings takes openings out of their rows.
func (t *tx) eraseOpenings(p audit.EraseOpenings) error {
	stored, err := t.openingsOf(p.Refs)
	if err != nil {
		return err
	}
	var gone, changed []int64
	var left [][]byte
	for refs := p.Refs; len(refs) > 0; {
		n := 1
		for n < len(refs) && refs[n].Index == refs[0].Index {
			n++
		}
		index := int64(refs[0].Index)
		blank, err := blanked(stored[index], refs[:n])
		if err != nil {
			return err
		}
		if t.s.name != "postgres" {
			err = t.cas("UPDATE opening SET data = ? WHERE idx = ?", audit.EncodeOpenings(blank), index)
		} else if rest := unerased(blank); len(rest) == 0 {
			gone = append(gone, index)
		} else {
			changed, left = append(changed, index), append(left, audit.EncodeOpenings(rest))
		}
		if err != nil {
			return err
		}
		refs = refs[n:]
	}
	if t.s.name != "postgres" {
		return nil
	}
	return t.eraseTogether(gone, changed, left)
}

// blanked overwrites openings of one leaf with zeros. SQLite keeps a row like that for good:
// as it has the same size, it is written over the old one. To delete rows would move their
// neighbours to other pages and leave copies of these behind, whatever secure_delete says.
func blanked(data []byte, refs []audit.OpeningRef) ([]audit.Opening, error) {
	stored, err := audit.DecodeOpenings(data)
	if err != nil {
		return nil, fmt.Errorf("%w: openings of entry %d: %w", audit.ErrTampered, refs[0].Index, err)
	}
	n := 0
	for i, o := range stored {
		if slices.ContainsFunc(refs, func(r audit.OpeningRef) bool { return r.Tag == o.Tag }) {
			stored[i] = audit.Opening{Value: make([]byte, len(o.Value))}
			n++
		}
	}
	if n != len(refs) {
		return nil, fmt.Errorf("%w: openings of entry %d are gone", audit.ErrConflict, refs[0].Index)
	}
	return stored, nil
}

// unerased drops what blanked has overwritten: no opening has tag 0.
func unerased(os []audit.Opening) []audit.Opening {
	return slices.DeleteFunc(os, func(o audit.Opening) bool { return o.Tag == 0 })
}

// eraseTogether is a statement for all, as one for each would be a round trip for each
// while everybody waits.
func (t *tx) eraseTogether(gone, changed []int64, left [][]byte) error {
	n, err := t.exec("DELETE FROM opening WHERE idx = ANY(?::bigint[])", gone)
	if err == nil && n != int64(len(gone)) {
		err = audit.ErrConflict
	}
	if err != nil || len(changed) == 0 {
		return err
	}
	n, err = t.exec("UPDATE opening o SET data = x.data FROM unnest(?::bigint[], ?::bytea[]) AS x (idx, data) WHERE o.idx = x.idx", changed, left)
	if err == nil && n != int64(len(changed)) {
		err = audit.ErrConflict
	}
	return err
}

// openingsOf are the rows that openings are taken out of, as far as they are there.
func (t *tx) openingsOf(refs []audit.OpeningRef) (map[int64][]byte, error) {
	out := map[int64][]byte{}
	if t.s.name != "postgres" {
		for _, r := range refs {
			var data []byte
			err := t.row([]any{&data}, "SELECT data FROM opening WHERE idx = ?", int64(r.Index))
			if err == nil {
				out[int64(r.Index)] = data
			} else if !errors.Is(err, audit.ErrNotFound) {
				return nil, err
			}
		}
		return out, nil
	}
	var indexes []int64
	for _, r := range refs {
		indexes = append(indexes, int64(r.Index))
	}
	st, err := t.stmt("SELECT idx, data FROM opening WHERE idx = ANY(?::bigint[])")
	if err != nil {
		return nil, err
	}
	rows, err := st.QueryContext(t.ctx, indexes)
	if err != nil {
		return nil, mapError(err)
	}
	defer rows.Close()
	for rows.Next() {
		var index int64
		var data []byte
		if err := rows.Scan(&index, &data); err != nil {
			return nil, mapError(err)
		}
		out[index] = data
	}
	return out, mapError(rows.Err())
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
		if open = unerased(open); len(open) == 0 {
			return nil
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
