package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
)

func (l *Ledger) checkpointKeys() [][]byte {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.keys
}

// lineKey is the verifier of a line's key, which leaf 0 or the leaf of its birth names.
func (l *Ledger) lineKey(ctx context.Context, line *CheckpointLine) (*noteVerifier, error) {
	known := func(k []byte) bool { return bytes.Equal(k, line.SPKI) }
	if !slices.ContainsFunc(l.checkpointKeys(), known) {
		spki, err := l.bornLater(ctx, line.Birth)
		if err != nil {
			return nil, err
		}
		if !known(spki) {
			return nil, fmt.Errorf("%w: leaf %d is the birth of another checkpoint key", ErrTampered, line.Birth)
		}
	}
	return newNoteVerifier(l.Origin(), line.SPKI)
}

// bornLater makes the checkpoint key known that was born in a leaf, under a grant of the
// officers: what genesis bore stands in leaf 0.
func (l *Ledger) bornLater(ctx context.Context, index uint64) (spki []byte, err error) {
	leaf, err := l.Leaf(ctx, index)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, fmt.Errorf("reading the birth of a checkpoint key: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if spki = checkpointBirth(leaf, l.grant); spki == nil {
		return nil, fmt.Errorf("%w: leaf %d is not the birth of a checkpoint key under a grant of the officers", ErrTampered, index)
	}
	if !slices.ContainsFunc(l.keys, func(k []byte) bool { return bytes.Equal(k, spki) }) {
		l.keys = append(slices.Clone(l.keys), spki)
	}
	return spki, nil
}

// checkpointBirth is the checkpoint key (SPKI DER) that a leaf says was born under another
// grant than that of genesis; nil if it says something else.
func checkpointBirth(leaf Leaf, genesis [32]byte) []byte {
	spki, _ := leaf.Get(TagSPKI)
	hash, _ := leaf.Hash(TagKey)
	purpose, _ := leaf.Uint(TagPurpose)
	grant, granted := leaf.Hash(TagGrant)
	if leaf.Kind != KindEvent || leaf.Op != OpKeyGenerate || Purpose(purpose) != PurposeCheckpoint || sha256.Sum256(spki) != hash || !granted || grant == genesis {
		return nil
	}
	return spki
}

// CheckpointKeys reads who signs the checkpoints of a ledger: the keys (SPKI DER) of leaf 0,
// then those that the leaves of births say were born later, under the officers' grants. It
// believes the stored leaves; [Verify] does not.
func CheckpointKeys(ctx context.Context, r Reader, births []uint64) (id LedgerID, origin string, keys [][]byte, err error) {
	var genesis [32]byte
	err = r.Leaves(ctx, 0, 1, func(_ uint64, b []byte) error {
		g, o, spkis, err := OpenGenesis(b)
		acts, _ := g.Get(TagActs)
		id, origin, keys, genesis = g.Ledger, o, spkis, genesisGrant(acts)
		return err
	})
	if err != nil {
		return id, "", nil, fmt.Errorf("%w: leaf 0: %w", ErrTampered, err)
	}
	for _, index := range births {
		err := r.Leaves(ctx, index, index+1, func(_ uint64, b []byte) error {
			leaf, err := DecodeLeaf(b)
			if err != nil {
				return err
			}
			if spki := checkpointBirth(leaf, genesis); spki != nil {
				keys = append(keys, bytes.Clone(spki))
			}
			return nil
		})
		if err != nil {
			return id, "", nil, fmt.Errorf("reading the birth of a checkpoint key: %w", err)
		}
	}
	return id, origin, keys, nil
}
