package check

import (
	"crypto/sha256"

	"golang.org/x/mod/sumdb/tlog"

	"chancery/cmd/chancery-verify/internal/folder"
	"chancery/cmd/chancery-verify/internal/leaf"
)

// edge is the right edge of the tree: what has to be kept of it to add entries.
type edge struct {
	Size  uint64        `json:"size"`
	Range []leaf.Hash   `json:"range"` // one per set bit of Size, the largest first
	Tiles [][]leaf.Hash `json:"tiles"` // by level: the hashes of the tile that is not full yet
}

// full is a tile that became full.
type full struct {
	level  int
	n      uint64
	hashes []leaf.Hash
}

// add appends the hash of an entry and tells which tiles it filled.
func (e *edge) add(h leaf.Hash) (filled []full) {
	e.Range = join(e.Range, e.Size, h)
	n := e.Size
	e.Size++
	for level := 0; ; level++ {
		if level == len(e.Tiles) {
			e.Tiles = append(e.Tiles, nil)
		}
		e.Tiles[level] = append(e.Tiles[level], h)
		if len(e.Tiles[level]) < folder.Width {
			return filled
		}
		n /= folder.Width
		filled = append(filled, full{level, n, e.Tiles[level]})
		var rng []leaf.Hash
		for i, h := range e.Tiles[level] {
			rng = join(rng, uint64(i), h)
		}
		h, e.Tiles[level] = rng[0], nil
	}
}

// join adds the n-th hash to a range: a hash is joined to its left neighbour for each
// one bit at the end of n (RFC 6962 §2.1).
func join(rng []leaf.Hash, n uint64, h leaf.Hash) []leaf.Hash {
	for ; n&1 == 1; n >>= 1 {
		h = leaf.Hash(tlog.NodeHash(tlog.Hash(rng[len(rng)-1]), tlog.Hash(h)))
		rng = rng[:len(rng)-1]
	}
	return append(rng, h)
}

// root is the tree hash.
func (e *edge) root() leaf.Hash {
	if len(e.Range) == 0 {
		return sha256.Sum256(nil)
	}
	h := e.Range[len(e.Range)-1]
	for i := len(e.Range) - 2; i >= 0; i-- {
		h = leaf.Hash(tlog.NodeHash(tlog.Hash(e.Range[i]), tlog.Hash(h)))
	}
	return h
}

// sound tells whether an edge that was read from a file can be one at all, so that
// adding to it cannot fail.
func (e *edge) sound() bool {
	ones := 0
	for n := e.Size; n > 0; n &= n - 1 {
		ones++
	}
	if ones != len(e.Range) || len(e.Tiles) > 8 {
		return false
	}
	n := e.Size
	for _, t := range e.Tiles {
		if uint64(len(t)) != n%folder.Width {
			return false
		}
		n /= folder.Width
	}
	return n == 0
}

// tiles reads hashes of a tree from the folder; package tlog proves each of them
// against the root.
type tiles struct{ f *folder.Folder }

func (t tiles) Height() int { return 8 }

func (t tiles) ReadTiles(want []tlog.Tile) (data [][]byte, err error) {
	for _, w := range want {
		b, err := t.f.Tile(w.L, uint64(w.N), uint64(w.W))
		if err != nil {
			return nil, err
		}
		data = append(data, b)
	}
	return data, nil
}

func (t tiles) SaveTiles([]tlog.Tile, [][]byte) {}

// rootAt is the root of the tree of the first n entries, proved by the root of a larger one.
func rootAt(f *folder.Folder, n, size uint64, root leaf.Hash) (leaf.Hash, error) {
	h, err := tlog.TreeHash(int64(n), tlog.TileHashReader(tlog.Tree{N: int64(size), Hash: tlog.Hash(root)}, tiles{f}))
	return leaf.Hash(h), err
}
