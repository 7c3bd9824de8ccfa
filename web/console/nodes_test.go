package console_test

import (
	"net/http"
	"testing"

	"chancery/web/console"
)

// Several nodes on one database are one console: a challenge of the one is answered at the
// other, once for all of them; a session is good at each, and its end holds at each.
func TestNodes(t *testing.T) {
	a := filled(t)
	b := filled(t, func(f *fixture, c *console.Config) {
		c.Board, c.Sessions, c.Secret = a.cfg.Board, a.cfg.Sessions, a.cfg.Secret
	})
	at := func(f *fixture, v *visitor) *visitor { return &visitor{f: f, cookies: v.cookies, addr: v.addr} }
	v := a.visitor()
	ada := keyOf()["ada"]
	answer := ada.answer(v.challenge(t, "/console/sign-in/options"))
	if w := at(b, v).post("/console/sign-in", "assertion", answer); w.Code != http.StatusSeeOther {
		t.Fatalf("a challenge of the other node: %d", w.Code)
	}
	for _, f := range []*fixture{a, b} {
		if w := f.visitor().post("/console/sign-in", "assertion", answer); w.Code != http.StatusUnauthorized {
			t.Errorf("a challenge that was spent at the other node: %d", w.Code)
		}
		if w := at(f, v).get("/console/keys"); w.Code != http.StatusOK {
			t.Errorf("a session of the other node: %d", w.Code)
		}
	}
	old := v.cookies[console.CookieName]
	form := fields(at(a, v).get("/console/step-up").Body.String())
	if w := at(b, v).post("/console/step-up", "form_token", form["form_token"], "to", "", "assertion", ada.answer(at(a, v).challenge(t, "/console/step-up/options"))); w.Code != http.StatusSeeOther {
		t.Fatalf("step-up: %d", w.Code)
	}
	stale := a.visitor()
	stale.cookies[console.CookieName] = old
	if w := stale.get("/console/keys"); w.Code != http.StatusSeeOther {
		t.Errorf("the id from before the step-up at the other node: %d", w.Code)
	}
	last := v.cookies[console.CookieName]
	at(a, v).post("/console/sign-out", "form_token", fields(at(a, v).get("/console/step-up").Body.String())["form_token"])
	stale = b.visitor()
	stale.cookies[console.CookieName] = last
	if w := stale.get("/console/keys"); w.Code != http.StatusSeeOther {
		t.Errorf("signed out at the other node: %d", w.Code)
	}
	// A node with another secret takes none of the challenges.
	c := filled(t, func(f *fixture, c *console.Config) { c.Secret = []byte("another secret of 32 octets, yes") })
	if w := c.visitor().post("/console/sign-in", "assertion", ada.answer(a.visitor().challenge(t, "/console/sign-in/options"))); w.Code != http.StatusUnauthorized {
		t.Errorf("a challenge under another secret: %d", w.Code)
	}
}
