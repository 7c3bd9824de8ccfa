package audit

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// Journal is the intent journal: a file on another disk than the database that
// names each leaf before the HSM may be called for it. After the database was
// rolled back it still knows the serials that the database lost.
//
// One line per leaf: "<size before the batch> <index> <leaf hash> <issuer> <serial>";
// issuer and serial are "-" where the leaf is neither a certificate's intent nor a
// revocation. A sequencer that ends writes "<size> - - - -"; a recovery (see recovery.go)
// "<index> recovering <grant> - -" and, when it is whole, "<size> recovered <grant> - -":
// entries from that index on that stand before it were given up. A long recovery says again
// that it is not whole, so that the last lines always tell. Lines of a batch that was never committed are
// possible at any place and do no harm: their index comes again. A batch is known to
// be committed when the next line begins where it ended.
//
// The file is locked: a second server with the same journal does not start.
type Journal struct {
	mu   sync.Mutex
	f    *os.File
	path string
	size int64  // of the file
	base uint64 // largest committed size that the journal knows
	cut  bool   // a recovery was begun and is not whole

	grant  [32]byte // of the recovery that this process carries out
	marked int64    // size of the file before its last mark
}

type journalRecord struct {
	index          uint64
	hash           tlog.Hash
	issuer, serial string // hex, or "-"
}

// record is what the journal keeps of a leaf.
func record(index uint64, b []byte, leaf Leaf) journalRecord {
	r := journalRecord{index: index, hash: LeafHash(b), issuer: "-", serial: "-"}
	issuer, named := leaf.Get(TagIssuer)
	serial, numbered := leaf.Get(TagSerial)
	if named && numbered && (leaf.Kind == KindIntent || leaf.Op == OpRevoke) {
		r.issuer, r.serial = hex.EncodeToString(issuer), hex.EncodeToString(serial)
	}
	return r
}

// journalWait is how long the journal waits for a process that is ending.
const journalWait = 5 * time.Second

// journalTail is how much of the journal is looked at when it is opened.
const journalTail = 1 << 20

// OpenJournal opens or makes the journal file (mode 0600).
func OpenJournal(path string) (*Journal, error) {
	f, err := openAppend(path, os.O_RDWR)
	if err != nil {
		return nil, fmt.Errorf("opening the intent journal (ledger.journal): %w", err)
	}
	j := &Journal{f: f, path: path}
	if err := errors.Join(j.lock(), j.scan()); err != nil {
		f.Close()
		return nil, err
	}
	return j, nil
}

// openAppend opens a file to be appended to; one that is made here is there after a
// power failure too.
func openAppend(path string, mode int) (*os.File, error) {
	f, err := os.OpenFile(path, mode|os.O_APPEND, 0o600)
	if !errors.Is(err, os.ErrNotExist) {
		return f, err
	}
	if f, err = os.OpenFile(path, mode|os.O_APPEND|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err == nil {
		err = errors.Join(dir.Sync(), dir.Close())
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (j *Journal) lock() error {
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		err := syscall.Flock(int(j.f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, syscall.EWOULDBLOCK) || time.Since(began) > journalWait:
			return fmt.Errorf("locking the intent journal %s: %w; does another server run on it?", j.path, err)
		}
	}
}

// scan reads the largest committed size from the last lines. A last line without
// its newline is what a crash cut off; it is ended so that later lines stay whole.
func (j *Journal) scan() error {
	st, err := j.f.Stat()
	if err != nil {
		return err
	}
	j.size = st.Size()
	if j.base, err = readJournal(j.tail(), func(uint64, tlog.Hash) {}, func(_ uint64, whole bool) { j.cut = !whole }); err != nil {
		return fmt.Errorf("reading the intent journal %s: %w", j.path, err)
	}
	if j.size == 0 {
		return nil
	}
	last := make([]byte, 1)
	if _, err := j.f.ReadAt(last, j.size-1); err != nil {
		return err
	}
	if last[0] != '\n' {
		return j.append([]byte{'\n'})
	}
	return nil
}

func (j *Journal) tail() io.Reader {
	off := max(j.size-journalTail, 0)
	return io.NewSectionReader(j.f, off, j.size-off)
}

// readJournal calls fn for each leaf of the batches that are known to be committed,
// in their order, and returns the largest committed size. It may begin within a line.
// cut is told of the marks of a recovery: from the first on, entries of size and more are
// others; the last says that it is whole.
func readJournal(r io.Reader, fn func(index uint64, hash tlog.Hash), cut func(size uint64, whole bool)) (base uint64, err error) {
	var batch []journalRecord
	var began uint64
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) != 5 {
			continue
		}
		b, err := strconv.ParseUint(f[0], 10, 63)
		if err != nil {
			continue
		}
		if f[1] == markRecovering {
			if b == began+uint64(len(batch)) { // said again, behind a batch that was committed
				for _, r := range batch {
					fn(r.index, r.hash)
				}
			}
			cut(b, false)
			batch, began, base = batch[:0], b, b
			continue
		}
		n, nerr := strconv.ParseUint(f[1], 10, 63)
		h, herr := hex.DecodeString(f[2])
		record := nerr == nil && herr == nil && len(h) == tlog.HashSize
		if !record && f[1] != "-" && f[1] != markRecovered {
			continue
		}
		base = max(base, b)
		if b == began+uint64(len(batch)) && (len(batch) == 0 || batch[0].index == began) {
			for _, r := range batch {
				fn(r.index, r.hash)
			}
		}
		if f[1] == markRecovered {
			cut(b, true)
		}
		if b != began || !record || len(batch) > 0 && n <= batch[len(batch)-1].index {
			batch, began = batch[:0], b
		}
		if record {
			batch = append(batch, journalRecord{index: n, hash: tlog.Hash(h)})
		}
	}
	return base, sc.Err()
}

// compare refuses a database that is older than the journal, or whose newest leaves
// are others.
func (j *Journal) compare(ctx context.Context, r Reader, h Head) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.cut:
		return fmt.Errorf("%w: the intent journal %s says that a recovery was begun and did not end; go on with it: chancery audit recover --warrant FILE", ErrTampered, j.path)
	case h.Size < j.base:
		return fmt.Errorf("%w: the intent journal %s knows a ledger of %d entries, the database holds %d: it was rolled back. Put the newer database back; if there is none any more, the officers decide to go on: %s. Nothing is signed before", ErrTampered, j.path, j.base, h.Size, recoverCommand)
	}
	kept := map[uint64]tlog.Hash{}
	from := h.Size
	forget := func(size uint64, whole bool) {
		maps.DeleteFunc(kept, func(i uint64, _ tlog.Hash) bool { return !whole && i >= size })
	}
	if _, err := readJournal(j.tail(), func(i uint64, hash tlog.Hash) { kept[i] = hash; from = min(from, i) }, forget); err != nil {
		return fmt.Errorf("reading the intent journal %s: %w", j.path, err)
	}
	return r.Leaves(ctx, from, h.Size, func(i uint64, leaf []byte) error {
		if want, ok := kept[i]; ok && want != LeafHash(leaf) {
			return fmt.Errorf("%w: entry %d is not the one that the intent journal %s kept. If a standby was promoted that was behind, the officers can decide to go on: %s", ErrTampered, i, j.path, recoverCommand)
		}
		return nil
	})
}

// write hands the records of a batch to the operating system; sync makes them
// durable. base is the committed size before the batch. When it fails, nothing of
// them is in the file.
func (j *Journal) write(base uint64, recs []journalRecord) error {
	var b []byte
	for _, r := range recs {
		b = fmt.Appendf(b, "%d %d %x %s %s\n", base, r.index, r.hash[:], r.issuer, r.serial)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	marked := j.marked
	if j.cut && j.size-marked > journalTail/2 {
		b = append(fmt.Appendf(nil, markLine, base, markRecovering, j.grant), b...)
		marked = j.size
	}
	if err := j.append(b); err != nil {
		return err
	}
	j.base, j.marked = max(j.base, base), marked
	return nil
}

func (j *Journal) append(b []byte) error {
	if j.f == nil {
		return fmt.Errorf("%w: the intent journal %s is closed", ErrUnavailable, j.path)
	}
	if _, err := j.f.Write(b); err != nil {
		// What fitted on the full disk must not become the head of the next line.
		if terr := j.f.Truncate(j.size); terr != nil {
			return errors.Join(j.giveUp(terr), err)
		}
		return fmt.Errorf("%w: writing the intent journal: %w", ErrUnavailable, err)
	}
	j.size += int64(len(b))
	return nil
}

func (j *Journal) sync() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.f == nil {
		return fmt.Errorf("%w: the intent journal %s is closed", ErrDisk, j.path)
	}
	if err := j.f.Sync(); err != nil {
		return j.giveUp(err)
	}
	return nil
}

// giveUp closes the file for good. A failed fsync may have dropped the pages: a
// second try would say "fine" and be wrong.
func (j *Journal) giveUp(err error) error {
	j.f.Close()
	j.f = nil
	return fmt.Errorf("%w: intent journal %s: %w", ErrDisk, j.path, err)
}

// seal says that a tree of this size is committed and the writer has ended.
func (j *Journal) seal(size uint64) error {
	if size == 0 {
		return nil
	}
	j.mu.Lock()
	err := j.append(fmt.Appendf(nil, "%d - - - -\n", size))
	if err == nil {
		j.base = max(j.base, size)
	}
	j.mu.Unlock()
	if err != nil {
		return err
	}
	return j.sync()
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
func (j *Journal) Base() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.base
}
