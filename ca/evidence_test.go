package ca_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"slices"
	"strings"
	"testing"

	"chancery/audit"
	"chancery/ca"
)

// Each certificate has its evidence stored with the intent, whose digest stands there; what
// was asked for, and by which address, is committed to and can be opened.
func TestEvidence(t *testing.T) {
	h := home(t)
	e := goodOf("one.lab", "two.lab")
	r := ca.Request{Profile: "tls-server", CSR: e, Requester: "test", Client: "192.0.2.9", Evidence: audit.Evidence{{Name: "request", Value: "a test"}, {Name: "order", Value: "x"}}}
	p, err := h.authority.Prepare(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	c, err := h.authority.Issue(t.Context(), p, ca.Projections{})
	if err != nil {
		t.Fatal(err)
	}
	done, err := h.ledger.Leaf(t.Context(), c.Done)
	if err != nil {
		t.Fatal(err)
	}
	intent, err := h.ledger.Leaf(t.Context(), done.Closes)
	if err != nil {
		t.Fatal(err)
	}
	issuer, _ := intent.Hash(audit.TagIssuer)
	record, err := h.db.Evidence(t.Context(), issuer, unhex(t, c.Serial))
	if err != nil {
		t.Fatal(err)
	}
	if d, _ := intent.Hash(audit.TagEvidence); d != audit.EvidenceDigest(record) {
		t.Errorf("the intent says %x of another record", d)
	}
	facts, err := audit.ParseEvidence(record)
	if err != nil {
		t.Fatal(err)
	}
	profile, _ := intent.Hash(audit.TagProfile)
	for name, want := range map[string]string{"request": "a test", "order": "x", "csr-sha256": fmt.Sprintf("%x", sha256.Sum256(e)), "profile": fmt.Sprintf("tls-server %x", profile)} {
		if got := facts.All(name); !slices.Equal(got, []string{want}) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	var passed, other, notices int
	if n, err := fmt.Sscanf(strings.Join(facts.All("lint"), ""), "%d passed, %d not applicable, 0 errors, 0 warnings, %d notices", &passed, &other, &notices); n != 3 || passed < 50 || notices != len(facts.All("lint-notice")) {
		t.Errorf("lint: %q, %v", facts.All("lint"), err)
	}
	linter, set := strings.Join(facts.All("linter"), ""), 0 // of all lints; some are for CRLs
	if _, text, ok := strings.Cut(linter, " set "); ok {
		fmt.Sscan(text, &set)
	}
	if !strings.Contains(linter, "RFC5280") || set < passed+other+notices {
		t.Errorf("linter: %q", linter)
	}
	if strings.Contains(string(record), "one.lab") || strings.Contains(string(record), "192.0.2.9") || strings.Contains(string(record), "Roe") {
		t.Errorf("something personal is in the evidence:\n%s", record)
	}
	opened := map[audit.Tag]string{}
	err = h.db.Openings(t.Context(), audit.OpeningQuery{From: done.Closes, To: done.Closes + 1}, func(s audit.StoredOpenings) error {
		for _, o := range s.Openings {
			if !o.Opens(intent) {
				t.Errorf("%s does not open", o.Tag)
			}
			opened[o.Tag] = string(o.Value)
		}
		return nil
	})
	if err != nil || opened[audit.TagAddress] != "192.0.2.9" || opened[audit.TagAsked] != "O=Roe Farms\ndns:one.lab\ndns:two.lab" {
		t.Errorf("opened %q, %v", opened, err)
	}

	// A revocation says who asked for it in the same way.
	before := h.ledger.Head().Size
	if err := h.authority.Revoke(t.Context(), ca.RevokeRequest{Serial: c.Serial, Reason: ca.Superseded, Requester: "test", Client: "192.0.2.10"}); err != nil {
		t.Fatal(err)
	}
	found := false
	err = h.db.Openings(t.Context(), audit.OpeningQuery{From: before, To: before + 10}, func(s audit.StoredOpenings) error {
		l, err := h.ledger.Leaf(t.Context(), s.Index)
		if err == nil && l.Op == audit.OpRevoke && len(s.Openings) == 1 && s.Openings[0].Opens(l) && string(s.Openings[0].Value) == "192.0.2.10" {
			found = true
		}
		return err
	})
	if err != nil || !found {
		t.Errorf("the revocation commits to no address: %v", err)
	}
	h.verify(t)
}

// goodOf is a good request with a subject.
func goodOf(names ...string) []byte {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{Organization: []string{"Roe Farms"}}, DNSNames: names}, k)
	if err != nil {
		panic(err)
	}
	return der
}
