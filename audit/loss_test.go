package audit_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"testing"

	"chancery/audit"
)

// What is lost is counted from the beginning of a recovery that was cut short, by anchors
// as well as by the journal, and not again when a recovery was whole.
func TestFindLoss(t *testing.T) {
	b := newLedger(t)
	b.fill(10) // 20 entries behind leaf 0
	b.checkpoint()
	b.stop()
	line := func(base, index int) string { return fmt.Sprintf("%d %d %064x - -\n", base, index, 1) }
	mark := func(size int, what string) string { return fmt.Sprintf("%d %s %064x - -\n", size, what, 7) }
	for _, c := range []struct {
		what, journal string
		common, known uint64
		begun         bool
	}{
		{"nothing", "21 - - - -\n", 21, 21, false},
		{"the tail", line(20, 30) + line(31, 31), 21, 32, false},
		{"known by its end only", "40 - - - -\n", 21, 40, false},
		{"one that differs", line(15, 15) + line(16, 16), 15, 21, false},
		{"begun", line(15, 15) + line(40, 40) + mark(15, "recovering"), 15, 41, true},
		{"begun, with entries of its own", line(21, 22) + line(23, 23) + mark(19, "recovering") + line(21, 70) + mark(50, "recovering"), 19, 24, true},
		{"whole", line(40, 40) + mark(15, "recovering") + mark(18, "recovered") + line(18, 18), 21, 21, false},
		{"whole, and lost again", line(40, 90) + mark(15, "recovering") + mark(18, "recovered") + line(30, 30), 21, 31, false},
	} {
		path := b.path("another")
		if err := os.WriteFile(path, []byte(c.journal), 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := audit.OpenJournal(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.open(); err != nil {
			t.Fatal(err)
		}
		l, err := audit.FindLoss(context.Background(), b.db, j, b.path("anchor"), 0, nil)
		j.Close()
		b.stop()
		if err != nil || l.Size != 21 || l.Common != c.common || l.Known != c.known || l.Begun != c.begun {
			t.Errorf("%s: common %d, known %d, begun %t, %v", c.what, l.Common, l.Known, l.Begun, err)
		}
	}
}

// Who has the database alone cannot excuse the anchored checkpoints with a recovery that no
// officer signed (AUD-04).
func TestAttack_AUD_04_ForgedRecovery(t *testing.T) {
	b := newLedger(t)
	b.fill(3)
	b.checkpoint()
	var f audit.Fields
	f.Uint64(audit.TagCommon, 0)
	f.Uint64(audit.TagKnown, 1<<40)
	f.Hash(audit.TagGrant, [32]byte{7})
	f.List(audit.TagWarrant, []byte("proposal"), []byte("vote"))
	if _, err := b.ledger.Append(t.Context(), audit.Event(audit.OpRecovery, f), audit.PutRecovery{}); err != nil {
		t.Fatal(err)
	}
	b.stop()
	if err := b.open(); !errors.Is(err, audit.ErrTampered) {
		t.Fatalf("a ledger with a forged recovery starts: %v", err)
	}
}

// A checkpoint of entries that the database lost, as when it failed over between two
// transactions, is not stored; one that was stored goes with the recovery.
func TestCheckpointOfLostEntries(t *testing.T) {
	onlySQLite(t)
	b := newLedger(t)
	b.fill(3)
	size := b.ledger.Head().Size
	body := func(size uint64) string { return string(audit.Head{Size: size}.Body(b.ledger.Origin())) }
	if err := b.db.PutCheckpoint(t.Context(), size+1, body(size+1), ""); !errors.Is(err, audit.ErrTampered) {
		t.Errorf("a checkpoint above the head is stored: %v", err)
	}
	raw, err := sql.Open("sqlite3", b.path("x.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if _, err := raw.Exec("INSERT INTO ledger_checkpoint (size, body, note) VALUES (?, ?, '')", size+1, body(size+1)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.ledger.Append(t.Context(), audit.Event(audit.OpRecovery, audit.Fields{}), audit.PutRecovery{}); err != nil {
		t.Fatal(err)
	}
	if err := b.db.Checkpoints(t.Context(), func(size uint64, _, _ string) error { return fmt.Errorf("checkpoint %d is still there", size) }); err != nil {
		t.Error(err)
	}
	b.checkpoint()
}
