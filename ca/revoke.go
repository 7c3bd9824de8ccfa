package ca

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"time"

	"chancery/audit"
)

// Revoke records a revocation (RFC 5280 §5.3.1). When it returns nil the revocation
// is durable; the next CRL, at most seconds later, carries it. A certificate that is
// revoked already keeps its first date and reason and is refused with AlreadyRevoked,
// except that keyCompromise replaces any other reason.
func (a *Authority) Revoke(ctx context.Context, r RevokeRequest) error {
	if _, ok := reasonNames[r.Reason]; !ok || r.Reason == CACompromise || r.Reason == CertificateHold {
		return refuse(BadReason, "reason", "%d is not allowed; allowed: 0 unspecified, 1 keyCompromise, 3 affiliationChanged, 4 superseded, 5 cessationOfOperation, 9 privilegeWithdrawn", int(r.Reason))
	}
	serial, err := parseSerial(r.Serial)
	if err != nil {
		return err
	}
	is, err := a.issuer(r.Issuer)
	if err != nil {
		return err
	}
	at := a.cfg.Now().UTC().Truncate(time.Second)
	var f audit.Fields
	f.Hash(audit.TagIssuer, is.spki)
	f.Bytes(audit.TagSerial, serial)
	f.Text(audit.TagReason, r.Reason.String())
	f.Uint64(audit.TagRevokedAt, uint64(at.Unix()))
	f.Text(audit.TagRequester, r.Requester)
	event := func() audit.Entry {
		e := audit.Event(audit.OpRevoke, f)
		e.Private = []audit.Private{{Tag: audit.TagAddress, Value: r.Client}}
		return e
	}
	_, err = a.cfg.Ledger.Append(ctx, event(), RevokeSerial{Issuer: is.spki, Serial: serial, Reason: r.Reason, At: at})
	if errors.Is(err, audit.ErrNotFound) && r.Certificate != nil {
		// The certificates of the ledger before this one are not in this database.
		cert, perr := x509.ParseCertificate(r.Certificate)
		if perr != nil || !bytes.Equal(cert.SerialNumber.Bytes(), serial) || a.predecessors(cert) != is {
			return refuse(NotFound, "certificate", "issuer %s, before this ledger began, issued no certificate %s that is valid now and is this one", is.name, r.Serial)
		}
		f.Text(audit.TagSource, a.cfg.Predecessor)
		f.Uint64(audit.TagNotAfter, uint64(cert.NotAfter.Unix()))
		_, err = a.cfg.Ledger.Append(ctx, event(), CarryRevocation{Issuer: is.spki, Serial: serial, Reason: r.Reason, At: at, NotAfter: cert.NotAfter})
	}
	switch {
	case errors.Is(err, audit.ErrExists):
		return refuse(AlreadyRevoked, "serial", "certificate %s is revoked already; its date and reason stay", r.Serial)
	case errors.Is(err, audit.ErrNotFound):
		return refuse(NotFound, "serial", "issuer %s has no certificate %s", is.name, r.Serial)
	case err != nil:
		return err
	}
	a.disable(is, []RevokedSerial{{Serial: serial}})
	a.crlDue()
	return nil
}

// crlDue wakes the CRL loop.
func (a *Authority) crlDue() {
	select {
	case a.revoked <- struct{}{}:
	default:
	}
}
