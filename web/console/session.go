package console

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json/v2"
	"errors"
	"fmt"
	"net/http"
	"time"

	"chancery/admin"
	"chancery/audit"
	"chancery/web/console/sessions"
)

// touchTime is how often at most it is noted that a session is used.
const touchTime = time.Minute

// freshTime is how old the proof that a person is there may be for a dangerous act.
const freshTime = 2 * time.Minute

// cookieName has the prefix that makes browsers insist on Secure, Path=/ and no Domain,
// so that no sub-domain can set it (RFC 6265bis §4.1.3.2).
const cookieName = "__Host-chancery"

// session is what the server knows of a signed-in browser, and who that is now: the
// officer is looked up on the roster in force with every request.
type session struct {
	sessions.Session
	id      sessions.ID
	who     admin.Principal
	officer admin.Officer
	roster  admin.Roster
}

// secret is 256 random bits in hex.
func secret() string {
	var b [32]byte
	rand.Read(b[:]) // never fails (crypto/rand, since Go 1.24)
	return hex.EncodeToString(b[:])
}

// entryDigest is of all that a roster says of an officer, and of whom its passkeys are for.
func entryDigest(r admin.Roster, o admin.Officer) ([32]byte, error) {
	b, err := json.Marshal(o, json.Deterministic(true))
	if err != nil {
		return [32]byte{}, fmt.Errorf("the entry of officer %s: %w", o.Name, err)
	}
	return audit.Digest("console-entry", append([]byte(r.RPID+"\n"), b...)), nil
}

// find returns the session of a request, or nil. What a page's own timer fetches does not
// touch it, so that an open page does not keep an absent person signed in. An officer who
// left the roster, or whose entry changed, is signed out.
func (c *Console) find(r *request, touch bool) (*session, error) {
	id := sessionID(r.Request)
	if id == "" {
		return nil, nil
	}
	ctx, now := r.Context(), c.now()
	s := &session{id: sessions.IDOf(id)}
	var err error
	if s.Session, err = c.cfg.Sessions.Session(ctx, s.id); errors.Is(err, audit.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading a session: %w", err)
	}
	if s.Ended(now) {
		return nil, nil
	}
	known, err := c.identify(ctx, s)
	if err != nil {
		return nil, err
	}
	if !known {
		c.log.Info("signed out: the roster changed", "id", r.id, "officer", s.Subject)
		if err := c.cfg.Sessions.Write(ctx, sessions.Close{ID: s.id}); err != nil {
			c.log.Warn("a session could not be removed; it is refused all the same", "id", r.id, "err", err)
		}
		return nil, nil
	}
	if touch && now.Sub(s.Seen) >= touchTime {
		if err := c.cfg.Sessions.Write(ctx, sessions.Touch{ID: s.id, At: now}); err != nil {
			c.log.Warn("the use of a session could not be noted; it may end earlier", "id", r.id, "err", err)
		}
	}
	return s, nil
}

// identify finds who a session is for. A kind that is not known is nobody's.
func (c *Console) identify(ctx context.Context, s *session) (bool, error) {
	if s.Kind == sessions.OIDC {
		return c.vouchedFor(s)
	}
	if s.Kind != sessions.Officer {
		return false, nil
	}
	h, err := c.cfg.Board.Rosters(ctx)
	if err != nil {
		return false, err
	}
	s.roster = h.Current()
	var ok bool
	if s.officer, ok = s.roster.Officer(s.Subject); !ok {
		return false, nil
	}
	digest, err := entryDigest(s.roster, s.officer)
	s.who = s.roster.Principal(s.officer)
	return digest == s.Entry, err
}

// fresh tells whether the person proved lately to be there.
func (s *session) fresh(now time.Time) bool { return now.Sub(s.Stepped) < freshTime }

// open makes a session for an officer who signed in with a passkey, in place of the one
// that the browser had.
func (c *Console) open(ctx context.Context, w http.ResponseWriter, r *request, roster admin.Roster, o admin.Officer, credential []byte, op audit.OpID) error {
	entry, err := entryDigest(roster, o)
	if err != nil {
		return err
	}
	return c.put(ctx, w, r, sessions.Session{Kind: sessions.Officer, Subject: o.Name, Credential: credential, Entry: entry, Stepped: c.now(), Op: op})
}

// put stores a new session in place of the one that the browser had.
func (c *Console) put(ctx context.Context, w http.ResponseWriter, r *request, s sessions.Session) error {
	id, now := secret(), c.now()
	s.Created, s.Seen, s.Form = now, now, secret()
	put := sessions.Put{ID: sessions.IDOf(id), Session: s}
	if old := sessionID(r.Request); old != "" {
		put.Instead = sessions.IDOf(old)
	}
	if err := c.cfg.Sessions.Write(ctx, put); err != nil {
		return fmt.Errorf("opening a session: %w", err)
	}
	http.SetCookie(w, sessionCookie(id, 0))
	return nil
}

// rotate gives the session of a request a new id: the old one is dead.
func (c *Console) rotate(ctx context.Context, w http.ResponseWriter, r *request) error {
	id := secret()
	err := c.cfg.Sessions.Write(ctx, sessions.Rotate{From: r.session.id, To: sessions.IDOf(id), Form: secret(), At: c.now()})
	if errors.Is(err, audit.ErrConflict) { // signed out meanwhile
		return failure{status: http.StatusForbidden, text: "error.formToken"}
	}
	if err != nil {
		return fmt.Errorf("renewing a session: %w", err)
	}
	http.SetCookie(w, sessionCookie(id, 0))
	return nil
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
