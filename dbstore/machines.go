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

var _ admin.MachineStorage = (*Store)(nil)

func (t *tx) putMachine(p admin.PutMachine) error {
	roles, err := json.Marshal(p.Roles)
	if err != nil {
		return err
	}
	var n int
	if err := t.row([]any{&n}, "SELECT count(*) FROM machine WHERE name = ? AND revoked = 0 AND expires > ?", p.Name, p.Created.Unix()); err != nil {
		return err
	}
	if n > 0 {
		return fmt.Errorf("%w: the name of a machine", audit.ErrExists)
	}
	if p.Kind == admin.MachineCertificate {
		if err := t.row([]any{&n}, "SELECT count(*) FROM machine WHERE kind = ? AND issuer = ? AND secret = ? AND revoked = 0", string(p.Kind), p.Issuer[:], p.Secret[:]); err != nil {
			return err
		}
		if n > 0 {
			return fmt.Errorf("%w: the certificate of a machine", audit.ErrExists)
		}
	}
	_, err = t.exec("INSERT INTO machine (id, name, kind, secret, issuer, roles, owner, created, expires, last_used, revoked) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0)",
		p.ID, p.Name, string(p.Kind), p.Secret[:], p.Issuer[:], string(roles), p.Owner, p.Created.Unix(), p.Expires.Unix())
	return err
}

const machineColumns = "SELECT id, name, kind, secret, issuer, roles, owner, created, expires, last_used, revoked FROM machine "

func (s *Store) machines(ctx context.Context, query string, args ...any) (out []admin.Machine, err error) {
	err = s.each(ctx, func(rows *sql.Rows) error {
		var m admin.Machine
		var kind, roles string
		var secret, issuer []byte
		var created, expires, used, revoked int64
		if err := rows.Scan(&m.ID, &m.Name, &kind, &secret, &issuer, &roles, &m.Owner, &created, &expires, &used, &revoked); err != nil {
			return err
		}
		m.Kind, m.Secret, m.Issuer = admin.MachineKind(kind), hash32(secret), hash32(issuer)
		m.Created, m.Expires = time.Unix(created, 0).UTC(), time.Unix(expires, 0).UTC()
		if used > 0 {
			m.LastUsed = time.Unix(used, 0).UTC()
		}
		if revoked > 0 {
			m.Revoked = time.Unix(revoked, 0).UTC()
		}
		if err := json.Unmarshal([]byte(roles), &m.Roles); err != nil {
			return fmt.Errorf("%w: the roles of machine %s cannot be read", audit.ErrTampered, m.ID)
		}
		out = append(out, m)
		return nil
	}, query, args...)
	return out, err
}

func (s *Store) machine(ctx context.Context, query string, args ...any) (admin.Machine, error) {
	found, err := s.machines(ctx, query, args...)
	if err == nil && len(found) == 0 {
		err = audit.ErrNotFound
	}
	if err != nil {
		return admin.Machine{}, err
	}
	return found[0], nil
}

// Machine implements [admin.MachineStorage].
func (s *Store) Machine(ctx context.Context, id string) (admin.Machine, error) {
	return s.machine(ctx, machineColumns+"WHERE id = ?", id)
}

// MachineByCertificate implements [admin.MachineStorage].
func (s *Store) MachineByCertificate(ctx context.Context, issuer, spki [32]byte) (admin.Machine, error) {
	return s.machine(ctx, machineColumns+"WHERE kind = ? AND issuer = ? AND secret = ? AND revoked = 0", string(admin.MachineCertificate), issuer[:], spki[:])
}

// Machines implements [admin.MachineStorage].
func (s *Store) Machines(ctx context.Context, limit int) ([]admin.Machine, error) {
	return s.machines(ctx, machineColumns+"ORDER BY CASE WHEN revoked = 0 THEN expires ELSE 0 END DESC, created DESC, id LIMIT ?", limit)
}

// LiveMachines implements [admin.MachineStorage].
func (s *Store) LiveMachines(ctx context.Context, at time.Time) ([]admin.Machine, error) {
	return s.machines(ctx, machineColumns+"WHERE revoked = 0 AND expires > ? ORDER BY created DESC, id", at.Unix())
}
