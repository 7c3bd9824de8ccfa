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

// OnDial lets a test see and replace what validation dials.
func (s *Server) OnDial(f func(ctx context.Context, next func(context.Context, string, string) (net.Conn, error), address string) (net.Conn, error)) {
	next := s.validate.dial
	s.validate.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		return f(ctx, func(ctx context.Context, network, address string) (net.Conn, error) {
			return next(ctx, network, address)
		}, address)
	}
}
