package acme_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chancery/acme"
	"chancery/audit"
)

// from sends a request as if it came from an address.
func (c *client) from(remote, path string, payload any) answer {
	url := c.h.url + path
	r := httptest.NewRequest(http.MethodPost, url, bytes.NewReader(body(sign(c.key, c.header(url), body(payload)))))
	r.Header.Set("Content-Type", "application/jose+json")
	r.RemoteAddr = remote
	w := httptest.NewRecorder()
	c.h.srv.Handler().ServeHTTP(w, r)
	return answer{w.Code, w.Header(), w.Body.Bytes()}
}

func (a answer) limited(t *testing.T) {
	t.Helper()
	a.wants(t, 429, "rateLimited")
	if n, err := strconv.Atoi(a.header.Get("Retry-After")); err != nil || n < 1 || n > 3600 {
		t.Errorf("Retry-After: %q", a.header.Get("Retry-After"))
	}
}

// One account that opens orders without end gets as many as are allowed, exactly, and
// harms nobody else.
func TestAttack_ACME_31_OpenOrders(t *testing.T) {
	h := newHouse(t, func(c *acme.Config) { c.MaxOpenOrders = 7 })
	c := h.member()
	var got, limited atomic.Int64
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			for range 10 {
				if a := c.post("/acme/new-order", dnsNames("a.lab", "b.lab")); a.status == 201 {
					got.Add(1)
				} else {
					limited.Add(1)
					a.limited(t)
				}
			}
		})
	}
	wg.Wait()
	if got.Load() != 7 || limited.Load() != 93 {
		t.Errorf("%d orders were made, %d refused", got.Load(), limited.Load())
	}
	h.member().order("a.lab")
	var list struct{ Orders []string }
	c.get(c.kid+"/orders", &list)
	var o order
	c.get(list.Orders[0], &o)
	c.post(o.Authorizations[0], map[string]any{"status": "deactivated"}) // one place is free again
	c.order("a.lab")
	c.post("/acme/new-order", dnsNames("a.lab")).limited(t)
	h.clock.advance(8 * 24 * time.Hour) // all have expired
	for range 7 {
		o := c.ready("c.lab")
		c.post(o.Finalize, csrFor(t, "c.lab")).into(t, 200, &o) // one that is finalized does not count
	}
	c.order("a.lab")
}

// Accounts from one address are bounded, and so is the memory that counts them.
func TestAttack_ACME_31_Accounts(t *testing.T) {
	h := newHouse(t, func(c *acme.Config) { c.AccountsPerHour = 3 })
	for i, remote := range []string{"203.0.113.9:1", "203.0.113.9:2", "[2001:db8:1:2::1]:1", "[2001:db8:1:2:ffff::9]:1"} {
		c := h.client()
		for range i % 2 { // so that there are three from each address
			h.client().from(remote, "/acme/new-account", struct{}{}).into(t, 201, &struct{}{})
		}
		c.from(remote, "/acme/new-account", struct{}{}).into(t, 201, &struct{}{})
		if i%2 == 1 {
			h.client().from(remote, "/acme/new-account", struct{}{}).limited(t)
			c.from(remote, "/acme/new-account", struct{}{}).into(t, 200, &struct{}{}) // asking for one's own is no arrival
		}
	}
	h.client().from("203.0.113.10:1", "/acme/new-account", struct{}{}).into(t, 201, &struct{}{})
	h.clock.advance(time.Hour)
	h.client().from("203.0.113.9:1", "/acme/new-account", struct{}{}).into(t, 201, &struct{}{})
	for range 5 { // a proxy of ours
		h.client().register()
	}

	var a acme.Arrivals
	for i := range 100_000 {
		a.Admit(fmt.Sprint(i), time.Unix(1e9, 0), 50_000)
	}
	if a.Len() > 1<<16+1 || !a.Admit("new", time.Unix(1e9, 0), 50_000) {
		t.Errorf("%d sources", a.Len())
	}
}

// Somebody with many accounts at one address cannot take every place for validations.
func TestAttack_ACME_31_Sources(t *testing.T) {
	hold := make(chan struct{})
	var evil, good atomic.Int64
	q := acme.NewQueue(func(account string) {
		if strings.HasPrefix(account, "good") {
			good.Add(1)
			return
		}
		evil.Add(1)
		<-hold
	})
	taken := 0
	for i := range 100 {
		taken += q.Add(fmt.Sprint("evil", i), "203.0.113.9", 200)
	}
	if taken != 8192 {
		t.Errorf("%d places were taken from one address", taken)
	}
	if n := q.Add("good", "203.0.113.10", 100) + q.Add("good2", "", 100); n != 200 {
		t.Errorf("others got %d of 200 places", n)
	}
	q.Open(t.Context())
	for deadline := time.Now().Add(10 * time.Second); good.Load()+evil.Load() < 392 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if good.Load() != 200 || evil.Load() != 192 {
		t.Errorf("%d of 200 validations of others were carried out beside %d", good.Load(), evil.Load())
	}
	close(hold)
	for deadline := time.Now().Add(10 * time.Second); !q.Empty() && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	q.Drain()
	if !q.Empty() || evil.Load() != 8192 {
		t.Errorf("something is left: %d", evil.Load())
	}
}

// Expired orders do not stay for ever; what led to a certificate does.
func TestSweep(t *testing.T) {
	h := newHouse(t)
	c := h.member()
	used := c.ready("used.lab")
	c.post(used.Finalize, csrFor(t, "used.lab")).into(t, 200, &used)
	both := c.order("used.lab", "never.lab") // shares an authorization with it
	for range 12 {
		c.order("a.lab", "b.lab")
	}
	proved := c.ready("proved.lab")
	sweep := func(want int) {
		t.Helper()
		total := 0
		for range 5 {
			n, err := h.srv.SweepOnce(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			total += n
		}
		if total != want {
			t.Errorf("%d orders were deleted, not %d", total, want)
		}
	}
	h.clock.advance(36 * 24 * time.Hour)
	sweep(0)
	open := c.order("open.lab")
	h.clock.advance(2 * 24 * time.Hour)
	sweep(14)
	for _, url := range append([]string{both.url, proved.url, both.Authorizations[1]}, proved.Authorizations...) {
		c.post(url, nil).wants(t, 404, "unauthorized")
	}
	c.get(used.url, &used)
	if z := c.authz(used.Authorizations[0]); used.Status != "valid" || z.Status != "expired" || len(z.Challenges) != 1 {
		t.Errorf("%+v %+v", used, z)
	}
	if c.post(used.Certificate, nil).status != 200 || c.prove(open.Authorizations[0]).Status != "valid" {
		t.Error("a living object was deleted")
	}
	for table, want := range map[string]int{"acme_order": 2, "acme_order_authz": 2, "acme_authz": 2, "acme_challenge": 2} {
		if n := h.rows(table); n != want {
			t.Errorf("%s has %d rows, not %d", table, n, want)
		}
	}
}

func (h *house) rows(table string) (n int) {
	h.t.Helper()
	db, err := sql.Open("sqlite3", h.path)
	if err != nil {
		h.t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRowContext(context.Background(), "SELECT count(*) FROM "+table).Scan(&n); err != nil {
		h.t.Fatal(err)
	}
	return n
}

// A CSR with thousands of names is refused before each is compared with each.
func TestAttack_ACME_14_ManyNames(t *testing.T) {
	h := newHouse(t)
	c := h.member()
	o := c.ready("a.lab")
	tmpl := &x509.CertificateRequest{}
	for i := range 2500 {
		tmpl.DNSNames = append(tmpl.DNSNames, strconv.Itoa(i)+".lab")
	}
	many := map[string]any{"csr": csr(t, newKey(t), tmpl)}
	began := time.Now()
	for range 10 {
		c.post(o.Finalize, many).wants(t, 400, "badCSR")
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("ten took %s", took)
	}
	c.post(o.Finalize, csrFor(t, "a.lab")).into(t, 200, &o)
}

// What is no JSON object changes nothing, not even null, which decodes into everything.
func TestAttack_ACME_07_NotAnObject(t *testing.T) {
	h := newHouse(t)
	c := h.member()
	o := c.ready("a.lab")
	waiting := c.order("b.lab").Authorizations[0]
	z := c.authz(waiting)
	for _, payload := range []string{"null", " null", "[]", "0", `""`, "true", "{}{}", "{", `{"status":"deactivated","status":"valid"}`} {
		for _, path := range []string{c.kid, "/acme/new-order", o.Finalize, o.Authorizations[0], z.Challenges[0].URL, "/acme/revoke-cert"} {
			if strings.HasPrefix(payload, "{") && path == z.Challenges[0].URL && json.Valid([]byte(payload)) {
				continue // a challenge takes any object
			}
			c.post(path, payload).wants(t, 400, "malformed")
		}
		fresh := h.client()
		fresh.post("/acme/new-account", payload).wants(t, 400, "malformed")
	}
	if z := c.authz(o.Authorizations[0]); z.Status != "valid" {
		t.Errorf("%+v", z)
	}
	if z := c.authz(waiting); z.Challenges[0].Status != "pending" {
		t.Errorf("a validation was started: %+v", z)
	}
}

// A nonce that an earlier process made is good for minutes only.
func TestAttack_ACME_05_EarlierProcess(t *testing.T) {
	now := time.Unix(1.8e9, 0)
	clock := func() time.Time { return now }
	key := bytes.Repeat([]byte{7}, 32)
	first := acme.NewNonces(key, clock)
	early := first.Make()
	now = now.Add(9 * time.Minute)
	late, late2, late3 := first.Make(), first.Make(), first.Make()
	now = now.Add(2 * time.Minute)
	second := acme.NewNonces(key, clock)
	if second.Use(early) {
		t.Error("a nonce of an earlier process is good after 11 minutes")
	}
	if !second.Use(late) || second.Use(late) {
		t.Error("a recent one is not good, or is good twice")
	}
	now = now.Add(7 * time.Minute)
	if !second.Use(late2) {
		t.Error("not good after 9 minutes")
	}
	now = now.Add(2 * time.Minute)
	if second.Use(late3) || second.Use(late) {
		t.Error("still good after 11 minutes")
	}
}

// The status of a place that a redirect leads to is not told: it may be another's.
func TestAttack_ACME_22_RedirectOracle(t *testing.T) {
	h := newHouse(t)
	c := h.member()
	var details []string
	for _, status := range []int{200, 401, 403, 404, 500} {
		h.web.with(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/internal" {
				w.Header().Set("Content-Encoding", map[bool]string{true: "gzip"}[status == 200])
				w.WriteHeader(status)
				return
			}
			http.Redirect(w, r, "/internal", http.StatusFound)
		})
		p := c.fails("a.lab")
		details = append(details, p.Type+p.Detail)
	}
	for _, d := range details[1:] {
		if d != details[0] {
			t.Errorf("%q and %q can be told apart", details[0], d)
		}
	}
}

// Everything at once: whatever the order of finalizations, deactivations, key changes
// and look-ups, an order ends with one certificate or with none.
func TestAttack_ACME_13_Storm(t *testing.T) {
	h := newHouse(t)
	for round := range 12 {
		c := h.member()
		name := fmt.Sprintf("r%d.lab", round)
		o := c.ready(name)
		before := h.ca.count()
		next := newKey(t)
		var wg sync.WaitGroup
		act := func(n int, f func()) {
			for range n {
				wg.Go(f)
			}
		}
		ok := func(a answer) {
			if a.status >= 500 {
				t.Errorf("%d %s", a.status, a.body)
			}
		}
		finalize := csrFor(t, name)
		act(40, func() { ok(c.post(o.Finalize, finalize)) })
		act(20, func() { ok(c.post(o.url, nil)) })
		act(20, func() { ok(c.post("/acme/new-order", dnsNames(name))) })
		switch round % 3 {
		case 0:
			act(20, func() { ok(c.post(o.Authorizations[0], map[string]any{"status": "deactivated"})) })
		case 1:
			act(20, func() { ok(c.post(c.kid, map[string]any{"status": "deactivated"})) })
		case 2:
			url := h.url + "/acme/key-change"
			inner := sign(next, map[string]any{"alg": "ES256", "jwk": jwk(next.Public()), "url": url}, body(map[string]any{"account": c.kid, "oldKey": jwk(c.key.Public())}))
			act(20, func() { ok(c.post(url, inner)) })
		}
		wg.Wait()
		stored, err := h.store.ACMEOrder(t.Context(), o.url[strings.LastIndexByte(o.url, '/')+1:])
		if err != nil {
			t.Fatal(err)
		}
		issued := h.ca.count() - before
		switch {
		case stored.Status == acme.Valid && issued == 1:
		case stored.Status == acme.Invalid && issued == 0 && round%3 == 0:
		case stored.Status == acme.Ready && issued == 0 && round%3 > 0: // the account went, or its key, before any finalization
		default:
			t.Errorf("round %d: order %s, %d certificates", round, stored.Status, issued)
		}
	}
}

// A panic in a validation or a resumption does not end the process, which would find
// the same work again after its restart.
func TestPanicDoesNotEndTheProcess(t *testing.T) {
	h := newHouse(t)
	c := h.member()
	armed := atomic.Bool{}
	h.srv.OnDial(func(ctx context.Context, next func(context.Context, string, string) (net.Conn, error), addr string) (net.Conn, error) {
		if armed.Load() {
			panic("a bug in a parser")
		}
		return next(ctx, "tcp", addr)
	})
	armed.Store(true)
	if p := c.fails("a.lab"); kind(p) != "serverInternal" || strings.Contains(p.Detail, "bug") {
		t.Errorf("%+v", p)
	}
	armed.Store(false)

	o := c.ready("b.lab")
	h.ca.afterIntent.Store(new(func() error { return audit.ErrUnavailable })) // what a crash would leave
	c.post(o.Finalize, csrFor(t, "b.lab"))
	h.ca.afterIntent.Store(new(func() error { panic("a bug in an encoder") }))
	h.restart()
	c.until(&o, "invalid")
	if o.Error == nil || kind(*o.Error) != "serverInternal" {
		t.Errorf("%+v", o)
	}
	h.ca.afterIntent.Store(nil)
	o = c.order("b.lab")
	c.post(o.Finalize, csrFor(t, "b.lab")).into(t, 200, &o)
}
