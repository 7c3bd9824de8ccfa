package acme

import (
	"context"
	"net"
	"net/netip"
	"time"
)

// For the tests in package acme_test.

func ParseJWS(b []byte) error { _, err := parseJWS(b); return err }

func ParseKey(b []byte) error { _, err := parseKey(b); return err }

func Quote(s string) string { return quote(s) }

type Nonces struct{ n *nonces }

func NewNonces(key []byte, now func() time.Time) Nonces { return Nonces{newNonces(key, now)} }

func (n Nonces) Make() string { return n.n.make() }

func (n Nonces) Use(s string) bool {
	x, ok := n.n.check(s)
	return ok && n.n.spend(x)
}

func (n Nonces) Skip(by uint64) { n.n.counter.Add(by) }

func (n Nonces) Chunks() int { return len(n.n.chunks) }

func Forbidden(allow, deny []netip.Prefix, listen []string, ap netip.AddrPort) string {
	p := addressPolicy{allow: allow, deny: deny}
	for _, s := range listen {
		l, err := parseListener(s)
		if err != nil {
			panic(err)
		}
		p.listen = append(p.listen, l)
	}
	return p.forbidden(ap)
}

// SweepOnce deletes a batch of expired orders.
func (s *Server) SweepOnce(ctx context.Context) (int, error) { return s.sweepOnce(ctx) }

// Queue is a dispatcher whose validations wait until their context or channel ends.
type Queue struct{ d *dispatcher }

func NewQueue(run func(account string)) Queue {
	return Queue{newDispatcher(func(_ context.Context, v PendingValidation) bool { run(v.Account); return true }, func() {})}
}

// Add asks for n validations of an account by a source and returns how many were taken.
func (q Queue) Add(account, source string, n int) (taken int) {
	for range n {
		if q.d.reserve(account, source) {
			taken++
			q.d.start(PendingValidation{Challenge: Challenge{Authz: newID()}, Account: account, source: source})
		}
	}
	return taken
}

func (q Queue) Open(ctx context.Context) { q.d.open(ctx) }

func (q Queue) Drain() { q.d.drain() }

// Empty tells whether nothing is left in any map.
func (q Queue) Empty() bool {
	q.d.mu.Lock()
	defer q.d.mu.Unlock()
	return len(q.d.lanes)+len(q.d.sources)+len(q.d.flying)+len(q.d.turn)+q.d.running+q.d.waiting == 0
}

// Arrivals counts new accounts.
type Arrivals struct{ arrivals }

func (a *Arrivals) Admit(source string, now time.Time, limit int) bool {
	ok, _ := a.admit(source, now, limit)
	return ok
}

func (a *Arrivals) Len() int { return len(a.count) }

// OnDial lets a test see and replace what validation dials.
func (s *Server) OnDial(f func(ctx context.Context, next func(context.Context, string, string) (net.Conn, error), address string) (net.Conn, error)) {
	next := s.validate.dial
	s.validate.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		return f(ctx, func(ctx context.Context, network, address string) (net.Conn, error) {
			return next(ctx, network, address)
		}, address)
	}
}
