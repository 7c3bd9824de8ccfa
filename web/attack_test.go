package web_test

import (
	"context"
	"encoding/json/v2"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"chancery/ca"
	"chancery/web"
)

const certs = "/api/v1/certificates"

// A page of another site, or a form, cannot change anything; GET changes nothing.
func TestAttack_WEB_02(t *testing.T) {
	f := newFixture(t)
	for name, h := range map[string]map[string]string{
		"origin null":    {"Origin": "null"},
		"other origin":   {"Origin": "https://evil.example"},
		"other port":     {"Origin": "https://ca.example"},
		"sub-domain":     {"Origin": "https://x.ca.example:8443"},
		"fetch metadata": {"Sec-Fetch-Site": "cross-site"},
		"same site only": {"Sec-Fetch-Site": "same-site"},
	} {
		for _, path := range []string{certs, certs + "/4f2a/revoke"} {
			p := wantProblem(t, f.do(call{method: "POST", path: path, body: f.issueBody(), header: h}), 403, "cross-origin")
			if t.Failed() {
				t.Fatalf("%s %s: %+v", name, path, p)
			}
		}
	}
	for _, ct := range []string{"text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/json; charset=utf-16", "application/jsonp", ""} {
		w := f.do(call{method: "POST", path: certs, body: f.issueBody(), header: map[string]string{"Content-Type": ct}})
		wantProblem(t, w, 415, "unsupported-media-type")
	}
	for _, m := range []string{"GET", "HEAD", "PUT", "DELETE", "PATCH"} {
		w := f.do(call{method: m, path: certs + "/4f2a/revoke"})
		if w.Code != 405 {
			t.Errorf("%s revoke: %d", m, w.Code)
		}
		if w.Header().Get("Allow") == "" {
			t.Errorf("%s revoke: 405 without Allow", m)
		}
	}
	if len(f.ca.revoked) != 0 || f.ca.asked.Profile != "" {
		t.Errorf("something reached the CA: %v %v", f.ca.revoked, f.ca.asked)
	}
}

// Members that are not the client's to set are refused, not ignored; nor does a case
// variant or a second copy of a member get through.
func TestAttack_WEB_07(t *testing.T) {
	f := newFixture(t)
	for name, body := range map[string]string{
		"role":          `{"csr": "x", "profile": "tls-server", "role": "admin"}`,
		"requester":     `{"requester": "acme:1", "csr": "x", "profile": "tls-server"}`,
		"serial":        `{"csr": "x", "profile": "tls-server", "serial": "01"}`,
		"case":          `{"CSR": "x", "profile": "tls-server"}`,
		"twice":         `{"csr": "x", "profile": "tls-server", "profile": "root"}`,
		"twice escaped": `{"csr": "x", "profile": "tls-server", "profil\u0065": "root"}`,
		"nested":        `{"csr": {"__proto__": 1}, "profile": "tls-server"}`,
	} {
		p := wantProblem(t, f.do(call{method: "POST", path: certs, body: body}), 400, "bad-json")
		if !strings.HasPrefix(p.Field, "/") {
			t.Errorf("%s: field %q", name, p.Field)
		}
	}
	if f.ca.asked.Profile != "" {
		t.Errorf("the CA was asked: %+v", f.ca.asked)
	}
}

// Nothing that a client writes into a header makes it somebody else.
func TestAttack_WEB_10(t *testing.T) {
	f := newFixture(t)
	forged := map[string]string{
		"X-Forwarded-For": "203.0.113.66", "X-Real-Ip": "203.0.113.66", "Forwarded": "for=203.0.113.66", "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "http",
		"X-Ssl-Client-Cert": "admin", "X-Client-Cert": "admin", "X-Forwarded-Client-Cert": "admin", "X-Remote-User": "admin", "X-Admin-Token": token,
		"X-Request-Id": "forged-id", "X-Http-Method-Override": "DELETE", "X-Original-Url": "/healthz", "X-Rewrite-Url": "/healthz",
	}
	wantProblem(t, f.do(call{path: certs, noToken: true, header: forged}), 401, "unauthorized")

	w := f.do(call{path: certs + "?limit=1", header: forged})
	if w.Code != 200 || strings.Contains(w.Body.String()+w.Header().Get("Link"), "evil.example") {
		t.Errorf("%d: a forged host got into the answer: %s", w.Code, w.Body)
	}
	if id := w.Header().Get("X-Request-Id"); id == "forged-id" || len(id) != 36 {
		t.Errorf("request id %q", id)
	}
	if log := f.logged.String(); strings.Contains(log, "203.0.113.66") || strings.Contains(log, "forged-id") {
		t.Errorf("the log believed a header:\n%s", log)
	}
}

func TestAttack_WEB_10_Tokens(t *testing.T) {
	f := newFixture(t)
	for name, h := range map[string]string{
		"wrong": "Bearer nope", "empty": "Bearer ", "no scheme": token, "basic": "Basic " + token, "prefix": "Bearer " + token + "x", "two spaces": "Bearer  " + token, "list": "Bearer " + token + ", Bearer x",
	} {
		for _, r := range f.Routes() {
			if r.Public {
				continue
			}
			w := f.do(call{method: r.Method, path: strings.Replace(r.Path, "{serial}", "4f2a", 1), body: "{}", header: map[string]string{"Authorization": h}})
			wantProblem(t, w, 401, "unauthorized")
			if w.Header().Get("WWW-Authenticate") == "" {
				t.Errorf("%s: no WWW-Authenticate", name)
			}
		}
	}
	_, twice := f.roundTrip(call{path: certs})
	twice.Header.Add("Authorization", "Bearer other")
	rec := httptest.NewRecorder()
	f.HTTPS().ServeHTTP(rec, twice)
	wantProblem(t, rec, 401, "unauthorized")
	w := f.do(call{path: certs + "?access_token=" + token, noToken: true})
	wantProblem(t, w, 401, "unauthorized")
	f.do(call{path: certs, header: map[string]string{"Authorization": "bearer " + token}})
	if strings.Contains(f.logged.String(), token) {
		t.Errorf("the token is in the log:\n%s", f.logged)
	}
	p := wantProblem(t, f.do(call{path: certs, plain: true}), 404, "not-found")
	if !strings.Contains(p.Detail, publicURL) {
		t.Errorf("the HTTP door does not say where the API is: %s", p.Detail)
	}
}

// There is no redirect at all, so none that leads away.
func TestAttack_WEB_12(t *testing.T) {
	f := newFixture(t)
	for _, plain := range []bool{false, true} {
		for _, path := range []string{"//evil.example", "//evil.example/..", "/?next=//evil.example", "/%2f%2fevil.example", "/\\evil.example/", "/problems/", "/problems//evil.example", "/acme", "/crl//evil.example/x.crl",
			"/%0d%0aLocation:%20//evil.example", "/static/..%2f..%2fetc/passwd", "/ca/..%2f..%2fetc%2fpasswd.cer", "/ca/.cer", "/crl/.crl", "/crl/issuing", "/crl/issuing.crl.crl", "/roots.pem/"} {
			w := f.do(call{path: path, plain: plain})
			if w.Code >= 300 && w.Code < 400 || w.Header().Get("Location") != "" {
				t.Errorf("%s: %d %s", path, w.Code, w.Header().Get("Location"))
			}
			if w.Code != 200 && w.Code != 404 {
				t.Errorf("%s: %d %s", path, w.Code, w.Body)
			}
			if w.Code == 404 {
				wantProblem(t, w, 404, "not-found")
			}
		}
	}
}

func TestAttack_WEB_15(t *testing.T) {
	f := newFixture(t)
	deep := strings.Repeat("[", 10000) + strings.Repeat("]", 10000)
	bad := map[string]string{
		"depth":         `{"csr": ` + deep + `, "profile": "tls-server"}`,
		"object depth":  strings.Repeat(`{"a":`, 5000) + "1" + strings.Repeat("}", 5000),
		"number":        `{"csr": 1e999, "profile": "tls-server"}`,
		"big number":    `{"csr": ` + strings.Repeat("9", 5000) + `}`,
		"duplicate":     `{"csr": "a", "csr": "b"}`,
		"unknown":       `{"csr": "a", "profil": "tls-server"}`,
		"invalid UTF-8": "{\"csr\": \"\xff\xfe\"}",
		"lone half":     `{"csr": "\ud800"}`,
		"nul":           "{\"csr\": \"\x00\"}",
		"trailing":      `{"csr": "a"} {"csr": "b"}`,
		"trailing text": `{"csr": "a"}x`,
		"BOM":           "\ufeff{}",
		"array":         `[{"csr": "a"}]`,
		"string":        `"csr"`,
		"comment":       `{/* */}`,
		"single quotes": `{'csr': 'a'}`,
		"comma":         `{"csr": "a",}`,
		"cut":           `{"csr": "a`,
		"blank":         "  \n ",
		"NaN":           `{"csr": NaN}`,
		"key of 60 KB":  `{"` + strings.Repeat("k", 60000) + `": 1}`,
		"evil key":      `{"<img src=x onerror=alert(1)>\u202e": 1}`,
	}
	for _, name := range slices.Sorted(maps.Keys(bad)) {
		w := f.do(call{method: "POST", path: certs, body: bad[name]})
		p := wantProblem(t, w, 400, "bad-json")
		if w.Body.Len() > 2000 || strings.Contains(w.Body.String(), "<img") || strings.ContainsRune(p.Detail, '\u202e') {
			t.Errorf("%s: raw input in the answer: %.300s", name, w.Body)
		}
		if strings.Contains(name, "depth") && !strings.Contains(p.Detail, "deeper") {
			t.Errorf("%s: %s", name, p.Detail)
		}
	}
	huge := strings.Repeat(" ", 65<<10)
	wantProblem(t, f.do(call{method: "POST", path: certs, body: huge}), 413, "too-large")
	for _, enc := range []string{"gzip", "br", "x"} {
		wantProblem(t, f.do(call{method: "POST", path: certs, body: f.issueBody(), header: map[string]string{"Content-Encoding": enc}}), 415, "unsupported-media-type")
	}
	for _, q := range []string{"limit=0", "limit=-1", "limit=501", "limit=1e2", "limit=", "limit=1&limit=2", "before=0", "before=-1", "before=99999999999999999999", "before=x", "offset=3", "name=", "name=%00", "name=%ff", "name=a%20b", "name=" + strings.Repeat("a", 300), "limit=1;x=2", "%zz=1"} {
		wantProblem(t, f.do(call{path: certs + "?" + q}), 400, "bad-parameter")
	}
}

// What is downloaded says what it is and is taken as nothing else.
func TestAttack_WEB_17(t *testing.T) {
	f := newFixture(t, func(c *web.Config) { c.Dev = true })
	for path, want := range map[string]string{
		"/crl/issuing.crl": "application/pkix-crl", "/ca/issuing.cer": "application/pkix-cert", "/roots.pem": "application/x-pem-file", "/healthz": "text/plain; charset=UTF-8",
		"/": "text/html; charset=UTF-8", "/problems": "text/html; charset=UTF-8", "/static/chancery.css": "text/css; charset=utf-8", "/nothing": "application/problem+json", "/crl/x.crl": "application/problem+json",
	} {
		for _, m := range []string{"GET", "HEAD"} {
			w := f.do(call{method: m, path: path, plain: true})
			h := w.Header()
			if h.Get("Content-Type") != want || h.Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("%s %s: %q, %q", m, path, h.Get("Content-Type"), h.Get("X-Content-Type-Options"))
			}
			csp := h.Get("Content-Security-Policy")
			if !strings.HasPrefix(csp, "default-src 'none'") || !strings.Contains(csp, "frame-ancestors 'none'") || strings.Contains(csp, "unsafe") || h.Get("Referrer-Policy") != "no-referrer" {
				t.Errorf("%s %s: %v", m, path, h)
			}
		}
	}
	secure := newFixture(t)
	for _, path := range []string{"/", certs, "/acme/directory", "/nothing"} {
		if secure.do(call{path: path}).Header().Get("Strict-Transport-Security") == "" {
			t.Errorf("%s: no HSTS", path)
		}
	}
	if h := secure.do(call{path: "/roots.pem", plain: true}).Header(); h.Get("Strict-Transport-Security") != "" {
		t.Error("HSTS over plain HTTP (RFC 6797 §7.2)")
	}
}

// Nothing for developers is open, and errors do not say what runs here.
func TestAttack_WEB_23(t *testing.T) {
	f := newFixture(t)
	for _, plain := range []bool{false, true} {
		for _, path := range []string{"/debug/pprof/", "/debug/vars", "/metrics", "/swagger", "/swagger/index.html", "/.git/config", "/.env", "/server-status", "/api/v1/", "/api"} {
			wantProblem(t, f.do(call{path: path, plain: plain}), 404, "not-found")
		}
		for _, path := range []string{"/", "/healthz", "/acme/directory", certs, "/nothing"} {
			for _, m := range []string{"TRACE", "CONNECT"} {
				w := f.do(call{method: m, path: path, plain: plain, header: map[string]string{"X-Secret": "reflected"}})
				wantProblem(t, w, 405, "method-not-allowed")
				if strings.Contains(w.Body.String(), "reflected") || w.Header().Get("Allow") == "" {
					t.Errorf("TRACE reflects: %s", w.Body)
				}
			}
		}
	}
	for _, w := range []http.Header{f.do(call{path: "/nothing"}).Header(), f.do(call{path: "/"}).Header()} {
		for _, name := range []string{"Server", "X-Powered-By", "Via"} {
			if w.Get(name) != "" {
				t.Errorf("%s: %s", name, w.Get(name))
			}
		}
	}
}

// A panic anywhere is logged under the request's id and told to nobody.
func TestPanicTellsNothing(t *testing.T) {
	f := newFixture(t)
	f.ca.onPrepay = func() { panic("pin=12345678") }
	w := f.do(call{method: "POST", path: certs, body: f.issueBody()})
	wantProblem(t, w, 500, "internal")
	acme := f.do(call{method: "POST", path: "/acme/panic", body: "{}"})
	if acme.Code != 500 || decode(t, acme)["type"] != "urn:ietf:params:acme:error:serverInternal" {
		t.Errorf("%d %s", acme.Code, acme.Body)
	}
	for _, body := range []string{w.Body.String(), acme.Body.String()} {
		if strings.Contains(body, "12345678") || strings.Contains(body, "secret") || strings.Contains(body, ".go:") {
			t.Errorf("the answer tells: %s", body)
		}
	}
	if log := f.logged.String(); !strings.Contains(log, w.Header().Get("X-Request-Id")) || !strings.Contains(log, "headers.go") {
		t.Errorf("the log lacks id or stack:\n%s", log)
	}
	f.ca.onPrepay = nil
	if w := f.do(call{method: "POST", path: certs, body: f.issueBody()}); w.Code != 201 {
		t.Errorf("the next request: %d", w.Code)
	}
}

// ACME is mounted as it is: any method, any content type, its own answers.
func TestACMEIsLeftAlone(t *testing.T) {
	f := newFixture(t)
	for _, m := range []string{"GET", "HEAD", "POST", "OPTIONS", "PUT"} {
		w := f.do(call{method: m, path: "/acme/order/1/finalize?x=%2F", noToken: true, body: strings.Repeat("x", 100<<10),
			header: map[string]string{"Content-Type": "application/jose+json", "Origin": "https://browser-client.example"}})
		if w.Code != 200 || w.Header().Get("X-Saw") != m+" /acme/order/1/finalize?x=%2F" {
			t.Errorf("%s: %d %s", m, w.Code, w.Header().Get("X-Saw"))
		}
	}
}

// A client that hangs up does not stop what was begun: else the serial were used up
// and revoked for nothing.
func TestIssueOutlivesItsClient(t *testing.T) {
	f := newFixture(t)
	ctx, hangUp := context.WithCancel(context.Background())
	f.ca.onIssue = func(ctx context.Context) {
		hangUp()
		if ctx.Err() != nil {
			t.Error("the act was given up with the client")
		}
		if _, ok := ctx.Deadline(); !ok {
			t.Error("the act has no time limit")
		}
	}
	_, r := f.roundTrip(call{path: "/healthz"})
	req := r.Clone(ctx)
	req.Method, req.URL.Path, req.RequestURI = "POST", certs, certs
	req.Header.Set("Content-Type", "application/json")
	req.Body = io.NopCloser(strings.NewReader(f.issueBody()))
	req.ContentLength = -1
	f.HTTPS().ServeHTTP(httptest.NewRecorder(), req)
	if f.ca.asked.Requester != "api:admin-token" {
		t.Errorf("asked: %+v", f.ca.asked)
	}
}

// A list walks through everything exactly once, by its own links.
func TestListPages(t *testing.T) {
	f := newFixture(t)
	var serials []string
	next := publicURL + certs + "?limit=1&name=Example.ORG"
	for n := 0; next != "" && n < 10; n++ {
		w := f.do(call{path: strings.TrimPrefix(next, publicURL)})
		m := decode(t, w)
		for _, c := range m["certificates"].([]any) {
			serials = append(serials, c.(map[string]any)["serial"].(string))
		}
		next, _ = m["next"].(string)
		if link := w.Header().Get("Link"); next != "" && link != "<"+next+`>; rel="next"` || next == "" && link != "" {
			t.Errorf("Link %q, next %q", link, next)
		}
		if f.ca.query.Name != "example.org" || f.ca.query.Limit != 1 {
			t.Errorf("query %+v", f.ca.query)
		}
	}
	if got := fmt.Sprint(serials); got != "[4f2a 4f2b 51]" {
		t.Errorf("serials %s", got)
	}
}

func TestIssueAnswer(t *testing.T) {
	f := newFixture(t)
	w := f.do(call{method: "POST", path: certs, body: f.issueBody()})
	m := decode(t, w)
	rec := m["receipt"].(map[string]any)
	if w.Code != 201 || w.Header().Get("Location") != publicURL+certs+"/4f2a" || m["serial"] != "4f2a" || m["certificate"] != pemOf("CERTIFICATE", pki().leaf) ||
		m["chain"] != pemOf("CERTIFICATE", pki().issuing) || rec["leaf"] != "dGhlIGxlYWY=" || rec["index"] != 30.0 || m["revoked"] != nil {
		t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
	}
	if shown := decode(t, f.do(call{path: certs + "/4f2a"})); shown["receipt"].(map[string]any)["leaf"] != nil {
		t.Error("a leaf is shown that the CA did not give")
	}
}

func TestRevokeTwiceKeepsTheFirst(t *testing.T) {
	f := newFixture(t)
	first := decode(t, f.do(call{method: "POST", path: certs + "/4f2a/revoke", body: `{"reason": "superseded"}`}))
	second := decode(t, f.do(call{method: "POST", path: certs + "/4f2a/revoke", body: `{"reason": "unspecified"}`}))
	if fmt.Sprint(first["revoked"]) != fmt.Sprint(second["revoked"]) || first["revoked"].(map[string]any)["reason"] != "superseded" {
		t.Errorf("%v, then %v", first["revoked"], second["revoked"])
	}
	if r := f.ca.revoked[0]; r.Issuer != "issuing" || r.Serial != "4f2a" || r.Reason != ca.Superseded || r.Requester != "api:admin-token" {
		t.Errorf("asked for %+v", r)
	}
}

func TestCSRForms(t *testing.T) {
	f := newFixture(t)
	send := func(csr string) int {
		body := string(must(json.Marshal(map[string]string{"csr": csr, "profile": "tls-server"})))
		w := f.do(call{method: "POST", path: certs, body: body})
		if w.Code != 201 {
			p := wantProblem(t, w, 400, "bad-csr")
			if p.Field != "/csr" || len(p.Detail) > 400 {
				t.Errorf("%+v", p)
			}
		}
		return w.Code
	}
	for name, csr := range map[string]string{
		"plain": f.csr, "CRLF": strings.ReplaceAll(f.csr, "\n", "\r\n"), "blank around": "\n\n" + f.csr + "\n\n", "no end of line": strings.TrimSpace(f.csr),
		"NEW": pemOf("NEW CERTIFICATE REQUEST", pki().csr),
	} {
		if send(csr) != 201 {
			t.Errorf("%s: refused", name)
		}
	}
	for name, csr := range map[string]string{
		"empty": "", "text": "hello", "certificate": pemOf("CERTIFICATE", pki().leaf), "two": f.csr + f.csr, "text before": "Certificate Request:\n" + f.csr, "text after": f.csr + "x",
		"key": pemOf("PRIVATE KEY", []byte("k")), "key behind": f.csr + pemOf("EC PRIVATE KEY", []byte("k")), "no base64": strings.Replace(f.csr, "M", "!", 1),
		"not DER": pemOf("CERTIFICATE REQUEST", []byte("x")), "evil type": pemOf("<script>", []byte("x")),
		"headers": strings.Replace(f.csr, "REQUEST-----\n", "REQUEST-----\nProc-Type: 4,ENCRYPTED\n\n", 1),
	} {
		if send(csr) == 201 {
			t.Errorf("%s: accepted", name)
		}
	}
	if strings.Contains(f.logged.String(), "PRIVATE KEY") {
		t.Error("a private key was logged")
	}
}

// One address that keeps a thousand requests under way gets no more, and others are
// served all the same.
func TestAttack_WEB_14_RequestsUnderWay(t *testing.T) {
	hold, entered := make(chan struct{}), make(chan struct{}, 1024)
	f := newFixture(t, func(c *web.Config) {
		c.ACME = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/acme/hold" {
				entered <- struct{}{}
				<-hold
			}
		})
	})
	from := func(remote, path string) *httptest.ResponseRecorder {
		r := httptest.NewRequest("POST", publicURL+path, nil)
		r.RemoteAddr = remote
		w := httptest.NewRecorder()
		f.HTTPS().ServeHTTP(w, r)
		return w
	}
	var wg sync.WaitGroup
	for i := range 1024 {
		wg.Go(func() { from(fmt.Sprintf("[2001:db8::%x]:9", i), "/acme/hold") }) // one /64
	}
	for range 1024 {
		<-entered
	}
	w := from("[2001:db8::ffff]:9", "/acme/directory")
	if m := decode(t, w); w.Code != 503 || m["type"] != "urn:ietf:params:acme:error:rateLimited" || w.Header().Get("Retry-After") != "1" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	for _, other := range []string{"[2001:db8:0:1::1]:9", "203.0.113.9:9", "127.0.0.1:9"} {
		if w := from(other, "/acme/directory"); w.Code != 200 {
			t.Errorf("%s: %d", other, w.Code)
		}
	}
	close(hold)
	wg.Wait()
	if w := from("[2001:db8::1]:9", "/acme/directory"); w.Code != 200 {
		t.Errorf("locked out for good: %d", w.Code)
	}
}
