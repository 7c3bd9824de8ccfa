package check

import (
	"bytes"
	"crypto/x509"
	"testing"

	"chancery/cmd/chancery-verify/internal/folder"
)

// ders are the certificates and CRLs of the committed export.
func ders(t testing.TB) (out [][]byte) {
	t.Helper()
	f, err := folder.Open("testdata/small")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, open := range []func() (*folder.Records, error){f.Certificates, f.CRLs, f.Issuers} {
		r, err := open()
		if err != nil {
			t.Fatal(err)
		}
		for {
			_, b, err := r.Next()
			if err != nil {
				break
			}
			out = append(out, bytes.Clone(b))
		}
	}
	if len(out) < 5 {
		t.Fatal("testdata/small lacks certificates")
	}
	return out
}

// FuzzDER reads certificates, CRLs and proposals. Whatever crypto/x509 reads as well has
// the same contents.
func FuzzDER(f *testing.F) {
	for _, b := range ders(f) {
		f.Add(b)
	}
	f.Add([]byte("\x00\x01\x00\x00\x00\x20"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = readRequest(b)
		c, err := readCertificate(b)
		x, xerr := x509.ParseCertificate(b)
		if err == nil && xerr == nil {
			same := bytes.Equal(c.tbs, x.RawTBSCertificate) && bytes.Equal(c.serial, x.SerialNumber.Bytes()) && bytes.Equal(c.issuer, x.RawIssuer) &&
				bytes.Equal(c.subject, x.RawSubject) && bytes.Equal(c.spki, x.RawSubjectPublicKeyInfo) && bytes.Equal(c.signature, x.Signature) && c.ends == x.NotAfter.Unix() && c.ca == x.IsCA
			if !same && x.SerialNumber.Sign() > 0 {
				t.Errorf("read as %+v", c)
			}
		}
		l, err := readCRL(b)
		y, yerr := x509.ParseRevocationList(b)
		if err != nil {
			return
		}
		n := 0
		serr := l.serials(func([]byte) { n++ })
		if yerr == nil && (serr != nil || !bytes.Equal(l.tbs, y.RawTBSRevocationList) || l.this != y.ThisUpdate.Unix() || n != len(y.RevokedCertificateEntries)) {
			t.Errorf("read as %+v with %d entries: %v", l, n, serr)
		}
	})
}

// TestDER reads what crypto/x509 makes.
func TestDER(t *testing.T) {
	certs, crls := 0, 0
	for _, b := range ders(t) {
		if _, err := x509.ParseCertificate(b); err == nil {
			certs++
			if _, err := readCertificate(b); err != nil {
				t.Errorf("certificate: %v", err)
			}
		} else {
			crls++
			c, err := readCRL(b)
			if err != nil || c.number == nil {
				t.Errorf("CRL: %v", err)
			}
		}
	}
	if certs == 0 || crls == 0 {
		t.Error("nothing was read")
	}
}
