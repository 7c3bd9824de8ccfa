package audit

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/text/unicode/norm"
)

// Private is a personal value of an entry. The leaf carries its commitment only, as ENCODINGS
// has it; what opens it is kept beside the ledger and can be erased (see [Ledger.Erase])
// while every hash and proof stays as it is.
type Private struct {
	Tag   Tag    // TagAddress or TagAsked
	Value string // "": nothing is committed
}

// Committed tells whether the value of a tag is a commitment.
func (t Tag) Committed() bool { return t == TagAddress || t == TagAsked }

// Opening is what opens one commitment of a leaf.
type Opening struct {
	Tag   Tag
	Salt  [32]byte
	Value []byte
}

// Commitment is H("commit", ledger_id ‖ op_id ‖ tag u16 ‖ salt32 ‖ value) of ENCODINGS. The
// salt of 256 bits keeps anyone from finding the value by trying: without the opening
// the commitment says nothing.
func (o Opening) Commitment(ledger LedgerID, op OpID) [32]byte {
	b := make([]byte, 0, len(ledger)+len(op)+2+len(o.Salt)+len(o.Value))
	b = append(append(b, ledger[:]...), op[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(o.Tag))
	return Digest("commit", append(append(b, o.Salt[:]...), o.Value...))
}

// Opens tells whether o opens the commitment that stands in l under its tag.
func (o Opening) Opens(l Leaf) bool {
	c, ok := l.Hash(o.Tag)
	return ok && o.Tag.Committed() && c == o.Commitment(l.Ledger, l.ID)
}

// Is tells whether text is a line of the value or, of what was asked for, what stands in a
// line behind the name of an attribute ("CN=") or the kind of a name ("dns:"). Upper and
// lower case are the same, as clients write names as they like, and so are all forms of
// an address.
func (o Opening) Is(text string) bool {
	if text == "" {
		return false
	}
	text = norm.NFC.String(text) // as [Text] has made the value
	ip, err := netip.ParseAddr(text)
	same := func(part string) bool {
		if strings.EqualFold(part, text) {
			return true
		}
		if err != nil {
			return false
		}
		other, perr := netip.ParseAddr(part)
		return perr == nil && other.Unmap() == ip.Unmap()
	}
	for line := range strings.SplitSeq(string(o.Value), "\n") {
		i := strings.IndexAny(line, "=:")
		if same(line) || o.Tag == TagAsked && i >= 0 && same(line[i+1:]) {
			return true
		}
	}
	return false
}

// PutOpenings commits with the leaf whose commitments it opens.
type PutOpenings struct {
	RetainUntil time.Time // to the second
	Openings    []Opening
}

// OpeningRef names one opening.
type OpeningRef struct {
	Index uint64
	Tag   Tag
}

// EraseOpenings commits with the leaf that names the same openings; audit.ErrConflict if
// one of them is gone.
type EraseOpenings struct{ Refs []OpeningRef } // by ascending index

func (PutOpenings) Projection()   {}
func (EraseOpenings) Projection() {}

// StoredOpenings are the openings of one leaf, as storage has them.
type StoredOpenings struct {
	Index       uint64
	RetainUntil time.Time
	Openings    []Opening
}

// OpeningQuery selects openings by entry and, unless Before is zero, by the end of their retention.
type OpeningQuery struct {
	From, To uint64 // entries From..To-1
	Before   time.Time
}

// EncodeOpenings gives the bytes of a row: for each opening tag u16 ‖ salt32 ‖ u32 length ‖ value.
func EncodeOpenings(os []Opening) []byte {
	var b []byte
	for _, o := range os {
		b = append(binary.BigEndian.AppendUint16(b, uint16(o.Tag)), o.Salt[:]...)
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(o.Value))), o.Value...)
	}
	return b
}

// DecodeOpenings reads what [EncodeOpenings] wrote.
func DecodeOpenings(b []byte) (out []Opening, err error) {
	const head = 2 + 32 + 4
	for len(b) > 0 {
		if len(b) < head || uint64(len(b)-head) < uint64(binary.BigEndian.Uint32(b[34:])) {
			return nil, errors.New("openings are cut short")
		}
		n := head + int(binary.BigEndian.Uint32(b[34:]))
		out = append(out, Opening{Tag: Tag(binary.BigEndian.Uint16(b)), Salt: [32]byte(b[2:34]), Value: b[head:n:n]})
		b = b[n:]
	}
	return out, nil
}

// DefaultRetain is how long personal values are kept unless the configuration says
// otherwise: seven years, as ETSI EN 319 411-1 §6.4.5 wants of the records of a certificate.
const DefaultRetain = 7 * 365 * 24 * time.Hour

// commitTo puts the commitments of private into f and returns what opens them.
func (l *Ledger) commitTo(f *Fields, leaf Leaf, private []Private) (p []Projection) {
	if len(private) == 0 {
		return nil
	}
	*f = slices.Clone(*f) // the caller may go on with its own
	var open []Opening
	for _, v := range private {
		if v.Value == "" {
			continue
		}
		o := Opening{Tag: v.Tag, Value: []byte(v.Value)}
		rand.Read(o.Salt[:]) // never fails (crypto/rand, since Go 1.24)
		f.Hash(v.Tag, o.Commitment(leaf.Ledger, leaf.ID))
		open = append(open, o)
	}
	if len(open) > 0 {
		p = []Projection{PutOpenings{RetainUntil: leaf.Time.Add(l.opt.Retain).Truncate(time.Second), Openings: open}}
	}
	return p
}

// erasedRefs are the openings that an OpErase leaf names: (index u64, tag u16) each.
func erasedRefs(b []byte) (out []OpeningRef, err error) {
	for ; len(b) >= 10; b = b[10:] {
		out = append(out, OpeningRef{binary.BigEndian.Uint64(b), Tag(binary.BigEndian.Uint16(b[8:]))})
	}
	if len(b) > 0 {
		err = fmt.Errorf("%w: list of erased openings is cut short", ErrLeaf)
	}
	return out, err
}
