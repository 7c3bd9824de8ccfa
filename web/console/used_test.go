package console_test

import (
	"strings"
	"testing"

	"chancery/admin"
)

// An invitation whose passkeys were on the roster is used: nobody is led to put them there
// again when the officers removed them.
func TestAttack_WEB_09_Removed(t *testing.T) {
	f := newFixture(t)
	f.invited.Open(t.Context(), "cyd", nil, "officer:ada", 0)
	f.invited.list[0].State, f.invited.list[0].Passkeys = admin.EnrolmentDone, []admin.Passkey{keyOf()["cyd"].Passkey}
	v := f.as(t, "ada")
	accept := `class="accept"`
	f.board.change(func(r *admin.Roster) { r.Officers = append(r.Officers[:2:2], r.Officers[3:]...) })
	if strings.Contains(v.get("/console/officers").Body.String(), accept) {
		t.Error("ATTACK WORKED: the page offers to take passkeys up that the officers removed")
	}
	f.invited.list[0].Passkeys = append(f.invited.list[0].Passkeys, newAuthenticator("cyd").Passkey)
	if strings.Contains(v.get("/console/officers").Body.String(), accept) {
		t.Error("ATTACK WORKED: one that is new carries the removed one along")
	}
	f.invited.list[0].Passkeys = f.invited.list[0].Passkeys[1:]
	if !strings.Contains(v.get("/console/officers").Body.String(), accept) {
		t.Error("a new one is not offered")
	}
}

// WEB-18: who finishes an enrolment finishes what the page showed; a passkey that somebody
// else made with the link meanwhile is shown first.
func TestAttack_WEB_18_Enrolment(t *testing.T) {
	f := newFixture(t)
	f.invited.Open(t.Context(), "cyd", nil, "officer:ada", 0)
	f.invited.list[0].Passkeys = []admin.Passkey{newAuthenticator("cyd").Passkey}
	v := f.visitor()
	page := v.post("/console/enrol", "secret", linkOfEve).Body.String()
	if !strings.Contains(page, `name="passkeys" value="1"`) {
		t.Error("the form does not say how many passkeys the page shows")
	}
	other := newAuthenticator("mallory").Passkey
	f.invited.list[0].Passkeys = append(f.invited.list[0].Passkeys, other)
	for _, seen := range []string{"1", "", "x", "3"} {
		w := v.post("/console/enrol/finish", "secret", linkOfEve, "passkeys", seen, "alone", "yes")
		if w.Code != 422 || f.invited.list[0].State != admin.EnrolmentOpen || !strings.Contains(w.Body.String(), other.Label) {
			t.Errorf("ATTACK WORKED: %q: %d, the link is %s", seen, w.Code, f.invited.list[0].State)
		}
	}
	if w := v.post("/console/enrol/finish", "secret", linkOfEve, "passkeys", "2"); w.Code != 200 || f.invited.list[0].State != admin.EnrolmentDone {
		t.Errorf("%d", w.Code)
	}
}
