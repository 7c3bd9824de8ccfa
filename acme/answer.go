package acme

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json/v2"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"chancery/audit"
)

// answer writes a reply.
func (s *Server) answer(w http.ResponseWriter, rep *reply) {
	body, ok := rep.body.([]byte)
	if !ok && rep.body != nil {
		var err error
		if body, err = json.Marshal(rep.body); err != nil {
			s.log.Error("acme answer cannot be encoded", "err", err)
			rep = &reply{status: http.StatusInternalServerError}
		}
	}
	h := w.Header()
	s.headers(h)
	if rep.location != "" {
		h.Set("Location", rep.location)
	}
	for _, l := range rep.links {
		h.Add("Link", l)
	}
	if rep.retryAfter > 0 {
		h.Set("Retry-After", seconds(rep.retryAfter))
	}
	if rep.body != nil {
		h.Set("Content-Type", "application/json")
		if rep.contentType != "" {
			h.Set("Content-Type", rep.contentType)
		}
		h.Set("Content-Length", strconv.Itoa(len(body)))
	}
	if rep.status == 0 {
		rep.status = http.StatusOK
	}
	w.WriteHeader(rep.status)
	w.Write(body)
}

// headers sets what every answer has. RFC 8555 §6.5 wants the nonce on successes
// too, so that a client needs newNonce only once.
func (s *Server) headers(h http.Header) {
	h.Set("Replay-Nonce", s.nonces.make())
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Add("Link", "<"+s.base+`/directory>;rel="index"`)
}

// fail writes a problem document.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	p, internal := problemFor(err)
	s.note(r, p)
	if internal {
		s.log.Error("acme request failed", "path", r.URL.Path, "status", p.Status, "err", err)
	}
	h := w.Header()
	if p.allow != "" {
		h.Set("Allow", p.allow)
	}
	rep := &reply{status: p.Status, location: p.location, retryAfter: p.retryAfter, contentType: "application/problem+json", body: p}
	if p.link != "" {
		rep.links = []string{p.link}
	}
	s.answer(w, rep)
}

// counted are the problems that policy or authentication ends with. All others are of
// form or state.
var counted = map[ProblemType]bool{Unauthorized: true, RateLimited: true, RejectedIdentifier: true, BadCSR: true, BadPublicKey: true, UserActionRequired: true}

// note has the ledger count a refusal, by its type and the resource that it was asked of.
func (s *Server) note(r *http.Request, p *Problem) {
	if !counted[p.Type] {
		return
	}
	parts := strings.Split(strings.TrimPrefix(r.URL.EscapedPath(), "/acme/"), "/")
	if len(parts) > 1 {
		parts[1] = "{id}"
	}
	at := strings.Join(parts, "/")
	if _, known := s.routes[at]; !known {
		at = ""
	}
	s.cfg.Ledger.Refused(audit.Refusal{Kind: "acme:" + strings.TrimPrefix(string(p.Type), errorNS), Detail: at, Client: clientOf(r)})
}

// seconds is a Retry-After as whole seconds: the date form breaks clients.
func seconds(d time.Duration) string {
	return strconv.Itoa(max(1, int((d+time.Second-1)/time.Second)))
}

// newID draws an id that nobody can guess: 128 bits.
func newID() string { return randomText(16) }

// newToken draws the token of a challenge: 43 base64url characters (RFC 8555 §8.3
// asks for 128 bits at least).
func newToken() string { return randomText(32) }

func randomText(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return base64.RawURLEncoding.EncodeToString(b)
}

func isID(s string) bool {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	return err == nil && len(b) == 16 && len(s) == 22
}

func (s *Server) url(format string, args ...any) string { return s.base + fmt.Sprintf(format, args...) }
