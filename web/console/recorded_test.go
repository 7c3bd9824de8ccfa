package console_test

import (
	"fmt"
	"net/http"
	"testing"

	"chancery/audit"
)

// A sign-in and its end are recorded, under one id; wrong tokens are counted. Nobody gets a
// session that could not be recorded, and everybody gets rid of one.
func TestSessionsAreRecorded(t *testing.T) {
	f := newFixture(t)
	v := f.visitor()
	if w := v.post("/console/sign-in", "token", "wrong", "to", ""); w.Code != http.StatusUnauthorized || len(f.signed) != 0 {
		t.Fatalf("%d, recorded %v", w.Code, f.signed)
	}
	if len(f.refused) != 1 || f.refused[0] != (audit.Refusal{Kind: "console:sign-in", Detail: "wrong token", Client: "192.0.2.7"}) {
		t.Errorf("counted %+v", f.refused)
	}
	f.away = fmt.Errorf("%w: down", audit.ErrUnavailable)
	if w := v.post("/console/sign-in", "token", token, "to", ""); w.Code != http.StatusServiceUnavailable || w.Header().Get("Set-Cookie") != "" {
		t.Errorf("a sign-in that cannot be recorded: %d, cookie %q", w.Code, w.Header().Get("Set-Cookie"))
	}
	f.away = nil
	if w := v.post("/console/sign-in", "token", token, "to", ""); w.Code != http.StatusSeeOther {
		t.Fatalf("%d", w.Code)
	}
	form := fields(v.get("/console/").Body.String())
	if w := v.post("/console/sign-out", "form_token", form["form_token"]); w.Code != http.StatusSeeOther {
		t.Fatalf("%d", w.Code)
	}
	if len(f.signed) != 2 || f.signed[0].ID != f.signed[1].ID || f.signed[0].ID == (audit.OpID{}) || f.signed[0].Out || !f.signed[1].Out ||
		f.signed[0].Client != "192.0.2.7" || f.signed[0].Requester != "console:admin-token" {
		t.Errorf("recorded %+v", f.signed)
	}

	v.post("/console/sign-in", "token", token, "to", "")
	form = fields(v.get("/console/").Body.String())
	f.away = fmt.Errorf("%w: down", audit.ErrUnavailable)
	if w := v.post("/console/sign-out", "form_token", form["form_token"]); w.Code != http.StatusSeeOther {
		t.Errorf("a sign-out that cannot be recorded: %d", w.Code)
	}
	if w := v.get("/console/certificates"); w.Code != http.StatusSeeOther {
		t.Errorf("still signed in: %d", w.Code)
	}
}
