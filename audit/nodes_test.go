package audit_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chancery/audit"
	"chancery/dbstore"
)

// node is one of several processes on one PostgreSQL.
type node struct {
	name    string
	db      *dbstore.Store
	ledger  *audit.Ledger
	journal *audit.Journal
	ended   chan error
	stop    context.CancelFunc
}

// nodes makes a ledger and opens it as several nodes.
func nodes(t *testing.T, names ...string) (*bench, []*node) {
	t.Helper()
	b := newLedger(t)
	if strings.HasPrefix(b.url, "sqlite:") {
		t.Skip("several nodes need PostgreSQL")
	}
	b.stop()
	var out []*node
	for _, name := range names {
		n := &node{name: name}
		n.open(t, b)
		t.Cleanup(n.close)
		out = append(out, n)
	}
	return b, out
}

func (n *node) open(t *testing.T, b *bench) {
	t.Helper()
	ctx := context.Background()
	var err error
	if n.db, err = dbstore.Open(ctx, b.url); err != nil {
		t.Fatal(err)
	}
	if err := n.db.LockNode(ctx, n.name); err != nil {
		t.Fatal(err)
	}
	if n.journal, err = audit.OpenJournal(b.path("journal-" + n.name)); err != nil {
		t.Fatal(err)
	}
	n.ledger, err = audit.Open(ctx, n.db, audit.Options{Node: n.name, Build: "test", Journal: n.journal, Shared: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	run, stop := context.WithCancel(ctx)
	n.stop, n.ended = stop, make(chan error, 1)
	go func() { n.ended <- n.ledger.Run(run) }()
}

func (n *node) close() {
	if n.db == nil {
		return
	}
	n.stop()
	<-n.ended
	n.journal.Close()
	n.db.Close()
	n.db = nil
}

func (n *node) operations(t *testing.T, count, callers int) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(count); i = next.Add(1) {
				o, err := n.ledger.Begin(context.Background(), intent(int(i)))
				if err == nil {
					_, err = n.ledger.Done(context.Background(), o, audit.Done{Signature: [32]byte{1}, Artefact: [32]byte{2}, Attempts: []audit.Attempt{{Member: "alpha", Count: 1}}})
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// A node that hangs within a transaction has the lock on the head row: the others wait for
// it for some seconds, not until its connection is found dead.
func TestNodeHangs(t *testing.T) {
	_, all := nodes(t, "a", "b")
	held, release, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- all[0].db.Update(context.Background(), func(tx audit.Tx) error {
			_, err := tx.Head()
			close(held)
			<-release
			return err
		})
	}()
	<-held
	began := time.Now()
	all[1].operations(t, 1, 1)
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("node b wrote after %s", took)
	}
	close(release)
	if err := <-ended; !errors.Is(err, audit.ErrUnavailable) && !errors.Is(err, audit.ErrUncertain) {
		t.Errorf("node a wrote behind node b: %v", err)
	}
	all[0].operations(t, 1, 1)
}

// Nodes that write at the same time make one ledger, each hears of what the others wrote
// once and in order, and the journal of each knows all of it.
func TestNodes(t *testing.T) {
	b, all := nodes(t, "a", "b", "c")
	const each = 150
	heard := make([][]uint64, len(all))
	for i, n := range all {
		n.ledger.OnForeign(func(index uint64, _ audit.Leaf) { heard[i] = append(heard[i], index) })
	}
	var wg sync.WaitGroup
	for _, n := range all {
		wg.Go(func() { n.operations(t, each, 8) })
	}
	wg.Wait()
	for i, n := range all { // an empty write brings a node up to date
		if err := n.ledger.Write(context.Background()); err != nil {
			t.Fatal(err)
		}
		if got := n.ledger.Head().Size; got != 1+2*each*uint64(len(all)) {
			t.Errorf("node %s knows %d entries", n.name, got)
		}
		n.close() // its sequencer has ended: what it heard may be read
		if len(heard[i]) != 2*each*(len(all)-1) {
			t.Errorf("node %s heard of %d entries of others, want %d", n.name, len(heard[i]), 2*each*(len(all)-1))
		}
		for j := 1; j < len(heard[i]); j++ {
			if heard[i][j] <= heard[i][j-1] {
				t.Fatalf("node %s heard of entry %d after %d", n.name, heard[i][j], heard[i][j-1])
			}
		}
	}
	if _, err := b.verify(); err != nil {
		t.Error(err)
	}
	for _, n := range all {
		j, err := audit.OpenJournal(b.path("journal-" + n.name))
		if err != nil {
			t.Fatal(err)
		}
		if want := 1 + 2*each*uint64(len(all)); j.Base() != want {
			t.Errorf("the journal of node %s knows %d entries, want %d", n.name, j.Base(), want)
		}
		j.Close()
		n.open(t, b) // it is compared with the database again
	}
}

// What another node wrote is known before an intent is on the ledger behind it.
func TestStillAsked(t *testing.T) {
	_, all := nodes(t, "a", "b")
	a, b := all[0], all[1]
	var disabled atomic.Bool
	b.ledger.OnForeign(func(_ uint64, l audit.Leaf) {
		if l.Op == audit.OpKeyState {
			disabled.Store(true)
		}
	})
	in := intent(1)
	in.Still = func() error {
		if disabled.Load() {
			return errors.New("the key is disabled")
		}
		return nil
	}
	o, err := b.ledger.Begin(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.ledger.Failed(t.Context(), o, "test", nil); err != nil {
		t.Fatal(err)
	}
	var f audit.Fields
	f.Text(audit.TagState, "disabled")
	if _, err := a.ledger.Append(t.Context(), audit.Event(audit.OpKeyState, f)); err != nil {
		t.Fatal(err)
	}
	size := a.ledger.Head().Size
	if _, err := b.ledger.Begin(t.Context(), in); err == nil || !strings.Contains(err.Error(), "the key is disabled") {
		t.Errorf("an intent behind the entry that forbids it: %v", err)
	}
	if err := a.ledger.Write(t.Context()); err != nil || a.ledger.Head().Size != size {
		t.Errorf("the refused intent is on the ledger: %d entries, %v", a.ledger.Head().Size, err)
	}
}

// The intents of a node that died are found by another, and not those of one that lives.
func TestAbandoned(t *testing.T) {
	bench, all := nodes(t, "a", "b")
	a, b := all[0], all[1]
	o, err := a.ledger.Begin(t.Context(), intent(1))
	if err != nil {
		t.Fatal(err)
	}
	found := func() (left []audit.Left) {
		t.Helper()
		if err := b.ledger.Abandoned(t.Context(), func(l audit.Left) error {
			left = append(left, l)
			for _, o := range l.Intents {
				if _, err := b.ledger.Orphan(t.Context(), o, "its node died", nil); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return left
	}
	if left := found(); len(left) != 0 {
		t.Fatalf("a node that lives was taken for dead: %v", left)
	}
	a.close()
	left := found()
	if len(left) != 1 || left[0].Node != "a" || len(left[0].Intents) != 1 || left[0].Intents[0].Index != o.Index {
		t.Fatalf("left open: %v", left)
	}
	if left := found(); len(left) != 0 {
		t.Errorf("still left open: %v", left)
	}
	a.open(t, bench)
	if open, err := a.ledger.OpenIntents(t.Context()); err != nil || len(open) != 0 {
		t.Errorf("node a finds %v open, %v", open, err)
	}
}

// An entry that claims to be of the node that reads it closes the ledger, also on a node
// that writes nothing.
func TestForgedForeignEntry(t *testing.T) {
	bench, all := nodes(t, "a")
	a := all[0]
	forger := &node{name: "a"} // without the lock of a
	ctx := context.Background()
	var err error
	if forger.db, err = dbstore.Open(ctx, bench.url); err != nil {
		t.Fatal(err)
	}
	if forger.journal, err = audit.OpenJournal(bench.path("journal-forger")); err != nil {
		t.Fatal(err)
	}
	if forger.ledger, err = audit.Open(ctx, forger.db, audit.Options{Node: "a", Journal: forger.journal, Shared: true, Log: slog.New(slog.DiscardHandler)}); err != nil {
		t.Fatal(err)
	}
	run, stop := context.WithCancel(ctx)
	forger.stop, forger.ended = stop, make(chan error, 1)
	go func() { forger.ended <- forger.ledger.Run(run) }()
	t.Cleanup(forger.close)
	if _, err := forger.ledger.Begin(ctx, intent(7)); err != nil {
		t.Fatal(err)
	}
	err = <-a.ended // by itself: it writes nothing
	a.ended <- err
	if !errors.Is(err, audit.ErrTampered) || !errors.Is(a.ledger.Broken(), audit.ErrTampered) {
		t.Errorf("Run ended with %v", err)
	}
}

// zombie holds the first transaction that begins an intent open before its COMMIT, as the
// backend of a server does that was killed.
type zombie struct {
	*dbstore.Store
	in, out chan struct{}
}

func (z zombie) Update(ctx context.Context, fn func(audit.Tx) error) error {
	return z.Store.Update(ctx, func(tx audit.Tx) error {
		err := fn(tx)
		close(z.in)
		<-z.out
		return err
	})
}

// A server is started again at once after kill -9, while the backend of the old one still
// commits: it waits for that, and only then looks for what is open.
func TestAttack_AUD_12(t *testing.T) {
	b, all := nodes(t, "a")
	all[0].close()
	ctx := context.Background()
	z := zombie{in: make(chan struct{}), out: make(chan struct{})}
	var err error
	if z.Store, err = dbstore.Open(ctx, b.url); err != nil {
		t.Fatal(err)
	}
	if err := z.LockNode(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	old, err := audit.Open(ctx, z, audit.Options{Node: "a", Shared: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	run, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() { old.Run(run); close(ended) }()
	begun := make(chan error, 1)
	go func() { _, err := old.Begin(ctx, intent(1)); begun <- err }()
	<-z.in

	fresh := &node{name: "a"}
	opened := make(chan struct{})
	go func() { defer close(opened); fresh.open(t, b) }()
	select {
	case <-opened:
		t.Error("the new server did not wait for the old backend")
	case <-time.After(300 * time.Millisecond): // it must not come: there is no event to wait for
	}
	close(z.out)
	if err := <-begun; err != nil {
		t.Fatal(err)
	}
	stop()
	<-ended
	z.Close()
	<-opened
	t.Cleanup(fresh.close)
	open, err := fresh.ledger.OpenIntents(ctx)
	if err != nil || len(open) != 1 {
		t.Errorf("the new server finds %d open intents, %v; want the one of the old backend", len(open), err)
	}
}
