package acme_test

import (
	"strings"
	"testing"

	"chancery/acme"
)

// What policy or authentication refuses is counted by its type and resource; malformed
// requests and what fails by state are not. No id, name or address stands in kind or detail.
func TestRefusalsAreCounted(t *testing.T) {
	h := newHouse(t, func(c *acme.Config) { c.Names = acme.Names{Deny: []string{"secret.lab"}} })
	c := h.member()
	o := c.ready("a.lab")
	h.ledger.counted()
	for _, x := range []struct {
		name string
		do   func()
		want string
	}{
		{"denied name", func() { c.post(h.url+"/acme/new-order", dnsNames("x.secret.lab")) }, "acme:rejectedIdentifier new-order"},
		{"other names in the CSR", func() { c.post(o.Finalize, csrFor(t, "b.lab")) }, "acme:badCSR order/{id}/finalize"},
		{"somebody else's order", func() { h.member().post(o.url, nil) }, "acme:unauthorized order/{id}"},
		{"other URL", func() {
			c.post(h.url+"/acme/new-order", dnsNames("c.lab"), func(header map[string]any) { header["url"] = h.url + "/acme/new-account" })
		}, "acme:unauthorized new-order"},
		{"stale nonce", func() {
			c.post(h.url+"/acme/new-order", dnsNames("c.lab"), func(header map[string]any) { header["nonce"] = "AAAA" })
		}, ""},
		{"nothing there", func() { c.post(h.url+"/acme/nowhere", nil) }, ""},
		{"well", func() { c.post(o.url, nil) }, ""},
	} {
		x.do()
		var got []string
		for _, r := range h.ledger.counted() {
			got = append(got, r.Kind+" "+r.Detail)
			if r.Client != "127.0.0.1" {
				t.Errorf("%s: client %q", x.name, r.Client)
			}
		}
		if strings.Join(got, ", ") != x.want {
			t.Errorf("%s: counted %q, want %q", x.name, got, x.want)
		}
	}
}

// The CA is told who asks and on what ground, and nothing personal is in the ground.
func TestEvidenceOfAnOrder(t *testing.T) {
	h := newHouse(t)
	c := h.member()
	o := c.ready("a.lab", "b.lab")
	c.post(o.Finalize, csrFor(t, "a.lab", "b.lab")).into(t, 200, &o)
	c.until(&o, "valid")
	h.ca.mu.Lock()
	defer h.ca.mu.Unlock()
	r := h.ca.order[0]
	record := string(r.Evidence.Record())
	if r.Client != "127.0.0.1" || len(r.Evidence.All("authorization")) != 2 || len(r.Evidence.All("proof")) != 2 || len(r.Evidence.All("order")) != 1 {
		t.Errorf("client %q, evidence:\n%s", r.Client, record)
	}
	for _, n := range r.Names {
		if strings.Contains(record, n.Value) {
			t.Errorf("the evidence names %s:\n%s", n.Value, record)
		}
	}
	for i, a := range r.Evidence.All("authorization") {
		if want := []string{"name 1 ", "name 2 "}[i]; !strings.HasPrefix(a, want) || !strings.HasPrefix(r.Evidence.All("proof")[i], want+"http-01 ") {
			t.Errorf("authorization %q, proof %q", a, r.Evidence.All("proof")[i])
		}
	}
	// The request that was kept for a crash is not kept any longer.
	stored, err := h.store.ACMEOrder(t.Context(), strings.TrimPrefix(o.url, h.url+"/acme/order/"))
	if err != nil || stored.Status != acme.Valid || stored.CSR != nil {
		t.Errorf("%s, CSR of %d octets, %v", stored.Status, len(stored.CSR), err)
	}
}
