package audit

import "golang.org/x/mod/sumdb/tlog"

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
