package hsmstore

import "context"

// RecipientRecord is what the database knows of a backup recipient: a token outside the
// cluster that keys are wrapped to.
type RecipientRecord struct {
	Name    string
	Serial  string // token serial number (PKCS#11 CK_TOKEN_INFO)
	Label   string // token label
	Leaf    uint64 // index of the leaf of its designation; as a projection: 0, the leaf at hand is meant
	Removed bool   // new keys are not wrapped to it any more; what it has stays
}

// BackupRecord is one key, wrapped to one recipient.
type BackupRecord struct {
	Key       KeyID
	Recipient string
	Way       int       // index into the ways of wrapping; kept in manifests, so never renumbered
	KEK       BackupKEK // that unwraps it, on the recipient's token
	Blob      []byte    // opens only inside the recipient's token
}

// PutRecipient stores a recipient with the OpBackup leaf of its designation. What it had
// before, if it was designated and removed, stays. audit.ErrExists if the name is that of
// another token.
type PutRecipient struct{ RecipientRecord }

// RecipientRemoved ends a designation, with its leaf. audit.ErrConflict if there is none.
type RecipientRemoved struct{ Name string }

// PutBackup stores a wrapped key with its OpBackup leaf. audit.ErrExists if the
// recipient has the key.
type PutBackup struct{ BackupRecord }

// Projection marks the types as audit.Projection; dbstore carries them out.
func (PutRecipient) Projection()     {}
func (RecipientRemoved) Projection() {}
func (PutBackup) Projection()        {}

// BackupStore reads what these projections have committed.
type BackupStore interface {
	// Recipients are all, by name, also those that were removed.
	Recipients(ctx context.Context) ([]RecipientRecord, error)
	// Backups are the keys that a recipient has, in no order.
	Backups(ctx context.Context, recipient string) ([]BackupRecord, error)
}
