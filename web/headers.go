package web

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"time"
	"uuid"

	"github.com/labstack/echo/v4"
)

// keyRequestID is where a request's id is kept in its echo.Context.
const keyRequestID = "chancery.request-id"

// keyDoor is where the door of a request is kept.
const keyDoor = "chancery.door"

func requestID(c echo.Context) string { id, _ := c.Get(keyRequestID).(string); return id }

// The content security policies: answers for machines may do nothing in a browser,
// pages may load our style sheet.
const (
	cspNothing = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
	cspPage    = "default-src 'none'; style-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)

// identify gives the request an id of our own (none is taken from outside) and the
// answer the headers that all answers have.
func (s *Server) identify(d door) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			id := uuid.NewV4().String()
			c.Set(keyRequestID, id)
			c.Set(keyDoor, d)
			h := c.Response().Header()
			h.Set("X-Request-Id", id)
			h.Set("X-Content-Type-Options", "nosniff")
			h.Set("X-Frame-Options", "DENY")
			h.Set("Content-Security-Policy", cspNothing)
			h.Set("Referrer-Policy", "no-referrer")
			h.Set("Cross-Origin-Opener-Policy", "same-origin")
			h.Set("Cross-Origin-Resource-Policy", "same-origin")
			// Not in dev: HSTS knows no ports and would lock http://localhost:8080 away.
			if d != doorHTTP && !s.cfg.Dev {
				h.Set("Strict-Transport-Security", "max-age=31536000")
			}
			if r := c.Request(); r.ProtoMajor == 1 && len(r.TransferEncoding) > 0 {
				// net/http forgets a Content-Length beside a chunked coding, so that
				// smuggling cannot be seen here; without a next request on the
				// connection there is nothing to smuggle (RFC 9112 §6.3).
				h.Set("Connection", "close")
			}
			return next(c)
		}
	}
}

// logged writes the access log: no query, no header, no body, so that no token can
// get there. Errors become answers here, so that the log has their status.
func (s *Server) logged(d door) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			start := time.Now()
			if err := next(c); err != nil {
				s.fail(err, c)
			}
			r, res := c.Request(), c.Response()
			level := slog.LevelInfo
			if r.URL.Path == "/healthz" || r.URL.Path == "/readyz" {
				level = slog.LevelDebug
			}
			s.log.LogAttrs(r.Context(), level, "request", slog.String("id", requestID(c)), slog.String("door", d.String()),
				slog.String("method", clip(r.Method)), slog.String("path", clipTo(r.URL.EscapedPath(), 256)), slog.Int("status", res.Status), slog.Int64("bytes", res.Size),
				slog.Duration("took", time.Since(start)), slog.String("remote", c.RealIP()))
			return nil
		}
	}
}

// recovered turns a panic into an answer that tells nothing of it.
func (s *Server) recovered(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) (err error) {
		defer func() {
			v := recover()
			if v == nil {
				return
			}
			if e, ok := v.(error); ok && errors.Is(e, http.ErrAbortHandler) {
				panic(v) // net/http's way to cut a connection
			}
			s.log.Error("panic", "id", requestID(c), "err", fmt.Sprint(v), "stack", string(debug.Stack()))
			err = errPanic
		}()
		return next(c)
	}
}

// crowded refuses requests beyond what the process can hold at once.
func (s *Server) crowded(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		leave := s.underWay.enter(c.Request().RemoteAddr)
		if leave == nil {
			return problemf(busy, "too many requests are under way, in all or from your address; nothing was changed; repeat the request")
		}
		defer leave()
		return next(c)
	}
}

// guarded refuses what no route wants: methods that only reflect or tunnel, and
// requests that a browser sends on behalf of another site. ACME is left alone, as
// each of its requests is signed and says for which URL.
func (s *Server) guarded(d door) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			r := c.Request()
			if d == doorHTTP && r.ProtoMajor != 1 { // HTTP/2 with prior knowledge: net/http hands its preface on as a request
				c.Response().Header().Set("Connection", "close")
				return problemf(malformedRequest, "this door speaks HTTP/1.1")
			}
			if r.Method == http.MethodTrace || r.Method == http.MethodConnect {
				c.Response().Header().Set("Allow", "GET, HEAD, POST")
				return problemf(methodNotAllowed, "%s is not served here", r.Method)
			}
			if strings.HasPrefix(r.URL.Path, "/acme/") && d == doorHTTPS {
				return next(c)
			}
			if d == doorHTTP && (strings.HasPrefix(r.URL.Path, "/acme/") || strings.HasPrefix(r.URL.Path, "/api/")) {
				return problemf(notFound, "this is served over HTTPS only, at %s; if you sent a token here, it crossed the network in clear: replace it", s.base)
			}
			if err := s.crossOrigin.Check(r); err != nil {
				return problemf(crossOrigin, "a page of another origin sent this request (Origin or Sec-Fetch-Site say so); send it from this server's own pages or from a program without these headers")
			}
			ctx, cancel := context.WithTimeout(r.Context(), requestTime)
			defer cancel()
			c.SetRequest(r.WithContext(ctx))
			return next(c)
		}
	}
}

// carryThrough gives an act that changes something its own time: a client that hangs
// up does not leave it half-way, where the serial would be used up for nothing.
func carryThrough(c echo.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(c.Request().Context()), requestTime)
}

// slowTime is for answers that many keys or a long CRL hold up.
const slowTime = 15 * time.Minute

// unhurried is carryThrough for such answers.
func unhurried(c echo.Context) (context.Context, context.CancelFunc) {
	_ = http.NewResponseController(c.Response()).SetWriteDeadline(time.Now().Add(slowTime)) // else the server's own holds
	return context.WithTimeout(context.WithoutCancel(c.Request().Context()), slowTime)
}
