package acme

import (
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// sourceOf names who is counted together: an IPv4 address or an IPv6 /64, which is one
// customer's. It is "", which is not limited, for loopback: a proxy of ours or a test.
func sourceOf(r *http.Request) string {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || ap.Addr().Unmap().IsLoopback() {
		return ""
	}
	ip := ap.Addr().Unmap().WithZone("")
	if ip.Is4() {
		return ip.String()
	}
	return netip.PrefixFrom(ip, 64).Masked().String()
}

// clientOf is the address that a request came from; no header can change it.
func clientOf(r *http.Request) string {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return ""
	}
	return ap.Addr().Unmap().String()
}

const (
	arrivalWindow = time.Hour
	maxSources    = 1 << 16 // those counted apart; all further ones share a count
)

// arrivals counts new accounts by source in windows of an hour. It bounds how fast one
// address fills the database; it is this process's own and forgotten with it.
type arrivals struct {
	mu    sync.Mutex
	began time.Time
	count map[string]int
}

// admit counts an arrival, or says when the next is admitted.
func (a *arrivals) admit(source string, now time.Time, limit int) (ok bool, wait time.Duration) {
	if source == "" || limit < 0 {
		return true, 0
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if age := now.Sub(a.began); age >= arrivalWindow || age < 0 {
		a.began, a.count = now, map[string]int{}
	}
	if _, known := a.count[source]; !known && len(a.count) >= maxSources {
		source = ""
	}
	if a.count[source] >= limit {
		return false, a.began.Add(arrivalWindow).Sub(now)
	}
	a.count[source]++
	return true, 0
}
