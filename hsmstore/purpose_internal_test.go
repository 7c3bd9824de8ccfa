package hsmstore

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"chancery/audit"
)

// The text of a key proof can never change (ENCODINGS).
func TestProofTextVector(t *testing.T) {
	got := proofText(audit.LedgerID{0xaa}, [32]byte{0xbb}, "5e4a", [32]byte{0xcc})
	const zeros = "00000000000000000000000000000000000000000000000000000000000000"
	want := "chancery/key-proof/v1\naa" + zeros + "\nbb" + zeros + "\n5e4a\ncc" + zeros + "\n"
	if string(got) != want {
		t.Errorf("%q", got)
	}
}

func TestJournalChain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j, err := openJournal(path, "s1")
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(3 * journalTail) {
		kind := JournalIntent
		if i == 10 {
			kind = JournalCheckpoint
		}
		if err := j.append(JournalRecord{Kind: kind, Key: [32]byte{1}, Number: i}); err != nil {
			t.Fatal(err)
		}
	}
	if r, ok, err := j.lastCheckpoint([32]byte{1}); !ok || err != nil || r.Number != 10 {
		t.Errorf("last checkpoint: %+v %v %v", r, ok, err)
	}
	if _, ok, _ := j.lastCheckpoint([32]byte{2}); ok {
		t.Error("found a checkpoint of a key that signed none")
	}
	last := j.last
	j.f.Close()

	// A record cut short by a crash is cut off.
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(bytes.Clone(whole), 1, 2, 3), 0o600); err != nil {
		t.Fatal(err)
	}
	if j, err = openJournal(path, "s1"); err != nil || j.last != last {
		t.Fatalf("reopened at %+v: %v", j, err)
	}
	if err := j.append(JournalRecord{Kind: JournalProbe}); err != nil {
		t.Fatal(err)
	}
	j.f.Close()
	recs, err := ReadJournal(path)
	if err != nil || len(recs) != 3*journalTail+1 || recs[len(recs)-1].Seq != uint64(len(recs)) {
		t.Fatalf("%d records: %v", len(recs), err)
	}
	if _, err := openJournal(path, "s2"); err == nil {
		t.Error("opened the journal of another token")
	}
	whole, err = os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{20, 200, len(whole) - 200, len(whole) - 1} {
		bad := bytes.Clone(whole)
		bad[at] ^= 1
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadJournal(path); err == nil {
			t.Errorf("a flipped bit at %d was not seen by ReadJournal", at)
		}
		if _, err := openJournal(path, "s1"); err == nil && at != 200 {
			t.Errorf("a flipped bit at %d was not seen by openJournal", at)
		}
	}
}
