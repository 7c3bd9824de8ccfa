package leaf_test

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"chancery/cmd/chancery-verify/internal/leaf"
)

// vectors are those of package audit: both implementations must agree on them. They are
// made by a third one, audit/testdata/make_vectors.py.
type vectors struct {
	Digests []struct{ Name, Input, Digest string }
	Leaves  []struct {
		Name       string
		Kind, Op   int
		Ledger, ID string
		TimeUS     int64 `json:"time_us"`
		Closes     string
		Fields     []struct {
			Tag   int
			Value string
		}
		Leaf, Hash string
	}
	Genesis struct {
		Domain, Roster, Ledger, Leaf, Origin string
		Keys                                 []string
	}
	Commitments []struct {
		Ledger, ID, Salt, Value, Commitment string
		Tag                                 leaf.Tag
	}
	Evidence []struct{ Record, Digest string }
}

func readVectors(t testing.TB) (v vectors) {
	t.Helper()
	b, err := os.ReadFile("../../../../audit/testdata/vectors.json")
	if err == nil {
		err = json.Unmarshal(b, &v)
	}
	if err != nil || len(v.Leaves) == 0 || len(v.Digests) == 0 {
		t.Fatalf("vectors: %v", err)
	}
	return v
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestVectors(t *testing.T) {
	v := readVectors(t)
	for _, d := range v.Digests {
		if got := leaf.Digest(d.Name, unhex(t, d.Input)); got.String() != d.Digest {
			t.Errorf("digest %s: %s, want %s", d.Name, got, d.Digest)
		}
	}
	for _, c := range v.Commitments {
		tag := []byte{byte(c.Tag >> 8), byte(c.Tag)}
		got := leaf.Digest("commit", unhex(t, c.Ledger), unhex(t, c.ID), tag, unhex(t, c.Salt), unhex(t, c.Value))
		if got.String() != c.Commitment || !c.Tag.Committed() {
			t.Errorf("commitment %s, want %s", got, c.Commitment)
		}
	}
	for _, c := range v.Evidence {
		if got := leaf.Digest("evidence", unhex(t, c.Record)); got.String() != c.Digest {
			t.Errorf("digest of evidence %s, want %s", got, c.Digest)
		}
	}
	for _, c := range v.Leaves {
		b := unhex(t, c.Leaf)
		var l leaf.Leaf
		if err := leaf.Decode(b, &l); err != nil {
			t.Errorf("%s: %v", c.Name, err)
			continue
		}
		closes := strconv.FormatUint(l.Closes, 10)
		h := tlog.RecordHash(b)
		if int(l.Kind) != c.Kind || int(l.Op) != c.Op || l.Ledger.String() != c.Ledger || hex.EncodeToString(l.ID[:]) != c.ID || l.Time != c.TimeUS || closes != c.Closes || len(l.Fields) != len(c.Fields) || hex.EncodeToString(h[:]) != c.Hash {
			t.Errorf("%s: %+v", c.Name, l)
			continue
		}
		for i, f := range c.Fields {
			if int(l.Fields[i].Tag) != f.Tag || hex.EncodeToString(l.Fields[i].Value) != f.Value {
				t.Errorf("%s: field %d: %v", c.Name, i, l.Fields[i])
			}
			if got := hex.EncodeToString(l.Get(leaf.Tag(f.Tag))); got != f.Value {
				t.Errorf("%s: Get(%d) = %s", c.Name, f.Tag, got)
			}
		}
	}
	g, origin, keys, err := leaf.GenesisOf(unhex(t, v.Genesis.Leaf))
	if err != nil || g.Ledger.String() != v.Genesis.Ledger || origin != v.Genesis.Origin || len(keys) != len(v.Genesis.Keys) {
		t.Fatalf("genesis: %+v, %s, %d keys, %v", g, origin, len(keys), err)
	}
	for i, k := range keys {
		if hex.EncodeToString(k) != v.Genesis.Keys[i] {
			t.Errorf("genesis: key %d is %x", i, k)
		}
	}
	forged := unhex(t, v.Genesis.Leaf)
	forged[len(forged)-1] ^= 1
	if _, _, _, err := leaf.GenesisOf(forged); err == nil {
		t.Error("a genesis with another content has the same ledger id")
	}
}

// TestRefused are the leaves that package audit refuses too (its TestLeafRefused).
func TestRefused(t *testing.T) {
	good := unhex(t, readVectors(t).Leaves[1].Leaf)
	const head = 71
	change := func(at int, to byte) []byte { b := append([]byte(nil), good...); b[at] = to; return b }
	field := func(tag int, v string) []byte {
		n := len(v)
		b := append(append([]byte(nil), good[:head]...), byte(tag>>8), byte(tag), byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
		return append(b, v...)
	}
	for name, b := range map[string][]byte{
		"empty":                   nil,
		"short header":            good[:head-1],
		"magic":                   change(3, '2'),
		"unknown kind":            change(4, 6),
		"genesis kind":            change(4, 0),
		"done that closes none":   change(4, 2),
		"intent that closes":      change(70, 0),
		"time beyond int64":       change(55, 0xff),
		"trailing octet":          append(append([]byte(nil), good...), 0),
		"cut value":               good[:len(good)-1],
		"unknown tag":             field(0x0fff, "x"),
		"tags fall":               append(field(64, "x"), field(25, "y")[head:]...),
		"tag twice":               append(field(64, "x"), field(64, "y")[head:]...),
		"empty text":              field(64, ""),
		"control in text":         field(64, "a\nb"),
		"line separator in text":  field(64, "a\u2028b"),
		"text not NFC":            field(64, "u\u0308"),
		"text not UTF-8":          field(64, "\xff"),
		"hash of 31 octets":       field(16, strings.Repeat("x", 31)),
		"u64 of 7 octets":         field(20, "1234567"),
		"serial with leading 0":   field(22, "\x00\x01"),
		"serial of 21 octets":     field(22, strings.Repeat("\x01", 21)),
		"more than 65,535 octets": field(68, strings.Repeat("x", 65535)),
	} {
		var l leaf.Leaf
		if err := leaf.Decode(b, &l); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	for name, b := range map[string][]byte{
		"as it is":             good,
		"unknown optional tag": field(0x8001, "anything"),
		"text in NFC":          field(64, "\u00fcml\u00e4ut"),
	} {
		var l leaf.Leaf
		if err := leaf.Decode(b, &l); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, c := range readVectors(f).Leaves {
		f.Add(unhex(f, c.Leaf))
	}
	f.Add(unhex(f, readVectors(f).Genesis.Leaf))
	f.Fuzz(func(t *testing.T, b []byte) {
		var l leaf.Leaf
		if leaf.Decode(b, &l) == nil {
			n := 71
			for _, field := range l.Fields {
				n += 6 + len(field.Value)
			}
			if n != len(b) {
				t.Fatalf("%d octets are read as %d", len(b), n)
			}
		}
		_, _, _, _ = leaf.GenesisOf(b)
		_, _ = leaf.List(b)
	})
}
