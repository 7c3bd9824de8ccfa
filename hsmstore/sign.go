package hsmstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"chancery/audit"
)

// signature is one request to the cluster: the same bytes under the same intent,
// whichever members it takes.
type signature struct {
	key      *Key
	intent   uint64 // audit.NoIndex for checkpoints and probes
	message  []byte
	digest   []byte  // of message, by the key's hash
	pinned   *member // nil: any member that holds the key
	attempts uint8
	exempt   kind // kindCheckpoint, kindProbe, or 0

	tries []audit.Attempt // what was tried so far, by member
	sent  bool            // an HSM may have signed
}

// count notes one try of a member.
func (r *signature) count(member string) {
	for i := range r.tries {
		if r.tries[i].Member == member {
			r.tries[i].Count++
			return
		}
	}
	r.tries = append(r.tries, audit.Attempt{Member: member, Count: 1})
}

// sign gets one verified signature from the cluster. A member that fails is
// replaced by another for the same bytes; a member that misses its deadline is
// killed before that, so that at most one signature can come back. An error wraps
// ErrRefused if the worker would not sign this, else ErrUnavailable.
func (s *Store) sign(ctx context.Context, r *signature) ([]byte, error) {
	var last *member
	var err error
	for range r.attempts {
		m, l, perr := s.pick(ctx, r, last)
		if perr != nil {
			return nil, errors.Join(perr, err)
		}
		last = m
		var sig []byte
		if sig, err = s.try(m, l, r); err == nil {
			return sig, nil
		}
		if errors.Is(err, ErrRefused) {
			return nil, err
		}
		m.log.Warn("signature attempt failed", "key", r.key.name, "intent", r.intent, "err", err)
	}
	return nil, fmt.Errorf("%w: %d attempts with key %s: %w", ErrUnavailable, r.attempts, r.key.name, err)
}

// try asks one member once.
func (s *Store) try(m *member, l *link, r *signature) ([]byte, error) {
	m.outstanding.Add(1)
	defer m.outstanding.Add(-1)
	m.calls.Add(1)
	m.count.add(r.exempt)
	r.count(m.cfg.Name)
	deadline := time.NewTimer(s.cfg.SignTimeout)
	defer deadline.Stop()
	f, err := l.call(func(id uint64) []byte { return signFrame(id, r.key.id, r.intent, r.message) }, deadline.C)
	if errors.Is(err, errDeadline) {
		m.suspect(l, err)
	}
	if err != nil {
		r.sent = true
		return nil, fmt.Errorf("member %s: %w", m.cfg.Name, err)
	}
	switch f.op {
	case statusRefused:
		return nil, fmt.Errorf("%w: member %s: %s", ErrRefused, m.cfg.Name, f.payload)
	case statusKeyFault:
		return nil, fmt.Errorf("member %s: %w: %s", m.cfg.Name, errKeyFault, f.payload)
	case statusOK:
	default:
		l.failWith(errDied)
		return nil, fmt.Errorf("member %s: unknown status %d", m.cfg.Name, f.op)
	}
	r.sent = true
	if !r.key.alg.verify(r.key.pub, r.digest, f.payload) {
		m.wrongSignature(l)
		return nil, fmt.Errorf("member %s: %w", m.cfg.Name, errBadSig)
	}
	m.lastUse.Store(time.Now().UnixNano())
	return f.payload, nil
}

// pick chooses the member with the least outstanding calls, at random among
// equals, and not the one that failed just now if there is another. If none is
// up it waits for one, for at most one SignTimeout.
func (s *Store) pick(ctx context.Context, r *signature, not *member) (*member, *link, error) {
	if m, l := s.choose(r, not); m != nil {
		return m, l, nil
	}
	deadline := time.NewTimer(s.cfg.SignTimeout)
	defer deadline.Stop()
	for {
		woken := s.upSignal()
		if m, l := s.choose(r, not); m != nil {
			return m, l, nil
		}
		if m, l := s.choose(r, nil); m != nil {
			return m, l, nil
		}
		select {
		case <-woken:
		case <-deadline.C:
			return nil, nil, fmt.Errorf("%w: key %s: no member that holds it came up within %v", ErrUnavailable, r.key.name, s.cfg.SignTimeout)
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("%w: key %s: %w", ErrUnavailable, r.key.name, ctx.Err())
		case <-s.done:
			return nil, nil, fmt.Errorf("%w: %w", ErrUnavailable, ErrClosed)
		}
	}
}

func (s *Store) choose(r *signature, not *member) (best *member, link *link) {
	var least int64
	start := 0
	if n := len(s.members); n > 1 {
		start = rand.IntN(n)
	}
	for i := range s.members {
		m := s.members[(start+i)%len(s.members)]
		if m == not || r.pinned != nil && m != r.pinned || !r.key.on(m) {
			continue
		}
		out := m.outstanding.Load()
		if best != nil && out >= least {
			continue
		}
		if l := m.ready(r.key.id); l != nil {
			best, link, least = m, l, out
		}
	}
	return best, link
}
