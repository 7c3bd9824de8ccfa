package console_test

import (
	"net/http"
	"strings"
	"testing"

	"chancery/admin"
	"chancery/web/console"
)

// Who has the secret of a link sees the invitation; who guesses learns nothing, and not often.
// The secret is in forms alone: not in a path, a link, a redirect or the log.
func TestEnrolmentPage(t *testing.T) {
	f := newFixture(t)
	f.invited.Open(t.Context(), "fay", []admin.Assignment{{Role: admin.CryptoOfficer}, {Role: admin.Signer, Key: "release"}}, "officer:ada", 0)
	v := f.visitor()
	if w := v.get("/console/enrol?secret=" + linkOfEve); w.Code != 200 || strings.Contains(w.Body.String(), "fay") || strings.Contains(w.Body.String(), linkOfEve) {
		t.Errorf("a secret in the address is taken: %d", w.Code)
	}
	w := v.post("/console/enrol", "secret", linkOfEve)
	for _, want := range []string{"fay", "officer:ada", "Crypto officer", "Signer, key release", "Two are asked for", `data-passkey="create"`} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("the invitation lacks %q", want)
		}
	}
	if strings.Contains(w.Body.String(), `id="finish"`) {
		t.Error("it can be finished without a passkey")
	}
	if w := v.post("/console/enrol/finish", "secret", linkOfEve, "alone", ""); w.Code != http.StatusUnprocessableEntity || f.invited.list[0].State != admin.EnrolmentOpen {
		t.Errorf("finishing without a passkey: %d", w.Code)
	}
	challenge := f.Challenge("enrol " + f.invited.list[0].ID)
	for name, answer := range map[string]string{
		"nothing": "", "no JSON": "x", "an assertion": keyOf()["ada"].answer(challenge), "a challenge of another link": keyOf()["ada"].answer(f.Challenge("enrol ffffffffffffffff")), "of a sign-in": keyOf()["ada"].answer(f.Challenge("sign-in")),
	} {
		if w := v.post("/console/enrol/passkey", "secret", linkOfEve, "label", "x", "assertion", answer); w.Code != http.StatusUnprocessableEntity || len(f.invited.list[0].Passkeys) != 0 {
			t.Errorf("%s: %d", name, w.Code)
		}
	}
	// One passkey is enough only if that is said.
	f.invited.list[0].Passkeys = []admin.Passkey{keyOf()["eve"].Passkey}
	if w := v.post("/console/enrol/finish", "secret", linkOfEve, "passkeys", "1"); w.Code != http.StatusUnprocessableEntity || !strings.Contains(w.Body.String(), "one passkey only") {
		t.Errorf("one passkey: %d", w.Code)
	}
	if w := v.post("/console/enrol/finish", "secret", linkOfEve, "passkeys", "1", "alone", "yes"); w.Code != 200 || !strings.Contains(w.Body.String(), "administrator has asked") {
		t.Errorf("finishing: %d", w.Code)
	}
	// A link that was used and one that never was get one answer.
	used := v.post("/console/enrol", "secret", linkOfEve)
	for range console.Attempts - 1 {
		w := v.post("/console/enrol", "secret", strings.Repeat("0", 64))
		if w.Code != http.StatusNotFound || used.Code != w.Code || requestID.ReplaceAllString(w.Body.String(), "") != requestID.ReplaceAllString(used.Body.String(), "") {
			t.Errorf("%d", w.Code)
		}
	}
	for _, path := range []string{"/console/enrol", "/console/enrol/options", "/console/enrol/passkey", "/console/enrol/finish"} {
		if w := v.post(path, "secret", linkOfEve); w.Code != http.StatusTooManyRequests {
			t.Errorf("%s after %d guesses: %d", path, console.Attempts, w.Code)
		}
	}
	if strings.Contains(f.logged.String(), linkOfEve) {
		t.Error("the log has the secret")
	}
}
