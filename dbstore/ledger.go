package dbstore

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/mattn/go-sqlite3"
	"golang.org/x/mod/sumdb/tlog"

	"chancery/audit"
)

var _ audit.Storage = (*Store)(nil)

// Update implements [audit.Storage]. The transaction begins as a writing one, so
// that the head read in it cannot change before it commits. Once begun it is
// carried through whatever becomes of ctx: a COMMIT or ROLLBACK that is given up
// would leave the one write connection inside the transaction.
func (s *Store) Update(ctx context.Context, fn func(audit.Tx) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", audit.ErrUnavailable, err)
	}
	if s.conn == nil {
		if err := s.connect(ctx); err != nil {
			return unavailable(err)
		}
	}
	t := &tx{ctx: context.WithoutCancel(ctx), s: s, together: together{fast: s.name == "postgres"}}
	if _, err := t.exec(s.begin); err != nil {
		s.lost()
		return fmt.Errorf("%w: beginning: %v", audit.ErrUnavailable, err)
	}
	err := fn(t)
	if err == nil { // what belongs to no leaf
		err = t.store()
	}
	if err != nil {
		err = errors.Join(err, t.rollback())
		if errors.Is(err, audit.ErrUnavailable) {
			s.lost()
		}
		return err
	}
	if _, err := t.exec("COMMIT"); err != nil {
		return t.commitFailed(err)
	}
	return nil
}

// lost gives up a connection that may be broken; the next Update makes a new one.
func (s *Store) lost() {
	if s.name == "postgres" {
		s.disconnect()
	}
}

// commitFailed tells what a failed COMMIT means, see [audit.Storage].
func (t *tx) commitFailed(err error) error {
	var se sqlite3.Error
	var pe *pgconn.PgError
	is := audit.ErrUncertain
	switch {
	case errors.As(err, &se):
		is = commitErrorSQLite(se)
	case errors.As(err, &pe):
		is = audit.ErrUnavailable // the server itself says that it was undone
	case t.s.name == "postgres":
		t.s.disconnect()
		t.s.reconnect()
		return fmt.Errorf("%w: COMMIT: %v", is, err)
	}
	return errors.Join(fmt.Errorf("%w: COMMIT: %v", is, err), t.rollback())
}

func (t *tx) rollback() error {
	if _, err := t.exec("ROLLBACK"); err != nil {
		if t.s.name == "postgres" {
			t.s.disconnect() // the end of its session undoes the transaction
			return nil
		}
		// SQLite itself rolls back on some errors (full disk); there is then nothing left to undo.
		var one int
		if t.s.conn.QueryRowContext(t.ctx, "SELECT 1").Scan(&one) == nil {
			return nil
		}
		return fmt.Errorf("rolling back: %w", err)
	}
	return nil
}

// Item implements [audit.Tx].
func (t *tx) Item(fn func() error) error {
	if t.fast {
		err := fn()
		if err != nil && !errors.Is(err, audit.ErrUnavailable) && !errors.Is(err, audit.ErrTampered) {
			err = fmt.Errorf("%w: %w", audit.ErrTogether, err)
		}
		return err
	}
	if _, err := t.exec("SAVEPOINT item"); err != nil {
		return unavailable(err)
	}
	waiting := len(t.openings)
	ferr := fn()
	if ferr != nil {
		t.openings = t.openings[:waiting]
		if _, err := t.exec("ROLLBACK TO item"); err != nil {
			return unavailable(err)
		}
	}
	if _, err := t.exec("RELEASE item"); err != nil {
		return unavailable(err)
	}
	return ferr
}

func unavailable(err error) error { return fmt.Errorf("%w: %v", audit.ErrUnavailable, err) }

// Head implements [audit.Tx].
func (t *tx) Head() (audit.Head, error) {
	var size int64
	var nodes []byte
	if err := t.row([]any{&size, &nodes}, t.s.head); err != nil {
		return audit.Head{}, unavailable(err)
	}
	return parseHead(size, nodes)
}

func parseHead(size int64, nodes []byte) (audit.Head, error) {
	if size < 0 || len(nodes)%tlog.HashSize != 0 {
		return audit.Head{}, fmt.Errorf("%w: head row", audit.ErrTampered)
	}
	h := audit.Head{Size: uint64(size)}
	for ; len(nodes) > 0; nodes = nodes[tlog.HashSize:] {
		h.Range = append(h.Range, tlog.Hash(nodes[:tlog.HashSize]))
	}
	return h, nil
}

// Append implements [audit.Tx].
func (t *tx) Append(l audit.StoredLeaf) error {
	var closes any
	if l.Closes != audit.NoIndex && t.fast {
		t.closed = append(t.closed, int64(l.Closes))
	} else if l.Closes != audit.NoIndex {
		n, err := t.exec("DELETE FROM ledger_open WHERE idx = ?", int64(l.Closes))
		if err != nil {
			return err
		}
		if n != 1 {
			return fmt.Errorf("%w: intent %d is not open", audit.ErrConflict, l.Closes)
		}
		closes = int64(l.Closes)
	}
	if t.s.name == "postgres" {
		t.leaves = append(t.leaves, l)
		return nil
	}
	if _, err := t.exec("INSERT INTO ledger_leaf (idx, kind, closes, leaf) VALUES (?, ?, ?, ?)", int64(l.Index), int64(l.Kind), closes, l.Bytes); err != nil {
		if errors.Is(err, audit.ErrExists) {
			return fmt.Errorf("%w: leaf %d is there already", audit.ErrTampered, l.Index)
		}
		return err
	}
	if l.Kind == audit.KindIntent {
		_, err := t.exec("INSERT INTO ledger_open (idx, node) VALUES (?, ?)", int64(l.Index), l.Node)
		return err
	}
	return nil
}

// PutTiles implements [audit.Tx].
func (t *tx) PutTiles(tiles []audit.Tile) error {
	for _, x := range tiles {
		if _, err := t.exec("INSERT INTO ledger_tile (level, n, data) VALUES (?, ?, ?)", x.Level, int64(x.N), x.Data); err != nil {
			if errors.Is(err, audit.ErrExists) {
				return fmt.Errorf("%w: tile %d/%d is there already", audit.ErrTampered, x.Level, x.N)
			}
			return err
		}
	}
	return nil
}

// SetHead implements [audit.Tx].
func (t *tx) SetHead(h audit.Head) error {
	if err := t.store(); err != nil {
		return err
	}
	nodes := make([]byte, 0, len(h.Range)*tlog.HashSize)
	for _, n := range h.Range {
		nodes = append(nodes, n[:]...)
	}
	n, err := t.exec("UPDATE ledger_head SET size = ?, nodes = ? WHERE id = 1", int64(h.Size), nodes)
	if err == nil && n != 1 {
		err = fmt.Errorf("%w: there is no head row", audit.ErrTampered)
	}
	return err
}

// Head implements [audit.Reader].
func (s *Store) Head(ctx context.Context) (audit.Head, error) {
	var size int64
	var nodes []byte
	if err := s.rodb.QueryRowContext(ctx, "SELECT size, nodes FROM ledger_head WHERE id = 1").Scan(&size, &nodes); err != nil {
		return audit.Head{}, mapError(err)
	}
	return parseHead(size, nodes)
}

// Leaves implements [audit.Reader].
func (s *Store) Leaves(ctx context.Context, from, to uint64, fn func(uint64, []byte) error) error {
	rows, err := s.rodb.QueryContext(ctx, "SELECT idx, leaf FROM ledger_leaf WHERE idx >= ? AND idx < ? ORDER BY idx", int64(from), int64(to))
	if err != nil {
		return mapError(err)
	}
	defer rows.Close()
	next := from
	for rows.Next() {
		var idx int64
		var leaf sql.RawBytes
		if err := rows.Scan(&idx, &leaf); err != nil {
			return mapError(err)
		}
		if uint64(idx) != next {
			return fmt.Errorf("%w: leaf %d is missing", audit.ErrTampered, next)
		}
		if err := fn(next, append([]byte(nil), leaf...)); err != nil {
			return err
		}
		next++
	}
	if err := rows.Err(); err != nil {
		return mapError(err)
	}
	if next != to {
		return fmt.Errorf("%w: leaf %d is missing", audit.ErrTampered, next)
	}
	return nil
}

// Tile implements [audit.Reader].
func (s *Store) Tile(ctx context.Context, level int, n uint64) ([]byte, error) {
	var data []byte
	err := s.rodb.QueryRowContext(ctx, "SELECT data FROM ledger_tile WHERE level = ? AND n = ?", level, int64(n)).Scan(&data)
	return data, mapError(err)
}

// OpenNodes implements [audit.Storage].
func (s *Store) OpenNodes(ctx context.Context) (out []string, err error) {
	rows, err := s.rodb.QueryContext(ctx, "SELECT DISTINCT node FROM ledger_open ORDER BY node")
	if err != nil {
		return nil, mapError(err)
	}
	defer rows.Close()
	for rows.Next() {
		var node string
		if err := rows.Scan(&node); err != nil {
			return nil, mapError(err)
		}
		out = append(out, node)
	}
	return out, mapError(rows.Err())
}

// OpenIntents implements [audit.Storage].
func (s *Store) OpenIntents(ctx context.Context, node string) ([]audit.StoredLeaf, error) {
	rows, err := s.rodb.QueryContext(ctx, "SELECT o.idx, l.leaf FROM ledger_open o JOIN ledger_leaf l ON l.idx = o.idx WHERE o.node = ? ORDER BY o.idx", node)
	if err != nil {
		return nil, mapError(err)
	}
	defer rows.Close()
	var out []audit.StoredLeaf
	for rows.Next() {
		l := audit.StoredLeaf{Kind: audit.KindIntent, Closes: audit.NoIndex, Node: node}
		if err := rows.Scan(&l.Index, &l.Bytes); err != nil {
			return nil, mapError(err)
		}
		out = append(out, l)
	}
	return out, mapError(rows.Err())
}

// openSerials are the serials, in lower-case hex, that open intents of all nodes name.
func (s *Store) openSerials(ctx context.Context) (map[string]bool, error) {
	rows, err := s.rodb.QueryContext(ctx, "SELECT l.leaf FROM ledger_open o JOIN ledger_leaf l ON l.idx = o.idx")
	if err != nil {
		return nil, mapError(err)
	}
	defer rows.Close()
	out := map[string]bool{}
	for rows.Next() {
		var b []byte
		if err := rows.Scan(&b); err != nil {
			return nil, mapError(err)
		}
		leaf, err := audit.DecodeLeaf(b)
		if err != nil {
			return nil, fmt.Errorf("%w: an open intent: %v", audit.ErrTampered, err)
		}
		if serial, ok := leaf.Get(audit.TagSerial); ok {
			out[hex.EncodeToString(serial)] = true
		}
	}
	return out, mapError(rows.Err())
}

// PutCheckpoint implements [audit.Storage].
func (s *Store) PutCheckpoint(ctx context.Context, size uint64, body, note string) error {
	return s.Update(ctx, func(atx audit.Tx) error {
		t := atx.(*tx)
		var entries int64
		if err := t.row([]any{&entries}, "SELECT size FROM ledger_head WHERE id = 1"); err != nil {
			return err
		}
		if uint64(entries) < size { // a failover between two transactions: its checkpoint must not stay behind
			return fmt.Errorf("checkpoint: %w", audit.Lost(uint64(entries), size))
		}
		if _, err := t.exec("INSERT INTO ledger_checkpoint (size, body, note) VALUES (?, ?, '') ON CONFLICT (size) DO NOTHING", int64(size), body); err != nil {
			return err
		}
		var have string
		if err := t.row([]any{&have}, "SELECT body FROM ledger_checkpoint WHERE size = ?", int64(size)); err != nil {
			return err
		}
		if have != body {
			return fmt.Errorf("%w: checkpoint %d has another body", audit.ErrTampered, size)
		}
		if note == "" {
			return nil
		}
		return t.cas("UPDATE ledger_checkpoint SET note = ? WHERE size = ?", note, int64(size))
	})
}

// LastCheckpoint implements [audit.Storage].
func (s *Store) LastCheckpoint(ctx context.Context) (string, error) {
	var note string
	err := s.rodb.QueryRowContext(ctx, "SELECT note FROM ledger_checkpoint WHERE note <> '' ORDER BY size DESC LIMIT 1").Scan(&note)
	return note, mapError(err)
}
