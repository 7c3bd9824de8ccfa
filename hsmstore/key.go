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
	adopted  *Adopted
	confined bool
	members  atomic.Pointer[[]string] // changed by the ceremony at hand only
	state    atomic.Pointer[KeyState]
	nonces   nonces

	description atomic.Pointer[string]
}

func newKey(s *Store, r KeyRecord) (*Key, error) {
	pub, alg, err := parseSPKI(r.SPKI, r.Algorithm)
	if err != nil {
		return nil, err
	}
	if _, known := allows[r.Purpose]; !known {
		return nil, fmt.Errorf("keys of %s sign nothing", r.Purpose)
	}
	k := &Key{store: s, id: r.ID, name: r.Name, purpose: r.Purpose, alg: alg, spki: r.SPKI, spkiHash: sha256.Sum256(r.SPKI),
		pub: pub, subject: r.Subject, origin: r.Origin, birth: r.Birth, adopted: r.Adopted, confined: r.Confined}
	k.setMembers(r.Members)
	k.setState(r.State)
	k.description.Store(&r.Description)
	return k, nil
}

func (k *Key) setState(s KeyState) { k.state.Store(&s) }

// State is where the key stands in its life.
func (k *Key) State() KeyState { return *k.state.Load() }

func (k *Key) usable() bool { return k.State() == KeyUsable }

func (k *Key) setMembers(names []string) {
	names = slices.Clone(names)
	k.members.Store(&names)
}

// Members are the names of the members that hold the key.
func (k *Key) Members() []string { return slices.Clone(*k.members.Load()) }

// pin is the key for a worker.
func (k *Key) pin() pin {
	return pin{ID: k.id, SPKI: k.spki, Algorithm: k.alg.name, Adopted: k.adopted, Purpose: k.purpose, Subject: k.subject}
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
		Origin: k.origin, Members: k.Members(), Birth: k.birth, State: k.State(), Adopted: k.adopted, Confined: k.confined, Description: k.Description()}
}

// Description is free text for people; it binds nothing.
func (k *Key) Description() string { return *k.description.Load() }

// on tells whether a member holds the key.
func (k *Key) on(m *member) bool { return slices.Contains(*k.members.Load(), m.cfg.Name) }

// binding is the store's own view of what the worker enforces.
func (k *Key) binding() binding {
	return binding{purpose: k.purpose, ident: k.alg.ident, subject: k.subject, spkiHash: k.spkiHash, origin: k.store.ledger.Origin(), ledger: k.store.ledger.ID()}
}
