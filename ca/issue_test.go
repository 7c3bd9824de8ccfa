package ca_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/audit"
	"chancery/ca"
)

func writePEM(t *testing.T, name, kind string, ders ...[]byte) (path string) {
	t.Helper()
	var out []byte
	for _, d := range ders {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: d})...)
	}
	path = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, out, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// tool runs a peer's program, which must end as expected.
func tool(t *testing.T, ok bool, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if (err == nil) != ok {
		t.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// What is issued satisfies three independent verifiers, and their CRL checks too.
func TestGoldenPath(t *testing.T) {
	h := home(t)
	r := asking(append(dns("www.lab.example", "*.svc.lab.example", "xn--bcher-kva.lab"), ip("192.0.2.7", "2001:db8::7")...))
	c := h.issue(t, h.authority, r.der())
	revoked := h.issue(t, h.authority, good())
	h.revoke(t, revoked.Serial, ca.KeyCompromise)
	h.fresh(t)
	rootDER, issuingDER := must(h.authority.IssuerCertificate("root")), must(h.authority.IssuerCertificate("issuing"))
	if len(c.Chain) != 1 || string(c.Chain[0]) != string(issuingDER) || string(h.authority.Roots()[0]) != string(rootDER) {
		t.Error("the chain is not the issuing CA alone")
	}

	leaf := must(x509.ParseCertificate(c.DER))
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(must(x509.ParseCertificate(rootDER)))
	between.AddCert(must(x509.ParseCertificate(issuingDER)))
	for _, name := range []string{"www.lab.example", "a.svc.lab.example", "192.0.2.7", "2001:db8::7"} {
		if _, err := leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, Intermediates: between, CurrentTime: h.now()}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !leaf.NotBefore.Equal(c.NotBefore) || !leaf.NotAfter.Equal(c.NotAfter) || len(leaf.CRLDistributionPoints) != 1 || leaf.CRLDistributionPoints[0] != "http://ca.example:8080/crl/issuing.crl" ||
		len(leaf.IssuingCertificateURL) != 1 || leaf.IssuingCertificateURL[0] != "http://ca.example:8080/ca/issuing.cer" || !leaf.IPAddresses[0].Equal(net.IPv4(192, 0, 2, 7)) {
		t.Errorf("%+v", leaf)
	}

	root, issuing := writePEM(t, "root.pem", "CERTIFICATE", rootDER), writePEM(t, "issuing.pem", "CERTIFICATE", issuingDER)
	at := strconv.FormatInt(h.now().Unix(), 10)
	crls := writePEM(t, "crls.pem", "X509 CRL", must2(h.authority.CRL(t.Context(), "root")), must2(h.authority.CRL(t.Context(), "issuing")))
	for _, tc := range []struct {
		c  *ca.Certificate
		ok bool
	}{{c, true}, {revoked, false}} {
		file := writePEM(t, "leaf.pem", "CERTIFICATE", tc.c.DER)
		tool(t, true, "openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-attime", at, "-CAfile", root, "-untrusted", issuing, file)
		tool(t, tc.ok, "openssl", "verify", "-x509_strict", "-crl_check_all", "-attime", at, "-CAfile", root, "-untrusted", issuing, "-CRLfile", crls, file)
	}
	// certtool knows no other time than now.
	now := h.issue(t, h.another(t, "issuing", time.Now, h.db), r.der())
	chain := writePEM(t, "chain.pem", "CERTIFICATE", now.DER, issuingDER)
	tool(t, true, "certtool", "--verify", "--load-ca-certificate", root, "--infile", chain)
	tool(t, true, "certtool", "--verify", "--verify-hostname", "www.lab.example", "--load-ca-certificate", root, "--infile", chain)
	tool(t, false, "certtool", "--verify", "--verify-hostname", "evil.example", "--load-ca-certificate", root, "--infile", chain)
	for name, by := range map[string]string{"root": root, "issuing": issuing} {
		one := filepath.Join(t.TempDir(), "crl.der")
		if err := os.WriteFile(one, must2(h.authority.CRL(t.Context(), name)), 0o600); err != nil {
			t.Fatal(err)
		}
		if out := tool(t, true, "openssl", "crl", "-inform", "DER", "-in", one, "-verify", "-CAfile", by, "-noout", "-text"); !strings.Contains(out, "verify OK") {
			t.Errorf("CRL of %s: %s", name, out)
		}
	}
	got, err := h.authority.CertificateByDER(t.Context(), c.DER)
	if err != nil || got.Serial != c.Serial || got.Done != c.Done || c.Receipt.Index != c.Done || c.Receipt.Origin != h.ledger.Origin() {
		t.Errorf("%+v, %v", got, err)
	}
	other := must(x509.CreateCertificate(rand.Reader, leaf, leaf, ecKey().Public(), ecKey())) // same serial, other bytes
	for what, der := range map[string][]byte{"octet behind": append(bytes.Clone(c.DER), 0), "nothing": nil, "no certificate": good(), "same serial": other, "unknown": h.foreign()} {
		h.refuses(t, what, func() error { _, err := h.authority.CertificateByDER(context.Background(), der); return err }, ca.NotFound)
	}
	h.verify(t)
}

// foreign is a certificate of another CA.
func (h *house) foreign() []byte {
	c := &x509.Certificate{SerialNumber: new(big.Int).SetBytes(ca.NewSerial()), NotAfter: h.now()}
	return must(x509.CreateCertificate(rand.Reader, c, c, ecKey().Public(), ecKey()))
}

func must2[T, U any](v T, _ U, err error) T { return must(v, err) }

// Every kind of key and name that a profile lets through passes its lints: a lint
// that fails is a defect of ours, and the requester could do nothing about it.
func TestAllowedRequestsPassLint(t *testing.T) {
	h := home(t)
	names := [][]general{dns("localhost"), dns("a.lab"), dns("*.lab"), dns("a.test", "b.internal", "c.local", "d.onion"), ip("10.0.0.1"), ip("::1", "fe80::1"), ip("127.0.0.1", "255.255.255.255"),
		dns("1.2.lab"), dns(strings.Repeat("a.", 126) + "a"), append(dns("xn--bcher-kva.lab"), ip("0.0.0.0")...), dns("0x7f.lab", "example.com", "www.example.co.uk")}
	for _, n := range names {
		if err := h.prepare(asking(n).der()); err != nil {
			t.Errorf("%v: %v", n, err)
		}
	}
	for _, k := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		r := asking(names[1])
		r.signer = must(ecdsa.GenerateKey(k, rand.Reader))
		if err := h.prepare(r.der()); err != nil {
			t.Errorf("%s: %v", k.Params().Name, err)
		}
	}
	for _, bits := range []int{3072, 4096} {
		if testing.Short() {
			break
		}
		r := asking(names[1])
		r.signer = must(rsa.GenerateKey(rand.Reader, bits))
		if err := h.prepare(r.der()); err != nil {
			t.Errorf("RSA-%d: %v", bits, err)
		}
	}
	for _, alg := range []x509.SignatureAlgorithm{x509.SHA256WithRSAPSS, x509.SHA512WithRSA} {
		csr := must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{SignatureAlgorithm: alg, DNSNames: []string{"a.lab"}}, rsaKey()))
		if err := h.prepare(csr); err != nil {
			t.Errorf("%v: %v", alg, err)
		}
	}
}

// A template that is wrong in a way that the read-back does not look for is caught
// by the lints, before there is an intent.
func TestLintCatchesBadTemplate(t *testing.T) {
	h := home(t)
	for what, change := range map[string]func(*x509.Certificate){
		"CN beside the names": func(c *x509.Certificate) { c.RawSubject = subject("evil.com") },
		"underscore":          func(c *x509.Certificate) { c.DNSNames = []string{"a_b.lab"} },
		"AIA that is no URI":  func(c *x509.Certificate) { c.IssuingCertificateURL = []string{"ca.example/ca.cer"} },
		"no usage":            func(c *x509.Certificate) { c.KeyUsage = 0 },
		"certSign":            func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign },
		"CA":                  func(c *x509.Certificate) { c.IsCA = true },
		"any usage":           func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} },
		"another name":        func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "evil.com") },
		"e-mail":              func(c *x509.Certificate) { c.EmailAddresses = []string{"a@b.c"} },
		"no key id":           func(c *x509.Certificate) { c.AuthorityKeyId = nil },
	} {
		h.untouched(t, func() {
			p, err := h.authority.Prepare(t.Context(), ca.Request{Profile: "tls-server", CSR: good()})
			if err != nil {
				t.Fatal(err)
			}
			err = p.Reseal(change)
			if err == nil {
				t.Errorf("%s: sealed", what)
			}
			t.Logf("%s: %v", what, err)
		})
	}
}

func TestPreparedIsSpentOnce(t *testing.T) {
	h := home(t)
	p, err := h.authority.Prepare(t.Context(), ca.Request{Profile: "tls-server", CSR: good()})
	if err != nil {
		t.Fatal(err)
	}
	signed := h.signatures(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	done, spent := 0, 0
	for range 8 {
		wg.Go(func() {
			_, err := h.authority.Issue(context.Background(), p, ca.Projections{})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				done++
			} else if errors.Is(err, ca.ErrSpent) {
				spent++
			}
		})
	}
	wg.Wait()
	if done != 1 || spent != 7 || h.signatures(t) != signed+1 {
		t.Errorf("issued %d times, refused %d times, %d signatures", done, spent, h.signatures(t)-signed)
	}
	// A request that is refused gives nothing that could be issued.
	if p, err := h.authority.Prepare(t.Context(), ca.Request{Profile: "tls-server", CSR: good("a..b")}); p != nil || err == nil {
		t.Errorf("%v, %v", p, err)
	}
}

func TestParallelIssue(t *testing.T) {
	h := home(t)
	from := h.ledger.Head().Size
	const workers, each = 2, 100
	serials := make([][]string, workers)
	run := strings.ToLower(rand.Text()) + ".example"
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			csr := good("w" + strconv.Itoa(w) + "." + run)
			for range each {
				p, err := h.authority.Prepare(context.Background(), ca.Request{Profile: "tls-server", CSR: csr, Requester: "test"})
				if err != nil {
					t.Error(err)
					return
				}
				c, err := h.authority.Issue(context.Background(), p, ca.Projections{})
				if err != nil {
					t.Error(err)
					return
				}
				serials[w] = append(serials[w], c.Serial)
			}
		})
	}
	wg.Wait()
	seen := map[string]bool{}
	for _, s := range append(serials[0], serials[1]...) {
		seen[s] = true
	}
	if len(seen) != workers*each {
		t.Errorf("%d distinct serials of %d", len(seen), workers*each)
	}
	n := h.leaves(t, from)
	if n["certificate intent"] != workers*each || n["certificate done"] != workers*each || n["certificate orphan"]+n["certificate failed"] != 0 {
		t.Errorf("leaves %v", n)
	}
	if r := h.verify(t); r.Open != 0 {
		t.Errorf("%d intents are open", r.Open)
	}
	page, err := h.authority.Certificates(t.Context(), ca.Query{Limit: 500, Name: "w1." + run})
	if err != nil || len(page) != each {
		t.Errorf("%d certificates listed, %v", len(page), err)
	}
}

// With the ledger away nothing is signed and nothing is lost.
func TestLedgerAway(t *testing.T) {
	h := home(t)
	mend := breakOn[ca.RevokeSerial](t, h, audit.ErrUnavailable)
	c := h.issue(t, h.authority, good())
	h.untouched(t, func() {
		if err := h.authority.Revoke(t.Context(), ca.RevokeRequest{Serial: c.Serial}); !errors.Is(err, audit.ErrUnavailable) {
			t.Error(err)
		}
	})
	mend()
	h.revoke(t, c.Serial, ca.Unspecified)
	mend = breakOn[ca.BeginCRL](t, h, audit.ErrUnavailable)
	h.pass(2 * time.Second)
	h.untouched(t, func() {
		if err := h.authority.FreshCRLs(t.Context()); !errors.Is(err, audit.ErrUnavailable) {
			t.Error(err)
		}
	})
	mend()
	h.fresh(t)
	if _, entries := h.crl(t); len(entries) == 0 {
		t.Error("the revocation is lost")
	}
}
