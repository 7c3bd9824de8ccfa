package test

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestReadme does what the README says, in a clean folder: the certbot line as
// printed, renewal, revocation, the CRL, the ledger, and a second start.
func TestReadme(t *testing.T) {
	s := newSite(t)
	s.args = nil // exactly as a newcomer: http-01 on port 5002
	s.start()

	line := regexp.MustCompile(`(?m)^\s*(REQUESTS_CA_BUNDLE=.*)$`).FindStringSubmatch(s.banner)
	if line == nil {
		t.Fatalf("no certbot line in the banner:\n%s", s.banner)
	}
	must(t, nil, "sh", "-c", line[1])
	live := filepath.Join(s.dir, "certbot", "config", "live", "demo.localhost")
	verify := func() string {
		t.Helper()
		must(t, nil, "openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", filepath.Join(s.dir, "root.pem"),
			"-untrusted", filepath.Join(live, "chain.pem"), filepath.Join(live, "cert.pem"))
		return certificate(t, filepath.Join(live, "cert.pem")).SerialNumber.Text(16)
	}
	first := verify()

	certbot := func(args ...string) {
		t.Helper()
		must(t, []string{"REQUESTS_CA_BUNDLE=" + filepath.Join(s.dir, "root.pem")}, "certbot", append(args, "--non-interactive",
			"--config-dir", filepath.Join(s.dir, "certbot", "config"), "--work-dir", filepath.Join(s.dir, "certbot", "work"), "--logs-dir", filepath.Join(s.dir, "certbot", "logs"))...)
	}
	certbot("renew", "--force-renewal", "--no-random-sleep-on-renew", "--http-01-port", "5002")
	second := verify()
	if first == second {
		t.Error("renewal gave the same certificate")
	}
	certbot("revoke", "--server", s.url("/acme/directory"), "--cert-name", "demo.localhost", "--reason", "superseded", "--no-delete-after-revoke")
	s.awaitRevoked(second)
	if s.onCRL("issuing", first) {
		t.Error("the first certificate is on the CRL, nobody revoked it")
	}

	why := must(t, nil, chancery, "audit", "why", filepath.Join(live, "cert.pem"), "--dir", s.dir)
	for _, want := range []string{second, "demo.localhost", "acme:", "ACME order", "CSR SHA-256", "evidence", "superseded"} {
		if !strings.Contains(why, want) {
			t.Errorf("audit why lacks %q:\n%s", want, why)
		}
	}
	rep := s.auditVerify()
	if rep.Open != 0 || rep.Done != rep.Intents || rep.Certificates < 5 {
		t.Errorf("audit: %+v", rep)
	}
	root, size := s.read("root.pem"), rep.Size
	if d := s.stop(); d > 10*time.Second {
		t.Errorf("the server took %s to stop", d)
	}
	s.start()
	if s.read("root.pem") != root {
		t.Error("the second start has another root")
	}
	if keys, err := s.database().Keys(context.Background()); err != nil || len(keys) != 7 {
		t.Errorf("%d keys after the second start (%v), want the 7 of the first", len(keys), err)
	}
	if rep := s.auditVerify(); rep.Size < size || rep.Certificates < 5 {
		t.Errorf("audit after the second start: %+v", rep)
	}
	if resp, err := s.client().Get(s.url("/readyz")); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("readyz: %v, %v", resp, err)
	}
}

func certificate(t testing.TB, path string) *x509.Certificate {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		t.Fatalf("%s holds no PEM", path)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// crl fetches the CRL of an issuer over plain HTTP and has openssl verify it.
func (s *site) crl(issuer string) *x509.RevocationList {
	s.t.Helper()
	resp, err := http.Get("http://" + s.http + "/crl/" + issuer + ".crl")
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	der, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/pkix-crl" {
		s.t.Fatalf("CRL of %s: %s, %v", issuer, resp.Status, err)
	}
	l, err := x509.ParseRevocationList(der)
	if err != nil {
		s.t.Fatal(err)
	}
	return l
}

func (s *site) onCRL(issuer, serial string) bool {
	for _, e := range s.crl(issuer).RevokedCertificateEntries {
		if strings.EqualFold(hex.EncodeToString(e.SerialNumber.Bytes()), serial) {
			return true
		}
	}
	return false
}

// awaitRevoked waits until the CRL carries a serial; P4 allows less than ten seconds.
func (s *site) awaitRevoked(serial string) {
	s.t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if s.onCRL("issuing", serial) {
			return
		}
	}
	s.t.Fatalf("serial %s is not on the CRL after 10 s", serial)
}

// TestForeignVerifiersAgree has GnuTLS and openssl look at leaf, chain and CRL.
func TestForeignVerifiersAgree(t *testing.T) {
	s := newSite(t)
	s.start()
	c, err := s.issue(s.client(), s.token(), "www.example.lab")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	root := filepath.Join(s.dir, "root.pem")
	leaf, chain := write("leaf.pem", c.Certificate), write("chain.pem", c.Chain)
	must(t, nil, "openssl", "verify", "-x509_strict", "-CAfile", root, "-untrusted", chain, leaf)
	full := write("full.pem", c.Certificate+c.Chain)
	if out := must(t, nil, "certtool", "--verify", "--load-ca-certificate", root, "--infile", full); !strings.Contains(out, "Verified") {
		t.Errorf("certtool: %s", out)
	}
	crl := write("issuing.crl", string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: s.crl("issuing").Raw})))
	rootCRL := write("root.crl", string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: s.crl("root").Raw})))
	must(t, nil, "openssl", "verify", "-x509_strict", "-crl_check_all", "-CRLfile", crl, "-CRLfile", rootCRL, "-CAfile", root, "-untrusted", chain, leaf)

	// After the revocation openssl refuses it.
	if _, err := s.api(s.client(), s.token(), "POST", "/api/v1/certificates/"+c.Serial+"/revoke", map[string]string{"reason": "keyCompromise"}, nil); err != nil {
		t.Fatal(err)
	}
	s.awaitRevoked(c.Serial)
	crl = write("issuing.crl", string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: s.crl("issuing").Raw})))
	if out, code := run(t, nil, "openssl", "verify", "-crl_check_all", "-CRLfile", crl, "-CRLfile", rootCRL, "-CAfile", root, "-untrusted", chain, leaf); code == 0 || !strings.Contains(out, "revoked") {
		t.Errorf("openssl accepts a revoked certificate: %s", out)
	}
}

// TestPrivateKeysAreSensitive asks pkcs11-tool about every private key on both tokens.
func TestPrivateKeysAreSensitive(t *testing.T) {
	s := newSite(t)
	s.start()
	for _, member := range []string{"alpha", "beta"} {
		pin := strings.TrimSpace(s.read("hsm", member, "pin"))
		cmd := exec.Command("pkcs11-tool", "--module", "/usr/lib/softhsm/libsofthsm2.so", "--token-label", "chancery-dev-"+member, "--login", "--pin", "env:TEST_PIN", "--list-objects", "--type", "privkey")
		cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+filepath.Join(s.dir, "hsm", member, "softhsm2.conf"), "TEST_PIN="+pin)
		b, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", member, err, b)
		}
		out := string(b)
		keys, sensitive := strings.Count(out, "Private Key Object"), len(regexp.MustCompile(`(?m)^\s*Access:.*\bsensitive\b`).FindAllString(out, -1))
		if keys != 5 || sensitive != keys { // checkpoint, root, issuing, document, probe
			t.Errorf("%s: %d private keys, %d of them sensitive; want 5 and 5\n%s", member, keys, sensitive, out)
		}
	}
}
