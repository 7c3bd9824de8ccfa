package hsmstore

import (
	"context"
	"crypto"
	"os"

	"chancery/admin"
	"chancery/audit"
)

// What tests may do that nobody else can: call the worker past the checks of Begin.

// SignRaw sends a message to the workers under a made-up intent.
func (s *Store) SignRaw(ctx context.Context, k *Key, intent uint64, message []byte) ([]byte, error) {
	return s.sign(ctx, &signature{key: k, intent: intent, message: message, digest: k.alg.digest(message), attempts: 3})
}

// SignUnverified is SignRaw without the check of the signature.
func (s *Store) SignUnverified(ctx context.Context, k *Key, intent uint64, message []byte) ([]byte, error) {
	return s.sign(ctx, &signature{key: k, intent: intent, message: message, digest: k.alg.digest(message), attempts: 3, unverified: true})
}

// SignExempt sends a checkpoint or probe.
func (s *Store) SignExempt(ctx context.Context, k *Key, message []byte) ([]byte, error) {
	exempt := kindProbe
	if k.purpose == audit.PurposeCheckpoint {
		exempt = kindCheckpoint
	}
	return s.sign(ctx, &signature{key: k, intent: audit.NoIndex, message: message, digest: k.alg.digest(message), attempts: 3, exempt: exempt})
}

// SignOn is SignRaw on one member.
func (s *Store) SignOn(ctx context.Context, k *Key, member string, intent uint64, message []byte) ([]byte, error) {
	return s.sign(ctx, &signature{key: k, intent: intent, message: message, digest: k.alg.digest(message), attempts: 1, pinned: s.member(member)})
}

// AnyKey returns a key also if it is a probe key or not usable.
func (s *Store) AnyKey(name string) *Key {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.keys[name]
}

// ProbeNow probes idle members at once.
func (s *Store) ProbeNow(ctx context.Context) {
	for _, m := range s.list() {
		m.lastUse.Store(0)
	}
	s.probeIdle(ctx)
	s.probing.Wait()
}

// WorkerProcess is the process of a member's worker.
func (s *Store) WorkerProcess(member string) *os.Process {
	m := s.member(member)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.link == nil {
		return nil
	}
	return m.link.proc.cmd.Process
}

// ProofText is the challenge of a key.
func ProofText(ledger audit.LedgerID, spkiHash [32]byte, serial string, nonce [32]byte) []byte {
	return proofText(ledger, spkiHash, serial, nonce)
}

// ProbeText is the probe text of a token.
func ProbeText(serial string) []byte { return probeText(serial) }

// SecretText is what half of a secret comes from.
func SecretText(label string, counter int) []byte { return secretText(label, counter) }

// BackoffMax is the longest pause between two starts of a worker.
const BackoffMax = backoffMax

// CheckModule is the rule for modules.
var CheckModule = checkModule

// Inspect is the parser of a P-256 key that is bound to all that.
func Inspect(purpose audit.Purpose, subject []byte, origin string, ledger audit.LedgerID, serial string, message []byte) error {
	b := binding{purpose: purpose, ident: identECDSA256, subject: subject, origin: origin, ledger: ledger, serial: serial}
	_, err := b.inspect(message)
	return err
}

// SetPinned makes the store expect the signatures of another key.
func (k *Key) SetPinned(pub crypto.PublicKey) { k.pub = pub }

// Sweep closes open intents without waiting for its turn or for their age.
func (s *Store) Sweep(ctx context.Context) { s.sweep(ctx, 0) }

// Waiting tells how many operations are begun and how many signatures run.
func (s *Store) Waiting() (begun int64, running int) {
	s.queue.mu.Lock()
	defer s.queue.mu.Unlock()
	return s.begun.Load(), s.queue.running
}

// Queue is the queue before the HSMs, alone.
type Queue struct{ q queue }

// NewQueue makes one with so many places.
func NewQueue(places int) *Queue {
	q := &Queue{}
	q.q.resize(places)
	return q
}

// Acquire waits for a place.
func (q *Queue) Acquire(ctx context.Context, c Class) error { return q.q.acquire(ctx, c) }

// Release gives it back.
func (q *Queue) Release(c Class) { q.q.release(c) }

// Waiting tells how many wait.
func (q *Queue) Waiting() (n int) {
	waiting, _ := q.q.depth()
	for _, w := range waiting {
		n += w
	}
	return n
}

// Running tells how many places are taken.
func (q *Queue) Running() int {
	_, n := q.q.depth()
	return n
}

// GenesisOfOld is a genesis as it was before members bore checkpoint keys of their own: one
// key for all of them.
func (s *Store) GenesisOfOld(ctx context.Context, grant *admin.Grant, g audit.Genesis, checkpoint KeySpec, more ...KeySpec) error {
	return s.genesis(ctx, grant, g, append([]KeySpec{checkpoint}, more...))
}

// SetRole makes the store, not the token, believe in another role of a member.
func (s *Store) SetRole(member string, r Role) { s.member(member).cfg.Role = r }

// MakeJournal is a worker's journal of one token with these records.
func MakeJournal(serial string, recs ...JournalRecord) (out []byte) {
	prev := journalHead(serial)
	head := prev.encode([32]byte{})
	out = append(out, head[:]...)
	for i, r := range recs {
		r.Seq = uint64(i + 1)
		b := r.encode(prev.Chain)
		out, prev = append(out, b[:]...), decodeRecord(b[:])
	}
	return out
}
