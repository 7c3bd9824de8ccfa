package check

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"chancery/cmd/chancery-verify/internal/folder"
	"chancery/cmd/chancery-verify/internal/leaf"
)

// beside is a file of records that stand beside entries, in the order of those. An export
// need not have it.
type beside struct {
	name  string
	r     *folder.Records // nil: there is no such file
	index uint64
	value []byte
	any   bool
}

// open begins to read at the record of the entry from, or behind it.
func (b *beside) open(r *folder.Records, err error, from uint64) error {
	if errors.Is(err, folder.ErrMissing) {
		return nil
	}
	if b.r = r; err != nil {
		return err
	}
	return b.next(from, true)
}

// next reads the next record. Those below from were seen by an earlier run.
func (b *beside) next(from uint64, first bool) (err error) {
	for {
		behind := b.index
		b.index, b.value, err = b.r.Next()
		b.any = err == nil
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return bad(behind, "what %s holds behind its own: %v", b.name, err)
		case !first && b.index <= behind:
			return bad(b.index, "%s has two records for it, or they are not in order", b.name)
		case b.index >= from:
			return nil
		}
		first = false
	}
}

func (b *beside) close() {
	if b.r != nil {
		b.r.Close() // it was only read
	}
}

// opening opens one commitment of an entry.
type opening struct {
	tag   leaf.Tag
	salt  []byte
	value []byte
}

// readOpenings reads a record of openings.bin: tag u16 ‖ salt32 ‖ u32 length ‖ value each.
func readOpenings(b []byte) (out []opening, err error) {
	const head = 2 + 32 + 4
	for len(b) > 0 {
		if len(b) < head || uint64(len(b)-head) < uint64(binary.BigEndian.Uint32(b[34:])) {
			return nil, errors.New("it is cut short")
		}
		n := head + int(binary.BigEndian.Uint32(b[34:]))
		out = append(out, opening{leaf.Tag(binary.BigEndian.Uint16(b)), b[2:34:34], b[head:n:n]})
		b = b[n:]
	}
	return out, nil
}

// opens tells whether o opens a commitment of the entry l.
func (o opening) opens(l *leaf.Leaf) bool {
	tag := binary.BigEndian.AppendUint16(nil, uint16(o.tag))
	c, ok := l.Hash(o.tag)
	return ok && o.tag.Committed() && c == leaf.Digest("commit", l.Ledger[:], l.ID[:], tag, o.salt, o.value)
}

// openBeside opens what the export has beside entries.
func (v *verifier) openBeside() error {
	v.evidence.name, v.openings.name = "evidence.bin", "openings.bin"
	r, err := v.f.Evidence()
	if err := v.evidence.open(r, err, v.report.From); err != nil {
		return err
	}
	r, err = v.f.Openings()
	return v.openings.open(r, err, v.report.From)
}

// besides holds what stands beside an entry against it.
func (v *verifier) besides(index uint64, l *leaf.Leaf) error {
	v.entitled = 0
	if b := &v.evidence; b.any && b.index == index {
		want, ok := l.Hash(leaf.TagEvidence)
		if !ok || l.Kind != leaf.Intent || leaf.Digest("evidence", b.value) != want {
			return bad(index, "the evidence that the export has for it is not what it rests on")
		}
		v.report.Evidence++
		var err error
		if v.entitled, err = entitled(string(b.value)); err != nil {
			return bad(index, "its evidence: %v", err)
		}
		if v.entitled == 0 && strings.HasPrefix(l.Text(leaf.TagRequester), "acme:") {
			return bad(index, "an ACME account asked for it, and its evidence has no authorization")
		}
		if err := b.next(0, false); err != nil {
			return err
		}
	} else if l.Kind == leaf.Intent && l.Op == leaf.OpCertificate && l.Get(leaf.TagEvidence) != nil && l.Get(leaf.TagAsked) != nil {
		// Whoever commits to what was asked for keeps what it rests on.
		return bad(index, "evidence.bin does not have what it rests on")
	}
	if b := &v.openings; b.any && b.index == index {
		list, err := readOpenings(b.value)
		if err != nil {
			return bad(index, "its record in openings.bin: %v", err)
		}
		for _, o := range list {
			if !o.opens(l) {
				return bad(index, "what the export has to open its commitment %d does not", o.tag)
			}
			v.report.Openings++
		}
		if err := b.next(0, false); err != nil {
			return err
		}
	}
	return nil
}

// entitled is how many names the evidence entitles to, each by an authorization of its own
// (RFC 8555 §7.1.4): 1, 2, … in this order. 0 if it is not of ACME.
func entitled(record string) (n int, err error) {
	for line := range strings.Lines(record) {
		if text, ok := strings.CutPrefix(line, "authorization "); ok {
			if n++; !strings.HasPrefix(text, fmt.Sprintf("name %d ", n)) {
				return n, fmt.Errorf("an authorization is not that of name %d", n)
			}
		}
	}
	return n, nil
}

// erased names an opening that an entry says is gone.
type erased struct {
	index uint64
	tag   leaf.Tag
}

// erasure reads which openings an entry says were erased.
func (v *verifier) erasure(index uint64, l *leaf.Leaf) error {
	list := l.Get(leaf.TagErased)
	count, _ := l.Uint(leaf.TagCount)
	if len(list) == 0 || len(list)%10 != 0 || count != uint64(len(list)/10) {
		return bad(index, "its list of erased openings is cut short, or not one of %d", count)
	}
	for ; len(list) > 0; list = list[10:] {
		e := erased{binary.BigEndian.Uint64(list), leaf.Tag(binary.BigEndian.Uint16(list[8:]))}
		if e.index >= index || !e.tag.Committed() {
			return bad(index, "it erases tag %d of entry %d, which holds nothing that could be erased", e.tag, e.index)
		}
		if v.openings.r != nil {
			v.erased[e] = index
		}
	}
	return nil
}

// besidesEnd wants every record to have had its entry, and nothing to be opened that was erased.
func (v *verifier) besidesEnd() error {
	for _, b := range []*beside{&v.evidence, &v.openings} {
		if b.any {
			return bad(b.index, "%s has a record for it, and the ledger ends before", b.name)
		}
	}
	if len(v.erased) == 0 {
		return nil
	}
	r, err := v.f.Openings()
	if err != nil {
		return err
	}
	defer r.Close()
	for {
		index, value, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		list, _ := readOpenings(value) // was read before
		for _, o := range list {
			if at, ok := v.erased[erased{index, o.tag}]; ok {
				return bad(at, "it says that what opens commitment %d of entry %d was erased, and the export opens it", o.tag, index)
			}
		}
	}
}
