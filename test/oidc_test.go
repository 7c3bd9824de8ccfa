package test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"chancery/test/idp"
)

// Somebody signs in with an OpenID provider and may do what a group of theirs gives, and
// nothing that is the officers'.
func TestOIDC(t *testing.T) {
	provider := idp.New(t)
	s := newSite(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(idp.Secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(s.overlayFile, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(f, "oidc:\n  issuer: %s\n  client_id: %s\n  client_secret: file:%s\n  roles:\n    pki: [\"registration-officer\"]\n", provider.URL, idp.ClientID, secret)
	f.Close()
	s.start()
	issued, err := s.issue(s.client(), s.token(), "oidc.example.lab")
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(s.read("root.pem")))
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	browser := &http.Client{Jar: jar, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	base := "https://localhost" + port(s.https) + "/console/"
	get := func(path string) (int, string) {
		t.Helper()
		resp, err := browser.Get(base + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	if _, page := get("sign-in"); !strings.Contains(page, `id="oidc"`) {
		t.Fatalf("the page offers no provider:\n%s", page)
	}
	if code, page := get("oidc/start?to=certificates"); code != 200 || !strings.Contains(page, `id="continue"`) {
		t.Fatalf("%d\n%s", code, page)
	}
	if code, page := get("signed-in?to=certificates"); code != 200 || !strings.Contains(page, "oidc.example.lab") {
		t.Fatalf("%d\n%s", code, page)
	}
	for _, path := range []string{"keys", "approvals", "officers", "officers/invite", "machines/new", "keys/new"} {
		if code, _ := get(path); code != 403 {
			t.Errorf("a registration officer by OIDC at %s: %d", path, code)
		}
	}
	// They revoke, as they have just shown that they are there; the ledger knows who.
	_, page := get("certificates/" + issued.Serial + "/revoke")
	field := func(name string) string {
		m := regexp.MustCompile(`name="` + name + `" value="([^"]*)"`).FindStringSubmatch(page)
		if m == nil {
			t.Fatalf("no field %s in\n%s", name, page)
		}
		return m[1]
	}
	form := map[string][]string{"form_token": {field("form_token")}, "serial": {field("serial")}, "digest": {field("digest")}, "reason": {"superseded"}}
	resp, err := browser.PostForm(base+"certificates/"+issued.Serial+"/revoke", form)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	s.awaitRevoked(issued.Serial)
	if out, code := run(t, nil, chancery, "audit", "export", "--dir", s.dir, "--config", s.overlayFile, "--format", "jsonl", "--out", filepath.Join(t.TempDir(), "log")); code != 0 {
		t.Fatalf("%d %s", code, out)
	}
	s.auditVerify()
}
