package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Several nodes write one ledger on one PostgreSQL. The lock on the head row orders
// them: whoever has it finds the head ahead of what it wrote last and first takes up
// what the others have written, holds it against the head, notes it in its own journal,
// and tells who asked ([Ledger.OnForeign]). So each entry is written by a node that
// knows all before it.

// followInterval is how often a node that writes nothing looks for what others wrote.
const followInterval = time.Second

// OnForeign has fn called for each leaf that another node wrote, in order, before
// anything of this node is written behind it. fn is called by the sequencer: it must
// neither wait nor write to the ledger. Set it before the ledger is used.
func (l *Ledger) OnForeign(fn func(index uint64, leaf Leaf)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.foreign = fn
}

// ErrLost goes with ErrTampered when entries are gone that this process knows to be
// committed. Where several nodes share a database the sequencer, which looks once a second,
// then ends the server.
var ErrLost = errors.New("the database lost entries that it had committed, as after a failover to a standby that was not synchronous")

// Lost is the ErrTampered of a database whose head has fewer entries than a process knows
// to be committed.
func Lost(has, known uint64) error {
	return fmt.Errorf("%w: head has size %d, this process knows %d: %w", ErrTampered, has, known, ErrLost)
}

// follow takes up what other nodes have written up to head. Only the sequencer calls
// it. What is there must go on from what this node knows; a head that went back does
// not: the database lost what it had committed.
func (l *Ledger) follow(ctx context.Context, head Head) error {
	behind := fmt.Errorf("%w: head has size %d, this process knows %d", ErrTampered, head.Size, l.edge.size())
	switch {
	case !l.opt.Shared:
		return behind
	case head.Size < l.edge.size():
		return Lost(head.Size, l.edge.size())
	case head.Size == l.edge.size() || l.edge.size() == 0:
		return behind
	}
	l.mu.RLock()
	id, tell := l.id, l.foreign
	l.mu.RUnlock()
	next := l.edge.clone()
	var recs []journalRecord
	var leaves []Leaf
	err := l.st.Leaves(ctx, l.edge.size(), head.Size, func(index uint64, b []byte) error {
		leaf, err := DecodeLeaf(b)
		if err != nil {
			return fmt.Errorf("%w: entry %d of another node: %v", ErrTampered, index, err)
		}
		if node, _ := leaf.Get(TagNode); leaf.Ledger != id || leaf.Kind == KindIntent && string(node) == l.opt.Node {
			return fmt.Errorf("%w: entry %d is none that another node can have written", ErrTampered, index)
		}
		next.add(LeafHash(b))
		recs = append(recs, record(index, b, leaf))
		leaves = append(leaves, leaf)
		return nil
	})
	if err != nil {
		return err
	}
	if !next.equal(head) {
		return fmt.Errorf("%w: entries %d to %d do not give the head's tree", ErrTampered, l.edge.size(), head.Size-1)
	}
	if l.opt.Journal != nil { // its fsync comes with the next batch: the writer's own journal has them
		for part := range slices.Chunk(recs, l.opt.Batch) {
			if err := l.opt.Journal.write(part[0].index, part); err != nil {
				return err
			}
		}
	}
	for i, leaf := range leaves {
		if tell != nil {
			tell(recs[i].index, leaf)
		}
		l.newest = leaf.Time
	}
	l.advance(next)
	return nil
}

// look is follow for a node that writes nothing now. A database that does not answer is
// no news; the next write tells.
func (l *Ledger) look() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	head, err := l.st.Head(ctx)
	if err != nil || l.edge.equal(head) || l.Broken() != nil {
		return nil
	}
	if err := l.follow(ctx, head); errors.Is(err, ErrTampered) || errors.Is(err, ErrDisk) {
		l.fence(err)
		if !l.isHalted() {
			return l.Broken()
		}
	}
	return nil
}

// Left are the intents that a node has left open.
type Left struct {
	Node    string
	Intents []Opened
}

// Abandoned calls fn for each other node that has open intents and does not live any
// more, holding that node's lock: it cannot come back before fn has returned.
func (l *Ledger) Abandoned(ctx context.Context, fn func(Left) error) error {
	nodes, err := l.st.OpenNodes(ctx)
	if err != nil {
		return fmt.Errorf("reading whose intents are open: %w", err)
	}
	for _, node := range nodes {
		if node == l.opt.Node {
			continue
		}
		if err := l.abandoned(ctx, node, fn); err != nil {
			return fmt.Errorf("node %s: %w", node, err)
		}
	}
	return nil
}

func (l *Ledger) abandoned(ctx context.Context, node string, fn func(Left) error) error {
	release, dead, err := l.st.LockDead(ctx, node)
	if err != nil || !dead {
		return err
	}
	defer release()
	open, err := l.openIntents(ctx, node)
	if err != nil || len(open) == 0 {
		return err
	}
	return fn(Left{Node: node, Intents: open})
}
