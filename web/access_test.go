package web_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/admin"
	"chancery/web"
)

// fakeMachines knows tokens that are named like roles, "role:signer,key=release", with a
// plus between several, and "expired".
type fakeMachines struct{ fail *error }

func (m fakeMachines) ByToken(_ context.Context, token string) (admin.Principal, error) {
	roles, ok := strings.CutPrefix(token, "role:")
	if !ok {
		return admin.Principal{}, admin.ErrUnknownMachine
	}
	p := admin.Principal{Kind: admin.ByMachine, Name: "robot", Owner: "officer:ada"}
	for _, r := range strings.Split(roles, "+") {
		p.Assignments = append(p.Assignments, must(admin.ParseAssignment(r)))
	}
	return p, nil
}

func (m fakeMachines) ByCertificate(context.Context, [32]byte, [32]byte) (admin.Principal, error) {
	return admin.Principal{}, admin.ErrUnknownMachine
}

func fakeMachine() admin.Machine {
	at := time.Unix(1790000000, 0).UTC()
	return admin.Machine{ID: approvalID, Name: "ci", Kind: admin.MachineToken, Roles: []admin.Assignment{{Role: admin.Signer, Key: "release"}}, Owner: "officer:ada", Created: at, Expires: at.Add(time.Hour), LastUsed: at}
}

func (m fakeMachines) List(context.Context) ([]admin.Machine, error) {
	return []admin.Machine{fakeMachine()}, *m.fail
}

func (m fakeMachines) NewToken(_ context.Context, _ admin.Principal, name string, roles []admin.Assignment, _ time.Duration) (string, admin.Machine, error) {
	one := fakeMachine()
	one.Name, one.Roles = name, roles
	return "chy_" + approvalID + "_00", one, *m.fail
}

func (m fakeMachines) AddCertificate(_ context.Context, _ admin.Principal, name string, _, _ [32]byte, roles []admin.Assignment, _ time.Duration) (admin.Machine, error) {
	one := fakeMachine()
	one.Name, one.Kind, one.Roles = name, admin.MachineCertificate, roles
	return one, *m.fail
}

func (m fakeMachines) Revoke(_ context.Context, _ admin.Principal, id, _ string) error {
	if *m.fail == nil && id != approvalID {
		return &admin.Refusal{Code: admin.NotFound, Field: "id", Detail: "there is no machine with this id"}
	}
	return *m.fail
}

// as sends a request with a token.
func (f *fixture) as(token string, c call) (status int, problem string) {
	c.header = map[string]string{"Authorization": "Bearer " + token}
	if token == "" {
		c.noToken, c.header = true, nil
	}
	w := f.do(c)
	var p struct{ Type string }
	if json.Unmarshal(w.Body.Bytes(), &p) == nil {
		problem = p.Type[strings.LastIndex(p.Type, "/")+1:]
	}
	return w.Code, problem
}

// bodies are good enough to get past the permission.
var bodies = map[string]string{
	"/api/v1/sign/cms":                     `{"sha256": "` + strings.Repeat("00", 32) + `"}`,
	"/api/v1/certificates/{serial}/revoke": `{"reason": "superseded"}`,
}

var fillPath = strings.NewReplacer("/members/{name}", "/members/alpha", "{serial}", "4f2a", "/tile/{path}", "/tile/0/000", "{index}", "7", "{id}", approvalID, "{name}", "issuing")

func (f *fixture) bodyOf(path string) string {
	if path == "/api/v1/certificates" {
		return f.issueBody()
	}
	if b, ok := bodies[path]; ok {
		return b
	}
	return "{}"
}

// WEB-06: who may do what, over every route of the table, is the golden file. With
// UPDATE_GOLDEN=1 it is written anew: then read the difference.
func TestAttack_WEB_06(t *testing.T) {
	f := newFixture(t)
	who := []struct{ name, token string }{{"anonymous", ""}, {"unknown token", "expired"}, {"admin token", token}}
	for _, r := range admin.Roles {
		who = append(who, struct{ name, token string }{string(r), "role:" + string(r)})
	}
	var b strings.Builder
	for _, r := range f.Routes() {
		if r.Permission == "" {
			t.Errorf("%s %s has no permission", r.Method, r.Path)
		}
		if r.Public {
			fmt.Fprintf(&b, "%s %s: everybody\n", r.Method, r.Path)
			continue
		}
		var may []string
		for _, w := range who {
			c := call{method: r.Method, path: fillPath.Replace(r.Path)}
			if r.Method == "POST" {
				c.body = f.bodyOf(r.Path)
			}
			status, problem := f.as(w.token, c)
			switch {
			case status == 401 && (w.token == "" || w.token == "expired"):
			case status == 403 && problem == "forbidden":
			case status == 401 || status >= 500:
				t.Errorf("%s %s by %s: %d %s", r.Method, r.Path, w.name, status, problem)
			default:
				may = append(may, w.name)
			}
		}
		fmt.Fprintf(&b, "%s %s: %s: %s\n", r.Method, r.Path, r.Permission, strings.Join(may, ", "))
	}
	const golden = "testdata/roles.golden"
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want := string(must(os.ReadFile(golden)))
	for _, line := range difference(want, b.String()) {
		t.Errorf("the role matrix is not the golden one: %s", line)
	}
}

func difference(want, got string) (out []string) {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for _, l := range w {
		if !slices.Contains(g, l) {
			out = append(out, "- "+l)
		}
	}
	for _, l := range g {
		if !slices.Contains(w, l) {
			out = append(out, "+ "+l)
		}
	}
	return out
}

// WEB-05: whatever belongs to others is not there, or refused, over every route that has a
// name in its path; lists leave it out.
func TestAttack_WEB_05(t *testing.T) {
	f := newFixture(t)
	others := []string{
		"role:registration-officer,issuer=other", "role:registration-officer,profile=other", "role:registration-officer,issuer=issuing,profile=other",
		"role:signer,key=other", "role:crypto-officer,key=other", "role:administrator,key=other", "role:auditor,issuer=other",
	}
	for _, r := range f.Routes() {
		if r.Public || r.Permission == "somebody" {
			continue
		}
		for _, tok := range others {
			c := call{method: r.Method, path: fillPath.Replace(r.Path)}
			if r.Method == "POST" {
				c.body = f.bodyOf(r.Path)
			}
			status, problem := f.as(tok, c)
			list := r.Method == "GET" && (r.Path == "/api/v1/certificates" || r.Path == "/api/v1/keys")
			if !(status == 404 || status == 403 && problem == "forbidden") && !(list && status == 200) {
				t.Errorf("ATTACK WORKED: %s %s with %s: %d %s", r.Method, r.Path, tok, status, problem)
			}
		}
	}
	for _, path := range []string{"/api/v1/certificates", "/api/v1/keys"} {
		for _, tok := range []string{"role:registration-officer,issuer=other", "role:crypto-officer,key=other"} {
			w := f.do(call{path: path, header: map[string]string{"Authorization": "Bearer " + tok}})
			if body := w.Body.String(); w.Code == 200 && (strings.Contains(body, "4f2a") || strings.Contains(body, `"issuing"`)) {
				t.Errorf("ATTACK WORKED: %s with %s lists %s", path, tok, body)
			}
		}
	}
	// What is hidden looks like what is not there.
	hidden := f.do(call{path: certs + "/4f2a", header: map[string]string{"Authorization": "Bearer role:registration-officer,issuer=other"}})
	missing := f.do(call{path: certs + "/4f2c", header: map[string]string{"Authorization": "Bearer role:registration-officer,issuer=other"}})
	strip := func(s string) string {
		var p map[string]any
		json.Unmarshal([]byte(s), &p)
		delete(p, "instance")
		return strings.ReplaceAll(strings.ReplaceAll(fmt.Sprint(p), "4f2a", "X"), "4f2c", "X")
	}
	if hidden.Code != missing.Code || strip(hidden.Body.String()) != strip(missing.Body.String()) {
		t.Errorf("hidden: %s\nmissing: %s", hidden.Body, missing.Body)
	}
	// And the own ones are there.
	for path, tok := range map[string]string{certs + "/4f2a": "role:registration-officer,issuer=issuing,profile=tls-server", "/api/v1/keys/issuing": "role:crypto-officer,key=issuing"} {
		if status, problem := f.as(tok, call{path: path}); status != 200 {
			t.Errorf("%s with %s: %d %s", path, tok, status, problem)
		}
	}
}

// WEB-07: nobody gives themselves anything by members that a request does not have.
func TestAttack_WEB_07_EveryRoute(t *testing.T) {
	f := newFixture(t)
	for _, r := range f.Routes() {
		if r.Method != "POST" || r.Public || strings.HasSuffix(r.Path, "/cancel") || strings.HasSuffix(r.Path, "/withdraw") {
			continue // those two take no body
		}
		for _, member := range []string{"role", "approved", "is_admin", "owner", "permissions", "state", "requester", "by", "leaf"} {
			w := f.do(call{method: "POST", path: fillPath.Replace(r.Path), body: `{"` + member + `": true}`})
			if p := decode(t, w); w.Code != 400 || p["field"] != "/"+member {
				t.Errorf("ATTACK WORKED: %s with %s: %d %v", r.Path, member, w.Code, p)
			}
		}
	}
	// A machine asks as a machine, whatever it says.
	f.do(call{method: "POST", path: "/api/v1/approvals", body: `{"action": "generate-key", "parameters": {"name": "k1"}}`, header: map[string]string{"Authorization": "Bearer role:crypto-officer"}})
	if asked := f.cfg.Approvals.(*fakeBoard).asked; asked.Requester != "machine:robot/officer:ada" || asked.Officer != "" {
		t.Errorf("it asked as %q", asked.Requester)
	}
}

// The admin token ends when somebody has better access; what it made is not asked here.
func TestAdminTokenOver(t *testing.T) {
	f := newFixture(t, func(c *web.Config) { c.TokenOver = func(context.Context) bool { return true } })
	p := wantProblem(t, f.do(call{path: certs}), 401, "unauthorized")
	if !strings.Contains(p.Detail, "administrator is enrolled") || !strings.Contains(p.Detail, "/console/") {
		t.Errorf("%v", p.Detail)
	}
	if status, _ := f.as("role:auditor", call{path: certs}); status != 200 {
		t.Errorf("a machine: %d", status)
	}
}

func TestWhoami(t *testing.T) {
	f := newFixture(t)
	m := decode(t, f.do(call{path: "/api/v1/whoami", header: map[string]string{"Authorization": "Bearer role:signer,key=release+auditor"}}))
	if m["requester"] != "machine:robot/officer:ada" || fmt.Sprint(m["roles"]) != "[signer,key=release auditor]" || !strings.Contains(fmt.Sprint(m["permissions"]), "documents.sign") {
		t.Errorf("%v", m)
	}
}

// At the admin door nothing but a verified client certificate says who asks.
func TestAttack_WEB_10_AdminDoor(t *testing.T) {
	f := newFixture(t)
	for name, h := range map[string]map[string]string{
		"nothing": {"Authorization": ""}, "the admin token": {"Authorization": "Bearer " + token}, "a machine's token": {"Authorization": "Bearer role:administrator"},
		"a header": {"Authorization": "", "X-SSL-Client-Cert": "x", "X-SSL-Client-Verify": "SUCCESS", "X-Forwarded-Client-Cert": "Hash=00", "X-Forwarded-For": "127.0.0.1"},
	} {
		for _, r := range f.Routes() {
			if r.Public || !r.Admin {
				continue
			}
			w := f.atAdmin(call{method: r.Method, path: fillPath.Replace(r.Path), body: "{}", header: h})
			if w.Code != 401 {
				t.Errorf("ATTACK WORKED: %s %s with %s: %d %s", r.Method, r.Path, name, w.Code, w.Body)
			}
		}
	}
	for _, path := range []string{"/console/", "/acme/directory", "/", "/roots.pem"} {
		if w := f.atAdmin(call{path: path}); w.Code != 404 {
			t.Errorf("%s at the admin door: %d", path, w.Code)
		}
	}
}
