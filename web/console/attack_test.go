package console_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"chancery/admin"
	"chancery/audit"
	"chancery/ca"
	"chancery/hsmstore"
	"chancery/web/console"
	"chancery/web/console/sessions"
)

func httptestRequest(method, path string) *http.Request {
	return httptest.NewRequest(method, path, nil)
}
func newRecorder() *httptest.ResponseRecorder { return httptest.NewRecorder() }

var requestID = regexp.MustCompile(`[0-9a-f-]{36}`)

var evil = []string{`<img src=x onerror=alert(1)>`, `"><svg onload=alert(1)>`, `' onfocus=alert(1) autofocus x='`, `javascript:alert(1)`, `{{.}}`, `</code></pre><script>alert(1)</script>`, `x" hx-get="//evil.example" hx-trigger="load`}

// poisoned is a console in which every text that somebody else wrote is s.
func poisoned(t *testing.T, s string) *fixture {
	f := newFixture(t)
	f.members = []hsmstore.MemberStatus{{Name: s, State: hsmstore.State(s), Since: start, Serial: s, Label: s, Err: fmt.Errorf("%s", s)}, {Name: s, State: hsmstore.Down, Since: start}}
	f.keys = []hsmstore.KeyInfo{{KeyRecord: hsmstore.KeyRecord{Name: s, Purpose: 99, Algorithm: s, SPKI: []byte(s), Origin: s, Members: []string{s}}}}
	plain := audit.Text(s, 1000)
	f.led.add(audit.Leaf{Kind: audit.KindEvent, Op: 99, Time: start, Closes: audit.NoIndex, Fields: []audit.Field{{Tag: audit.TagKey, Value: hash([]byte(s))}, {Tag: audit.TagRequester, Value: []byte(plain)}, {Tag: audit.TagReason, Value: []byte(plain)},
		{Tag: audit.TagKeyName, Value: []byte(plain)}, {Tag: audit.TagMember, Value: []byte(plain)}, {Tag: audit.TagAttributes, Value: list([]byte(s), []byte("\xff\x00"))}, {Tag: audit.TagAttempts, Value: list([]byte(s), []byte{0, 0, 0, 1})}, {Tag: 0x9000, Value: []byte(s)}}})
	f.led.addBytes([]byte(s))
	f.led.signed = 1
	c := f.certificate(plain, []ca.Name{{Kind: ca.NameKind(s), Value: s}, {Kind: ca.DNS, Value: s}}, s, start, start.AddDate(0, 3, 0), false)
	c.Profile, c.Issuer, c.Receipt.Origin, c.Receipt.ProofURL = s, s, s, s
	return f
}

func (f *fixture) poisonedPaths(s string) []string {
	c := f.ca.certs[0].Serial
	return []string{"/console/", "/console/hsm", "/console/keys", "/console/certificates?" + form("q", s), "/console/certificates", "/console/certificates/" + c, "/console/certificates/" + c + "/revoke", "/console/ledger", "/console/ledger?" + form("index", s), "/console/ledger/0", "/console/ledger/1", "/console/live", "/console/hsm/live", "/console/sign-in?" + form("to", s)}
}

// Whatever stands in a name, label, reason or error text, it stays text.
func TestAttack_WEB_01(t *testing.T) {
	clean := map[string][]string{}
	for i, s := range append([]string{"harmless"}, evil...) {
		f := poisoned(t, s)
		v := f.signedIn(t)
		for n, p := range f.poisonedPaths(s) {
			if strings.Contains(p, "sign-in") {
				v = f.visitor()
			}
			w := v.get(p)
			if w.Code != 200 {
				t.Errorf("%q on %s: %d", s, p, w.Code)
			}
			if strings.Contains(w.Header().Get("Content-Security-Policy"), "unsafe") {
				t.Fatal("the policy allows inline code")
			}
			// The elements and the names of their attributes are the same as with harmless text.
			got := skeleton(w.Body.String())
			key := fmt.Sprint(n)
			if i == 0 {
				clean[key] = got
				continue
			}
			if n == 3 || n == 8 { // a search that finds something else has other rows
				for _, tag := range got {
					if strings.Contains(tag, "onerror") || strings.Contains(tag, "onload") || strings.Contains(tag, "onfocus") || strings.HasPrefix(tag, "img") {
						t.Errorf("%q on %s: %s", s, p, tag)
					}
				}
				continue
			}
			if strings.Join(got, "\n") != strings.Join(clean[key], "\n") {
				t.Errorf("%q on %s changes the page", s, p)
			}
		}
	}
}

// skeleton lists tags with the names of their attributes, and URLs.
func skeleton(page string) []string {
	var out []string
	for z := html.NewTokenizer(strings.NewReader(page)); ; {
		switch z.Next() {
		case html.ErrorToken:
			return out
		case html.StartTagToken, html.SelfClosingTagToken:
			tok := z.Token()
			line := tok.Data
			for _, a := range tok.Attr {
				line += " " + a.Key
				if u := strings.ToLower(a.Val); (a.Key == "href" || a.Key == "src" || a.Key == "action" || a.Key == "hx-get") && !strings.HasPrefix(u, "/console/") && u != "#main" {
					line += "=" + u
				}
			}
			out = append(out, line)
		}
	}
}

// Only a POST of this session's own pages changes anything.
func TestAttack_WEB_02(t *testing.T) {
	f := filled(t)
	v, other := f.signedIn(t), f.signedIn(t)
	c := f.ca.certs[0]
	path := "/console/certificates/" + c.Serial + "/revoke"
	mine, theirs := fields(v.get(path).Body.String()), fields(other.get(path).Body.String())
	good := form("form_token", mine["form_token"], "serial", c.Serial, "digest", digest(c), "reason", "superseded")
	if mine["form_token"] == theirs["form_token"] || len(mine["form_token"]) != 64 {
		t.Fatal("form tokens are not of the session")
	}
	for name, e := range map[string]edit{
		"cross-site": header("Sec-Fetch-Site", "cross-site"), "same-site": header("Sec-Fetch-Site", "same-site"),
		"origin null":  func(r *http.Request) { r.Header.Del("Sec-Fetch-Site"); r.Header.Set("Origin", "null") },
		"other origin": func(r *http.Request) { r.Header.Del("Sec-Fetch-Site"); r.Header.Set("Origin", "https://evil.example") },
		"sub-domain": func(r *http.Request) {
			r.Header.Del("Sec-Fetch-Site")
			r.Header.Set("Origin", "https://x.ca.example:8443")
		},
		"other port": func(r *http.Request) { r.Header.Del("Sec-Fetch-Site"); r.Header.Set("Origin", "https://ca.example") },
	} {
		for _, p := range []string{path, "/console/sign-out", "/console/sign-in", "/console/language"} {
			if w := v.do("POST", p, good, e); w.Code != 403 {
				t.Errorf("%s %s: %d", name, p, w.Code)
			}
		}
	}
	for name, token := range map[string]string{"none": "", "another session's": theirs["form_token"], "cut": mine["form_token"][:63]} {
		if w := v.post(path, "form_token", token, "serial", c.Serial, "digest", digest(c), "reason", "superseded"); w.Code != 403 {
			t.Errorf("token %s: %d", name, w.Code)
		}
	}
	for _, m := range []string{"GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"} {
		w := v.do(m, path+"?"+good, good)
		if want := map[bool]int{true: 200, false: 405}[m == "GET" || m == "HEAD"]; w.Code != want {
			t.Errorf("%s: %d", m, w.Code)
		}
	}
	if w := v.get("/console/sign-out"); w.Code != 405 || w.Header().Get("Allow") != "POST" {
		t.Errorf("GET sign-out: %d", w.Code)
	}
	for _, ct := range []string{"text/plain", "application/json", "multipart/form-data; boundary=x", ""} {
		if w := v.do("POST", path, good, header("Content-Type", ct)); w.Code != 415 {
			t.Errorf("%q: %d", ct, w.Code)
		}
	}
	if w := v.do("POST", path, good+"&x="+strings.Repeat("a", 17000)); w.Code != 413 {
		t.Errorf("long body: %d", w.Code)
	}
	if len(f.ca.revocations()) != 0 {
		t.Fatalf("something was revoked: %v", f.ca.revocations())
	}
	if w := f.visitor().do("POST", path, good); w.Code != 303 || !strings.HasPrefix(w.Header().Get("Location"), "/console/sign-in") {
		t.Errorf("without a session: %d", w.Code)
	}
	if w := v.do("POST", path, good); w.Code != 303 || len(f.ca.revocations()) != 1 {
		t.Errorf("the good one: %d", w.Code)
	}
}

// A session begins at sign-in with a new id and ends for good: also when its officer leaves
// the roster, or changes there, and at step-up, where the old id is dead at once.
func TestAttack_WEB_03(t *testing.T) {
	f := filled(t)
	ada := keyOf()["ada"]
	v := f.visitor()
	planted := strings.Repeat("ab", 32)
	v.cookies[console.CookieName] = planted
	v.signIn(t, ada)
	first := v.cookies[console.CookieName]
	if first == planted || len(first) != 64 {
		t.Fatalf("the planted id stays: %q", first)
	}
	if f.open.holds(first) {
		t.Error("the server keeps the id itself")
	}
	if f.open.count() != 1 {
		t.Errorf("%d sessions", f.open.count())
	}
	v.signIn(t, ada)
	second := v.cookies[console.CookieName]
	if second == first || f.open.count() != 1 {
		t.Error("signing in again keeps the old session")
	}
	stale := f.visitor()
	for _, id := range []string{first, planted, "", second[:63], second + "0", strings.ToUpper(second)} {
		stale.cookies[console.CookieName] = id
		if w := stale.get("/console/keys"); w.Code != 303 {
			t.Errorf("id %q is good: %d", id, w.Code)
		}
	}
	// Two cookies of the name: one was planted, so neither counts.
	if w := v.get("/console/keys", func(r *http.Request) { r.AddCookie(&http.Cookie{Name: console.CookieName, Value: planted}) }); w.Code != 303 {
		t.Errorf("two cookies: %d", w.Code)
	}
	// A step-up leaves nothing of the old id and form token, and does not make the session younger.
	old := fields(v.get("/console/keys").Body.String())["form_token"]
	f.pass(time.Minute)
	w := v.post("/console/step-up", "form_token", old, "to", "keys", "assertion", ada.answer(v.challenge(t, "/console/step-up/options")))
	third := v.cookies[console.CookieName]
	if w.Code != 303 || third == second || w.Header().Get("Location") != "/console/keys" {
		t.Fatalf("step-up: %d %s", w.Code, w.Header().Get("Location"))
	}
	stale.cookies[console.CookieName] = second
	if w := stale.get("/console/keys"); w.Code != 303 {
		t.Errorf("the id from before the step-up is good: %d", w.Code)
	}
	formToken := fields(v.get("/console/keys").Body.String())["form_token"]
	if w := v.post("/console/sign-out", "form_token", old); w.Code != 403 || formToken == old {
		t.Errorf("the form token from before the step-up is good: %d", w.Code)
	}
	if w := v.post("/console/sign-out", "form_token", formToken); w.Code != 303 || v.cookies[console.CookieName] != "" {
		t.Errorf("sign-out: %d", w.Code)
	}
	stale.cookies[console.CookieName] = third
	if w := stale.get("/console/keys"); w.Code != 303 || f.open.count() != 0 {
		t.Errorf("after sign-out: %d, %d sessions", w.Code, f.open.count())
	}
	w = f.visitor().signIn(t, ada)
	ck := w.Result().Cookies()[0]
	if ck.Name != "__Host-chancery" || !ck.Secure || !ck.HttpOnly || ck.SameSite != http.SameSiteStrictMode || ck.Path != "/" || ck.Domain != "" {
		t.Errorf("cookie %v", ck)
	}
	for name, edit := range map[string]func(r *admin.Roster){
		"other roles":    func(r *admin.Roster) { r.Officers[0].Roles = r.Officers[0].Roles[:1] },
		"a passkey less": func(r *admin.Roster) { r.Officers[0].Passkeys = r.Officers[0].Passkeys[:1] },
		"a CLI key":      func(r *admin.Roster) { r.Officers[0].SPKI = []byte("x") },
		"another host":   func(r *admin.Roster) { r.RPID = "example" },
		"not there":      func(r *admin.Roster) { r.Officers = r.Officers[1:] },
		"a name like it": func(r *admin.Roster) { r.Officers[0].Name = "Ada" },
	} {
		f := filled(t)
		v, other := f.as(t, "ada"), f.as(t, "bob")
		f.board.change(edit)
		if w := v.get("/console/keys"); w.Code != 303 || f.open.count() != 1 {
			t.Errorf("%s: %d, %d sessions", name, w.Code, f.open.count())
		}
		if w := other.get("/console/keys"); w.Code != 200 && name != "another host" {
			t.Errorf("%s signs bob out: %d", name, w.Code)
		}
	}
	// A kind that nobody resolves is nobody's.
	v = f.as(t, "ada")
	for id, one := range f.open.rows {
		one.Kind = "root"
		f.open.rows[id] = one
	}
	if w := v.get("/console/keys"); w.Code != 303 {
		t.Errorf("a session of an unknown kind: %d", w.Code)
	}
}

func TestSessionTimes(t *testing.T) {
	f := filled(t)
	v := f.signedIn(t)
	for range 40 { // 10 h of use, 15 min at a time less a second
		f.pass(sessions.Idle - time.Second)
		if w := v.get("/console/keys"); w.Code != 200 {
			if used := f.clock().Sub(start); used < sessions.Whole {
				t.Fatalf("ended after %v", used)
			}
			break
		}
	}
	if w := v.get("/console/keys"); w.Code != 303 {
		t.Error("a session has no end")
	}
	v = f.signedIn(t)
	f.pass(sessions.Idle)
	if w := v.get("/console/keys"); w.Code != 303 || w.Header().Get("Location") != "/console/sign-in?to=keys" {
		t.Errorf("idle: %d %s", w.Code, w.Header().Get("Location"))
	}
	// What the page fetches by itself does not keep the session alive.
	v = f.signedIn(t)
	for range 3 {
		f.pass(sessions.Idle / 2)
		if w := v.get("/console/live", header("HX-Request", "true")); w.Code == 204 {
			if !strings.HasPrefix(w.Header().Get("HX-Redirect"), "/console/sign-in") {
				t.Errorf("HX-Redirect %q", w.Header().Get("HX-Redirect"))
			}
			v = nil
			break
		}
	}
	if v != nil {
		t.Error("an open page keeps the session alive")
	}
	// Use is written at most once a minute.
	v = f.signedIn(t)
	before := f.open.writes
	for range 50 {
		f.pass(2 * time.Second)
		v.get("/console/keys")
	}
	if n := f.open.writes - before; n != 1 {
		t.Errorf("%d writes in 100 s", n)
	}
}

// WEB-09: no passkey that is not taken tells more than another: whether it is known, what is
// wrong with it. A challenge is taken once, for its purpose, in its time, and from our pages.
func TestAttack_WEB_09(t *testing.T) {
	f := newFixture(t)
	ada, unknown := keyOf()["ada"], newAuthenticator("ada")
	v := f.visitor()
	old := v.challenge(t, "/console/sign-in/options")
	f.pass(console.ChallengeTime)
	fresh := func() []byte { return v.challenge(t, "/console/sign-in/options") }
	changed := func(octet int) []byte { c := fresh(); c[octet]++; return c }
	stepUp := func() []byte { return f.as(t, "ada").challenge(t, "/console/step-up/options") }
	var first string
	n := 0
	for name, answer := range map[string]func() string{
		"unknown passkey": func() string { return unknown.answer(fresh()) },
		"bad signature": func() string {
			return ada.answer(fresh(), func(s *said) { s.signature = []byte{0x30, 6, 2, 1, 1, 2, 1, 1} })
		},
		"no signature":     func() string { return ada.answer(fresh(), func(s *said) { s.signature = []byte{} }) },
		"another origin":   func() string { return ada.answer(fresh(), func(s *said) { s.origin = "https://evil.example" }) },
		"a port more":      func() string { return ada.answer(fresh(), func(s *said) { s.origin = "https://ca.example" }) },
		"plain http":       func() string { return ada.answer(fresh(), func(s *said) { s.origin = "http://ca.example:8443" }) },
		"another RP":       func() string { return ada.answer(fresh(), func(s *said) { s.rp = "evil.example" }) },
		"framed by others": func() string { return ada.answer(fresh(), func(s *said) { s.cross = true }) },
		"not verified":     func() string { return ada.answer(fresh(), func(s *said) { s.flags = 1 }) },
		"nobody there":     func() string { return ada.answer(fresh(), func(s *said) { s.flags = 4 }) },
		"a new credential": func() string { return ada.answer(fresh(), func(s *said) { s.typ = "webauthn.create" }) },
		"too old":          func() string { return ada.answer(old) },
		"made up":          func() string { return ada.answer(make([]byte, 56)) },
		"short":            func() string { return ada.answer(make([]byte, 32)) },
		"none":             func() string { return ada.answer(nil) },
		"changed":          func() string { return ada.answer(changed(55)) },
		"longer life":      func() string { return ada.answer(changed(23)) },
		"for a step-up":    func() string { return ada.answer(stepUp()) },
		"a vote": func() string {
			return ada.answer(func() []byte { d := admin.ApprovalDigest(admin.Approve, []byte("x")); return d[:] }())
		},
		"another's handle": func() string { return (&authenticator{ada.key, unknown.ID, ada.Passkey}).answer(fresh()) },
		"no JSON":          func() string { return "x" }, "empty": func() string { return "" }, "an array": func() string { return "[]" }, "null": func() string { return "null" },
	} {
		n++
		v.addr = fmt.Sprintf("198.51.100.%d:1", n)
		w := v.post("/console/sign-in", "assertion", answer(), "to", "")
		body := requestID.ReplaceAllString(w.Body.String(), "")
		if first == "" {
			first = body
		}
		if w.Code != 401 || body != first || len(v.cookies) != 0 {
			t.Errorf("%s: %d", name, w.Code)
		}
	}
	// Replay: the challenge is spent, also with another signature over it.
	v.addr = "192.0.2.99:1"
	c := fresh()
	answer := ada.answer(c)
	if w := v.post("/console/sign-in", "assertion", answer, "to", ""); w.Code != 303 {
		t.Fatalf("the good one: %d %s", w.Code, w.Body)
	}
	for _, again := range []string{answer, ada.answer(c)} {
		thief := f.visitor()
		if w := thief.post("/console/sign-in", "assertion", again, "to", ""); w.Code != 401 || len(thief.cookies) != 0 {
			t.Errorf("a challenge was taken twice: %d", w.Code)
		}
	}
	// The options say the same to everybody, and name no credential.
	w := f.visitor().get("/console/sign-in/options")
	if strings.Contains(w.Body.String(), "allowCredentials") || w.Header().Get("Content-Type") != "application/json" || w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("options: %s %v", w.Body, w.Header())
	}
	// Another officer's passkey does not step up.
	s := f.as(t, "bob")
	form := fields(s.get("/console/step-up").Body.String())
	if w := s.post("/console/step-up", "form_token", form["form_token"], "to", "", "assertion", ada.answer(s.challenge(t, "/console/step-up/options"))); w.Code != 401 {
		t.Errorf("ada's passkey steps bob's session up: %d", w.Code)
	}
	// Neither does a challenge of another session.
	other := f.as(t, "bob")
	if w := s.post("/console/step-up", "form_token", form["form_token"], "to", "", "assertion", keyOf()["bob"].answer(other.challenge(t, "/console/step-up/options"))); w.Code != 401 {
		t.Errorf("a challenge of another session: %d", w.Code)
	}
}

// Not many passkeys that are wrong are tried from one address.
func TestSignInIsLimited(t *testing.T) {
	f := newFixture(t)
	ada, unknown := keyOf()["ada"], newAuthenticator("ada")
	v := f.visitor()
	for range console.Attempts {
		if w := v.signIn(t, unknown); w.Code != 401 {
			t.Errorf("%d", w.Code)
		}
	}
	for _, a := range []*authenticator{ada, unknown} {
		if w := v.signIn(t, a); w.Code != 429 || w.Header().Get("Retry-After") == "" {
			t.Errorf("after %d failures: %d", console.Attempts, w.Code)
		}
	}
	for _, addr := range []string{"[2001:db8::1]:1", "[2001:db8::ffff]:2", "[2001:db8:0:0:1::]:3"} { // one /64
		v.addr = addr
		for range 3 {
			v.signIn(t, unknown)
		}
	}
	if w := v.signIn(t, ada); w.Code != 429 {
		t.Errorf("a /64 has %d attempts and more: %d", console.Attempts, w.Code)
	}
	v.addr = "192.0.2.8:1"
	for range 12 { // success does not count
		if w := v.signIn(t, ada); w.Code != 303 {
			t.Fatalf("another address: %d", w.Code)
		}
	}
	v.addr = "192.0.2.7:1"
	f.pass(console.Window)
	if w := v.signIn(t, ada); w.Code != 303 {
		t.Errorf("after the window: %d", w.Code)
	}
	for i := range 5000 {
		v.addr = fmt.Sprintf("10.0.%d.%d:1", i/250, i%250)
		v.post("/console/sign-in", "assertion", "x")
	}
	if log := f.logged.String(); !strings.Contains(log, "failed sign-in") {
		t.Error("the log has no failures")
	}
}

// Fields that a form does not have are refused, not ignored; so are doubles.
func TestAttack_WEB_07(t *testing.T) {
	f := filled(t)
	v := f.signedIn(t)
	c := f.ca.certs[0]
	path := "/console/certificates/" + c.Serial + "/revoke"
	h := fields(v.get(path).Body.String())
	good := form("form_token", h["form_token"], "serial", c.Serial, "digest", digest(c), "reason", "superseded")
	for _, extra := range []string{"&role=admin", "&requester=acme:1", "&issuer=root", "&reason=keyCompromise", "&serial=" + c.Serial, "&Serial=x", "&at=0", "&approved=true", "&token=x", "&x;y", "&%zz"} {
		if w := v.do("POST", path, good+extra); w.Code != 400 {
			t.Errorf("%s: %d", extra, w.Code)
		}
	}
	if w := v.do("POST", path+"?reason=superseded", strings.Replace(good, "reason=superseded", "reason=", 1)); w.Code != 422 {
		t.Errorf("a field from the query: %d", w.Code)
	}
	if w := f.visitor().post("/console/sign-in", "assertion", "x", "admin", "1"); w.Code != 400 {
		t.Errorf("sign-in with a field more: %d", w.Code)
	}
	if len(f.ca.revocations()) != 0 {
		t.Errorf("revoked: %v", f.ca.revocations())
	}
}

// Every redirect leads to a page of the console.
func TestAttack_WEB_12(t *testing.T) {
	f := filled(t)
	v := f.signedIn(t)
	ours := regexp.MustCompile(`^/console/[a-z0-9/?=%&-]*$`)
	for _, to := range []string{"//evil.example", `/\evil.example`, "https:evil.example", "https://evil.example", "javascript:alert(1)", "/console/../../evil", "certificate://evil", "certificate:4f2a\r\nLocation: //evil", "\x00", "hsm"} {
		out := f.visitor()
		for name, w := range map[string]*httptest.ResponseRecorder{
			"language":  v.post("/console/language", "lang", "en", "to", to),
			"sign-in":   out.post("/console/sign-in", "assertion", keyOf()["ada"].answer(out.challenge(t, "/console/sign-in/options")), "to", to),
			"step-up":   v.post("/console/step-up", "form_token", fields(v.get("/console/step-up").Body.String())["form_token"], "assertion", keyOf()["ada"].answer(v.challenge(t, "/console/step-up/options")), "to", to),
			"signed-in": v.get("/console/signed-in?" + form("to", to)),
			"page":      v.get("/console/sign-in?" + form("to", to)),
		} {
			if loc := w.Header().Get("Location"); w.Code != 303 || !ours.MatchString(loc) || strings.Contains(loc, "evil") {
				t.Errorf("%s to %q: %d %q", name, to, w.Code, loc)
			}
		}
	}
	for _, p := range []string{"//evil.example", "/console//evil.example", "/console/..//evil.example", "/console/./hsm", "/console/hsm/", "/console/%2f%2fevil.example", "/console/certificates/%2f%2fevil.example", "/consolex", "/", "/console/hsm/../keys"} {
		for _, who := range []*visitor{v, f.visitor()} {
			if w := who.do("GET", "/console/", "", func(r *http.Request) { r.URL.Path, r.RequestURI = p, p }); w.Code != 404 && !ours.MatchString(w.Header().Get("Location")) {
				t.Errorf("%s: %d %s", p, w.Code, w.Header().Get("Location"))
			}
		}
	}
	w := f.visitor().get("/console/certificates/" + f.ca.certs[0].Serial)
	if w.Header().Get("Location") != "/console/sign-in?to=certificate%3A"+f.ca.certs[0].Serial {
		t.Errorf("sign-in does not lead back: %s", w.Header().Get("Location"))
	}
}

// Every answer says what it is and may do nothing else.
func TestAttack_WEB_17(t *testing.T) {
	f := filled(t)
	v := f.signedIn(t)
	c := "/console/certificates/" + f.ca.certs[0].Serial
	for path, want := range map[string]string{
		c + "/certificate.pem": "application/x-pem-file", c + "/chain.pem": "application/x-pem-file", c + "/certificate.cer": "application/pkix-cert",
		"/console/ledger/checkpoint": "text/plain; charset=utf-8", "/console/ledger/3/proof": "text/plain; charset=utf-8",
		"/console/": "text/html; charset=utf-8", "/console/nothing": "text/html; charset=utf-8", "/console/live": "text/html; charset=utf-8",
	} {
		for _, m := range []string{"GET", "HEAD"} {
			w := v.do(m, path, "")
			h := w.Header()
			if h.Get("Content-Type") != want || h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Cache-Control") != "no-store" || h.Get("Content-Security-Policy") != console.Policy {
				t.Errorf("%s %s: %v", m, path, h)
			}
			file := !strings.HasPrefix(want, "text/html")
			if file != strings.HasPrefix(h.Get("Content-Disposition"), `attachment; filename="`) {
				t.Errorf("%s: %s", path, h.Get("Content-Disposition"))
			}
		}
	}
	if body := v.get(c + "/chain.pem").Body.String(); strings.Count(body, "BEGIN CERTIFICATE") != 2 {
		t.Errorf("chain: %s", body)
	}
	// No route but the public ones answers without a session.
	for _, r := range f.Routes() {
		p := strings.NewReplacer("{$}", "", "{serial}", f.ca.certs[0].Serial, "{index}", "1", "{file}", "x", "{id}", "00112233445566aa").Replace(r.Path)
		m := "GET"
		if !r.Get {
			m = "POST"
		}
		w := f.visitor().do(m, p, "")
		if !r.Public && !r.SignedIn && !r.May.Known() {
			t.Errorf("%s does not say who may use it", r.Path)
		}
		if !r.Public && (w.Code != 303 || !strings.HasPrefix(w.Header().Get("Location"), "/console/sign-in")) {
			t.Errorf("%s without a session: %d", p, w.Code)
		}
	}
}

// No page can be framed, and the form revokes what its page showed or nothing.
func TestAttack_WEB_18(t *testing.T) {
	f := filled(t)
	v := f.signedIn(t)
	a, b := f.ca.certs[0], f.ca.certs[1]
	for _, p := range append(f.paths(), "/console/nothing") {
		if h := v.get(p).Header(); !strings.Contains(h.Get("Content-Security-Policy"), "frame-ancestors 'none'") || h.Get("X-Frame-Options") != "DENY" {
			t.Errorf("%s can be framed", p)
		}
	}
	h := fields(v.get("/console/certificates/" + a.Serial + "/revoke").Body.String())
	if h["serial"] != a.Serial || h["digest"] != digest(a) {
		t.Fatalf("the form does not say what it shows: %v", h)
	}
	for name, w := range map[string]*httptest.ResponseRecorder{
		"shows A, posts B":    v.post("/console/certificates/"+b.Serial+"/revoke", "form_token", h["form_token"], "serial", a.Serial, "digest", digest(a), "reason", "superseded"),
		"B's serial, A bytes": v.post("/console/certificates/"+b.Serial+"/revoke", "form_token", h["form_token"], "serial", b.Serial, "digest", digest(a), "reason", "superseded"),
		"no serial":           v.post("/console/certificates/"+b.Serial+"/revoke", "form_token", h["form_token"], "digest", digest(b), "reason", "superseded"),
		"no digest":           v.post("/console/certificates/"+b.Serial+"/revoke", "form_token", h["form_token"], "serial", b.Serial, "reason", "superseded"),
	} {
		if w.Code != 409 {
			t.Errorf("%s: %d", name, w.Code)
		}
	}
	if len(f.ca.revocations()) != 0 {
		t.Errorf("revoked: %v", f.ca.revocations())
	}
}

// Names that look like others, turn the line around or never end are shown for what they are.
func TestAttack_WEB_19(t *testing.T) {
	for in, want := range map[string]string{
		"a\u202egro.elpmaxe": `a\u{202e}gro.elpmaxe`, "\u2066x\u2069": `\u{2066}x\u{2069}`, "zero\u200bwidth": `zero\u{200b}width`, "nul\x00": `nul\u{0}`, "tab\tline\n": `tab\u{9}line\u{a}`, "bad\xff": `bad\xff`,
		"\ufeffbom": `\u{feff}bom`, "a\u0301\u0301": `a\u{301}\u{301}`, "soft\u00adhyphen": `soft\u{ad}hyphen`, "nb\u00a0sp": `nb\u{a0}sp`, "日本語": "日本語", "xn--pple-43d.com": "xn--pple-43d.com", "line\u2028": `line\u{2028}`, "tag\U000e0041": `tag\u{e0041}`,
	} {
		if got := console.Shown(in, 100); got != want {
			t.Errorf("%q is shown as %s", in, got)
		}
	}
	long := strings.Repeat("w", 10000)
	if got := console.Shown(long, 100); got != strings.Repeat("w", 100)+"…" {
		t.Errorf("long: %d", len(got))
	}
	for _, s := range []string{"safe\u202egnp.exe", "x\u2066\u2069y", long, "\u200f\u061c"} {
		f := poisoned(t, s)
		v := f.signedIn(t)
		for _, p := range f.poisonedPaths("q") {
			body := v.get(p).Body.String()
			if strings.ContainsAny(body, "\u202e\u2066\u2069\u200f\u061c\u200b") {
				t.Errorf("%s shows bidi controls as they are", p)
			}
			if i := strings.Index(body, strings.Repeat("w", 300)); i >= 0 {
				t.Errorf("%s shows %d characters of a name", p, len(body))
			}
		}
		// The digest stands beside the name.
		c := f.ca.certs[0]
		if body := v.get("/console/certificates/" + c.Serial + "/revoke").Body.String(); !strings.Contains(strings.ToLower(strings.ReplaceAll(body, ":", "")), digest(c)) {
			t.Error("no digest beside the name")
		}
	}
}
