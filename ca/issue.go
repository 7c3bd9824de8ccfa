package ca

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"

	"chancery/audit"
	"chancery/hsmstore"
)

// ErrSpent: a Prepared was issued before.
var ErrSpent = errors.New("this prepared certificate was issued already")

// Issue has a prepared certificate signed. When it returns nil, certificate row and
// done leaf are durable together with the caller's projections. On any error nothing
// was released; the serial is used up, and revoked if the HSM was called. Errors: a
// [*Refusal] if the issuer ended or was revoked meanwhile, hsmstore.ErrUnavailable,
// hsmstore.ErrBusy, audit.ErrUnavailable, audit.ErrBusy (try later), [ErrSerialTaken]
// (prepare again), and what the caller's projections return.
func (a *Authority) Issue(ctx context.Context, p *Prepared, with Projections) (*Certificate, error) {
	if !p.spent.CompareAndSwap(false, true) {
		return nil, ErrSpent
	}
	if p.issuer.cert != nil {
		if err := a.checkIssuer(p.issuer, p.tmpl); err != nil {
			return nil, err
		}
	}
	// 8. The intent: serial, digest of the TBS, profile and evidence are durable before the HSM is called.
	op, err := a.begin(ctx, p, with)
	if err != nil {
		return nil, err
	}
	committed := false
	defer func() {
		op.Close() // without Commit: failed, or orphan with the serial revoked
		if !committed {
			a.crlDue()
		}
	}()
	// 9. The cluster signs; the signature is verified with the pinned key.
	_, hash, err := signatureAlgorithm(op.Public())
	if err != nil {
		return nil, err
	}
	sig, err := op.SignMessage(rand.Reader, p.tbs, hash)
	if err != nil {
		return nil, fmt.Errorf("signing certificate %s: %w", p.Serial(), err)
	}
	// 10. The certificate is put together from the kept TBS and checked once more.
	der, err := assemble(p.tbs, sig)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading certificate %s: %w", p.Serial(), err)
	}
	if err := cert.CheckSignatureFrom(p.parent(cert)); err != nil {
		return nil, fmt.Errorf("checking certificate %s against its issuer: %w", p.Serial(), err)
	}
	// 11. Done leaf, certificate row and the caller's rows commit together.
	row := PutCertificate{Issuer: p.issuer.spki, Serial: p.serial, Intent: op.Index(), Profile: p.profile.Name, Requester: p.req.Requester,
		Names: p.names, NotBefore: p.NotBefore(), NotAfter: p.NotAfter(), SPKI: sha256.Sum256(cert.RawSubjectPublicKeyInfo), DER: der}
	projections := append([]audit.Projection{row}, with.Done...)
	if b := p.becomes; b != nil {
		projections = append(projections, PutIssuer{Name: b.Name, SPKI: row.SPKI, KeyName: b.KeyName, Parent: b.Parent, DER: der})
	}
	done, err := op.Commit(ctx, audit.Done{Artefact: sha256.Sum256(der)}, projections...)
	if err != nil {
		return nil, fmt.Errorf("recording certificate %s: %w", p.Serial(), err)
	}
	committed = true
	if b := p.becomes; b != nil {
		if err := a.addIssuer(b.Name, b.KeyName, b.Parent, der); err != nil {
			return nil, err
		}
		a.crlDue()
	}
	c := a.certificate(&StoredCertificate{PutCertificate: row, Done: done.Index})
	c.Receipt.Leaf = done.Bytes
	return c, nil
}

// parent is the certificate that verifies the new one.
func (p *Prepared) parent(self *x509.Certificate) *x509.Certificate {
	if p.issuer.cert == nil {
		return self
	}
	return p.issuer.cert
}

// begin commits the intent. A serial that was given before is drawn again, unless
// the caller brings projections of its own: they may name the serial that is no more,
// so the caller must prepare again.
func (a *Authority) begin(ctx context.Context, p *Prepared, with Projections) (*hsmstore.Operation, error) {
	for try := 1; ; try++ {
		record := p.evidence().Record()
		reserve := ReserveSerial{Issuer: p.issuer.spki, Serial: p.serial, NotAfter: p.NotAfter(), Evidence: record}
		op, err := p.issuer.key.Begin(ctx, hsmstore.SignRequest{
			Op: audit.OpCertificate, Message: p.tbs, Issuer: p.issuer.spki, Serial: p.serial, Profile: p.profile.digest(),
			Evidence: audit.EvidenceDigest(record), Requester: p.req.Requester, Private: p.private(), Grant: p.grant, Class: hsmstore.ClassAPI,
			Projections: append([]audit.Projection{reserve}, with.Intent...),
		})
		switch {
		case !errors.Is(err, ErrSerialTaken):
			return op, err
		case len(with.Intent)+len(with.Done) > 0:
			return nil, err
		case try == maxDraws:
			return nil, fmt.Errorf("%w: %d times in a row; the random source is broken", err, try)
		}
		if err := p.seal(); err != nil {
			return nil, err
		}
	}
}

// maxDraws is how many serials are drawn for one certificate.
const maxDraws = 3

// publicKeyBits is the BIT STRING of a SubjectPublicKeyInfo (RFC 5280 §4.1.2.7).
func publicKeyBits(spki []byte) ([]byte, error) {
	var s struct {
		Algorithm asn1.RawValue
		Key       asn1.BitString
	}
	if rest, err := asn1.Unmarshal(spki, &s); err != nil || len(rest) > 0 {
		return nil, errors.New("no SubjectPublicKeyInfo")
	}
	return s.Key.Bytes, nil
}
