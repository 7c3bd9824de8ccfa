package audit

import (
	"context"
	"fmt"
	"log/slog"
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
