package hsmstore

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// JournalUses counts, from a worker's journal, the uses of keys that have no intent. It
// reads on where it stopped.
type JournalUses struct {
	path  string
	next  uint64 // record to be read next
	chain [32]byte
	token [32]byte // SHA-256 of the token's serial number
	uses  map[[32]byte]uint64
	under map[underIntent]uint64
}

type underIntent struct {
	key    [32]byte
	intent uint64
}

// NewJournalUses counts nothing yet.
func NewJournalUses(path string) *JournalUses { return &JournalUses{path: path} }

// Read reads what is new, and of uses under an intent counts those of the intents lost. A journal that is not there has nothing; one that became
// shorter, or breaks its chain, wraps [ErrJournal].
func (u *JournalUses) Read(lost map[uint64]bool) error {
	f, err := os.Open(u.path)
	if errors.Is(err, fs.ErrNotExist) && u.next == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading worker journal: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	size := st.Size() / journalRecord * journalRecord // a last record may be half written
	if size < int64(u.next)*journalRecord {
		return fmt.Errorf("%w: %s was cut to %d records, there were %d", ErrJournal, u.path, size/journalRecord, u.next)
	}
	in := io.NewSectionReader(f, int64(u.next)*journalRecord, size-int64(u.next)*journalRecord)
	buf := make([]byte, 1024*journalRecord)
	for {
		n, err := io.ReadFull(in, buf)
		for b := buf[:n]; len(b) >= journalRecord; b = b[journalRecord:] {
			if err := u.add(b[:journalRecord], lost); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return fmt.Errorf("reading worker journal: %w", err)
		}
	}
}

func (u *JournalUses) add(raw []byte, lost map[uint64]bool) error {
	r := decodeRecord(raw)
	if r.Seq != u.next || r.Chain != journalChain(u.chain, raw[:88]) {
		return fmt.Errorf("%w: %s breaks at record %d", ErrJournal, u.path, u.next)
	}
	switch {
	case u.next == 0:
		u.token, u.uses, u.under = r.SHA256, map[[32]byte]uint64{}, map[underIntent]uint64{}
	case r.Kind == JournalCheckpoint || r.Kind == JournalProbe:
		u.uses[r.Key]++
	case r.Kind == JournalIntent && lost[r.Number]:
		u.under[underIntent{r.Key, r.Number}]++
	}
	u.next, u.chain = u.next+1, r.Chain
	return nil
}

// Exempt tells how often a key was used for checkpoints and probes; known is false if the
// journal is not that of the token.
func (u *JournalUses) Exempt(token string, key [32]byte) (n uint64, known bool) {
	if u.uses == nil || u.token != sha256.Sum256([]byte(token)) {
		return 0, false
	}
	return u.uses[key], true
}

// Under tells how often a key was used under an intent that was among lost.
func (u *JournalUses) Under(token string, key [32]byte, intent uint64) uint64 {
	if u.token != sha256.Sum256([]byte(token)) {
		return 0
	}
	return u.under[underIntent{key, intent}]
}
