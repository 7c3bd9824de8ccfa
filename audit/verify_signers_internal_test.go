package audit

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
)

// softNote is a ledger in miniature: keys, events and notes.
type softNote struct {
	t      *testing.T
	origin string
	keys   []ed25519.PrivateKey
	spkis  [][]byte
}

func (s *softNote) key() int {
	pub, k, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		s.t.Fatal(err)
	}
	s.keys, s.spkis = append(s.keys, k), append(s.spkis, spki)
	return len(s.keys) - 1
}

// note is a checkpoint with lines of keys; a negative number stands for a forged line.
func (s *softNote) note(size uint64, keys ...int) string {
	body := Head{Size: size}.Body(s.origin)
	out := string(body) + "\n"
	for _, i := range keys {
		message := body
		if i < 0 {
			i, message = -i, []byte("something else")
		}
		v, err := newNoteVerifier(s.origin, s.spkis[i])
		if err != nil {
			s.t.Fatal(err)
		}
		out += v.line(ed25519.Sign(s.keys[i], message))
	}
	return out
}

func (s *softNote) birth(i int, grant byte) Leaf {
	var f Fields
	f.Bytes(TagSPKI, s.spkis[i])
	f.Hash(TagKey, sha256.Sum256(s.spkis[i]))
	f.Uint8(TagPurpose, uint8(PurposeCheckpoint))
	f.Hash(TagGrant, [32]byte{grant})
	return Leaf{Kind: KindEvent, Op: OpKeyGenerate, Fields: f.sorted()}
}

func (s *softNote) end(i int, state string) Leaf {
	var f Fields
	f.Hash(TagKey, sha256.Sum256(s.spkis[i]))
	f.Text(TagState, state)
	return Leaf{Kind: KindEvent, Op: OpKeyState, Fields: f.sorted()}
}

// The rules of [signers], with keys 0 and 1 of leaf 0 and key 2 born later.
func TestSigners(t *testing.T) {
	type event struct {
		index uint64
		leaf  func(*softNote) Leaf
	}
	born := event{10, func(s *softNote) Leaf { return s.birth(2, 7) }}
	for name, c := range map[string]struct {
		says   string // "": all is well
		events []event
		notes  func(*softNote) []string
	}{
		"one of two":                {"", nil, func(s *softNote) []string { return []string{s.note(5, 1)} }},
		"late, covered":             {"", []event{born}, func(s *softNote) []string { return []string{s.note(12, 2), s.note(11, 0)} }},
		"late, covered just now":    {"", []event{born}, func(s *softNote) []string { return []string{s.note(12, 2), s.note(12, 0)} }},
		"late, alone":               {"no checkpoint before", []event{born}, func(s *softNote) []string { return []string{s.note(10, 0), s.note(11, 2), s.note(12, 0)} }},
		"late, before its birth":    {"no verifiable", []event{born}, func(s *softNote) []string { return []string{s.note(10, 2), s.note(11, 0)} }},
		"late, forged":              {"invalid signature", []event{born}, func(s *softNote) []string { return []string{s.note(11, 0, -2)} }},
		"first, forged":             {"invalid signature", nil, func(s *softNote) []string { return []string{s.note(11, 0, -1)} }},
		"nobody":                    {"malformed", nil, func(s *softNote) []string { return []string{s.note(11)} }},
		"a stranger":                {"no verifiable", nil, func(s *softNote) []string { return []string{s.note(11, 2)} }},
		"a stranger beside":         {"", nil, func(s *softNote) []string { return []string{s.note(11, 2, 0)} }},
		"of genesis":                {"leaf 0 does not name", []event{{10, func(s *softNote) Leaf { return s.birth(2, 1) }}}, func(s *softNote) []string { return nil }},
		"first, recorded":           {"", []event{{1, func(s *softNote) Leaf { return s.birth(0, 1) }}}, func(s *softNote) []string { return []string{s.note(5, 0)} }},
		"destroyed":                 {"had ended", []event{born, {20, func(s *softNote) Leaf { return s.end(2, "destroyed") }}}, func(s *softNote) []string { return []string{s.note(12, 0), s.note(20, 2), s.note(21, 2)} }},
		"destroyed, others sign":    {"", []event{{20, func(s *softNote) Leaf { return s.end(1, "destroyed") }}}, func(s *softNote) []string { return []string{s.note(20, 1), s.note(21, 0)} }},
		"quarantined":               {"had ended", []event{{20, func(s *softNote) Leaf { return s.end(0, "quarantined") }}}, func(s *softNote) []string { return []string{s.note(21, 0)} }},
		"ended, born again":         {"had ended", []event{born, {20, func(s *softNote) Leaf { return s.end(2, "destroyed") }}, {22, func(s *softNote) Leaf { return s.birth(2, 9) }}}, func(s *softNote) []string { return []string{s.note(12, 0), s.note(30, 2)} }},
		"late, vouched by one over": {"no checkpoint before", []event{{9, func(s *softNote) Leaf { return s.end(0, "destroyed") }}, born}, func(s *softNote) []string { return []string{s.note(11, 0), s.note(12, 2)} }},
	} {
		t.Run(name, func(t *testing.T) {
			n := &softNote{t: t, origin: "ca.example/ledger/00"}
			for range 3 {
				n.key()
			}
			s := newSigners(n.origin, n.spkis[:2])
			var err error
			for _, text := range c.notes(n) {
				if err == nil {
					_, err = s.add(text)
				}
			}
			for _, e := range c.events {
				if err == nil {
					err = s.event(e.index, e.leaf(n), [32]byte{1})
				}
			}
			if err == nil {
				err = s.judge()
			}
			if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %q", err, c.says)
			}
		})
	}
}

// A checkpoint of entries that a recovery gave up vouches for no key of those that came in
// their place, though the keys of leaf 0 have signed it, and is not judged.
func TestSignersLostNotes(t *testing.T) {
	n := &softNote{t: t, origin: "ca.example/ledger/00"}
	for range 3 {
		n.key()
	}
	for _, lost := range []bool{false, true} {
		s := newSigners(n.origin, n.spkis[:1])
		c, err := s.add(n.note(20, 0)) // of the other tree
		if err != nil {
			t.Fatal(err)
		}
		stranger, err := s.add(n.note(25, 2))
		if err != nil {
			t.Fatal(err)
		}
		s.forget(stranger)
		if lost {
			s.forget(c)
		}
		if _, err := s.add(n.note(30, 1)); err != nil {
			t.Fatal(err)
		}
		if err := s.event(10, n.birth(1, 7), [32]byte{1}); err != nil {
			t.Fatal(err)
		}
		if err := s.judge(); (err != nil) != lost {
			t.Errorf("the checkpoint that covers the birth is lost: %v; %v", lost, err)
		}
	}
}

// Verifier keys are those of package note, and a line verifies there.
func TestVerifierKey(t *testing.T) {
	n := &softNote{t: t, origin: "ca.example/ledger/00"}
	n.key()
	text, err := VerifierKey(n.origin, n.spkis[0])
	if err != nil {
		t.Fatal(err)
	}
	if want, err := note.NewEd25519VerifierKey(n.origin, n.keys[0].Public().(ed25519.PublicKey)); err != nil || text != want {
		t.Errorf("%q, want %q: %v", text, want, err)
	}
	v, err := note.NewVerifier(text)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := note.Open([]byte(n.note(3, 0)), note.VerifierList(v)); err != nil {
		t.Error(err)
	}
	for what, spki := range map[string][]byte{"nothing": nil, "no key": {1}, "trailing octet": append(append([]byte(nil), n.spkis[0]...), 0)} {
		if _, err := VerifierKey(n.origin, spki); err == nil {
			t.Errorf("%s is a checkpoint key", what)
		}
	}
}
