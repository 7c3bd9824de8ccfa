package dbstore

import (
	"context"

	"chancery/audit"
	"chancery/ca"
)

// applyRestore carries out what a new ledger takes over from a predecessor, and what a
// ledger does that goes on from an older database.
func (t *tx) applyRestore(p audit.Projection, at *audit.StoredLeaf) (handled bool, err error) {
	switch p := p.(type) {
	case ca.PutRestoredIssuer:
		_, err = t.exec("INSERT INTO issuer (name, spki_hash, key_name, parent, der, crl_number, crl_this, crl_next, crl_cover) VALUES (?, ?, ?, ?, ?, ?, ?, 0, 0)",
			p.Name, p.SPKI[:], p.KeyName, p.Parent, p.DER, int64(p.CRLNumber), p.CRLThis.Unix())
	case ca.CarryRevocation:
		err = t.putRevocation(ca.RevokeSerial{Issuer: p.Issuer, Serial: p.Serial, Reason: p.Reason, At: p.At}, p.NotAfter.Unix(), at)
	case audit.PutRecovery:
		_, err = t.exec("INSERT INTO ledger_recovery (leaf) VALUES (?)", int64(at.Index))
		if err == nil { // those of a lost tail would stand in the way of the new entries'
			_, err = t.exec("DELETE FROM ledger_checkpoint WHERE size > ?", int64(at.Index))
		}
	case ca.RaiseCRLs:
		err = t.cas("UPDATE issuer SET crl_number = ?, crl_this = ? WHERE spki_hash = ? AND crl_number < ? AND crl_this <= ?",
			int64(p.Number), p.This.Unix(), p.Issuer[:], int64(p.Number), p.This.Unix())
	case ca.LoseSerial:
		if _, err = t.exec("INSERT INTO serial (issuer, serial, intent, not_after) VALUES (?, ?, ?, ?)", p.Issuer[:], p.Serial, int64(at.Index), p.NotAfter.Unix()); err == nil {
			err = t.putRevocation(ca.RevokeSerial{Issuer: p.Issuer, Serial: p.Serial, Reason: p.Reason, At: p.At}, p.NotAfter.Unix(), at)
		}
	default:
		return false, nil
	}
	return true, err
}

// Recoveries implements [audit.Storage].
func (s *Store) Recoveries(ctx context.Context) (out []uint64, err error) {
	rows, err := s.rodb.QueryContext(ctx, "SELECT leaf FROM ledger_recovery ORDER BY leaf")
	if err != nil {
		return nil, mapError(err)
	}
	defer rows.Close()
	for rows.Next() {
		var leaf uint64
		if err := rows.Scan(&leaf); err != nil {
			return nil, mapError(err)
		}
		out = append(out, leaf)
	}
	return out, mapError(rows.Err())
}
