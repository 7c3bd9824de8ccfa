package test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"chancery/admin"
	"chancery/test/pgcluster"
)

// production is a CA as a distribution package installs it: a scratch root, tokens
// that the operator made, init, serve.
type production struct {
	t         testing.TB
	root      string // where the package was unpacked
	dir       string // state of this CA
	config    string
	bin       string
	database  string
	https     string
	http      string
	challenge int
}

// unpack builds the package, has dpkg install it into a scratch root and makes two tokens.
func unpack(t testing.TB, database func(dir string) string) *production {
	t.Helper()
	must(t, nil, "make", "-s", "-C", "..", "deb")
	p := &production{t: t, root: t.TempDir(), dir: t.TempDir(), https: freeAddr(t), http: freeAddr(t), challenge: freePort(t)}
	for _, d := range []string{"var/lib/dpkg/info", "var/lib/dpkg/updates"} {
		if err := os.MkdirAll(filepath.Join(p.root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(p.root, "var/lib/dpkg/status"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	must(t, nil, "dpkg", "--root="+p.root, "--force-depends", "--force-script-chrootless", "--force-not-root", "-i", "../bin/chancery.deb")
	p.bin = filepath.Join(p.root, "usr/bin/chancery")
	p.database = database(p.dir)
	p.tokens()
	p.configure(true)
	return p
}

func (p *production) tokens() {
	for _, m := range []string{"alpha", "beta"} {
		base := filepath.Join(p.dir, m)
		p.write(filepath.Join(m, "softhsm2.conf"), "directories.tokendir = "+filepath.Join(base, "tokens")+"\n")
		p.write(filepath.Join(m, "pin"), "user-"+m+"\n")
		p.write(filepath.Join(m, "so-pin"), "officer-"+m+"\n")
		if err := os.MkdirAll(filepath.Join(base, "tokens"), 0o700); err != nil {
			p.t.Fatal(err)
		}
		must(p.t, []string{"SOFTHSM2_CONF=" + filepath.Join(base, "softhsm2.conf")}, "softhsm2-util", "--init-token", "--free", "--label", "ca-"+m, "--pin", "user-"+m, "--so-pin", "officer-"+m)
	}
}

func (p *production) write(name, text string) string {
	p.t.Helper()
	path := filepath.Join(p.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
	return path
}

// configure writes the configuration, with or without the SO PINs of the ceremony.
func (p *production) configure(ceremony bool) {
	_, port, _ := net.SplitHostPort(p.https)
	_, hport, _ := net.SplitHostPort(p.http)
	var b strings.Builder
	fmt.Fprintf(&b, "listen:\n  https: %s\n  http: %s\npublic_url: https://localhost:%s\npublic_http_url: http://localhost:%s\nnode_id: ca-1\ndatabase: %s\nledger:\n  journal: %s\n  anchors: [file:%s]\nhsm:\n  members:\n",
		p.https, p.http, port, hport, p.database, filepath.Join(p.dir, "journal", "intents"), filepath.Join(p.dir, "journal", "checkpoints"))
	for _, m := range []string{"alpha", "beta"} {
		fmt.Fprintf(&b, "    - name: %s\n      uri: pkcs11:module-path=/usr/lib/softhsm/libsofthsm2.so;token=ca-%s\n      pin: file:%s\n      env: {SOFTHSM2_CONF: %s}\n",
			m, m, filepath.Join(p.dir, m, "pin"), filepath.Join(p.dir, m, "softhsm2.conf"))
		if ceremony {
			fmt.Fprintf(&b, "      so_pin: file:%s\n", filepath.Join(p.dir, m, "so-pin"))
		}
	}
	fmt.Fprintf(&b, "acme:\n  validation:\n    http_port: %d\n    allow_networks: [127.0.0.0/8]\n", p.challenge)
	p.config = p.write("chancery.yaml", b.String())
}

func (p *production) init() string {
	p.t.Helper()
	args := []string{"init", "--config", p.config, "--admin-token", filepath.Join(p.dir, "admin.token")}
	for _, o := range []string{"alice", "bob"} {
		key := filepath.Join(p.dir, o+".pem")
		if _, err := os.Stat(key); err != nil {
			must(p.t, nil, p.bin, "officer", "new", o, "--out", key)
		}
		args = append(args, "--officer", o+"="+key+".pub")
	}
	return must(p.t, nil, p.bin, args...)
}

// serve starts the server as systemd would, waits for its readiness message and
// gives it the shape of a site.
func (p *production) serve() *site {
	p.t.Helper()
	s := &site{t: p.t, dir: p.dir, https: p.https, http: p.http, challenge: p.challenge, log: &lockedBuffer{}}
	socket := filepath.Join(p.t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		p.t.Fatal(err)
	}
	defer l.Close()
	s.cmd = exec.Command(p.bin, "serve", "--config", p.config)
	s.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+socket)
	s.cmd.Stderr = s.log
	if err := s.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	s.exited = make(chan error, 1)
	go func(cmd *exec.Cmd, exited chan error) { exited <- cmd.Wait() }(s.cmd, s.exited)
	p.t.Cleanup(func() {
		if s.cmd != nil {
			s.stop()
		}
		if p.t.Failed() {
			p.t.Logf("server log:\n%s", tail(s.log.String(), 6000))
		}
	})
	l.SetReadDeadline(time.Now().Add(60 * time.Second))
	buf := make([]byte, 64)
	n, err := l.Read(buf)
	if err != nil || string(buf[:n]) != "READY=1" {
		p.t.Fatalf("the server did not say that it is ready: %v\n%s", err, s.log)
	}
	return s
}

// refused runs serve, which has to end with a code and words.
func (p *production) refused(code int, says ...string) {
	p.t.Helper()
	out, got := run(p.t, nil, p.bin, "serve", "--config", p.config)
	if got != code {
		p.t.Errorf("serve ended with %d, want %d: %s", got, code, out)
	}
	for _, w := range says {
		if !strings.Contains(out, w) {
			p.t.Errorf("serve does not say %q: %s", w, out)
		}
	}
}

// TestPackage goes the way of a production site, from the .deb to a certificate.
func TestPackage(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) {
		testProduction(t, unpack(t, func(dir string) string { return "sqlite:" + filepath.Join(dir, "chancery.db") }))
	})
	t.Run("postgres", func(t *testing.T) {
		c := pgcluster.New(t)
		testProduction(t, unpack(t, func(string) string { return c.Database() }))
	})
}

func testProduction(t *testing.T, p *production) {
	p.configure(false)
	p.refused(3, "chancery init")
	p.configure(true)
	if out := p.init(); !strings.Contains(out, "BEGIN CERTIFICATE") {
		t.Errorf("init: %s", out)
	}
	p.refused(3, "SO PIN") // still readable
	p.configure(false)
	s := p.serve()
	root := must(t, nil, "curl", "-s", "http://"+p.http+"/roots.pem")
	p.write("root.pem", root)
	c, err := s.issue(s.client(), s.token(), "prod.example.lab")
	if err != nil {
		t.Fatal(err)
	}
	// Outside dev a name that resolves to this machine is reached only because
	// allow_networks says so; localhost names are not special.
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.wait(0)
	s = p.serve()
	if _, err := s.api(s.client(), s.token(), "GET", "/api/v1/certificates/"+c.Serial, nil, nil); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	if out, code := run(t, nil, p.bin, "audit", "verify", "--config", p.config); code != 0 {
		t.Errorf("audit verify: %d %s", code, out)
	}
	if out, code := run(t, nil, p.bin, "init", "--config", p.config); code == 0 {
		t.Errorf("a second init: %s", out)
	}
	p.adminTokenEnds(s)
}

// adminTokenEnds: once an administrator can sign in, the token of the first start gives no access
// any more, nor does what it made.
func (p *production) adminTokenEnds(s *site) {
	t := p.t
	at := []string{"--server", s.url(""), "--roots", filepath.Join(p.dir, "root.pem"), "--token-file"}
	cli := func(token string, args ...string) (string, int) {
		return run(t, nil, p.bin, slices.Concat(args, at, []string{filepath.Join(p.dir, token)})...)
	}
	if out, code := cli("admin.token", "machine", "new-token", "early", "--role", "auditor", "--out", filepath.Join(p.dir, "early.token")); code != 0 {
		t.Fatalf("%d %s", code, out)
	}
	if out, code := cli("early.token", "officer", "list"); code != 0 {
		t.Fatalf("%d %s", code, out)
	}
	// alice gets a passkey.
	out, code := cli("admin.token", "officer", "list", "--json")
	var v struct{ Roster admin.Roster }
	if err := json.Unmarshal([]byte(out), &v); code != 0 || err != nil {
		t.Fatalf("%d %v %s", code, err, out)
	}
	next := v.Roster.Successor()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	next.RPID, next.Origins = "localhost", []string{strings.TrimSuffix(s.url(""), "/")}
	next.Officers[0].Passkeys = []admin.Passkey{{ID: []byte{1}, SPKI: spki}}
	next.Officers[0].Roles = append(next.Officers[0].Roles, admin.Assignment{Role: admin.Administrator})
	b, err := json.Marshal(next)
	if err != nil {
		t.Fatal(err)
	}
	out, code = cli("admin.token", "officer", "change", "--file", p.write("roster.json", string(b)))
	if code != 5 {
		t.Fatalf("%d %s", code, out)
	}
	id, _, _ := strings.Cut(out, " ")
	for _, name := range []string{"alice", "bob"} {
		if out, code := cli("admin.token", "approve", "sign", id, "--officer", name, "--key", filepath.Join(p.dir, name+".pem")); code != 0 {
			t.Fatalf("%d %s", code, out)
		}
	}
	eventually(t, func() bool {
		out, code := cli("admin.token", "whoami")
		return code == 4 && strings.Contains(out, "an officer is enrolled")
	})
	// An officer comes with a CLI key alone, as when there is no token at all.
	for _, args := range [][]string{{"officer", "list"}, {"whoami"}, {"approve", "show", id}} {
		args = append(args, "--server", s.url(""), "--roots", filepath.Join(p.dir, "root.pem"), "--as", "bob", "--as-key", filepath.Join(p.dir, "bob.pem"))
		if out, code := run(t, nil, p.bin, args...); code != 0 || args[0] == "whoami" && !strings.Contains(out, "officer:bob") {
			t.Errorf("%v: %d %s", args, code, out)
		}
	}
	if out, code := cli("early.token", "officer", "list"); code != 4 {
		t.Errorf("what the token made goes on: %d %s", code, out)
	}
	if out, code := run(t, nil, p.bin, "audit", "verify", "--config", p.config); code != 0 {
		t.Errorf("audit verify: %d %s", code, out)
	}
}

// TestServeRefusesDev: what chancery dev made is not for production.
func TestServeRefusesDev(t *testing.T) {
	s := newSite(t)
	s.start()
	s.stop()
	p := &production{t: t, dir: s.dir, bin: chancery, config: filepath.Join(s.dir, "chancery.yaml")}
	p.refused(3, "SO PIN")
	// Even with the SO PINs away and the labels hidden behind serial numbers, leaf 0 tells.
	text := s.read("chancery.yaml")
	var kept []string
	for line := range strings.Lines(text) {
		if !strings.Contains(line, "so_pin") {
			kept = append(kept, line)
		}
	}
	p.config = p.write("no-so.yaml", strings.Join(kept, ""))
	p.refused(3, "chancery dev")
}
