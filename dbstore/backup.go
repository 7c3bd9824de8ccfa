package dbstore

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"

	"chancery/audit"
	"chancery/hsmstore"
)

var _ hsmstore.BackupStore = (*Store)(nil)

func (t *tx) applyBackup(p audit.Projection, at *audit.StoredLeaf) (handled bool, err error) {
	switch p := p.(type) {
	case hsmstore.PutRecipient:
		err = t.putRecipient(p, at)
	case hsmstore.RecipientRemoved:
		err = t.cas("UPDATE hsm_recipient SET removed = 1 WHERE name = ? AND removed = 0", p.Name)
	case hsmstore.PutBackup:
		_, err = t.exec("INSERT INTO hsm_backup (key_id, recipient, way, blob, leaf) VALUES (?, ?, ?, ?, ?)", p.Key[:], p.Recipient, p.Way, p.Blob, int64(at.Index))
	default:
		return false, nil
	}
	return true, err
}

// putRecipient replaces a recipient of that name together with what it had: other KEKs
// do not open it.
func (t *tx) putRecipient(p hsmstore.PutRecipient, at *audit.StoredLeaf) error {
	keks, err := json.Marshal(p.KEKs)
	if err != nil {
		return err
	}
	for _, drop := range []string{"DELETE FROM hsm_backup WHERE recipient = ?", "DELETE FROM hsm_recipient WHERE name = ?"} {
		if _, err := t.exec(drop, p.Name); err != nil {
			return err
		}
	}
	_, err = t.exec("INSERT INTO hsm_recipient (name, serial, label, keks, removed, leaf) VALUES (?, ?, ?, ?, ?, ?)", p.Name, p.Serial, p.Label, string(keks), flag(p.Removed), int64(at.Index))
	return err
}

// Recipients implements [hsmstore.BackupStore].
func (s *Store) Recipients(ctx context.Context) (out []hsmstore.RecipientRecord, err error) {
	err = s.each(ctx, func(rows *sql.Rows) error {
		var r hsmstore.RecipientRecord
		var keks string
		var removed int
		if err := rows.Scan(&r.Name, &r.Serial, &r.Label, &keks, &removed); err != nil {
			return err
		}
		r.Removed = removed == 1
		if err := json.Unmarshal([]byte(keks), &r.KEKs); err != nil {
			return fmt.Errorf("row of backup recipient %s: %w", r.Name, err)
		}
		out = append(out, r)
		return nil
	}, "SELECT name, serial, label, keks, removed FROM hsm_recipient ORDER BY name")
	return out, err
}

// Backups implements [hsmstore.BackupStore].
func (s *Store) Backups(ctx context.Context, recipient string) (out []hsmstore.BackupRecord, err error) {
	err = s.each(ctx, func(rows *sql.Rows) error {
		b := hsmstore.BackupRecord{Recipient: recipient}
		var id []byte
		if err := rows.Scan(&id, &b.Way, &b.Blob); err != nil {
			return err
		}
		copy(b.Key[:], id)
		out = append(out, b)
		return nil
	}, "SELECT key_id, way, blob FROM hsm_backup WHERE recipient = ? ORDER BY leaf", recipient)
	return out, err
}

// BackupHolders names the recipients that have a key, removed ones included.
func (s *Store) BackupHolders(ctx context.Context, key hsmstore.KeyID) (out []string, err error) {
	err = s.each(ctx, func(rows *sql.Rows) error {
		var name string
		err := rows.Scan(&name)
		out = append(out, name)
		return err
	}, "SELECT recipient FROM hsm_backup WHERE key_id = ? ORDER BY recipient", key[:])
	return out, err
}
