package console

import (
	"net/netip"
	"sync"
	"time"
)

// The limits of failed attempts of one kind from one address.
const (
	attemptLimit  = 8
	attemptWindow = 5 * time.Minute
	maxAddresses  = 4096
)

// limiter counts failed attempts per kind and address: who fails to sign in keeps nobody at
// the same address from a step-up. Of IPv6 the /64 counts, which is what one customer has.
type limiter struct {
	now func() time.Time

	mu    sync.Mutex
	count map[origin]*attempts
}

type origin struct {
	kind string
	from netip.Prefix
}

type attempts struct {
	n     int
	until time.Time
}

func newLimiter(now func() time.Time) *limiter {
	return &limiter{now: now, count: map[origin]*attempts{}}
}

func network(a netip.Addr) netip.Prefix {
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, _ := a.WithZone("").Prefix(bits)
	return p
}

// take counts an attempt before it is made and tells whether it may be made, or how
// long to wait.
func (l *limiter) take(kind string, a netip.Addr) (wait time.Duration, ok bool) {
	p, now := origin{kind, network(a)}, l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.count[p]
	if e == nil || !now.Before(e.until) {
		l.makeRoom(now)
		e = &attempts{until: now.Add(attemptWindow)}
		l.count[p] = e
	}
	if e.n >= attemptLimit {
		return e.until.Sub(now), false
	}
	e.n++
	return 0, true
}

// makeRoom keeps the table bounded: what is over goes first, then anything.
func (l *limiter) makeRoom(now time.Time) {
	if len(l.count) < maxAddresses {
		return
	}
	for p, e := range l.count {
		if !now.Before(e.until) {
			delete(l.count, p)
		}
	}
	for p := range l.count {
		if len(l.count) < maxAddresses {
			return
		}
		delete(l.count, p)
	}
}

// giveBack takes back an attempt that was none: the passkey was right.
func (l *limiter) giveBack(kind string, a netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.count[origin{kind, network(a)}]; e != nil && e.n > 0 {
		e.n--
	}
}
