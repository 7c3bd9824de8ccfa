package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/spf13/cobra"

	"chancery/admin"
	"chancery/web"
)

// arguments let each command get as far as its first request.
var arguments = map[string]string{
	"approve cancel": "4f2a9c07d1e35b68", "approve reject": "4f2a9c07d1e35b68 --officer ada --key KEY", "approve show": "4f2a9c07d1e35b68", "approve sign": "4f2a9c07d1e35b68 --officer ada --key KEY",
	"audit erase": "--entry 7 --reason x", "hsm add": "gamma", "hsm admit": "alpha --reason x", "hsm backup": "far", "hsm drain": "alpha --reason x", "hsm fence": "alpha --reason x",
	"hsm info": "alpha", "hsm remove": "alpha", "hsm share": "c1 --officer ada --key KEY", "hsm split-so-pin": "alpha --threshold 2",
	"key adopt": "k --member alpha --label x", "key describe": "k --reason x", "key destroy": "k", "key disable": "k --reason x", "key enable": "k --reason x", "key generate": "k", "key show": "k",
	"key import": "k --session s --public-key PUB --blob PUB", "key import-session": "--member alpha --out OUT", "key repair": "k --member alpha", "hsm retire": "--reason x",
	"machine add-certificate": "ci --cert PUB --role signer", "machine new-token": "ci --role signer", "machine revoke": "4f2a9c07d1e35b68 --reason x",
	"officer accept": "4f2a9c07d1e35b68", "officer add": "dan --public PUB --role signer", "officer change": "--file ROSTER", "officer invite": "dan --role signer", "officer quorum": "--approvals 2",
	"officer remove": "dan", "officer roles": "dan --role signer", "officer withdraw": "4f2a9c07d1e35b68", "sign": "PUB",
}

// Each command says which permissions it needs, and they are those of the routes that it
// calls.
func TestEveryCommandNamesItsPermission(t *testing.T) {
	var mu sync.Mutex
	var asked []string
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked = append(asked, r.Method+" "+r.URL.Path)
		mu.Unlock()
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusForbidden)
		io.WriteString(w, `{"type": "x/forbidden", "title": "Not permitted", "detail": "x"}`)
	}))
	defer s.Close()
	dir := t.TempDir()
	file := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	fill := strings.NewReplacer(
		"KEY", file("key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(key))})),
		"PUB", file("pub", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: must(x509.MarshalPKIXPublicKey(key.Public()))})),
		"OUT", filepath.Join(dir, "out"),
		"ROSTER", file("roster", []byte(`{"officers": [], "quorum": 2}`)))
	common := []string{"--server", s.URL, "--token-file", file("token", []byte("t")), "--roots", file("roots", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))}

	seen := map[string]bool{}
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		path := strings.TrimPrefix(c.CommandPath(), "chancery ")
		for _, sub := range c.Commands() {
			walk(sub)
		}
		if !c.Runnable() {
			return
		}
		seen[path] = true
		n, ok := needs[path]
		switch {
		case !ok || (len(n.permissions) == 0) == (n.local == ""):
			t.Errorf("%s has no permission in the table, and no reason to need none", path)
			return
		case n.local != "":
			return
		case !strings.Contains(c.Long, "Needs at the server: "+string(n.permissions[0])):
			t.Errorf("%s does not say in its help what it needs", path)
		}
		asked = nil
		one := root()
		one.SetOut(io.Discard)
		one.SetErr(io.Discard)
		one.SetArgs(slices.Concat(strings.Fields(path), strings.Fields(fill.Replace(arguments[path])), common))
		err := one.ExecuteContext(t.Context())
		if code(err) != exitAuth || len(asked) == 0 {
			t.Errorf("%s: %v, it asked %v", path, err, asked)
			return
		}
		for _, a := range asked {
			if p, ok := permissionOf(a); !ok || !slices.Contains(n.permissions, p) {
				t.Errorf("%s asks %s, which needs %q; the table has %v", path, a, p, n.permissions)
			}
		}
	}
	walk(root())
	for path, n := range needs {
		if !seen[path] {
			t.Errorf("the table has %s, which is no command", path)
		}
		for _, p := range n.permissions {
			if !p.Known() {
				t.Errorf("%s: there is no permission %s", path, p)
			}
		}
	}
}

func permissionOf(asked string) (admin.Permission, bool) {
	for _, r := range web.Routes() {
		shape := regexp.MustCompile(`\\\{[a-z]+\\\}`).ReplaceAllString(regexp.QuoteMeta(r.Path), "[^/]+")
		if regexp.MustCompile("^" + fmt.Sprintf("%s %s", r.Method, shape) + "$").MatchString(asked) {
			return r.Permission, !r.Public
		}
	}
	return "", false
}
