package audit

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"slices"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// signers is what the leaves say of the keys that sign checkpoints, and the signed notes
// that wait to be judged by it.
//
// A key of leaf 0 is bound to the ledger's id. One that was born later counts only if the
// officers granted its birth, and only from the first checkpoint on that covers the birth
// and that a key which counted before has signed. Without that, whoever can write the
// database, but has no HSM key, could put a key of his own under a grant that the officers
// gave, and sign another history with it.
type signers struct {
	origin string
	keys   []signerKey         // those of leaf 0 first
	ended  map[[32]byte]uint64 // by SHA-256 of the SPKI: the leaf that ended it
	notes  []seenNote
	lost   map[lostNote]bool // notes of entries that a recovery gave up: they vouch for no key
}

type lostNote struct {
	size uint64
	root tlog.Hash
}

type signerKey struct {
	spki    []byte
	birth   uint64 // leaf; 0: leaf 0 names it
	vouched uint64 // size of the first checkpoint of another key that covers the birth; 0: none
}

// seenNote is a signed note. by are the key IDs of its lines that are verified; text is
// kept only if there are lines of keys that are not known yet.
type seenNote struct {
	size uint64
	root tlog.Hash
	by   []uint32
	text string
}

func newSigners(origin string, spkis [][]byte) signers {
	s := signers{origin: origin, ended: map[[32]byte]uint64{}, lost: map[lostNote]bool{}}
	for _, k := range spkis {
		s.keys = append(s.keys, signerKey{spki: k})
	}
	return s
}

// known are the SPKIs of the keys that a tree of a size names.
func (s *signers) known(size uint64) (out [][]byte) {
	for _, k := range s.keys {
		if k.birth == 0 || k.birth < size {
			out = append(out, k.spki)
		}
	}
	return out
}

// add takes a note and opens it with the keys of leaf 0. One that none of them has signed
// is judged at the end.
func (s *signers) add(text string) (Checkpoint, error) {
	c, n, err := openNote(text, s.origin, s.known(0))
	var unsigned *note.UnverifiedNoteError
	if errors.As(err, &unsigned) {
		n = unsigned.Note
		c, err = readBody(n.Text, s.origin)
	}
	if err != nil {
		return c, err
	}
	seen := seenNote{size: c.Size, root: c.Root, by: verifiedBy(n)}
	if slices.ContainsFunc(n.UnverifiedSigs, func(sig note.Signature) bool { return sig.Name == s.origin }) {
		seen.text = text
	} else if unsigned != nil {
		return c, unsigned
	}
	s.notes = append(s.notes, seen)
	return c, nil
}

// forget: a note is of entries that a recovery gave up, so it says nothing of these.
func (s *signers) forget(c Checkpoint) { s.lost[lostNote{c.Size, c.Root}] = true }

func verifiedBy(n *note.Note) (out []uint32) {
	for _, sig := range n.Sigs {
		out = append(out, sig.Hash)
	}
	return out
}

// event follows births and ends of checkpoint keys. genesis is the grant of leaf 0.
func (s *signers) event(index uint64, l Leaf, genesis [32]byte) error {
	key, _ := l.Hash(TagKey)
	state, _ := l.Get(TagState)
	purpose, _ := l.Uint(TagPurpose)
	switch {
	case l.Op == OpKeyDestroy, l.Op == OpKeyState && (string(state) == "destroyed" || string(state) == "quarantined"):
		if _, over := s.ended[key]; !over {
			s.ended[key] = index
		}
	case l.Op == OpKeyGenerate && Purpose(purpose) == PurposeCheckpoint:
		spki, _ := l.Get(TagSPKI)
		if slices.ContainsFunc(s.keys, func(k signerKey) bool { return bytes.Equal(k.spki, spki) }) {
			return nil
		}
		grant, _ := l.Hash(TagGrant)
		if grant == genesis {
			return violate(index, "genesis bore a checkpoint key that leaf 0 does not name")
		}
		if _, err := newNoteVerifier(s.origin, spki); err != nil || sha256.Sum256(spki) != key {
			return violate(index, "it is the birth of a checkpoint key, but its public key is none")
		}
		s.keys = append(s.keys, signerKey{spki: bytes.Clone(spki), birth: index})
	}
	return nil
}

// judge wants of every note since the last judgement a line of a key that counts, and none
// of a known key that is wrong.
func (s *signers) judge() error {
	if len(s.lost) > 0 {
		s.notes = slices.DeleteFunc(s.notes, func(n seenNote) bool { return s.lost[lostNote{n.size, n.root}] })
	}
	if len(s.notes) == 0 {
		return nil
	}
	type signer struct {
		*signerKey
		end uint64
	}
	byID := map[uint32]signer{}
	for i := range s.keys {
		k := &s.keys[i]
		v, err := newNoteVerifier(s.origin, k.spki)
		if err != nil {
			return violate(k.birth, "%v", err)
		}
		end, over := s.ended[sha256.Sum256(k.spki)]
		if !over {
			end = NoIndex
		}
		byID[v.hash] = signer{k, end}
	}
	slices.SortStableFunc(s.notes, func(a, b seenNote) int { return cmp.Compare(a.size, b.size) })
	for i := range s.notes {
		if n := &s.notes[i]; n.text != "" {
			_, opened, err := openNote(n.text, s.origin, s.known(n.size))
			if err != nil {
				return violate(n.size, "its checkpoint is not signed by the ledger's key: %v", err)
			}
			n.by = verifiedBy(opened)
		}
	}
	counts := func(n seenNote) bool {
		return slices.ContainsFunc(n.by, func(id uint32) bool {
			k := byID[id]
			return (k.birth == 0 || k.vouched > 0 && k.vouched <= n.size) && k.end >= n.size
		})
	}
	for rest := s.notes; len(rest) > 0; {
		size, n := rest[0].size, 1
		for n < len(rest) && rest[n].size == size {
			n++
		}
		if slices.ContainsFunc(rest[:n], counts) { // the tree of that size is one
			for _, k := range byID {
				if k.birth < size && k.vouched == 0 {
					k.vouched = size
				}
			}
		}
		if slices.ContainsFunc(rest[:n], func(n seenNote) bool { return !counts(n) }) {
			return violate(size, "its checkpoint is signed only by keys that had ended, or whose birth no checkpoint before it covers")
		}
		rest = rest[n:]
	}
	s.notes = nil
	return nil
}
