package dbstore

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
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
		err = t.putBackup(p, at)
	default:
		return false, nil
	}
	return true, err
}

// putRecipient also designates one anew that was removed; what it had stays.
func (t *tx) putRecipient(p hsmstore.PutRecipient, at *audit.StoredLeaf) error {
	err := t.cas("UPDATE hsm_recipient SET label = ?, removed = ?, leaf = ? WHERE name = ? AND serial = ?", p.Label, flag(p.Removed), int64(at.Index), p.Name, p.Serial)
	if !errors.Is(err, audit.ErrConflict) {
		return err
	}
	_, err = t.exec("INSERT INTO hsm_recipient (name, serial, label, removed, leaf) VALUES (?, ?, ?, ?, ?)", p.Name, p.Serial, p.Label, flag(p.Removed), int64(at.Index))
	return err
}

func (t *tx) putBackup(p hsmstore.PutBackup, at *audit.StoredLeaf) error {
	kek, err := json.Marshal(p.KEK)
	if err != nil {
		return err
	}
	_, err = t.exec("INSERT INTO hsm_backup (key_id, recipient, way, kek, blob, leaf) VALUES (?, ?, ?, ?, ?, ?)", p.Key[:], p.Recipient, p.Way, string(kek), p.Blob, int64(at.Index))
	return err
}

// Recipients implements [hsmstore.BackupStore].
func (s *Store) Recipients(ctx context.Context) (out []hsmstore.RecipientRecord, err error) {
	err = s.each(ctx, func(rows *sql.Rows) error {
		var r hsmstore.RecipientRecord
		var removed int
		if err := rows.Scan(&r.Name, &r.Serial, &r.Label, &removed, &r.Leaf); err != nil {
			return err
		}
		r.Removed = removed == 1
		out = append(out, r)
		return nil
	}, "SELECT name, serial, label, removed, leaf FROM hsm_recipient ORDER BY name")
	return out, err
}

// Backups implements [hsmstore.BackupStore].
func (s *Store) Backups(ctx context.Context, recipient string) (out []hsmstore.BackupRecord, err error) {
	err = s.each(ctx, func(rows *sql.Rows) error {
		b := hsmstore.BackupRecord{Recipient: recipient}
		var id []byte
		var kek string
		if err := rows.Scan(&id, &b.Way, &kek, &b.Blob); err != nil {
			return err
		}
		if err := json.Unmarshal([]byte(kek), &b.KEK); err != nil {
			return fmt.Errorf("a backup of recipient %s: its KEK: %w", recipient, err)
		}
		copy(b.Key[:], id)
		out = append(out, b)
		return nil
	}, "SELECT key_id, way, kek, blob FROM hsm_backup WHERE recipient = ? ORDER BY leaf", recipient)
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
