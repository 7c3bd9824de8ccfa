package acme

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"chancery/audit"
	"chancery/ca"
)

// The pauses between attempts to finish what was left in processing.
const (
	firstPause = time.Second
	longPause  = 30 * time.Second
	resumePage = 1000
	// lookAgain is how often a node looks for what another node left, which has ended.
	lookAgain = 15 * time.Second
)

// Run validates challenges, and finishes what a crash or a fault has left in
// processing. When ctx is done it ends what it has begun and returns nil.
func (s *Server) Run(ctx context.Context) error {
	s.work.open(ctx)
	defer s.work.drain()
	var sweeping sync.WaitGroup
	defer sweeping.Wait()
	sweeping.Go(func() { s.sweep(ctx) })
	pause := firstPause
	others := time.NewTicker(lookAgain)
	defer others.Stop()
	for {
		more, err := s.resume(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			s.log.Error("acme: unfinished orders and challenges must wait", "err", err, "pause", pause)
			more = true
		default:
			pause = firstPause
		}
		var timer <-chan time.Time
		knock := s.again
		if more { // somebody may knock at a broken database all the time: the pause holds
			timer, knock = time.After(pause), nil
			pause = min(2*pause, longPause)
		}
		select {
		case <-timer:
		case <-knock:
		case <-others.C:
			s.left.listed = false
		case <-ctx.Done():
			return nil
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// leftovers are the orders that this process knows to be left in processing, with the
// serial of the attempt that ended ("" if it is not known): one that has another serial
// now is under way on another node. Those whose intent is open may be under way, here or on
// another node, and are left alone.
type leftovers struct {
	mu     sync.Mutex
	orders map[string]string
	listed bool // those of the last look are among them; only Run
}

func (l *leftovers) add(id, serial string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.orders[id] = serial
}

func (l *leftovers) remove(id string) { l.mu.Lock(); defer l.mu.Unlock(); delete(l.orders, id) }

func (l *leftovers) all() map[string]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.orders)
}

// leave tells Run of an order that was left in processing with a serial.
func (s *Server) leave(id, serial string) {
	s.left.add(id, serial)
	s.resumeSoon()
}

// resumeSoon makes Run look for what is in processing.
func (s *Server) resumeSoon() {
	select {
	case s.again <- struct{}{}:
	default:
	}
}

// resume starts the validations and finishes the orders that were left in processing.
// more: something is left to be done later.
func (s *Server) resume(ctx context.Context) (more bool, err error) {
	challenges, err := s.cfg.Storage.ACMEProcessingChallenges(ctx, resumePage)
	if err != nil {
		return true, fmt.Errorf("listing challenges in processing: %w", err)
	}
	more = len(challenges) == resumePage
	for _, v := range challenges {
		if !s.work.reserve(v.Account, v.source) {
			more = true
			continue
		}
		s.work.start(v)
	}
	if !s.left.listed {
		orders, err := s.cfg.Storage.ACMEProcessingOrders(ctx, resumePage)
		if err != nil {
			return true, fmt.Errorf("listing orders in processing: %w", err)
		}
		for _, o := range orders {
			s.left.add(o.ID, o.Serial)
		}
		s.left.listed = len(orders) < resumePage
	}
	var g errgroup.Group
	g.SetLimit(8)
	for id, serial := range s.left.all() {
		g.Go(func() error {
			leave, busy := s.issuing.enter(id)
			if busy != nil { // a finalize is about to see what became of it: look again
				return nil
			}
			defer leave()
			err := s.resumeOrder(ctx, id, serial)
			if err == nil {
				s.left.remove(id)
			}
			return err
		})
	}
	err = g.Wait()
	return more || !s.left.listed || len(s.left.all()) > 0, err
}

// resumeOrder issues the stored CSR of an order under a new serial. The serial of the
// attempt before is spent: its intent was closed as an orphan before the server started.
func (s *Server) resumeOrder(ctx context.Context, id, serial string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), issueTime)
	defer cancel()
	o, err := s.cfg.Storage.ACMEOrder(ctx, id)
	if err != nil {
		return fmt.Errorf("reading order: %w", err)
	}
	if o.Status != Processing || serial != "" && o.Serial != serial { // ended, or another node has it
		return nil
	}
	var tried string
	failed := s.protect("resuming order", func() (err error) { tried, err = s.issue(ctx, o, o.CSR, ""); return err })
	if failed == nil {
		s.log.Info("acme order resumed", "order", id)
		return nil
	}
	var refusal *ca.Refusal
	var why *Problem
	switch {
	case errors.As(failed, &refusal) && refusal.Code != ca.IssuerUnavailable:
		why = refused(refusal)
	case errors.Is(failed, errPanic): // it would fail in the same way for ever
		why = problem(http.StatusInternalServerError, ServerInternal, "the server failed to issue the certificate; its log says why; make a new order")
	case errors.Is(failed, audit.ErrConflict):
		after, err := s.cfg.Storage.ACMEOrder(ctx, id)
		if err != nil {
			return fmt.Errorf("reading order: %w", err)
		}
		if after.Status != Processing || after.Serial != o.Serial {
			return nil // another node has it
		}
		why = problem(http.StatusForbidden, Unauthorized, "the account or an authorization of the order is no longer valid; make a new order")
	default:
		if after, err := s.cfg.Storage.ACMEOrder(ctx, id); err == nil && after.Serial == tried {
			s.left.add(id, tried)
		}
		return failed
	}
	was := o.Serial
	if o, err = s.cfg.Storage.ACMEOrder(ctx, id); err != nil {
		return fmt.Errorf("reading order: %w", err)
	}
	if o.Serial != was && o.Serial != tried {
		return nil // another node has it
	}
	s.log.Warn("acme order could not be resumed", "order", id, "err", failed)
	err = s.cfg.Ledger.Write(ctx, OrderInvalid{ID: id, Serial: o.Serial, Error: why})
	if err != nil && !errors.Is(err, audit.ErrConflict) {
		return fmt.Errorf("storing that order failed: %w", err)
	}
	return nil
}

// errPanic stands for a panic that was logged.
var errPanic = errors.New("panic")

// protect keeps a panic from ending the process: what Run works on is still there
// after the restart, so that one poisoned object would end it again and again.
func (s *Server) protect(what string, f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			s.log.Error("acme: panic", "at", what, "err", fmt.Sprint(v), "stack", string(debug.Stack()))
			err = errPanic
		}
	}()
	return f()
}

// runValidation carries one validation out and stores its result. It reports false
// if the result could not be stored.
func (s *Server) runValidation(ctx context.Context, v PendingValidation) bool {
	var p *Problem
	if s.protect("validation", func() error {
		p = s.validate.http01(ctx, v.Name, v.Challenge.Token, v.Challenge.Token+"."+v.Thumbprint)
		return nil
	}) != nil {
		p = problem(http.StatusInternalServerError, ServerInternal, "the server failed to validate the name; its log says why")
	}
	c := v.Challenge
	var result audit.Projection = ChallengeValid{ID: c.ID, Authz: c.Authz, Validated: s.now(), Expires: s.now().Add(s.cfg.AuthzLife)}
	if p != nil {
		id := identifier(v.Name)
		p.Identifier = &id
		result = ChallengeInvalid{ID: c.ID, Authz: c.Authz, Error: p}
	}
	err := s.cfg.Ledger.Write(ctx, result)
	switch {
	case err == nil:
		s.log.Debug("acme validation", "challenge", c.ID, "name", v.Name, "ok", p == nil)
	case errors.Is(err, audit.ErrConflict): // given up meanwhile, or another node was faster
	default:
		s.log.Error("acme validation could not be stored and will be repeated", "challenge", c.ID, "err", err)
		return false
	}
	return true
}
