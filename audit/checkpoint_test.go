package audit_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"strings"
	"testing"

	"chancery/audit"
)

// severalSigner has lines of other keys beside that of the ledger's.
type severalSigner struct {
	softSigner
	more func(body []byte) []audit.CheckpointLine
}

func (s severalSigner) SignCheckpoint(ctx context.Context, body []byte) ([]audit.CheckpointLine, error) {
	lines, err := s.softSigner.SignCheckpoint(ctx, body)
	return append(lines, s.more(body)...), err
}

// A line that is missing, is wrong, or is by a key that no leaf names costs itself and
// nothing else, and is logged once, not with each checkpoint. A key whose birth stands on
// the ledger under the officers' grant has its line; under that of genesis it has none.
func TestCheckpointLines(t *testing.T) {
	var log strings.Builder
	b := newLedger(t)
	b.stop()
	b.log = &log
	if err := b.open(); err != nil {
		t.Fatal(err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(other.Public())
	if err != nil {
		t.Fatal(err)
	}
	birth := func(grant [32]byte) uint64 {
		t.Helper()
		var f audit.Fields
		f.Bytes(audit.TagSPKI, spki)
		f.Hash(audit.TagKey, sha256.Sum256(spki))
		f.Uint8(audit.TagPurpose, uint8(audit.PurposeCheckpoint))
		f.Hash(audit.TagGrant, grant)
		a, err := b.ledger.Append(t.Context(), audit.Event(audit.OpKeyGenerate, f))
		if err != nil {
			t.Fatal(err)
		}
		return a.Index
	}
	var acts audit.Fields
	items := make([][]byte, len(genesisActs))
	for i, a := range genesisActs {
		items[i] = []byte(a)
	}
	acts.List(audit.TagActs, items...)
	proposal := audit.Digest("proposal", acts[0].Value)
	ofGenesis, ofOfficers := birth(audit.Digest("grant", proposal[:])), birth([32]byte{7})

	line := audit.CheckpointLine{Key: "checkpoint-gamma", SPKI: spki}
	var bad func(body []byte) audit.CheckpointLine
	c := audit.NewCheckpointer(b.ledger, severalSigner{b.signer, func(body []byte) []audit.CheckpointLine { return []audit.CheckpointLine{bad(body)} }}, "")
	signed := func(at uint64, message string) func([]byte) audit.CheckpointLine {
		return func(body []byte) audit.CheckpointLine {
			l := line
			sum := sha256.Sum256(append(body, message...))
			l.Birth = at
			l.Signature, l.Err = ecdsa.SignASN1(rand.Reader, other, sum[:])
			return l
		}
	}
	for _, step := range []struct {
		what  string
		bad   func([]byte) audit.CheckpointLine
		lines int
	}{
		{"away", func([]byte) audit.CheckpointLine { l := line; l.Err = errors.New("its member is away"); return l }, 1},
		{"at leaf 0, which does not name it", signed(0, ""), 1},
		{"at the birth of nothing", signed(1, ""), 1},
		{"behind the end", signed(1<<40, ""), 1},
		{"born under the grant of genesis", signed(ofGenesis, ""), 1},
		{"wrong", signed(ofOfficers, "x"), 1},
		{"good", signed(ofOfficers, ""), 2},
	} {
		bad = step.bad
		b.fill(1)
		if err := c.Sign(t.Context()); err != nil {
			t.Fatalf("%s: %v", step.what, err)
		}
		note, err := c.Latest(t.Context())
		if err != nil || strings.Count(note, "\n— ") != step.lines {
			t.Errorf("%s: %v\n%s", step.what, err, note)
		}
		if _, err := audit.OpenCheckpoint(note, b.ledger.Origin(), [][]byte{b.spki}); err != nil {
			t.Errorf("%s: %v", step.what, err)
		}
		if _, err := audit.OpenCheckpoint(note, b.ledger.Origin(), [][]byte{spki}); (err == nil) != (step.lines == 2) {
			t.Errorf("%s: the other key alone: %v", step.what, err)
		}
	}
	if n := strings.Count(log.String(), "no line of some keys"); n != 1 {
		t.Errorf("%d lines in the log:\n%s", n, log.String())
	}
	if !strings.Contains(log.String(), "every checkpoint key signs again") {
		t.Errorf("the log does not say that all is well again:\n%s", log.String())
	}
}

// lineSigner has the line of one key alone.
type lineSigner struct {
	softSigner
	line func(body []byte) audit.CheckpointLine // nil: that of the ledger's key
}

func (s *lineSigner) SignCheckpoint(ctx context.Context, body []byte) ([]audit.CheckpointLine, error) {
	if s.line == nil {
		return s.softSigner.SignCheckpoint(ctx, body)
	}
	return []audit.CheckpointLine{s.line(body)}, nil
}

// While the older keys are away, a key that was just born makes no checkpoint: nobody could
// verify it, ever. Once a checkpoint of theirs covers its birth it does, also after a
// restart, but not again for the size that vouches for it.
func TestCheckpointOfNewKeyWaits(t *testing.T) {
	b := newLedger(t)
	ctx := t.Context()
	b.fill(3)
	b.checkpoint()
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	var f audit.Fields
	f.Bytes(audit.TagSPKI, spki)
	f.Hash(audit.TagKey, sha256.Sum256(spki))
	f.Uint8(audit.TagPurpose, uint8(audit.PurposeCheckpoint))
	f.Hash(audit.TagGrant, [32]byte{7})
	born, err := b.ledger.Append(ctx, audit.Event(audit.OpKeyGenerate, f))
	if err != nil {
		t.Fatal(err)
	}
	alone := func(body []byte) audit.CheckpointLine {
		return audit.CheckpointLine{Key: "checkpoint-gamma", SPKI: spki, Birth: born.Index, Signature: ed25519.Sign(key, body)}
	}
	signer := &lineSigner{b.signer, alone}
	latest := func(c *audit.Checkpointer, byNew bool) string {
		t.Helper()
		note, err := c.Latest(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := audit.OpenCheckpoint(note, b.ledger.Origin(), [][]byte{b.spki}); (err != nil) != byNew {
			t.Fatalf("by the new key alone: want %v\n%s", byNew, note)
		}
		return note
	}
	c := audit.NewCheckpointer(b.ledger, signer, "")
	if err := c.Sign(ctx); err == nil || !strings.Contains(err.Error(), "waits for an older key") || b.ledger.Broken() != nil {
		t.Fatalf("%v, ledger %v", err, b.ledger.Broken())
	}
	before := latest(c, false)
	signer.line = nil
	if err := c.Sign(ctx); err != nil {
		t.Fatal(err)
	}
	covering := latest(c, false)
	if covering == before {
		t.Fatal("the older key has signed nothing")
	}
	signer.line = alone
	again := audit.NewCheckpointer(b.ledger, signer, "") // as after a restart
	if err := again.Sign(ctx); err != nil || latest(again, false) != covering {
		t.Fatalf("%v: the checkpoint that covers the birth was replaced", err)
	}
	b.fill(1)
	if err := again.Sign(ctx); err != nil {
		t.Fatal(err)
	}
	latest(again, true)
}
