package ca

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"time"

	"chancery/audit"
)

// Predecessor is the ledger whose issuers go on here.
type Predecessor struct {
	Origin   string
	Manifest [32]byte // SHA-256 of the manifest of the backup
	Grant    [32]byte
}

// RestoredIssuer is an issuer as a predecessor had it. Its key is in the cluster already.
type RestoredIssuer struct {
	Name, KeyName, Parent string
	DER                   []byte // its certificate, which stays valid
	CRL                   []byte // the newest, DER; nil if there was none
	CRLNumber             uint64 // the last that was given to a CRL
}

// numberRange is how many bits of a CRL number count within one ledger. A successor
// begins the next range, so that its CRLs are newer than all that the predecessor may
// still have made (RFC 5280 §5.2.3).
const numberRange = 40

// numbersBegin is where the CRL numbers of a successor begin: the next range, or one that
// the clock gives, so that a second restore from one backup is above the first.
func numbersBegin(last uint64, now time.Time) uint64 {
	return max((last>>numberRange+1)<<numberRange, uint64(now.Unix())<<24)
}

// Check holds an issuer against itself and returns its CRL, nil if there is none.
// parent is the certificate of the issuer above, its own for a root.
func (r RestoredIssuer) Check(parent *x509.Certificate) (*x509.RevocationList, error) {
	cert, err := x509.ParseCertificate(r.DER)
	if err != nil {
		return nil, fmt.Errorf("issuer %s: %w", r.Name, err)
	}
	if err := cert.CheckSignatureFrom(parent); err != nil {
		return nil, fmt.Errorf("issuer %s: its certificate: %w", r.Name, err)
	}
	if r.CRLNumber >= 1<<62 {
		return nil, fmt.Errorf("issuer %s: CRL number %d leaves no room for another range", r.Name, r.CRLNumber)
	}
	if r.CRL == nil {
		return nil, nil
	}
	l, err := x509.ParseRevocationList(r.CRL)
	if err != nil {
		return nil, fmt.Errorf("issuer %s: reading its CRL: %w", r.Name, err)
	}
	if err := l.CheckSignatureFrom(cert); err != nil {
		return nil, fmt.Errorf("issuer %s: its CRL: %w", r.Name, err)
	}
	if !l.Number.IsUint64() || l.Number.Uint64() > r.CRLNumber {
		return nil, fmt.Errorf("issuer %s: its CRL has number %v, the last one given is %d", r.Name, l.Number, r.CRLNumber)
	}
	return l, nil
}

// RestoreIssuers takes issuers over from a predecessor: each with its certificate, the
// next range of CRL numbers, and the revocations of its last CRL. The issuers above come
// first. Call [New] afterwards, then [Authority.FreshCRLs]. It returns how many
// revocations it has carried over.
func RestoreIssuers(ctx context.Context, ledger *audit.Ledger, from Predecessor, issuers []RestoredIssuer) (carried uint64, err error) {
	certs := map[string]*x509.Certificate{}
	for _, r := range issuers {
		cert, err := x509.ParseCertificate(r.DER)
		if err != nil {
			return carried, fmt.Errorf("issuer %s: %w", r.Name, err)
		}
		certs[r.Name] = cert
		parent, ok := certs[r.Parent]
		if !ok {
			return carried, fmt.Errorf("issuer %s: the issuer above it, %q, is not among those before it", r.Name, clip(r.Parent))
		}
		crl, err := r.Check(parent)
		if err != nil {
			return carried, err
		}
		spki := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
		row := PutRestoredIssuer{PutIssuer: PutIssuer{Name: r.Name, SPKI: spki, KeyName: r.KeyName, Parent: r.Parent, DER: r.DER}, CRLNumber: numbersBegin(r.CRLNumber, time.Now()), CRLThis: time.Unix(0, 0)}
		if crl != nil {
			row.CRLThis = crl.ThisUpdate
		}
		var f audit.Fields
		f.Hash(audit.TagIssuer, spki)
		f.Hash(audit.TagArtefact, sha256.Sum256(r.DER))
		f.Uint64(audit.TagCRLNumber, row.CRLNumber)
		f.Uint64(audit.TagThisUpdate, uint64(row.CRLThis.Unix()))
		f.Text(audit.TagSource, from.Origin)
		f.Hash(audit.TagManifest, from.Manifest)
		f.Hash(audit.TagGrant, from.Grant)
		if _, err := ledger.Append(ctx, audit.Event(audit.OpRestore, f), row); err != nil {
			return carried, fmt.Errorf("recording the restored issuer %s: %w", r.Name, err)
		}
		audit.Failpoint("restored-issuer")
		if crl == nil {
			continue
		}
		for _, e := range crl.RevokedCertificateEntries {
			reason := Reason(e.ReasonCode)
			var f audit.Fields
			f.Hash(audit.TagIssuer, spki)
			f.Bytes(audit.TagSerial, e.SerialNumber.Bytes())
			f.Text(audit.TagReason, reason.String())
			f.Uint64(audit.TagRevokedAt, uint64(e.RevocationTime.Unix()))
			f.Text(audit.TagSource, from.Origin)
			f.Hash(audit.TagManifest, from.Manifest)
			row := CarryRevocation{Issuer: spki, Serial: e.SerialNumber.Bytes(), Reason: reason, At: e.RevocationTime, NotAfter: cert.NotAfter}
			if _, err := ledger.Append(ctx, audit.Event(audit.OpRevoke, f), row); err != nil {
				return carried, fmt.Errorf("carrying over the revocation of %x: %w", e.SerialNumber, err)
			}
			carried++
		}
	}
	return carried, nil
}

// PutRestoredIssuer commits with the OpRestore leaf of an issuer: its CRLs go on above
// CRLNumber and after CRLThis.
type PutRestoredIssuer struct {
	PutIssuer
	CRLNumber uint64
	CRLThis   time.Time
}

// CarryRevocation commits with the OpRevoke leaf of a serial that a predecessor issued.
// NotAfter is the end of its certificate; of one that the predecessor revoked only the
// serial is known, so that it stays on the CRLs until its issuer's certificate ends.
// audit.ErrExists if it is revoked already, but keyCompromise replaces another reason.
type CarryRevocation struct {
	Issuer   [32]byte // SHA-256 of the issuer's SPKI
	Serial   []byte
	Reason   Reason
	At       time.Time
	NotAfter time.Time
}

// Projection marks the types as audit.Projection; dbstore carries them out.
func (PutRestoredIssuer) Projection() {}
func (CarryRevocation) Projection()   {}
