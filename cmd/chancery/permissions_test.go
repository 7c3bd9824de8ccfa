package main

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
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
	"time"

	"github.com/spf13/cobra"

	"chancery/admin"
	"chancery/web"
)

// arguments let each command get as far as its requests; with a stroke between, it is run
// once for each.
var arguments = map[string]string{
	"approve cancel": "4f2a9c07d1e35b68", "approve reject": "ID --yes --officer ada --key KEY", "approve show": "ID", "approve sign": "ID --yes --officer ada --key KEY",
	"audit erase": "--entry 7 --reason x", "hsm add": "gamma", "hsm admit": "alpha --reason x", "hsm backup": "far | far --remove | near --verify | near --designate", "hsm drain": "alpha --reason x", "hsm fence": "alpha --reason x",
	"hsm info": "alpha", "hsm remove": "alpha", "hsm share": "c1 --officer ada --key KEY", "hsm split-so-pin": "alpha --threshold 2",
	"key adopt": "k --member alpha --label x", "key describe": "k --reason x", "key destroy": "k", "key disable": "k --reason x", "key enable": "k --reason x", "key generate": "k | k --officer ada --key KEY", "key show": "k",
	"key import": "k --session s --public-key PUB --blob PUB", "key import-session": "--member alpha --out OUT", "key repair": "k --member alpha", "hsm retire": "--reason x",
	"machine add-certificate": "ci --cert PUB --role signer", "machine new-token": "ci --role signer", "machine revoke": "4f2a9c07d1e35b68 --reason x",
	"officer accept": "4f2a9c07d1e35b68", "officer add": "dan --public PUB --role signer", "officer change": "--file ROSTER", "officer invite": "dan --role signer", "officer quorum": "--approvals 3",
	"officer remove": "cyd", "officer roles": "cyd --role signer", "officer withdraw": "4f2a9c07d1e35b68", "sign": "PUB",
}

// answers let a command go on, by the path below /api/v1/; id is that of the proposal.
func answers(t *testing.T, roster admin.Roster) (id string, out map[string]string) {
	t.Helper()
	next := roster.Successor()
	next.Quorum++
	parameters := must(admin.ChangeParameters(roster, next))
	terms := admin.Terms{Ledger: [32]byte{1}, Roster: roster, RosterDigest: roster.Digest(), PolicyDigest: roster.PolicyDigest()}
	p := terms.Draft(admin.ChangeRoster, must(actsOf(admin.ChangeRoster, parameters)), parameters, admin.AdminToken, time.Now(), time.Hour)
	raw := must(p.Encode())
	id = admin.ProposalID(admin.ProposalHash(raw))
	text := func(v any) string { return string(must(json.Marshal(v))) }
	return id, map[string]string{
		"officers":                    text(map[string]any{"roster": roster}),
		"approvals":                   text(map[string]any{"terms": map[string]any{"ledger": hex.EncodeToString(terms.Ledger[:]), "roster": roster}}),
		"approvals/" + id:             text(map[string]any{"id": id, "state": "pending", "action": p.Action, "acts": p.Acts, "requester": p.Requester, "parameters": json.RawMessage(parameters), "proposal": raw}),
		"enrolments/4f2a9c07d1e35b68": text(map[string]any{"id": "4f2a9c07d1e35b68", "state": "done", "parameters": json.RawMessage(parameters)}),
		"keys/k":                      text(map[string]any{"spki_sha256": strings.Repeat("ab", 32)}),
		"keys/inspect":                text(map[string]any{"member": "alpha", "cka_id": "ab", "spki_sha256": strings.Repeat("ab", 32)}),
		"hsm/backups":                 text(map[string]any{"recipients": []any{map[string]any{"name": "far", "serial": "5e71", "missing": []string{"k"}}, map[string]any{"name": "near", "serial": "5e71"}}}),
		"hsm/backups/near/verify":     "{}",
	}
}

// notAsked are permissions in the table whose requests this test does not come to: a share
// that can be opened is sealed by a token.
var notAsked = map[string]admin.Permission{"hsm share": admin.Vote}

// Each command says which permissions it needs, and they are those of the routes that it
// calls.
func TestEveryCommandNamesItsPermission(t *testing.T) {
	var mu sync.Mutex
	var asked []string
	var answer map[string]string
	var reads bool // are answered, so that what follows them is asked for, too
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked = append(asked, r.Method+" "+r.URL.Path)
		body, ok := answer[strings.TrimPrefix(r.URL.Path, "/api/v1/")]
		mu.Unlock()
		if reads && (r.Method == http.MethodGet || ok && r.URL.Path != "/api/v1/approvals") {
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, cmp.Or(body, "{}"))
			return
		}
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
	roster := admin.Roster{Version: 1, Quorum: 2}
	for i, name := range []string{"ada", "bob", "cyd"} {
		one := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
		if i == 0 {
			one = key
		}
		roster.Officers = append(roster.Officers, admin.Officer{Name: name, SPKI: must(x509.MarshalPKIXPublicKey(one.Public())), Roles: []admin.Assignment{{Role: admin.CryptoOfficer}}})
	}
	id, canned := answers(t, roster)
	answer = canned
	changed := roster
	changed.Quorum = 3
	fill := strings.NewReplacer("ID", id,
		"KEY", file("key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(key))})),
		"PUB", file("pub", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: must(x509.MarshalPKIXPublicKey(must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)).Public()))})),
		"OUT", filepath.Join(dir, "out"),
		"ROSTER", file("roster", must(json.Marshal(changed))))
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
		var all []string
		for n, line := range slices.Repeat(strings.Split(arguments[path], "|"), 2) {
			asked, reads = nil, n >= strings.Count(arguments[path], "|")+1
			one := root()
			one.SetOut(io.Discard)
			one.SetErr(io.Discard)
			one.SetArgs(slices.Concat(strings.Fields(path), strings.Fields(fill.Replace(line)), common))
			err := one.ExecuteContext(t.Context())
			if !reads && code(err) != exitAuth || len(asked) == 0 {
				t.Errorf("%s: %v, it asked %v", path, err, asked)
				return
			}
			all = append(all, asked...)
		}
		left := slices.DeleteFunc(slices.Clone(n.permissions), func(p admin.Permission) bool { return notAsked[path] == p })
		for _, a := range all {
			p, ok := permissionOf(a)
			if !ok || !slices.Contains(n.permissions, p) {
				t.Errorf("%s asks %s, which needs %q; the table has %v", path, a, p, n.permissions)
			}
			left = slices.DeleteFunc(left, func(l admin.Permission) bool { return l == p })
		}
		// Whoever may ask may read what waits: an officer who asks does, and --wait.
		if left = slices.DeleteFunc(left, func(l admin.Permission) bool {
			return l == admin.ReadApprovals && slices.Contains(n.permissions, admin.Propose)
		}); len(left) > 0 {
			t.Errorf("%s asks %v and never for what needs %v", path, all, left)
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
