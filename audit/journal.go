package audit

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/mod/sumdb/tlog"
)

// Journal is the intent journal: a file on another disk than the database that
// names each leaf before the HSM may be called for it. After the database was
// rolled back it still knows the serials that the database lost.
//
// One line per leaf: "<size before the batch> <index> <leaf hash> <issuer> <serial>";
// issuer and serial are "-" where the leaf is not a certificate's intent. Lines of a
// batch that was never committed are possible at any place and do no harm: their
// index comes again. A size before the batch is the size of a committed tree.
type Journal struct {
	mu   sync.Mutex
	f    *os.File
	path string
	base uint64 // largest committed size that the journal knows
}

type journalRecord struct {
	index uint64
	hash  tlog.Hash
	leaf  *StoredLeaf
}

// OpenJournal opens or makes the journal file (mode 0600).
func OpenJournal(path string) (*Journal, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the intent journal (ledger.journal): %w", err)
	}
	j := &Journal{f: f, path: path}
	if err := j.scan(); err != nil {
		f.Close()
		return nil, err
	}
	return j, nil
}

// scan reads the largest committed size from the last lines. A last line without
// its newline is what a crash cut off; it is ended so that later lines stay whole.
func (j *Journal) scan() error {
	st, err := j.f.Stat()
	if err != nil {
		return err
	}
	const tail = 1 << 20
	off := max(st.Size()-tail, 0)
	sc := bufio.NewScanner(io.NewSectionReader(j.f, off, st.Size()-off))
	for first := off > 0; sc.Scan(); first = false {
		if first {
			continue
		}
		if base, _, ok := strings.Cut(sc.Text(), " "); ok {
			if n, err := strconv.ParseUint(base, 10, 64); err == nil {
				j.base = max(j.base, n)
			}
		}
	}
	if err := sc.Err(); err != nil {
		return fmt.Errorf("reading the intent journal %s: %w", j.path, err)
	}
	if st.Size() == 0 {
		return nil
	}
	last := make([]byte, 1)
	if _, err := j.f.ReadAt(last, st.Size()-1); err != nil {
		return err
	}
	if last[0] != '\n' {
		_, err = j.f.WriteString("\n")
	}
	return err
}

// compare refuses a database that is older than the journal.
func (j *Journal) compare(h Head) error {
	if h.Size < j.base {
		return fmt.Errorf("%w: the intent journal %s knows a ledger of %d entries, the database holds %d: it was rolled back. Put the newer database back; nothing is signed before", ErrTampered, j.path, j.base, h.Size)
	}
	return nil
}

// append makes the records of a batch durable. base is the committed size before it.
func (j *Journal) append(base uint64, recs []journalRecord) error {
	var b []byte
	for _, r := range recs {
		issuer, serial := "-", "-"
		if r.leaf.Kind == KindIntent {
			if leaf, err := DecodeLeaf(r.leaf.Bytes); err == nil {
				if s, ok := leaf.Get(TagSerial); ok {
					serial = hex.EncodeToString(s)
				}
				if is, ok := leaf.Get(TagIssuer); ok {
					issuer = hex.EncodeToString(is)
				}
			}
		}
		b = fmt.Appendf(b, "%d %d %x %s %s\n", base, r.index, r.hash[:], issuer, serial)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.f == nil {
		return errors.New("intent journal is closed")
	}
	if _, err := j.f.Write(b); err != nil {
		return err
	}
	if err := j.f.Sync(); err != nil {
		// A failed fsync may have dropped the pages: a second try would say "fine"
		// and be wrong. The file is closed for good; a restart is needed.
		j.f.Close()
		j.f = nil
		return fmt.Errorf("%w (the journal is closed; restart after mending the disk)", err)
	}
	j.base = max(j.base, base)
	return nil
}

// Close closes the file.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.f == nil {
		return nil
	}
	err := j.f.Close()
	j.f = nil
	return err
}

// Base is the largest committed ledger size that the journal knows.
func (j *Journal) Base() uint64 { return j.base }
