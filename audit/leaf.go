package audit

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"sort"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/text/unicode/norm"
)

// MaxLeaf is the largest leaf in octets: a tlog-tiles entry carries its length in
// a uint16 (C2SP tlog-tiles, "Log entries").
const MaxLeaf = 65535

// NoIndex stands for "closes nothing".
const NoIndex = math.MaxUint64

const leafMagic = "CHL1"

// leafHeader is magic, kind, op, ledger_id, op_id, time_us and closes.
const leafHeader = 4 + 1 + 2 + 32 + 16 + 8 + 8

// LedgerID names one ledger: H("ledger", genesis leaf with a zero id).
type LedgerID [32]byte

// OpID names one operation; intent and closing leaf share it.
type OpID [16]byte

// NewOpID draws a fresh operation id.
func NewOpID() OpID {
	var id OpID
	rand.Read(id[:]) // never fails (crypto/rand, since Go 1.24)
	return id
}

// Digest is the domain-separated hash of ENCODINGS:
// SHA-256(u8 len(ctx) ‖ ctx ‖ x) with ctx = "chancery/<name>/v1".
func Digest(name string, x []byte) [32]byte {
	ctx := "chancery/" + name + "/v1"
	if len(ctx) > 255 {
		panic("audit: digest name too long")
	}
	h := sha256.New()
	h.Write([]byte{byte(len(ctx))})
	h.Write([]byte(ctx))
	h.Write(x)
	return [32]byte(h.Sum(nil))
}

// LeafHash is the Merkle leaf hash SHA-256(0x00 ‖ leaf) of RFC 6962 §2.1.
func LeafHash(leaf []byte) tlog.Hash { return tlog.RecordHash(leaf) }

// Field is one tag and its value.
type Field struct {
	Tag   Tag
	Value []byte
}

// Leaf is one decoded entry of the ledger.
type Leaf struct {
	Kind   Kind
	Op     Op
	Ledger LedgerID
	ID     OpID
	Time   time.Time // microseconds, UTC
	Closes uint64    // index of the intent closed, or NoIndex
	Fields []Field   // ascending tags, each once
}

// ErrLeaf is wrapped by every refusal of a leaf's bytes.
var ErrLeaf = errors.New("invalid leaf")

// Encode gives the one encoding of l, or an error that wraps [ErrLeaf].
func (l Leaf) Encode() ([]byte, error) {
	n := leafHeader
	for _, f := range l.Fields {
		n += 6 + len(f.Value)
	}
	if n > MaxLeaf {
		return nil, fmt.Errorf("%w: %d octets, at most %d allowed", ErrLeaf, n, MaxLeaf)
	}
	b := make([]byte, 0, n)
	b = append(b, leafMagic...)
	b = append(b, byte(l.Kind))
	b = binary.BigEndian.AppendUint16(b, uint16(l.Op))
	b = append(b, l.Ledger[:]...)
	b = append(b, l.ID[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(l.Time.UnixMicro()))
	b = binary.BigEndian.AppendUint64(b, l.Closes)
	for _, f := range l.Fields {
		b = binary.BigEndian.AppendUint16(b, uint16(f.Tag))
		b = binary.BigEndian.AppendUint32(b, uint32(len(f.Value)))
		b = append(b, f.Value...)
	}
	if err := l.check(); err != nil {
		return nil, err
	}
	return b, nil
}

// DecodeLeaf reads the bytes of a leaf. Exactly the output of [Leaf.Encode] is
// accepted; anything else gives an error that wraps [ErrLeaf].
func DecodeLeaf(b []byte) (Leaf, error) {
	var l Leaf
	if len(b) > MaxLeaf || len(b) < leafHeader || string(b[:4]) != leafMagic {
		return l, fmt.Errorf("%w: not a %s leaf of %d..%d octets", ErrLeaf, leafMagic, leafHeader, MaxLeaf)
	}
	l.Kind = Kind(b[4])
	l.Op = Op(binary.BigEndian.Uint16(b[5:]))
	copy(l.Ledger[:], b[7:])
	copy(l.ID[:], b[39:])
	us := binary.BigEndian.Uint64(b[55:])
	if us > math.MaxInt64 {
		return l, fmt.Errorf("%w: time out of range", ErrLeaf)
	}
	l.Time = time.UnixMicro(int64(us)).UTC()
	l.Closes = binary.BigEndian.Uint64(b[63:])
	for rest := b[leafHeader:]; len(rest) > 0; {
		if len(rest) < 6 {
			return l, fmt.Errorf("%w: %d trailing octets", ErrLeaf, len(rest))
		}
		tag, n := Tag(binary.BigEndian.Uint16(rest)), binary.BigEndian.Uint32(rest[2:])
		rest = rest[6:]
		if uint64(n) > uint64(len(rest)) {
			return l, fmt.Errorf("%w: tag %d claims %d octets, %d are left", ErrLeaf, tag, n, len(rest))
		}
		l.Fields = append(l.Fields, Field{tag, bytes.Clone(rest[:n])})
		rest = rest[n:]
	}
	return l, l.check()
}

// check holds the rules that the byte layout alone does not.
func (l Leaf) check() error {
	if l.Time.Before(time.UnixMicro(0)) {
		return fmt.Errorf("%w: time out of range", ErrLeaf)
	}
	if l.Kind > KindEvent {
		return fmt.Errorf("%w: unknown kind %d", ErrLeaf, l.Kind)
	}
	if closing := l.Kind == KindDone || l.Kind == KindFailed || l.Kind == KindOrphan; closing != (l.Closes != NoIndex) {
		return fmt.Errorf("%w: a %s leaf must %sclose an intent", ErrLeaf, l.Kind, map[bool]string{false: "not "}[closing])
	}
	if (l.Kind == KindGenesis) != (l.Op == OpGenesis) {
		return fmt.Errorf("%w: kind %s does not go with op %s", ErrLeaf, l.Kind, l.Op)
	}
	last := -1
	for _, f := range l.Fields {
		if int(f.Tag) <= last {
			return fmt.Errorf("%w: tag %d after tag %d; tags must rise", ErrLeaf, f.Tag, last)
		}
		last = int(f.Tag)
		sh, known := tagShapes[f.Tag]
		if !known {
			if f.Tag < tagOptional {
				return fmt.Errorf("%w: unknown tag %d", ErrLeaf, f.Tag)
			}
			continue
		}
		if err := sh.check(f.Value); err != nil {
			return fmt.Errorf("%w: tag %d: %v", ErrLeaf, f.Tag, err)
		}
	}
	return nil
}

func (s shape) check(v []byte) error {
	n := len(v)
	switch s {
	case shapeHash:
		n = 32
	case shapeU8:
		n = 1
	case shapeU64:
		n = 8
	}
	if len(v) != n {
		return fmt.Errorf("%d octets, must be %d", len(v), n)
	}
	switch {
	case len(v) == 0:
		return errors.New("empty")
	case s == shapeSerial && (len(v) > 20 || v[0] == 0):
		return errors.New("not 1..20 octets without a leading zero")
	case s == shapeText:
		return checkText(v)
	}
	return nil
}

// plain tells whether text is printable ASCII, as nearly all of it is.
func plain(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return true
}

func checkText(v []byte) error {
	if plain(string(v)) {
		return nil
	}
	if !utf8.Valid(v) || !norm.NFC.IsNormal(v) {
		return errors.New("not UTF-8 in NFC")
	}
	for _, r := range string(v) {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			return fmt.Errorf("control character %U", r)
		}
	}
	return nil
}

// Text makes s fit for a text field: NFC, no controls, at most max octets.
func Text(s string, max int) string {
	if len(s) <= max && plain(s) {
		return s
	}
	s = norm.NFC.String(string([]rune(s))) // []rune replaces invalid UTF-8
	out := make([]rune, 0, len(s))
	n := 0
	for _, r := range s {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			r = '\uFFFD'
		}
		if n += utf8.RuneLen(r); n > max {
			break
		}
		out = append(out, r)
	}
	return norm.NFC.String(string(out))
}

// Get returns the value of a tag.
func (l Leaf) Get(t Tag) ([]byte, bool) {
	i := sort.Search(len(l.Fields), func(i int) bool { return l.Fields[i].Tag >= t })
	if i < len(l.Fields) && l.Fields[i].Tag == t {
		return l.Fields[i].Value, true
	}
	return nil, false
}

// Hash returns the value of a 32-octet tag.
func (l Leaf) Hash(t Tag) (h [32]byte, ok bool) {
	v, ok := l.Get(t)
	if !ok || len(v) != 32 {
		return h, false
	}
	return [32]byte(v), true
}

// Uint returns the value of an integer tag.
func (l Leaf) Uint(t Tag) (uint64, bool) {
	v, ok := l.Get(t)
	if !ok || len(v) > 8 {
		return 0, false
	}
	var n uint64
	for _, c := range v {
		n = n<<8 | uint64(c)
	}
	return n, true
}

// Fields collects the fields of a leaf in any order and keeps those that are set.
type Fields []Field

// Bytes sets a field unless v is empty.
func (f *Fields) Bytes(t Tag, v []byte) {
	if len(v) > 0 {
		*f = append(*f, Field{t, v})
	}
}

// Hash sets a field unless h is all zero.
func (f *Fields) Hash(t Tag, h [32]byte) {
	if h != ([32]byte{}) {
		f.Bytes(t, h[:])
	}
}

// Text sets a text field unless s is empty; what a leaf cannot carry is replaced.
func (f *Fields) Text(t Tag, s string) { f.Bytes(t, []byte(Text(s, 1024))) }

// Uint8 sets a one-octet field.
func (f *Fields) Uint8(t Tag, n uint8) { f.Bytes(t, []byte{n}) }

// Uint64 sets an eight-octet field.
func (f *Fields) Uint64(t Tag, n uint64) { f.Bytes(t, binary.BigEndian.AppendUint64(nil, n)) }

// List sets a field to u16-length-prefixed items.
func (f *Fields) List(t Tag, items ...[]byte) {
	var b []byte
	for _, it := range items {
		if len(it) > math.MaxUint16 {
			it = it[:math.MaxUint16]
		}
		b = binary.BigEndian.AppendUint16(b, uint16(len(it)))
		b = append(b, it...)
	}
	f.Bytes(t, b)
}

// ParseList reads what [Fields.List] wrote.
func ParseList(b []byte) ([][]byte, error) {
	var out [][]byte
	for len(b) > 0 {
		if len(b) < 2 || len(b) < 2+int(binary.BigEndian.Uint16(b)) {
			return nil, fmt.Errorf("%w: list is cut short", ErrLeaf)
		}
		n := int(binary.BigEndian.Uint16(b))
		out, b = append(out, b[2:2+n]), b[2+n:]
	}
	return out, nil
}

// sorted returns the fields in the order of a leaf.
func (f Fields) sorted() []Field {
	sort.SliceStable(f, func(i, j int) bool { return f[i].Tag < f[j].Tag })
	return f
}
