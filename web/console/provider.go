package console

import (
	"context"
	"encoding/hex"
	"encoding/json/v2"
	"errors"
	"fmt"
	"net/http"
	neturl "net/url"
	"strings"
	"time"

	"chancery/admin"
	"chancery/audit"
	"chancery/web/console/oidc"
	"chancery/web/console/sessions"
)

// Provider is an OpenID provider with which people sign in who are no officers;
// *oidc.Provider is one.
type Provider interface {
	// Start returns where the browser goes; fresh wants the person to show anew that they
	// are there.
	Start(ctx context.Context, now time.Time, fresh bool) (to string, f oidc.Flow, err error)
	// Finish holds what came back against the flow. Errors wrap oidc.ErrRefused, or say
	// that the provider does not answer.
	Finish(ctx context.Context, now time.Time, f oidc.Flow, query neturl.Values) (oidc.Person, error)
	// Fingerprint changes with the settings: sessions that were opened under others end.
	Fingerprint() [32]byte
}

// flowCookie keeps a sign-in with the provider that is under way, where it leads to, and the
// ID of the session that it replaces: the browser comes back from another site, and does not
// send that one's strict cookie. It is Lax for that; it opens nothing by itself.
const flowCookie = "__Host-chancery-oidc"

func flow(value string, age int) *http.Cookie {
	return &http.Cookie{Name: flowCookie, Value: value, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode, MaxAge: age}
}

// providerStart is GET /console/oidc/start: off to the provider. Whoever is signed in that
// way already shows there anew that they are there.
func (c *Console) providerStart(w http.ResponseWriter, r *request) error {
	if c.cfg.Provider == nil {
		return missing(w, r)
	}
	to := parsePlace(r.URL.Query().Get("to"))
	address, f, err := c.cfg.Provider.Start(r.Context(), c.now(), r.session != nil)
	if err != nil {
		c.log.Error("the OpenID provider cannot be asked", "id", r.id, "err", err)
		return c.showSignIn(w, r, http.StatusBadGateway, signInData{To: to, Problem: "oidc.away"})
	}
	instead := ""
	if r.session != nil {
		instead = hex.EncodeToString(r.session.id[:])
	}
	http.SetCookie(w, flow(f.Encode()+"~"+to.String()+"~"+instead, 600))
	// The one redirect to another site: its address comes from the provider's own document.
	w.Header().Set("Location", address)
	w.WriteHeader(http.StatusSeeOther)
	return nil
}

// providerCallback is GET /console/oidc/callback. The answer is a page and not a redirect:
// the browser comes from another site, and would not send our strict cookie along.
func (c *Console) providerCallback(w http.ResponseWriter, r *request) error {
	if c.cfg.Provider == nil {
		return missing(w, r)
	}
	if len(r.CookiesNamed(flowCookie)) == 0 { // there is nothing to guess at: other sites can make a browser ask this
		return c.showSignIn(w, r, http.StatusUnauthorized, signInData{Problem: "oidc.refused"})
	}
	http.SetCookie(w, flow("", -1))
	if wait, ok := c.admit(w, r, "oidc"); !ok {
		return c.showSignIn(w, r, http.StatusTooManyRequests, signInData{Problem: "signin.wait", Minutes: int(wait/time.Minute) + 1})
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), actTime)
	defer cancel()
	who, to, instead, err := c.vouched(ctx, r)
	if errors.Is(err, oidc.ErrRefused) {
		c.log.Warn("failed sign-in with the OpenID provider", "id", r.id, "remote", r.address(), "err", err)
		c.cfg.Refused(audit.Refusal{Kind: "console:oidc", Detail: "refused", Client: r.client()})
		return c.showSignIn(w, r, http.StatusUnauthorized, signInData{To: to, Problem: "oidc.refused"})
	}
	c.attempts.giveBack("oidc", r.address())
	if err != nil {
		c.log.Error("the OpenID provider cannot be asked", "id", r.id, "err", err)
		return c.showSignIn(w, r, http.StatusBadGateway, signInData{To: to, Problem: "oidc.away"})
	}
	op := audit.NewOpID()
	if err := c.cfg.Session(ctx, audit.Session{ID: op, Requester: who.Principal().Requester(), Client: r.client()}); err != nil {
		return fmt.Errorf("recording a sign-in: %w", err)
	}
	roles, err := json.Marshal(who.Roles)
	if err != nil {
		return fmt.Errorf("keeping the roles of a session: %w", err)
	}
	now := c.now()
	if who.At.After(now) {
		who.At = now
	}
	err = c.put(ctx, w, instead, sessions.Session{Kind: sessions.OIDC, Subject: who.Subject, Credential: []byte{}, Roles: string(roles), Entry: c.cfg.Provider.Fingerprint(), Stepped: who.At, Op: op})
	if err != nil {
		return err
	}
	c.log.Info("signed in with the OpenID provider", "id", r.id, "subject", who.Subject, "remote", r.address())
	return c.show(w, http.StatusOK, "continue", "", c.view(r, "", "signin.title", to))
}

// vouched is the person of a callback, where they wanted to go, and the session that the
// browser had.
func (c *Console) vouched(ctx context.Context, r *request) (who oidc.Person, to place, had sessions.ID, err error) {
	cookies := r.CookiesNamed(flowCookie)
	if len(cookies) != 1 {
		return who, to, had, fmt.Errorf("%w: there is no sign-in under way in this browser", oidc.ErrRefused)
	}
	text, rest, _ := strings.Cut(cookies[0].Value, "~")
	place, instead, _ := strings.Cut(rest, "~")
	to = parsePlace(place)
	if b, err := hex.DecodeString(instead); err == nil && len(b) == len(had) {
		had = sessions.ID(b)
	}
	f, err := oidc.DecodeFlow(text)
	if err != nil {
		return who, to, had, err
	}
	query, err := neturl.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return who, to, had, fmt.Errorf("%w: the answer cannot be read", oidc.ErrRefused)
	}
	who, err = c.cfg.Provider.Finish(ctx, c.now(), f, query)
	return who, to, had, err
}

// vouchedFor finds who a session of the provider is for; with other settings it is nobody's.
func (c *Console) vouchedFor(s *session) (bool, error) {
	if c.cfg.Provider == nil || s.Entry != c.cfg.Provider.Fingerprint() {
		return false, nil
	}
	s.who = admin.Principal{Kind: admin.ByOIDC, Name: s.Subject}
	if err := json.Unmarshal([]byte(s.Roles), &s.who.Assignments); err != nil {
		return false, fmt.Errorf("reading the roles of a session: %w", err)
	}
	return true, nil
}
