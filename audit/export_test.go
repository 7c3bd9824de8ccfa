package audit

import (
	"context"
	"os"

	"golang.org/x/mod/sumdb/tlog"
)

// OnPipe puts the journal on a file that takes writes and cannot be synced.
func (j *Journal) OnPipe(f *os.File) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.f.Close()
	j.f = f
}

// RootOfLeaves gives the root that the edge computes over leaf hashes.
func RootOfLeaves(hs []tlog.Hash) tlog.Hash {
	e := &edge{}
	for _, h := range hs {
		e.add(h)
	}
	if r, err := e.rootOfTiles(); err != nil || r != e.head().Root() {
		panic("edge: tiles and compact range disagree")
	}
	return e.head().Root()
}

// What reads the witnesses.
var (
	ReadJournal = readJournal
	ReadAnchor  = readAnchor
)

// FlushRefusals is what a window ends with.
func (l *Ledger) FlushRefusals(ctx context.Context) error { return l.flushRefusals(ctx) }

// SweepOnce reads all entries as a round of the sweeper does, without pauses.
func SweepOnce(ctx context.Context, l *Ledger, src SweepSource) (Sweep, error) {
	s := NewSweeper(l, src, SweepOptions{})
	for s.state.Whole.IsZero() && len(s.state.Alarms) == 0 {
		s.again(ctx)
	}
	return s.state, l.Broken()
}

// TileProofs proves a leaf, and an older size, from tiles and leaves that a reader gives.
func TileProofs(r Reader, index, old uint64, head Head) (record tlog.RecordProof, tree tlog.TreeProof, err error) {
	if _, err = loadEdge(context.Background(), r, head); err != nil {
		return nil, nil, err
	}
	if record, err = Proof(context.Background(), r, index, head.Size); err != nil {
		return nil, nil, err
	}
	tree, err = TreeProof(context.Background(), r, old, head.Size)
	return record, tree, err
}

// HeadOf is the head over leaf hashes.
func HeadOf(hs []tlog.Hash) Head {
	e := &edge{}
	for _, h := range hs {
		e.add(h)
	}
	return e.head()
}
