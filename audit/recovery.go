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
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// A recovery lets the ledger go on from a database that lost its newest entries: an old
// backup, a standby that was behind. The officers decide it, as entries are given up that
// were signed for. It is on the ledger itself: an OpRecovery leaf at the very size from
// which it goes on, with the officers' signatures and the newest checkpoint that is given
// up. Every serial that the intent journal knows and the database does not is revoked.

// recoverCommand is how the officers are asked.
const recoverCommand = "chancery audit recover --help"

// The marks of a recovery in the intent journal.
const (
	markRecovering = "recovering"
	markRecovered  = "recovered"
	markLine       = "%d %s %x - -\n"
)

// LostSerial is a serial that a lost entry gave, or revoked.
type LostSerial struct {
	Issuer [32]byte // SHA-256 of the issuer's SPKI
	Serial []byte
}

// Loss is what a database lacks of what its witnesses know.
type Loss struct {
	Ledger     LedgerID
	Genesis    Leaf
	Size       uint64    // entries that are left
	Root       tlog.Hash // of these
	Common     uint64    // of these, those that are what the witnesses know; the rest came after the loss, from a node that did not notice
	Known      uint64    // entries that the witnesses know
	Checkpoint string    // the newest anchored note that is not of the entries left, or ""
	Serials    []LostSerial
	Begun      bool // a recovery was begun here before and is not whole; its losses count

	Recovered map[[32]byte]bool // grants of recoveries that were carried out here
}

// RecoveryReader reads a ledger and which recoveries it has gone through.
type RecoveryReader interface {
	Reader
	Recoveries(ctx context.Context) ([]uint64, error)
}

// FindLoss holds a database that no server uses against intent journal and anchor file
// (anchor "" for none). at is the size from which a recovery goes on: the head's, or, to
// go on with one that was begun, its own; 0: the head's. births are the leaves in which
// checkpoint keys were born.
func FindLoss(ctx context.Context, r RecoveryReader, j *Journal, anchor string, at uint64, births []uint64) (Loss, error) {
	head, err := r.Head(ctx)
	if err != nil {
		return Loss{}, fmt.Errorf("reading the head: %w", err)
	}
	if head.Size == 0 {
		return Loss{}, fmt.Errorf("%w: the database is empty: there is no ledger that could go on", ErrTampered)
	}
	if _, err := loadEdge(ctx, r, head); err != nil {
		return Loss{}, err
	}
	if at == 0 || at > head.Size {
		at = head.Size
	}
	l := Loss{Size: at, Recovered: map[[32]byte]bool{}}
	if l.Root, err = tlog.TreeHash(int64(at), hashes(ctx, r, head.Size)); err != nil {
		return Loss{}, fmt.Errorf("computing the tree of %d entries: %w", at, err)
	}
	var origin string
	var keys [][]byte
	err = r.Leaves(ctx, 0, 1, func(_ uint64, b []byte) (err error) { l.Genesis, origin, _, err = OpenGenesis(b); return err })
	if err != nil {
		return Loss{}, fmt.Errorf("%w: leaf 0: %v", ErrTampered, err)
	}
	l.Ledger = l.Genesis.Ledger
	if _, _, keys, err = CheckpointKeys(ctx, r, births); err != nil {
		return Loss{}, err
	}
	if err := l.journal(ctx, r, head, j); err != nil {
		return Loss{}, err
	}
	return l, l.anchors(ctx, r, head, anchor, origin, keys)
}

// noted is a line of the intent journal that names a serial.
type noted struct {
	hash tlog.Hash
	LostSerial
}

// journal reads the whole intent journal and holds it against all entries: a serial whose
// entry is not there is lost.
func (l *Loss) journal(ctx context.Context, r Reader, head Head, j *Journal) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	kept := map[uint64]tlog.Hash{}
	forget := func(size uint64, whole bool) {
		maps.DeleteFunc(kept, func(i uint64, _ tlog.Hash) bool { return !whole && i >= size })
	}
	whole := func() io.Reader { return io.NewSectionReader(j.f, 0, j.size) }
	if _, err := readJournal(whole(), func(i uint64, hash tlog.Hash) { kept[i] = hash }, forget); err != nil {
		return err
	}
	l.Common, l.Begun = l.Size, j.cut
	lines := map[uint64][]noted{}
	var known uint64    // before a recovery that is not whole; what one that is whole gave up is settled
	recovering := false // lines are those of a recovery
	sc := bufio.NewScanner(whole())
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) != 5 {
			continue
		}
		base, err := strconv.ParseUint(f[0], 10, 63)
		if err != nil {
			continue
		}
		third, herr := hex.DecodeString(f[2])
		if herr != nil || len(third) != 32 {
			if f[1] == "-" && !recovering {
				known = max(known, base)
			}
			continue
		}
		switch {
		case f[1] == markRecovering:
			if !recovering {
				l.Common = min(l.Common, base)
			}
			recovering = true
		case f[1] == markRecovered:
			l.Recovered[[32]byte(third)] = true
			l.Common, known, recovering = l.Size, base, false
		case !recovering:
			known = max(known, base)
		}
		index, err := strconv.ParseUint(f[1], 10, 63)
		if err != nil {
			continue
		}
		if !recovering {
			known = max(known, index+1)
		}
		issuer, ierr := hex.DecodeString(f[3])
		serial, serr := hex.DecodeString(f[4])
		if ierr == nil && serr == nil && len(issuer) == 32 && len(serial) > 0 && len(serial) <= 20 {
			lines[index] = append(lines[index], noted{tlog.Hash(third), LostSerial{Issuer: [32]byte(issuer), Serial: serial}})
		}
	}
	if err := sc.Err(); err != nil {
		return err
	}
	l.Known = max(known, l.Size)
	err := r.Leaves(ctx, 0, head.Size, func(i uint64, b []byte) error {
		h := LeafHash(b)
		if want, ok := kept[i]; ok && want != h {
			l.Common = min(l.Common, i)
		}
		lines[i] = slices.DeleteFunc(lines[i], func(n noted) bool { return n.hash == h })
		return nil
	})
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, i := range slices.Sorted(maps.Keys(lines)) {
		for _, n := range lines[i] {
			if k := string(n.Issuer[:]) + string(n.Serial); !seen[k] {
				seen[k] = true
				l.Serials = append(l.Serials, n.LostSerial)
			}
		}
	}
	return nil
}

// anchors reads the anchor file for checkpoints of what is lost.
func (l *Loss) anchors(ctx context.Context, r RecoveryReader, head Head, path, origin string, keys [][]byte) error {
	if path == "" {
		return nil
	}
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening the anchor: %w", err)
	}
	defer f.Close()
	places, err := r.Recoveries(ctx)
	if err != nil {
		return fmt.Errorf("reading recoveries: %w", err)
	}
	before, err := readRecovered(ctx, r, places)
	if err != nil {
		return err
	}
	var newest Checkpoint
	err = readAnchor(f, origin, func(note string) error {
		c, err := OpenCheckpoint(note, origin, keys)
		if err != nil || c.Size == 0 || gaveUp(before, c.Size) {
			return nil // what is not signed vouches for nothing
		}
		if c.Size <= head.Size {
			root, err := tlog.TreeHash(int64(c.Size), hashes(ctx, r, head.Size))
			if err != nil || root == c.Root {
				return err
			}
		}
		l.Common = min(l.Common, c.Size-1)
		if c.Size > newest.Size {
			newest = c
		}
		return nil
	})
	l.Known, l.Checkpoint = max(l.Known, newest.Size), newest.Note
	return err
}

// BeginRecovery notes in the journal that the entries from an index on are given up: until
// EndRecovery no server starts on it.
func (j *Journal) BeginRecovery(common uint64, grant [32]byte) error {
	return j.mark(common, markRecovering, grant)
}

// EndRecovery notes that a recovery is whole, with the size of the ledger now.
func (j *Journal) EndRecovery(size uint64, grant [32]byte) error {
	return j.mark(size, markRecovered, grant)
}

func (j *Journal) mark(size uint64, what string, grant [32]byte) error {
	j.mu.Lock()
	at := j.size
	err := j.append(fmt.Appendf(nil, markLine, size, what, grant))
	if err == nil {
		j.base, j.cut, j.grant, j.marked = size, what == markRecovering, grant, at
	}
	j.mu.Unlock()
	if err != nil {
		return err
	}
	return j.sync()
}

// Recovered is a recovery that stands on the ledger.
type Recovered struct {
	From   uint64 // index of its leaf, and the size from which the ledger went on
	Common uint64 // entries below were not given up
	Known  uint64 // size that was known before
}

// gaveUp tells whether a checkpoint of a size may be one of entries that a recovery gave up.
func gaveUp(recs []Recovered, size uint64) bool {
	for _, r := range recs {
		if size > r.Common && size <= r.Known {
			return true
		}
	}
	return false
}

// readRecovered reads the recoveries whose leaves are at these places.
func readRecovered(ctx context.Context, r Reader, at []uint64) (out []Recovered, err error) {
	for _, from := range at {
		err := r.Leaves(ctx, from, from+1, func(index uint64, b []byte) error {
			l, err := DecodeLeaf(b)
			known, ok := l.Uint(TagKnown)
			common, there := l.Uint(TagCommon)
			if err != nil || l.Op != OpRecovery || !ok || !there || common > from {
				return fmt.Errorf("%w: entry %d is listed as a recovery, which it is not", ErrTampered, index)
			}
			out = append(out, Recovered{From: from, Common: common, Known: known})
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// warranted reads the recoveries that the database lists and holds each against the
// officers' signatures: who has the database alone must not excuse an anchored checkpoint.
func (l *Ledger) warranted(ctx context.Context, head Head, at []uint64) ([]Recovered, error) {
	if len(at) == 0 {
		return nil, nil
	}
	recs, err := readRecovered(ctx, l.st, at)
	if err != nil {
		return nil, err
	}
	zero, err := l.Leaf(ctx, 0)
	if err != nil {
		return nil, err
	}
	a := newApprovals()
	a.genesis(zero)
	e, err := readElectorates(ctx, l.st, a.roster)
	if err != nil {
		return nil, fmt.Errorf("%w: the officers: %w", ErrTampered, err)
	}
	for _, r := range recs {
		leaf, err := l.Leaf(ctx, r.From)
		if err != nil {
			return nil, err
		}
		if a.root, err = tlog.TreeHash(int64(r.From), hashes(ctx, l.st, head.Size)); err != nil {
			return nil, fmt.Errorf("computing the tree of %d entries: %w", r.From, err)
		}
		list, _ := leaf.Get(TagWarrant)
		electorate, ok := e.inForce(r.From)
		if !ok {
			return nil, fmt.Errorf("%w: there are no officers", ErrTampered)
		}
		a.inForce = electorate.Digest()
		err = a.recovery(r.From, leaf, list)
		if err == nil {
			err = a.recoveries[r.From].signed(electorate)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: the recovery of %w", ErrTampered, err)
		}
	}
	return recs, nil
}

// PutRecovery notes the leaf of a recovery, so that it is found again.
type PutRecovery struct{}

// Projection marks the type as [Projection].
func (PutRecovery) Projection() {}
