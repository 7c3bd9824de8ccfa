package acme_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"chancery/acme"
	"chancery/ca"
)

// keyChange: who may not, and races.
func TestAttack_ACME_10(t *testing.T) {
	h := newHouse(t)
	c, other := h.member(), h.member()
	link := h.url + "/acme/key-change"
	next := newKey(t)
	inner := func(change func(head, payload header), signer *client) map[string]any {
		head := header{"alg": "ES256", "url": link, "jwk": jwk(next.Public())}
		payload := header{"account": c.kid, "oldKey": jwk(c.key.Public())}
		change(head, payload)
		return sign(signer.key, head, body(payload))
	}
	nextClient := &client{h: h, key: next}
	same := func(_, _ header) {}
	for name, in := range map[string]map[string]any{
		"signed by old key":   inner(same, c),
		"account of other":    inner(func(_, p header) { p["account"] = other.kid }, nextClient),
		"account missing":     inner(func(_, p header) { delete(p, "account") }, nextClient),
		"old key wrong":       inner(func(_, p header) { p["oldKey"] = jwk(other.key.Public()) }, nextClient),
		"old key missing":     inner(func(_, p header) { delete(p, "oldKey") }, nextClient),
		"nonce inside":        inner(func(h, _ header) { h["nonce"] = c.nonce() }, nextClient),
		"url differs":         inner(func(h, _ header) { h["url"] = link + "x" }, nextClient),
		"kid instead of jwk":  inner(func(h, _ header) { delete(h, "jwk"); h["kid"] = c.kid }, nextClient),
		"payload no JWS":      {"x": 1},
		"inner unprotected":   {"protected": "e30", "header": header{}, "payload": "", "signature": ""},
		"inner with bad body": {"protected": "e30", "payload": "=", "signature": ""},
	} {
		t.Run(name, func(t *testing.T) {
			if p := c.post(link, in); p.status != 400 {
				t.Errorf("%d %s", p.status, p.body)
			}
		})
	}
	t.Run("key of another account", func(t *testing.T) {
		in := sign(other.key, header{"alg": "ES256", "url": link, "jwk": jwk(other.key.Public())}, body(header{"account": c.kid, "oldKey": jwk(c.key.Public())}))
		a := c.post(link, in)
		a.wants(t, 409, "malformed")
		if a.header.Get("Location") != other.kid {
			t.Errorf("Location %q", a.header.Get("Location"))
		}
	})
	t.Run("race", func(t *testing.T) {
		var won atomic.Int64
		var winner atomic.Pointer[client]
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				k := newKey(t)
				in := sign(k, header{"alg": "ES256", "url": link, "jwk": jwk(k.Public())}, body(header{"account": c.kid, "oldKey": jwk(c.key.Public())}))
				switch a := c.post(link, in); a.status {
				case 200:
					won.Add(1)
					winner.Store(&client{h: h, key: k, kid: c.kid, http: c.http})
				case 409, 400:
				default:
					t.Errorf("%d %s", a.status, a.body)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Fatalf("%d roll-overs won", won.Load())
		}
		c.post("/acme/new-order", dnsNames("a.lab")).wants(t, 400, "malformed") // the old key is out
		winner.Load().order("a.lab")
	})
}

// Another account's objects, and guessed ids.
func TestAttack_ACME_11(t *testing.T) {
	h := newHouse(t)
	a, b := h.member(), h.member()
	o := b.ready("b.lab")
	z := b.authz(o.Authorizations[0])
	pending := b.order("p.lab")
	pz := b.authz(pending.Authorizations[0])
	b.post(o.Finalize, csrFor(t, "b.lab")).into(t, 200, &o)
	ids := map[string]bool{}
	for name, req := range map[string]struct {
		url     string
		payload any
	}{
		"order": {o.url, nil}, "finalize": {pending.Finalize, csrFor(t, "p.lab")}, "authz": {o.Authorizations[0], nil},
		"deactivate": {o.Authorizations[0], header{"status": "deactivated"}}, "challenge": {pz.Challenges[0].URL, header{}},
		"challenge get": {z.Challenges[0].URL, nil}, "certificate": {o.Certificate, nil}, "orders": {b.kid + "/orders", nil},
	} {
		t.Run(name, func(t *testing.T) {
			foreign := a.post(req.url, req.payload).wants(t, 404, "unauthorized")
			ids[req.url] = true
			last := req.url[strings.LastIndex(req.url, "/acme/")+6:]
			guess := regexp.MustCompile(`/[A-Za-z0-9_-]{22}`).ReplaceAllString("/"+last, "/AAAAAAAAAAAAAAAAAAAAAA")
			unknown := a.post(h.url+"/acme"+guess, req.payload).wants(t, 404, "unauthorized")
			if foreign.Detail != unknown.Detail {
				t.Errorf("what exists can be told from what does not: %q %q", foreign.Detail, unknown.Detail)
			}
		})
	}
	t.Run("account", func(t *testing.T) {
		a.post(b.kid, nil).wants(t, 403, "unauthorized")
		a.post(b.kid, header{"status": "deactivated"}).wants(t, 403, "unauthorized")
	})
	for u := range ids {
		if !regexp.MustCompile(`/[A-Za-z0-9_-]{22}(/|$)`).MatchString(u) {
			t.Errorf("id of %s is no 128 bits", u)
		}
	}
	if h.web.conns.Load() != 1 {
		t.Errorf("%d validations", h.web.conns.Load())
	}
}

// A deactivated account can do nothing.
func TestAttack_ACME_12(t *testing.T) {
	h := newHouse(t)
	c := h.member()
	o := c.ready("a.lab")
	done := c.ready("done.lab")
	c.post(done.Finalize, csrFor(t, "done.lab")).into(t, 200, &done)
	var acct struct{ Status string }
	c.post(c.kid, header{"status": "deactivated"}).into(t, 200, &acct)
	if acct.Status != "deactivated" {
		t.Fatal(acct)
	}
	for _, u := range []string{c.kid, c.kid + "/orders", o.url, o.Authorizations[0], done.Certificate} {
		c.post(u, nil).wants(t, 401, "unauthorized")
	}
	c.post(o.Finalize, csrFor(t, "a.lab")).wants(t, 401, "unauthorized")
	c.post("/acme/new-order", dnsNames("b.lab")).wants(t, 401, "unauthorized")
	c.post(c.kid, header{"status": "valid"}).wants(t, 401, "unauthorized")
	c.post(h.url+"/acme/key-change", header{}).wants(t, 401, "unauthorized")
	again := &client{h: h, key: c.key, http: c.http}
	again.post("/acme/new-account", header{}).wants(t, 401, "unauthorized")
	again.post("/acme/new-account", header{"onlyReturnExisting": true}).wants(t, 401, "unauthorized")
}

// The order's state machine, and exactly one certificate.
func TestAttack_ACME_13(t *testing.T) {
	h := newHouse(t)
	c := h.member()
	o := c.order("a.lab")
	c.post(o.Finalize, csrFor(t, "a.lab")).wants(t, 403, "orderNotReady")
	c.prove(o.Authorizations[0])
	var wg sync.WaitGroup
	var ok, refused atomic.Int64
	for range 100 {
		wg.Go(func() {
			a := c.post(o.Finalize, csrFor(t, "a.lab"))
			switch a.status {
			case 200:
				ok.Add(1)
			default:
				refused.Add(1)
				a.wants(t, 403, "orderNotReady")
			}
		})
	}
	wg.Wait()
	if n := h.ca.count(); n != 1 {
		t.Fatalf("%d certificates", n)
	}
	if ok.Load() < 1 {
		t.Fatal("nobody got an answer")
	}
	c.get(o.url, &o)
	if o.Status != "valid" {
		t.Fatalf("%+v", o)
	}
	c.post(o.Finalize, csrFor(t, "a.lab")).wants(t, 403, "orderNotReady")
	if n := h.ca.count(); n != 1 {
		t.Fatalf("%d certificates", n)
	}
}

// Two servers on one database, as two nodes are: still exactly one certificate.
func TestFinalizeOnTwoNodes(t *testing.T) {
	h := newHouse(t)
	c := h.member()
	o := c.ready("a.lab")
	second, err := acme.New(h.cfg) // the same nonce key: nonces of either are taken by both
	if err != nil {
		t.Fatal(err)
	}
	var turn atomic.Int64
	first := h.srv
	h.swap(func() *acme.Server {
		if turn.Add(1)%2 == 0 {
			return second
		}
		return first
	})
	var both, wg sync.WaitGroup
	both.Add(2)
	h.ca.beforeIntent.Store(new(func() { both.Done(); both.Wait() })) // both are prepared before either begins
	reqs := [][]byte{}
	for range 2 {
		reqs = append(reqs, body(sign(c.key, c.header(o.Finalize), body(csrFor(t, "a.lab")))))
	}
	for _, req := range reqs { // the two meet different servers
		wg.Go(func() {
			if a := c.send(o.Finalize, req); a.status != 200 {
				t.Errorf("%d %s", a.status, a.body)
			}
		})
	}
	wg.Wait()
	if n, m := h.ca.count(), h.ca.intents.Load(); n != 1 || m != 1 {
		t.Fatalf("%d certificates after %d intents", n, m)
	}
}

// The names of the CSR are not those of the order.
func TestAttack_ACME_14(t *testing.T) {
	h := newHouse(t)
	c := h.member()
	o := c.ready("a.lab", "b.lab")
	link, _ := url.Parse("https://a.lab/")
	names := []string{"a.lab", "b.lab"}
	for name, tmpl := range map[string]*x509.CertificateRequest{
		"subset":   {DNSNames: names[:1]},
		"superset": {DNSNames: append([]string{"c.lab"}, names...)},
		"none":     {},
		"other":    {DNSNames: []string{"a.lab", "c.lab"}},
		"twice":    {DNSNames: []string{"a.lab", "a.lab"}},
		"wildcard": {DNSNames: append([]string{"*.a.lab"}, names...)},
		"extra IP": {DNSNames: names, IPAddresses: []net.IP{{127, 0, 0, 1}}},
		"CN extra": {DNSNames: names, Subject: pkix.Name{CommonName: "c.lab"}},
		"CN free":  {DNSNames: names, Subject: pkix.Name{CommonName: "My Server"}},
		"e-mail":   {DNSNames: names, EmailAddresses: []string{"a@a.lab"}},
		"URI":      {DNSNames: names, URIs: []*url.URL{link}},
	} {
		t.Run(name, func(t *testing.T) {
			c.post(o.Finalize, header{"csr": csr(t, newKey(t), tmpl)}).wants(t, 400, "badCSR")
		})
	}
	t.Run("account key", func(t *testing.T) {
		c.post(o.Finalize, header{"csr": csr(t, c.key, &x509.CertificateRequest{DNSNames: names})}).wants(t, 400, "badCSR")
		c.post(o.Finalize, header{"csr": csr(t, h.member().key, &x509.CertificateRequest{DNSNames: names})}).wants(t, 400, "badCSR")
	})
	for name, in := range map[string]any{"no CSR": header{}, "padded": header{"csr": "AA=="}, "garbage": header{"csr": "AAAA"}, "empty": ""} {
		t.Run(name, func(t *testing.T) {
			if a := c.post(o.Finalize, in); a.status != 400 {
				t.Errorf("%d %s", a.status, a.body)
			}
		})
	}
	if h.ca.count() != 0 {
		t.Fatal("a certificate was issued")
	}
	// After all that the order is still ready, and another case and a CN are fine.
	a := c.post(o.Finalize, header{"csr": csr(t, newKey(t), &x509.CertificateRequest{DNSNames: []string{"B.LAB", "A.lab"}, Subject: pkix.Name{CommonName: "a.lab", Organization: []string{"acme.sh"}}})})
	a.into(t, 200, &o)
	if o.Status != "valid" {
		t.Errorf("%+v", o)
	}
}

// Every name is checked, not one name N times; and one proven name is not enough.
func TestAttack_ACME_15(t *testing.T) {
	h := newHouse(t)
	c := h.member()
	c.ready("a.lab")
	o := c.order("a.lab", "b.lab")
	c.post(o.Finalize, csrFor(t, "a.lab", "b.lab")).wants(t, 403, "orderNotReady")
	for _, n := range []int{1, 2, 3, 5, 10, 33, 100} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			c := h.member()
			before := h.dns.asked()
			var names []string
			for i := range n {
				names = append(names, fmt.Sprintf("n%d-of-%d.lab", i, n))
			}
			o := c.order(names...)
			if len(o.Authorizations) != n {
				t.Fatalf("%d authorizations", len(o.Authorizations))
			}
			for i, u := range o.Authorizations {
				if i == n-1 {
					c.post(o.Finalize, csrFor(t, names...)).wants(t, 403, "orderNotReady")
				}
				if z := c.prove(u); z.Status != "valid" || z.Identifier.Value != names[i] {
					t.Fatalf("%+v", z)
				}
			}
			after := h.dns.asked()
			for _, name := range names {
				if after[name]-before[name] != 1 {
					t.Errorf("%s was looked up %d times", name, after[name]-before[name])
				}
			}
			c.post(o.Finalize, csrFor(t, names...)).into(t, 200, &o)
			if o.Status != "valid" {
				t.Errorf("%+v", o)
			}
		})
	}
	t.Run("101", func(t *testing.T) {
		var names []string
		for i := range 101 {
			names = append(names, fmt.Sprintf("n%d.lab", i))
		}
		c.post("/acme/new-order", dnsNames(names...)).wants(t, 400, "rejectedIdentifier")
	})
}

// Names that nobody gets.
func TestAttack_ACME_26(t *testing.T) {
	h := newHouse(t, func(c *acme.Config) {
		c.Validation.LocalhostToLoopback = false
		c.Names = acme.Names{Deny: []string{"secret.lab", "10.9.0.0/16"}, PrivateOnly: true}
	})
	c := h.member()
	cases := map[string]string{ // name → type
		"localhost": "rejectedIdentifier", "x.localhost": "rejectedIdentifier", "com": "rejectedIdentifier", "co.uk": "rejectedIdentifier",
		"example.com": "rejectedIdentifier", "secret.lab": "rejectedIdentifier", "x.secret.lab": "rejectedIdentifier", "*.lab": "rejectedIdentifier",
		"*.a.lab": "rejectedIdentifier", "*": "rejectedIdentifier", "*.*.lab": "rejectedIdentifier", "f*.lab": "rejectedIdentifier", "a.*.lab": "rejectedIdentifier",
		"a..lab": "rejectedIdentifier", "a.lab.": "rejectedIdentifier", "": "rejectedIdentifier", "bücher.lab": "rejectedIdentifier",
		"good.lab\x00.evil.lab": "rejectedIdentifier", "a.lab\r\nx": "rejectedIdentifier", strings.Repeat("a", 64) + ".lab": "rejectedIdentifier",
		strings.Repeat("a.", 126) + "lab": "rejectedIdentifier", "xn--zz.lab": "rejectedIdentifier", "-a.lab": "rejectedIdentifier",
		"<script>alert(1)</script>": "rejectedIdentifier", "a b.lab": "rejectedIdentifier",
		"169.254.169.254": "rejectedIdentifier", "10.9.1.1": "rejectedIdentifier", "::1": "rejectedIdentifier", "::ffff:10.0.0.1": "rejectedIdentifier", "fe80::1%eth0": "rejectedIdentifier",
	}
	for name, kind := range cases {
		t.Run(name, func(t *testing.T) {
			a := c.post("/acme/new-order", dnsNames(name))
			p := a.wants(t, 400, kind)
			if len(p.Subproblems) != 1 || p.Subproblems[0].Identifier == nil || p.Subproblems[0].Detail == "" {
				t.Errorf("%s", a.body)
			}
			plain(t, a.body)
		})
	}
	t.Run("an IP as dns", func(t *testing.T) {
		c.post("/acme/new-order", header{"identifiers": []header{{"type": "dns", "value": "127.0.0.1"}}}).wants(t, 400, "rejectedIdentifier")
	})
	t.Run("another type", func(t *testing.T) {
		c.post("/acme/new-order", header{"identifiers": []header{{"type": "email\x1b", "value": "a@b"}}}).wants(t, 400, "unsupportedIdentifier")
	})
	t.Run("each has its subproblem", func(t *testing.T) {
		p := c.post("/acme/new-order", dnsNames("ok.lab", "com", "*.a.lab", "secret.lab")).wants(t, 400, "rejectedIdentifier")
		if len(p.Subproblems) != 3 {
			t.Errorf("%+v", p)
		}
	})
	t.Run("not before", func(t *testing.T) {
		c.post("/acme/new-order", header{"identifiers": dnsNames("a.lab")["identifiers"], "notAfter": "2020-01-01T00:00:00Z"}).wants(t, 400, "malformed")
	})
	if o := c.order("10.1.2.3", "fd00::1", "printer1", "xn--bcher-kva.lab"); o.Status != "pending" {
		t.Errorf("%+v", o)
	}
}

// plain checks that an answer is safe to print anywhere.
func plain(t *testing.T, b []byte) {
	t.Helper()
	for _, r := range string(b) {
		if r < ' ' || r == 0x7f || r == '<' || r >= 0x80 && r <= 0x9f {
			t.Fatalf("%q in %s", r, b)
		}
	}
}

// Accounts: what else may be asked.
func TestAccounts(t *testing.T) {
	h := newHouse(t, func(c *acme.Config) { c.TermsOfService = "https://ca.example/terms" })
	c := h.client()
	c.post("/acme/new-account", header{"onlyReturnExisting": true}).wants(t, 400, "accountDoesNotExist")
	a := c.post("/acme/new-account", header{})
	a.wants(t, 403, "userActionRequired")
	if !strings.Contains(strings.Join(a.header.Values("Link"), " "), `<https://ca.example/terms>;rel="terms-of-service"`) {
		t.Errorf("%v", a.header)
	}
	for contact, kind := range map[string]string{"tel:+1": "unsupportedContact", "x": "unsupportedContact", "mailto:": "invalidContact", "mailto:a": "invalidContact",
		"mailto:a@b.c,d@e.f": "invalidContact", "mailto:a@b.c?subject=x": "invalidContact", "mailto:<img@x.y>": "invalidContact", "mailto:ä@b.c": "invalidContact",
		"mailto:" + strings.Repeat("a", 300) + "@b.c": "invalidContact", "mailto:a@b.c\r\n": "invalidContact"} {
		p := c.post("/acme/new-account", header{"termsOfServiceAgreed": true, "contact": []string{contact}}).wants(t, 400, kind)
		plain(t, []byte(p.Detail))
	}
	var acct struct {
		Status  string
		Contact []string
		Orders  string
	}
	a = c.post("/acme/new-account", header{"termsOfServiceAgreed": true, "contact": []string{"mailto:a@b.c"}, "unknown": 1})
	a.into(t, 201, &acct)
	kid := a.header.Get("Location")
	if acct.Status != "valid" || acct.Orders != kid+"/orders" || len(acct.Contact) != 1 {
		t.Errorf("%s", a.body)
	}
	// The same key again, and certbot's way to ask for an account.
	for _, again := range []any{header{}, header{"onlyReturnExisting": true, "contact": []string{}, "status": "valid", "orders": "x", "termsOfServiceAgreed": true}} {
		a = c.post("/acme/new-account", again)
		a.into(t, 200, &acct)
		if a.header.Get("Location") != kid || len(acct.Contact) != 1 {
			t.Errorf("%v %s", a.header, a.body)
		}
	}
	c.kid = kid
	c.post(kid, header{"contact": []string{"mailto:new@b.c"}}).into(t, 200, &acct)
	c.get(kid, &acct)
	if len(acct.Contact) != 1 || acct.Contact[0] != "mailto:new@b.c" {
		t.Errorf("%+v", acct)
	}
	c.post(kid, header{"status": "revoked"}).wants(t, 400, "malformed")
	c.post(kid, header{"contact": []string{"x"}}).wants(t, 400, "unsupportedContact")
	c.post(kid, header{"contact": []string{}}).into(t, 200, &acct)

	racer := h.client()
	var created atomic.Int64
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			switch a := racer.post("/acme/new-account", header{"termsOfServiceAgreed": true}); a.status {
			case 201:
				created.Add(1)
			case 200:
			default:
				t.Errorf("%d %s", a.status, a.body)
			}
		})
	}
	wg.Wait()
	if created.Load() != 1 {
		t.Errorf("%d accounts for one key", created.Load())
	}
}

func TestRevocation(t *testing.T) {
	h := newHouse(t)
	owner := h.member()
	issue := func(key *client, name string) string {
		o := owner.ready(name)
		owner.post(o.Finalize, header{"csr": csr(t, key.key, &x509.CertificateRequest{DNSNames: []string{name}})}).into(t, 200, &o)
		c, err := h.ca.CertificateByDER(t.Context(), leaf(t, owner.post(o.Certificate, nil).body))
		if err != nil {
			t.Fatal(err)
		}
		return b64(c.DER)
	}
	certKey := h.client()
	one := issue(certKey, "one.lab")
	stranger := h.member()
	stranger.post("/acme/revoke-cert", header{"certificate": one}).wants(t, 403, "unauthorized")
	h.client().post("/acme/revoke-cert", header{"certificate": one}).wants(t, 403, "unauthorized")
	owner.post("/acme/revoke-cert", header{"certificate": one, "reason": 7}).wants(t, 400, "badRevocationReason")
	owner.post("/acme/revoke-cert", header{"certificate": b64(h.ca.cert.Raw)}).wants(t, 404, "malformed")
	owner.post("/acme/revoke-cert", header{"certificate": "AAAA"}).wants(t, 404, "malformed")
	owner.post("/acme/revoke-cert", header{"certificate": "!"}).wants(t, 400, "malformed")
	if a := certKey.post("/acme/revoke-cert", header{"certificate": one, "reason": 1}); a.status != 200 || len(a.body) != 0 {
		t.Errorf("by the certificate's key: %d %s", a.status, a.body)
	}
	owner.post("/acme/revoke-cert", header{"certificate": one}).wants(t, 400, "alreadyRevoked")
	two := issue(h.client(), "two.lab")
	stranger.ready("two.lab")
	if a := stranger.post("/acme/revoke-cert", header{"certificate": two}); a.status != 200 {
		t.Errorf("by an account that is authorized for all names: %d %s", a.status, a.body)
	}
	three := issue(h.client(), "three.lab")
	if a := owner.post("/acme/revoke-cert", header{"certificate": three}); a.status != 200 {
		t.Errorf("by the owner: %d %s", a.status, a.body)
	}
}

// After a restore nobody is known to have got a certificate of before: its key revokes it,
// and accounts that are authorized for its names.
func TestRevocationAfterRestore(t *testing.T) {
	h := newHouse(t)
	owner, certKey := h.member(), h.client()
	old := func(name string) string {
		o := owner.ready(name)
		owner.post(o.Finalize, header{"csr": csr(t, certKey.key, &x509.CertificateRequest{DNSNames: []string{name}})}).into(t, 200, &o)
		c, err := h.ca.CertificateByDER(t.Context(), leaf(t, owner.post(o.Certificate, nil).body))
		if err != nil {
			t.Fatal(err)
		}
		h.ca.mu.Lock()
		defer h.ca.mu.Unlock()
		delete(h.ca.issued, c.Serial)
		h.ca.old = map[string]*ca.Certificate{c.Serial: {Serial: c.Serial, Issuer: c.Issuer, DER: c.DER, Names: c.Names, Predecessor: true}}
		return b64(c.DER)
	}
	one := old("one.lab")
	h.client().post("/acme/revoke-cert", header{"certificate": one}).wants(t, 403, "unauthorized")
	h.member().post("/acme/revoke-cert", header{"certificate": one}).wants(t, 403, "unauthorized")
	if a := certKey.post("/acme/revoke-cert", header{"certificate": one, "reason": 1}); a.status != 200 {
		t.Errorf("by the certificate's key: %d %s", a.status, a.body)
	}
	if a := owner.post("/acme/revoke-cert", header{"certificate": old("two.lab")}); a.status != 200 {
		t.Errorf("by an account that is authorized for all names: %d %s", a.status, a.body)
	}
}
