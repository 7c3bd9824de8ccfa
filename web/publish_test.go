package web_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"chancery/audit"
	"chancery/hsmstore"
	"chancery/web"
)

func TestCRLIsCachedForSecondsOnly(t *testing.T) {
	f := newFixture(t)
	w := f.do(call{path: "/crl/issuing.crl", plain: true})
	h := w.Header()
	if w.Code != 200 || w.Body.String() != string(pki().crl) || h.Get("Cache-Control") != "public, max-age=5, must-revalidate" || h.Get("Last-Modified") != pki().crlThis.Format(http.TimeFormat) || !strings.HasPrefix(h.Get("Etag"), `"`) {
		t.Errorf("%d %v", w.Code, h)
	}
	for name, cond := range map[string]map[string]string{
		"etag": {"If-None-Match": h.Get("Etag")}, "date": {"If-Modified-Since": h.Get("Last-Modified")}, "any": {"If-None-Match": "*"},
	} {
		if w := f.do(call{path: "/crl/issuing.crl", plain: true, header: cond}); w.Code != 304 || w.Body.Len() != 0 {
			t.Errorf("%s: %d", name, w.Code)
		}
	}
	for _, cond := range []map[string]string{{"If-None-Match": `"other"`}, {"Range": "bytes=0-1"}, {"Range": "bytes=9999999-"}, {"Range": "x"}, {"If-Match": `"other"`}, {"If-Unmodified-Since": "Mon, 02 Jan 2006 15:04:05 GMT"}} {
		if w := f.do(call{path: "/crl/issuing.crl", plain: true, header: cond}); w.Code != 200 || w.Body.String() != string(pki().crl) {
			t.Errorf("%v: %d", cond, w.Code)
		}
	}
	if w := f.do(call{method: "HEAD", path: "/crl/issuing.crl", plain: true}); w.Code != 200 || w.Body.Len() != 0 || w.Header().Get("Content-Length") == "" {
		t.Errorf("HEAD: %d, %d octets", w.Code, w.Body.Len())
	}
}

// A CRL whose successor is late is still handed out – it says itself that it is old –
// but no cache keeps it.
func TestLateCRLIsNotCached(t *testing.T) {
	f := newFixture(t)
	f.ca.crlNext = time.Now().Add(-time.Minute)
	if w := f.do(call{path: "/crl/issuing.crl", plain: true}); w.Code != 200 || w.Header().Get("Cache-Control") != "no-cache" {
		t.Errorf("%d %s", w.Code, w.Header().Get("Cache-Control"))
	}
	f.ca.fail = errors.New("disk I/O error")
	wantProblem(t, f.do(call{path: "/crl/issuing.crl", plain: true}), 500, "internal")
	f.ca.fail, f.ca.crl = nil, []byte("no CRL")
	wantProblem(t, f.do(call{path: "/crl/issuing.crl", plain: true}), 500, "internal")
}

func TestRootsAreSortedPEM(t *testing.T) {
	f := newFixture(t)
	a, b := pki().root, pki().issuing
	f.ca.roots = [][]byte{a, b}
	one := f.do(call{path: "/roots.pem", plain: true})
	f.ca.roots = [][]byte{b, a}
	two := f.do(call{path: "/roots.pem"})
	if one.Body.String() != two.Body.String() || one.Header().Get("Etag") != two.Header().Get("Etag") {
		t.Error("the order of roots shows")
	}
	rest, n := one.Body.Bytes(), 0
	for block, r := pem.Decode(rest); block != nil; block, r = pem.Decode(r) {
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			t.Error(err)
		}
		n++
	}
	if n != 2 {
		t.Errorf("%d roots", n)
	}
	f.ca.roots = nil
	wantProblem(t, f.do(call{path: "/roots.pem"}), 404, "not-found")
}

// A path without a name must not fall through to the CA's default issuer.
func TestIssuerMustBeNamed(t *testing.T) {
	f := newFixture(t)
	for _, path := range []string{"/ca/.cer", "/ca/", "/ca/issuing", "/ca/issuing.crl", "/crl/.crl", "/crl/issuing.cer"} {
		wantProblem(t, f.do(call{path: path, plain: true}), 404, "not-found")
	}
}

func TestNoCheckpointYet(t *testing.T) {
	f := newFixture(t, func(c *web.Config) {
		c.Checkpoint = func(context.Context) (string, error) { return "", audit.ErrNotFound }
	})
	wantProblem(t, f.do(call{path: "/ledger/checkpoint", noToken: true}), 404, "not-found")
}

func TestReadiness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var answer error
		asked := 0
		f := newFixture(t, func(c *web.Config) {
			c.Ready = func(ctx context.Context) error {
				asked++
				if _, ok := ctx.Deadline(); !ok {
					t.Error("the check has no time limit")
				}
				return answer
			}
		})
		ready := func() problem {
			t.Helper()
			w := f.do(call{path: "/readyz", noToken: true})
			if w.Code == 200 {
				return problem{}
			}
			return wantProblem(t, w, 503, "not-ready")
		}
		for range 5 {
			if p := ready(); p.Status != 0 {
				t.Errorf("%+v", p)
			}
		}
		if asked != 1 {
			t.Errorf("asked %d times within a second", asked)
		}
		for want, err := range map[string]error{
			"hsm: one member of two answers": &web.NotReady{Part: "hsm", Detail: "one member of two answers"},
			"ledger":                         audit.ErrUnavailable, "HSM": hsmstore.ErrUnavailable, "time limit": context.DeadlineExceeded,
			"the check failed": errors.New("dial /run/secret.sock"),
		} {
			time.Sleep(time.Second)
			answer = err
			p := ready()
			if !strings.Contains(p.Detail, want) || strings.Contains(p.Detail, "secret") {
				t.Errorf("%v: %+v", err, p)
			}
			if (want == "ledger" || want == "HSM") && p.Part != strings.ToLower(want) {
				t.Errorf("%v: part %q", err, p.Part)
			}
		}
		if w := f.do(call{path: "/healthz", noToken: true}); w.Code != 200 || w.Body.String() != "ok\n" {
			t.Errorf("healthz: %d", w.Code)
		}
		time.Sleep(time.Second)
		answer = nil
		if p := ready(); p.Status != 0 {
			t.Errorf("ready again, but %+v", p)
		}
	})
}

// A broken promise that does not end the signing stands beside "ready".
func TestReadyWithAlarms(t *testing.T) {
	var alarms []string
	f := newFixture(t, func(c *web.Config) { c.Alarms = func() []string { return alarms } })
	for want, these := range map[string][]string{"ready\n": nil, "ready\nalarm: P9: late\nalarm: surplus: key\n": {"P9: late", "surplus: key"}} {
		alarms = these
		if w := f.do(call{path: "/readyz", noToken: true}); w.Code != 200 || w.Body.String() != want {
			t.Errorf("%d %q, want %q", w.Code, w.Body, want)
		}
	}
}

func TestLandingPage(t *testing.T) {
	f := newFixture(t)
	w := f.do(call{path: "/", noToken: true})
	for _, want := range []string{"Example CA", publicURL + "/acme/directory", "AB:CD", "certbot certonly", publicHTTP + "/crl/issuing.crl", publicHTTP + "/roots.pem"} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("the page lacks %s", want)
		}
	}
	if csp := w.Header().Get("Content-Security-Policy"); csp != "default-src 'none'; style-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'" {
		t.Errorf("CSP %s", csp)
	}
	wantProblem(t, f.do(call{path: "/", plain: true}), 404, "not-found")

	dev := newFixture(t, func(c *web.Config) { c.Dev, c.Landing = true, web.Landing{} })
	w = dev.do(call{path: "/", plain: true})
	if w.Code != 200 || !strings.Contains(w.Body.String(), "Development mode") || !strings.Contains(w.Body.String(), "certbot") {
		t.Errorf("dev: %d", w.Code)
	}
	if dev.do(call{path: "/"}).Header().Get("Strict-Transport-Security") != "" {
		t.Error("HSTS in dev locks http://localhost away")
	}
}
