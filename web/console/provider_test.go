package console_test

import (
	"context"
	"fmt"
	"net/http"
	neturl "net/url"
	"testing"
	"time"

	"chancery/admin"
	"chancery/web/console"
	"chancery/web/console/oidc"
)

// fakeProvider vouches for one person.
type fakeProvider struct{ state string }

func (p *fakeProvider) Start(_ context.Context, now time.Time, _ bool) (string, oidc.Flow, error) {
	return "https://idp.example/authorize", oidc.Flow{State: p.state, Nonce: "n", Verifier: "v", Begun: now.Unix()}, nil
}

func (p *fakeProvider) Finish(_ context.Context, now time.Time, f oidc.Flow, q neturl.Values) (oidc.Person, error) {
	if q.Get("state") != f.State {
		return oidc.Person{}, fmt.Errorf("%w: the answer belongs to another sign-in", oidc.ErrRefused)
	}
	return oidc.Person{Subject: "u-17", Roles: []admin.Assignment{{Role: admin.RegistrationOfficer}}, At: now}, nil
}

func (p *fakeProvider) Fingerprint() [32]byte { return [32]byte{1} }

func vouching(f *fixture, c *console.Config) { c.Provider = &fakeProvider{"state"} }

// WEB-09: another site makes the browser of an officer call the provider's callback, as an
// image does. That locks nobody out: there is no sign-in under way that could be guessed at.
func TestAttack_WEB_09_CallbackFromElsewhere(t *testing.T) {
	f := newFixture(t, vouching)
	v := f.visitor()
	for range 3 * console.Attempts {
		if w := v.get("/console/oidc/callback?state=x&code=y"); w.Code != http.StatusUnauthorized {
			t.Fatalf("%d", w.Code)
		}
	}
	if w := v.signIn(t, keyOf()["ada"]); w.Code != http.StatusSeeOther {
		t.Errorf("ATTACK WORKED: an officer cannot sign in: %d", w.Code)
	}
	// With one under way, guesses are counted.
	v = f.visitor()
	v.addr = "192.0.2.77:1"
	for range console.Attempts {
		v.get("/console/oidc/start")
		v.get("/console/oidc/callback?state=guess&code=y")
	}
	v.get("/console/oidc/start")
	if w := v.get("/console/oidc/callback?state=guess&code=y"); w.Code != http.StatusTooManyRequests {
		t.Errorf("guesses are not limited: %d", w.Code)
	}
}

// WEB-03: the provider sends the browser back from another site, so that it does not send
// the cookie of its session. The session that it had ends all the same.
func TestAttack_WEB_03_Provider(t *testing.T) {
	f := newFixture(t, vouching)
	v := f.visitor()
	for range 2 {
		old := v.cookies[console.CookieName]
		v.get("/console/oidc/start")
		delete(v.cookies, console.CookieName) // SameSite=Strict
		if w := v.get("/console/oidc/callback?state=state&code=good"); w.Code != http.StatusOK {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		if id := v.cookies[console.CookieName]; id == "" || id == old {
			t.Fatal("no new session")
		}
	}
	if n := f.open.count(); n != 1 {
		t.Errorf("ATTACK WORKED: after the step-up %d sessions are open; the old id still works", n)
	}
}

// WEB-09: wrong passkeys from an address, which may be that of a whole house, keep nobody who
// is signed in there from the step-up that revoking needs, nor by a link or with the provider.
func TestAttack_WEB_09_LockedOut(t *testing.T) {
	f := newFixture(t, vouching)
	ada, v := f.as(t, "ada"), f.visitor()
	f.invited.Open(t.Context(), "cyd", nil, "officer:ada", 0)
	for range 3 * console.Attempts {
		v.signIn(t, newAuthenticator("ada"))
	}
	if w := v.signIn(t, keyOf()["ada"]); w.Code != http.StatusTooManyRequests {
		t.Errorf("sign-in is not limited: %d", w.Code)
	}
	if w := ada.post("/console/step-up", "form_token", f.formTokenOf(ada), "to", "", "assertion", keyOf()["ada"].answer(ada.challenge(t, "/console/step-up/options"))); w.Code != http.StatusSeeOther {
		t.Errorf("ATTACK WORKED: no step-up: %d", w.Code)
	}
	if w := v.post("/console/enrol", "secret", linkOfEve); w.Code != http.StatusOK {
		t.Errorf("ATTACK WORKED: no enrolment: %d", w.Code)
	}
	v.get("/console/oidc/start")
	if w := v.get("/console/oidc/callback?state=state&code=good"); w.Code != http.StatusOK {
		t.Errorf("ATTACK WORKED: no sign-in with the provider: %d", w.Code)
	}
}
