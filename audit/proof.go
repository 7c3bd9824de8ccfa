package audit

import (
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// Proven is a leaf that a signed checkpoint contains.
type Proven struct {
	Leaf       Leaf
	Index      uint64
	Checkpoint Checkpoint
}

// OpenProof verifies a C2SP tlog-proof as [Checkpointer.ProofText] writes it, from its
// bytes alone. keys are the checkpoint keys (SPKI DER) of the ledger of that origin.
func OpenProof(proof []byte, origin string, keys [][]byte) (p Proven, err error) {
	bad := func(format string, args ...any) (Proven, error) {
		return Proven{}, fmt.Errorf("tlog-proof: "+format, args...)
	}
	head, note, ok := strings.Cut(string(proof), "\n\n")
	lines := strings.Split(head, "\n")
	if !ok || len(lines) < 3 || lines[0] != "c2sp.org/tlog-proof@v1" {
		return bad("it is none of version 1 with extra data")
	}
	extra, ok1 := strings.CutPrefix(lines[1], "extra ")
	number, ok2 := strings.CutPrefix(lines[2], "index ")
	if !ok1 || !ok2 {
		return bad("lines extra and index expected")
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(extra)
	if err != nil {
		return bad("extra is no base64")
	}
	if p.Index, err = strconv.ParseUint(number, 10, 63); err != nil || strconv.FormatUint(p.Index, 10) != number {
		return bad("index %q is no decimal number", Text(number, 32))
	}
	var hashes tlog.RecordProof
	for _, line := range lines[3:] {
		h, err := base64.StdEncoding.Strict().DecodeString(line)
		if err != nil || len(h) != tlog.HashSize {
			return bad("a hash is no base64 of 32 octets")
		}
		hashes = append(hashes, tlog.Hash(h))
	}
	if p.Checkpoint, err = OpenCheckpoint(note, origin, keys); err != nil {
		return Proven{}, err
	}
	if p.Index >= p.Checkpoint.Size {
		return bad("entry %d is not below the size %d of its checkpoint", p.Index, p.Checkpoint.Size)
	}
	if err := tlog.CheckRecord(hashes, int64(p.Checkpoint.Size), p.Checkpoint.Root, int64(p.Index), LeafHash(raw)); err != nil {
		return bad("the checkpoint does not contain the entry")
	}
	if p.Leaf, err = DecodeLeaf(raw); err != nil {
		return Proven{}, err
	}
	return p, nil
}

// OpenGenesis checks the bytes of a leaf 0 against themselves and returns it with the
// origin and the checkpoint keys (SPKI DER) of its ledger.
func OpenGenesis(b []byte) (l Leaf, origin string, keys [][]byte, err error) {
	if l, err = DecodeLeaf(b); err != nil {
		return l, "", nil, err
	}
	zero := l
	zero.Ledger = LedgerID{}
	z, err := zero.Encode()
	if err != nil || l.Kind != KindGenesis || LedgerID(Digest("ledger", z)) != l.Ledger {
		return l, "", nil, fmt.Errorf("%w: it is no genesis: the ledger id is not the digest of the leaf", ErrLeaf)
	}
	domain, _ := l.Get(TagDomain)
	list, _ := l.Get(TagCheckpointKeys)
	keys, err = ParseList(list)
	return l, Origin(string(domain), l.Ledger), keys, err
}
