package web

import (
	"context"
	"errors"
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
// many ask.
type readiness struct {
	check func(context.Context) error

	mu  sync.Mutex
	at  time.Time
	err error
}

func (r *readiness) ask(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.at.IsZero() && time.Since(r.at) < readyFor {
		return r.err
	}
	// Not the caller's cancellation: the answer is for others, too.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readyTimeout)
	defer cancel()
	r.err = r.check(ctx)
	r.at = time.Now()
	return r.err
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
