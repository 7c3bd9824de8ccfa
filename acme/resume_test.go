package acme_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"chancery/acme"
	"chancery/audit"
	"chancery/ca"
)

func on[P audit.Projection](err error) func(audit.Projection) error {
	return func(p audit.Projection) error {
		if _, ok := p.(P); ok {
			return err
		}
		return nil
	}
}

// A crash between the intent and the certificate: the order is issued again from the
// stored CSR, under a new serial, and ends valid.
func TestResumeOrder(t *testing.T) {
	for name, arrange := range map[string]func(h *house){
		"HSM gone": func(h *house) { h.ca.afterIntent.Store(new(func() error { return audit.ErrUnavailable })) },
		"done lost": func(h *house) {
			h.ledger.failOn(on[acme.OrderValid](fmt.Errorf("%w: disk full", audit.ErrUnavailable)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			c := h.member()
			o := c.ready("a.lab")
			arrange(h)
			a := c.post(o.Finalize, csrFor(t, "a.lab"))
			a.into(t, 200, &o)
			if o.Status != "processing" || a.header.Get("Retry-After") != "1" || a.header.Get("Location") != o.url {
				t.Fatalf("%+v %v", o, a.header)
			}
			if h.ca.count() != 0 {
				t.Fatal("a certificate was released")
			}
			c.post(o.Finalize, csrFor(t, "a.lab")).wants(t, 403, "orderNotReady")
			first, _ := h.store.ACMEOrder(t.Context(), o.url[strings.LastIndex(o.url, "/")+1:])
			h.ca.afterIntent.Store(nil)
			h.restart()
			c.until(&o, "valid")
			if got := c.post(o.Certificate, nil); got.status != 200 {
				t.Fatalf("%s", got.body)
			}
			last, _ := h.store.ACMEOrder(t.Context(), first.ID)
			if last.Serial == first.Serial || h.ca.count() != 1 {
				t.Errorf("serial %s then %s, %d certificates", first.Serial, last.Serial, h.ca.count())
			}
		})
	}
}

// The same without a restart: the fault passes.
func TestResumeOrderByItself(t *testing.T) {
	h := newHouse(t)
	c := h.member()
	o := c.ready("a.lab")
	var tries atomic.Int64
	h.ca.afterIntent.Store(new(func() error {
		if tries.Add(1) == 1 {
			return audit.ErrBusy
		}
		return nil
	}))
	c.post(o.Finalize, csrFor(t, "a.lab")).into(t, 200, &o)
	c.until(&o, "valid")
	if h.ca.count() != 1 {
		t.Errorf("%d certificates", h.ca.count())
	}
}

// What cannot be resumed becomes invalid.
func TestResumeRefused(t *testing.T) {
	for name, change := range map[string]func(h *house, c *client, o order){
		"refusal": func(h *house, c *client, o order) {
			h.ca.afterIntent.Store(new(func() error { return &ca.Refusal{Code: ca.BadCSR, Field: "csr", Detail: "no longer allowed"} }))
		},
		"authorization given up": func(h *house, c *client, o order) {
			if a := c.post(o.Authorizations[0], header{"status": "deactivated"}); a.status != 200 {
				h.t.Fatalf("%s", a.body)
			}
			h.ca.afterIntent.Store(nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			c := h.member()
			o := c.ready("a.lab")
			h.ca.afterIntent.Store(new(func() error { return audit.ErrUnavailable }))
			c.post(o.Finalize, csrFor(t, "a.lab")).into(t, 200, &o)
			h.stop()
			change(h, c, o)
			h.restart()
			c.until(&o, "invalid")
			if o.Error == nil || h.ca.count() != 0 {
				t.Errorf("%+v, %d certificates", o, h.ca.count())
			}
		})
	}
}

// A validation that a crash interrupted is carried out again.
func TestResumeValidation(t *testing.T) {
	t.Run("before it began", func(t *testing.T) {
		h := newHouse(t)
		c := h.member()
		o := c.order("a.lab")
		z := c.authz(o.Authorizations[0])
		c.provision(z.Challenges[0])
		h.stop()
		var ch challenge
		c.post(z.Challenges[0].URL, header{}).into(t, 200, &ch)
		if ch.Status != "processing" {
			t.Fatalf("%+v", ch)
		}
		h.restart()
		if z := c.settle(o.Authorizations[0]); z.Status != "valid" {
			t.Fatalf("%+v", z)
		}
	})
	t.Run("result lost", func(t *testing.T) {
		h := newHouse(t)
		c := h.member()
		o := c.order("a.lab")
		z := c.authz(o.Authorizations[0])
		c.provision(z.Challenges[0])
		var tries atomic.Int64
		h.ledger.failOn(func(p audit.Projection) error {
			if _, ok := p.(acme.ChallengeValid); ok && tries.Add(1) == 1 {
				return audit.ErrUnavailable
			}
			return nil
		})
		c.post(z.Challenges[0].URL, header{})
		if z := c.settle(o.Authorizations[0]); z.Status != "valid" || tries.Load() < 2 {
			t.Fatalf("%+v after %d tries", z, tries.Load())
		}
	})
	t.Run("given up meanwhile", func(t *testing.T) {
		h := newHouse(t)
		c := h.member()
		o := c.order("a.lab")
		z := c.authz(o.Authorizations[0])
		begun, hold := make(chan struct{}), make(chan struct{})
		h.srv.OnDial(func(ctx context.Context, next func(context.Context, string, string) (net.Conn, error), addr string) (net.Conn, error) {
			close(begun)
			<-hold
			return next(ctx, "tcp", addr)
		})
		c.provision(z.Challenges[0])
		go c.post(z.Challenges[0].URL, header{})
		<-begun
		c.post(o.Authorizations[0], header{"status": "deactivated"}).into(t, 200, &z)
		close(hold)
		h.stop()
		c.get(o.Authorizations[0], &z)
		c.get(o.url, &o)
		if z.Status != "deactivated" || z.Challenges[0].Status != "invalid" || o.Status != "invalid" {
			t.Errorf("%+v %+v", z, o)
		}
	})
}

// Nothing can be written or signed: 503 with Retry-After, nothing changed, and the
// same request succeeds later.
func TestUnavailable(t *testing.T) {
	h := newHouse(t)
	c := h.member()
	o := c.ready("a.lab")
	pending := c.order("p.lab")
	ch := c.authz(pending.Authorizations[0]).Challenges[0]
	check := func(a answer) {
		t.Helper()
		a.wants(t, 503, "serverInternal")
		if a.header.Get("Retry-After") != "5" || strings.Contains(string(a.body), "secret") {
			t.Errorf("%v %s", a.header, a.body)
		}
	}
	for _, fault := range []error{audit.ErrUnavailable, audit.ErrBusy} {
		h.ledger.failOn(func(audit.Projection) error { return fmt.Errorf("%w: secret path", fault) })
		check(h.client().post("/acme/new-account", header{}))
		check(c.post("/acme/new-order", dnsNames("b.lab")))
		check(c.post(ch.URL, header{}))
		check(c.post(o.Finalize, csrFor(t, "a.lab")))
		check(c.post(c.kid, header{"status": "deactivated"}))
		check(c.post(o.Authorizations[0], header{"status": "deactivated"}))
	}
	h.ledger.failOn(func(audit.Projection) error { return nil })
	c.post(o.Finalize, csrFor(t, "a.lab")).into(t, 200, &o)
	if o.Status != "valid" {
		t.Errorf("%+v", o)
	}
	c.prove(pending.Authorizations[0])
	c.get(pending.url, &pending)
	if pending.Status != "ready" {
		t.Errorf("%+v", pending)
	}
}

// A client that hangs up does not abort its certificate.
func TestClientHangsUp(t *testing.T) {
	h := newHouse(t)
	c := h.member()
	o := c.ready("a.lab")
	begun, hold := make(chan struct{}), make(chan struct{})
	h.ca.afterIntent.Store(new(func() error { close(begun); <-hold; return nil }))
	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, "POST", o.Finalize, strings.NewReader(string(body(sign(c.key, c.header(o.Finalize), body(csrFor(t, "a.lab")))))))
	req.Header.Set("Content-Type", "application/jose+json")
	gone := make(chan struct{})
	go func() { defer close(gone); http.DefaultClient.Do(req) }()
	<-begun
	cancel()
	<-gone
	close(hold)
	c.until(&o, "valid")
}

// Looking for what was left behind does not touch what is under way.
func TestResumeLeavesRunningAlone(t *testing.T) {
	h := newHouse(t)
	c, other := h.member(), h.member()
	h.dns.set("slow.lab", "10.0.0.1")
	var slow atomic.Int64
	begun, hold := make(chan struct{}), make(chan struct{})
	h.srv.OnDial(func(ctx context.Context, next func(context.Context, string, string) (net.Conn, error), addr string) (net.Conn, error) {
		if !strings.HasPrefix(addr, "10.") {
			return next(ctx, "tcp", addr)
		}
		if slow.Add(1) == 1 {
			close(begun)
		}
		<-hold
		return nil, errInjected
	})
	o := c.order("slow.lab")
	ch := c.authz(o.Authorizations[0]).Challenges[0]
	go c.post(ch.URL, header{})
	<-begun
	var tries atomic.Int64
	h.ledger.failOn(func(p audit.Projection) error {
		if _, ok := p.(acme.ChallengeValid); ok && tries.Add(1) == 1 {
			return audit.ErrUnavailable
		}
		return nil
	})
	other.ready("quick.lab") // its first result is lost, so Run looks through all
	close(hold)
	if z := c.settle(o.Authorizations[0]); z.Status != "invalid" || slow.Load() != 1 || tries.Load() != 2 {
		t.Errorf("%+v, %d validations", z, slow.Load())
	}
}

// An order that another node has taken up meanwhile is left to that node, until its attempt
// has ended.
func TestResumeLeavesOtherNodesAlone(t *testing.T) {
	h := newHouse(t)
	c := h.member()
	o := c.ready("a.lab")
	var tries atomic.Int64
	fails := func() error { tries.Add(1); return audit.ErrBusy }
	h.ca.afterIntent.Store(&fails)
	c.post(o.Finalize, csrFor(t, "a.lab")).into(t, 200, &o)
	id := o.url[strings.LastIndex(o.url, "/")+1:]
	left, err := h.store.ACMEOrder(t.Context(), id)
	if err != nil || left.Status != acme.Processing {
		t.Fatalf("%+v, %v", left, err)
	}
	for { // whatever this node tries beside
		if left, err = h.store.ACMEOrder(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		err = h.ledger.Write(t.Context(), acme.OrderProcessing{ID: id, Account: left.Account, CSR: left.CSR, Serial: "77", Old: left.Serial, Now: time.Now()})
		if err == nil {
			break
		}
	}
	h.ca.afterIntent.Store(nil)
	before := tries.Load()
	time.Sleep(5 * time.Second) // a pause and the next are shorter
	if now, err := h.store.ACMEOrder(t.Context(), id); err != nil || now.Status != acme.Processing || now.Serial != "77" || h.ca.count() != 0 {
		t.Errorf("after %d tries: order is %s with serial %s, %d certificates, %v", before, now.Status, now.Serial, h.ca.count(), err)
	}
}
