package hsmstore

import (
	"context"
	"encoding/binary"
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
