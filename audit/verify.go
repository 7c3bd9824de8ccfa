package audit

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// Violation is a promise that the ledger breaks.
type Violation struct {
	Index   uint64 // first bad index
	What    string
	Promise string // P1 …, see the table in docs/OPERATIONS.md
}

func (v *Violation) Error() string { return fmt.Sprintf("entry %d: %s", v.Index, v.What) }

func violate(index uint64, format string, args ...any) *Violation {
	return &Violation{Index: index, What: fmt.Sprintf(format, args...)}
}

// breaks says which promise a violation is of, unless who found it has said so.
func breaks(promise string, err error) error {
	var v *Violation
	if errors.As(err, &v) && v.Promise == "" {
		v.Promise = promise
	}
	return err
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
	Revocations  uint64    `json:"revocations"`
	Grants       uint64    `json:"grants"`      // of the officers, each with its signatures
	Opened       uint64    `json:"opened"`      // commitments that can be opened
	Erased       uint64    `json:"erased"`      // and those that an entry says cannot any more
	Checkpoints  uint64    `json:"checkpoints"` // signed ones in the database
	Anchored     uint64    `json:"anchored"`    // signed ones outside of it
	Journaled    uint64    `json:"journaled"`   // entries that the intent journal vouches for
	Signed       uint64    `json:"signed_size"` // size of the newest signed checkpoint
	Backward     uint64    `json:"backward"`    // entries that lie more than 2 s before their predecessor
	Last         time.Time `json:"last"`
	Ledger       string    `json:"ledger"`              // id, hex
	Recovered    int       `json:"recovered,omitempty"` // times that the officers let the ledger go on from an older database
	Succeeds     string    `json:"succeeds,omitempty"`  // id of the ledger that this one was restored from
}

// closeWithin is how old an open intent may be, against the newest entry, before it
// counts as never closed.
const closeWithin = time.Minute

const verifyPage = 4096

type verifier struct {
	src     VerifySource
	report  Report
	signers signers
	ledger  LedgerID
	keys    [][]byte
	origin  string
	head    Head
	kept    []tlog.Hash // leaf hashes of the intent journal, zero where it has none

	edge   edge
	open   map[uint64]openIntent
	marks  []mark // checkpoints not yet reached, smallest first
	lastOK uint64 // size at which the tree last agreed with a checkpoint
	rows   rows
	tally  *Tally    // counts uses of keys; nil: nobody wants them
	counts time.Time // of the newest entry that counts exempt signatures

	openings openings

	unsigned  []unsignedRow // of the sweeper: the newest checkpoints that had no note
	recovered []Recovered   // as the database lists them; each is found again among the leaves
}

// mark is a checkpoint that the tree has to reach. Of what is anchored outside of the
// database a recovery may have given up the entries.
type mark struct {
	Checkpoint
	anchored bool
}

type openIntent struct {
	hash tlog.Hash
	leaf Leaf
}

// Verify recomputes the tree from the leaves and holds it against tiles, head and
// signed checkpoints; it checks that every intent is closed at most once and in
// time, and that the rows of the database – certificates, serials, revocations,
// CRLs, keys, members, officers' decisions – are what the leaves say, no more and no less;
// that evidence has the digest of its intent, and that every commitment is opened by what is
// stored for it, or was erased by an entry.
//
// The witnesses outside the database are its intent journal and anchors; nil or none
// if there are not any. They vouch for the entries that they name: a tail that was
// cut off, or a ledger that was rewritten with all that belongs to it, shows there.
// A broken promise is a [*Violation].
func Verify(ctx context.Context, src VerifySource, journal io.Reader, anchors ...io.Reader) (Report, error) {
	v := &verifier{src: src, open: map[uint64]openIntent{}, rows: newRows(), openings: openings{missing: map[OpeningRef]struct{}{}}}
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
		return v.report, violate(head.Size, "%d entries or tiles lie behind the head of size %d", n, head.Size)
	}
	if err := v.genesis(ctx); err != nil {
		return v.report, err
	}
	at, err := src.Recoveries(ctx)
	if err != nil {
		return v.report, err
	}
	if v.recovered, err = readRecovered(ctx, src, at); err != nil {
		return v.report, violate(0, "%v", err)
	}
	if err := v.witnesses(ctx, journal, anchors); err != nil {
		return v.report, err
	}
	if err := v.rows.want(ctx, src); err != nil {
		return v.report, err
	}
	for from := uint64(0); from < head.Size; from += verifyPage {
		if err := v.page(ctx, from, min(from+verifyPage, head.Size)); err != nil {
			return v.report, err
		}
	}
	return v.report, v.finish(ctx)
}

func (v *verifier) genesis(ctx context.Context) error {
	return v.src.Leaves(ctx, 0, 1, func(_ uint64, b []byte) error {
		g, origin, keys, err := OpenGenesis(b)
		if err != nil {
			return violate(0, "%v", err)
		}
		v.ledger, v.origin, v.keys, v.signers = g.Ledger, origin, keys, newSigners(origin, keys)
		v.report.Origin, v.report.Ledger = v.origin, hex.EncodeToString(g.Ledger[:])
		return nil
	})
}

// witnesses reads what vouches for the entries: journal, anchors, and the checkpoints
// of the database.
func (v *verifier) witnesses(ctx context.Context, journal io.Reader, anchors []io.Reader) error {
	if journal != nil {
		base, err := readJournal(journal, func(i uint64, h tlog.Hash) {
			for i < v.head.Size && uint64(len(v.kept)) <= i {
				v.kept = append(v.kept, tlog.Hash{})
			}
			if i < v.head.Size {
				v.kept[i] = h
			}
		}, func(size uint64, whole bool) { // entries behind a recovery are others
			if !whole && size < uint64(len(v.kept)) {
				clear(v.kept[size:])
			}
		})
		if err != nil {
			return fmt.Errorf("reading the intent journal: %w", err)
		}
		if base > v.head.Size {
			return violate(v.head.Size, "the intent journal knows %d entries, the ledger ends at %d: entries were cut off", base, v.head.Size)
		}
	}
	for _, a := range anchors {
		err := readAnchor(a, v.origin, func(note string) error {
			v.report.Anchored++
			return v.addNote(note, true)
		})
		if err != nil {
			return fmt.Errorf("reading an anchor: %w", err)
		}
	}
	err := v.src.Checkpoints(ctx, func(size uint64, body, note string) error {
		return v.storedCheckpoint(size, body, note)
	})
	slices.SortStableFunc(v.marks, func(a, b mark) int { return cmp.Compare(a.Size, b.Size) })
	return err
}

// storedCheckpoint takes a checkpoint of the database; note is "" if it is not signed.
func (v *verifier) storedCheckpoint(size uint64, body, note string) error {
	if note != "" {
		v.report.Checkpoints++
		if err := v.addNote(note, false); err != nil {
			return err
		}
	}
	c, err := parseBody(body)
	if err != nil || c.Size != size || c.Origin != v.origin || note != "" && !strings.HasPrefix(note, body) {
		return violate(size, "the row of its checkpoint holds another one")
	}
	return v.mark(c, false)
}

// addNote takes a signed checkpoint.
func (v *verifier) addNote(note string, anchored bool) error {
	c, err := v.signers.add(note)
	if err != nil {
		var at uint64
		if _, after, ok := strings.Cut(note, "\n"); ok {
			size, _, _ := strings.Cut(after, "\n")
			at, _ = strconv.ParseUint(size, 10, 64)
		}
		return violate(at, "its checkpoint is not signed by the ledger's key: %v", err)
	}
	if c.Size <= v.head.Size {
		v.report.Signed = max(v.report.Signed, c.Size)
	}
	return v.mark(c, anchored)
}

func (v *verifier) mark(c Checkpoint, anchored bool) error {
	if c.Size > v.head.Size && anchored && gaveUp(v.recovered, c.Size) {
		v.signers.forget(c)
		return nil
	}
	if c.Size > v.head.Size {
		return violate(v.head.Size, "there is a checkpoint of %d entries, but the ledger ends at %d: entries were cut off", c.Size, v.head.Size)
	}
	if c.Size > 0 {
		c.Note = "" // not needed any more, and there may be many
		v.marks = append(v.marks, mark{c, anchored})
	}
	return nil
}

func (v *verifier) page(ctx context.Context, from, to uint64) error {
	var leaves []StoredLeaf
	if err := v.src.StoredLeaves(ctx, from, to, func(l StoredLeaf) error { leaves = append(leaves, l); return nil }); err != nil {
		return err
	}
	for i := range to - from {
		if i >= uint64(len(leaves)) || leaves[i].Index != from+i {
			return violate(from+i, "it is missing")
		}
	}
	arts := map[uint64]Artefact{}
	err := v.src.Artefacts(ctx, from, to, func(a Artefact) error {
		if _, twice := arts[a.Done]; twice {
			return breaks("P3", violate(a.Done, "two certificates claim it"))
		}
		arts[a.Done] = a
		return nil
	})
	if err != nil {
		return err
	}
	if err := v.openings.read(ctx, v.src, from, to); err != nil {
		return err
	}
	for _, l := range leaves {
		if err := v.leaf(ctx, l, arts); err != nil {
			return err
		}
	}
	for done := range arts {
		return breaks("P3", violate(done, "a certificate names it as its done leaf, which it is not"))
	}
	return nil
}

func (v *verifier) leaf(ctx context.Context, s StoredLeaf, arts map[uint64]Artefact) error {
	index, h := s.Index, LeafHash(s.Bytes)
	if index < uint64(len(v.kept)) && v.kept[index] != (tlog.Hash{}) {
		v.report.Journaled++
		if v.kept[index] != h {
			return violate(index, "it is not what the intent journal kept")
		}
	}
	if isRecovery(s.Bytes) { // what the officers signed is about the entries before it
		v.rows.approvals.root = v.edge.head().Root()
	}
	for _, t := range v.edge.add(h) {
		if err := v.tile(ctx, t); err != nil {
			return err
		}
	}
	l, err := DecodeLeaf(s.Bytes)
	if err != nil {
		return violate(index, "%v", err)
	}
	if l.Ledger != v.ledger || (index == 0) != (l.Kind == KindGenesis) {
		return violate(index, "it belongs to another ledger or place")
	}
	if s.Kind != l.Kind || s.Closes != l.Closes {
		return violate(index, "its row is of kind %s and closes %d, which the entry does not say", s.Kind, s.Closes)
	}
	if v.report.Last.Sub(l.Time) > maxBackward {
		v.report.Backward++
	}
	v.report.Last = l.Time
	if err := v.openings.leaf(index, l); err != nil {
		return err
	}
	if err := v.account(index, h, l, arts); err != nil {
		return breaks("P1", err)
	}
	if l.Op == OpCounts {
		v.counts = l.Time
	}
	if v.tally != nil {
		v.tally.add(index, l)
	}
	for len(v.marks) > 0 && v.marks[0].Size == index+1 {
		if m := v.marks[0]; v.edge.head().Root() != m.Root {
			if !m.anchored || !gaveUp(v.recovered, m.Size) {
				return violate(v.lastOK, "the entries from here to %d do not hash to the checkpoint behind them", index)
			}
			v.signers.forget(m.Checkpoint)
		}
		v.marks, v.lastOK = v.marks[1:], index+1
	}
	return nil
}

// tile holds a full tile against the stored one.
func (v *verifier) tile(ctx context.Context, t Tile) error {
	stored, err := v.src.Tile(ctx, t.Level, t.N)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if string(stored) == string(t.Data) {
		return nil
	}
	at := v.lastOK
	if t.Level == 0 && len(stored) == len(t.Data) {
		for i := 0; i < tileWidth; i++ {
			if string(stored[i*32:i*32+32]) != string(t.Data[i*32:i*32+32]) {
				at = t.N*tileWidth + uint64(i)
				break
			}
		}
	}
	return violate(at, "the entries do not hash to tile %d/%d", t.Level, t.N)
}

// account follows intents to their closing leaves and certificates to their done leaf.
func (v *verifier) account(index uint64, h tlog.Hash, l Leaf, arts map[uint64]Artefact) error {
	switch l.Kind {
	case KindIntent:
		v.report.Intents++
		v.open[index] = openIntent{h, l}
		return v.rows.intent(index, l)
	case KindGenesis:
		v.rows.approvals.genesis(l)
		return nil
	case KindEvent:
		if err := v.rows.event(index, l); err != nil {
			return err
		}
		return v.signers.event(index, l, v.rows.approvals.zero)
	case KindDone, KindFailed, KindOrphan:
	default:
		return nil
	}
	in, ok := v.open[l.Closes]
	if !ok {
		return violate(index, "it closes %d, which is no open intent", l.Closes)
	}
	if ref, _ := l.Hash(TagIntentHash); ref != in.hash || in.leaf.Op != l.Op || in.leaf.ID != l.ID {
		return violate(l.Closes, "the leaf %d that closes it names another intent", index)
	}
	delete(v.open, l.Closes)
	switch l.Kind {
	case KindFailed:
		v.report.Failed++
		return nil
	case KindOrphan:
		v.report.Orphans++
		v.rows.orphan(index, in.leaf)
		return nil
	}
	v.report.Done++
	if l.Op == OpCRL {
		v.rows.crl(index, in.leaf, l)
	}
	if l.Op != OpCertificate {
		return nil
	}
	return breaks("P3", v.certificate(index, l, in.leaf, arts))
}

// certificate holds a done leaf against the certificate that is stored for it.
func (v *verifier) certificate(index uint64, l, in Leaf, arts map[uint64]Artefact) error {
	a, ok := arts[index]
	if !ok {
		return violate(index, "it records a certificate that is not stored")
	}
	delete(arts, index)
	artefact, _ := l.Hash(TagArtefact)
	serial, _ := in.Get(TagSerial)
	issuer, _ := in.Hash(TagIssuer)
	tbs, _ := in.Hash(TagTBSHash)
	if a.Intent != l.Closes || a.Hash != artefact || a.Issuer != issuer || string(a.Serial) != string(serial) || a.TBS != tbs {
		return violate(index, "the stored certificate %x is not the one that was recorded", a.Serial)
	}
	if requester, _ := in.Get(TagRequester); a.Odd == "" && Text(a.Requester, 1024) != string(requester) {
		a.Odd = "requester"
	}
	if a.Odd != "" {
		return violate(index, "column %s of certificate %x is not what was recorded", a.Odd, a.Serial)
	}
	if a.CA {
		if err := v.rows.approvals.signsCA(l.Closes, in); err != nil {
			return breaks("P7", err)
		}
	}
	v.rows.certificate(artefact)
	v.report.Certificates++
	return nil
}

func (v *verifier) finish(ctx context.Context) error {
	if err := v.atHead(); err != nil {
		return err
	}
	for i, in := range v.open {
		if v.report.Last.Sub(in.leaf.Time) > closeWithin {
			return breaks("P1", violate(i, "the intent was never closed"))
		}
	}
	err := v.settle(ctx)
	v.report.Succeeds, v.report.Recovered = v.rows.approvals.succeeds, len(v.rows.approvals.recoveries)
	if err != nil {
		return err
	}
	root := v.head.Root()
	v.report.Size, v.report.Open, v.report.Root = v.head.Size, uint64(len(v.open)), hex.EncodeToString(root[:])
	v.report.Opened, v.report.Erased = v.openings.opened, v.openings.erased
	v.report.Revocations, v.report.Grants = v.rows.revocations, v.rows.approvals.made
	return nil
}

// atHead holds the tree against the head.
func (v *verifier) atHead() error {
	if !v.edge.equal(v.head) {
		return violate(v.lastOK, "the entries from here on do not hash to the head of size %d", v.head.Size)
	}
	return nil
}

// settle holds the rows of the database against what all entries have said.
func (v *verifier) settle(ctx context.Context) error {
	if err := v.signers.judge(); err != nil {
		return breaks("P9", err)
	}
	if err := v.openRows(ctx); err != nil {
		return breaks("P1", err)
	}
	if err := v.openings.finish(ctx, v.src, v.head.Size); err != nil {
		return err
	}
	if err := v.rows.finish(ctx, v.src, v.keys); err != nil {
		return err
	}
	for _, r := range v.recovered {
		if _, ok := v.rows.approvals.recoveries[r.From]; !ok {
			return violate(r.From, "the database lists it as a recovery, which it is not")
		}
	}
	return nil
}

// openRows holds the list that a restart works through against the open intents.
func (v *verifier) openRows(ctx context.Context) error {
	listed := 0
	err := v.src.OpenRows(ctx, func(index uint64, node string) error {
		in, ok := v.open[index]
		if !ok {
			return violate(index, "it is listed as an open intent, which it is not")
		}
		if own, _ := in.leaf.Get(TagNode); Text(node, 1024) != string(own) {
			return violate(index, "its intent is listed for node %q", node)
		}
		listed++
		return nil
	})
	if err != nil || listed == len(v.open) {
		return err
	}
	return violate(slices.Min(slices.Collect(maps.Keys(v.open))), "%d of %d open intents from here on are not listed as open", len(v.open)-listed, len(v.open))
}
