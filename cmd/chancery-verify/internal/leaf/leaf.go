// Package leaf reads the entries of a Chancery ledger as the text ENCODINGS defines
// them. It is written a second time on purpose: package audit of the server writes what
// is read here, and neither knows the other.
package leaf

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// Max is the largest leaf in octets: C2SP tlog-tiles gives it a uint16 for its length.
const Max = 65535

// None stands for "closes nothing".
const None = math.MaxUint64

// head is magic 4, kind 1, op 2, ledger_id 32, op_id 16, time_us 8, closes 8.
const head = 71

// Hash is a SHA-256; in JSON it is hexadecimal.
type Hash [32]byte

func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText makes a hash fit for JSON, as a key too.
func (h Hash) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h[:]), nil }

// UnmarshalText reads what MarshalText wrote.
func (h *Hash) UnmarshalText(b []byte) error {
	if len(b) != 2*len(h) {
		return errors.New("a hash has 64 hexadecimal digits")
	}
	_, err := hex.Decode(h[:], b)
	return err
}

// Sum is SHA-256.
func Sum(b []byte) Hash { return sha256.Sum256(b) }

// Digest is H(ctx, x) of ENCODINGS with ctx = "chancery/<name>/v1".
func Digest(name string, x ...[]byte) (h Hash) {
	ctx := "chancery/" + name + "/v1"
	d := sha256.New()
	d.Write([]byte{byte(len(ctx))})
	d.Write([]byte(ctx))
	for _, b := range x {
		d.Write(b)
	}
	d.Sum(h[:0])
	return h
}

// Field is one tag with its value.
type Field struct {
	Tag   Tag
	Value []byte
}

// Leaf is an entry, read. Values point into the octets that it was read from.
type Leaf struct {
	Kind   Kind
	Op     Op
	Ledger Hash
	ID     [16]byte
	Time   int64  // microseconds since 1970
	Closes uint64 // index of the intent, or None
	Fields []Field
}

// Decode reads a leaf into l and keeps nothing of what l held but its memory. Whatever
// is not the one encoding of a leaf is an error.
func Decode(b []byte, l *Leaf) error {
	*l = Leaf{Fields: l.Fields[:0]}
	switch {
	case len(b) > Max:
		return fmt.Errorf("it has %d octets, more than %d", len(b), Max)
	case len(b) < head || string(b[:4]) != "CHL1":
		return errors.New("it does not begin as a leaf does")
	}
	l.Kind, l.Op = Kind(b[4]), Op(binary.BigEndian.Uint16(b[5:]))
	l.Ledger, l.ID = Hash(b[7:39]), [16]byte(b[39:55])
	us := binary.BigEndian.Uint64(b[55:])
	l.Closes = binary.BigEndian.Uint64(b[63:])
	closing := l.Kind == Done || l.Kind == Failed || l.Kind == Orphan
	switch {
	case us > math.MaxInt64:
		return errors.New("its time is out of range")
	case l.Kind > Event:
		return fmt.Errorf("its kind %d is unknown", l.Kind)
	case closing && l.Closes == None:
		return fmt.Errorf("it is of kind %s and closes nothing", l.Kind)
	case !closing && l.Closes != None:
		return fmt.Errorf("it is of kind %s and closes an intent", l.Kind)
	case (l.Kind == Genesis) != (l.Op == OpGenesis):
		return fmt.Errorf("kind %s does not go with op %s", l.Kind, l.Op)
	}
	l.Time = int64(us)
	return l.fields(b[head:])
}

// fields reads the TLV: tags rise, known ones have their shape, nothing is left over.
func (l *Leaf) fields(b []byte) error {
	last := -1
	for len(b) > 0 {
		if len(b) < 6 {
			return fmt.Errorf("%d octets are left over", len(b))
		}
		tag, n := Tag(binary.BigEndian.Uint16(b)), uint64(binary.BigEndian.Uint32(b[2:]))
		b = b[6:]
		switch {
		case n > uint64(len(b)):
			return fmt.Errorf("tag %d claims %d octets, %d are left", tag, n, len(b))
		case int(tag) <= last:
			return fmt.Errorf("tag %d stands behind tag %d", tag, last)
		}
		value := b[:n:n]
		s, known := shapes[tag]
		switch {
		case known:
			if err := s.check(value); err != nil {
				return fmt.Errorf("tag %d: %w", tag, err)
			}
		case tag < optional:
			return fmt.Errorf("tag %d is unknown", tag)
		}
		l.Fields = append(l.Fields, Field{tag, value})
		last, b = int(tag), b[n:]
	}
	return nil
}

func (s shape) check(v []byte) error {
	if want := s.octets(); want > 0 && len(v) != want {
		return fmt.Errorf("%d octets, there must be %d", len(v), want)
	}
	switch {
	case len(v) == 0:
		return errors.New("it is empty")
	case s == serial && (len(v) > 20 || v[0] == 0): // RFC 5280 §4.1.2.2
		return errors.New("a serial has 1 to 20 octets and no leading zero")
	case s == text:
		return checkText(v)
	}
	return nil
}

// octets is the fixed length of a shape, 0 if it has none.
func (s shape) octets() int {
	switch s {
	case hash:
		return 32
	case u8:
		return 1
	case u64:
		return 8
	}
	return 0
}

func checkText(v []byte) error {
	ascii := true
	for _, c := range v {
		ascii = ascii && c >= 0x20 && c < 0x7f
	}
	if ascii {
		return nil
	}
	if !utf8.Valid(v) || !norm.NFC.IsNormal(v) {
		return errors.New("it is not UTF-8 in normal form C")
	}
	for _, r := range string(v) {
		if unicode.Is(unicode.Cc, r) || r == '\u2028' || r == '\u2029' {
			return fmt.Errorf("it has the control character %U", r)
		}
	}
	return nil
}

// Get is the value of a tag, nil if there is none; no value is empty.
func (l *Leaf) Get(t Tag) []byte {
	for i := range l.Fields {
		if l.Fields[i].Tag == t {
			return l.Fields[i].Value
		}
	}
	return nil
}

// Text is the value of a text, "" if there is none.
func (l *Leaf) Text(t Tag) string { return string(l.Get(t)) }

// Hash is the value of a tag of 32 octets.
func (l *Leaf) Hash(t Tag) (h Hash, ok bool) {
	v := l.Get(t)
	if len(v) != len(h) {
		return h, false
	}
	return Hash(v), true
}

// Uint is the value of an integer.
func (l *Leaf) Uint(t Tag) (n uint64, ok bool) {
	v := l.Get(t)
	if len(v) > 8 {
		return 0, false
	}
	for _, c := range v {
		n = n<<8 | uint64(c)
	}
	return n, v != nil
}

// List takes apart what stands behind u16 lengths.
func List(b []byte) (out [][]byte, err error) {
	for len(b) > 0 {
		if len(b) < 2 || len(b)-2 < int(binary.BigEndian.Uint16(b)) {
			return nil, errors.New("a list is cut short")
		}
		n := 2 + int(binary.BigEndian.Uint16(b))
		out, b = append(out, b[2:n:n]), b[n:]
	}
	return out, nil
}

// GenesisOf reads leaf 0: its ledger id must be the digest of itself with a zero id.
// It returns the origin of the ledger's checkpoints and the keys (SPKI DER) that sign them.
func GenesisOf(b []byte) (l Leaf, origin string, keys [][]byte, err error) {
	if err = Decode(b, &l); err != nil {
		return l, "", nil, err
	}
	var zero Hash
	if id := Digest("ledger", b[:7], zero[:], b[39:]); l.Kind != Genesis || id != l.Ledger {
		return l, "", nil, errors.New("it is no genesis: the ledger id is not its digest")
	}
	if keys, err = List(l.Get(TagCheckpointKeys)); err == nil && len(keys) == 0 {
		err = errors.New("it names no checkpoint key")
	}
	return l, fmt.Sprintf("%s/ledger/%x", l.Text(TagDomain), l.Ledger[:8]), keys, err
}
