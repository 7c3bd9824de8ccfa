package web

import (
	"net"
	"net/netip"
	"sync"
)

// limitedListener closes connections beyond a number, in all and from one address, so
// that a crowd of idle peers cannot take every file descriptor of the process.
type limitedListener struct {
	net.Listener
	total, each int

	mu   sync.Mutex
	open int
	from map[string]int
}

func limited(l net.Listener, total, each int) *limitedListener {
	return &limitedListener{Listener: l, total: total, each: each, from: map[string]int{}}
}

func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		peer, exempt := peerOf(c.RemoteAddr())
		if l.enter(peer, exempt) {
			return &limitedConn{Conn: c, leave: sync.OnceFunc(func() { l.exit(peer) })}, nil
		}
		c.Close()
	}
}

func (l *limitedListener) enter(peer string, exempt bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open >= l.total || !exempt && l.from[peer] >= l.each {
		return false
	}
	l.open++
	l.from[peer]++
	return true
}

func (l *limitedListener) exit(peer string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.from[peer]--; l.from[peer] == 0 {
		delete(l.from, peer)
	}
}

// peerOf names who is counted together: an IPv4 address or an IPv6 /64, which is one
// customer's. Loopback is a proxy of ours or a test and not limited by address.
func peerOf(a net.Addr) (peer string, exempt bool) {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return a.String(), false
	}
	ip := ap.Addr().Unmap()
	if ip.Is6() {
		p, _ := ip.WithZone("").Prefix(64)
		return p.String(), ip.IsLoopback()
	}
	return ip.String(), ip.IsLoopback()
}

type limitedConn struct {
	net.Conn
	leave func()
}

func (c *limitedConn) Close() error {
	c.leave()
	return c.Conn.Close()
}
