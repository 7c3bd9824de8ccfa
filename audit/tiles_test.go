package audit_test

import (
	"encoding/binary"
	"errors"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"chancery/audit"
)

// published reads tiles as package tlog wants them.
type published struct {
	t *testing.T
	c *audit.Checkpointer
}

func (p published) Height() int                     { return 8 }
func (p published) SaveTiles([]tlog.Tile, [][]byte) {}
func (p published) ReadTiles(want []tlog.Tile) (out [][]byte, err error) {
	for _, w := range want {
		b, err := p.c.PublishedTile(p.t.Context(), w.L, uint64(w.N), uint64(w.W))
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

// Full and partial tiles of several levels prove every entry of the newest checkpoint to
// package tlog; what is behind it is not published, though it is on the ledger.
func TestPublishedTiles(t *testing.T) {
	b := newLedger(t)
	c := audit.NewCheckpointer(b.ledger, b.signer, "")
	if _, err := c.PublishedTile(t.Context(), 0, 0, 1); !errors.Is(err, audit.ErrNotFound) {
		t.Errorf("before the first checkpoint: %v", err)
	}
	b.fill(700)
	note := b.checkpoint()
	cp, err := audit.OpenCheckpoint(note, b.ledger.Origin(), [][]byte{b.spki})
	if err != nil {
		t.Fatal(err)
	}
	size := b.ledger.Head().Size
	b.fill(300)
	if cp.Size != size || b.ledger.Head().Size <= size+256 {
		t.Fatalf("a checkpoint of %d entries, then %d", cp.Size, b.ledger.Head().Size)
	}
	r := tlog.TileHashReader(tlog.Tree{N: int64(size), Hash: cp.Root}, published{t, c})
	for n := uint64(0); n*256 < size; n++ {
		w := min(256, size-n*256)
		bundle, err := c.PublishedEntries(t.Context(), n, w)
		if err != nil {
			t.Fatal(err)
		}
		for i := n * 256; i < n*256+w; i++ {
			l := 2 + int(binary.BigEndian.Uint16(bundle))
			p, err := tlog.ProveRecord(int64(size), int64(i), r)
			if err == nil {
				err = tlog.CheckRecord(p, int64(size), cp.Root, int64(i), tlog.RecordHash(bundle[2:l]))
			}
			if err != nil {
				t.Fatalf("entry %d: %v", i, err)
			}
			bundle = bundle[l:]
		}
		if len(bundle) > 0 {
			t.Errorf("bundle %d has %d octets too many", n, len(bundle))
		}
	}
	last, width := size/256, size%256
	for _, bad := range []struct {
		level int
		n, w  uint64
	}{{0, last, width + 1}, {0, last, 256}, {0, last + 1, 1}, {1, 0, size>>8 + 1}, {1, 1, 1}, {2, 0, 1}, {0, 0, 0}, {0, 0, 257}, {8, 0, 1}, {-1, 0, 1}, {0, 1 << 62, 256}} {
		if _, err := c.PublishedTile(t.Context(), bad.level, bad.n, bad.w); !errors.Is(err, audit.ErrNotFound) {
			t.Errorf("tile %+v: %v", bad, err)
		}
	}
	if _, err := c.PublishedEntries(t.Context(), last, width+1); !errors.Is(err, audit.ErrNotFound) {
		t.Errorf("entries behind the checkpoint: %v", err)
	}
	if !strings.Contains(note, "\n"+strconv.FormatUint(size, 10)+"\n") {
		t.Errorf("note:\n%s", note)
	}
}
