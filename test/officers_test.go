package test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The roster of the officers changes by the officers alone: who comes votes, who leaves
// has no vote any more, what waited is dead, and everything of it verifies offline.
func TestOfficers(t *testing.T) {
	s := newSite(t)
	s.start()
	line := commandLine{t, s}
	key := filepath.Join(t.TempDir(), "dan.pem")
	must(t, nil, chancery, "officer", "new", "dan", "--out", key)
	approve := func(id string, names ...string) {
		t.Helper()
		for _, name := range names {
			file := filepath.Join(s.dir, "officers", name+".pem")
			if name == "dan" {
				file = key
			}
			line.run(0, "approve", "sign", id, "--officer", name, "--key", file)
		}
	}
	ask := func(args ...string) string {
		t.Helper()
		id, _, _ := strings.Cut(line.run(5, args...), " ")
		return id
	}
	state := func(id, want string) {
		t.Helper()
		eventually(t, func() bool { return strings.Contains(line.run(0, "approve", "show", id), ", "+want) })
	}
	dead := ask("key", "generate", "dead")
	approve(dead, "officer-1")

	add := ask("officer", "add", "dan", "--public", key+".pub", "--role", "crypto-officer", "--role", "administrator", "--reason", "the new colleague")
	if out := line.run(0, "approve", "show", add); !strings.Contains(out, "roles of officer dan: none → crypto-officer administrator") || !strings.Contains(out, "fingerprint ") || !strings.Contains(out, "the new colleague") {
		t.Errorf("the officers see:\n%s", out)
	}
	approve(add, "officer-1", "officer-2")
	state(add, "done")
	if out := line.run(0, "officer", "list"); !strings.Contains(out, "roster version 1") || !strings.Contains(out, "dan") {
		t.Errorf("%s", out)
	}
	state(dead, "cancelled")

	// Two of three now, in two groups that must both agree.
	groups := ask("officer", "quorum", "--approvals", "2", "--group", "a=1:officer-1,officer-2", "--group", "b=1:dan")
	approve(groups, "officer-1", "dan")
	state(groups, "done")
	made := ask("key", "generate", "made", "--reason", "contracts of 2027")
	if out := line.run(0, "approve", "show", made); !strings.Contains(out, "reason     contracts of 2027") {
		t.Errorf("the officers do not see why:\n%s", out)
	}
	approve(made, "officer-1", "officer-2")
	if out := line.run(0, "approve", "show", made); !strings.Contains(out, ", pending") {
		t.Errorf("group b was not asked:\n%s", out)
	}
	approve(made, "dan")
	state(made, "done")

	// officer-2 leaves; what they signed before counts no more, nor does their key.
	waits := ask("key", "generate", "waits")
	approve(waits, "officer-2")
	leave := ask("officer", "change", "--file", without(t, line, "officer-2"))
	approve(leave, "officer-1", "dan")
	state(leave, "done")
	state(waits, "cancelled")
	again := ask("key", "generate", "again")
	line.run(4, "approve", "sign", again, "--officer", "officer-2", "--key", filepath.Join(s.dir, "officers", "officer-2.pem"))
	approve(again, "officer-1", "dan")
	state(again, "done")
	if out := line.run(2, "officer", "quorum", "--approvals", "1"); !strings.Contains(out, "quorum of 1") {
		t.Errorf("a policy of one: %s", out)
	}

	// Whoever starts anew, or verifies offline, comes to the same.
	if rep := s.auditVerify(); rep.Grants != 5 {
		t.Errorf("%d grants", rep.Grants)
	}
	s.kill()
	s.start()
	if out := line.run(0, "officer", "list"); !strings.Contains(out, "roster version 3") || strings.Contains(out, "officer-2") {
		t.Errorf("after a restart:\n%s", out)
	}
	s.auditVerify()
}

// without writes the roster in force without an officer to a file.
func without(t *testing.T, line commandLine, name string) string {
	t.Helper()
	var v struct{ Roster map[string]any }
	if err := json.Unmarshal([]byte(line.run(0, "officer", "list", "--json")), &v); err != nil {
		t.Fatal(err)
	}
	var stay []any
	for _, o := range v.Roster["officers"].([]any) {
		if o.(map[string]any)["name"] != name {
			stay = append(stay, o)
		}
	}
	v.Roster["officers"] = stay
	for _, g := range v.Roster["groups"].([]any) {
		g := g.(map[string]any)
		var members []any
		for _, m := range g["members"].([]any) {
			if m != name {
				members = append(members, m)
			}
		}
		g["members"] = members
	}
	b, err := json.Marshal(v.Roster)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "roster.json")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// A token can do what it is for, until it is revoked.
func TestMachineToken(t *testing.T) {
	s := newSite(t)
	s.start()
	line := commandLine{t, s}
	dir := t.TempDir()
	file, doc := filepath.Join(dir, "token"), filepath.Join(dir, "doc")
	if err := os.WriteFile(doc, []byte("a document"), 0o600); err != nil {
		t.Fatal(err)
	}
	line.run(0, "machine", "new-token", "build", "--role", "signer,key=document", "--out", file)
	with := []string{"--server", s.url(""), "--roots", filepath.Join(s.dir, "root.pem"), "--token-file", file}
	as := func(want int, args ...string) string {
		t.Helper()
		out, code := run(t, nil, chancery, append(args, with...)...)
		if code != want {
			t.Fatalf("chancery %s: exit code %d, want %d\n%s", strings.Join(args, " "), code, want, out)
		}
		return out
	}
	if out := as(0, "whoami"); !strings.Contains(out, "machine:build/admin-token") || !strings.Contains(out, "signer,key=document") {
		t.Errorf("%s", out)
	}
	as(0, "sign", doc)
	as(4, "sign", doc, "--key", "other")
	as(4, "key", "list")
	as(4, "machine", "new-token", "more", "--role", "signer")
	var list struct {
		Machines []struct {
			ID       string
			LastUsed *time.Time `json:"last_used"`
		}
	}
	if _, err := s.api(s.client(), s.token(), "GET", "/api/v1/machines", nil, &list); err != nil || len(list.Machines) != 1 || list.Machines[0].LastUsed == nil {
		t.Fatalf("%+v %v", list, err)
	}
	line.run(0, "machine", "revoke", list.Machines[0].ID, "--reason", "test")
	as(4, "sign", doc)
	if out := line.run(0, "machine", "list"); !strings.Contains(out, "revoked") {
		t.Errorf("%s", out)
	}
	s.auditVerify()
}

// WEB-10: at the admin door a client certificate of this CA comes in, by its issuer and its
// key, as long as it is good; nothing else does.
func TestAttack_WEB_10_ClientCertificates(t *testing.T) {
	s := newSite(t)
	addr := freeAddr(t)
	f, err := os.OpenFile(s.overlayFile, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(f, "listen:\n  admin: "+addr+"\n")
	f.Close()
	s.start()
	line := commandLine{t, s}
	dir := t.TempDir()
	save := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	client, token := s.client(), s.token()
	// certify has this CA certify a new key.
	certify := func(name, profile string) (pair tls.Certificate, serial, certFile, keyFile string) {
		t.Helper()
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{name}}, key)
		if err != nil {
			t.Fatal(err)
		}
		var out issued
		csr := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
		if _, err := s.api(client, token, "POST", "/api/v1/certificates", map[string]string{"csr": csr, "profile": profile}, &out); err != nil {
			t.Fatal(err)
		}
		pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		certPEM, keyPEM := []byte(out.Certificate+out.Chain), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
		if pair, err = tls.X509KeyPair(certPEM, keyPEM); err != nil {
			t.Fatal(err)
		}
		return pair, out.Serial, save(name+".pem", certPEM), save(name+".key", keyPEM)
	}
	pair, serial, certFile, keyFile := certify("robot.example.lab", "tls-client")
	only := save("leaf.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]}))
	line.run(0, "machine", "add-certificate", "robot", "--cert", only, "--role", "auditor")
	url := "https://localhost" + port(addr)
	with := []string{"--server", url, "--roots", filepath.Join(s.dir, "root.pem"), "--client-cert", certFile, "--client-key", keyFile}
	if out, code := run(t, nil, chancery, append([]string{"key", "list"}, with...)...); code != 0 || !strings.Contains(out, "issuing") {
		t.Fatalf("%d %s", code, out)
	}
	if out, code := run(t, nil, chancery, append([]string{"key", "disable", "issuing", "--reason", "x"}, with...)...); code != 4 {
		t.Errorf("an auditor changes something: %d %s", code, out)
	}

	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(s.read("root.pem")))
	// ask sends one request with a certificate; -1: the handshake failed.
	ask := func(pair *tls.Certificate, header http.Header) int {
		t.Helper()
		cfg := &tls.Config{RootCAs: roots, ClientSessionCache: tls.NewLRUClientSessionCache(4)}
		if pair != nil { // sent whatever the server says that it takes
			cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair, nil }
		}
		c := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: cfg}}
		defer c.CloseIdleConnections()
		req, err := http.NewRequest("GET", url+"/api/v1/keys", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header = header
		resp, err := c.Do(req)
		if err != nil {
			return -1
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	if got := ask(&pair, nil); got != 200 {
		t.Fatalf("the good one: %d", got)
	}
	alone := tls.Certificate{Certificate: pair.Certificate[:1], PrivateKey: pair.PrivateKey}
	if got := ask(&alone, nil); got != 200 {
		t.Errorf("without its issuer's: %d", got)
	}
	// A CA of our own, with the same names; and a certificate that signs itself.
	self := func(template *x509.Certificate, parent *x509.Certificate, signer *ecdsa.PrivateKey) (tls.Certificate, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if signer == nil {
			parent, signer = template, key
		}
		template.SerialNumber, template.NotBefore, template.NotAfter = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
		if err != nil {
			t.Fatal(err)
		}
		return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, key
	}
	good, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	chain, err := x509.ParseCertificate(pair.Certificate[1])
	if err != nil {
		t.Fatal(err)
	}
	otherCA := &x509.Certificate{Subject: chain.Subject, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	caPair, caKey := self(otherCA, nil, nil)
	leaf := func() *x509.Certificate {
		return &x509.Certificate{Subject: good.Subject, DNSNames: good.DNSNames, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, KeyUsage: x509.KeyUsageDigitalSignature}
	}
	foreign, _ := self(leaf(), otherCA, caKey)
	foreign.Certificate = append(foreign.Certificate, caPair.Certificate[0])
	selfSigned, _ := self(&x509.Certificate{Subject: pkix.Name{CommonName: "robot"}, DNSNames: good.DNSNames, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, nil, nil)
	sameName, _, _, _ := certify("robot.example.lab", "tls-client")
	server, _, _, _ := certify("server.example.lab", "tls-server")
	wrongKey := tls.Certificate{Certificate: pair.Certificate, PrivateKey: sameName.PrivateKey}
	for name, c := range map[string]struct {
		pair   *tls.Certificate
		header http.Header
	}{
		"no certificate":              {pair: nil},
		"no certificate, but headers": {pair: nil, header: http.Header{"X-Ssl-Client-Cert": {string(must(t, nil, "cat", only))}, "X-Forwarded-Client-Cert": {"Subject=\"CN=robot\""}}},
		"of another CA of that name":  {pair: &foreign},
		"signed by itself":            {pair: &selfSigned},
		"same names, another key":     {pair: &sameName},
		"for servers":                 {pair: &server},
		"without the key":             {pair: &wrongKey},
		"with a token besides":        {pair: &pair, header: http.Header{"Authorization": {"Bearer " + token}}},
		"a token alone":               {pair: &sameName, header: http.Header{"Authorization": {"Bearer " + token}}},
	} {
		if got := ask(c.pair, c.header); got != -1 && got != 401 {
			t.Errorf("ATTACK WORKED: %s: %d", name, got)
		}
	}
	if out, code := run(t, nil, chancery, "machine", "add-certificate", "web", "--cert", save("server", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate[0]})), "--role", "auditor", "--dir", s.dir); code == 0 {
		t.Errorf("a server's certificate was let in: %s", out)
	}

	// Revoked, it ends on the connection that is open.
	cfg := &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, ClientSessionCache: tls.NewLRUClientSessionCache(4)}
	open := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: cfg}}
	get := func() int {
		resp, err := open.Get(url + "/api/v1/keys")
		if err != nil {
			return -1
		}
		defer resp.Body.Close()
		io.Copy(io.Discard, resp.Body)
		return resp.StatusCode
	}
	if got := get(); got != 200 {
		t.Fatalf("before: %d", got)
	}
	if _, err := s.api(client, token, "POST", "/api/v1/certificates/"+serial+"/revoke", map[string]string{"reason": "superseded"}, nil); err != nil {
		t.Fatal(err)
	}
	if got := get(); got != 401 {
		t.Errorf("ATTACK WORKED: revoked, on an open connection: %d", got)
	}
	open.CloseIdleConnections()
	if got := get(); got != 401 && got != -1 {
		t.Errorf("ATTACK WORKED: revoked, resumed: %d", got)
	}
	if got := ask(&pair, nil); got != 401 && got != -1 {
		t.Errorf("ATTACK WORKED: revoked: %d", got)
	}
}
