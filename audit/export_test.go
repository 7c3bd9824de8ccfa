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

// SweepOnce reads all entries as a round of the sweeper does, without pauses.
func SweepOnce(ctx context.Context, l *Ledger, src SweepSource) (Sweep, error) {
	s := NewSweeper(l, src, SweepOptions{})
	for s.state.Whole.IsZero() && len(s.state.Alarms) == 0 {
		s.again(ctx)
	}
	return s.state, l.Broken()
}
