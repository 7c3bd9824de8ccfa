package acme

import (
	"context"
	"net"
	"net/netip"
	"time"
)

// Validation configures how names are validated.
type Validation struct {
	HTTPPort uint16 // of http-01; 0: 80. RFC 8555 §8.3 allows 80 only; others are for tests
	// Resolvers are recursive name servers, host:port; empty: those of /etc/resolv.conf.
	Resolvers []string
	// AllowNetworks may be reached though they are special: 127.0.0.0/8 in dev.
	AllowNetworks []netip.Prefix
	// DenyNetworks may not be reached: those of HSMs and databases.
	DenyNetworks []netip.Prefix
	// DenyAddrs are this server's own listeners, host:port; never reached.
	DenyAddrs []string
	// LocalhostToLoopback lets localhost and names beneath it be ordered, and
	// resolves them to 127.0.0.1: dev only.
	LocalhostToLoopback bool
	Timeout             time.Duration // of one validation as a whole; 0: 10 s, which is also the most
}

// validator proves control of names. It keeps no state between validations.
type validator struct {
	addressPolicy
	*resolver
	httpPort uint16
	timeout  time.Duration
	dial     func(ctx context.Context, network, address string) (net.Conn, error)
}

const maxValidation = 10 * time.Second

func newValidator(c Validation) (*validator, error) {
	r, err := newResolver(c.Resolvers, c.LocalhostToLoopback)
	if err != nil {
		return nil, err
	}
	v := &validator{resolver: r, httpPort: c.HTTPPort, timeout: c.Timeout, dial: new(net.Dialer).DialContext,
		addressPolicy: addressPolicy{allow: c.AllowNetworks, deny: c.DenyNetworks}}
	if v.httpPort == 0 {
		v.httpPort = 80
	}
	if v.timeout <= 0 || v.timeout > maxValidation {
		v.timeout = maxValidation
	}
	for _, s := range c.DenyAddrs {
		l, err := parseListener(s)
		if err != nil {
			return nil, err
		}
		v.listen = append(v.listen, l)
	}
	return v, nil
}

// targets resolves a host and judges every address it has. One forbidden address
// refuses the whole host: who mixes them has no good reason.
func (v *validator) targets(ctx context.Context, host string, port uint16) ([]netip.AddrPort, *Problem) {
	list, p := v.addresses(ctx, host)
	if p != nil {
		return nil, p
	}
	var out []netip.AddrPort
	for _, a := range list {
		ap := netip.AddrPortFrom(a.Unmap(), port)
		if why := v.forbidden(ap); why != "" {
			return nil, problem(400, Connection, "%s resolves to an address that this server does not reach out to (%s); nothing was sent", host, why)
		}
		out = append(out, ap)
	}
	return out[:min(len(out), maxTargets)], nil
}

const (
	maxTargets = 8
	// tryTime bounds the connecting to one of several addresses.
	tryTime = 3 * time.Second
)

// connect dials the judged addresses in turn: exactly them, never the name again.
func (v *validator) connect(ctx context.Context, host string, port uint16) (net.Conn, *Problem) {
	targets, p := v.targets(ctx, host, port)
	if p != nil {
		return nil, p
	}
	for i, ap := range targets {
		try, cancel := ctx, context.CancelFunc(func() {})
		if i < len(targets)-1 {
			try, cancel = context.WithTimeout(ctx, tryTime)
		}
		conn, err := v.dial(try, "tcp", ap.String())
		cancel()
		if err == nil {
			return conn, nil
		}
	}
	return nil, problem(400, Connection, "no connection to %s at port %d: nothing listens there, or a firewall is between this CA and the host", host, port)
}
