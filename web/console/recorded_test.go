package console_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"chancery/audit"
)

// A sign-in and its end are recorded, under one id; passkeys that are not taken are counted. Nobody gets a
// session that could not be recorded, and everybody gets rid of one.
func TestSessionsAreRecorded(t *testing.T) {
	f := newFixture(t)
	ada, unknown := keyOf()["ada"], newAuthenticator("ada")
	v := f.visitor()
	if w := v.signIn(t, unknown); w.Code != http.StatusUnauthorized || len(f.signed) != 0 {
		t.Fatalf("%d, recorded %v", w.Code, f.signed)
	}
	if len(f.refused) != 1 || f.refused[0] != (audit.Refusal{Kind: "console:sign-in", Detail: "passkey refused", Client: "192.0.2.7"}) {
		t.Errorf("counted %+v", f.refused)
	}
	f.away = fmt.Errorf("%w: down", audit.ErrUnavailable)
	if w := v.signIn(t, ada); w.Code != http.StatusServiceUnavailable || w.Header().Get("Set-Cookie") != "" {
		t.Errorf("a sign-in that cannot be recorded: %d, cookie %q", w.Code, w.Header().Get("Set-Cookie"))
	}
	f.away = nil
	if w := v.signIn(t, ada); w.Code != http.StatusSeeOther {
		t.Fatalf("%d", w.Code)
	}
	form := fields(v.get("/console/").Body.String())
	if w := v.post("/console/sign-out", "form_token", form["form_token"]); w.Code != http.StatusSeeOther {
		t.Fatalf("%d", w.Code)
	}
	if len(f.signed) != 2 || f.signed[0].ID != f.signed[1].ID || f.signed[0].ID == (audit.OpID{}) || f.signed[0].Out || !f.signed[1].Out ||
		f.signed[0].Client != "192.0.2.7" || f.signed[0].Requester != "officer:ada" || f.signed[1].Requester != "officer:ada" {
		t.Errorf("recorded %+v", f.signed)
	}

	v.signIn(t, ada)
	form = fields(v.get("/console/").Body.String())
	f.away = fmt.Errorf("%w: down", audit.ErrUnavailable)
	if w := v.post("/console/sign-out", "form_token", form["form_token"]); w.Code != http.StatusSeeOther {
		t.Errorf("a sign-out that cannot be recorded: %d", w.Code)
	}
	if w := v.get("/console/certificates"); w.Code != http.StatusSeeOther {
		t.Errorf("still signed in: %d", w.Code)
	}
	// Without the database nobody gets in, and a page says so.
	f.away = nil
	f.open.err = fmt.Errorf("%w: down", audit.ErrUnavailable)
	if w := v.signIn(t, ada); w.Code != http.StatusServiceUnavailable || w.Header().Get("Set-Cookie") != "" {
		t.Errorf("a sign-in without the database: %d", w.Code)
	}
}

// What the ledger says of refusals, sign-ins and erasures can be read at the console.
func TestPrivateEntriesAreShown(t *testing.T) {
	f := newFixture(t)
	field := func(tag audit.Tag, v []byte) audit.Field { return audit.Field{Tag: tag, Value: v} }
	event := func(op audit.Op, fields ...audit.Field) string {
		i := f.led.add(audit.Leaf{Kind: audit.KindEvent, Op: op, ID: audit.NewOpID(), Time: start, Closes: audit.NoIndex, Fields: fields})
		return fmt.Sprintf("/console/ledger/%d", i)
	}
	v := f.signedIn(t)
	for path, want := range map[string][]string{
		event(audit.OpRefusals, field(audit.TagReason, []byte("new-order")), field(audit.TagCount, u64(4711)), field(audit.TagAddress, make([]byte, 32)), field(audit.TagSince, u64(uint64(start.Unix()))), field(audit.TagRefusal, []byte("acme:unauthorized"))): {
			"Refusals counted", "acme:unauthorized", "4,711", "new-order", "2026-11-25 09:30:00 UTC", "Client address (committed)"},
		event(audit.OpSession, field(audit.TagOutcome, []byte("signed in"))):                                                 {"Sign-in or sign-out", "signed in"},
		event(audit.OpErase, field(audit.TagCount, u64(1)), field(audit.TagErased, []byte{0, 0, 0, 0, 0, 0, 0, 42, 0, 120})): {"Personal values erased", "42 address"},
	} {
		page := v.get(path).Body.String()
		for _, w := range want {
			if !strings.Contains(page, w) {
				t.Errorf("%s lacks %q:\n%s", path, w, page)
			}
		}
	}
}
