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
	key        *Key
	intent     uint64 // audit.NoIndex for checkpoints and probes
	message    []byte
	digest     []byte  // of message, by the key's hash
	pinned     *member // nil: any member that holds the key
	attempts   uint8
	exempt     kind // kindCheckpoint, kindProbe, or 0
	unverified bool // by benchmarks of the way to the HSM alone

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

// retryPause comes before the second attempt, twice that before the third: when many
// workers die at once the others answer meanwhile, and the end of the dead is noticed.
const retryPause = 2 * time.Millisecond

// sign gets one verified signature from the cluster. A member that fails is
// replaced by another for the same bytes; a member that misses its deadline is
// killed before that, so that at most one signature can come back. An error wraps
// ErrRefused if the worker would not sign this, else ErrUnavailable.
func (s *Store) sign(ctx context.Context, r *signature) ([]byte, error) {
	var last *member
	var err error
	for i := range r.attempts {
		if i > 0 {
			time.Sleep(time.Duration(i) * retryPause)
		}
		if r.key.State() == KeyQuarantined { // since this operation began
			return nil, nonceError(r.key, r.intent)
		}
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
		s.failovers.Add(1)
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
	began := time.Now()
	f, err := l.call(func(id uint64) []byte { return signFrame(id, r.key.id, r.intent, r.message) }, deadline.C)
	if errors.Is(err, errDeadline) {
		m.suspect(l, err)
	}
	if err != nil {
		r.sent = true
		m.stats.failed(err)
		return nil, fmt.Errorf("member %s: %w", m.cfg.Name, err)
	}
	switch f.op {
	case statusRefused:
		return nil, fmt.Errorf("%w: member %s: %s", ErrRefused, m.cfg.Name, f.payload)
	case statusKeyFault:
		return nil, fmt.Errorf("member %s: %w: %s", m.cfg.Name, errKeyFault, f.payload)
	case statusBusy:
		r.sent = true
		return nil, fmt.Errorf("member %s: %w: %s", m.cfg.Name, errBusy, f.payload)
	case statusOK:
	default:
		l.failWith(errDied)
		return nil, fmt.Errorf("member %s: unknown status %d", m.cfg.Name, f.op)
	}
	r.sent = true
	if !r.unverified && !r.key.alg.verify(r.key.pub, r.digest, f.payload) {
		if r.key.State() != KeyBorn { // one that is proved for the first time may be another key than was said
			m.wrongSignature(l)
		}
		return nil, fmt.Errorf("member %s: %w", m.cfg.Name, errBadSig)
	}
	now := time.Now()
	m.stats.signed(r.key, now.Sub(began))
	m.lastUse.Store(now.UnixNano())
	pace := m.pace.Load()
	m.pace.Store(pace + (int64(now.Sub(began))-pace)/16)
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

// hiccup is how long a Begin waits for a member that went away just now: a vendor's
// cluster that moves to another node, or a worker that is started again, costs nobody
// an error.
const hiccup = 2 * time.Second

// expect makes sure, before an intent is written, that a member can sign with the
// key. It waits only for one that was there a moment ago.
func (s *Store) expect(ctx context.Context, r *signature) error {
	for {
		woken := s.upSignal()
		if m, _ := s.choose(r, nil); m != nil {
			return nil
		}
		left := time.Duration(0)
		for _, m := range s.list() {
			if (r.pinned == nil || r.pinned == m) && r.key.on(m) && m.restarting() {
				left = max(left, min(hiccup, s.cfg.SignTimeout)-time.Since(time.Unix(0, m.gone.Load())))
			}
		}
		if left <= 0 {
			return fmt.Errorf("%w: no member that holds key %s is up; nothing was begun, try again later", ErrUnavailable, r.key.name)
		}
		deadline := time.NewTimer(left)
		select {
		case <-woken:
		case <-deadline.C:
		case <-ctx.Done():
			left = 0
		case <-s.done:
			left = 0
		}
		deadline.Stop()
		if left == 0 {
			return fmt.Errorf("%w: waiting for a member that holds key %s; nothing was begun", ErrUnavailable, r.key.name)
		}
	}
}

// choose takes the member with the least outstanding calls, at random among equals:
// the faster one has fewer and so gets more. One that has as many as it can use comes
// after all others. After a failure it is instead the member that has answered last:
// whatever took the first one away may have taken others, and they do not know yet.
func (s *Store) choose(r *signature, not *member) (best *member, link *link) {
	if r.pinned != nil {
		if r.pinned == not {
			return nil, nil
		}
		if l := r.pinned.ready(r.key.id); l != nil {
			return r.pinned, l
		}
		return nil, nil
	}
	var least int64
	equals := 0
	for _, m := range s.list() {
		if m == not || m.sealed.Load() || !r.key.on(m) {
			continue
		}
		l := m.ready(r.key.id)
		if l == nil {
			continue
		}
		var load int64
		if not != nil {
			load = -m.lastUse.Load()
		} else if load = m.outstanding.Load(); load >= s.places(m) {
			load += 1 << 32
		}
		switch {
		case best == nil || load < least:
			equals = 1
		case load == least:
			if equals++; rand.IntN(equals) != 0 {
				continue
			}
		default:
			continue
		}
		best, link, least = m, l, load
	}
	return best, link
}
