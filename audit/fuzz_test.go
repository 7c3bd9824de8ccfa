package audit_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"chancery/audit"
)

// FuzzOpenCheckpoint: a note opens only if package note, which is not ours, opens it with
// the same key, and then it says what its three lines say.
func FuzzOpenCheckpoint(f *testing.F) {
	const origin = "ca.example/ledger/0102030405060708"
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		f.Fatal(err)
	}
	v, err := audit.NoteVerifier(origin, spki)
	if err != nil {
		f.Fatal(err)
	}
	sign := func(body string) string {
		sig, err := softSigner{key}.SignCheckpoint(context.Background(), []byte(body))
		if err != nil {
			f.Fatal(err)
		}
		id := v.KeyHash()
		raw := append([]byte{byte(id >> 24), byte(id >> 16), byte(id >> 8), byte(id)}, sig[0].Signature...)
		return body + "\n\u2014 " + origin + " " + base64.StdEncoding.EncodeToString(raw) + "\n"
	}
	root := base64.StdEncoding.EncodeToString(make([]byte, 32))
	f.Add(sign(origin + "\n1\n" + root + "\n"))
	f.Add(sign(origin + "\n01\n" + root + "\n"))
	f.Add(sign(origin + "\n1\n" + root + "\nmore\n"))
	f.Add(sign("other\n1\n" + root + "\n"))
	f.Add(origin + "\n1\n" + root + "\n\n\u2014 " + origin + " AAAA\n")
	f.Fuzz(func(t *testing.T, signed string) {
		// What the fuzzer cannot sign is signed for it: the body is then what it wants.
		body, _, _ := strings.Cut(signed, "\n\n")
		for _, s := range []string{signed, sign(body + "\n")} {
			c, err := audit.OpenCheckpoint(s, origin, [][]byte{spki})
			if err != nil {
				continue
			}
			n, err := note.Open([]byte(s), note.VerifierList(v))
			if err != nil || n.Text != fmt.Sprintf("%s\n%d\n%s\n", origin, c.Size, base64.StdEncoding.EncodeToString(c.Root[:])) {
				t.Errorf("%q opens as size %d, package note: %v", s, c.Size, err)
			}
		}
	})
}

// shelf is a reader of what the fuzzer has put there.
type shelf struct {
	leaves [][]byte
	tiles  map[string][]byte
	head   audit.Head
}

func (s shelf) Head(context.Context) (audit.Head, error) { return s.head, nil }

func (s shelf) Leaves(_ context.Context, from, to uint64, fn func(uint64, []byte) error) error {
	for i := from; i < to; i++ {
		if i >= uint64(len(s.leaves)) {
			return fmt.Errorf("%w: leaf %d is missing", audit.ErrTampered, i)
		}
		if err := fn(i, s.leaves[i]); err != nil {
			return err
		}
	}
	return nil
}

func (s shelf) Tile(_ context.Context, level int, n uint64) ([]byte, error) {
	if b, ok := s.tiles[fmt.Sprint(level, "/", n)]; ok {
		return b, nil
	}
	return nil, audit.ErrNotFound
}

// FuzzTiles edits a stored tree of 600 leaves with two full tiles: whatever the tiles hold,
// a proof that is made from them verifies against the head, or there is none.
func FuzzTiles(f *testing.F) {
	const size = 600
	var whole shelf
	var hashes []tlog.Hash
	for i := range size {
		leaf := fmt.Appendf(nil, "leaf %d", i)
		whole.leaves = append(whole.leaves, leaf)
		hashes = append(hashes, audit.LeafHash(leaf))
	}
	whole.tiles = map[string][]byte{}
	for n := range 2 {
		var tile []byte
		for _, h := range hashes[n*256 : n*256+256] {
			tile = append(tile, h[:]...)
		}
		whole.tiles[fmt.Sprint("0/", n)] = tile
	}
	whole.head = audit.HeadOf(hashes)
	root := whole.head.Root()
	f.Add(uint8(0), uint16(0), []byte(nil), uint16(0), uint16(1))
	f.Add(uint8(1), uint16(8100), []byte("xyz"), uint16(599), uint16(300))
	f.Add(uint8(0), uint16(32), []byte{0}, uint16(1), uint16(256))
	f.Fuzz(func(t *testing.T, n uint8, at uint16, with []byte, index, old uint16) {
		s := shelf{leaves: whole.leaves, head: whole.head, tiles: map[string][]byte{}}
		for name, tile := range whole.tiles {
			s.tiles[name] = append([]byte(nil), tile...)
		}
		name := fmt.Sprint("0/", n%2)
		tile := s.tiles[name]
		s.tiles[name] = append(tile[:min(int(at), len(tile))], append(with, tile[min(int(at)+len(with), len(tile)):]...)...)
		i, o := uint64(index)%size, 1+uint64(old)%size
		record, tree, err := audit.TileProofs(s, i, o, s.head)
		if err != nil {
			return
		}
		if err := tlog.CheckRecord(record, size, root, int64(i), hashes[i]); err != nil {
			t.Errorf("proof of %d from tiles that are not the tree's: %v", i, err)
		}
		if err := tlog.CheckTree(tree, size, root, int64(o), audit.HeadOf(hashes[:o]).Root()); err != nil {
			t.Errorf("proof of size %d: %v", o, err)
		}
	})
}
