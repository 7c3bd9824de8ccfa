package dbstore

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"chancery/audit"
	"chancery/hsmstore"
)

func (t *tx) applyKeys(p audit.Projection, at *audit.StoredLeaf) (handled bool, err error) {
	switch p := p.(type) {
	case hsmstore.PutKey:
		hash := hashOf(p.SPKI)
		_, err = t.exec("INSERT INTO hsm_key (id, name, purpose, algorithm, spki, spki_hash, subject, origin, members, birth, usable) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)",
			p.ID[:], p.Name, int(p.Purpose), p.Algorithm, p.SPKI, hash[:], p.Subject, p.Origin, strings.Join(p.Members, ","), int64(at.Index))
	case hsmstore.KeyCopied:
		err = t.keyCopied(p)
	case hsmstore.KeyUsable:
		err = t.cas("UPDATE hsm_key SET usable = 1 WHERE id = ?", p.ID[:])
	case hsmstore.PutMember:
		_, err = t.exec("INSERT INTO hsm_member (name, serial, label, leaf) VALUES (?, ?, ?, ?)", p.Name, p.Serial, p.Label, int64(at.Index))
	default:
		return false, nil
	}
	return true, err
}

func (t *tx) keyCopied(p hsmstore.KeyCopied) error {
	var members string
	if err := t.row([]any{&members}, "SELECT members FROM hsm_key WHERE id = ?", p.ID[:]); err != nil {
		return err
	}
	list := strings.Split(members, ",")
	if slices.Contains(list, p.Member) {
		return fmt.Errorf("key %x on member %s: %w", p.ID, p.Member, audit.ErrExists)
	}
	return t.cas("UPDATE hsm_key SET members = ? WHERE id = ?", strings.Join(append(list, p.Member), ","), p.ID[:])
}

// Keys returns the keys of the cluster in the order of their birth.
func (s *Store) Keys(ctx context.Context) ([]hsmstore.KeyRecord, error) {
	rows, err := s.rodb.QueryContext(ctx, "SELECT id, name, purpose, algorithm, spki, subject, origin, members, birth, usable FROM hsm_key ORDER BY birth")
	if err != nil {
		return nil, mapError(err)
	}
	defer rows.Close()
	var out []hsmstore.KeyRecord
	for rows.Next() {
		var k hsmstore.KeyRecord
		var id []byte
		var members string
		if err := rows.Scan(&id, &k.Name, &k.Purpose, &k.Algorithm, &k.SPKI, &k.Subject, &k.Origin, &members, &k.Birth, &k.Usable); err != nil {
			return nil, mapError(err)
		}
		copy(k.ID[:], id)
		k.Members = strings.Split(members, ",")
		out = append(out, k)
	}
	return out, mapError(rows.Err())
}

// Members returns the enrolled HSM members.
func (s *Store) Members(ctx context.Context) ([]hsmstore.MemberRecord, error) {
	rows, err := s.rodb.QueryContext(ctx, "SELECT name, serial, label FROM hsm_member ORDER BY leaf")
	if err != nil {
		return nil, mapError(err)
	}
	defer rows.Close()
	var out []hsmstore.MemberRecord
	for rows.Next() {
		var m hsmstore.MemberRecord
		if err := rows.Scan(&m.Name, &m.Serial, &m.Label); err != nil {
			return nil, mapError(err)
		}
		out = append(out, m)
	}
	return out, mapError(rows.Err())
}
