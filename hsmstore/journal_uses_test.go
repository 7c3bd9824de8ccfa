package hsmstore_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"chancery/hsmstore"
)

// The counts of a journal are read on as it grows; one that was cut, edited or exchanged
// is no witness.
func TestJournalUses(t *testing.T) {
	key, other := [32]byte{1}, [32]byte{2}
	whole := hsmstore.MakeJournal("T1",
		hsmstore.JournalRecord{Kind: hsmstore.JournalProbe, Key: key}, hsmstore.JournalRecord{Kind: hsmstore.JournalIntent, Key: key, Number: 7},
		hsmstore.JournalRecord{Kind: hsmstore.JournalCheckpoint, Key: key, Number: 8}, hsmstore.JournalRecord{Kind: hsmstore.JournalIntent, Key: key, Number: 7},
		hsmstore.JournalRecord{Kind: hsmstore.JournalIntent, Key: key, Number: 9}, hsmstore.JournalRecord{Kind: hsmstore.JournalRandom},
		hsmstore.JournalRecord{Kind: hsmstore.JournalProbe, Key: other})
	size := len(whole) / 8
	path := filepath.Join(t.TempDir(), "journal")
	put := func(b []byte) {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	u, lost := hsmstore.NewJournalUses(path), map[uint64]bool{7: true}
	want := func(exempt, under uint64, known bool) {
		t.Helper()
		if err := u.Read(lost); err != nil {
			t.Fatal(err)
		}
		n, ok := u.Exempt("T1", key)
		if n != exempt || ok != known || u.Under("T1", key, 7) != under || u.Under("T1", key, 9) != 0 {
			t.Errorf("exempt %d (%v), under intent 7 %d; want %d (%v), %d", n, ok, u.Under("T1", key, 7), exempt, known, under)
		}
	}
	want(0, 0, false) // no file yet
	put(whole[:size/2])
	want(0, 0, false) // half a head
	put(whole[:2*size+5])
	want(1, 0, true)
	put(whole[:4*size])
	want(2, 1, true)
	put(whole)
	want(2, 2, true)
	if _, ok := u.Exempt("T2", key); ok || u.Under("T2", key, 7) != 0 {
		t.Error("it speaks for another token")
	}
	if n, ok := u.Exempt("T1", other); n != 1 || !ok {
		t.Errorf("the other key: %d, %v", n, ok)
	}
	put(whole[:6*size])
	if err := u.Read(lost); !errors.Is(err, hsmstore.ErrJournal) {
		t.Errorf("cut: %v", err)
	}
	whole[3*size+20] ^= 1
	put(whole)
	if err := hsmstore.NewJournalUses(path).Read(lost); !errors.Is(err, hsmstore.ErrJournal) {
		t.Errorf("edited: %v", err)
	}
}
