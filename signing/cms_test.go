package signing

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"testing"
	"time"

	"chancery/ca"
)

// signed makes a signature with a software key, put together as SignCMS does.
func signed(t testing.TB, key crypto.Signer, digest [32]byte, usage asn1.ObjectIdentifier) (der []byte, roots *x509.CertPool) {
	t.Helper()
	at := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(77), Subject: pkix.Name{CommonName: "signer"}, NotBefore: at.Add(-time.Hour), NotAfter: at.Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, UnknownExtKeyUsage: []asn1.ObjectIdentifier{usage}}
	cert, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	sd, attrs, err := build(key.Public(), &ca.Certificate{DER: cert}, digest, at)
	if err != nil {
		t.Fatal(err)
	}
	if sd.Content.SignerInfos[0].EncryptedDigest, err = crypto.SignMessage(key, rand.Reader, attrs, crypto.SHA256); err != nil {
		t.Fatal(err)
	}
	if der, err = sd.Marshal(); err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(cert)
	if err != nil {
		t.Fatal(err)
	}
	roots = x509.NewCertPool()
	roots.AddCert(c)
	return der, roots
}

func softwareKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestVerify(t *testing.T) {
	digest := sha256.Sum256([]byte("document"))
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.Signer{"P-256": softwareKey(t), "RSA": r} {
		der, roots := signed(t, key, digest, OIDDocumentSigning)
		if v, err := Verify(der, digest, roots); err != nil || v.Time.Year() != 2026 {
			t.Errorf("%s: %+v, %v", name, v, err)
		}
		if _, err := Verify(der, sha256.Sum256([]byte("another")), roots); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s, another document: %v", name, err)
		}
		if _, err := Verify(der, digest, x509.NewCertPool()); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s, no root: %v", name, err)
		}
		for i := range der { // no single bit may change
			bad := append([]byte(nil), der...)
			bad[i] ^= 1
			if v, err := Verify(bad, digest, roots); err == nil && !v.Signer.Equal(mustFirst(t, der)) {
				t.Errorf("%s: octet %d may change, and the signer is another one", name, i)
			}
		}
	}
	// A TLS certificate signs no document.
	der, roots := signed(t, softwareKey(t), digest, asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 1, 9})
	if _, err := Verify(der, digest, roots); !errors.Is(err, ErrInvalid) {
		t.Errorf("certificate for another use: %v", err)
	}
}

func mustFirst(t testing.TB, der []byte) *x509.Certificate {
	t.Helper()
	s, err := parse(der, sha256.Sum256([]byte("document")))
	if err != nil {
		t.Fatal(err)
	}
	return s.Certificate
}

func FuzzVerify(f *testing.F) {
	digest := sha256.Sum256([]byte("document"))
	der, roots := signed(f, softwareKey(f), digest, OIDDocumentSigning)
	f.Add(der)
	f.Add([]byte{0x30, 0x80, 0, 0})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, err := Verify(b, digest, roots); err == nil && v.Signer == nil {
			t.Error("valid without a signer")
		}
	})
}
