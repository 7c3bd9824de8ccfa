package audit

import (
	"context"
	"testing"
)

// rowsOf are rows of checkpoints.
type rowsOf struct {
	SweepSource
	rows []struct {
		size       uint64
		body, note string
	}
}

func (r *rowsOf) put(size uint64, body, note string) {
	for i := range r.rows {
		if r.rows[i].size == size {
			r.rows[i].note = note
			return
		}
	}
	r.rows = append(r.rows, struct {
		size       uint64
		body, note string
	}{size, body, note})
}

func (r *rowsOf) CheckpointsBetween(_ context.Context, from, to uint64, fn func(size uint64, body, note string) error) error {
	for _, c := range r.rows {
		if c.size >= from && c.size <= to {
			if err := fn(c.size, c.body, c.note); err != nil {
				return err
			}
		}
	}
	return nil
}

// A checkpoint that was being signed when the sweeper read its row is read again: it may be
// the one that covers the birth of a key, which signs alone afterwards.
func TestSweeperReadsLateNotes(t *testing.T) {
	n := &softNote{t: t, origin: "ca.example/ledger/00"}
	n.key()
	n.key()
	body := func(size uint64) string { return string(Head{Size: size}.Body(n.origin)) }
	for name, c := range map[string]struct {
		note string // what is there later
		ok   bool
	}{
		"signed":          {n.note(11, 0), true},
		"not signed":      {"", false},
		"by a stranger":   {n.note(11, 1), false},
		"another's note":  {n.note(12, 0), false},
		"what is no note": {"x", false},
	} {
		t.Run(name, func(t *testing.T) {
			src := &rowsOf{}
			v := &verifier{signers: newSigners(n.origin, n.spkis[:1]), head: Head{Size: 11}}
			if err := v.signers.event(10, n.birth(1, 7), [32]byte{1}); err != nil {
				t.Fatal(err)
			}
			src.put(11, body(11), "")
			v.unsigned = []unsignedRow{{11, body(11)}}
			if err := v.signedSince(t.Context(), src); err != nil || len(v.unsigned) != 1 { // still being signed
				t.Fatalf("%v, %d wait", err, len(v.unsigned))
			}
			src.put(11, body(11), c.note)
			v.head = Head{Size: 13}
			err := v.signedSince(t.Context(), src)
			if err == nil {
				if _, err = v.signers.add(n.note(13, 1)); err != nil {
					t.Fatal(err)
				}
				err = v.signers.judge()
			}
			if (err == nil) != c.ok {
				t.Error(err)
			}
		})
	}
}
