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
	*tally
}

func limited(l net.Listener, total, each int) *limitedListener {
	return &limitedListener{Listener: l, tally: newTally(total, each)}
}

func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if leave := l.enter(c.RemoteAddr().String()); leave != nil {
			return &limitedConn{Conn: c, leave: leave}, nil
		}
		c.Close()
	}
}

// tally counts what is open, in all and from each peer.
type tally struct {
	total, each int

	mu   sync.Mutex
	open int
	from map[string]int
}

func newTally(total, each int) *tally {
	return &tally{total: total, each: each, from: map[string]int{}}
}

// enter counts one more from an address, or returns nil. What it returns may be called
// more than once.
func (l *tally) enter(addr string) (leave func()) {
	peer, exempt := peerOf(addr)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open >= l.total || !exempt && l.from[peer] >= l.each {
		return nil
	}
	l.open++
	l.from[peer]++
	return sync.OnceFunc(func() { l.exit(peer) })
}

func (l *tally) exit(peer string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.from[peer]--; l.from[peer] == 0 {
		delete(l.from, peer)
	}
}

// peerOf names who is counted together: an IPv4 address or an IPv6 /64, which is one
// customer's. Loopback is a proxy of ours or a test and not limited by address.
func peerOf(addr string) (peer string, exempt bool) {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return addr, false
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
