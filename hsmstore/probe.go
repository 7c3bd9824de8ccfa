package hsmstore

import (
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"chancery/audit"
)

const (
	probeInterval  = 2 * time.Second
	countsInterval = time.Hour
)

// ProbeKeyName is the name of the probe key of a member.
func ProbeKeyName(member string) string { return "probe-" + member }

// counts counts the signatures of a member that have no intent of their own.
type counts struct{ probes, checkpoints atomic.Uint64 }

func (c *counts) add(k kind) {
	switch k {
	case kindProbe:
		c.probes.Add(1)
	case kindCheckpoint:
		c.checkpoints.Add(1)
	}
}

// Counts are the exempt signatures of one member since the last [Store.TakeCounts].
// Tries are counted, so a number is never below what the HSM has made.
type Counts struct {
	Member      string
	Probes      uint64
	Checkpoints uint64
	JournalHead [32]byte // chain of the worker's journal
}

// TakeCounts returns the counts of all members and starts them anew.
func (s *Store) TakeCounts() []Counts {
	out := make([]Counts, 0, len(s.list()))
	for _, m := range s.list() {
		st := m.current()
		out = append(out, Counts{Member: m.cfg.Name, Probes: m.count.probes.Swap(0), Checkpoints: m.count.checkpoints.Swap(0), JournalHead: st.JournalHead})
	}
	return out
}

// HourlyCounts writes the counts to the ledger as one OpCounts leaf (promise P1).
// If the ledger does not take them they are kept for the next time.
func (s *Store) HourlyCounts(ctx context.Context) {
	if s.ledger.ID() == (audit.LedgerID{}) {
		return
	}
	for _, m := range s.list() {
		ask, cancel := context.WithTimeout(ctx, time.Second)
		m.refreshStatus(ask)
		cancel()
	}
	taken := s.TakeCounts()
	var items [][]byte
	for _, c := range taken {
		items = append(items, []byte(c.Member), binary.BigEndian.AppendUint64(nil, c.Probes), binary.BigEndian.AppendUint64(nil, c.Checkpoints), c.JournalHead[:])
	}
	var f audit.Fields
	f.List(audit.TagCounts, items...)
	if _, err := s.ledger.Append(ctx, audit.Event(audit.OpCounts, f)); err != nil {
		for _, c := range taken {
			if m := s.member(c.Member); m != nil {
				m.count.probes.Add(c.Probes)
				m.count.checkpoints.Add(c.Checkpoints)
			}
		}
		s.log.Error("counts of exempt signatures could not be written", "err", err, "counts", fmt.Sprint(taken))
	}
}

// probeIdle lets every member that has not signed lately sign its probe text: an
// open session proves nothing, a signature does.
func (s *Store) probeIdle(ctx context.Context) {
	for _, m := range s.list() {
		if time.Since(time.Unix(0, m.lastUse.Load())) < probeInterval {
			continue
		}
		k := s.probeKey(m.cfg.Name)
		if k == nil || !k.usable() { // the worker may not know one that is being born
			continue
		}
		l := m.ready(k.id)
		if l == nil || m.outstanding.Load() > 0 {
			continue
		}
		s.probing.Go(func() {
			if _, err := s.try(m, l, m.probe(k)); err != nil && ctx.Err() == nil {
				m.log.Warn("probe failed", "err", err)
				m.suspect(l, err)
			}
		})
	}
}

// probeKey is the probe key of a member, or nil.
func (s *Store) probeKey(member string) *Key {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, k := range s.keys {
		if k.purpose == audit.PurposeProbe && k.State() != KeyDestroyed && slices.Contains(*k.members.Load(), member) {
			return k
		}
	}
	return nil
}

// probe is one request to sign the member's probe text.
func (m *member) probe(k *Key) *signature {
	text := probeText(m.current().Serial)
	return &signature{key: k, intent: audit.NoIndex, message: text, digest: k.alg.digest(text), pinned: m, attempts: 1, exempt: kindProbe}
}

// checkpointSigner implements audit.CheckpointSigner.
type checkpointSigner struct{ store *Store }

// CheckpointSigner signs checkpoints with the key of purpose checkpoint, which it
// looks up at each call. It needs no intent; every try is counted.
func (s *Store) CheckpointSigner() audit.CheckpointSigner { return checkpointSigner{s} }

func (c checkpointSigner) key() (*Key, error) {
	c.store.mu.RLock()
	defer c.store.mu.RUnlock()
	var eldest *Key // the one of leaf 0
	for _, k := range c.store.keys {
		if k.purpose == audit.PurposeCheckpoint && k.usable() && (eldest == nil || k.birth < eldest.birth) {
			eldest = k
		}
	}
	if eldest == nil {
		return nil, fmt.Errorf("%w: a proved key of purpose checkpoint", ErrNoKey)
	}
	return eldest, nil
}

// Public is nil while there is no proved checkpoint key.
func (c checkpointSigner) Public() crypto.PublicKey {
	k, err := c.key()
	if err != nil {
		return nil
	}
	return k.pub
}

func (c checkpointSigner) SignCheckpoint(ctx context.Context, body []byte) ([]byte, error) {
	k, err := c.key()
	if err != nil {
		return nil, err
	}
	b := k.binding()
	p, err := b.inspect(body)
	if err != nil {
		return nil, err
	}
	if p.kind != kindCheckpoint {
		return nil, fmt.Errorf("%w: that is no checkpoint", ErrRefused)
	}
	if err := c.store.queue.acquire(ctx, ClassRevocation); err != nil {
		return nil, fmt.Errorf("%w: waiting to sign a checkpoint: %w", ErrUnavailable, err)
	}
	defer c.store.queue.release(ClassRevocation)
	sig, err := c.store.sign(ctx, &signature{key: k, intent: audit.NoIndex, message: body, digest: k.alg.digest(body), attempts: defaultAttempts, exempt: kindCheckpoint})
	if errors.Is(err, ErrRefused) { // the worker has signed a later tree, or another one of that size
		err = fmt.Errorf("%w: %w", audit.ErrTampered, err)
	}
	if err != nil {
		return nil, err
	}
	if n, ok := k.nonce(sig, sha256.Sum256(body)); ok {
		if err = k.nonces.check(n.R, n.Message); err == nil {
			err = c.store.ledger.Write(ctx, n)
		}
		if errors.Is(err, ErrNonceReused) {
			c.store.quarantine(ctx, k)
		}
		if err != nil {
			return nil, fmt.Errorf("releasing a checkpoint: %w", err)
		}
	}
	return sig, nil
}
