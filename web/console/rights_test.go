package console_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"chancery/admin"
	"chancery/audit"
	"chancery/web/console"
)

// on fills in the path of a route with things that are there.
func (f *fixture) on(path string) string {
	id := "00112233445566aa"
	switch {
	case strings.Contains(path, "/approvals/"):
		id = f.board.proposals[0].ID
	case strings.Contains(path, "/machines/"):
		id = f.hosts.list[0].ID
	}
	return strings.NewReplacer("{$}", "", "{serial}", f.ca.certs[0].Serial, "{index}", "1", "{file}", "x", "{id}", id).Replace(path)
}

// busy is a filled console with a request, an invitation and a machine.
func busy(t *testing.T, edit ...func(*fixture, *console.Config)) *fixture {
	f := filled(t, edit...)
	f.board.put("officer:ada", admin.GenerateKey, `{"name":"release","purpose":"code","algorithm":"P-256"}`, admin.GenerateKeyAct("release", "code", "P-256", nil))
	f.invited.Open(t.Context(), "fay", nil, "officer:ada", 0)
	f.hosts.NewToken(t.Context(), admin.Principal{Kind: admin.ByOfficer, Name: "ada"}, "builder", []admin.Assignment{{Role: admin.Signer}}, 24*3600e9)
	return f
}

// WEB-05, WEB-06: every route of the table, with every kind of person: who has the permission
// gets in, nobody else does, and a refusal says which role would do.
func TestAttack_WEB_06(t *testing.T) {
	f := busy(t)
	h, err := f.board.Rosters(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	roster := h.Current()
	seen := map[admin.Permission]bool{}
	for _, name := range []string{"ada", "bob", "cyd", "dan", "eve"} {
		o, _ := roster.Officer(name)
		who := roster.Principal(o)
		for _, r := range f.Routes() {
			if r.Public || strings.HasSuffix(r.Path, "sign-out") {
				continue
			}
			v := f.as(t, name)
			for _, method := range []string{"GET", "POST"} {
				if method == "GET" && !r.Get || method == "POST" && !r.Post {
					continue
				}
				token := f.formTokenOf(v)
				w := v.do(method, f.on(r.Path), form("form_token", token))
				refused := w.Code == 403 && strings.Contains(w.Body.String(), "Your roles do not allow this")
				if want := !r.SignedIn && !who.MaySome(r.May); refused != want {
					t.Errorf("%s %s as %s: %d, may: %v", method, r.Path, name, w.Code, !want)
				}
				if refused && !strings.Contains(w.Body.String(), "It needs one of these roles: ") {
					t.Errorf("%s %s does not say which role would do", method, r.Path)
				}
				seen[r.May] = true
			}
		}
	}
	for _, p := range []admin.Permission{admin.ReadCertificates, admin.RevokeCertificates, admin.ReadApprovals, admin.Propose, admin.Vote, admin.CancelApprovals, admin.ReadOfficers, admin.ManageOfficers, admin.ReadMachines, admin.ManageMachines, admin.ReadLedger, admin.ReadHSM, admin.ReadKeys} {
		if !seen[p] {
			t.Errorf("no route needs %s", p)
		}
	}
	// Nobody changed anything: the forms were empty.
	if len(f.ca.revocations()) != 0 || len(f.hosts.list) != 1 {
		t.Error("an empty form did something")
	}
}

// formTokenOf reads the form token of a visitor's session.
func (f *fixture) formTokenOf(v *visitor) string {
	return fields(v.get("/console/step-up").Body.String())["form_token"]
}

// Who has a role for one issuer sees and revokes the certificates of that one alone.
func TestAttack_WEB_05(t *testing.T) {
	f := busy(t)
	mine, others := f.ca.certs[1], f.ca.certs[2]
	others.Issuer = "external"
	v := f.as(t, "dan")
	path := func(serial, rest string) string { return "/console/certificates/" + serial + rest }
	for _, rest := range []string{"", "/certificate.pem", "/chain.pem", "/certificate.cer", "/revoke"} {
		if w := v.get(path(mine.Serial, rest)); w.Code != 200 {
			t.Errorf("%s of one's own issuer: %d", rest, w.Code)
		}
		if w := v.get(path(others.Serial, rest)); w.Code != 403 {
			t.Errorf("%s of another issuer: %d", rest, w.Code)
		}
	}
	if w := v.post(path(others.Serial, "/revoke"), "form_token", f.formTokenOf(v), "serial", others.Serial, "digest", digest(others), "reason", "superseded"); w.Code != 403 || len(f.ca.revocations()) != 0 {
		t.Errorf("revoking of another issuer: %d", w.Code)
	}
	list := v.get("/console/certificates?" + form("q", others.Serial)).Body.String()
	if strings.Contains(list, path(others.Serial, "")) || !strings.Contains(v.get("/console/certificates?"+form("q", mine.Serial)).Body.String(), path(mine.Serial, "")) {
		t.Error("the list shows others, or not one's own")
	}
	// Pages and navigation show what one may do and no more.
	home := v.get("/console/").Body.String()
	for _, not := range []string{`href="/console/hsm"`, `href="/console/keys"`, `href="/console/ledger"`, `href="/console/officers"`, `href="/console/machines"`, `href="/console/approvals`} {
		if strings.Contains(home, not) {
			t.Errorf("dan is shown %s", not)
		}
	}
	if !strings.Contains(home, `href="/console/certificates"`) {
		t.Error("dan is not shown the certificates")
	}
	auditor := f.as(t, "cyd")
	for p, not := range map[string]string{"/console/officers": `id="invite"`, "/console/machines": `id="new-machine"`, "/console/keys": `id="new-key"`, "/console/certificates/" + mine.Serial: `id="revoke"`, "/console/approvals/" + f.board.proposals[0].ID: `id="approve"`} {
		if w := auditor.get(p); w.Code != 200 || strings.Contains(w.Body.String(), not) {
			t.Errorf("%s shows an auditor %s, or not at all: %d", p, not, w.Code)
		}
	}
}

// Every dangerous act leads through the passkey, and back to its own page, and nothing happens
// on the way.
func TestAttack_WEB_12_StepUp(t *testing.T) {
	f := busy(t)
	n := 0
	for _, r := range f.Routes() {
		if !r.Fresh {
			continue
		}
		n++
		v := f.as(t, "ada")
		f.pass(console.FreshTime)
		for _, method := range []string{"GET", "POST"} {
			body := form("form_token", f.formTokenOf(v))
			w := v.do(method, f.on(r.Path), body)
			to := w.Header().Get("Location")
			if w.Code != 303 || !strings.HasPrefix(to, "/console/step-up?to=") {
				t.Fatalf("%s %s without a fresh passkey: %d %s", method, r.Path, w.Code, to)
			}
			page := fields(v.get(to).Body.String())
			v.post("/console/step-up", "form_token", page["form_token"], "assertion", keyOf()["ada"].answer(v.challenge(t, "/console/step-up/options")), "to", to[strings.Index(to, "=")+1:])
			if method == "GET" {
				w = v.post("/console/step-up", "form_token", f.formTokenOf(v), "assertion", keyOf()["ada"].answer(v.challenge(t, "/console/step-up/options")), "to", unescaped(to))
				if w.Header().Get("Location") != f.on(r.Path) {
					t.Errorf("%s: the step-up leads to %s", r.Path, w.Header().Get("Location"))
				}
				f.pass(console.FreshTime)
			}
		}
	}
	if n != 6 {
		t.Errorf("%d routes are dangerous", n)
	}
	if len(f.ca.revocations())+len(f.board.cancelled) != 0 || f.invited.list[0].State != admin.EnrolmentOpen || !f.hosts.list[0].Revoked.IsZero() {
		t.Error("something happened on the way")
	}
}

func unescaped(to string) string {
	r := httptest.NewRequest("GET", to, nil)
	return r.URL.Query().Get("to")
}

// WEB-18: what is posted about a proposal must be about the bytes and the decision that the
// server knows; nobody decides what they asked for.
func TestAttack_WEB_18_Votes(t *testing.T) {
	f := busy(t)
	own := f.board.proposals[0]
	theirs := f.board.put("officer:bob", admin.GenerateKey, `{"name":"other","purpose":"code","algorithm":"P-256"}`, admin.GenerateKeyAct("other", "code", "P-256", nil))
	v := f.as(t, "ada")
	token := f.formTokenOf(v)
	d := func(decision admin.Decision, a *admin.Approval) string {
		sum := admin.ApprovalDigest(decision, a.Proposal)
		return fmt.Sprintf("%x", sum)
	}
	answer := keyOf()["ada"].answer(make([]byte, 32))
	post := func(on *admin.Approval, pairs ...string) int {
		return v.post("/console/approvals/"+on.ID+"/vote", append([]string{"form_token", token, "assertion", answer}, pairs...)...).Code
	}
	if code := post(own, "decision", "approve", "digest", d(admin.Approve, own), "fingerprint", admin.Fingerprint(own.Proposal)); code != 403 {
		t.Errorf("an own request was approved: %d", code)
	}
	if body := v.get("/console/approvals/" + own.ID).Body.String(); strings.Contains(body, `id="approve"`) || !strings.Contains(body, `id="own"`) {
		t.Error("an own request has a button")
	}
	for name, pairs := range map[string][]string{
		"bytes of another":       {"decision", "approve", "digest", d(admin.Approve, own), "fingerprint", admin.Fingerprint(theirs.Proposal)},
		"fingerprint of another": {"decision", "approve", "digest", d(admin.Approve, theirs), "fingerprint", admin.Fingerprint(own.Proposal)},
		"shows reject, approves": {"decision", "approve", "digest", d(admin.Reject, theirs), "fingerprint", admin.Fingerprint(theirs.Proposal)},
		"no digest":              {"decision", "approve", "fingerprint", admin.Fingerprint(theirs.Proposal)},
		"no fingerprint":         {"decision", "approve", "digest", d(admin.Approve, theirs)},
	} {
		if code := post(theirs, pairs...); code != 409 {
			t.Errorf("%s: %d", name, code)
		}
	}
	for _, word := range []string{"", "request", "Approve", "1"} {
		if code := post(theirs, "decision", word, "digest", d(admin.Request, theirs), "fingerprint", admin.Fingerprint(theirs.Proposal)); code != 400 {
			t.Errorf("decision %q: %d", word, code)
		}
	}
	if code := post(theirs, "decision", "approve", "digest", d(admin.Approve, theirs), "fingerprint", admin.Fingerprint(theirs.Proposal)); code != 422 { // the board of this fixture takes none
		t.Errorf("a signature that the board refuses: %d", code)
	}
	if w := v.post("/console/approvals/ask", "form_token", token, "action", admin.GenerateKey, "parameters", "7b7d", "proposal", fmt.Sprintf("%x", theirs.Proposal), "digest", d(admin.Approve, theirs), "fingerprint", admin.Fingerprint(theirs.Proposal), "assertion", answer); w.Code != 409 {
		t.Errorf("asking with the digest of an approval: %d", w.Code)
	}
	// Cancelling is for who asked.
	if w := v.post("/console/approvals/"+theirs.ID+"/cancel", "form_token", token); w.Code != 403 || len(f.board.cancelled) != 0 {
		t.Errorf("somebody else's request was cancelled: %d", w.Code)
	}
	if w := v.post("/console/approvals/"+own.ID+"/cancel", "form_token", token); w.Code != 303 || len(f.board.cancelled) != 1 {
		t.Errorf("cancelling: %d", w.Code)
	}
}

// WEB-19: names of people, keys and groups are shown for what they are wherever they stand.
func TestAttack_WEB_19_People(t *testing.T) {
	for _, s := range append([]string{"ada\u202egnp", "x\u2066\u2069", "a\u200b"}, evil...) {
		f := busy(t)
		f.board.change(func(r *admin.Roster) {
			r.Officers[1].Name, r.Officers[1].Passkeys[0].Label, r.Groups[0].Name, r.Groups[0].Members[0] = s, s, s, s
		})
		name, _ := audit.Text(s, 60), 0
		p := f.board.put("officer:"+name, admin.GenerateKey, fmt.Sprintf(`{"name":%q,"members":[%q]}`, "key", "m"), name)
		p.Reason, p.Result = s, []byte(s)
		p.Votes = []admin.VoteRecord{{Officer: s, Decision: admin.Approve, Leaf: 1}}
		f.invited.list[0].Name, f.invited.list[0].By = s, s
		f.hosts.list[0].Name, f.hosts.list[0].Owner = s, s
		v := f.as(t, "ada")
		for _, path := range []string{"/console/approvals?tab=history", "/console/approvals/" + p.ID, "/console/officers", "/console/machines", "/console/officers/enrolments/00112233445566aa/withdraw", "/console/machines/" + f.hosts.list[0].ID + "/revoke", "/console/officers/roles?" + form("name", s)} {
			w := v.get(path)
			body := w.Body.String()
			if w.Code != http.StatusOK {
				t.Errorf("%q on %s: %d %s", s, path, w.Code, body)
			}
			if strings.ContainsAny(hidden.ReplaceAllString(body, ""), "\u202e\u2066\u2069\u200b") {
				t.Errorf("%q on %s: bidi controls as they are", s, path)
			}
			for _, tag := range skeleton(body) {
				if strings.Contains(tag, "onerror") || strings.Contains(tag, "onload") || strings.Contains(tag, "onfocus") || strings.HasPrefix(tag, "img") || strings.Contains(tag, "evil") {
					t.Errorf("%q on %s: %s", s, path, tag)
				}
			}
		}
	}
}

// WEB-02, WEB-07 on every form of the table: not from another site, not without the token of
// this session, not in another encoding, not with a field more or twice, and not by GET.
func TestAttack_WEB_02_EveryForm(t *testing.T) {
	f := busy(t)
	v := f.as(t, "ada")
	token := f.formTokenOf(v)
	for _, r := range f.Routes() {
		path := f.on(r.Path)
		if !r.Post {
			if w := v.do("POST", path, form("form_token", token)); w.Code != http.StatusMethodNotAllowed {
				t.Errorf("POST %s: %d", r.Path, w.Code)
			}
			continue
		}
		if w := v.get(path); !r.Get && w.Code != http.StatusMethodNotAllowed {
			t.Errorf("GET %s: %d", r.Path, w.Code)
		}
		for name, e := range map[string]edit{
			"cross-site":  header("Sec-Fetch-Site", "cross-site"),
			"same-site":   header("Sec-Fetch-Site", "same-site"),
			"origin null": func(r *http.Request) { r.Header.Del("Sec-Fetch-Site"); r.Header.Set("Origin", "null") },
		} {
			if w := v.do("POST", path, form("form_token", token), e); w.Code != http.StatusForbidden {
				t.Errorf("%s %s: %d", name, r.Path, w.Code)
			}
		}
		if w := v.do("POST", path, form("form_token", token), header("Content-Type", "text/plain")); w.Code != http.StatusUnsupportedMediaType {
			t.Errorf("text/plain %s: %d", r.Path, w.Code)
		}
		for _, more := range []string{"&is_admin=1", "&officer=bob", "&requester=admin-token"} {
			if w := v.do("POST", path, strings.TrimPrefix(form()+more, "&")); w.Code != http.StatusBadRequest {
				t.Errorf("%s with %s: %d", r.Path, more, w.Code)
			}
		}
		for _, field := range r.Fields {
			if w := v.do("POST", path, field+"=a&"+field+"=b"); w.Code != http.StatusBadRequest {
				t.Errorf("%s twice in %s: %d", field, r.Path, w.Code)
			}
		}
		if r.Public {
			continue
		}
		for _, wrong := range []string{"", token[:63], secretOf(99)} {
			if w := v.post(path, "form_token", wrong); w.Code != http.StatusForbidden {
				t.Errorf("form token %q in %s: %d", wrong, r.Path, w.Code)
			}
		}
	}
	if len(f.ca.revocations())+len(f.board.cancelled) != 0 || len(f.hosts.list) != 1 || len(f.invited.list) != 1 {
		t.Error("something happened")
	}
}
