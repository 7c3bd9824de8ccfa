package ca

import (
	"context"
	"errors"
	"fmt"
	"time"

	"crypto/x509"

	"chancery/audit"
)

// Recover does what the CA owes after the database lost its newest entries: CRLs go on
// above all numbers that may have been given meanwhile, and every serial of a lost entry
// is revoked, whether it was given there or revoked there. grant is that of the officers.
// It may be called again. strange counts serials of issuers that were lost themselves.
func Recover(ctx context.Context, ledger *audit.Ledger, st Storage, grant [32]byte, lost []audit.LostSerial) (revoked, strange uint64, err error) {
	issuers, err := st.Issuers(ctx)
	if err != nil {
		return 0, 0, fmt.Errorf("reading issuers: %w", err)
	}
	now := time.Now().UTC().Truncate(time.Second)
	ends := map[[32]byte]time.Time{}
	for _, i := range issuers {
		cert, err := x509.ParseCertificate(i.DER)
		if err != nil {
			return 0, 0, fmt.Errorf("issuer %s: %w", i.Name, err)
		}
		ends[i.SPKI] = cert.NotAfter
		row := RaiseCRLs{Issuer: i.SPKI, Number: numbersBegin(i.CRLNumber, now), This: now}
		var f audit.Fields
		f.Hash(audit.TagIssuer, i.SPKI)
		f.Uint64(audit.TagCRLNumber, row.Number)
		f.Uint64(audit.TagThisUpdate, uint64(now.Unix()))
		f.Hash(audit.TagGrant, grant)
		if _, err := ledger.Append(ctx, audit.Event(audit.OpRecovery, f), row); err != nil {
			return 0, 0, fmt.Errorf("raising the CRL numbers of issuer %s: %w", i.Name, err)
		}
	}
	for _, l := range lost {
		end, known := ends[l.Issuer]
		if !known {
			strange++
			continue
		}
		err := revokeLost(ctx, ledger, st, grant, l, now, end)
		if err != nil && !errors.Is(err, audit.ErrExists) {
			return revoked, strange, fmt.Errorf("revoking %x: %w", l.Serial, err)
		}
		if err == nil {
			revoked++
		}
	}
	return revoked, strange, nil
}

// revokeLost revokes a serial of a lost entry; audit.ErrExists if it is revoked already.
func revokeLost(ctx context.Context, ledger *audit.Ledger, st Storage, grant [32]byte, l audit.LostSerial, now, issuerEnds time.Time) error {
	var f audit.Fields
	f.Hash(audit.TagIssuer, l.Issuer)
	f.Bytes(audit.TagSerial, l.Serial)
	f.Text(audit.TagReason, Unspecified.String())
	f.Uint64(audit.TagRevokedAt, uint64(now.Unix()))
	f.Hash(audit.TagGrant, grant)
	var row audit.Projection = RevokeSerial{Issuer: l.Issuer, Serial: l.Serial, Reason: Unspecified, At: now}
	_, err := st.Certificate(ctx, l.Issuer, l.Serial)
	if errors.Is(err, audit.ErrNotFound) {
		f.Text(audit.TagState, "lost")
		row, err = LoseSerial{CarryRevocation{Issuer: l.Issuer, Serial: l.Serial, Reason: Unspecified, At: now, NotAfter: issuerEnds}}, nil
	}
	if err != nil {
		return err
	}
	_, err = ledger.Append(ctx, audit.Event(audit.OpRevoke, f), row)
	return err
}

// RaiseCRLs commits with the OpRecovery leaf of an issuer: its CRLs go on above Number and
// after This. audit.ErrConflict if they are there already.
type RaiseCRLs struct {
	Issuer [32]byte // SHA-256 of the issuer's SPKI
	Number uint64
	This   time.Time
}

// LoseSerial commits with the OpRevoke leaf of a serial whose intent was lost: it is
// revoked until its issuer's certificate ends, and never given again. audit.ErrExists if
// it is known.
type LoseSerial struct{ CarryRevocation }

// Projection marks the types as audit.Projection; dbstore carries them out.
func (RaiseCRLs) Projection()  {}
func (LoseSerial) Projection() {}
