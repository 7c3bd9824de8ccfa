package web_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"chancery/web"
)

// running is a server on real sockets.
type running struct {
	*fixture
	https, http string
	stop        func() error
	roots       *x509.CertPool
}

func run(t *testing.T, edit ...func(*web.Config)) *running {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"ca.example"}, IsCA: true, BasicConstraintsValid: true}
	der := must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key))
	own := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	r := &running{roots: x509.NewCertPool()}
	r.roots.AddCert(must(x509.ParseCertificate(der)))
	r.fixture = newFixture(t, append(edit, func(c *web.Config) {
		c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return own, nil }
	})...)
	a, b := must(net.Listen("tcp", "127.0.0.1:0")), must(net.Listen("tcp", "127.0.0.1:0"))
	r.https, r.http = a.Addr().String(), b.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx, web.Listeners{HTTPS: a, HTTP: b}) }()
	stopped := false
	r.stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-ended
	}
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *running) client(edit ...func(*tls.Config)) *http.Client {
	cfg := &tls.Config{RootCAs: r.roots, ServerName: "ca.example"}
	for _, e := range edit {
		e(cfg)
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true, DisableKeepAlives: true}}
}

func TestRunServesBothDoors(t *testing.T) {
	r := run(t)
	for _, url := range []string{"https://" + r.https + "/healthz", "http://" + r.http + "/healthz"} {
		res, err := r.client().Get(url)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if string(body) != "ok\n" || strings.HasPrefix(url, "https") && (res.ProtoMajor != 2 || res.TLS.Version != tls.VersionTLS13) {
			t.Errorf("%s: %s %s", url, res.Proto, body)
		}
	}
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("tcp", r.https); err == nil {
		t.Error("still listening after Run")
	}
}

func TestTLSFloor(t *testing.T) {
	r := run(t)
	for name, edit := range map[string]func(*tls.Config){
		"TLS 1.1": func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 },
		"CBC": func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}
		},
	} {
		if res, err := r.client(edit).Get("https://" + r.https + "/healthz"); err == nil {
			res.Body.Close()
			t.Errorf("%s: accepted", name)
		}
	}
	res, err := r.client(func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }).Get("https://" + r.https + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
}

// A request that was taken is answered, though the server is told to stop meanwhile.
func TestRunDrains(t *testing.T) {
	began, finish := make(chan struct{}), make(chan struct{})
	r := run(t, func(c *web.Config) {
		c.Checkpoint = func(ctx context.Context) (string, error) {
			close(began)
			<-finish
			return "note", ctx.Err()
		}
	})
	status := make(chan int, 1)
	go func() {
		res, err := r.client().Get("https://" + r.https + "/ledger/checkpoint")
		if err != nil {
			t.Error(err)
			status <- 0
			return
		}
		res.Body.Close()
		status <- res.StatusCode
	}()
	<-began
	stopped := make(chan error, 1)
	go func() { stopped <- r.stop() }()
	for { // until the listener is closed, i.e. the stop has begun
		c, err := net.Dial("tcp", r.http)
		if err != nil {
			break
		}
		c.Close()
	}
	select {
	case err := <-stopped:
		t.Fatalf("Run ended before the request: %v", err)
	default:
	}
	close(finish)
	if got := <-status; got != 200 {
		t.Errorf("status %d", got)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func TestRunReportsABrokenListener(t *testing.T) {
	r := run(t)
	a, b := must(net.Listen("tcp", "127.0.0.1:0")), must(net.Listen("tcp", "127.0.0.1:0"))
	b.Close()
	if err := r.Run(context.Background(), web.Listeners{HTTPS: a, HTTP: b}); err == nil {
		t.Error("no error")
	}
	if _, err := net.Dial("tcp", a.Addr().String()); err == nil {
		t.Error("the other listener is still open")
	}
}

// Requests that two readers could read in two ways are refused and the connection is
// closed; the service stays up.
func TestAttack_WEB_14_Smuggling(t *testing.T) {
	r := run(t)
	big := strings.Repeat("a", 64<<10)
	for name, raw := range map[string]string{
		"length twice":      "POST /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
		"negative length":   "POST /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
		"odd coding":        "POST /healthz HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n",
		"two codings":       "POST /healthz HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
		"blank in name":     "GET /healthz HTTP/1.1\r\nHost: a\r\nX-A : 1\r\n\r\n",
		"no host":           "GET /healthz HTTP/1.1\r\n\r\n",
		"two hosts":         "GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
		"bad version":       "GET /healthz HTTP/9.9\r\nHost: a\r\n\r\n",
		"huge header":       "GET /healthz HTTP/1.1\r\nHost: a\r\nX-A: " + big + "\r\n\r\n",
		"huge path":         "GET /" + big + " HTTP/1.1\r\nHost: a\r\n\r\n",
		"folded":            "GET /healthz HTTP/1.1\r\nHost: a\r\n Content-Length: 5\r\n\r\n",
		"control in header": "GET /healthz HTTP/1.1\r\nHost: a\r\nX-A: a\x00b\r\n\r\n",
		"HTTP/2 in clear":   "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	} {
		c := must(net.Dial("tcp", r.http))
		go io.WriteString(c, raw+"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		answer, err := io.ReadAll(c)
		c.Close()
		if ne, ok := err.(net.Error); ok && ne.Timeout() {
			t.Errorf("%s: the connection is left open after %.100q", name, answer)
		}
		if len(answer) > 0 && !strings.HasPrefix(string(answer), "HTTP/1.1 4") && !strings.HasPrefix(string(answer), "HTTP/1.1 5") {
			t.Errorf("%s: %.100q", name, answer)
		}
		if strings.Count(string(answer), "HTTP/1.1 ") > 1 {
			t.Errorf("%s: two answers: %q", name, answer)
		}
	}
	// Both lengths: RFC 9112 §6.3 lets the chunked coding win and the connection close.
	c := must(net.Dial("tcp", r.http))
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	io.WriteString(c, "POST /nothing HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
	answer, _ := io.ReadAll(c)
	if n := strings.Count(string(answer), "HTTP/1.1 "); n != 1 {
		t.Errorf("both lengths: %d answers: %q", n, answer)
	}
	if strings.Contains(r.logged.String(), "smuggled") {
		t.Errorf("a smuggled request was served:\n%s", r.logged)
	}
	// An upgrade to h2c is not offered.
	up := must(net.Dial("tcp", r.http))
	defer up.Close()
	io.WriteString(up, "GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n")
	if res, err := http.ReadResponse(bufio.NewReader(up), nil); err != nil || res.StatusCode != 200 {
		t.Errorf("h2c: %v %v", res, err)
	}
}

// pipeListener hands out in-memory connections, so that time can be a test's own.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	select {
	case <-l.done:
	default:
		close(l.done)
	}
	return nil
}

func (l *pipeListener) Addr() net.Addr { return pipeAddr("listener") }

func (l *pipeListener) dial(from string) net.Conn {
	a, b := net.Pipe()
	l.conns <- addressed{a, pipeAddr(from)}
	return b
}

type pipeAddr string

func (a pipeAddr) Network() string { return "pipe" }
func (a pipeAddr) String() string  { return string(a) }

type addressed struct {
	net.Conn
	from pipeAddr
}

func (c addressed) RemoteAddr() net.Addr { return c.from }

func onPipes(t *testing.T, test func(t *testing.T, plain *pipeListener)) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, func(c *web.Config) {
			c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, io.EOF }
		})
		ctx, cancel := context.WithCancel(t.Context())
		secure, plain := newPipeListener(), newPipeListener()
		ended := make(chan error, 1)
		go func() { ended <- f.Run(ctx, web.Listeners{HTTPS: secure, HTTP: plain}) }()
		test(t, plain)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestAttack_WEB_14_Slowloris(t *testing.T) {
	onPipes(t, func(t *testing.T, plain *pipeListener) {
		start := time.Now()
		slow := plain.dial("192.0.2.1:1")
		go func() {
			for _, b := range []byte("GET /healthz HTTP/1.1\r\nHost: a\r\nX-A: " + strings.Repeat("a", 1000)) {
				if _, err := slow.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		}()
		io.ReadAll(slow)
		slow.Close()
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("slow headers held the connection for %s", took)
		}
		start = time.Now()
		body := plain.dial("192.0.2.1:2")
		go func() {
			io.WriteString(body, "POST /nothing HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
			for {
				if _, err := body.Write([]byte("x")); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		}()
		io.ReadAll(body)
		body.Close()
		if took := time.Since(start); took > 30*time.Second {
			t.Errorf("a slow body held the connection for %s", took)
		}
		start = time.Now()
		idle := plain.dial("192.0.2.1:3")
		go io.WriteString(idle, "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
		answer, _ := io.ReadAll(idle)
		idle.Close()
		if took := time.Since(start); took > 2*time.Minute || !strings.Contains(string(answer), "ok\n") {
			t.Errorf("idle for %s after %q", took, answer)
		}
	})
}

func TestAttack_WEB_14_Crowd(t *testing.T) {
	onPipes(t, func(t *testing.T, plain *pipeListener) {
		var open []net.Conn
		for port := range 513 {
			open = append(open, plain.dial(fmt.Sprintf("[2001:db8::%x]:%d", port, port+1))) // one /64
		}
		synctest.Wait()
		last := open[512]
		last.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := last.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("connection 513 of one /64: %v", err)
		}
		get := func(from string) string {
			c := plain.dial(from)
			defer c.Close()
			go io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
			b, _ := io.ReadAll(c)
			return string(b)
		}
		if !strings.Contains(get("[2001:db8:0:1::1]:1"), "ok\n") || !strings.Contains(get("192.0.2.1:1"), "ok\n") {
			t.Error("others are not served")
		}
		for _, c := range open {
			c.Close()
		}
		synctest.Wait()
		if !strings.Contains(get("[2001:db8::1]:1"), "ok\n") {
			t.Error("the /64 is locked out for good")
		}
	})
}

func TestAttack_WEB_14_CrowdOfMany(t *testing.T) {
	onPipes(t, func(t *testing.T, plain *pipeListener) {
		refused := func(c net.Conn) bool {
			c.SetReadDeadline(time.Now().Add(time.Millisecond))
			_, err := c.Read(make([]byte, 1))
			return err == io.EOF
		}
		var open []net.Conn
		for n := range 4096 {
			open = append(open, plain.dial(fmt.Sprintf("10.0.%d.%d:1", n/256, n%256)))
		}
		if one := plain.dial("192.0.2.1:1"); !refused(one) {
			t.Error("connection 4,097 is held")
		}
		if refused(open[4095]) {
			t.Error("connection 4,096 is refused")
		}
		open[0].Close()
		synctest.Wait()
		if one := plain.dial("192.0.2.1:1"); refused(one) {
			t.Error("a place that became free is not given")
		} else {
			one.Close()
		}
		for _, c := range open {
			c.Close()
		}
	})
}
