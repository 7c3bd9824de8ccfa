package audit

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"
)

// tileWidth is the number of hashes in a full tile (C2SP tlog-tiles, height 8).
const tileWidth = 256

// edge is the right edge of the tree in memory: the compact range that gives the
// root, and per level of tiles the hashes of the tile that is not yet full. An
// append touches O(1) of it, whatever the size of the tree.
type edge struct {
	n     uint64
	rng   []tlog.Hash   // compact range: one hash per set bit of n, largest first
	tiles [][]tlog.Hash // tiles[L]: hashes of level L not yet in a full tile
}

func (e *edge) size() uint64 { return e.n }

func (e *edge) head() Head { return Head{Size: e.n, Range: append([]tlog.Hash(nil), e.rng...)} }

func (e *edge) equal(h Head) bool {
	if h.Size != e.n || len(h.Range) != len(e.rng) {
		return false
	}
	for i := range e.rng {
		if e.rng[i] != h.Range[i] {
			return false
		}
	}
	return true
}

func (e *edge) clone() *edge {
	c := &edge{n: e.n, rng: append([]tlog.Hash(nil), e.rng...), tiles: make([][]tlog.Hash, len(e.tiles))}
	for i, t := range e.tiles {
		c.tiles[i] = append(make([]tlog.Hash, 0, tileWidth), t...)
	}
	return c
}

// add appends a leaf hash and returns the tiles that became full by it.
func (e *edge) add(h tlog.Hash) []Tile {
	index := e.n
	e.rng = appendRange(e.rng, e.n, h)
	e.n++
	var full []Tile
	for level := 0; ; level++ {
		for len(e.tiles) <= level {
			e.tiles = append(e.tiles, nil)
		}
		e.tiles[level] = append(e.tiles[level], h)
		if len(e.tiles[level]) < tileWidth {
			return full
		}
		index /= tileWidth
		full = append(full, Tile{Level: level, N: index, Data: flatten(e.tiles[level])})
		h = rootOf(e.tiles[level])
		e.tiles[level] = nil
	}
}

// appendRange adds a leaf to the compact range of n leaves: as in binary addition,
// a node is joined with its left neighbour for each trailing one bit of n.
func appendRange(rng []tlog.Hash, n uint64, h tlog.Hash) []tlog.Hash {
	for ; n&1 == 1; n >>= 1 {
		h = tlog.NodeHash(rng[len(rng)-1], h)
		rng = rng[:len(rng)-1]
	}
	return append(rng, h)
}

// Root is the tree hash of RFC 6962 §2.1.
func (h Head) Root() tlog.Hash {
	if len(h.Range) == 0 {
		return tlog.Hash(emptyRoot)
	}
	r := h.Range[len(h.Range)-1]
	for i := len(h.Range) - 2; i >= 0; i-- {
		r = tlog.NodeHash(h.Range[i], r)
	}
	return r
}

func rootOf(hs []tlog.Hash) tlog.Hash {
	var rng []tlog.Hash
	for i, h := range hs {
		rng = appendRange(rng, uint64(i), h)
	}
	return Head{Size: uint64(len(hs)), Range: rng}.Root()
}

func flatten(hs []tlog.Hash) []byte {
	b := make([]byte, 0, len(hs)*tlog.HashSize)
	for _, h := range hs {
		b = append(b, h[:]...)
	}
	return b
}

// loadEdge rebuilds the edge of head from the stored tiles and leaves, and checks
// that they give the head's own root.
func loadEdge(ctx context.Context, r Reader, head Head) (*edge, error) {
	if bits.OnesCount64(head.Size) != len(head.Range) {
		return nil, fmt.Errorf("%w: head of size %d holds %d hashes", ErrTampered, head.Size, len(head.Range))
	}
	e := &edge{n: head.Size, rng: append([]tlog.Hash(nil), head.Range...)}
	for level, count := 0, head.Size; count > 0; level, count = level+1, count/tileWidth {
		from := count - count%tileWidth
		part := make([]tlog.Hash, 0, tileWidth)
		for i := from; i < count && level > 0; i++ {
			data, err := r.Tile(ctx, level-1, i)
			if err != nil {
				return nil, fmt.Errorf("%w: tile %d/%d: %v", ErrTampered, level-1, i, err)
			}
			h, err := tileRoot(data)
			if err != nil {
				return nil, err
			}
			part = append(part, h)
		}
		if level == 0 {
			err := r.Leaves(ctx, from, count, func(_ uint64, leaf []byte) error {
				part = append(part, LeafHash(leaf))
				return nil
			})
			if err != nil {
				return nil, fmt.Errorf("reading the newest leaves: %w", err)
			}
		}
		e.tiles = append(e.tiles, part)
	}
	if root, err := e.rootOfTiles(); err != nil || root != head.Root() {
		return nil, fmt.Errorf("%w: stored tiles and leaves do not give the root of head %d", ErrTampered, head.Size)
	}
	return e, nil
}

// rootOfTiles computes the root from the partial tiles alone: read from the
// highest level down they are the compact range, tile by tile.
func (e *edge) rootOfTiles() (tlog.Hash, error) {
	var rng []tlog.Hash
	for level := len(e.tiles) - 1; level >= 0; level-- {
		var part []tlog.Hash
		for i, h := range e.tiles[level] {
			part = appendRange(part, uint64(i), h)
		}
		rng = append(rng, part...)
	}
	return Head{Size: e.n, Range: rng}.Root(), nil
}

func tileRoot(data []byte) (tlog.Hash, error) {
	if len(data) != tileWidth*tlog.HashSize {
		return tlog.Hash{}, fmt.Errorf("%w: tile has %d octets, must have %d", ErrTampered, len(data), tileWidth*tlog.HashSize)
	}
	return rootOf(unflatten(data)), nil
}

func unflatten(data []byte) []tlog.Hash {
	hs := make([]tlog.Hash, len(data)/tlog.HashSize)
	for i := range hs {
		copy(hs[i][:], data[i*tlog.HashSize:])
	}
	return hs
}

// hashes reads nodes of the tree of a given head for package tlog.
func hashes(ctx context.Context, r Reader, size uint64) tlog.HashReaderFunc {
	return func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, ix := range indexes {
			level, n := tlog.SplitStoredHashIndex(ix)
			h, err := node(ctx, r, size, level, uint64(n))
			if err != nil {
				return nil, err
			}
			out[i] = h
		}
		return out, nil
	}
}

// node is the hash over the leaves n<<level … (n+1)<<level - 1, taken from the tile
// that holds it or, at the edge, from the tiles or leaves below.
func node(ctx context.Context, r Reader, size uint64, level int, n uint64) (tlog.Hash, error) {
	if (n+1)<<level > size {
		return tlog.Hash{}, fmt.Errorf("%w: node %d/%d is not in a tree of %d", ErrNotFound, level, n, size)
	}
	tileLevel, inner := level/8, level%8
	first := n << inner // first hash of tileLevel below the node
	count := uint64(1) << inner
	data, err := r.Tile(ctx, tileLevel, first/tileWidth)
	if err == nil {
		hs := unflatten(data)
		at := first % tileWidth
		if uint64(len(hs)) < at+count {
			return tlog.Hash{}, fmt.Errorf("%w: tile %d/%d is cut short", ErrTampered, tileLevel, first/tileWidth)
		}
		return rootOf(hs[at : at+count]), nil
	}
	if !errors.Is(err, ErrNotFound) {
		return tlog.Hash{}, err
	}
	var part []tlog.Hash
	if tileLevel == 0 {
		err := r.Leaves(ctx, first, first+count, func(_ uint64, leaf []byte) error {
			part = append(part, LeafHash(leaf))
			return nil
		})
		if err != nil {
			return tlog.Hash{}, err
		}
	} else {
		for i := first; i < first+count; i++ {
			data, err := r.Tile(ctx, tileLevel-1, i)
			if err != nil {
				return tlog.Hash{}, err
			}
			h, err := tileRoot(data)
			if err != nil {
				return tlog.Hash{}, err
			}
			part = append(part, h)
		}
	}
	return rootOf(part), nil
}

// Proof is the inclusion proof of a leaf in the tree of a size (RFC 6962 §2.1.1).
func Proof(ctx context.Context, r Reader, index, size uint64) (tlog.RecordProof, error) {
	return tlog.ProveRecord(int64(size), int64(index), hashes(ctx, r, size))
}

// emptyRoot is the tree hash of an empty list: SHA-256 of nothing (RFC 6962 §2.1).
var emptyRoot = sha256.Sum256(nil)

// TreeProof is the consistency proof of two sizes (RFC 6962 §2.1.2).
func TreeProof(ctx context.Context, r Reader, old, size uint64) (tlog.TreeProof, error) {
	return tlog.ProveTree(int64(size), int64(old), hashes(ctx, r, size))
}
