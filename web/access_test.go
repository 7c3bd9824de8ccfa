package web_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/admin"
	"chancery/ca"
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
	// Nor does a revocation tell it, whatever is sent with it.
	for _, body := range []string{`{"reason": "superseded"}`, `{"reason": "superseded", "certificate": "x"}`} {
		var answers []string
		for _, serial := range []string{"4f2a", "4f2c"} {
			w := f.do(call{method: "POST", path: certs + "/" + serial + "/revoke", body: body, header: map[string]string{"Authorization": "Bearer role:registration-officer,issuer=other"}})
			answers = append(answers, fmt.Sprint(w.Code, strip(w.Body.String())))
		}
		if answers[0] != answers[1] {
			t.Errorf("ATTACK WORKED: revoking what is hidden: %s; what is missing: %s", answers[0], answers[1])
		}
	}
	// And the own ones are there.
	for path, tok := range map[string]string{certs + "/4f2a": "role:registration-officer,issuer=issuing,profile=tls-server", "/api/v1/keys/issuing": "role:crypto-officer,key=issuing"} {
		if status, problem := f.as(tok, call{path: path}); status != 200 {
			t.Errorf("%s with %s: %d %s", path, tok, status, problem)
		}
	}
}

// A list of few among many has full pages, and ends.
func TestListOfFewAmongMany(t *testing.T) {
	f := newFixture(t)
	var all []*ca.Certificate
	mine := 0
	for i := range 3000 {
		one := &ca.Certificate{Serial: fmt.Sprintf("%04x", i+0x1000), Issuer: "issuing", Profile: "tls-server", Done: uint64(9000 - i)}
		if i%700 == 1 {
			one.Profile = "tls-client"
			mine++
		}
		all = append(all, one)
	}
	f.ca.newest = all
	path, pages, got := certs+"?limit=2", 0, map[string]bool{}
	for path != "" {
		w := f.do(call{path: path, header: map[string]string{"Authorization": "Bearer role:registration-officer,profile=tls-client"}})
		var p struct {
			Certificates []struct{ Serial, Profile string }
			Next         string
		}
		if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || w.Code != 200 {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		for _, c := range p.Certificates {
			if got[c.Serial] || c.Profile != "tls-client" {
				t.Errorf("%v, twice or of others", c)
			}
			got[c.Serial] = true
		}
		if len(p.Certificates) != 2 && p.Next != "" {
			t.Errorf("a short page of %d that is not the last", len(p.Certificates))
		}
		path = strings.TrimPrefix(p.Next, publicURL)
		if pages++; pages > 10 {
			t.Fatal("it does not end")
		}
	}
	if len(got) != mine {
		t.Errorf("%d certificates of %d", len(got), mine)
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
	if !strings.Contains(p.Detail, "officer is enrolled") || !strings.Contains(p.Detail, "/console/") {
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

// clients is a CA that has issued one client certificate, and a machine that it lets in.
type clients struct {
	*fakeCA
	stored map[string]*ca.Certificate // by DER
}

func (c clients) CertificateByDER(ctx context.Context, der []byte) (*ca.Certificate, error) {
	if found, ok := c.stored[string(der)]; ok {
		return found, nil
	}
	return c.fakeCA.CertificateByDER(ctx, der)
}

type oneCertificate struct {
	fakeMachines
	issuer, spki [32]byte
}

func (m oneCertificate) ByCertificate(_ context.Context, issuer, spki [32]byte) (admin.Principal, error) {
	if issuer != m.issuer || spki != m.spki {
		return admin.Principal{}, admin.ErrUnknownMachine
	}
	return admin.Principal{Kind: admin.ByMachine, Name: "robot", Owner: "officer:ada", Assignments: []admin.Assignment{{Role: admin.Auditor}}}, nil
}

// WEB-10: each request at the admin door asks anew whether the certificate is good, however
// the handshake ended: it may be long ago.
func TestAttack_WEB_10_EachRequest(t *testing.T) {
	issuer := must(x509.ParseCertificate(pki().issuing))
	root := must(x509.ParseCertificate(pki().root))
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	parentKey := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	parent := &x509.Certificate{Subject: issuer.Subject, RawSubject: issuer.RawSubject}
	client := func(key *ecdsa.PrivateKey, edit func(*x509.Certificate)) *x509.Certificate {
		c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "robot"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
		if edit != nil {
			edit(c)
		}
		return must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, c, parent, key.Public(), parentKey))))
	}
	other := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	good := client(key, nil)
	stored := func(c *x509.Certificate) *ca.Certificate { return &ca.Certificate{DER: c.Raw, Issuer: "issuing"} }
	revoked := &ca.Revocation{At: time.Now()}
	for name, c := range map[string]struct {
		leaf   *x509.Certificate
		issuer *x509.Certificate
		edit   func(leaf, issuer *ca.Certificate)
		absent bool // from the CA's storage
		chain  bool // none was verified
		status int
	}{
		"good":                      {leaf: good, status: 200},
		"revoked":                   {leaf: good, edit: func(l, _ *ca.Certificate) { l.Revoked = revoked }, status: 401},
		"its issuer revoked":        {leaf: good, edit: func(_, i *ca.Certificate) { i.Revoked = revoked }, status: 401},
		"of a ledger before":        {leaf: good, edit: func(l, _ *ca.Certificate) { l.Predecessor = true }, status: 401},
		"never issued":              {leaf: good, absent: true, status: 401},
		"not verified":              {leaf: good, chain: true, status: 401},
		"of another issuer":         {leaf: good, issuer: root, status: 401},
		"same name, another key":    {leaf: client(other, nil), status: 401},
		"expired":                   {leaf: client(key, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), status: 401},
		"not yet valid":             {leaf: client(key, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }), status: 401},
		"for servers":               {leaf: client(key, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), status: 401},
		"for nothing in particular": {leaf: client(key, func(c *x509.Certificate) { c.ExtKeyUsage = nil }), status: 401},
		"for anything":              {leaf: client(key, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }), status: 401},
		"of a CA":                   {leaf: client(key, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }), status: 401},
	} {
		if c.issuer == nil {
			c.issuer = issuer
		}
		have := clients{stored: map[string]*ca.Certificate{string(issuer.Raw): stored(issuer)}}
		leaf := stored(c.leaf)
		if c.edit != nil {
			c.edit(leaf, have.stored[string(issuer.Raw)])
		}
		if !c.absent {
			have.stored[string(c.leaf.Raw)] = leaf
		}
		f := newFixture(t, func(cfg *web.Config) {
			have.fakeCA = cfg.CA.(*fakeCA)
			cfg.CA = have
			cfg.Machines = oneCertificate{cfg.Machines.(fakeMachines), sha256.Sum256(issuer.RawSubjectPublicKeyInfo), sha256.Sum256(good.RawSubjectPublicKeyInfo)}
		})
		r := httptest.NewRequest("GET", publicURL+"/api/v1/keys", nil)
		r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{c.leaf}, DidResume: true}
		if !c.chain {
			r.TLS.VerifiedChains = [][]*x509.Certificate{{c.leaf, c.issuer, root}}
		}
		w := httptest.NewRecorder()
		f.Admin().ServeHTTP(w, r)
		if w.Code != c.status {
			t.Errorf("ATTACK WORKED: %s: %d, want %d: %s", name, w.Code, c.status, w.Body)
		}
		// At the other door a client certificate is nobody.
		if w := httptest.NewRecorder(); true {
			if f.HTTPS().ServeHTTP(w, r); w.Code != 401 {
				t.Errorf("ATTACK WORKED: %s, at the HTTPS door: %d", name, w.Code)
			}
		}
	}
}

// signedRequest is the header of a request that an officer's CLI key signed; edit may change
// what is said.
func signedRequest(c call, edit func(said map[string]any, host, method, path *string, at *time.Time, body *[]byte)) string {
	host, method, path, at, body := strings.TrimPrefix(publicURL, "https://"), c.method, c.path, time.Now(), []byte(c.body)
	if method == "" {
		method = "GET"
	}
	var nonce [16]byte
	rand.Read(nonce[:])
	said := map[string]any{"officer": "cyd", "nonce": nonce[:]}
	if edit != nil {
		edit(said, &host, &method, &path, &at, &body)
	}
	if _, ok := said["time"]; !ok {
		said["time"] = at.Unix()
	}
	if n, ok := said["nonce"].([]byte); ok && len(n) == 16 {
		nonce = [16]byte(n)
	}
	if _, ok := said["signature"]; !ok {
		said["signature"] = must(cliKey().SignRequest(admin.RequestText(host, method, path, at, nonce, body)))
	}
	return "Officer " + base64.RawURLEncoding.EncodeToString(must(json.Marshal(said)))
}

// WEB-09: an officer comes with a CLI key alone, by requests that are signed whole, for this
// host, now, and once.
func TestAttack_WEB_09_SignedRequests(t *testing.T) {
	f := newFixture(t)
	ask := func(c call, header string) (int, string) {
		c.header = map[string]string{"Authorization": header}
		w := f.do(c)
		return w.Code, w.Body.String()
	}
	drain := call{method: "POST", path: "/api/v1/hsm/members/alpha/drain", body: `{"reason": "maintenance", "force": true}`}
	for _, c := range []call{{path: "/api/v1/whoami"}, {path: "/api/v1/approvals?state=pending"}, drain} {
		if code, body := ask(c, signedRequest(c, nil)); code != 200 || c.path == "/api/v1/whoami" && !strings.Contains(body, `"officer:cyd"`) {
			t.Errorf("%s: %d %s", c.path, code, body)
		}
	}
	if code, _ := ask(call{path: "/api/v1/machines"}, signedRequest(call{path: "/api/v1/machines"}, nil)); code != 200 {
		t.Errorf("a crypto officer reads machines: %d", code)
	}
	if code, _ := ask(call{method: "POST", path: "/api/v1/ledger/erase", body: "{}"}, signedRequest(call{method: "POST", path: "/api/v1/ledger/erase", body: "{}"}, nil)); code != 403 {
		t.Errorf("ATTACK WORKED: a crypto officer erases: %d", code)
	}
	type edit = func(said map[string]any, host, method, path *string, at *time.Time, body *[]byte)
	for name, e := range map[string]edit{
		"another body": func(_ map[string]any, _, _, _ *string, _ *time.Time, body *[]byte) {
			*body = []byte(`{"reason": "x", "force": true}`)
		},
		"no body": func(_ map[string]any, _, _, _ *string, _ *time.Time, body *[]byte) { *body = nil },
		"another path": func(_ map[string]any, _, _, path *string, _ *time.Time, _ *[]byte) {
			*path = "/api/v1/hsm/members/beta/drain"
		},
		"another method":    func(_ map[string]any, _, method, _ *string, _ *time.Time, _ *[]byte) { *method = "GET" },
		"another host":      func(_ map[string]any, host, _, _ *string, _ *time.Time, _ *[]byte) { *host = "evil.example" },
		"old":               func(_ map[string]any, _, _, _ *string, at *time.Time, _ *[]byte) { *at = at.Add(-6 * time.Minute) },
		"from the future":   func(_ map[string]any, _, _, _ *string, at *time.Time, _ *[]byte) { *at = at.Add(6 * time.Minute) },
		"another time said": func(said map[string]any, _, _, _ *string, at *time.Time, _ *[]byte) { said["time"] = at.Unix() + 1 },
		"another officer":   func(said map[string]any, _, _, _ *string, _ *time.Time, _ *[]byte) { said["officer"] = "ada" },
		"one without key":   func(said map[string]any, _, _, _ *string, _ *time.Time, _ *[]byte) { said["officer"] = "bob" },
		"nobody":            func(said map[string]any, _, _, _ *string, _ *time.Time, _ *[]byte) { said["officer"] = "eve" },
		"a short nonce":     func(said map[string]any, _, _, _ *string, _ *time.Time, _ *[]byte) { said["nonce"] = []byte{1} },
		"no signature":      func(said map[string]any, _, _, _ *string, _ *time.Time, _ *[]byte) { said["signature"] = []byte{} },
		"more said": func(said map[string]any, _, _, _ *string, _ *time.Time, _ *[]byte) {
			said["roles"] = []string{"administrator"}
		},
		"a vote": func(said map[string]any, _, _, _ *string, _ *time.Time, _ *[]byte) {
			said["signature"] = must(cliKey().SignVote(admin.Approve, []byte("x")))
		},
	} {
		if code, body := ask(drain, signedRequest(drain, e)); code != 401 {
			t.Errorf("ATTACK WORKED: %s: %d %s", name, code, body)
		}
	}
	once := signedRequest(drain, nil)
	ask(drain, once)
	if code, _ := ask(drain, once); code != 401 {
		t.Errorf("ATTACK WORKED: sent twice: %d", code)
	}
	for _, h := range []string{"Officer", "Officer ", "Officer !", "Officer e30", "Officer " + strings.Repeat("A", 8192)} {
		if code, _ := ask(drain, h); code != 401 {
			t.Errorf("ATTACK WORKED: %.20q: %d", h, code)
		}
	}
	w := f.atAdmin(call{path: "/api/v1/whoami", header: map[string]string{"Authorization": signedRequest(call{path: "/api/v1/whoami"}, nil)}})
	if w.Code != 401 {
		t.Errorf("ATTACK WORKED: at the admin door: %d", w.Code)
	}
	long := call{method: "POST", path: drain.path, body: `{"reason": "` + strings.Repeat("x", 70<<10) + `"}`}
	if code, _ := ask(long, signedRequest(long, nil)); code != 413 {
		t.Errorf("a long body: %d", code)
	}
}
