package dbstore_test

import (
	"errors"
	"slices"
	"testing"

	"chancery/audit"
	"chancery/hsmstore"
)

// A recipient and its keys, and what a second designation does to them.
func TestBackupRows(t *testing.T) {
	r := newACMERoom(t)
	ctx := t.Context()
	if err := r.led.Genesis(ctx, audit.Genesis{Random: [32]byte{1}, Dev: true, Domain: "d.example", Acts: []string{"x"}}); err != nil {
		t.Fatal(err)
	}
	record := func(want error, p audit.Projection) {
		t.Helper()
		var f audit.Fields
		f.Text(audit.TagRecipient, "far")
		if _, err := r.led.Append(ctx, audit.Event(audit.OpBackup, f), p); !errors.Is(err, want) {
			t.Fatalf("%T: got %v, want %v", p, err, want)
		}
	}
	far := hsmstore.RecipientRecord{Name: "far", Serial: "5e71a1", Label: "far away"}
	blob := hsmstore.BackupRecord{Key: hsmstore.KeyID{9}, Recipient: "far", Way: 2, KEK: hsmstore.BackupKEK{KeyType: 3, CKAID: []byte{1}, KCV: []byte{2}}, Blob: []byte("wrapped")}
	record(nil, hsmstore.PutRecipient{RecipientRecord: far})
	record(nil, hsmstore.PutBackup{BackupRecord: blob})
	record(audit.ErrExists, hsmstore.PutBackup{BackupRecord: blob})
	all, err := r.store.Recipients(ctx)
	if err != nil || len(all) != 1 || all[0].Serial != far.Serial || all[0].Label != far.Label || all[0].Removed || all[0].Leaf == 0 {
		t.Fatalf("%+v %v", all, err)
	}
	if got, err := r.store.Backups(ctx, "far"); err != nil || len(got) != 1 || got[0].Key != blob.Key || got[0].Way != 2 || got[0].KEK.KeyType != 3 || string(got[0].Blob) != "wrapped" {
		t.Fatalf("%+v %v", got, err)
	}
	if got, err := r.store.BackupHolders(ctx, blob.Key); err != nil || !slices.Equal(got, []string{"far"}) {
		t.Fatalf("%v %v", got, err)
	}
	record(nil, hsmstore.RecipientRemoved{Name: "far"})
	record(audit.ErrConflict, hsmstore.RecipientRemoved{Name: "far"})
	if all, err = r.store.Recipients(ctx); err != nil || !all[0].Removed {
		t.Fatalf("%+v %v", all, err)
	}
	// Designated anew it still has what it had; another token does not take its name.
	first := all[0].Leaf
	record(nil, hsmstore.PutRecipient{RecipientRecord: far})
	other := far
	other.Serial = "0"
	record(audit.ErrExists, hsmstore.PutRecipient{RecipientRecord: other})
	if got, err := r.store.Backups(ctx, "far"); err != nil || len(got) != 1 {
		t.Fatalf("%+v %v", got, err)
	}
	if all, err = r.store.Recipients(ctx); err != nil || len(all) != 1 || all[0].Removed || all[0].Leaf <= first {
		t.Fatalf("%+v %v", all, err)
	}
}
