package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"chancery/audit"
	"chancery/hsmstore"
)

// How long a CRL is good for. It is renewed when half of that is over, and within
// a second of a revocation.
const (
	issuingCRLValidity = 24 * time.Hour
	rootCRLValidity    = 30 * day
)

// crlTick is how often CRLs are looked at when nobody says that one is due: an orphan that
// is closed elsewhere revokes its serial too, and has to show within ten seconds (P4).
const crlTick = 5 * time.Second

// Run keeps the CRLs of all issuers fresh until ctx is done.
func (a *Authority) Run(ctx context.Context) error {
	for {
		next := crlTick
		if err := a.FreshCRLs(ctx); err != nil && ctx.Err() == nil {
			if !errors.Is(err, audit.ErrConflict) { // then another node is at it
				a.cfg.Log.Error("CRL not renewed", "err", err)
			}
			next = time.Second
		}
		select {
		case <-ctx.Done():
			return nil
		case <-a.revoked:
		case <-time.After(next):
		}
	}
}

// FreshCRLs makes a new CRL for each issuer that needs one: none yet, half of its
// time over, or a revocation that it does not hold.
func (a *Authority) FreshCRLs(ctx context.Context) error {
	a.crlMu.Lock()
	defer a.crlMu.Unlock()
	recs, err := a.cfg.Storage.Issuers(ctx)
	if err != nil {
		return fmt.Errorf("reading issuers: %w", err)
	}
	var errs []error
	for _, r := range recs {
		is, err := a.issuer(r.Name)
		if err == nil {
			err = a.freshCRL(ctx, is, r)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("issuer %s: %w", r.Name, err))
		}
	}
	return errors.Join(errs...)
}

func (a *Authority) freshCRL(ctx context.Context, is *issuer, r IssuerRecord) error {
	validity := issuingCRLValidity
	if is.root() {
		validity = rootCRLValidity
	}
	// An entry stays until a CRL was published that was made after the certificate's
	// end (RFC 5280 §3.3). A CRL that was intended and failed does not count.
	var published *x509.RevocationList
	var last time.Time
	if r.CRL != nil {
		var err error
		if published, err = x509.ParseRevocationList(r.CRL); err != nil {
			a.cfg.Log.Error("the stored CRL cannot be read; a new one is made", "issuer", is.name, "err", err)
			published = nil
		} else {
			last = published.ThisUpdate
		}
	}
	_, revoked, err := a.cfg.Storage.Revocations(ctx, is.spki, last)
	if err != nil {
		return fmt.Errorf("reading revocations: %w", err)
	}
	a.disable(is, revoked)
	if published != nil && !is.halted.Load() && a.cfg.Now().Before(r.CRLNext.Add(-validity/2)) && holds(published, revoked) {
		return nil
	}
	this, err := a.thisUpdate(ctx, r.CRLThis)
	if err != nil {
		return err
	}
	// Read once more, after thisUpdate: whatever was revoked before it is in the CRL.
	covers, revoked, err := a.cfg.Storage.Revocations(ctx, is.spki, last)
	if err != nil {
		return fmt.Errorf("reading revocations: %w", err)
	}
	return a.issueCRL(ctx, is, revoked, audit.CRLScope{Number: r.CRLNumber + 1, ThisUpdate: this, Covers: covers}, this.Add(validity))
}

// maxEarly is how far the last thisUpdate may lie ahead of the clock before the clock
// counts as wrong: CRLs have whole seconds, and nodes differ by a little.
const maxEarly = 2 * time.Second

// thisUpdate waits for the first second after the last CRL's.
func (a *Authority) thisUpdate(ctx context.Context, last time.Time) (time.Time, error) {
	for {
		now := a.cfg.Now().UTC()
		if now.Truncate(time.Second).After(last) {
			return now.Truncate(time.Second), nil
		}
		if last.Sub(now) > maxEarly {
			return now, fmt.Errorf("the clock shows %s, but the last CRL is of %s: set the clock right; no CRL goes back in time", now.Format(time.RFC3339), last.Format(time.RFC3339))
		}
		if err := sleep(ctx, last.Add(time.Second).Sub(now)); err != nil {
			return now, err
		}
	}
}

// holds tells whether a CRL lists all of the given revocations with their reasons.
func holds(l *x509.RevocationList, revoked []RevokedSerial) bool {
	have := make(map[string]int, len(l.RevokedCertificateEntries))
	for _, e := range l.RevokedCertificateEntries {
		have[string(e.SerialNumber.Bytes())] = e.ReasonCode
	}
	for _, r := range revoked {
		if reason, ok := have[string(r.Serial)]; !ok || reason != int(r.Reason) {
			return false
		}
	}
	return true
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// issueCRL makes, signs and records one CRL (RFC 5280 §5).
func (a *Authority) issueCRL(ctx context.Context, is *issuer, revoked []RevokedSerial, scope audit.CRLScope, next time.Time) error {
	sigAlg, hash, err := signatureAlgorithm(is.key.Public())
	if err != nil {
		return err
	}
	tmpl := &x509.RevocationList{Number: new(big.Int).SetUint64(scope.Number), ThisUpdate: scope.ThisUpdate, NextUpdate: next, SignatureAlgorithm: sigAlg}
	for _, r := range revoked {
		tmpl.RevokedCertificateEntries = append(tmpl.RevokedCertificateEntries, x509.RevocationListEntry{
			SerialNumber: new(big.Int).SetBytes(r.Serial), RevocationTime: r.At, ReasonCode: int(r.Reason)})
	}
	tbs, err := captureTBS(is.key.Public(), func(s crypto.Signer) error {
		_, err := x509.CreateRevocationList(rand.Reader, tmpl, is.cert, s)
		return err
	})
	if err != nil {
		return err
	}
	if err := is.checkCRL(tbs, hash, tmpl); err != nil {
		return fmt.Errorf("CRL %d: %w", scope.Number, err)
	}
	op, err := is.key.Begin(ctx, hsmstore.SignRequest{Op: audit.OpCRL, Message: tbs, Issuer: is.spki, Requester: "crl", CRL: &scope,
		Class: hsmstore.ClassRevocation, Projections: []audit.Projection{BeginCRL{Issuer: is.spki, Scope: scope}}})
	if err != nil {
		return err
	}
	defer op.Close()
	sig, err := op.SignMessage(rand.Reader, tbs, hash)
	if err != nil {
		return fmt.Errorf("signing CRL %d: %w", scope.Number, err)
	}
	der, err := assemble(tbs, sig)
	if err != nil {
		return err
	}
	l, err := x509.ParseRevocationList(der)
	if err != nil {
		return fmt.Errorf("reading CRL %d: %w", scope.Number, err)
	}
	if err := l.CheckSignatureFrom(is.cert); err != nil {
		return fmt.Errorf("checking CRL %d: %w", scope.Number, err)
	}
	_, err = op.Commit(ctx, audit.Done{Artefact: sha256.Sum256(der)}, PutCRL{Issuer: is.spki, Number: scope.Number, Covers: scope.Covers, NextUpdate: next, DER: der})
	if err != nil {
		return fmt.Errorf("recording CRL %d: %w", scope.Number, err)
	}
	a.cfg.Log.Info("CRL issued", "issuer", is.name, "number", scope.Number, "entries", len(revoked), "next", next)
	return nil
}

// checkCRL reads a CRL back before it is signed, holds it against what was decided,
// and lints it.
func (i *issuer) checkCRL(tbs []byte, hash crypto.Hash, want *x509.RevocationList) error {
	der, err := i.rehearse(tbs, hash)
	if err != nil {
		return err
	}
	l, err := x509.ParseRevocationList(der)
	if err != nil {
		return fmt.Errorf("reading it back: %w", err)
	}
	same := func(a, b x509.RevocationListEntry) bool {
		return a.SerialNumber.Cmp(b.SerialNumber) == 0 && a.ReasonCode == b.ReasonCode && a.RevocationTime.Equal(b.RevocationTime)
	}
	switch {
	case !bytes.Equal(l.RawTBSRevocationList, tbs) || !bytes.Equal(l.RawIssuer, i.cert.RawSubject) || !bytes.Equal(l.AuthorityKeyId, i.cert.SubjectKeyId):
		return errors.New("reading it back: other bytes or issuer")
	case l.Number.Cmp(want.Number) != 0 || !l.ThisUpdate.Equal(want.ThisUpdate) || !l.NextUpdate.Equal(want.NextUpdate):
		return errors.New("reading it back: other number or times")
	case !slices.EqualFunc(l.RevokedCertificateEntries, want.RevokedCertificateEntries, same):
		return errors.New("reading it back: other entries")
	}
	return lintCRL(der)
}

// CRL returns the newest CRL of an issuer (DER) and when its successor is due at the latest.
func (a *Authority) CRL(ctx context.Context, issuer string) (der []byte, next time.Time, err error) {
	recs, err := a.cfg.Storage.Issuers(ctx)
	if err != nil {
		return nil, next, err
	}
	for _, r := range recs {
		if r.Name == issuer && r.CRL != nil {
			return r.CRL, r.CRLNext, nil
		}
	}
	return nil, next, refuse(NotFound, "issuer", "there is no CRL of an issuer %q", clip(issuer))
}
