package test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSignDocument signs a file with the document key of the cluster, has openssl
// and our own verifier check it, and changes a byte.
func TestSignDocument(t *testing.T) {
	s := newSite(t)
	s.start()
	dir := t.TempDir()
	doc := filepath.Join(dir, "contract.txt")
	if err := os.WriteFile(doc, []byte("The first document.\r\n\x00\xff"), 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, nil, chancery, "sign", doc, "--dir", s.dir)
	root := filepath.Join(s.dir, "root.pem")
	verify := func(file string) (string, int) {
		return run(t, nil, "openssl", "cms", "-verify", "-binary", "-cades", "-inform", "DER", "-in", doc+".p7s", "-content", file, "-CAfile", root, "-purpose", "any", "-out", "/dev/null")
	}
	if out, code := verify(doc); code != 0 {
		t.Errorf("openssl: %s", out)
	}
	if out := must(t, nil, chancery, "verify", doc, "--dir", s.dir); !strings.Contains(out, "OK") || !strings.Contains(out, "Document signing") {
		t.Errorf("verify: %s", out)
	}
	changed := filepath.Join(dir, "changed.txt")
	if err := os.WriteFile(changed, []byte("The First document.\r\n\x00\xff"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, code := verify(changed); code == 0 {
		t.Errorf("openssl accepts a changed file: %s", out)
	}
	if out, code := run(t, nil, chancery, "verify", changed, "--sig", doc+".p7s", "--dir", s.dir); code != 7 || !strings.Contains(out, "changed") {
		t.Errorf("verify of a changed file: %d %s", code, out)
	}
	// A flipped bit in the signature itself.
	sig, err := os.ReadFile(doc + ".p7s")
	if err != nil {
		t.Fatal(err)
	}
	sig[len(sig)-3] ^= 1
	bad := filepath.Join(dir, "bad.p7s")
	if err := os.WriteFile(bad, sig, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, code := run(t, nil, chancery, "verify", doc, "--sig", bad, "--dir", s.dir); code != 7 {
		t.Errorf("verify of a damaged signature: %d %s", code, out)
	}
	// Wrong key, wrong digest, no token.
	c, token := s.client(), s.token()
	digest := strings.Repeat("ab", 32)
	for name, x := range map[string]struct {
		token  string
		body   map[string]string
		status int
	}{
		"issuer's key":     {token, map[string]string{"sha256": digest, "key": "issuing"}, 404},
		"no such key":      {token, map[string]string{"sha256": digest, "key": "nobody"}, 404},
		"SHA-1":            {token, map[string]string{"sha256": digest[:40]}, 400},
		"no hex":           {token, map[string]string{"sha256": strings.Repeat("xy", 32)}, 400},
		"wrong token":      {"nonsense", map[string]string{"sha256": digest}, 401},
		"unknown field":    {token, map[string]string{"sha256": digest, "format": "pdf"}, 400},
		"document instead": {token, map[string]string{"document": "aGVsbG8="}, 400},
	} {
		if status, err := s.api(c, x.token, "POST", "/api/v1/sign/cms", x.body, nil); status != x.status {
			t.Errorf("%s: %d %v, want %d", name, status, err, x.status)
		}
	}
	before := s.auditVerify()
	if before.Orphans != 0 || before.Failed != 0 {
		t.Errorf("audit: %+v", before)
	}
	// The certificate of the document key is one of this CA: revoked, the next signature has a new one.
	must(t, nil, chancery, "sign", doc, "--dir", s.dir)
	if after := s.auditVerify(); after.Certificates != before.Certificates {
		t.Errorf("a second signature made another certificate")
	}
	s.witness()
}
