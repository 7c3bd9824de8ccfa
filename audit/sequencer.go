package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// The sequencer is the one goroutine that writes: it takes what waits as a batch, stores it
// in one transaction, and tells everyone what became of theirs.

// item is what waits to be written: a leaf with its projections, or projections alone.
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
