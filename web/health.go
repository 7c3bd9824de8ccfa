package web

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/labstack/echo/v4"

	"chancery/audit"
	"chancery/hsmstore"
)

const (
	readyFor     = time.Second // one check serves everyone who asks within it
	readyTimeout = 5 * time.Second
)

// readiness keeps the last answer of a check. It runs one check at a time, however
// many ask; one that hangs, as a database may, is an answer too.
type readiness struct {
	check func(context.Context) error

	mu      sync.Mutex
	at      time.Time
	err     error
	running chan error // of the check at hand; nil: none
}

func (r *readiness) ask(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.at.IsZero() && time.Since(r.at) < readyFor {
		return r.err
	}
	if r.running != nil {
		select {
		case <-r.running: // too late to be an answer
		default:
			return r.answer(errHangs)
		}
	}
	r.running = make(chan error, 1)
	// Not the caller's cancellation: the answer is for others, too.
	go func(ctx context.Context, answer chan<- error) {
		ctx, cancel := context.WithTimeout(ctx, readyTimeout)
		defer cancel()
		defer func() {
			if v := recover(); v != nil {
				answer <- fmt.Errorf("the check panicked: %v", v)
			}
		}()
		answer <- r.check(ctx)
	}(context.WithoutCancel(ctx), r.running)
	select {
	case err := <-r.running:
		r.running = nil
		return r.answer(err)
	case <-time.After(readyTimeout + readyTimeout/10): // the check's own words are better
		return r.answer(errHangs)
	}
}

var errHangs = fmt.Errorf("%w: the database does not answer", audit.ErrUnavailable)

func (r *readiness) answer(err error) error {
	r.at, r.err = time.Now(), err
	return err
}

// healthz is GET /healthz: the process lives and answers.
func (s *Server) healthz(c echo.Context) error {
	c.Response().Header().Set("Cache-Control", "no-store")
	return c.String(http.StatusOK, "ok\n")
}

// readyz is GET /readyz: the server can sign and commit; alarms stand in the lines behind. Whatever else goes wrong in
// the check is "not ready", too.
func (s *Server) readyz(c echo.Context) error {
	err := s.ready.ask(c.Request().Context())
	if err == nil {
		c.Response().Header().Set("Cache-Control", "no-store")
		text := "ready\n"
		if s.cfg.Alarms != nil {
			for _, a := range s.cfg.Alarms() {
				text += "alarm: " + a + "\n"
			}
		}
		return c.String(http.StatusOK, text)
	}
	p := problemFor(err)
	if p.slug == internal {
		s.log.Error("readiness check failed", "id", requestID(c), "err", err)
		p = problemf(notReady, "the check failed; the log has the cause under the instance of this problem")
	}
	p.slug = notReady
	if p.Part == "" {
		p.Part = partOf(err)
	}
	return p
}

// partOf names the part of the server that an error of a lower floor comes from.
func partOf(err error) string {
	switch is := func(target error) bool { return errors.Is(err, target) }; {
	case slices.ContainsFunc([]error{audit.ErrUnavailable, audit.ErrBusy, audit.ErrTampered}, is):
		return "ledger"
	case slices.ContainsFunc([]error{hsmstore.ErrUnavailable, hsmstore.ErrBusy, hsmstore.ErrPIN, hsmstore.ErrToken, hsmstore.ErrModule, hsmstore.ErrNoKey, hsmstore.ErrClosed}, is):
		return "hsm"
	}
	return ""
}
