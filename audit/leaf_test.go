package audit_test

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"chancery/audit"
)

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
		Random, Domain, Roster, Ledger, Leaf, Origin string
		Keys, Acts                                   []string
		TimeUS                                       int64 `json:"time_us"`
	}
	Roots []struct {
		Size uint64
		Root string
	}
	Commitments []struct {
		Ledger, ID, Salt, Value, Commitment string
		Tag                                 audit.Tag
	}
	Evidence []struct{ Record, Digest string }
}

func readVectors(t testing.TB) (v vectors) {
	t.Helper()
	b, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
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
		if got := audit.Digest(d.Name, unhex(t, d.Input)); hex.EncodeToString(got[:]) != d.Digest {
			t.Errorf("Digest(%q) = %x, want %s", d.Name, got, d.Digest)
		}
	}
	for _, c := range v.Commitments {
		o := audit.Opening{Tag: c.Tag, Salt: [32]byte(unhex(t, c.Salt)), Value: unhex(t, c.Value)}
		if got := o.Commitment(audit.LedgerID(unhex(t, c.Ledger)), audit.OpID(unhex(t, c.ID))); hex.EncodeToString(got[:]) != c.Commitment {
			t.Errorf("commitment %x, want %s", got, c.Commitment)
		}
	}
	for _, c := range v.Evidence {
		if got := audit.EvidenceDigest(unhex(t, c.Record)); hex.EncodeToString(got[:]) != c.Digest {
			t.Errorf("digest of evidence %x, want %s", got, c.Digest)
		}
	}
	if len(v.Commitments) == 0 || len(v.Evidence) == 0 {
		t.Error("vectors are missing")
	}
	for _, c := range v.Leaves {
		closes, err := strconv.ParseUint(c.Closes, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		l := audit.Leaf{Kind: audit.Kind(c.Kind), Op: audit.Op(c.Op), Ledger: audit.LedgerID(unhex(t, c.Ledger)), ID: audit.OpID(unhex(t, c.ID)), Time: time.UnixMicro(c.TimeUS), Closes: closes}
		for _, f := range c.Fields {
			l.Fields = append(l.Fields, audit.Field{Tag: audit.Tag(f.Tag), Value: unhex(t, f.Value)})
		}
		b, err := l.Encode()
		if err != nil || hex.EncodeToString(b) != c.Leaf {
			t.Errorf("%s: Encode = %x, %v; want %s", c.Name, b, err, c.Leaf)
			continue
		}
		if h := audit.LeafHash(b); hex.EncodeToString(h[:]) != c.Hash {
			t.Errorf("%s: hash %x, want %s", c.Name, h, c.Hash)
		}
		back, err := audit.DecodeLeaf(b)
		if err != nil {
			t.Errorf("%s: Decode: %v", c.Name, err)
		}
		if again, err := back.Encode(); err != nil || string(again) != string(b) {
			t.Errorf("%s: decoding and encoding gives %x, %v", c.Name, again, err)
		}
	}
	g := audit.Genesis{Random: [32]byte(unhex(t, v.Genesis.Random)), Dev: true, Domain: v.Genesis.Domain, Roster: [32]byte(unhex(t, v.Genesis.Roster)), Acts: v.Genesis.Acts}
	for _, k := range v.Genesis.Keys {
		g.CheckpointKeys = append(g.CheckpointKeys, unhex(t, k))
	}
	l, err := g.Leaf(time.UnixMicro(v.Genesis.TimeUS))
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Encode()
	if err != nil || hex.EncodeToString(b) != v.Genesis.Leaf || hex.EncodeToString(l.Ledger[:]) != v.Genesis.Ledger {
		t.Errorf("genesis = %x, id %x, %v; want %s", b, l.Ledger, err, v.Genesis.Leaf)
	}
	if o := audit.Origin(g.Domain, l.Ledger); o != v.Genesis.Origin {
		t.Errorf("origin %q, want %q", o, v.Genesis.Origin)
	}
}

func TestLeafRefused(t *testing.T) {
	good := unhex(t, readVectors(t).Leaves[1].Leaf)
	const header = 71
	change := func(f func(b []byte) []byte) []byte { return f(append([]byte(nil), good...)) }
	field := func(tag uint16, v string) []byte {
		b := binary.BigEndian.AppendUint16(append([]byte(nil), good[:header]...), tag)
		b = binary.BigEndian.AppendUint32(b, uint32(len(v)))
		return append(b, v...)
	}
	for name, b := range map[string][]byte{
		"empty":                   nil,
		"short header":            good[:header-1],
		"magic":                   change(func(b []byte) []byte { b[3] = '2'; return b }),
		"unknown kind":            change(func(b []byte) []byte { b[4] = 6; return b }),
		"genesis kind":            change(func(b []byte) []byte { b[4] = 0; return b }),
		"done that closes none":   change(func(b []byte) []byte { b[4] = 2; return b }),
		"intent that closes":      change(func(b []byte) []byte { b[70] = 0; return b }),
		"time beyond int64":       change(func(b []byte) []byte { b[55] = 0xff; return b }),
		"trailing octet":          append(append([]byte(nil), good...), 0),
		"cut value":               good[:len(good)-1],
		"unknown tag":             field(0x0fff, "x"),
		"tags fall":               append(field(64, "x"), field(25, "y")[header:]...),
		"tag twice":               append(field(64, "x"), field(64, "y")[header:]...),
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
		if _, err := audit.DecodeLeaf(b); !errors.Is(err, audit.ErrLeaf) {
			t.Errorf("%s: error %v, want ErrLeaf", name, err)
		}
	}
}

// TestAttack_AUD_16 puts hostile text into a leaf.
func TestAttack_AUD_16(t *testing.T) {
	for _, s := range []string{"a\nb", "\u2028", "\x1b[31mred", `"}],`, "\xff\xfe", strings.Repeat("x", 1<<20), "u\u0308\u0000"} {
		var f audit.Fields
		f.Text(audit.TagReason, s)
		l := audit.Leaf{Kind: audit.KindEvent, Op: audit.OpConfig, Time: time.UnixMicro(1), Closes: audit.NoIndex, Fields: f}
		b, err := l.Encode()
		if err != nil {
			t.Errorf("%.20q: %v", s, err)
			continue
		}
		if _, err := audit.DecodeLeaf(b); err != nil || len(b) > 2000 {
			t.Errorf("%.20q: %d octets, %v", s, len(b), err)
		}
	}
}

func FuzzDecodeLeaf(f *testing.F) {
	for _, c := range readVectors(f).Leaves {
		f.Add(unhex(f, c.Leaf))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := audit.DecodeLeaf(b)
		if err != nil {
			return
		}
		again, err := l.Encode()
		if err != nil || string(again) != string(b) {
			t.Fatalf("%x decodes but encodes as %x, %v", b, again, err)
		}
	})
}
