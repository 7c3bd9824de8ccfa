package acme_test

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"net/http"
	"slices"
	"strings"
	"testing"

	xacme "golang.org/x/crypto/acme"
)

// The whole journey with the client that half the Go world uses.
func TestJourneyWithGoClient(t *testing.T) {
	h := newHouse(t)
	ctx := t.Context()
	key := newKey(t)
	cl := &xacme.Client{Key: key, DirectoryURL: h.url + "/acme/directory"}
	acct, err := cl.Register(ctx, &xacme.Account{Contact: []string{"mailto:a@example.org"}}, xacme.AcceptTOS)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := cl.GetReg(ctx, ""); err != nil || got.URI != acct.URI {
		t.Fatalf("GetReg: %v %v", got, err)
	}
	names := []string{"a.lab", "b.lab"}
	o, err := cl.AuthorizeOrder(ctx, append(xacme.DomainIDs(names...), xacme.IPIDs("127.0.0.1")...))
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range o.AuthzURLs {
		z, err := cl.GetAuthorization(ctx, u)
		if err != nil {
			t.Fatal(err)
		}
		ch := z.Challenges[0]
		resp, err := cl.HTTP01ChallengeResponse(ch.Token)
		if err != nil {
			t.Fatal(err)
		}
		h.web.put(ch.Token, resp)
		if _, err := cl.Accept(ctx, ch); err != nil {
			t.Fatal(err)
		}
		if _, err := cl.WaitAuthorization(ctx, u); err != nil {
			t.Fatal(err)
		}
	}
	if o, err = cl.WaitOrder(ctx, o.URI); err != nil {
		t.Fatal(err)
	}
	der, err := decode(csrFor(t, "a.lab", "b.lab", "127.0.0.1")["csr"].(string))
	if err != nil {
		t.Fatal(err)
	}
	chain, url, err := cl.CreateOrderCert(ctx, o.FinalizeURL, der, true)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil || !slices.Equal(leaf.DNSNames, names) || len(leaf.IPAddresses) != 1 || len(chain) != 2 {
		t.Fatalf("certificate: %v %v", leaf.DNSNames, err)
	}
	if !strings.HasPrefix(url, h.url+"/acme/certificate/") {
		t.Errorf("certificate URL %s", url)
	}
	if err := cl.RevokeCert(ctx, nil, chain[0], xacme.CRLReasonSuperseded); err != nil {
		t.Fatal(err)
	}
	if err := cl.RevokeCert(ctx, nil, chain[0], xacme.CRLReasonSuperseded); err != nil { // the client takes alreadyRevoked as success
		t.Fatal(err)
	}
	if err := cl.AccountKeyRollover(ctx, newKey(t)); err != nil {
		t.Fatal(err)
	}
	if err := cl.DeactivateReg(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := cl.AuthorizeOrder(ctx, xacme.DomainIDs("c.lab")); err == nil {
		t.Fatal("a deactivated account could order")
	}
	for _, host := range h.web.hosts {
		if strings.Contains(host, ":") {
			t.Errorf("Host %q has a port", host)
		}
	}
}

func TestDirectoryAndNonce(t *testing.T) {
	h := newHouse(t)
	for _, c := range []struct {
		method, path string
		status       int
	}{
		{"GET", "/acme/directory", 200}, {"HEAD", "/acme/directory", 200}, {"HEAD", "/acme/new-nonce", 200}, {"GET", "/acme/new-nonce", 204},
		{"PUT", "/acme/directory", 405}, {"POST", "/acme/new-nonce", 405}, {"GET", "/acme/new-order", 405}, {"GET", "/acme/", 404},
		{"GET", "/acme/order/x/finalize/y", 404}, {"DELETE", "/acme/order/x", 405},
	} {
		req, _ := http.NewRequest(c.method, h.url+c.path, nil)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != c.status || resp.Header.Get("Replay-Nonce") == "" || resp.Header.Get("Cache-Control") != "no-store" ||
			resp.Header.Get("Link") != "<"+h.url+`/acme/directory>;rel="index"` {
			t.Errorf("%s %s: %d %v", c.method, c.path, resp.StatusCode, resp.Header)
		}
	}
}

func TestDownloadIsPEM(t *testing.T) {
	h := newHouse(t)
	c := h.member()
	o := c.ready("a.lab")
	a := c.post(o.Finalize, csrFor(t, "a.lab"))
	a.into(t, 200, &o)
	if o.Status != "valid" || a.header.Get("Location") != o.url {
		t.Fatalf("finalize: %+v %v", o, a.header)
	}
	got := c.post(o.Certificate, nil)
	if got.status != 200 || got.header.Get("Content-Type") != "application/pem-certificate-chain" {
		t.Fatalf("download: %d %v", got.status, got.header)
	}
	n := 0
	for rest := got.body; ; n++ {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
	}
	if n != 2 {
		t.Errorf("%d certificates in the chain", n)
	}
}

// A second order for the same name needs no new proof, until the authorization is given up.
func TestAuthzReuse(t *testing.T) {
	h := newHouse(t)
	c := h.member()
	first := c.ready("a.lab")
	second := c.order("A.LAB", "a.lab")
	if second.Status != "ready" || len(second.Authorizations) != 1 || second.Authorizations[0] != first.Authorizations[0] {
		t.Fatalf("%+v", second)
	}
	if other := h.member().order("a.lab"); other.Status != "pending" {
		t.Fatalf("another account profits: %+v", other)
	}
	var z authz
	c.post(first.Authorizations[0], map[string]any{"status": "deactivated"}).into(t, 200, &z)
	if z.Status != "deactivated" {
		t.Fatalf("%+v", z)
	}
	for _, o := range []order{first, second} {
		c.get(o.url, &o)
		if o.Status != "invalid" || o.Error == nil {
			t.Errorf("order after deactivation: %+v", o)
		}
		c.post(o.Finalize, csrFor(t, "a.lab")).wants(t, 403, "orderNotReady")
	}
	if third := c.order("a.lab"); third.Status != "pending" {
		t.Fatalf("%+v", third)
	}
}

func TestFailedChallengeEndsOrderAtOnce(t *testing.T) {
	h := newHouse(t)
	c := h.member()
	o := c.order("a.lab", "b.lab")
	z := c.authz(o.Authorizations[0])
	c.post(z.Challenges[0].URL, map[string]any{})
	z = c.settle(o.Authorizations[0])
	if z.Status != "invalid" || z.Challenges[0].Status != "invalid" || z.Challenges[0].Error == nil || z.Challenges[0].Error.Identifier.Value != "a.lab" {
		t.Fatalf("%+v", z)
	}
	c.get(o.url, &o)
	if o.Status != "invalid" || o.Error == nil || o.Error.Type != "urn:ietf:params:acme:error:incorrectResponse" {
		t.Fatalf("%+v", o)
	}
	// Its other challenge leads nowhere, but does no harm.
	if z := c.prove(o.Authorizations[1]); z.Status != "valid" {
		t.Fatalf("%+v", z)
	}
	c.get(o.url, &o)
	if o.Status != "invalid" {
		t.Fatalf("an invalid order rose again: %+v", o)
	}
}

func TestExpiry(t *testing.T) {
	h := newHouse(t)
	c := h.member()
	pending, ready := c.order("p.lab"), c.ready("r.lab")
	h.clock.advance(8 * 24 * 60 * 60 * 1e9)
	for _, o := range []order{pending, ready} {
		c.get(o.url, &o)
		if o.Status != "invalid" || o.Error == nil {
			t.Errorf("%+v", o)
		}
		c.post(o.Finalize, csrFor(t, "r.lab")).wants(t, 403, "orderNotReady")
	}
	z := c.authz(pending.Authorizations[0])
	if z.Status != "invalid" {
		t.Errorf("%+v", z)
	}
	c.post(z.Challenges[0].URL, map[string]any{}).wants(t, 400, "malformed")
	if z := c.authz(ready.Authorizations[0]); z.Status != "valid" {
		t.Errorf("%+v", z)
	}
	h.clock.advance(23 * 24 * 60 * 60 * 1e9)
	if z := c.authz(ready.Authorizations[0]); z.Status != "expired" {
		t.Errorf("%+v", z)
	}
	if o := c.order("r.lab"); o.Status != "pending" {
		t.Errorf("%+v", o)
	}
}

func TestOrdersList(t *testing.T) {
	h := newHouse(t)
	c := h.member()
	var list struct{ Orders []string }
	c.get(c.kid+"/orders", &list)
	if list.Orders == nil || len(list.Orders) != 0 {
		t.Fatalf("%+v", list)
	}
	want := map[string]bool{}
	for range 230 {
		want[c.order("a.lab").url] = true
	}
	pages, url := 0, c.kid+"/orders"
	for url != "" {
		a := c.get(url, &list)
		pages++
		for _, o := range list.Orders {
			if !want[o] {
				t.Fatalf("%s stands there twice or is foreign", o)
			}
			delete(want, o)
		}
		url = ""
		for _, l := range a.header.Values("Link") {
			if next, ok := strings.CutSuffix(l, `>;rel="next"`); ok {
				url = strings.TrimPrefix(next, "<")
			}
		}
	}
	if pages != 3 || len(want) != 0 {
		t.Fatalf("%d pages, %d orders missing", pages, len(want))
	}
	c.post(c.kid+"/orders?cursor=x", nil).wants(t, 400, "malformed")
}

func decode(s string) ([]byte, error) { return base64.RawURLEncoding.DecodeString(s) }
