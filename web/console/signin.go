package console

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"chancery/admin"
	"chancery/audit"
	"chancery/web/console/passkey"
	"chancery/web/console/sessions"
)

// signInData is what the sign-in page shows.
type signInData struct {
	To      place
	Nobody  bool   // has a passkey yet
	OIDC    bool   // there is a provider
	Problem string // key of the catalogue, or ""
	Minutes int
}

// askToSignIn answers who has no session: a page leads to the form and back again, a
// part of a page makes htmx go there.
func (c *Console) askToSignIn(w http.ResponseWriter, r *request) error {
	return lead(w, r, url.SignIn(placeOf(r)))
}

// lead sends the browser to another page, also when only a part of one was asked for.
func lead(w http.ResponseWriter, r *request, to Path) error {
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
	h, err := c.cfg.Board.Rosters(r.Context())
	if err != nil {
		return err
	}
	d.Nobody, d.OIDC = !h.Current().Enrolled(), c.cfg.Provider != nil
	return c.show(w, status, "signin", "", c.view(r, "", "signin.title", d))
}

// signInOptions is GET /console/sign-in/options: what script needs to ask for a passkey.
// It names no credential, so it says the same to everybody.
func (c *Console) signInOptions(w http.ResponseWriter, r *request) error {
	rp, err := c.rp(r.Context())
	if err != nil {
		return err
	}
	b, err := rp.RequestOptions(c.challenge(toSignIn), nil)
	if err != nil {
		return err
	}
	return sendJSON(w, b)
}

func (c *Console) rp(ctx context.Context) (passkey.RP, error) {
	id, origins, err := c.cfg.Enrolments.RP(ctx)
	return passkey.RP{ID: id, Origins: origins}, err
}

// admit counts an attempt before it is made; when there were too many, it tells how long to
// wait.
func (c *Console) admit(w http.ResponseWriter, r *request, kind string) (time.Duration, bool) {
	wait, ok := c.attempts.take(kind, r.address())
	if !ok {
		w.Header().Set("Retry-After", strconv.Itoa(int(wait/time.Second)+1))
		c.log.Warn("too many failed attempts", "id", r.id, "kind", kind, "remote", r.address())
		c.cfg.Refused(audit.Refusal{Kind: "console:" + kind, Detail: "too many attempts", Client: r.client()})
	}
	return wait, ok
}

// signIn is POST /console/sign-in. Every passkey that is not taken gets the same answer,
// whether it is known or not. The session is always a new one, whatever cookie came with
// the request (session fixation).
func (c *Console) signIn(w http.ResponseWriter, r *request) error {
	to := parsePlace(r.form.Get("to"))
	if wait, ok := c.admit(w, r, "sign-in"); !ok {
		return c.showSignIn(w, r, http.StatusTooManyRequests, signInData{To: to, Problem: "signin.wait", Minutes: int(wait/time.Minute) + 1})
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), actTime)
	defer cancel()
	h, err := c.cfg.Board.Rosters(ctx)
	if err != nil {
		return err
	}
	roster := h.Current()
	o, credential, err := c.asserted(ctx, toSignIn, r.form.Get("assertion"), roster)
	var refused *refusedPasskey
	if errors.As(err, &refused) {
		c.log.Warn("failed sign-in", "id", r.id, "remote", r.address(), "err", refused.error)
		c.cfg.Refused(audit.Refusal{Kind: "console:sign-in", Detail: "passkey refused", Client: r.client()})
		return c.showSignIn(w, r, http.StatusUnauthorized, signInData{To: to, Problem: "signin.wrong"})
	}
	c.attempts.giveBack("sign-in", r.address())
	if err != nil {
		return err
	}
	op := audit.NewOpID()
	if err := c.cfg.Session(ctx, audit.Session{ID: op, Requester: admin.OfficerRequester(o.Name), Client: r.client()}); err != nil {
		return fmt.Errorf("recording a sign-in: %w", err)
	}
	if err := c.open(ctx, w, r, roster, o, credential, op); err != nil {
		return err
	}
	c.log.Info("signed in", "id", r.id, "officer", o.Name, "remote", r.address())
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

// signOut is POST /console/sign-out. Nobody stays signed in because the end of it could not
// be recorded.
func (c *Console) signOut(w http.ResponseWriter, r *request) error {
	http.SetCookie(w, sessionCookie("", -1))
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), actTime)
	defer cancel()
	if err := c.cfg.Sessions.Write(ctx, sessions.Close{ID: r.session.id}); err != nil {
		return fmt.Errorf("ending a session: %w", err)
	}
	if err := c.cfg.Session(ctx, audit.Session{ID: r.session.Op, Requester: r.session.who.Requester(), Client: r.client(), Out: true}); err != nil {
		c.log.Error("a sign-out could not be recorded", "id", r.id, "err", err)
	}
	return redirect(w, url.SignIn(place{}))
}

// stepUpData is what the page shows that asks for the passkey once more.
type stepUpData struct {
	To      place
	Problem string
	Minutes int
}

// stepUpPage is GET /console/step-up.
func (c *Console) stepUpPage(w http.ResponseWriter, r *request) error {
	if to := parsePlace(r.URL.Query().Get("to")); r.session.Kind == sessions.OIDC { // they have no passkey here
		return redirect(w, url.ProviderStart(to))
	}
	return c.showStepUp(w, r, http.StatusOK, stepUpData{To: parsePlace(r.URL.Query().Get("to"))})
}

func (c *Console) showStepUp(w http.ResponseWriter, r *request, status int, d stepUpData) error {
	return c.show(w, status, "stepup", "", c.view(r, "", "stepup.title", d))
}

func (s *session) purpose() string { return toStepUp + hex.EncodeToString(s.id[:]) }

// stepUpOptions is GET /console/step-up/options.
func (c *Console) stepUpOptions(w http.ResponseWriter, r *request) error {
	if r.session.Kind != sessions.Officer {
		return missing(w, r)
	}
	rp := passkey.RP{ID: r.session.roster.RPID, Origins: r.session.roster.Origins}
	b, err := rp.RequestOptions(c.challenge(r.session.purpose()), credentials(r.session.officer))
	if err != nil {
		return err
	}
	return sendJSON(w, b)
}

func credentials(o admin.Officer) (out [][]byte) {
	for _, k := range o.Passkeys {
		out = append(out, k.ID)
	}
	return out
}

// stepUp is POST /console/step-up: the same person shows a passkey again, and the session
// gets a new id.
func (c *Console) stepUp(w http.ResponseWriter, r *request) error {
	if r.session.Kind != sessions.Officer {
		return missing(w, r)
	}
	to := parsePlace(r.form.Get("to"))
	if wait, ok := c.admit(w, r, "step-up"); !ok {
		return c.showStepUp(w, r, http.StatusTooManyRequests, stepUpData{To: to, Problem: "signin.wait", Minutes: int(wait/time.Minute) + 1})
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), actTime)
	defer cancel()
	o, _, err := c.asserted(ctx, r.session.purpose(), r.form.Get("assertion"), r.session.roster)
	if err == nil && o.Name != r.session.officer.Name {
		err = &refusedPasskey{errors.New("the passkey is another officer's")}
	}
	var refused *refusedPasskey
	if errors.As(err, &refused) {
		c.log.Warn("failed step-up", "id", r.id, "officer", r.session.officer.Name, "remote", r.address(), "err", refused.error)
		c.cfg.Refused(audit.Refusal{Kind: "console:step-up", Detail: "passkey refused", Client: r.client()})
		return c.showStepUp(w, r, http.StatusUnauthorized, stepUpData{To: to, Problem: "signin.wrong"})
	}
	c.attempts.giveBack("step-up", r.address())
	if err != nil {
		return err
	}
	if err := c.rotate(ctx, w, r); err != nil {
		return err
	}
	return redirect(w, to.Path())
}
