package hsmstore

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"fmt"
	"slices"
	"sync/atomic"

	"chancery/audit"
)

// Key is a key of the cluster. It cannot sign: only an [Operation] can, and
// [Key.Begin] makes one after the intent is on the ledger.
type Key struct {
	store    *Store
	id       KeyID
	name     string
	purpose  audit.Purpose
	alg      *algorithm
	spki     []byte
	spkiHash [32]byte
	pub      crypto.PublicKey
	subject  []byte
	origin   string
	birth    uint64
	members  []string // never changes: a key with other members is another value
	usable   atomic.Bool
}

func newKey(s *Store, r KeyRecord) (*Key, error) {
	pub, alg, err := parseSPKI(r.SPKI)
	if err != nil {
		return nil, err
	}
	if alg.name != r.Algorithm {
		return nil, fmt.Errorf("the record says %s, the public key is %s", r.Algorithm, alg.name)
	}
	if _, known := allows[r.Purpose]; !known {
		return nil, fmt.Errorf("keys of %s sign nothing", r.Purpose)
	}
	k := &Key{store: s, id: r.ID, name: r.Name, purpose: r.Purpose, alg: alg, spki: r.SPKI, spkiHash: sha256.Sum256(r.SPKI),
		pub: pub, subject: r.Subject, origin: r.Origin, birth: r.Birth, members: slices.Clone(r.Members)}
	k.usable.Store(r.Usable)
	return k, nil
}

// Name is the key's name in the cluster.
func (k *Key) Name() string { return k.name }

// Purpose is what the key is for.
func (k *Key) Purpose() audit.Purpose { return k.purpose }

// Algorithm is the kind of key: "P-256", "RSA-3072" …
func (k *Key) Algorithm() string { return k.alg.name }

// Hash is the hash of the key's signatures.
func (k *Key) Hash() crypto.Hash { return k.alg.hash }

// AlgorithmIdentifier is that of the key's signatures, DER (RFC 5280 §4.1.1.2).
func (k *Key) AlgorithmIdentifier() []byte { return bytes.Clone(k.alg.ident) }

// Public is the pinned public key.
func (k *Key) Public() crypto.PublicKey { return k.pub }

// SPKI is the pinned public key, DER (RFC 5280 §4.1.2.7).
func (k *Key) SPKI() []byte { return bytes.Clone(k.spki) }

// SPKIHash is SHA-256 of SPKI: the key's name in the ledger.
func (k *Key) SPKIHash() [32]byte { return k.spkiHash }

// Subject is the issuer Name, DER, that the key is bound to; nil for other purposes.
func (k *Key) Subject() []byte { return bytes.Clone(k.subject) }

func (k *Key) record() KeyRecord {
	return KeyRecord{ID: k.id, Name: k.name, Purpose: k.purpose, Algorithm: k.alg.name, SPKI: bytes.Clone(k.spki), Subject: bytes.Clone(k.subject),
		Origin: k.origin, Members: slices.Clone(k.members), Birth: k.birth, Usable: k.usable.Load()}
}

// on tells whether a member holds the key.
func (k *Key) on(m *member) bool { return slices.Contains(k.members, m.cfg.Name) }

// binding is the store's own view of what the worker enforces.
func (k *Key) binding() binding {
	return binding{purpose: k.purpose, ident: k.alg.ident, subject: k.subject, spkiHash: k.spkiHash, origin: k.store.ledger.Origin(), ledger: k.store.ledger.ID()}
}
