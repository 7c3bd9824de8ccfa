package audit

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// Refusal is something that policy or authentication turned down.
type Refusal struct {
	Kind   string // who refused and why, of a fixed set: "acme:unauthorized"
	Detail string // where: a field, an endpoint; never what was sent
	Client string // its address, or "": committed to, not written
}

// The bounds of what refusals can cost, whatever a stranger sends: one leaf per kind and
// window, with few addresses.
const (
	refusalWindow    = time.Minute
	maxRefusalKinds  = 64
	maxRefusalClient = 32 // addresses of one kind that are kept
)

// otherRefusals is the kind of those beyond maxRefusalKinds.
const otherRefusals = "other"

// refusals counts what was refused since the last flush.
type refusals struct {
	mu     sync.Mutex
	counts map[string]*refusalCount
	due    chan struct{} // something is counted
}

type refusalCount struct {
	n       uint64
	since   time.Time
	detail  string // of the first
	clients []string
}

func newRefusals() *refusals {
	return &refusals{counts: map[string]*refusalCount{}, due: make(chan struct{}, 1)}
}

// Refused counts a refusal. [Ledger.RunRefusals] writes the counts down: an attacker who is
// refused a million times costs one entry a minute. It neither waits nor fails.
func (l *Ledger) Refused(r Refusal) {
	l.refused.add(r, 1, l.opt.Now())
}

func (s *refusals) add(r Refusal, n uint64, at time.Time) {
	s.mu.Lock()
	c := s.counts[r.Kind]
	if c == nil && len(s.counts) >= maxRefusalKinds {
		r.Kind = otherRefusals
		c = s.counts[r.Kind]
	}
	if c == nil {
		c = &refusalCount{since: at, detail: r.Detail}
		s.counts[r.Kind] = c
	}
	if at.Before(c.since) { // it could not be written before
		c.since = at
	}
	c.n += n
	if r.Client != "" && len(c.clients) < maxRefusalClient && !slices.Contains(c.clients, r.Client) {
		c.clients = append(c.clients, r.Client)
	}
	s.mu.Unlock()
	select {
	case s.due <- struct{}{}:
	default:
	}
}

// RunRefusals writes one entry per kind of refusal a minute, if there were any, until ctx
// is done, and then the last ones.
func (l *Ledger) RunRefusals(ctx context.Context) error {
	window := time.NewTimer(0)
	<-window.C
	for {
		select {
		case <-l.refused.due:
		case <-ctx.Done():
			return l.lastRefusals(ctx)
		}
		window.Reset(refusalWindow)
		select {
		case <-window.C:
		case <-ctx.Done():
			return l.lastRefusals(ctx)
		}
		if err := l.flushRefusals(ctx); err != nil && ctx.Err() == nil {
			l.opt.Log.Warn("refusals could not be written to the ledger yet", "err", err)
		}
	}
}

// lastRefusals writes what is counted when the server ends.
func (l *Ledger) lastRefusals(ctx context.Context) error {
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer cancel()
	if err := l.flushRefusals(last); err != nil {
		l.opt.Log.Warn("the last refusals were not written to the ledger", "err", err)
	}
	return nil
}

// flushRefusals writes what is counted. What cannot be written is counted again.
func (l *Ledger) flushRefusals(ctx context.Context) error {
	s := l.refused
	s.mu.Lock()
	counts := s.counts
	s.counts = map[string]*refusalCount{}
	s.mu.Unlock()
	var errs []error
	for _, kind := range slices.Sorted(maps.Keys(counts)) {
		c := counts[kind]
		var f Fields
		f.Text(TagRefusal, kind)
		f.Uint64(TagCount, c.n)
		f.Uint64(TagSince, uint64(c.since.Unix()))
		f.Text(TagReason, c.detail)
		f.Text(TagNode, l.opt.Node)
		e := Event(OpRefusals, f)
		e.Private = []Private{{TagAddress, strings.Join(c.clients, "\n")}}
		if _, err := l.Append(ctx, e); err != nil {
			errs = append(errs, err)
			s.restore(kind, c)
		}
	}
	return errors.Join(errs...)
}

// restore puts a count back that could not be written.
func (s *refusals) restore(kind string, c *refusalCount) {
	clients := c.clients
	if len(clients) == 0 {
		clients = []string{""}
	}
	s.add(Refusal{Kind: kind, Detail: c.detail, Client: clients[0]}, c.n, c.since)
	for _, client := range clients[1:] {
		s.add(Refusal{Kind: kind, Detail: c.detail, Client: client}, 0, c.since)
	}
}
