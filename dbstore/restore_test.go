package dbstore_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"

	"chancery/audit"
	"chancery/ca"
)

// authority is a root with a CRL, as a predecessor would have it.
func authority(t *testing.T, revoked ...int64) (ca.RestoredIssuer, [32]byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().UTC().Truncate(time.Second)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Root"}, NotBefore: now, NotAfter: now.Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte{1}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	list := &x509.RevocationList{Number: big.NewInt(41), ThisUpdate: now, NextUpdate: now.Add(time.Hour)}
	for _, serial := range revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(serial), RevocationTime: now, ReasonCode: int(ca.Superseded)})
	}
	crl, err := x509.CreateRevocationList(rand.Reader, list, cert, k)
	if err != nil {
		t.Fatal(err)
	}
	return ca.RestoredIssuer{Name: "root", KeyName: "root", Parent: "root", DER: der, CRL: crl, CRLNumber: 42}, sha256.Sum256(cert.RawSubjectPublicKeyInfo)
}

// An issuer comes over with the next range of CRL numbers and all that its last CRL holds.
func TestRestoreRows(t *testing.T) {
	r := newACMERoom(t)
	ctx := t.Context()
	if err := r.led.Genesis(ctx, audit.Genesis{Random: [32]byte{1}, Dev: true, Domain: "d.example", Previous: "old.example/ledger/00\n1\n\n", Acts: []string{"x"}}); err != nil {
		t.Fatal(err)
	}
	from := ca.Predecessor{Origin: "old.example/ledger/00", Manifest: [32]byte{3}, Grant: [32]byte{4}}
	root, spki := authority(t, 7001, 7002)
	other, _ := authority(t)
	for what, change := range map[string]func(*ca.RestoredIssuer){
		"the CRL of another issuer":     func(i *ca.RestoredIssuer) { i.CRL = other.CRL },
		"a CRL beyond the last number":  func(i *ca.RestoredIssuer) { i.CRLNumber = 40 },
		"a number without a next range": func(i *ca.RestoredIssuer) { i.CRLNumber = 1 << 62 },
		"no parent":                     func(i *ca.RestoredIssuer) { i.Parent = "nobody" },
		"no certificate":                func(i *ca.RestoredIssuer) { i.DER = []byte{0x30} },
	} {
		bad := root
		change(&bad)
		if _, err := ca.RestoreIssuers(ctx, r.led, from, []ca.RestoredIssuer{bad}); err == nil {
			t.Errorf("restored with %s", what)
		}
	}
	if n, err := ca.RestoreIssuers(ctx, r.led, from, []ca.RestoredIssuer{root}); err != nil || n != 2 {
		t.Fatalf("%d revocations: %v", n, err)
	}
	recs, err := r.store.Issuers(ctx)
	if err != nil || len(recs) != 1 || recs[0].CRLNumber < uint64(time.Now().Add(-time.Hour).Unix())<<24 || recs[0].CRL != nil || recs[0].SPKI != spki || recs[0].CRLThis.IsZero() {
		t.Fatalf("%+v %v", recs, err)
	}
	_, revoked, err := r.store.Revocations(ctx, spki, time.Now())
	if err != nil || len(revoked) != 2 || revoked[0].Reason != ca.Superseded {
		t.Fatalf("%+v %v", revoked, err)
	}
}
