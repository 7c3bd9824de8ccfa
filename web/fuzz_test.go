package web_test

import (
	"strings"
	"testing"
)

// Whatever the body, the answer is a certificate or a problem of the client's, never
// a failure of ours.
func FuzzIssueBody(f *testing.F) {
	fx := newFixture(f)
	for _, s := range []string{fx.issueBody(), `{}`, `{"csr":"x","profile":"tls-server"}`, `{"csr":null}`, `[[[[`, "\xff", `{"a":{"a":{"a":1}}}`, `{"csr":"-----BEGIN X-----\n-----END X-----"}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, body string) {
		if body == "" {
			return
		}
		w := fx.do(call{method: "POST", path: certs, body: body})
		if w.Code != 201 && w.Code != 400 && w.Code != 413 {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	})
}

func FuzzPath(f *testing.F) {
	fx := newFixture(f)
	for _, s := range []string{"crl/issuing.crl", "ca/../x.cer", "%2e%2e/", "problems/bad-csr", "api/v1/certificates/4f2a", "?a=b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		if strings.ContainsFunc(path, func(r rune) bool { return r <= ' ' || r >= 0x7f }) || strings.Contains(path, "%") && !validEscapes(path) {
			return
		}
		for _, plain := range []bool{false, true} {
			if w := fx.do(call{path: "/" + path, plain: plain}); w.Code >= 500 && !strings.HasSuffix(path, "/proof") {
				t.Errorf("%s: %d %s", path, w.Code, w.Body)
			}
		}
	})
}

func validEscapes(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && (i+2 >= len(s) || !strings.ContainsRune("0123456789abcdefABCDEF", rune(s[i+1])) || !strings.ContainsRune("0123456789abcdefABCDEF", rune(s[i+2]))) {
			return false
		}
	}
	return true
}
