package audit

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// VerifySource is a snapshot of a stored ledger.
type VerifySource interface {
	Reader
	// Checkpoints calls fn for each signed checkpoint, smallest first.
	Checkpoints(ctx context.Context, fn func(note string) error) error
	// Artefacts calls fn for each certificate whose done leaf is in from..to-1, in that order.
	Artefacts(ctx context.Context, from, to uint64, fn func(Artefact) error) error
	// Beyond counts leaves at or behind a size.
	Beyond(ctx context.Context, size uint64) (int, error)
}

// Artefact is a finished certificate as its row shows it.
type Artefact struct {
	Done   uint64 // index of its done leaf
	Intent uint64
	Issuer [32]byte
	Serial []byte
	Hash   [32]byte // SHA-256 of the certificate
	TBS    [32]byte // SHA-256 of its TBSCertificate
}

// Violation is a promise that the ledger breaks.
type Violation struct {
	Index uint64 // first bad index
	What  string

	onward bool // the first bad index is this one or a later one
}

func (v *Violation) Error() string { return fmt.Sprintf("entry %d: %s", v.Index, v.What) }

func violate(index uint64, format string, args ...any) *Violation {
	return &Violation{Index: index, What: fmt.Sprintf(format, args...)}
}

// Report is what a verification has seen.
type Report struct {
	Origin       string    `json:"origin"`
	Size         uint64    `json:"size"`
	Root         string    `json:"root"`
	Intents      uint64    `json:"intents"`
	Done         uint64    `json:"done"`
	Failed       uint64    `json:"failed"`
	Orphans      uint64    `json:"orphans"`
	Open         uint64    `json:"open"`
	Certificates uint64    `json:"certificates"`
	Checkpoints  uint64    `json:"checkpoints"`
	Signed       uint64    `json:"signed_size"` // size of the newest signed checkpoint
	Last         time.Time `json:"last"`
}

// closeWithin is how old an open intent may be, against the newest entry, before it
// counts as never closed.
const closeWithin = time.Minute

const verifyPage = 4096

type verifier struct {
	src     VerifySource
	journal io.ReadSeeker
	report  Report
	ledger  LedgerID
	keys    [][]byte
	origin  string
	head    Head

	edge    edge
	open    map[uint64]openIntent
	marks   []Checkpoint // checkpoints not yet reached
	lastOK  uint64       // size at which the tree last agreed with something signed or a full tile
	pending []tlog.Hash  // leaf hashes from lastOK on, to find the first bad one
}

type openIntent struct {
	hash tlog.Hash
	op   Op
	id   OpID
	at   time.Time
	leaf Leaf
}

// Verify recomputes the tree from the leaves and holds it against tiles, head and
// signed checkpoints; it checks that every intent is closed at most once and in
// time, and that certificates and done leaves match one to one. journal, if not
// nil, is the intent journal: with it the first changed entry is named exactly.
// A broken promise is a [*Violation].
func Verify(ctx context.Context, src VerifySource, journal io.ReadSeeker) (Report, error) {
	v := &verifier{src: src, journal: journal, open: map[uint64]openIntent{}}
	head, err := src.Head(ctx)
	if err != nil {
		return v.report, fmt.Errorf("reading the head: %w", err)
	}
	v.head = head
	if head.Size == 0 {
		return v.report, violate(0, "the ledger is empty: there is no genesis")
	}
	if n, err := src.Beyond(ctx, head.Size); err != nil || n > 0 {
		if err != nil {
			return v.report, err
		}
		return v.report, violate(head.Size, "%d entries lie behind the head of size %d", n, head.Size)
	}
	if err := v.genesis(ctx); err != nil {
		return v.report, err
	}
	if err := src.Checkpoints(ctx, v.addCheckpoint); err != nil {
		return v.report, err
	}
	for from := uint64(0); from < head.Size; from += verifyPage {
		if err := v.page(ctx, from, min(from+verifyPage, head.Size)); err != nil {
			return v.report, err
		}
	}
	return v.report, v.finish()
}

func (v *verifier) genesis(ctx context.Context) error {
	return v.src.Leaves(ctx, 0, 1, func(_ uint64, b []byte) error {
		g, err := DecodeLeaf(b)
		if err != nil {
			return violate(0, "%v", err)
		}
		zero := g
		zero.Ledger = LedgerID{}
		z, err := zero.Encode()
		if err != nil || g.Kind != KindGenesis || LedgerID(Digest("ledger", z)) != g.Ledger {
			return violate(0, "it is no genesis: the ledger id is not the digest of the leaf")
		}
		domain, _ := g.Get(TagDomain)
		list, _ := g.Get(TagCheckpointKeys)
		v.ledger, v.origin = g.Ledger, Origin(string(domain), g.Ledger)
		v.report.Origin = v.origin
		v.keys, err = ParseList(list)
		return err
	})
}

func (v *verifier) addCheckpoint(note string) error {
	c, err := OpenCheckpoint(note, v.origin, v.keys)
	if err != nil {
		var at uint64
		if _, after, ok := strings.Cut(note, "\n"); ok {
			size, _, _ := strings.Cut(after, "\n")
			at, _ = strconv.ParseUint(size, 10, 64)
		}
		return violate(at, "its checkpoint is not signed by the ledger's key: %v", err)
	}
	if c.Size > v.head.Size {
		return violate(v.head.Size, "checkpoint %d is signed, but the ledger ends at %d: entries were cut off", c.Size, v.head.Size)
	}
	v.marks = append(v.marks, c)
	v.report.Checkpoints++
	v.report.Signed = c.Size
	return nil
}

func (v *verifier) page(ctx context.Context, from, to uint64) error {
	var leaves [][]byte
	err := v.src.Leaves(ctx, from, to, func(_ uint64, b []byte) error { leaves = append(leaves, b); return nil })
	if errors.Is(err, ErrTampered) {
		return violate(from+uint64(len(leaves)), "it is missing")
	}
	if err != nil {
		return err
	}
	arts := map[uint64]Artefact{}
	err = v.src.Artefacts(ctx, from, to, func(a Artefact) error {
		if _, twice := arts[a.Done]; twice {
			return violate(a.Done, "two certificates claim it")
		}
		arts[a.Done] = a
		return nil
	})
	if err != nil {
		return err
	}
	for i, b := range leaves {
		if err := v.leaf(ctx, from+uint64(i), b, arts); err != nil {
			return v.earliest(err)
		}
	}
	for done := range arts {
		return violate(done, "a certificate names it as its done leaf, which it is not")
	}
	return nil
}

func (v *verifier) leaf(ctx context.Context, index uint64, b []byte, arts map[uint64]Artefact) error {
	h := LeafHash(b)
	v.pending = append(v.pending, h)
	for _, t := range v.edge.add(h) {
		stored, err := v.src.Tile(ctx, t.Level, t.N)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		if string(stored) != string(t.Data) {
			bad := v.somewhere("the entries do not hash to tile %d/%d", t.Level, t.N)
			if t.Level == 0 && len(stored) == len(t.Data) {
				for i := 0; i < tileWidth; i++ {
					if string(stored[i*32:i*32+32]) != string(t.Data[i*32:i*32+32]) {
						bad.Index, bad.onward = t.N*tileWidth+uint64(i), false
						break
					}
				}
			}
			return bad
		}
	}
	l, err := DecodeLeaf(b)
	if err != nil {
		return violate(index, "%v", err)
	}
	if l.Ledger != v.ledger || (index == 0) != (l.Kind == KindGenesis) {
		return violate(index, "it belongs to another ledger or place")
	}
	v.report.Last = l.Time
	if err := v.account(index, h, l, arts); err != nil {
		return err
	}
	for len(v.marks) > 0 && v.marks[0].Size == index+1 {
		if v.edge.head().Root() != v.marks[0].Root {
			return v.somewhere("the entries up to %d do not hash to the signed checkpoint", index)
		}
		v.marks, v.lastOK, v.pending = v.marks[1:], index+1, v.pending[:0]
	}
	return nil
}

// account follows intents to their closing leaves and certificates to their done leaf.
func (v *verifier) account(index uint64, h tlog.Hash, l Leaf, arts map[uint64]Artefact) error {
	switch l.Kind {
	case KindIntent:
		v.report.Intents++
		v.open[index] = openIntent{hash: h, op: l.Op, id: l.ID, at: l.Time, leaf: l}
		return nil
	case KindDone, KindFailed, KindOrphan:
	default:
		return nil
	}
	in, ok := v.open[l.Closes]
	if !ok {
		return violate(index, "it closes %d, which is no open intent", l.Closes)
	}
	if ref, _ := l.Hash(TagIntentHash); ref != in.hash || in.op != l.Op || in.id != l.ID {
		return violate(l.Closes, "the leaf %d that closes it names another intent", index)
	}
	delete(v.open, l.Closes)
	switch l.Kind {
	case KindFailed:
		v.report.Failed++
		return nil
	case KindOrphan:
		v.report.Orphans++
		return nil
	}
	v.report.Done++
	if l.Op != OpCertificate {
		return nil
	}
	a, ok := arts[index]
	if !ok {
		return violate(index, "it records a certificate that is not stored")
	}
	delete(arts, index)
	artefact, _ := l.Hash(TagArtefact)
	serial, _ := in.leaf.Get(TagSerial)
	issuer, _ := in.leaf.Hash(TagIssuer)
	tbs, _ := in.leaf.Hash(TagTBSHash)
	if a.Intent != l.Closes || a.Hash != artefact || a.Issuer != issuer || string(a.Serial) != string(serial) || a.TBS != tbs {
		return violate(index, "the stored certificate %x is not the one that was recorded", a.Serial)
	}
	v.report.Certificates++
	return nil
}

func (v *verifier) finish() error {
	if !v.edge.equal(v.head) {
		return v.earliest(v.somewhere("the entries do not hash to the head of size %d", v.head.Size))
	}
	if len(v.marks) > 0 {
		return violate(v.head.Size, "checkpoint %d is signed, but was never reached", v.marks[0].Size)
	}
	for i, in := range v.open {
		if v.report.Last.Sub(in.at) > closeWithin {
			return violate(i, "the intent was never closed")
		}
	}
	root := v.head.Root()
	v.report.Size, v.report.Open, v.report.Root = v.head.Size, uint64(len(v.open)), hex.EncodeToString(root[:])
	return nil
}

// somewhere is a violation that lies behind the last size that something vouches for.
func (v *verifier) somewhere(format string, args ...any) *Violation {
	bad := violate(v.lastOK, format, args...)
	bad.onward = true
	return bad
}

// earliest looks for an entry before the one that was noticed whose hash is not the
// one that the intent journal kept.
func (v *verifier) earliest(err error) error {
	var found *Violation
	if !errors.As(err, &found) || v.journal == nil {
		return err
	}
	if _, err := v.journal.Seek(0, io.SeekStart); err != nil {
		return found
	}
	want := map[uint64]string{}
	for sc := bufio.NewScanner(v.journal); sc.Scan(); {
		f := strings.Fields(sc.Text())
		if len(f) != 5 {
			continue
		}
		if n, err := strconv.ParseUint(f[1], 10, 64); err == nil && n >= v.lastOK && n < v.lastOK+uint64(len(v.pending)) {
			want[n] = f[2]
		}
	}
	for i, h := range v.pending {
		n := v.lastOK + uint64(i)
		if w, ok := want[n]; ok && w != hex.EncodeToString(h[:]) {
			if n > found.Index && !found.onward {
				return found
			}
			return violate(n, "it is not what the intent journal kept (%s)", found.What)
		}
	}
	return found
}
