package acme_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/miekg/dns"

	"chancery/acme"
	"chancery/audit"
	"chancery/ca"
	"chancery/dbstore"
)

// house is an ACME server on a real database and ledger, with a software CA.
type house struct {
	t      testing.TB
	srv    *acme.Server
	store  *dbstore.Store
	ledger *faultyLedger
	ca     *softCA
	url    string
	dns    *nameServer
	web    *responder
	clock  *clock
	cfg    acme.Config
	path   string // of the database
	stop   func()
	pick   atomic.Pointer[func() *acme.Server]
}

// swap lets another function choose the server of each request.
func (h *house) swap(f func() *acme.Server) { h.pick.Store(&f) }

type clock struct{ offset atomic.Int64 }

func (c *clock) now() time.Time          { return time.Now().Add(time.Duration(c.offset.Load())) }
func (c *clock) advance(d time.Duration) { c.offset.Add(int64(d)) }

func newHouse(t testing.TB, change ...func(*acme.Config)) *house {
	t.Helper()
	h := &house{t: t, clock: &clock{}}
	h.path = filepath.Join(t.TempDir(), "chancery.db")
	store, err := dbstore.Open(t.Context(), "sqlite:"+h.path)
	if err != nil {
		t.Fatal(err)
	}
	ledger, err := audit.Open(t.Context(), store, audit.Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	run(t, func(ctx context.Context) { ledger.Run(ctx) }, func() { store.Close() })
	h.store, h.ledger = store, &faultyLedger{Ledger: ledger}
	h.ca = newSoftCA(t, h.ledger)
	h.dns = newNameServer(t)
	h.web = newResponder(t)
	front := httptest.NewUnstartedServer(nil)
	h.url = "http://" + front.Listener.Addr().String()
	key := sha256.Sum256([]byte("nonce key of the test"))
	h.cfg = acme.Config{PublicURL: h.url, Authority: h.ca, Ledger: h.ledger, Storage: store, NonceKey: key[:], Now: h.clock.now,
		Log: slog.New(slog.DiscardHandler),
		Validation: acme.Validation{HTTPPort: h.web.port, Resolvers: []string{h.dns.addr}, LocalhostToLoopback: true,
			AllowNetworks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}}
	for _, f := range change {
		f(&h.cfg)
	}
	h.srv, err = acme.New(h.cfg)
	if err != nil {
		t.Fatal(err)
	}
	h.swap(func() *acme.Server { return h.srv })
	front.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*h.pick.Load())().Handler().ServeHTTP(w, r) })
	front.Start()
	t.Cleanup(front.Close)
	h.start()
	return h
}

// start runs the server; h.stop ends it.
func (h *house) start() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	srv := h.srv
	go func() { defer close(done); srv.Run(ctx) }()
	h.stop = sync.OnceFunc(func() { cancel(); <-done })
	h.t.Cleanup(h.stop)
}

// restart is what a new process does on the same database.
func (h *house) restart() {
	h.stop()
	h.ledger.fail.Store(nil)
	next, err := acme.New(h.cfg)
	if err != nil {
		h.t.Fatal(err)
	}
	h.srv = next
	h.swap(func() *acme.Server { return next })
	h.start()
}

func run(t testing.TB, f func(context.Context), after func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); f(ctx) }()
	t.Cleanup(func() { cancel(); <-done; after() })
}

// faultyLedger fails on purpose.
type faultyLedger struct {
	*audit.Ledger
	fail atomic.Pointer[func(audit.Projection) error]

	mu      sync.Mutex
	refused []audit.Refusal
}

func (l *faultyLedger) Refused(r audit.Refusal) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refused = append(l.refused, r)
}

// counted are the refusals since the last call.
func (l *faultyLedger) counted() []audit.Refusal {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := l.refused
	l.refused = nil
	return out
}

func (l *faultyLedger) failOn(f func(audit.Projection) error) { l.fail.Store(&f) }

func (l *faultyLedger) Write(ctx context.Context, ps ...audit.Projection) error {
	if f := l.fail.Load(); f != nil {
		for _, p := range ps {
			if err := (*f)(p); err != nil {
				return err
			}
		}
	}
	return l.Ledger.Write(ctx, ps...)
}

// softCA issues with a software key. It keeps the promises of acme.Authority.
type softCA struct {
	t      testing.TB
	ledger acme.Ledger
	key    *ecdsa.PrivateKey
	cert   *x509.Certificate
	serial atomic.Int64

	prepared atomic.Int64
	// afterIntent is called between the intent and the signature.
	afterIntent atomic.Pointer[func() error]
	// beforeIntent is called between Prepare and the intent.
	beforeIntent atomic.Pointer[func()]
	intents      atomic.Int64

	mu     sync.Mutex
	issued map[string]*ca.Certificate
	order  []ca.Request
	old    map[string]*ca.Certificate // of the ledger before this one
}

type softPrepared struct {
	serial string
	req    ca.Request
	csr    *x509.CertificateRequest
}

func (p *softPrepared) Serial() string { return p.serial }

func newSoftCA(t testing.TB, l acme.Ledger) *softCA {
	key := newKey(t)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "soft"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := x509.ParseCertificate(der)
	c := &softCA{t: t, ledger: l, key: key, cert: cert, issued: map[string]*ca.Certificate{}}
	c.serial.Store(0x1000)
	return c
}

func (c *softCA) Prepare(_ context.Context, r ca.Request) (acme.Prepared, error) {
	c.prepared.Add(1)
	csr, err := x509.ParseCertificateRequest(r.CSR)
	if err != nil || csr.CheckSignature() != nil {
		return nil, &ca.Refusal{Code: ca.BadCSR, Field: "csr", Detail: "its signature is wrong"}
	}
	return &softPrepared{serial: fmt.Sprintf("%04x", c.serial.Add(1)), req: r, csr: csr}, nil
}

func (c *softCA) Issue(ctx context.Context, pp acme.Prepared, with ca.Projections) (*ca.Certificate, error) {
	p := pp.(*softPrepared)
	if f := c.beforeIntent.Load(); f != nil {
		(*f)()
	}
	if err := c.ledger.Write(ctx, with.Intent...); err != nil {
		return nil, err
	}
	c.intents.Add(1)
	if f := c.afterIntent.Load(); f != nil {
		if err := (*f)(); err != nil {
			return nil, err
		}
	}
	n, _ := new(big.Int).SetString(p.serial, 16)
	tmpl := &x509.Certificate{SerialNumber: n, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour)}
	for _, name := range p.req.Names {
		if name.Kind == ca.IP {
			tmpl.IPAddresses = append(tmpl.IPAddresses, net.IP(name.Addr().AsSlice()))
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, name.Value)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, c.cert, p.csr.PublicKey, c.key)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.ledger.Write(ctx, with.Done...); err != nil {
		return nil, err
	}
	cert := &ca.Certificate{Serial: p.serial, Issuer: "soft", DER: der, Chain: [][]byte{c.cert.Raw}, Names: p.req.Names, Requester: p.req.Requester}
	c.issued[p.serial] = cert
	c.order = append(c.order, p.req)
	return cert, nil
}

func (c *softCA) count() int { c.mu.Lock(); defer c.mu.Unlock(); return len(c.issued) }

func (c *softCA) Revoke(_ context.Context, r ca.RevokeRequest) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	cert := c.issued[r.Serial]
	if o := c.old[r.Serial]; o != nil && bytes.Equal(r.Certificate, o.DER) {
		cert = o
	}
	switch {
	case cert == nil:
		return &ca.Refusal{Code: ca.NotFound, Detail: "no such certificate"}
	case cert.Revoked != nil:
		return &ca.Refusal{Code: ca.AlreadyRevoked, Detail: "it is revoked already"}
	case r.Reason < 0 || r.Reason > 10 || r.Reason == 7:
		return &ca.Refusal{Code: ca.BadReason, Field: "reason", Detail: "not allowed"}
	}
	cert.Revoked = &ca.Revocation{Reason: r.Reason, At: time.Now()}
	return nil
}

func (c *softCA) Certificate(_ context.Context, serial string) (*ca.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if cert := c.issued[serial]; cert != nil {
		return cert, nil
	}
	return nil, audit.ErrNotFound
}

func (c *softCA) CertificateByDER(ctx context.Context, der []byte) (*ca.Certificate, error) {
	x, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, &ca.Refusal{Code: ca.NotFound, Detail: "no certificate"}
	}
	c.mu.Lock()
	old := c.old[fmt.Sprintf("%04x", x.SerialNumber)]
	c.mu.Unlock()
	if old != nil {
		return old, nil
	}
	return c.Certificate(ctx, fmt.Sprintf("%04x", x.SerialNumber))
}

// nameServer answers every A query with 127.0.0.1, unless told otherwise, and counts.
type nameServer struct {
	addr string
	mu   sync.Mutex
	ask  map[string]int      // A queries per name
	zone map[string][]string // name → addresses; nil: 127.0.0.1
	turn map[string][]string // name → addresses, one answer after the other
}

func newNameServer(t testing.TB) *nameServer {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &nameServer{addr: pc.LocalAddr().String(), ask: map[string]int{}, zone: map[string][]string{}, turn: map[string][]string{}}
	srv := &dns.Server{PacketConn: pc, Handler: n}
	ready := make(chan struct{})
	srv.NotifyStartedFunc = func() { close(ready) }
	go srv.ActivateAndServe()
	<-ready
	t.Cleanup(func() { srv.Shutdown() })
	return n
}

func (n *nameServer) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg)
	m.SetReply(q)
	name := strings.TrimSuffix(q.Question[0].Name, ".")
	n.mu.Lock()
	list, ok := n.zone[name]
	if !ok {
		list = []string{"127.0.0.1"}
	}
	if q.Question[0].Qtype == dns.TypeA {
		n.ask[name]++
		if turns := n.turn[name]; len(turns) > 0 {
			list = turns[:1]
			if len(turns) > 1 {
				n.turn[name] = turns[1:]
			}
		}
	}
	n.mu.Unlock()
	switch {
	case len(list) == 1 && list[0] == "NXDOMAIN":
		m.Rcode = dns.RcodeNameError
	case len(list) == 1 && list[0] == "SERVFAIL":
		m.Rcode = dns.RcodeServerFailure
	default:
		for _, s := range list {
			a := netip.MustParseAddr(s)
			head := dns.RR_Header{Name: q.Question[0].Name, Class: dns.ClassINET, Ttl: 0}
			switch {
			case a.Is4() && q.Question[0].Qtype == dns.TypeA:
				head.Rrtype = dns.TypeA
				m.Answer = append(m.Answer, &dns.A{Hdr: head, A: a.AsSlice()})
			case a.Is6() && q.Question[0].Qtype == dns.TypeAAAA:
				head.Rrtype = dns.TypeAAAA
				m.Answer = append(m.Answer, &dns.AAAA{Hdr: head, AAAA: a.AsSlice()})
			}
		}
	}
	w.WriteMsg(m)
}

func (n *nameServer) set(name string, addrs ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.zone[name] = addrs
}

func (n *nameServer) asked() map[string]int {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := map[string]int{}
	for k, v := range n.ask {
		out[k] = v
	}
	return out
}

// responder serves http-01 on 127.0.0.1 for all names.
type responder struct {
	port  uint16
	mu    sync.Mutex
	keys  map[string]string // token → key authorization
	hosts []string
	hook  http.HandlerFunc // instead
	conns atomic.Int64
	stop  func()
}

func newResponder(t testing.TB) *responder {
	r := &responder{keys: map[string]string{}}
	s := httptest.NewUnstartedServer(r)
	s.Config.ConnState = func(_ net.Conn, st http.ConnState) {
		if st == http.StateNew {
			r.conns.Add(1)
		}
	}
	s.Start()
	r.stop = sync.OnceFunc(s.Close)
	t.Cleanup(r.stop)
	r.port = netip.MustParseAddrPort(s.Listener.Addr().String()).Port()
	return r
}

func (r *responder) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	key := r.keys[strings.TrimPrefix(q.URL.Path, "/.well-known/acme-challenge/")]
	r.hosts = append(r.hosts, q.Host)
	hook := r.hook
	r.mu.Unlock()
	switch {
	case hook != nil:
		hook(w, q)
	case key == "":
		http.NotFound(w, q)
	default:
		io.WriteString(w, key+"\n")
	}
}

func (r *responder) put(token, key string) { r.mu.Lock(); defer r.mu.Unlock(); r.keys[token] = key }
func (r *responder) with(h http.HandlerFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hook = h
}

// client is an ACME client that can be told to misbehave.
type client struct {
	h    *house
	key  crypto.Signer
	kid  string
	http *http.Client
}

type answer struct {
	status int
	header http.Header
	body   []byte
}

type problem struct {
	Type        string
	Detail      string
	Status      int
	Algorithms  []string
	Identifier  *acme.Identifier
	Subproblems []problem
}

type order struct {
	url            string
	Status         string
	Expires        string
	Identifiers    []acme.Identifier
	Authorizations []string
	Finalize       string
	Certificate    string
	Error          *problem
}

type authz struct {
	Identifier acme.Identifier
	Status     string
	Challenges []challenge
}

type challenge struct {
	Type, URL, Status, Token string
	Error                    *problem
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (h *house) client() *client { return &client{h: h, key: newKey(h.t), http: http.DefaultClient} }

// member is a client with an account.
func (h *house) member() *client {
	c := h.client()
	c.register()
	return c
}

func (c *client) register() {
	c.h.t.Helper()
	a := c.post("/acme/new-account", map[string]any{"termsOfServiceAgreed": true})
	if a.status != 201 {
		c.h.t.Fatalf("newAccount: %d %s", a.status, a.body)
	}
	c.kid = a.header.Get("Location")
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func jwk(pub crypto.PublicKey) json.RawMessage {
	b, err := jose.JSONWebKey{Key: pub}.MarshalJSON()
	if err != nil {
		panic(err)
	}
	return b
}

func thumbprint(pub crypto.PublicKey) string {
	b, err := (&jose.JSONWebKey{Key: pub}).Thumbprint(crypto.SHA256)
	if err != nil {
		panic(err)
	}
	return b64(b)
}

func (c *client) nonce() string {
	resp, err := c.http.Head(c.h.url + "/acme/new-nonce")
	if err != nil {
		c.h.t.Fatal(err)
	}
	resp.Body.Close()
	return resp.Header.Get("Replay-Nonce")
}

func (c *client) header(url string) map[string]any {
	h := map[string]any{"alg": "ES256", "nonce": c.nonce(), "url": url}
	if c.kid != "" {
		h["kid"] = c.kid
	} else {
		h["jwk"] = jwk(c.key.Public())
	}
	return h
}

// sign makes a flattened JWS, whatever the header says.
func sign(key crypto.Signer, header any, payload []byte) map[string]any {
	head, err := json.Marshal(header)
	if err != nil {
		panic(err)
	}
	p, c := b64(head), b64(payload)
	sum := sha256.Sum256([]byte(p + "." + c))
	var sig []byte
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		r, s, err := ecdsa.Sign(rand.Reader, k, sum[:])
		if err != nil {
			panic(err)
		}
		sig = make([]byte, 64)
		r.FillBytes(sig[:32])
		s.FillBytes(sig[32:])
	default:
		if sig, err = k.Sign(rand.Reader, sum[:], crypto.SHA256); err != nil {
			panic(err)
		}
	}
	return map[string]any{"protected": p, "payload": c, "signature": b64(sig)}
}

func (c *client) send(url string, body []byte, change ...func(*http.Request)) answer {
	c.h.t.Helper()
	req, err := http.NewRequest(http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		c.h.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/jose+json")
	for _, f := range change {
		f(req)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		c.h.t.Error(err)
		return answer{header: http.Header{}}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		c.h.t.Error(err)
	}
	return answer{resp.StatusCode, resp.Header, b}
}

// post signs and sends a payload; nil is a POST-as-GET. A path is made absolute.
func (c *client) post(url string, payload any, change ...func(header map[string]any)) answer {
	c.h.t.Helper()
	if strings.HasPrefix(url, "/") {
		url = c.h.url + url
	}
	var p []byte
	switch v := payload.(type) {
	case nil:
	case string:
		p = []byte(v)
	default:
		p, _ = json.Marshal(v)
	}
	h := c.header(url)
	for _, f := range change {
		f(h)
	}
	body, _ := json.Marshal(sign(c.key, h, p))
	return c.send(url, body)
}

func (c *client) get(url string, into any) answer {
	c.h.t.Helper()
	a := c.post(url, nil)
	a.into(c.h.t, 200, into)
	return a
}

func (a answer) into(t testing.TB, status int, v any) {
	t.Helper()
	if a.status != status {
		t.Fatalf("status %d instead of %d: %s", a.status, status, a.body)
	}
	if err := json.Unmarshal(a.body, v); err != nil {
		t.Fatalf("%v: %s", err, a.body)
	}
}

// wants checks a problem document.
func (a answer) wants(t testing.TB, status int, kind string) problem {
	t.Helper()
	var p problem
	if err := json.Unmarshal(a.body, &p); err != nil || a.status != status || p.Type != "urn:ietf:params:acme:error:"+kind {
		t.Errorf("got %d %s, want %d %s", a.status, a.body, status, kind)
	}
	if a.header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("content type %q", a.header.Get("Content-Type"))
	}
	if a.header.Get("Replay-Nonce") == "" || !strings.Contains(a.header.Get("Link"), `rel="index"`) {
		t.Errorf("no nonce or index link: %v", a.header)
	}
	return p
}

func dnsNames(names ...string) map[string]any {
	var ids []acme.Identifier
	for _, n := range names {
		kind := "dns"
		if _, err := netip.ParseAddr(n); err == nil {
			kind = "ip"
		}
		ids = append(ids, acme.Identifier{Type: kind, Value: n})
	}
	return map[string]any{"identifiers": ids}
}

func (c *client) order(names ...string) order {
	c.h.t.Helper()
	var o order
	a := c.post("/acme/new-order", dnsNames(names...))
	a.into(c.h.t, 201, &o)
	o.url = a.header.Get("Location")
	return o
}

func (c *client) authz(url string) authz {
	c.h.t.Helper()
	var z authz
	c.get(url, &z)
	return z
}

// answer puts the response in place.
func (c *client) provision(ch challenge) {
	c.h.web.put(ch.Token, ch.Token+"."+thumbprint(c.key.Public()))
}

// prove answers the challenge of an authorization and waits for its end.
func (c *client) prove(url string) authz {
	c.h.t.Helper()
	z := c.authz(url)
	if z.Status != "pending" {
		return z
	}
	c.provision(z.Challenges[0])
	if a := c.post(z.Challenges[0].URL, map[string]any{}); a.status != 200 {
		c.h.t.Fatalf("challenge: %d %s", a.status, a.body)
	}
	return c.settle(url)
}

func (c *client) settle(url string) authz {
	c.h.t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for {
		z := c.authz(url)
		if z.Status != "pending" || time.Now().After(deadline) {
			return z
		}
		time.Sleep(5 * time.Millisecond) // the protocol has no event but polling
	}
}

func (c *client) ready(names ...string) order {
	c.h.t.Helper()
	o := c.order(names...)
	for _, u := range o.Authorizations {
		if z := c.prove(u); z.Status != "valid" {
			c.h.t.Fatalf("authorization: %+v", z)
		}
	}
	c.get(o.url, &o)
	if o.Status != "ready" {
		c.h.t.Fatalf("order: %+v", o)
	}
	return o
}

func csr(t testing.TB, key crypto.Signer, tmpl *x509.CertificateRequest) string {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
	if err != nil {
		t.Fatal(err)
	}
	return b64(der)
}

func csrFor(t testing.TB, names ...string) map[string]any {
	tmpl := &x509.CertificateRequest{}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, n)
		}
	}
	return map[string]any{"csr": csr(t, newKey(t), tmpl)}
}

// eventually polls the server for an order to reach a status.
func (c *client) until(o *order, status string) {
	c.h.t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for o.Status != status {
		if time.Now().After(deadline) {
			c.h.t.Fatalf("order is %s, not %s: %+v", o.Status, status, o)
		}
		time.Sleep(5 * time.Millisecond)
		c.get(o.url, o)
	}
}

// leaf is the first certificate of a PEM chain.
func leaf(t testing.TB, chain []byte) []byte {
	t.Helper()
	b, _ := pem.Decode(chain)
	if b == nil {
		t.Fatalf("no PEM: %s", chain)
	}
	return b.Bytes
}

var errInjected = errors.New("injected")
