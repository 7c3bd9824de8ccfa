package audit_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"chancery/audit"
)

// What a batch that was never committed left in the journal is no evidence.
func TestJournalKnowsWhatIsCommitted(t *testing.T) {
	line := func(base, index, hash int) string {
		return fmt.Sprintf("%d %d %064x - -\n", base, index, hash)
	}
	for _, c := range []struct {
		what, text string
		want       string
		base       uint64
	}{
		{"one batch, the next tells that it is committed", line(0, 0, 1) + line(0, 1, 2) + line(2, 2, 3), "0:1 1:2", 2},
		{"the last batch is not known to be", line(0, 0, 1), "", 0},
		{"the end tells", line(0, 0, 1) + "1 - - - -\n", "0:1", 1},
		{"tried again with fewer", line(0, 0, 1) + line(0, 1, 2) + line(0, 0, 3) + line(1, 1, 4) + "2 - - - -\n", "0:3 1:4", 2},
		{"never tried again here", line(0, 0, 1) + line(5, 5, 2) + "6 - - - -\n", "5:2", 6},
		{"begins within a batch", "1 - -\n" + line(4, 6, 1) + line(7, 7, 2) + line(8, 8, 3), "7:2", 8},
		{"given up by a recovery", line(0, 0, 1) + line(0, 1, 2) + line(2, 2, 3) + "1 recovering 00 - -\n" + line(1, 1, 5) + line(2, 2, 6) + "3 recovered 00 - -\n" + line(3, 3, 7) + "4 - - - -\n",
			"0:1 1:2 cut 1 false 1:5 2:6 cut 3 true 3:7", 4},
		{"a long recovery", line(0, 0, 1) + "1 recovering 00 - -\n" + line(1, 1, 5) + "2 recovering 00 - -\n" + line(2, 2, 6) + "3 recovered 00 - -\n",
			"0:1 cut 1 false 1:5 cut 2 false 2:6 cut 3 true", 3},
		{"cut off and ended", line(0, 0, 1) + "1 1 00\n" + line(1, 1, 2) + "2 - - - -\n", "0:1 1:2", 2},
	} {
		var got []string
		base, err := audit.ReadJournal(strings.NewReader(c.text), func(i uint64, h tlog.Hash) { got = append(got, fmt.Sprintf("%d:%d", i, h[31])) },
			func(size uint64, whole bool) { got = append(got, fmt.Sprintf("cut %d %t", size, whole)) })
		if err != nil || strings.Join(got, " ") != c.want || base != c.base {
			t.Errorf("%s: %q, base %d, %v; want %q, base %d", c.what, got, base, err, c.want, c.base)
		}
	}
}

// A recovery that revokes so much that its beginning is out of sight is killed: the journal
// still says that it is not whole (AUD-04).
func TestLongRecoveryCutShort(t *testing.T) {
	b := newLedger(t)
	if err := b.journal.BeginRecovery(b.ledger.Head().Size, [32]byte{7}); err != nil {
		t.Fatal(err)
	}
	var f audit.Fields
	f.Hash(audit.TagIssuer, [32]byte{1})
	f.Bytes(audit.TagSerial, bytes.Repeat([]byte{9}, 20))
	for size := 0; size < 5<<19; { // journalTail is 1 MiB
		var wg sync.WaitGroup
		for range 500 {
			wg.Go(func() {
				if _, err := b.ledger.Append(t.Context(), audit.Event(audit.OpRevoke, f)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		st, err := os.Stat(b.path("journal"))
		if err != nil || t.Failed() {
			t.Fatal(err)
		}
		size = int(st.Size())
	}
	b.stop()
	if err := b.open(); !errors.Is(err, audit.ErrTampered) || !strings.Contains(err.Error(), "did not end") {
		t.Fatalf("a ledger starts in the middle of a recovery: %v", err)
	}
}

// FuzzWitnesses feeds the readers of journal and anchor: no panic, and a note that
// passes begins with the origin and has its signature lines.
func FuzzWitnesses(f *testing.F) {
	f.Add([]byte("0 0 " + strings.Repeat("ab", 32) + " - -\n1 - - - -\n"))
	f.Add([]byte("o\n1\nAAAA\n\n\u2014 o x\n\no\n2\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = audit.ReadJournal(bytes.NewReader(b), func(uint64, tlog.Hash) {}, func(uint64, bool) {})
		_ = audit.ReadAnchor(bytes.NewReader(b), "o", func(note string) error {
			if !strings.HasPrefix(note, "o\n") || strings.Count(note, "\n\n") > 1 {
				t.Errorf("%q", note)
			}
			return nil
		})
	})
}

// The database holds the key of the nonces and who asked for what: nobody else on
// the machine reads it.
func TestFilesAreOurs(t *testing.T) {
	onlySQLite(t)
	b := newLedger(t)
	b.checkpoint()
	for _, name := range []string{"x.db", "x.db-wal", "x.db-shm", "journal", "anchor"} {
		if st, err := os.Stat(b.path(name)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, st.Mode(), err)
		}
	}
}
