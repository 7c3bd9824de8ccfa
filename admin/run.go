package admin

import (
	"context"
	"encoding/json/v2"
	"errors"
	"fmt"
	"time"

	"chancery/audit"
)

// job is a grant that waits for its execution.
type job struct {
	rec   Record
	p     Proposal
	grant *Grant
}

func (b *Board) enqueue(j job) {
	b.mu.Lock()
	b.queue = append(b.queue, j)
	b.mu.Unlock()
	select {
	case b.queued <- struct{}{}:
	default:
	}
}

func (b *Board) next() (j job, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.queue) == 0 {
		return j, false
	}
	j, b.queue = b.queue[0], b.queue[1:]
	return j, true
}

// sweepEvery is how often what waits is looked at: for expiry, and for votes whose
// grant a crash prevented.
const sweepEvery = 10 * time.Second

// Run carries out grants, one after the other, until ctx is done. What a crash left
// approved without a result is failed first: nobody knows how far it came, and no
// grant is carried out twice.
func (b *Board) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for done := false; ; {
		if !done { // a database that is away comes back; the next start does it, if it does not
			if err := b.interrupted(ctx); err == nil {
				done = true
			} else if ctx.Err() == nil {
				b.cfg.Log.Warn("grants that the last end of the server interrupted are not recorded yet", "err", err)
			}
		}
		b.sweep(ctx)
		for j, ok := b.next(); ok; j, ok = b.next() {
			b.execute(ctx, j)
		}
		select {
		case <-ctx.Done():
			for j, ok := b.next(); ok; j, ok = b.next() {
				b.result(j, nil, errInterrupted)
			}
			return nil
		case <-b.queued:
		case <-tick.C:
		}
	}
}

// errInterrupted is the result of a grant that was not carried out, or perhaps not to its end.
var errInterrupted = errors.New("interrupted by the end of the server; look at what is there, then ask again")

// interrupted fails the grants of this node that have no result.
func (b *Board) interrupted(ctx context.Context) error {
	recs, err := b.cfg.Storage.Proposals(ctx, Approved, maxPending)
	if err != nil {
		return fmt.Errorf("listing proposals: %w", err)
	}
	for _, rec := range recs {
		if rec.Node != b.cfg.Ledger.Node() || b.madeHere(rec.Hash) {
			continue
		}
		if err := b.end(ctx, rec, Approved, Failed, nil, errInterrupted.Error()); err != nil && !errors.Is(err, audit.ErrConflict) {
			return err
		}
	}
	return nil
}

// madeHere tells whether this process made the grant: votes may come before Run.
func (b *Board) madeHere(proposal [32]byte) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.made[proposal]
}

// sweep settles what waits.
func (b *Board) sweep(ctx context.Context) {
	recs, err := b.cfg.Storage.Proposals(ctx, Pending, maxPending)
	if err != nil && ctx.Err() == nil {
		b.cfg.Log.Warn("proposals cannot be listed", "err", err)
	}
	for _, rec := range recs {
		if err := b.settle(ctx, rec); err != nil && ctx.Err() == nil {
			b.cfg.Log.Warn("proposal not settled", "id", ProposalID(rec.Hash), "err", err)
		}
	}
}

// maxResult is how long the JSON of a result may be.
const maxResult = 4 << 10

func (b *Board) execute(ctx context.Context, j job) {
	result, err := b.carryOut(ctx, j)
	var out []byte
	if err == nil {
		if out, err = json.Marshal(result, json.Deterministic(true)); err == nil && len(out) > maxResult {
			out = []byte(`{"note":"the result is too long to be kept"}`)
		}
	}
	b.result(j, out, err)
}

// carryOut calls the executor; one that panics fails alone.
func (b *Board) carryOut(ctx context.Context, j job) (result any, err error) {
	defer func() {
		if r := recover(); r != nil {
			b.cfg.Log.Error("an approved act panicked", "id", ProposalID(j.rec.Hash), "panic", r)
			err = errors.New("the server failed in a way that it did not foresee; its log has the cause")
		}
	}()
	if f, err := b.refresh(ctx); err != nil {
		return nil, err
	} else if j.p.Roster != f.digest {
		return nil, errors.New("the roster of the officers changed before it was carried out; ask again")
	}
	b.cfg.Log.Info("officers approved; acting", "id", ProposalID(j.rec.Hash), "action", j.p.Action)
	return b.cfg.Actions[j.p.Action].Execute(ctx, j.grant, j.rec.Parameters)
}

// resultTime is how long the record of a result may take when the server ends.
const resultTime = 5 * time.Second

func (b *Board) result(j job, out []byte, failure error) {
	ctx, cancel := context.WithTimeout(context.Background(), resultTime)
	defer cancel()
	to, reason := Done, ""
	if failure != nil {
		to, reason = Failed, audit.Text(failure.Error(), 500)
		b.cfg.Log.Warn("an approved act failed", "id", ProposalID(j.rec.Hash), "err", failure)
	}
	if err := b.end(ctx, j.rec, Approved, to, out, reason); err != nil {
		b.cfg.Log.Error("what came of an approved act is not recorded; the next start records it as interrupted", "id", ProposalID(j.rec.Hash), "err", err)
	}
}
