package dbstore

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"chancery/audit"
	"chancery/web/console/sessions"
)

func (t *tx) applySessions(p audit.Projection) (handled bool, err error) {
	switch p := p.(type) {
	case sessions.Put:
		err = t.putSession(p)
	case sessions.Rotate:
		err = t.cas("UPDATE console_session SET id = ?, form = ?, stepped = ?, seen = ? WHERE id = ?", p.To[:], p.Form, p.At.UnixMicro(), p.At.UnixMicro(), p.From[:])
	case sessions.Touch:
		_, err = t.exec("UPDATE console_session SET seen = ? WHERE id = ? AND seen < ?", p.At.UnixMicro(), p.ID[:], p.At.UnixMicro())
	case sessions.Close:
		_, err = t.exec("DELETE FROM console_session WHERE id = ?", p.ID[:])
	case sessions.Spend:
		if _, err = t.exec("DELETE FROM console_challenge WHERE expires <= ?", p.At.Unix()); err == nil {
			_, err = t.exec("INSERT INTO console_challenge (hash, expires) VALUES (?, ?)", p.Challenge[:], p.Expires.Unix())
		}
	default:
		return false, nil
	}
	return true, err
}

func (t *tx) putSession(p sessions.Put) error {
	for _, step := range []struct {
		query string
		args  []any
	}{
		{"DELETE FROM console_session WHERE id = ? OR seen <= ? OR created <= ?", []any{p.Instead[:], p.Created.Add(-sessions.Idle).UnixMicro(), p.Created.Add(-sessions.Whole).UnixMicro()}},
		{"DELETE FROM console_session WHERE id IN (SELECT id FROM console_session WHERE kind = ? AND subject = ? ORDER BY seen DESC, id LIMIT 1000000 OFFSET ?)", []any{p.Kind, p.Subject, sessions.Each - 1}},
		{"DELETE FROM console_session WHERE id IN (SELECT id FROM console_session ORDER BY seen DESC, id LIMIT 1000000 OFFSET ?)", []any{sessions.Max - 1}},
		{"INSERT INTO console_session (id, kind, subject, credential, entry, created, seen, stepped, form, roles, op) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
			[]any{p.ID[:], p.Kind, p.Subject, p.Credential, p.Entry[:], p.Created.UnixMicro(), p.Seen.UnixMicro(), p.Stepped.UnixMicro(), p.Form, p.Roles, p.Op[:]}},
	} {
		if _, err := t.exec(step.query, step.args...); err != nil {
			return err
		}
	}
	return nil
}

// Sessions keeps the console's sessions, for all nodes: it reads from the store, and writes
// in the queue of the ledger, as all else is written.
type Sessions struct {
	Store  *Store
	Ledger interface {
		Write(ctx context.Context, p ...audit.Projection) error
	}
}

// Session finds a session; none is audit.ErrNotFound. Whether it has ended is the caller's
// to see.
func (s Sessions) Session(ctx context.Context, id sessions.ID) (out sessions.Session, err error) {
	found := audit.ErrNotFound
	err = s.Store.each(ctx, func(rows *sql.Rows) error {
		found = nil
		var entry, op []byte
		var created, seen, stepped int64
		if err := rows.Scan(&out.Kind, &out.Subject, &out.Credential, &entry, &created, &seen, &stepped, &out.Form, &out.Roles, &op); err != nil {
			return err
		}
		if copy(out.Op[:], op) != len(out.Op) {
			return fmt.Errorf("%w: the row of a session cannot be read", audit.ErrTampered)
		}
		out.Entry = hash32(entry)
		out.Created, out.Seen, out.Stepped = time.UnixMicro(created).UTC(), time.UnixMicro(seen).UTC(), time.UnixMicro(stepped).UTC()
		return nil
	}, "SELECT kind, subject, credential, entry, created, seen, stepped, form, roles, op FROM console_session WHERE id = ?", id[:])
	if err == nil {
		err = found
	}
	return out, err
}

// Write makes changes durable, all or none.
func (s Sessions) Write(ctx context.Context, p ...audit.Projection) error {
	return s.Ledger.Write(ctx, p...)
}
