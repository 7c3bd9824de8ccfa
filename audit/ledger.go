package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Options of a [Ledger].
type Options struct {
	Node    string // node_id, in every intent
	Build   string // version of the program, in every intent
	Journal *Journal
	Anchor  string // file of anchored checkpoints (see [NewCheckpointer]): Open holds the ledger against the newest; "" for none
	// Births are the leaves in which checkpoint keys of members that joined were born, as
	// the database has them: an anchored checkpoint may be signed by such a key alone.
	Births  []uint64
	Log     *slog.Logger
	Now     func() time.Time // nil: time.Now
	Queue   int              // entries that may wait; 0: 4,096
	Batch   int              // entries of one transaction at most; 0: 1,024
	Shared  bool             // other nodes write to the same database
	Recover bool             // entries are lost, and the officers have decided to go on: journal and anchor are not compared
	Retain  time.Duration    // how long personal values are kept; 0: DefaultRetain
}

// Ledger is the one writer of the process: see the package comment.
type Ledger struct {
	st    Storage
	opt   Options
	queue chan *item
	stop  chan struct{} // closed when Run has ended
	ended atomic.Bool

	mu     sync.RWMutex
	id     LedgerID
	origin string
	keys   [][]byte // checkpoint keys, SPKI DER: those of leaf 0, then those born later
	grant  [32]byte // of genesis
	head   Head     // last that this process knows to be committed
	broken error
	halted bool // by the sweeper: the sequencer stays and refuses

	foreign func(uint64, Leaf) // see OnForeign

	edge    *edge     // only the sequencer
	newest  time.Time // of the newest entry; only the sequencer
	changed chan struct{}

	refused *refusals
}

type item struct {
	leaf     *StoredLeaf // nil: only projections
	content  Leaf        // of leaf
	proj     []Projection
	still    func() error // see Intent.Still
	err      error
	finished chan struct{}
	taken    atomic.Bool // by the sequencer, or back by who waited for it
}

// take takes an item for one side alone.
func (it *item) take() bool { return it.taken.CompareAndSwap(false, true) }

// Open reads the head of the ledger in st. An empty ledger has a zero [Ledger.ID]
// until [Ledger.Genesis].
func Open(ctx context.Context, st Storage, opt Options) (*Ledger, error) {
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if opt.Queue == 0 {
		opt.Queue = 4096
	}
	if opt.Batch == 0 {
		opt.Batch = 1024
	}
	if opt.Log == nil {
		opt.Log = slog.Default()
	}
	if opt.Retain == 0 {
		opt.Retain = DefaultRetain
	}
	l := &Ledger{st: st, opt: opt, queue: make(chan *item, opt.Queue), stop: make(chan struct{}), changed: make(chan struct{}, 1), refused: newRefusals()}
	head, err := st.Head(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the ledger's head: %w", err)
	}
	l.head = head
	if l.edge, err = loadEdge(ctx, st, head); err != nil {
		return nil, err
	}
	if head.Size > 0 {
		if err := l.readGenesis(ctx); err != nil {
			return nil, err
		}
		for _, index := range opt.Births {
			if index == 0 {
				continue
			}
			if _, err := l.bornLater(ctx, index); err != nil {
				return nil, err
			}
		}
	}
	if opt.Recover {
		return l, nil
	}
	if opt.Journal != nil {
		if err := opt.Journal.compare(ctx, st, head); err != nil {
			return nil, err
		}
	}
	if err := l.compareAnchor(ctx); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *Ledger) readGenesis(ctx context.Context) error {
	g, err := l.Leaf(ctx, 0)
	if err != nil {
		return err
	}
	zero := g
	zero.Ledger = LedgerID{}
	b, err := zero.Encode()
	if err != nil {
		return fmt.Errorf("%w: leaf 0: %v", ErrTampered, err)
	}
	if id := LedgerID(Digest("ledger", b)); id != g.Ledger || g.Kind != KindGenesis {
		return fmt.Errorf("%w: leaf 0 is no genesis of this ledger", ErrTampered)
	}
	domain, _ := g.Get(TagDomain)
	list, _ := g.Get(TagCheckpointKeys)
	keys, err := ParseList(list)
	if err != nil {
		return fmt.Errorf("%w: leaf 0: %v", ErrTampered, err)
	}
	acts, _ := g.Get(TagActs)
	l.mu.Lock()
	l.id, l.origin, l.keys, l.grant = g.Ledger, Origin(string(domain), g.Ledger), keys, genesisGrant(acts)
	l.mu.Unlock()
	return nil
}

// Run is the sequencer. It ends when ctx is done and everything that was queued
// before is committed; or with an error, when the ledger was tampered with or a
// disk can no longer be believed. It takes a restart to go on after that.
func (l *Ledger) Run(ctx context.Context) error {
	defer func() {
		l.ended.Store(true)
		close(l.stop)
		for { // whoever slipped in is told
			select {
			case it := <-l.queue:
				it.fail(fmt.Errorf("%w: the server is stopping", ErrUnavailable))
			default:
				return
			}
		}
	}()
	var others <-chan time.Time
	if l.opt.Shared {
		t := time.NewTicker(followInterval)
		defer t.Stop()
		others = t.C
	}
	for {
		select {
		case it := <-l.queue:
			if err := l.commit(l.fill(it)); err != nil {
				return err
			}
		case <-others:
			if err := l.look(); err != nil {
				return err
			}
		case <-ctx.Done():
			l.ended.Store(true) // from here on nobody queues anything new
			for {
				select {
				case it := <-l.queue:
					if err := l.commit(l.fill(it)); err != nil {
						return err
					}
				default:
					return l.seal()
				}
			}
		}
	}
}

// seal tells the journal the last size, so that it also knows the last batch to be
// a committed one.
func (l *Ledger) seal() error {
	if l.opt.Journal == nil || l.Broken() != nil {
		return nil
	}
	return l.opt.Journal.seal(l.Head().Size)
}

func (l *Ledger) fill(first *item) (batch []*item) {
	for it := first; ; {
		if it.take() {
			batch = append(batch, it)
		}
		if len(batch) == l.opt.Batch {
			return batch
		}
		select {
		case it = <-l.queue:
		default:
			return batch
		}
	}
}

func (it *item) fail(err error) { it.err = err; close(it.finished) }

// commit makes one batch durable. Whoever waits for an item of the batch learns
// its outcome only after COMMIT and the intent journal are both on disk. An error
// ends the sequencer.
func (l *Ledger) commit(batch []*item) error {
	if len(batch) == 0 {
		return nil
	}
	if l.isHalted() {
		for _, it := range batch {
			it.fail(fmt.Errorf("%w: %w", ErrUnavailable, l.Broken()))
		}
		return nil
	}
	next, err := l.write(batch)
	switch {
	case err == nil:
		l.advance(next)
	case errors.Is(err, ErrTampered), errors.Is(err, ErrDisk):
		l.fence(err)
		err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	default:
		l.opt.Log.Error("ledger cannot be written", "err", err)
		err = fmt.Errorf("%w: %v", ErrUnavailable, err)
	}
	for _, it := range batch {
		if err != nil {
			it.err = err
		}
		close(it.finished)
	}
	if l.isHalted() { // while the batch was written: the sequencer stays and refuses
		return nil
	}
	return l.Broken()
}

// write carries out one transaction and gives the edge behind it. When it returns
// an error, nothing of the batch was committed; unless the error wraps ErrDisk:
// then that is not known, and the next start closes what is found open.
//
// Items are stored together first, as almost all can be; if one fails, all are undone and
// stored one by one, so that the others succeed.
func (l *Ledger) write(batch []*item) (next *edge, err error) {
	if err := l.Broken(); err != nil {
		return nil, err
	}
	next, err = l.try(batch, false)
	if errors.Is(err, ErrTogether) {
		next, err = l.try(batch, true)
	}
	return next, err
}

func (l *Ledger) try(batch []*item, apart bool) (next *edge, err error) {
	var synced chan error                                       // result of the journal's fsync, if there is anything to sync
	err = l.st.Update(context.Background(), func(tx Tx) error { // never abandoned half-way: the outcome must be known
		if apart {
			tx.Apart()
		}
		head, err := tx.Head()
		if err != nil {
			return err
		}
		if !l.edge.equal(head) {
			if err := l.follow(context.Background(), head); err != nil {
				return err
			}
		}
		next = l.edge.clone()
		tiles, recs, err := l.apply(tx, next, batch)
		if err != nil || len(recs) == 0 {
			return err
		}
		if err := tx.PutTiles(tiles); err != nil {
			return err
		}
		if err := tx.SetHead(next.head()); err != nil {
			return err
		}
		if l.opt.Journal == nil {
			return nil
		}
		// A journal on a full disk undoes the batch. Only its fsync runs beside COMMIT.
		if err := l.opt.Journal.write(head.Size, recs); err != nil {
			return err
		}
		synced = make(chan error, 1)
		go func() { synced <- l.opt.Journal.sync() }()
		Failpoint("before-commit")
		return nil
	})
	Failpoint("after-commit")
	var serr error
	if synced != nil {
		serr = <-synced
	}
	if errors.Is(err, ErrUncertain) && !errors.Is(err, ErrDisk) {
		err = l.decide(next, first(batch), err)
	}
	if serr != nil {
		// Committed or not: a rollback of the database could no longer be noticed, so
		// nothing of the batch may be acted upon.
		return nil, errors.Join(serr, err)
	}
	if err != nil {
		return nil, err
	}
	return next, nil
}

// apply applies the items that can be applied, in order, to tx and to the tree.
func (l *Ledger) apply(tx Tx, next *edge, batch []*item) (tiles []Tile, recs []journalRecord, err error) {
	for _, it := range batch {
		if it.leaf != nil {
			it.leaf.Index = next.size()
		}
		if it.err = nil; it.still != nil {
			it.err = it.still()
		}
		if it.err != nil {
			continue
		}
		it.err = tx.Item(func() error { return it.apply(tx) })
		if errors.Is(it.err, ErrUnavailable) || errors.Is(it.err, ErrTampered) || errors.Is(it.err, ErrTogether) {
			return nil, nil, it.err
		}
		if it.err != nil || it.leaf == nil {
			continue
		}
		rec := record(it.leaf.Index, it.leaf.Bytes, it.content)
		tiles = append(tiles, next.add(rec.hash)...)
		recs = append(recs, rec)
		if back := l.newest.Sub(it.content.Time); back > maxBackward {
			l.opt.Log.Error("ALARM: the clock went back; entries are ordered by index, not by time", "entry", it.leaf.Index, "back", back)
		}
		l.newest = it.content.Time
	}
	return tiles, recs, nil
}

// maxBackward is how far an entry may lie before its predecessor without an alarm.
const maxBackward = 2 * time.Second

// decideFor is how long the head is asked after a COMMIT without a clear answer.
const decideFor = 5 * time.Second

// decide finds out what became of a COMMIT that gave no clear answer: the batch is
// never written again, the head is read. A head that cannot be read for decideFor
// is ErrDisk. Rows without a leaf leave no trace in the head: whoever wrote them is
// told that it failed, and finds what was made when trying again.
func (l *Ledger) decide(next *edge, first *item, cause error) error {
	if next == nil || first == nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, cause)
	}
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		head, err := l.st.Head(context.Background())
		switch {
		case err == nil && next.equal(head):
			return nil
		case err == nil && l.edge.equal(head):
			return fmt.Errorf("%w: COMMIT was not made: %v", ErrUnavailable, cause)
		case err == nil && l.opt.Shared && head.Size > l.edge.size():
			var stored []byte
			if err = l.st.Leaves(context.Background(), l.edge.size(), l.edge.size()+1, func(_ uint64, b []byte) error { stored = b; return nil }); err == nil {
				if bytes.Equal(stored, first.leaf.Bytes) {
					return nil // others have written since
				}
				return fmt.Errorf("%w: COMMIT was not made: %v", ErrUnavailable, cause)
			}
		case err == nil:
			return fmt.Errorf("%w: head has size %d, this process knows %d", ErrTampered, head.Size, l.edge.size())
		}
		if time.Since(began) > decideFor {
			return fmt.Errorf("%w: %w; reading the head: %v", ErrDisk, cause, err)
		}
	}
}

// first is the first item of a batch whose leaf was appended.
func first(batch []*item) *item {
	for _, it := range batch {
		if it.leaf != nil && it.err == nil {
			return it
		}
	}
	return nil
}

// advance makes a committed edge the present one.
func (l *Ledger) advance(next *edge) {
	l.mu.Lock()
	grew := next.size() > l.head.Size
	l.edge, l.head = next, next.head()
	l.mu.Unlock()
	if grew {
		select {
		case l.changed <- struct{}{}:
		default:
		}
	}
}

// fence ends all writing until a restart. The first cause stays.
func (l *Ledger) fence(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken == nil {
		l.broken = err
		l.opt.Log.Error("ALARM: the ledger is closed until a restart; nothing is signed", "err", err)
		select { // the checkpointer learns of it too
		case l.changed <- struct{}{}:
		default:
		}
	}
}

// halt is fence for the sweeper: the sequencer goes on and refuses whatever comes, so
// that the server stays up to show why.
func (l *Ledger) halt(err error) {
	l.mu.Lock()
	l.halted = true
	l.mu.Unlock()
	l.fence(err)
}

func (l *Ledger) isHalted() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.halted
}

// apply carries out the projections and appends the leaf. A projection that panics
// fails like one that cannot be stored: alone.
func (it *item) apply(tx Tx) (err error) {
	var p Projection
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("storing %T panicked: %v", p, r)
		}
	}()
	if it.leaf != nil && (it.leaf.Kind == KindGenesis) != (it.leaf.Index == 0) {
		return fmt.Errorf("%w: a genesis leaf is leaf 0, and no other is", ErrExists)
	}
	for _, p = range it.proj {
		if err := tx.Apply(p, it.leaf); err != nil {
			return err
		}
	}
	if it.leaf == nil {
		return nil
	}
	return tx.Append(*it.leaf)
}

// submit queues an item, unless ctx has ended or the queue is full, and waits for
// the commit. When ctx ends while the item still waits, behind a database that hangs, it
// is taken back; once the sequencer has it, the outcome is awaited whatever becomes of ctx.
func (l *Ledger) submit(ctx context.Context, it *item) error {
	if broken := l.Broken(); broken != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, broken)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if l.ended.Load() {
		return fmt.Errorf("%w: the server is stopping", ErrUnavailable)
	}
	it.finished = make(chan struct{})
	select {
	case l.queue <- it:
	default:
		return ErrBusy
	}
	for gone := ctx.Done(); ; gone = nil {
		select {
		case <-it.finished:
			return it.err
		case <-gone:
			if it.take() {
				return fmt.Errorf("%w: the ledger did not come to it in time, and nothing was written: %w", ErrUnavailable, ctx.Err())
			}
		case <-l.stop:
			select {
			case <-it.finished:
			default:
				if l.drained(it) {
					return fmt.Errorf("%w: the server is stopping", ErrUnavailable)
				}
			}
			return it.err
		}
	}
}

// drained takes what is left in the queue after Run has ended, so that an item
// queued in that very moment is answered; it reports whether it was still there.
func (l *Ledger) drained(mine *item) bool {
	for {
		select {
		case it := <-l.queue:
			it.fail(fmt.Errorf("%w: the server is stopping", ErrUnavailable))
		case <-mine.finished:
			return mine.err != nil
		}
	}
}

// Append makes a leaf durable together with its projections, or does nothing.
// Errors: ErrUnavailable, ErrBusy, ErrLeaf, and what a projection returns.
func (l *Ledger) Append(ctx context.Context, e Entry, p ...Projection) (Appended, error) {
	leaf := Leaf{Kind: e.Kind, Op: e.Op, Ledger: l.ID(), ID: e.ID, Time: l.opt.Now().UTC().Truncate(time.Microsecond), Closes: e.Closes}
	switch {
	case e.Kind == KindGenesis:
		return Appended{}, fmt.Errorf("%w: a genesis leaf comes from Genesis alone", ErrLeaf)
	case leaf.Ledger == (LedgerID{}):
		return Appended{}, fmt.Errorf("%w: the ledger has no genesis yet", ErrUnavailable)
	}
	if leaf.ID == (OpID{}) {
		leaf.ID = NewOpID()
	}
	p = append(p[:len(p):len(p)], l.commitTo(&e.Fields, leaf, e.Private)...)
	leaf.Fields = e.Fields.sorted()
	b, err := leaf.Encode()
	if err != nil {
		return Appended{}, err
	}
	sl := &StoredLeaf{Kind: leaf.Kind, Closes: leaf.Closes, Bytes: b}
	if leaf.Kind == KindIntent {
		sl.Node = l.opt.Node
	}
	if err := l.submit(ctx, &item{leaf: sl, content: leaf, proj: p, still: e.still}); err != nil {
		return Appended{}, err
	}
	return Appended{Index: sl.Index, Bytes: b, Leaf: leaf}, nil
}

// Write makes projections durable that belong to no leaf (an account, an order),
// all or none, in the same queue as the leaves.
func (l *Ledger) Write(ctx context.Context, p ...Projection) error {
	return l.submit(ctx, &item{proj: p})
}

// Begin makes an intent durable. From now on it must be closed by Done, Failed or Orphan.
func (l *Ledger) Begin(ctx context.Context, in Intent, p ...Projection) (Opened, error) {
	a, err := l.Append(ctx, in.entry(l.opt.Node, l.opt.Build), p...)
	if err != nil {
		return Opened{}, err
	}
	return Opened{Index: a.Index, Hash: LeafHash(a.Bytes), Leaf: a.Leaf}, nil
}

// Done closes o: the key was used, and what came of it commits with this leaf.
func (l *Ledger) Done(ctx context.Context, o Opened, d Done, p ...Projection) (Appended, error) {
	return l.Append(ctx, o.closing(KindDone, d.fields(o.Hash)), p...)
}

// Failed closes o: no signature was made.
func (l *Ledger) Failed(ctx context.Context, o Opened, reason string, as []Attempt, p ...Projection) (Appended, error) {
	return l.Append(ctx, o.closing(KindFailed, unfinished(o, reason, as)), p...)
}

// Orphan closes o: a signature may exist, and none was released.
func (l *Ledger) Orphan(ctx context.Context, o Opened, reason string, as []Attempt, p ...Projection) (Appended, error) {
	return l.Append(ctx, o.closing(KindOrphan, unfinished(o, reason, as)), p...)
}

func unfinished(o Opened, reason string, as []Attempt) Fields {
	var f Fields
	f.Hash(TagIntentHash, o.Hash)
	f.Bytes(TagAttempts, attempts(as))
	f.Text(TagReason, reason)
	return f
}

// OpenIntents returns this node's intents that a crash left open.
func (l *Ledger) OpenIntents(ctx context.Context) ([]Opened, error) {
	return l.openIntents(ctx, l.opt.Node)
}

func (l *Ledger) openIntents(ctx context.Context, node string) ([]Opened, error) {
	leaves, err := l.st.OpenIntents(ctx, node)
	if err != nil {
		return nil, fmt.Errorf("reading open intents: %w", err)
	}
	var out []Opened
	for _, s := range leaves {
		leaf, err := DecodeLeaf(s.Bytes)
		if err == nil && leaf.Kind != KindIntent {
			err = fmt.Errorf("a %s leaf is listed as an open intent", leaf.Kind)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: leaf %d: %v", ErrTampered, s.Index, err)
		}
		out = append(out, Opened{Index: s.Index, Hash: LeafHash(s.Bytes), Leaf: leaf})
	}
	return out, nil
}

// ID is the ledger's id; zero before genesis.
func (l *Ledger) ID() LedgerID {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.id
}

// Head is the last committed head.
func (l *Ledger) Head() Head {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.head
}

// Node is the node_id of this process.
func (l *Ledger) Node() string { return l.opt.Node }

// Origin is the checkpoint origin <operator domain>/ledger/<hex ledger_id[:8]>.
func (l *Ledger) Origin() string {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.origin
}

// Origin is the first line of every checkpoint of a ledger (C2SP tlog-checkpoint).
func Origin(domain string, id LedgerID) string { return fmt.Sprintf("%s/ledger/%x", domain, id[:8]) }

func (l *Ledger) checkpointKeys() [][]byte {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.keys
}

// lineKey is the verifier of a line's key, which leaf 0 or the leaf of its birth names.
func (l *Ledger) lineKey(ctx context.Context, line *CheckpointLine) (*noteVerifier, error) {
	known := func(k []byte) bool { return bytes.Equal(k, line.SPKI) }
	if !slices.ContainsFunc(l.checkpointKeys(), known) {
		spki, err := l.bornLater(ctx, line.Birth)
		if err != nil {
			return nil, err
		}
		if !known(spki) {
			return nil, fmt.Errorf("%w: leaf %d is the birth of another checkpoint key", ErrTampered, line.Birth)
		}
	}
	return newNoteVerifier(l.Origin(), line.SPKI)
}

// bornLater makes the checkpoint key known that was born in a leaf, under a grant of the
// officers: what genesis bore stands in leaf 0.
func (l *Ledger) bornLater(ctx context.Context, index uint64) (spki []byte, err error) {
	leaf, err := l.Leaf(ctx, index)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, fmt.Errorf("reading the birth of a checkpoint key: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if spki = checkpointBirth(leaf, l.grant); spki == nil {
		return nil, fmt.Errorf("%w: leaf %d is not the birth of a checkpoint key under a grant of the officers", ErrTampered, index)
	}
	if !slices.ContainsFunc(l.keys, func(k []byte) bool { return bytes.Equal(k, spki) }) {
		l.keys = append(slices.Clone(l.keys), spki)
	}
	return spki, nil
}

// checkpointBirth is the checkpoint key (SPKI DER) that a leaf says was born under another
// grant than that of genesis; nil if it says something else.
func checkpointBirth(leaf Leaf, genesis [32]byte) []byte {
	spki, _ := leaf.Get(TagSPKI)
	hash, _ := leaf.Hash(TagKey)
	purpose, _ := leaf.Uint(TagPurpose)
	grant, granted := leaf.Hash(TagGrant)
	if leaf.Kind != KindEvent || leaf.Op != OpKeyGenerate || Purpose(purpose) != PurposeCheckpoint || sha256.Sum256(spki) != hash || !granted || grant == genesis {
		return nil
	}
	return spki
}

// CheckpointKeys reads who signs the checkpoints of a ledger: the keys (SPKI DER) of leaf 0,
// then those that the leaves of births say were born later, under the officers' grants. It
// believes the stored leaves; [Verify] does not.
func CheckpointKeys(ctx context.Context, r Reader, births []uint64) (id LedgerID, origin string, keys [][]byte, err error) {
	var genesis [32]byte
	err = r.Leaves(ctx, 0, 1, func(_ uint64, b []byte) error {
		g, o, spkis, err := OpenGenesis(b)
		acts, _ := g.Get(TagActs)
		id, origin, keys, genesis = g.Ledger, o, spkis, genesisGrant(acts)
		return err
	})
	if err != nil {
		return id, "", nil, fmt.Errorf("%w: leaf 0: %w", ErrTampered, err)
	}
	for _, index := range births {
		err := r.Leaves(ctx, index, index+1, func(_ uint64, b []byte) error {
			leaf, err := DecodeLeaf(b)
			if err != nil {
				return err
			}
			if spki := checkpointBirth(leaf, genesis); spki != nil {
				keys = append(keys, bytes.Clone(spki))
			}
			return nil
		})
		if err != nil {
			return id, "", nil, fmt.Errorf("reading the birth of a checkpoint key: %w", err)
		}
	}
	return id, origin, keys, nil
}

// Broken tells why the ledger refuses to go on, or nil.
func (l *Ledger) Broken() error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.broken
}

// Leaf reads one committed leaf.
func (l *Ledger) Leaf(ctx context.Context, index uint64) (Leaf, error) {
	var out Leaf
	err := l.st.Leaves(ctx, index, index+1, func(_ uint64, b []byte) (err error) { out, err = DecodeLeaf(b); return err })
	return out, err
}

// Genesis is leaf 0.
type Genesis struct {
	Random         [32]byte
	Dev            bool
	Domain         string   // operator domain
	Previous       string   // last checkpoint of a predecessor ledger, or ""
	CheckpointKeys [][]byte // SPKI DER
	Roster         [32]byte
	Acts           []string // what may be done without officers until genesis ends
}

// Leaf gives leaf 0 and with it the ledger's id.
func (g Genesis) Leaf(now time.Time) (Leaf, error) {
	var f Fields
	f.Hash(TagRandom, g.Random)
	mode := uint8(2)
	if g.Dev {
		mode = 1
	}
	f.Uint8(TagMode, mode)
	f.Text(TagDomain, g.Domain)
	f.Bytes(TagPrevious, []byte(g.Previous))
	f.List(TagCheckpointKeys, g.CheckpointKeys...)
	f.Hash(TagRoster, g.Roster)
	acts := make([][]byte, len(g.Acts))
	for i, a := range g.Acts {
		acts[i] = []byte(a)
	}
	f.List(TagActs, acts...)
	leaf := Leaf{Kind: KindGenesis, Op: OpGenesis, Time: now.UTC().Truncate(time.Microsecond), Closes: NoIndex, Fields: f.sorted()}
	leaf.ID = OpID(g.Random[:16])
	b, err := leaf.Encode()
	if err != nil {
		return Leaf{}, err
	}
	leaf.Ledger = LedgerID(Digest("ledger", b))
	return leaf, nil
}

// Genesis writes leaf 0 of an empty ledger.
func (l *Ledger) Genesis(ctx context.Context, g Genesis, p ...Projection) error {
	leaf, err := g.Leaf(l.opt.Now())
	if err != nil {
		return err
	}
	b, err := leaf.Encode()
	if err != nil {
		return err
	}
	if l.Head().Size != 0 {
		return fmt.Errorf("%w: the ledger has its genesis", ErrExists)
	}
	sl := &StoredLeaf{Kind: KindGenesis, Closes: NoIndex, Bytes: b}
	if err := l.submit(ctx, &item{leaf: sl, content: leaf, proj: p}); err != nil {
		return err
	}
	return l.readGenesis(context.WithoutCancel(ctx))
}
