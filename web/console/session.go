package console

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"chancery/audit"
)

// The limits of a session, and how many there are at a time.
const (
	idleTime    = 15 * time.Minute
	wholeTime   = 8 * time.Hour
	maxSessions = 256
)

// cookieName has the prefix that makes browsers insist on Secure, Path=/ and no Domain,
// so that no sub-domain can set it (RFC 6265bis §4.1.3.2).
const cookieName = "__Host-chancery"

// session is what the server knows of a signed-in browser. Its id is known to the
// browser alone: the table holds SHA-256 of it.
type session struct {
	created, seen time.Time
	form          string     // token of its forms
	op            audit.OpID // of its entries in the ledger
}

type sessions struct {
	now func() time.Time

	mu     sync.Mutex
	byHash map[[sha256.Size]byte]*session
}

func newSessions(now func() time.Time) *sessions {
	return &sessions{now: now, byHash: map[[sha256.Size]byte]*session{}}
}

// secret is 256 random bits in hex.
func secret() string {
	var b [32]byte
	rand.Read(b[:]) // never fails (crypto/rand, since Go 1.24)
	return hex.EncodeToString(b[:])
}

// open makes a session and returns its id. A full table loses who was away longest.
func (s *sessions) open(op audit.OpID) string {
	id, now := secret(), s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	var oldest [sha256.Size]byte
	var since time.Time
	for h, e := range s.byHash {
		if e.ended(now) {
			delete(s.byHash, h)
		} else if since.IsZero() || e.seen.Before(since) {
			oldest, since = h, e.seen
		}
	}
	if len(s.byHash) >= maxSessions {
		delete(s.byHash, oldest)
	}
	s.byHash[sha256.Sum256([]byte(id))] = &session{created: now, seen: now, form: secret(), op: op}
	return id
}

func (e *session) ended(now time.Time) bool {
	return now.Sub(e.seen) >= idleTime || now.Sub(e.created) >= wholeTime
}

// find returns a copy of the session, or nil. What a page's own timer fetches does not
// touch it, so that an open page does not keep an absent person signed in.
func (s *sessions) find(id string, touch bool) *session {
	h, now := sha256.Sum256([]byte(id)), s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.byHash[h]
	if e == nil {
		return nil
	}
	if e.ended(now) {
		delete(s.byHash, h)
		return nil
	}
	if touch {
		e.seen = now
	}
	found := *e
	return &found
}

func (s *sessions) close(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byHash, sha256.Sum256([]byte(id)))
}

// sessionID is the id that a browser presents; "" if it has none, or several of which
// only one can be ours.
func sessionID(r *http.Request) string {
	found := r.CookiesNamed(cookieName)
	if len(found) != 1 || len(found[0].Value) != 64 {
		return ""
	}
	return found[0].Value
}

func sessionCookie(value string, age int) *http.Cookie {
	return &http.Cookie{Name: cookieName, Value: value, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode, MaxAge: age}
}

// The limits of failed sign-ins from one address.
const (
	attemptLimit  = 8
	attemptWindow = 5 * time.Minute
	maxAddresses  = 4096
)

// limiter counts failed sign-ins per address; of IPv6 the /64 counts, which is what
// one customer has.
type limiter struct {
	now func() time.Time

	mu    sync.Mutex
	count map[netip.Prefix]*attempts
}

type attempts struct {
	n     int
	until time.Time
}

func newLimiter(now func() time.Time) *limiter {
	return &limiter{now: now, count: map[netip.Prefix]*attempts{}}
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
func (l *limiter) take(a netip.Addr) (wait time.Duration, ok bool) {
	p, now := network(a), l.now()
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

// giveBack takes back an attempt that was none: the token was right.
func (l *limiter) giveBack(a netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.count[network(a)]; e != nil && e.n > 0 {
		e.n--
	}
}

// signInData is what the sign-in page shows.
type signInData struct {
	To      place
	Problem string // key of the catalogue, or ""
	Minutes int
}

// askToSignIn answers who has no session: a page leads to the form and back again, a
// part of a page makes htmx go there.
func (c *Console) askToSignIn(w http.ResponseWriter, r *request) error {
	to := url.SignIn(placeOf(r))
	if r.Header.Get("HX-Request") == "true" {
		w.Header().Set("HX-Redirect", string(to))
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	return redirect(w, to)
}

// signInPage is GET /console/sign-in.
func (c *Console) signInPage(w http.ResponseWriter, r *request) error {
	to := parsePlace(r.URL.Query().Get("to"))
	if r.session != nil {
		return redirect(w, to.Path())
	}
	return c.showSignIn(w, r, http.StatusOK, signInData{To: to})
}

func (c *Console) showSignIn(w http.ResponseWriter, r *request, status int, d signInData) error {
	return c.show(w, status, "signin", "", c.view(r, "", "signin.title", d))
}

// signIn is POST /console/sign-in. Every wrong token gets the same answer. The session
// is always a new one, whatever cookie came with the request (session fixation).
func (c *Console) signIn(w http.ResponseWriter, r *request) error {
	to := parsePlace(r.form.Get("to"))
	if wait, ok := c.attempts.take(r.address()); !ok {
		w.Header().Set("Retry-After", strconv.Itoa(int(wait/time.Second)+1))
		c.log.Warn("too many failed sign-ins", "id", r.id, "remote", r.address())
		c.cfg.Refused(audit.Refusal{Kind: "console:sign-in", Detail: "too many wrong tokens", Client: r.client()})
		return c.showSignIn(w, r, http.StatusTooManyRequests, signInData{To: to, Problem: "signin.wait", Minutes: int(wait/time.Minute) + 1})
	}
	if token := r.form.Get("token"); token == "" || !c.cfg.AdminToken(token) {
		c.log.Warn("failed sign-in", "id", r.id, "remote", r.address())
		c.cfg.Refused(audit.Refusal{Kind: "console:sign-in", Detail: "wrong token", Client: r.client()})
		return c.showSignIn(w, r, http.StatusUnauthorized, signInData{To: to, Problem: "signin.wrong"})
	}
	c.attempts.giveBack(r.address())
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), actTime)
	defer cancel()
	op := audit.NewOpID()
	if err := c.cfg.Session(ctx, audit.Session{ID: op, Requester: requester, Client: r.client()}); err != nil {
		return fmt.Errorf("recording a sign-in: %w", err)
	}
	c.sessions.close(sessionID(r.Request))
	http.SetCookie(w, sessionCookie(c.sessions.open(op), 0))
	c.log.Info("signed in", "id", r.id, "remote", r.address())
	return redirect(w, url.SignedIn(to))
}

// signedInCheck is GET /console/signed-in: where a sign-in leads, to see whether the
// browser kept the cookie. It does not over plain HTTP to another host than localhost.
func (c *Console) signedInCheck(w http.ResponseWriter, r *request) error {
	to := parsePlace(r.URL.Query().Get("to"))
	if r.session == nil {
		return c.showSignIn(w, r, http.StatusBadRequest, signInData{To: to, Problem: "signin.noCookie"})
	}
	return redirect(w, to.Path())
}

// signOut is POST /console/sign-out. The session ends whether that can be recorded or not.
func (c *Console) signOut(w http.ResponseWriter, r *request) error {
	id := sessionID(r.Request)
	if id == "" {
		return errors.New("signing out a session without id")
	}
	c.sessions.close(id)
	http.SetCookie(w, sessionCookie("", -1))
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), actTime)
	defer cancel()
	if err := c.cfg.Session(ctx, audit.Session{ID: r.session.op, Requester: requester, Client: r.client(), Out: true}); err != nil {
		c.log.Error("a sign-out could not be recorded", "id", r.id, "err", err)
	}
	return redirect(w, url.SignIn(place{}))
}
