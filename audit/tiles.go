package audit

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// PublishedTile is a tile of hashes in the tree of the newest signed checkpoint (C2SP
// tlog-tiles), w of them from n·256 on: 256 for a full tile. What that tree does not have
// is ErrNotFound. A tile never changes.
func (c *Checkpointer) PublishedTile(ctx context.Context, level int, n, w uint64) ([]byte, error) {
	if level < 0 || level > 7 { // 2^63 leaves have eight levels of tiles
		return nil, fmt.Errorf("%w: tiles have levels 0 to 7", ErrNotFound)
	}
	if err := c.published(ctx, level, n, w); err != nil {
		return nil, err
	}
	st := c.ledger.st
	if w == tileWidth {
		return st.Tile(ctx, level, n)
	}
	var hs []tlog.Hash
	if level == 0 {
		err := st.Leaves(ctx, n*tileWidth, n*tileWidth+w, func(_ uint64, leaf []byte) error { hs = append(hs, LeafHash(leaf)); return nil })
		return flatten(hs), err
	}
	for i := range w {
		below, err := st.Tile(ctx, level-1, n*tileWidth+i)
		if errors.Is(err, ErrNotFound) || err == nil && len(below) != tileWidth*tlog.HashSize {
			return nil, fmt.Errorf("%w: hash tile %d/%d is missing", ErrTampered, level-1, n*tileWidth+i)
		}
		if err != nil {
			return nil, err
		}
		hs = append(hs, rootOf(unflatten(below)))
	}
	return flatten(hs), nil
}

// PublishedEntries is a bundle of entries, each behind its u16 length (C2SP tlog-tiles),
// under the rules of [Checkpointer.PublishedTile].
func (c *Checkpointer) PublishedEntries(ctx context.Context, n, w uint64) (out []byte, err error) {
	if err := c.published(ctx, 0, n, w); err != nil {
		return nil, err
	}
	err = c.ledger.st.Leaves(ctx, n*tileWidth, n*tileWidth+w, func(_ uint64, leaf []byte) error {
		out = append(binary.BigEndian.AppendUint16(out, uint16(len(leaf))), leaf...)
		return nil
	})
	return out, err
}

// published tells whether the newest checkpoint has w hashes of a tile.
func (c *Checkpointer) published(ctx context.Context, level int, n, w uint64) error {
	signed, err := c.Latest(ctx)
	if err != nil {
		return err
	}
	size, err := noteSize(signed)
	if err != nil {
		return err
	}
	if have := size >> (8 * level); w < 1 || w > tileWidth || n > have/tileWidth || n*tileWidth+w > have {
		return fmt.Errorf("%w: the newest checkpoint has %d entries, which do not fill that tile", ErrNotFound, size)
	}
	return nil
}
