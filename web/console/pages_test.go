package console_test

import (
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/html"

	"chancery/audit"
	"chancery/ca"
	"chancery/hsmstore"
	"chancery/web/console"
)

// paths are all pages of a filled console.
func (f *fixture) paths() []string {
	good, revoked := f.ca.certs[0], f.ca.certs[7]
	last := f.led.head().Size - 1
	return []string{"/console/", "/console/hsm", "/console/keys", "/console/certificates", "/console/certificates?q=vpn", "/console/certificates?q=zzz", "/console/certificates?q=a+b",
		fmt.Sprintf("/console/certificates?before=%d", f.ca.certs[60].Done), "/console/certificates/" + good.Serial, "/console/certificates/" + revoked.Serial, "/console/certificates/" + good.Serial + "/revoke",
		"/console/ledger", "/console/ledger?before=100", "/console/ledger?index=99999", "/console/ledger/0", "/console/ledger/3", "/console/ledger/10", "/console/ledger/11",
		fmt.Sprintf("/console/ledger/%d", last), fmt.Sprintf("/console/ledger/%d", last-2), fmt.Sprintf("/console/ledger/%d", last-3), fmt.Sprintf("/console/ledger/%d", last-4), "/console/live", "/console/hsm/live",
		"/console/step-up", "/console/keys/new", "/console/approvals", "/console/approvals?tab=mine", "/console/approvals?tab=history", "/console/officers", "/console/officers/invite", "/console/officers/quorum", "/console/officers/roles?name=bob", "/console/machines", "/console/machines/new"}
}

// wellFormed checks what a parser is too kind to complain about: duplicate ids, labels
// without a field, tags that are left open.
func wellFormed(t *testing.T, what, page string) {
	t.Helper()
	ids := map[string]bool{}
	var open []string
	void := []string{"meta", "link", "input", "br", "path", "circle", "rect"}
	for z := html.NewTokenizer(strings.NewReader(page)); ; {
		switch tt := z.Next(); tt {
		case html.ErrorToken:
			if len(open) > 0 {
				t.Errorf("%s: left open: %v", what, open)
			}
			return
		case html.StartTagToken:
			tok := z.Token()
			for _, a := range tok.Attr {
				if a.Key == "id" && ids[a.Val] {
					t.Errorf("%s: id %s twice", what, a.Val)
				} else if a.Key == "id" {
					ids[a.Val] = true
				}
			}
			if !slices.Contains(void, tok.Data) {
				open = append(open, tok.Data)
			}
		case html.EndTagToken:
			tok := z.Token()
			if len(open) == 0 || open[len(open)-1] != tok.Data {
				t.Fatalf("%s: </%s> closes %v", what, tok.Data, open)
			}
			open = open[:len(open)-1]
		}
	}
}

func TestEveryPageInBothLanguages(t *testing.T) {
	for _, lang := range []string{"en", "ja"} {
		full, empty := filled(t, func(_ *fixture, c *console.Config) { c.Dev = true }), newFixture(t)
		check := func(v *visitor, path string, want int) {
			t.Helper()
			w := v.get(path)
			body := w.Body.String()
			if w.Code != want {
				t.Errorf("%s %s: %d %s", lang, path, w.Code, body)
			}
			if strings.Contains(body, "%!") || strings.Contains(body, "ZgotmplZ") || regexp.MustCompile(`>\[[a-z]+\.`).MatchString(body) {
				t.Errorf("%s %s: a text is broken:\n%s", lang, path, body)
			}
			if w.Header().Get("Content-Language") != lang || !strings.Contains(path, "live") && !strings.Contains(body, `<html lang="`+lang+`">`) {
				t.Errorf("%s %s: language %q", lang, path, w.Header().Get("Content-Language"))
			}
			wellFormed(t, lang+" "+path, body)
			hasJapanese := regexp.MustCompile(`\p{Hiragana}|\p{Katakana}`).MatchString(strings.ReplaceAll(body, "日本語", ""))
			if hasJapanese != (lang == "ja") {
				t.Errorf("%s %s: wrong language in the page", lang, path)
			}
		}
		v, e, out := full.signedIn(t), empty.signedIn(t), full.visitor()
		v.lang, e.lang, out.lang = lang, lang, lang+"-XX, fr;q=0.3"
		for _, p := range full.paths() {
			check(v, p, 200)
		}
		for _, p := range []string{"/console/", "/console/hsm", "/console/keys", "/console/certificates", "/console/ledger", "/console/approvals", "/console/officers", "/console/machines"} {
			check(e, p, 200)
		}
		check(out, "/console/sign-in", 200)
		check(out, "/console/enrol", 200)
		check(out, "/console/signed-in", 400)
		check(v, "/console/nothing", 404)
		check(v, "/console/certificates/4f2a", 404)
		check(v, "/console/ledger/99999", 404)
	}
}

var usesText = regexp.MustCompile(`(?:\.T|\$\.T) "([a-zA-Z0-9.]+)"`)

// No key is missing in a language, and none is there for nothing.
func TestCatalogues(t *testing.T) {
	cats := console.Catalogues()
	en := cats["en"]
	verbs := regexp.MustCompile(`%[a-z]`)
	for lang, cat := range cats {
		for key := range maps.Keys(en) {
			if strings.TrimSpace(cat[key]) == "" {
				t.Errorf("%s: %q is missing", lang, key)
			}
			if a, b := verbs.FindAllString(en[key], -1), verbs.FindAllString(cat[key], -1); !slices.Equal(a, b) {
				t.Errorf("%s: %q has the verbs %v, English has %v", lang, key, b, a)
			}
		}
		for key := range cat {
			if _, ok := en[key]; !ok {
				t.Errorf("%s: %q is not in English", lang, key)
			}
		}
	}
	err := fs.WalkDir(console.Templates(), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := fs.ReadFile(console.Templates(), p)
		for _, m := range usesText.FindAllStringSubmatch(string(b), -1) {
			if _, ok := en[m[1]]; !ok {
				t.Errorf("%s uses the text %q, which is not there", p, m[1])
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	// Codes of the lower floors that the console names by looking them up.
	for _, r := range []ca.Reason{0, 1, 2, 3, 4, 5, 6, 9} {
		wantKey(t, "reason."+r.String())
	}
	for _, s := range []hsmstore.State{hsmstore.Starting, hsmstore.Up, hsmstore.Suspect, hsmstore.Down, hsmstore.Fenced, hsmstore.Out, hsmstore.Joining, hsmstore.Absent} {
		wantKey(t, "member."+string(s))
	}
	for k := range 6 {
		wantKey(t, "kind."+audit.Kind(k).String())
	}
	for o := range 256 {
		if name := audit.Op(o).String(); !strings.HasPrefix(name, "op(") {
			wantKey(t, "op."+name)
		}
	}
	for p := 1; !strings.HasPrefix(audit.Purpose(p).String(), "purpose("); p++ {
		wantKey(t, "purpose."+audit.Purpose(p).String())
	}
	for key := range en {
		if strings.HasPrefix(key, "error.") && !strings.HasSuffix(key, ".cure") && !slices.Contains([]string{"error.title", "error.status", "error.home", "error.id"}, key) {
			wantKey(t, key+".cure")
		}
	}
}

func wantKey(t *testing.T, key string) {
	t.Helper()
	if _, ok := console.Catalogues()["en"][key]; !ok {
		t.Errorf("the catalogue has no %q", key)
	}
}

// The rules that keep html/template and the content security policy enough.
func TestTemplateRules(t *testing.T) {
	banned := regexp.MustCompile(`(?i)<script(?:>|[^>]*>[^<])|\sstyle\s*=|<style|\son[a-z]+\s*=|hx-on|hx-vals|hx-headers|javascript:|\bjs:|<base|<iframe|srcdoc|<meta http-equiv|template\.HTML|\starget=`)
	urlAttr := regexp.MustCompile(`\s(hx-(?:get|post|put|patch|delete|query|action|push-url|replace-url|boost)|href|src|action|formaction)="([^"]*(?:"[^"]*"[^"]*\}\})?)"`)
	built := regexp.MustCompile(`^\{\{url\.[A-Z][A-Za-z]*( [.$][A-Za-z.]*| "[a-z.]+"| 0)*\}\}$`)
	fixed := map[string]bool{"href #main": true, "hx-replace-url true": true, "href {{.To}}": true, "href {{.Data}}": true} // .To is a Path, and so is the whole Data of continue.html
	seen := 0
	err := fs.WalkDir(console.Templates(), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := fs.ReadFile(console.Templates(), p)
		if m := banned.FindString(string(b)); m != "" {
			t.Errorf("%s: %q", p, m)
		}
		for _, m := range urlAttr.FindAllStringSubmatch(string(b), -1) {
			seen++
			if !built.MatchString(m[2]) && !fixed[m[1]+" "+m[2]] {
				t.Errorf("%s: %s=%q is not from the URL builder", p, m[1], m[2])
			}
		}
		if n := strings.Count(string(b), "hx-get=") + strings.Count(string(b), "href=") + strings.Count(string(b), "action="); n > len(urlAttr.FindAllString(string(b), -1)) {
			t.Errorf("%s: some URL attributes were not understood", p)
		}
		return err
	})
	if err != nil || seen < 50 {
		t.Fatal(err, seen)
	}
	if len(console.PageNames()) != 26 {
		t.Errorf("pages: %v", console.PageNames())
	}
}

// A value cannot add a parameter to a URL or lead out of its segment.
func TestURLBuilder(t *testing.T) {
	if got := console.CertificatePage(`x&role=admin#"'<>`, 7); got != `/console/certificates?before=7&q=x%26role%3Dadmin%23%22%27%3C%3E` {
		t.Error(got)
	}
	for in, want := range map[string]string{
		"": "/console/", "hsm": "/console/hsm", "certificate:4f2a": "/console/certificates/4f2a", "revoke:4f2a": "/console/certificates/4f2a/revoke", "entry:12": "/console/ledger/12",
		"//evil.example": "/console/", "https://evil.example": "/console/", "certificate:../../x": "/console/", "certificate:4F2A": "/console/", "entry:-1": "/console/", "entry:1/../..": "/console/", "hsm:x": "/console/", "javascript:alert(1)": "/console/",
	} {
		if got := console.ParsePlace(in); got != want {
			t.Errorf("%q leads to %s", in, got)
		}
	}
}

func TestSearch(t *testing.T) {
	f := filled(t)
	v := f.signedIn(t)
	c := f.ca.certs[5]
	colons := strings.ToUpper(strings.Join(regexp.MustCompile("..").FindAllString(c.Serial, -1), ":"))
	for _, q := range []string{c.Serial, colons, "0x" + c.Serial, "  " + c.Serial + "  "} {
		w := v.get("/console/certificates?" + form("q", q))
		if !strings.Contains(w.Body.String(), `data-rows="1"`) || !strings.Contains(w.Body.String(), "/console/certificates/"+c.Serial) {
			t.Errorf("%q does not find the serial", q)
		}
	}
	for q, want := range map[string]string{"VPN": "vpn", "vpn.corp": "vpn.corp", "日本.corp.example": "xn--wgv71a.corp.example"} {
		v.get("/console/certificates?" + form("q", q))
		if got := f.ca.queries[len(f.ca.queries)-1]; got.Name != want || got.Limit != console.PerPage+1 {
			t.Errorf("%q asked for %+v", q, got)
		}
	}
	// Keyset pages reach every certificate once.
	seen, path := map[string]bool{}, "/console/certificates"
	next := regexp.MustCompile(`<a rel="next" href="([^"]+)"`)
	row := regexp.MustCompile(`<th scope="row"><a href="/console/certificates/([0-9a-f]+)"`)
	for pages := 0; path != "" && pages < 10; pages++ {
		body := v.get(path).Body.String()
		for _, m := range row.FindAllStringSubmatch(body, -1) {
			if seen[m[1]] {
				t.Errorf("%s twice", m[1])
			}
			seen[m[1]] = true
		}
		path = ""
		if m := next.FindStringSubmatch(body); m != nil {
			path = m[1]
		}
	}
	if len(seen) != len(f.ca.certs) {
		t.Errorf("%d of %d certificates are reached", len(seen), len(f.ca.certs))
	}
	if w := v.get("/console/certificates?before=x"); w.Code != 400 {
		t.Errorf("before=x: %d", w.Code)
	}
	if w := v.get("/console/certificates?q=vpn", header("HX-Request", "true"), header("HX-Request-Type", "partial")); strings.Contains(w.Body.String(), "<html") || !strings.Contains(w.Body.String(), "<table") {
		t.Errorf("htmx gets a whole page: %s", w.Body)
	}
}

func TestRevocation(t *testing.T) {
	f := filled(t)
	v := f.signedIn(t)
	c := f.ca.certs[4]
	path := "/console/certificates/" + c.Serial
	page := v.get(path + "/revoke").Body.String()
	for _, want := range []string{c.Serial, c.Names[0].Value, c.Names[1].Value, "192.0.2.17"} {
		if !strings.Contains(page, want) {
			t.Errorf("the confirm page does not name %s", want)
		}
	}
	h := fields(page)
	if w := v.post(path+"/revoke", "form_token", h["form_token"], "serial", h["serial"], "digest", h["digest"], "reason", ""); w.Code != 422 || !strings.Contains(w.Body.String(), `role="alert"`) {
		t.Errorf("without a reason: %d", w.Code)
	}
	for _, reason := range []string{"cACompromise", "certificateHold", "removeFromCRL", "Superseded"} {
		if w := v.post(path+"/revoke", "form_token", h["form_token"], "serial", h["serial"], "digest", h["digest"], "reason", reason); w.Code != 422 {
			t.Errorf("reason %s: %d", reason, w.Code)
		}
	}
	if len(f.ca.revocations()) != 0 {
		t.Fatal("revoked without a reason")
	}
	w := v.post(path+"/revoke", "form_token", h["form_token"], "serial", h["serial"], "digest", h["digest"], "reason", "keyCompromise")
	if w.Code != 303 || w.Header().Get("Location") != path+"?done=revoked" {
		t.Fatalf("%d %s %s", w.Code, w.Header().Get("Location"), w.Body)
	}
	want := ca.RevokeRequest{Issuer: "issuing", Serial: c.Serial, Reason: ca.KeyCompromise, Requester: "officer:ada", Client: "192.0.2.7"}
	if got := f.ca.revocations(); len(got) != 1 || !reflect.DeepEqual(got[0], want) {
		t.Errorf("asked for %+v", got)
	}
	after := v.get(path + "?done=revoked").Body.String()
	if !strings.Contains(after, "Private key compromised") || !strings.Contains(after, `role="status"`) || strings.Contains(after, `id="revoke"`) {
		t.Errorf("the page does not show it:\n%s", after)
	}
	if w := v.get(path + "/revoke"); w.Code != 303 {
		t.Errorf("a revoked certificate has a revoke page: %d", w.Code)
	}
	if w := v.post(path+"/revoke", "form_token", h["form_token"], "serial", h["serial"], "digest", h["digest"], "reason", "superseded"); w.Code != 303 || w.Header().Get("Location") != path {
		t.Errorf("a second time: %d %s", w.Code, w.Header().Get("Location"))
	}
	// A lie in the URL is not believed.
	if body := v.get("/console/certificates/" + f.ca.certs[9].Serial + "?done=revoked").Body.String(); strings.Contains(body, `role="status"`) {
		t.Error("a good certificate is said to be revoked")
	}
	issuer := f.certificate("Issuing CA G2", nil, "ceremony", start.AddDate(-1, 0, 0), start.AddDate(4, 0, 0), true)
	path = "/console/certificates/" + issuer.Serial + "/revoke"
	if body := v.get(path).Body.String(); strings.Contains(body, `id="do-revoke"`) {
		t.Error("a CA can be revoked at the console")
	}
	if w := v.post(path, "form_token", h["form_token"], "serial", issuer.Serial, "digest", digest(issuer), "reason", "superseded"); w.Code != 403 {
		t.Errorf("a CA was revoked: %d", w.Code)
	}
}

func TestFailures(t *testing.T) {
	f := filled(t)
	v := f.signedIn(t)
	path := "/console/certificates/" + f.ca.certs[0].Serial
	f.ca.err = fmt.Errorf("dial tcp 10.0.0.7:5432: password authentication failed for user chancery")
	w := v.get(path)
	if id := w.Header().Get("X-Request-Id"); w.Code != 500 || strings.Contains(w.Body.String(), "10.0.0.7") || !strings.Contains(w.Body.String(), id) || !strings.Contains(f.logged.String(), id) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	f.ca.err = fmt.Errorf("appending: %w", audit.ErrBusy)
	if w := v.get(path); w.Code != 503 || w.Header().Get("Retry-After") == "" {
		t.Errorf("busy: %d", w.Code)
	}
	f.ca.err = nil
	f.ca.onRead = func() { panic("pin=12345678") }
	if w := v.get(path); w.Code != 500 || strings.Contains(w.Body.String(), "12345678") || strings.Contains(w.Body.String(), ".go:") {
		t.Errorf("panic: %d %s", w.Code, w.Body)
	}
	f.ca.onRead = nil
	last := f.led.head().Size - 1
	if w := v.get(fmt.Sprintf("/console/ledger/%d/proof", last)); w.Code != 503 || w.Header().Get("Retry-After") != "2" {
		t.Errorf("proof before its checkpoint: %d", w.Code)
	}
	for _, bad := range []string{"/console/ledger/01", "/console/ledger/-1", "/console/ledger/x", "/console/ledger/9999999999999999999999", "/console/static/x.js", "/console/static/..%2fconsole.go"} {
		if w := v.get(bad); w.Code != 404 {
			t.Errorf("%s: %d", bad, w.Code)
		}
	}
	f.led.addBytes([]byte("no leaf"))
	for _, p := range []string{"/console/ledger", fmt.Sprintf("/console/ledger/%d", last+1)} {
		if w := v.get(p); w.Code != 200 || !strings.Contains(w.Body.String(), "Unreadable") {
			t.Errorf("%s with a broken leaf: %d", p, w.Code)
		}
	}
	// The edge's request id is kept.
	r := httptestRequest("GET", "/console/nothing")
	rec := newRecorder()
	rec.Header().Set("X-Request-Id", "from-the-edge")
	f.handler.ServeHTTP(rec, r)
	if !strings.Contains(rec.Body.String(), "from-the-edge") {
		t.Error("the error page has another id than the edge")
	}
}

func TestStatic(t *testing.T) {
	f := newFixture(t)
	for name, kind := range map[string]string{"console.css": "text/css; charset=utf-8", "console.js": "text/javascript; charset=utf-8", "htmx.min.js": "text/javascript; charset=utf-8", "icon.svg": "image/svg+xml"} {
		p, err := console.AssetPath(name)
		if err != nil {
			t.Fatal(err)
		}
		w := f.visitor().get(p)
		if w.Code != 200 || w.Header().Get("Content-Type") != kind || !strings.Contains(w.Header().Get("Cache-Control"), "immutable") {
			t.Errorf("%s: %d %v", p, w.Code, w.Header())
		}
		if w := f.visitor().get(p, header("If-None-Match", w.Header().Get("ETag"))); w.Code != 304 {
			t.Errorf("%s again: %d", p, w.Code)
		}
	}
	if _, err := console.AssetPath("nothing.js"); err == nil {
		t.Error("a missing file has a URL")
	}
}

func TestLanguage(t *testing.T) {
	f := newFixture(t)
	v := f.visitor()
	w := v.post("/console/language", "lang", "ja", "to", "hsm")
	if w.Code != 303 || w.Header().Get("Location") != "/console/hsm" || v.cookies["chancery_lang"] != "ja" {
		t.Errorf("%d %v", w.Code, w.Header())
	}
	if w := v.get("/console/sign-in"); w.Header().Get("Content-Language") != "ja" {
		t.Error("the choice is forgotten")
	}
	if w := v.post("/console/language", "lang", "xx", "to", ""); w.Code != 400 {
		t.Errorf("language xx: %d", w.Code)
	}
	for accept, want := range map[string]string{"": "en", "ja": "ja", "ja-JP, en;q=0.8": "ja", "fr, en;q=0.5, ja;q=0.2": "en", "xx": "en", ";;;": "en", strings.Repeat("ja,", 500): "en"} {
		n := f.visitor()
		n.lang = accept
		if w := n.get("/console/sign-in"); w.Header().Get("Content-Language") != want {
			t.Errorf("%.20q: %s", accept, w.Header().Get("Content-Language"))
		}
	}
}

func TestNewNeedsAll(t *testing.T) {
	if _, err := console.New(console.Config{}); err == nil {
		t.Error("an empty configuration is taken")
	}
	if none, unknown := newFixture(t).UndeclaredRoute(); none == nil || unknown == nil {
		t.Error("a route may leave out who may use it, or name a permission that nobody has")
	}
	var _ http.Handler = newFixture(t).Handler()
}
