package hsmstore_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"slices"
	"sync"
	"testing"
	"time"

	"chancery/audit"

	"golang.org/x/crypto/ocsp"
)

// Messages as the rest of the house makes them.

const opCertificate = audit.OpCertificate

var (
	oidData    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidTSTInfo = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 1, 4}
)

type attribute struct {
	Type   asn1.ObjectIdentifier
	Values []asn1.RawValue `asn1:"set"`
}

// attributes are CMS signed attributes with that content type and a digest of n octets.
func attributes(content asn1.ObjectIdentifier, n int) []byte {
	return set(contentType(content), messageDigest(n))
}

func contentType(oid asn1.ObjectIdentifier) []byte {
	return marshal(attribute{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3}, []asn1.RawValue{{FullBytes: marshal(oid)}}})
}

func messageDigest(n int) []byte {
	return marshal(attribute{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}, []asn1.RawValue{{FullBytes: marshal(make([]byte, n))}}})
}

// set is a DER SET OF those elements, sorted.
func set(elements ...[]byte) []byte {
	slices.SortFunc(elements, bytes.Compare)
	return unsorted(elements...)
}

func unsorted(elements ...[]byte) []byte {
	return marshal(asn1.RawValue{Tag: asn1.TagSet, IsCompound: true, Bytes: bytes.Join(elements, nil)})
}

func marshal(v any) []byte {
	b, err := asn1.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

var lint384 = sync.OnceValue(func() *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return k
})

// rootTBS is a TBSCertificate under the root's name with the root's algorithm.
func rootTBS(t testing.TB) []byte {
	t.Helper()
	k := lint384()
	parent := &x509.Certificate{RawSubject: name("Root CA"), Subject: pkix.Name{CommonName: "Root CA"}}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(5), Subject: pkix.Name{CommonName: "sub"}, DNSNames: []string{"x.example"},
		NotBefore: time.Unix(1e9, 0), NotAfter: time.Unix(2e9, 0)}, parent, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert.RawTBSCertificate
}

// crl is a TBSCertList of the issuer with that name.
func crl(t testing.TB, issuer string) []byte {
	t.Helper()
	ca := &x509.Certificate{RawSubject: name(issuer), Subject: pkix.Name{CommonName: issuer}, SubjectKeyId: []byte{1}, KeyUsage: x509.KeyUsageCRLSign}
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Unix(1e9, 0), NextUpdate: time.Unix(2e9, 0),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: big.NewInt(9), RevocationTime: time.Unix(1e9, 0)}}}, ca, lintKey())
	if err != nil {
		t.Fatal(err)
	}
	l, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	return l.RawTBSRevocationList
}

// responseData is the ResponseData of one OCSP answer.
func responseData(t testing.TB, status int) []byte {
	t.Helper()
	ca := &x509.Certificate{RawSubject: name("Issuing CA"), Subject: pkix.Name{CommonName: "Issuing CA"}, PublicKey: lintKey().Public(), RawSubjectPublicKeyInfo: marshalSPKI(lintKey().Public())}
	der, err := ocsp.CreateResponse(ca, ca, ocsp.Response{Status: status, SerialNumber: big.NewInt(7), ThisUpdate: time.Unix(1e9, 0), NextUpdate: time.Unix(2e9, 0), RevokedAt: time.Unix(1e9, 0)}, lintKey())
	if err != nil {
		t.Fatal(err)
	}
	r, err := ocsp.ParseResponse(der, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r.TBSResponseData
}

func marshalSPKI(pub any) []byte {
	b, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		panic(err)
	}
	return b
}
