package test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"chancery/audit"
	"chancery/dbstore"
)

var (
	buildFlags = []string{"-tags", "failpoint"} // places where TestCrash ends the process
	chancery   string                           // the binary under test
)

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "chancery-test-")
	if err != nil {
		panic(err)
	}
	chancery = filepath.Join(dir, "chancery")
	if os.Getenv("CHANCERY_RACE") != "" {
		buildFlags = append(buildFlags, "-race")
	}
	args := append([]string{"build", "-o", chancery}, buildFlags...)
	cmd := exec.Command("go", append(args, "chancery/cmd/chancery")...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		fmt.Println("building chancery:", err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// site is one CA in a folder; its server may be started, killed and started again.
type site struct {
	t           testing.TB
	dir         string
	dbURL       string // setting "database"
	https, http string // addresses
	challenge   int    // port of http-01
	args        []string
	env         []string // of the server, besides ours
	overlayFile string   // laid over DIR/chancery.yaml
	alarms      bool     // the sweeper is to find something

	cmd    *exec.Cmd
	banner string
	log    *lockedBuffer
	exited chan error
}

// newSite prepares a CA on free ports; nothing is started yet.
func newSite(t testing.TB) *site {
	t.Helper()
	return newSiteOn(t, "")
}

// newSiteOn is newSite with another database than SQLite in the folder.
func newSiteOn(t testing.TB, database string) *site {
	t.Helper()
	s := &site{t: t, dir: filepath.Join(t.TempDir(), "data"), https: freeAddr(t), http: freeAddr(t)}
	s.challenge = freePort(t)
	overlay := filepath.Join(t.TempDir(), "overlay.yaml")
	text := fmt.Sprintf("acme:\n  validation:\n    http_port: %d\n", s.challenge)
	s.dbURL = "sqlite:" + filepath.Join(s.dir, "chancery.db")
	if database != "" {
		s.dbURL = database
		text += "database: " + database + "\n"
	}
	if err := os.WriteFile(overlay, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.args, s.overlayFile = []string{"--config", overlay}, overlay
	t.Cleanup(func() {
		if s.cmd != nil {
			s.stop()
		}
		if s.log != nil && !s.alarms {
			for _, alarm := range regexp.MustCompile(`"ALARM: (P\d|surplus|sweep): .*`).FindAllString(s.log.String(), 1) {
				t.Errorf("the sweeper raised an alarm without a cause: %s", alarm)
			}
		}
		if t.Failed() && s.log != nil {
			t.Logf("server log:\n%s", tail(s.log.String(), 6000))
		}
	})
	return s
}

func tail(s string, n int) string {
	if len(s) > n {
		return "…" + s[len(s)-n:]
	}
	return s
}

func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func freePort(t testing.TB) int {
	t.Helper()
	_, port, _ := net.SplitHostPort(freeAddr(t))
	var n int
	if _, err := fmt.Sscan(port, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// lockedBuffer can be read while a process writes to it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// launch starts the server without waiting for it to be ready.
func (s *site) launch() (ready <-chan struct{}) {
	s.t.Helper()
	s.cmd = exec.Command(chancery, append([]string{"dev", "--dir", s.dir, "--https", s.https, "--http", s.http, "--log", "info"}, s.args...)...)
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if s.log == nil {
		s.log = &lockedBuffer{}
	}
	s.cmd.Stderr = s.log
	s.cmd.Env = append(os.Environ(), s.env...)
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	is := make(chan struct{})
	s.exited = make(chan error, 1)
	go func(cmd *exec.Cmd, exited chan<- error) {
		sc := bufio.NewScanner(out)
		var text strings.Builder
		for sc.Scan() {
			text.WriteString(sc.Text() + "\n")
			if strings.Contains(sc.Text(), "audit verify") { // the last line of the banner
				s.banner = text.String()
				close(is)
			}
		}
		exited <- cmd.Wait()
	}(s.cmd, s.exited)
	return is
}

// start starts the server and waits until it is ready.
func (s *site) start() {
	s.t.Helper()
	select {
	case <-s.launch():
	case err := <-s.exited:
		s.cmd = nil
		s.t.Fatalf("server ended before it was ready: %v\n%s", err, s.log)
	case <-time.After(90 * time.Second):
		s.t.Fatalf("server not ready in 90 s\n%s", s.log)
	}
}

// stop asks the server to end and returns how long that took.
func (s *site) stop() time.Duration {
	s.t.Helper()
	begin := time.Now()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Error(err)
	}
	s.wait(0)
	return time.Since(begin)
}

// kill ends the server as a power cut would, as far as a process can.
func (s *site) kill() {
	s.t.Helper()
	if err := s.cmd.Process.Kill(); err != nil {
		s.t.Error(err)
	}
	select {
	case <-s.exited:
	case <-time.After(20 * time.Second):
		s.t.Fatal("killed server did not end")
	}
	s.cmd = nil
}

func (s *site) wait(want int) {
	s.t.Helper()
	select {
	case <-s.exited:
		if got := s.cmd.ProcessState.ExitCode(); got != want {
			s.t.Errorf("server ended with code %d, want %d\n%s", got, want, tail(s.log.String(), 3000))
		}
	case <-time.After(30 * time.Second):
		s.cmd.Process.Kill()
		s.t.Fatal("server did not end in 30 s")
	}
	s.cmd = nil
}

func (s *site) read(elem ...string) string {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join(append([]string{s.dir}, elem...)...))
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b)
}

func (s *site) url(path string) string {
	_, port, _ := net.SplitHostPort(s.https)
	return "https://localhost:" + port + path
}

// client trusts the root of the CA and nothing else.
func (s *site) client() *http.Client {
	s.t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(s.read("root.pem"))) {
		s.t.Fatal("root.pem holds no certificate")
	}
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, MaxIdleConnsPerHost: 64}}
}

// issued is the answer of POST /api/v1/certificates.
type issued struct {
	Serial, Certificate, Chain string
	Receipt                    audit.Receipt
}

// api sends a request with the admin token and decodes a JSON answer.
func (s *site) api(c *http.Client, token, method, path string, body any, into any) (int, error) {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return 0, err
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequest(method, s.url(path), r)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return resp.StatusCode, err
	}
	if into != nil && resp.StatusCode/100 == 2 {
		return resp.StatusCode, json.Unmarshal(b, into)
	}
	if resp.StatusCode/100 != 2 {
		return resp.StatusCode, fmt.Errorf("%s %s: %d %s", method, path, resp.StatusCode, b)
	}
	return resp.StatusCode, nil
}

func (s *site) token() string { return strings.TrimSpace(s.read("admin.token")) }

// newCSR makes a request for one name with a fresh P-256 key.
func newCSR(name string) (string, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{name}}, k)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), err
}

// issue gets one certificate through the API.
func (s *site) issue(c *http.Client, token, name string) (issued, error) {
	var out issued
	csr, err := newCSR(name)
	if err != nil {
		return out, err
	}
	_, err = s.api(c, token, "POST", "/api/v1/certificates", map[string]string{"csr": csr, "profile": "tls-server"}, &out)
	return out, err
}

// auditVerify runs chancery audit verify, and chancery-verify on an export, and returns
// the report of the first.
func (s *site) auditVerify() audit.Report {
	s.t.Helper()
	out, code := run(s.t, nil, chancery, "audit", "verify", "--json", "--dir", s.dir, "--config", s.overlayFile)
	var rep audit.Report
	if code != 0 {
		s.t.Fatalf("audit verify: exit code %d\n%s", code, out)
	}
	if err := json.Unmarshal([]byte(out), &rep); err != nil {
		s.t.Fatalf("audit verify: %v\n%s", err, out)
	}
	s.exportVerify()
	return rep
}

// database opens one moment of the database, beside a running server too.
func (s *site) database() *dbstore.Store {
	s.t.Helper()
	db, err := dbstore.OpenSnapshot(context.Background(), s.dbURL)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { db.Close() })
	return db
}

// run runs a program to its end and returns what it printed and its exit code.
func run(t testing.TB, env []string, name string, args ...string) (out string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	b, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatalf("%s: %v", name, err)
	}
	return string(b), cmd.ProcessState.ExitCode()
}

// must runs a program that has to succeed.
func must(t testing.TB, env []string, name string, args ...string) string {
	t.Helper()
	out, code := run(t, env, name, args...)
	if code != 0 {
		t.Fatalf("%s %s: exit code %d\n%s", name, strings.Join(args, " "), code, out)
	}
	return out
}
