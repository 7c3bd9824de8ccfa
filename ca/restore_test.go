package ca_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"testing"
	"time"

	"chancery/audit"
	"chancery/ca"
)

// A second restore from one manifest gives no CRL number that the first gave, and neither
// one that the predecessor gave.
func TestNumbersBegin(t *testing.T) {
	now := time.Date(2026, 11, 25, 9, 0, 0, 0, time.UTC)
	first := ca.NumbersBegin(42, now)
	for what, again := range map[string]uint64{
		"the same manifest, a minute later": ca.NumbersBegin(42, now.Add(time.Minute)),
		"a restore of the restored":         ca.NumbersBegin(first+1000, now.Add(time.Minute)),
		"with a clock that went back":       ca.NumbersBegin(first+1000, now.AddDate(-9, 0, 0)),
	} {
		if again < first+1000 {
			t.Errorf("%s: CRL numbers begin at %d, the ones before at %d", what, again, first)
		}
	}
	if first < 1<<40 || first >= 1<<62 {
		t.Errorf("CRL numbers begin at %d", first)
	}
}

// forgetful is the database of a CA that was restored: certificates of before are not there.
type forgetful struct{ *faulty }

func (forgetful) Certificate(context.Context, [32]byte, []byte) (*ca.StoredCertificate, error) {
	return nil, audit.ErrNotFound
}

// What the ledger before this one issued is revoked by the certificate itself, under the
// issuer that signed it and until it ends; nothing else is.
func TestRevokePredecessors(t *testing.T) {
	h := home(t)
	c := h.issue(t, h.authority, good())
	at := func(now func() time.Time, origin string) *ca.Authority {
		a, err := ca.New(t.Context(), ca.Config{Keys: h.hsm, Ledger: h.ledger, Storage: forgetful{h.db}, Issuer: "root", Now: now, Predecessor: origin})
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	const origin = "old.example/ledger/00"
	a := at(h.now, origin)
	issuing, err := h.authority.IssuerCertificate("issuing")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(c.DER)
	if err != nil {
		t.Fatal(err)
	}
	// The name of our issuer, and its serial, signed by another key.
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: cert.SerialNumber, Subject: cert.Issuer, NotAfter: cert.NotAfter}, &x509.Certificate{Subject: cert.Issuer}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}

	// The row of the certificate is missing in the transaction too; what would be carried is kept.
	stop := errors.New("stop")
	var carried ca.CarryRevocation
	fail := func(p audit.Projection) error {
		switch p := p.(type) {
		case ca.RevokeSerial:
			return audit.ErrNotFound
		case ca.CarryRevocation:
			carried = p
			return stop
		}
		return nil
	}
	h.db.fail.Store(&fail)
	t.Cleanup(func() { h.db.fail.Store(nil) })
	ask := func(a *ca.Authority, change func(*ca.RevokeRequest)) func() error {
		r := ca.RevokeRequest{Issuer: "issuing", Serial: c.Serial, Reason: ca.Superseded, Requester: "test", Certificate: c.DER}
		change(&r)
		return func() error { return a.Revoke(context.Background(), r) }
	}
	as := func(*ca.RevokeRequest) {}
	late := at(func() time.Time { return cert.NotAfter.Add(time.Second) }, origin)
	for what, f := range map[string]func() error{
		"a ledger without a predecessor": ask(at(h.now, ""), as),
		"no certificate":                 ask(a, func(r *ca.RevokeRequest) { r.Certificate = nil }),
		"no DER":                         ask(a, func(r *ca.RevokeRequest) { r.Certificate = []byte{0x30} }),
		"an invented serial":             ask(a, func(r *ca.RevokeRequest) { r.Serial = "1234567890" }),
		"another issuer":                 ask(a, func(r *ca.RevokeRequest) { r.Issuer = "root" }),
		"another's signature":            ask(a, func(r *ca.RevokeRequest) { r.Certificate = foreign }),
		"one that has expired":           ask(late, as),
		"the certificate of a CA": ask(a, func(r *ca.RevokeRequest) {
			sub, _ := x509.ParseCertificate(issuing)
			r.Issuer, r.Serial, r.Certificate = "root", hex.EncodeToString(sub.SerialNumber.Bytes()), issuing
		}),
	} {
		h.refuses(t, what, f, ca.NotFound)
	}
	for what, der := range map[string][]byte{"a CA": issuing, "a stranger": foreign, "nothing": nil} {
		if found, err := a.CertificateByDER(t.Context(), der); err == nil {
			t.Errorf("found the certificate of %s: %+v", what, found)
		}
	}
	found, err := a.CertificateByDER(t.Context(), c.DER)
	if err != nil || !found.Predecessor || found.Issuer != "issuing" || found.Serial != c.Serial {
		t.Errorf("%+v %v", found, err)
	}
	spki := sha256.Sum256(must(x509.ParseCertificate(issuing)).RawSubjectPublicKeyInfo)
	h.untouched(t, func() {
		if err := ask(a, as)(); !errors.Is(err, stop) || carried.Issuer != spki || !carried.NotAfter.Equal(cert.NotAfter) || carried.Reason != ca.Superseded {
			t.Errorf("%+v %v", carried, err)
		}
	})
}
