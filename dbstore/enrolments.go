package dbstore

import (
	"context"
	"database/sql"
	"encoding/json/v2"
	"fmt"
	"time"

	"chancery/admin"
	"chancery/audit"
)

var _ admin.EnrolmentStorage = (*Store)(nil)

func (t *tx) putEnrolment(p admin.PutEnrolment) error {
	roles, err := json.Marshal(p.Roles)
	if err != nil {
		return err
	}
	_, err = t.exec("INSERT INTO enrolment (id, secret, name, roles, made_by, created, expires, state) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
		p.ID, p.Hash[:], p.Name, string(roles), p.By, p.Created.Unix(), p.Expires.Unix(), admin.EnrolmentOpen)
	return err
}

// addPasskey first writes the enrolment's own row: that locks it until the commit.
func (t *tx) addPasskey(p admin.AddPasskey) error {
	err := t.cas("UPDATE enrolment SET state = state WHERE id = ? AND state = ? AND expires > ?", p.ID, admin.EnrolmentOpen, p.At.Unix())
	if err != nil {
		return err
	}
	_, err = t.exec("INSERT INTO enrolment_passkey (credential, enrolment, spki, label, made) VALUES (?, ?, ?, ?, ?)", p.Passkey.ID, p.ID, p.Passkey.SPKI, p.Passkey.Label, p.At.UnixMicro())
	return err
}

// closeEnrolment first writes the enrolment's own row, as addPasskey does: what is counted
// then stays so.
func (t *tx) closeEnrolment(p admin.CloseEnrolment, at *audit.StoredLeaf) error {
	err := t.cas("UPDATE enrolment SET state = ?, leaf = ? WHERE id = ? AND state = ?", p.To, int64(at.Index), p.ID, admin.EnrolmentOpen)
	if err != nil || p.To != admin.EnrolmentDone {
		return err
	}
	return t.cas("UPDATE enrolment SET state = state WHERE id = ? AND (SELECT COUNT(*) FROM enrolment_passkey p WHERE p.enrolment = ?) = ?", p.ID, p.ID, p.Passkeys)
}

const enrolmentColumns = "SELECT id, name, roles, made_by, created, expires, state, leaf FROM enrolment "

func scanEnrolment(rows *sql.Rows) (e admin.Enrolment, err error) {
	var roles string
	var created, expires, leaf int64
	if err := rows.Scan(&e.ID, &e.Name, &roles, &e.By, &created, &expires, &e.State, &leaf); err != nil {
		return e, err
	}
	e.Leaf = uint64(leaf)
	e.Created, e.Expires = time.Unix(created, 0).UTC(), time.Unix(expires, 0).UTC()
	if err := json.Unmarshal([]byte(roles), &e.Roles); err != nil {
		return e, fmt.Errorf("%w: the roles of enrolment %s cannot be read", audit.ErrTampered, e.ID)
	}
	return e, nil
}

// Enrolment implements [admin.EnrolmentStorage].
func (s *Store) Enrolment(ctx context.Context, hash [32]byte) (admin.Enrolment, error) {
	found, err := s.enrolments(ctx, enrolmentColumns+"WHERE secret = ?", hash[:])
	if err == nil && len(found) == 0 {
		err = audit.ErrNotFound
	}
	if err != nil {
		return admin.Enrolment{}, err
	}
	return found[0], nil
}

// Enrolments implements [admin.EnrolmentStorage]. One that is open ends later than any was
// made; one that expired does not.
func (s *Store) Enrolments(ctx context.Context, limit int) ([]admin.Enrolment, error) {
	return s.enrolments(ctx, enrolmentColumns+"ORDER BY CASE WHEN state = ? THEN expires ELSE created END DESC, id LIMIT ?", admin.EnrolmentOpen, limit)
}

func (s *Store) enrolments(ctx context.Context, query string, args ...any) (out []admin.Enrolment, err error) {
	err = s.each(ctx, func(rows *sql.Rows) error {
		e, err := scanEnrolment(rows)
		out = append(out, e)
		return err
	}, query, args...)
	if err != nil {
		return nil, err
	}
	for i := range out {
		e := &out[i]
		err := s.each(ctx, func(rows *sql.Rows) error {
			var k admin.Passkey
			err := rows.Scan(&k.ID, &k.SPKI, &k.Label)
			e.Passkeys = append(e.Passkeys, k)
			return err
		}, "SELECT credential, spki, label FROM enrolment_passkey WHERE enrolment = ? ORDER BY made, credential", e.ID)
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}
