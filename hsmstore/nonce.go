package hsmstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"

	"chancery/audit"
)

// An ECDSA key that uses one nonce for two messages gives itself away to whoever
// sees both signatures (SEC 1 §4.1.3). Which nonce was used shows in r. Every r is
// therefore compared with those before it: here with the last ones of this process,
// before a signature goes anywhere, and in the database with those of all nodes and
// all times, in the transaction of the done leaf.

// recentNonces is how many are kept here per key.
const recentNonces = 4096

// nonces are the last r of one key, with their messages.
type nonces struct {
	mu   sync.Mutex
	seen map[[32]byte][32]byte // hash of r -> SHA-256 of the message
	ring [][32]byte
	next int
}

// check notes an r and tells whether it was used for another message.
func (n *nonces) check(r, message [32]byte) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if old, ok := n.seen[r]; ok {
		if old != message {
			return ErrNonceReused
		}
		return nil
	}
	if n.seen == nil {
		n.seen = make(map[[32]byte][32]byte)
	}
	if len(n.ring) < recentNonces {
		n.ring = append(n.ring, r)
	} else {
		delete(n.seen, n.ring[n.next])
		n.ring[n.next] = r
		n.next = (n.next + 1) % recentNonces
	}
	n.seen[r] = message
	return nil
}

// nonce is what is to be noted of a signature; ok is false if it has none.
func (k *Key) nonce(sig []byte, message [32]byte) (SeenNonce, bool) {
	return nonceOf(k.alg, k.purpose, k.spkiHash, sig, message)
}

// nonce is that of a key that is not usable yet.
func (o keyObject) nonce(sig []byte, message [32]byte) (SeenNonce, bool) {
	alg, err := algorithmByName(o.Algorithm)
	if err != nil {
		return SeenNonce{}, false
	}
	return nonceOf(alg, o.Purpose, sha256.Sum256(o.SPKI), sig, message)
}

func nonceOf(alg *algorithm, purpose audit.Purpose, spkiHash [32]byte, sig []byte, message [32]byte) (SeenNonce, bool) {
	r, ok := alg.signatureR(sig)
	if !ok || purpose == audit.PurposeProbe { // a probe signs one text again and again, and its key is worth nothing
		return SeenNonce{}, false
	}
	return SeenNonce{Key: spkiHash, R: sha256.Sum256(r), Message: message}, true
}

// quarantine ends the use of a key that repeated a nonce, on the ledger too.
func (s *Store) quarantine(ctx context.Context, k *Key) {
	if k.State() == KeyQuarantined {
		return
	}
	k.setState(KeyQuarantined)
	s.log.Error("ECDSA nonce repeated: the private key may be known to whoever has both signatures; the key is quarantined, revoke what it signed", "key", k.name)
	var f audit.Fields
	f.Hash(audit.TagKey, k.spkiHash)
	f.Text(audit.TagKeyName, k.name)
	f.Text(audit.TagState, string(KeyQuarantined))
	f.Text(audit.TagReason, "an ECDSA nonce served two messages")
	_, err := s.ledger.Append(context.WithoutCancel(ctx), audit.Event(audit.OpKeyState, f),
		SetKeyState{ID: k.id, From: []KeyState{KeyBorn, KeyUsable, KeyDisabled}, To: KeyQuarantined})
	if err != nil && !errors.Is(err, audit.ErrConflict) {
		s.log.Error("quarantine could not be recorded; it holds in this process", "key", k.name, "err", err)
	}
}

func nonceError(k *Key, intent uint64) error {
	return fmt.Errorf("%w: key %s is quarantined, the signature under intent %d is not released: %w", ErrUnavailable, k.name, intent, ErrNonceReused)
}
