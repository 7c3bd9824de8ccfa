package audit_test

import (
	"bytes"
	"strings"
	"testing"

	"chancery/audit"
)

// proofOf makes a small signed ledger and the proof of one of its leaves.
func proofOf(t testing.TB) (b *bench, proof []byte, index uint64) {
	t.Helper()
	b = newLedger(t)
	var f audit.Fields
	f.Hash(audit.TagManifest, [32]byte{7})
	for range 5 {
		a, err := b.ledger.Append(t.Context(), audit.Event(audit.OpBackup, f))
		if err != nil {
			t.Fatal(err)
		}
		index = a.Index - min(a.Index, 2)
	}
	cp := audit.NewCheckpointer(b.ledger, b.signer, "")
	if err := cp.Sign(t.Context()); err != nil {
		t.Fatal(err)
	}
	proof, err := cp.ProofText(t.Context(), index)
	if err != nil {
		t.Fatal(err)
	}
	return b, proof, index
}

func TestOpenProof(t *testing.T) {
	b, proof, index := proofOf(t)
	keys := [][]byte{b.spki}
	p, err := audit.OpenProof(proof, b.ledger.Origin(), keys)
	if err != nil || p.Index != index || p.Leaf.Op != audit.OpBackup || p.Checkpoint.Size != b.ledger.Head().Size {
		t.Fatalf("%+v %v", p, err)
	}
	if _, err := audit.OpenProof(proof, "other/ledger/00", keys); err == nil {
		t.Error("opened with another origin")
	}
	// Whatever is changed, it does not open, or is the same proof.
	lines := strings.SplitAfter(string(proof), "\n")
	for i := range lines {
		if _, err := audit.OpenProof([]byte(strings.Join(append(append([]string(nil), lines[:i]...), lines[i+1:]...), "")), b.ledger.Origin(), keys); err == nil && lines[i] != "" {
			t.Errorf("opened without line %d", i)
		}
	}
	for i := range proof {
		bad := bytes.Clone(proof)
		bad[i] ^= 1
		if q, err := audit.OpenProof(bad, b.ledger.Origin(), keys); err == nil && (q.Index != p.Index || q.Checkpoint.Root != p.Checkpoint.Root) {
			t.Errorf("octet %d was changed and it proves something else", i)
		}
	}
	if _, err := audit.OpenProof([]byte(strings.Replace(string(proof), "index ", "index 0", 1)), b.ledger.Origin(), keys); err == nil {
		t.Error("opened with a number of another form")
	}
}

func FuzzOpenProof(f *testing.F) {
	b, proof, _ := proofOf(f)
	f.Add(proof)
	f.Add([]byte("c2sp.org/tlog-proof@v1\nextra \nindex 0\n\n"))
	f.Fuzz(func(t *testing.T, proof []byte) {
		p, err := audit.OpenProof(proof, b.ledger.Origin(), [][]byte{b.spki})
		if err == nil && p.Leaf.Ledger != b.ledger.ID() {
			t.Error("a leaf of another ledger is proved")
		}
	})
}
