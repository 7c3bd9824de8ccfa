package acme_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chancery/acme"
)

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// Which addresses are reached, as a table.
func TestAddressPolicy(t *testing.T) {
	loop, link := prefixes("127.0.0.0/8", "::1/128"), prefixes("169.254.0.0/16", "fe80::/10", "0.0.0.0/0", "::/0")
	for _, c := range []struct {
		addr    string
		allow   []netip.Prefix
		deny    []netip.Prefix
		listen  []string
		refused bool
	}{
		{addr: "10.0.0.1"}, {addr: "172.16.3.4"}, {addr: "192.168.1.1"}, {addr: "fd12:3456::1"}, {addr: "203.0.113.5"}, {addr: "2001:db8::1"}, {addr: "8.8.8.8"},
		{addr: "127.0.0.1", refused: true}, {addr: "127.255.255.254", refused: true}, {addr: "::1", refused: true}, {addr: "0.0.0.0", refused: true}, {addr: "0.1.2.3", refused: true},
		{addr: "::", refused: true}, {addr: "169.254.1.1", refused: true}, {addr: "fe80::1", refused: true}, {addr: "224.0.0.1", refused: true}, {addr: "ff02::1", refused: true},
		{addr: "255.255.255.255", refused: true}, {addr: "240.0.0.1", refused: true}, {addr: "fec0::1", refused: true}, {addr: "100::1", refused: true}, {addr: "2001:0:1::1", refused: true},
		{addr: "::ffff:127.0.0.1", refused: true}, {addr: "::ffff:10.0.0.1"}, {addr: "::127.0.0.1", refused: true}, {addr: "64:ff9b::7f00:1", refused: true}, {addr: "64:ff9b::a00:1"},
		{addr: "64:ff9b::a9fe:a9fe", refused: true}, {addr: "64:ff9b:1::1", refused: true}, {addr: "2002:7f00:1::1", refused: true}, {addr: "2002:a00:1::1"}, {addr: "2002:a9fe:a9fe::", refused: true},
		{addr: "::ffff:0:7f00:1", refused: true}, {addr: "fd00::5efe:7f00:1", refused: true}, {addr: "2001:db8::200:5efe:7f00:1", refused: true}, {addr: "fd00::5efe:a00:1"},
		{addr: "100.64.0.1", refused: true}, {addr: "100.127.255.255", refused: true}, {addr: "100.128.0.1"}, {addr: "100.64.0.1", allow: prefixes("100.64.0.0/10")}, {addr: "192.0.0.8", refused: true},
		{addr: "198.18.0.1", refused: true}, {addr: "198.19.255.255", refused: true}, {addr: "192.88.99.1", refused: true}, {addr: "2001:2::1", refused: true}, {addr: "2001:10::1", refused: true},
		{addr: "2001:20::1", refused: true}, {addr: "fd00::1%eth0", refused: true}, {addr: "0.0.0.0", allow: prefixes("0.0.0.0/0"), listen: []string{"127.0.0.1:80"}, refused: true},
		{addr: "127.0.0.1", allow: loop}, {addr: "::1", allow: loop}, {addr: "::ffff:127.0.0.1", allow: loop}, {addr: "64:ff9b::7f00:1", allow: loop}, {addr: "169.254.1.1", allow: link}, {addr: "fe80::1", allow: link},
		{addr: "169.254.169.254", allow: link, refused: true}, {addr: "fd00:ec2::254", allow: link, refused: true}, {addr: "::ffff:169.254.169.254", allow: link, refused: true},
		{addr: "64:ff9b::a9fe:a9fe", allow: link, refused: true}, {addr: "100.100.100.200", refused: true}, {addr: "168.63.129.16", refused: true}, {addr: "169.254.169.254", refused: true}, {addr: "fd00:ec2::254", refused: true},
		{addr: "10.9.0.1", deny: prefixes("10.9.0.0/16"), refused: true}, {addr: "::ffff:10.9.0.1", deny: prefixes("10.9.0.0/16"), refused: true}, {addr: "64:ff9b::a09:1", deny: prefixes("10.9.0.0/16"), refused: true},
		{addr: "10.9.0.1", deny: prefixes("10.9.0.0/16"), allow: prefixes("10.9.0.1/32")}, {addr: "10.8.0.1", deny: prefixes("10.9.0.0/16")},
		{addr: "127.0.0.1", allow: loop, listen: []string{"127.0.0.1:80"}, refused: true}, {addr: "127.0.0.1", allow: loop, listen: []string{"127.0.0.1:81"}},
		{addr: "127.0.0.1", allow: loop, listen: []string{":80"}, refused: true}, {addr: "127.0.0.2", allow: loop, listen: []string{"0.0.0.0:80"}, refused: true}, {addr: "::1", allow: loop, listen: []string{"[::]:80"}, refused: true},
		{addr: "10.1.2.3", listen: []string{"10.1.2.3:80"}, refused: true}, {addr: "::ffff:10.1.2.3", listen: []string{"10.1.2.3:80"}, refused: true}, {addr: "127.0.0.1", allow: loop, listen: []string{"localhost:80"}, refused: true},
	} {
		got := acme.Forbidden(c.allow, c.deny, c.listen, netip.AddrPortFrom(netip.MustParseAddr(c.addr), 80))
		if (got != "") != c.refused {
			t.Errorf("%s allow %v deny %v listen %v: %q", c.addr, c.allow, c.deny, c.listen, got)
		}
	}
}

// dials records what validation dials.
type dials struct {
	mu   sync.Mutex
	list []string
}

func (d *dials) watch(h *house) {
	h.srv.OnDial(func(ctx context.Context, next func(context.Context, string, string) (net.Conn, error), addr string) (net.Conn, error) {
		d.mu.Lock()
		d.list = append(d.list, addr)
		d.mu.Unlock()
		return next(ctx, "tcp", addr)
	})
}

func (d *dials) all() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]string{}, d.list...)
}

// fails orders a name, answers its challenge and returns the error of the challenge.
func (c *client) fails(name string) problem {
	c.h.t.Helper()
	z := c.prove(c.order(name).Authorizations[0])
	if z.Status != "invalid" || z.Challenges[0].Error == nil {
		c.h.t.Fatalf("%s: %+v", name, z)
	}
	p := *z.Challenges[0].Error
	if t, ok := c.h.t.(*testing.T); ok {
		plain(t, []byte(p.Detail))
	}
	return p
}

func kind(p problem) string { return strings.TrimPrefix(p.Type, "urn:ietf:params:acme:error:") }

// Targets inside this host or its cloud: a problem, and no packet.
func TestAttack_ACME_17(t *testing.T) {
	var port uint16
	h := newHouse(t, func(c *acme.Config) {
		port = c.Validation.HTTPPort
		c.Validation.AllowNetworks = nil
		c.Validation.DenyNetworks = prefixes("10.66.0.0/16")
		c.Validation.DenyAddrs = []string{fmt.Sprintf("10.5.5.5:%d", port)}
	})
	var d dials
	d.watch(h)
	c := h.member()
	for i, list := range [][]string{{"127.0.0.1"}, {"::1"}, {"169.254.169.254"}, {"169.254.7.7"}, {"fd00:ec2::254"}, {"0.0.0.0"}, {"::"}, {"::ffff:127.0.0.1"}, {"64:ff9b::7f00:1"},
		{"224.0.0.1"}, {"ff02::1"}, {"10.66.1.1"}, {"10.5.5.5"}, {"10.1.1.1", "127.0.0.1"}, {"10.1.1.1", "fe80::1"}} {
		name := fmt.Sprintf("t%d.lab", i)
		h.dns.set(name, list...)
		if p := c.fails(name); kind(p) != "connection" || strings.Contains(p.Detail, list[0]) {
			t.Errorf("%v: %+v", list, p)
		}
	}
	if p := c.fails("nobody.localhost"); kind(p) != "connection" {
		t.Errorf("%+v", p)
	}
	for _, ip := range []string{"127.0.0.1", "::1", "169.254.169.254", "0.0.0.0", "fd00:ec2::254", "64:ff9b::7f00:1", "10.66.1.1"} {
		c.post("/acme/new-order", dnsNames(ip)).wants(t, 400, "rejectedIdentifier")
	}
	if got := d.all(); len(got) > 0 || h.web.conns.Load() > 0 {
		t.Errorf("dialed %v", got)
	}
	for name, code := range map[string]string{"gone.lab": "NXDOMAIN", "broken.lab": "SERVFAIL"} {
		h.dns.set(name, code)
		if p := c.fails(name); kind(p) != "dns" {
			t.Errorf("%s: %+v", name, p)
		}
	}
	h.dns.set("empty.lab")
	if p := c.fails("empty.lab"); kind(p) != "dns" {
		t.Errorf("%+v", p)
	}
}

// The own listener, reachable by every rule but one.
func TestOwnListenerIsNeverReached(t *testing.T) {
	h := newHouse(t, func(c *acme.Config) { c.Validation.DenyAddrs = []string{fmt.Sprintf(":%d", c.Validation.HTTPPort)} })
	if p := h.member().fails("a.lab"); kind(p) != "connection" {
		t.Errorf("%+v", p)
	}
	if h.web.conns.Load() != 0 {
		t.Error("it was reached")
	}
}

// Rebinding: only what was judged is dialed, and each hop is judged anew.
func TestAttack_ACME_18(t *testing.T) {
	h := newHouse(t)
	var d dials
	d.watch(h)
	c := h.member()
	h.dns.mu.Lock()
	h.dns.turn["a.lab"] = []string{"127.0.0.1", "169.254.169.254"}
	h.dns.mu.Unlock()
	if z := c.prove(c.order("a.lab").Authorizations[0]); z.Status != "valid" {
		t.Fatalf("%+v", z)
	}
	want := fmt.Sprintf("127.0.0.1:%d", h.web.port)
	if got := d.all(); len(got) != 1 || got[0] != want || h.dns.asked()["a.lab"] != 1 {
		t.Errorf("dialed %v after %d lookups", got, h.dns.asked()["a.lab"])
	}
	h.dns.mu.Lock()
	h.dns.turn["b.lab"] = []string{"127.0.0.1", "169.254.169.254"}
	h.dns.mu.Unlock()
	h.web.with(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, fmt.Sprintf("http://b.lab:%d/other", h.web.port), http.StatusFound)
	})
	if p := c.fails("b.lab"); kind(p) != "connection" {
		t.Errorf("%+v", p)
	}
	if got := d.all(); len(got) != 2 || got[1] != want {
		t.Errorf("dialed %v", got)
	}
}

// Redirects: where they may lead.
func TestRedirects(t *testing.T) {
	h := newHouse(t)
	var d dials
	d.watch(h)
	c := h.member()
	own := fmt.Sprintf(":%d", h.web.port)
	for name, target := range map[string]string{
		"ftp": "ftp://a.lab/", "file": "file:///etc/passwd", "port 22": "http://a.lab:22/", "port 8080": "http://a.lab:8080/", "metadata": "http://169.254.169.254/latest/",
		"mapped": "http://[::ffff:169.254.169.254]/", "user": "http://root:x@a.lab" + own + "/", "decimal": "http://2130706433/", "no host": "http:///x", "long": "http://a.lab" + own + "/" + strings.Repeat("a", 3000),
		"bad name": "http://a_b..lab/", "gopher": "gopher://a.lab" + own + "/", "empty": "", "loop": "http://a.lab" + own + "/again", "zone": "http://[fe80::1%25eth0]/",
	} {
		h.web.with(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", target)
			w.WriteHeader(http.StatusFound)
		})
		before := len(d.all())
		if p := c.fails("a.lab"); kind(p) != "connection" && kind(p) != "dns" {
			t.Errorf("%s: %+v", name, p)
		}
		hops := len(d.all()) - before
		if name == "loop" && hops != 6 || name != "loop" && hops != 1 {
			t.Errorf("%s: %d hops", name, hops)
		}
	}
	h.web.with(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/.well-known/") {
			http.Redirect(w, r, "/moved?t="+r.URL.Path[len("/.well-known/acme-challenge/"):], http.StatusMovedPermanently)
			return
		}
		h.web.mu.Lock()
		defer h.web.mu.Unlock()
		io.WriteString(w, h.web.keys[r.URL.Query().Get("t")])
	})
	if z := c.prove(c.order("ok.lab").Authorizations[0]); z.Status != "valid" {
		t.Errorf("%+v", z.Challenges[0].Error)
	}
}

// Bodies without end, slow, compressed, with more than the key authorization.
func TestAttack_ACME_20(t *testing.T) {
	h := newHouse(t, func(c *acme.Config) { c.Validation.Timeout = 500 * time.Millisecond })
	c := h.member()
	key := func(r *http.Request) string {
		h.web.mu.Lock()
		defer h.web.mu.Unlock()
		return h.web.keys[strings.TrimPrefix(r.URL.Path, "/.well-known/acme-challenge/")]
	}
	var sent atomic.Int64
	flood := func(w io.Writer, chunk string) {
		for {
			n, err := io.WriteString(w, chunk)
			if sent.Add(int64(n)); err != nil {
				return
			}
		}
	}
	slow := func(w http.ResponseWriter, r *http.Request, b string) {
		for i := range b {
			select {
			case <-r.Context().Done():
				return
			case <-time.After(20 * time.Millisecond):
			}
			io.WriteString(w, b[i:i+1])
			w.(http.Flusher).Flush()
		}
	}
	raw := func(b string, more string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				return
			}
			defer conn.Close()
			io.WriteString(conn, b)
			if more != "" {
				flood(conn, more)
			} else {
				io.Copy(io.Discard, conn) // until the other side gives up
			}
		}
	}
	for name, hook := range map[string]http.HandlerFunc{
		"10 GB": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "10737418240")
			flood(w, strings.Repeat("x", 1<<16))
		},
		"chunks without end": func(w http.ResponseWriter, r *http.Request) { flood(w, key(r)) },
		"key and more":       func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, key(r)+" x") },
		"key and blanks":     func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, key(r)+strings.Repeat(" ", 100)) },
		"blank before":       func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, " "+key(r)) },
		"token only":         func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, strings.Split(key(r), ".")[0]) },
		"gzip": func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Accept-Encoding") != "" {
				t.Error("gzip was asked for")
			}
			w.Header().Set("Content-Encoding", "gzip")
			io.WriteString(w, key(r))
		},
		"1 byte at a time":    func(w http.ResponseWriter, r *http.Request) { slow(w, r, strings.Repeat("y", 80)) },
		"silence":             raw("", ""),
		"half a head":         raw("HTTP/1.1 200 OK\r\nContent-", ""),
		"head without end":    raw("HTTP/1.1 200 OK\r\n", "X-Filler: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n"),
		"line without end":    raw("HTTP/1.1 200 ", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
		"interim without end": raw("", "HTTP/1.1 100 Continue\r\n\r\n"),
		"HTTP/0.9":            raw("key", "key"),
		"status 404":          func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(404); io.WriteString(w, key(r)) },
		"status 500":          func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500) },
		"hang up":             func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) },
		"short":               raw("HTTP/1.1 200 OK\r\nContent-Length: 87\r\n\r\nabc", ""),
	} {
		t.Run(name, func(t *testing.T) {
			sent.Store(0)
			h.web.with(hook)
			began := time.Now()
			p := c.fails("a.lab")
			if took := time.Since(began); took > 4*time.Second {
				t.Errorf("took %s", took)
			}
			if k := kind(p); k != "incorrectResponse" && k != "connection" {
				t.Errorf("%+v", p)
			}
			if n := sent.Load(); n > 32<<20 { // what fits into the sockets' buffers
				t.Errorf("%d bytes were taken", n)
			}
		})
	}
}

// Tokens and ids have one alphabet; paths lead nowhere else.
func TestAttack_ACME_21(t *testing.T) {
	h := newHouse(t)
	c := h.member()
	token := regexp.MustCompile(`^[A-Za-z0-9_-]{43}$`)
	seen := map[string]bool{}
	for range 50 {
		ch := c.authz(c.order("a.lab").Authorizations[0]).Challenges[0]
		if !token.MatchString(ch.Token) || seen[ch.Token] {
			t.Fatalf("token %q", ch.Token)
		}
		seen[ch.Token] = true
	}
	for _, id := range []string{"..", "%2e%2e", "%2e%2e%2f", "%00", strings.Repeat("a", 4096), "AAAAAAAAAAAAAAAAAAAAAA", "'%20OR%201=1--", "a%0d%0aX:1"} {
		for _, what := range []string{"challenge", "authz", "order", "certificate"} {
			u := h.url + "/acme/" + what + "/" + id
			a := c.post(u, nil)
			if a.status != 404 && a.status != 401 { // 401: the client's library wrote the URL in another way
				t.Errorf("%s: %d %s", u, a.status, a.body)
			}
			plain(t, a.body)
		}
	}
}

// Nothing of what a target answers comes out again.
func TestAttack_ACME_22(t *testing.T) {
	h := newHouse(t)
	c := h.member()
	const secret = "s3cr3t-of-an-internal-service"
	for name, hook := range map[string]http.HandlerFunc{
		"body": func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, secret) },
		"markup": func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "<script>"+secret+"\x1b[31m\r\n\xff\xfe")
		},
		"status line": func(w http.ResponseWriter, r *http.Request) {
			conn, _, _ := w.(http.Hijacker).Hijack()
			defer conn.Close()
			io.WriteString(conn, "HTTP/1.1 599 "+secret+"\r\nX-Secret: "+secret+"\r\n\r\n")
		},
		"no HTTP": func(w http.ResponseWriter, r *http.Request) {
			conn, _, _ := w.(http.Hijacker).Hijack()
			defer conn.Close()
			io.WriteString(conn, "SSH-2.0-"+secret+"\r\n")
		},
		"redirect": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", "http://"+secret+"_<x>/")
			w.WriteHeader(302)
		},
	} {
		h.web.with(hook)
		o := c.order("a.lab")
		z := c.prove(o.Authorizations[0])
		a := c.post(o.url, nil)
		for _, text := range []string{string(a.body), fmt.Sprint(z.Challenges[0].Error), string(c.post(o.Authorizations[0], nil).body)} {
			if strings.Contains(text, secret) || strings.Contains(text, "SSH") {
				t.Errorf("%s: %s", name, text)
			}
		}
		plain(t, a.body)
	}
}

// One challenge answered a thousand times is validated once, and an account with
// many slow targets does not keep others waiting.
func TestAttack_ACME_31(t *testing.T) {
	h := newHouse(t)
	c := h.member()
	o := c.order("a.lab")
	z := c.authz(o.Authorizations[0])
	c.provision(z.Challenges[0])
	var running, most atomic.Int64
	hold := make(chan struct{})
	h.srv.OnDial(func(ctx context.Context, next func(context.Context, string, string) (net.Conn, error), addr string) (net.Conn, error) {
		if strings.HasPrefix(addr, "10.") {
			n := running.Add(1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			defer running.Add(-1)
			select {
			case <-hold:
			case <-ctx.Done():
			}
			return nil, errInjected
		}
		return next(ctx, "tcp", addr)
	})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 125 {
				if a := c.post(z.Challenges[0].URL, header{}); a.status != 200 {
					t.Errorf("%d %s", a.status, a.body)
				}
			}
		})
	}
	wg.Wait()
	if n := h.web.conns.Load(); n != 1 {
		t.Errorf("%d validations of one challenge", n)
	}
	slow := h.member()
	var last string
	for i := range 60 {
		name := fmt.Sprintf("s%d.lab", i)
		h.dns.set(name, "10.0.0.1")
		last = slow.order(name).Authorizations[0]
		ch := slow.authz(last).Challenges[0]
		wg.Go(func() { slow.post(ch.URL, header{}) })
	}
	began := time.Now()
	h.member().ready("quick.lab")
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("another account waited %s", took)
	}
	wg.Wait()
	if n := most.Load(); n > 32 {
		t.Errorf("%d validations of one account at a time", n)
	}
	close(hold)
	if z := slow.settle(last); z.Status != "invalid" {
		t.Errorf("%+v", z)
	}
}
