package ca

import (
	"context"
	"time"

	"chancery/audit"
)

// ReserveSerial commits with the intent of a certificate: from now on (issuer,
// serial) can never be given again. A second use is [ErrSerialTaken].
type ReserveSerial struct {
	Issuer   [32]byte // SHA-256 of the issuer's SPKI
	Serial   []byte
	NotAfter time.Time
	Evidence []byte // record whose digest the intent carries, see [audit.Evidence]
}

// PutCertificate commits with the done leaf of a certificate.
type PutCertificate struct {
	Issuer    [32]byte
	Serial    []byte
	Intent    uint64
	Profile   string
	Requester string
	Names     []Name
	NotBefore time.Time
	NotAfter  time.Time
	SPKI      [32]byte
	DER       []byte
}

// PutIssuer commits with the done leaf of an issuer's own certificate.
type PutIssuer struct {
	Name    string
	SPKI    [32]byte
	KeyName string
	Parent  string
	DER     []byte
}

// RevokeSerial commits with the revoke leaf. A serial that is revoked already
// keeps its date and reason (audit.ErrExists), but a key compromise replaces
// another reason (RFC 5280 §5.3.1). A serial without certificate is audit.ErrNotFound.
type RevokeSerial struct {
	Issuer [32]byte
	Serial []byte
	Reason Reason
	At     time.Time
}

// BeginCRL commits with the intent of a CRL: number and thisUpdate only rise
// (RFC 5280 §5.2.3), else audit.ErrConflict.
type BeginCRL struct {
	Issuer [32]byte
	Scope  audit.CRLScope
}

// PutCRL commits with the done leaf of a CRL. An older number never replaces a newer one.
type PutCRL struct {
	Issuer     [32]byte
	Number     uint64
	Covers     uint64
	NextUpdate time.Time
	DER        []byte
}

// PutSetting stores a small value that must survive a restart, unless it is there.
type PutSetting struct {
	Name  string
	Value []byte
}

func (ReserveSerial) Projection()  {}
func (PutCertificate) Projection() {}
func (PutIssuer) Projection()      {}
func (RevokeSerial) Projection()   {}
func (BeginCRL) Projection()       {}
func (PutCRL) Projection()         {}
func (PutSetting) Projection()     {}

// IssuerRecord is an issuer as storage keeps it.
type IssuerRecord struct {
	Name      string
	KeyName   string
	Parent    string // its own name for a root
	SPKI      [32]byte
	DER       []byte
	CRLNumber uint64    // last number given to an intent
	CRLThis   time.Time // thisUpdate of that number
	CRLNext   time.Time // nextUpdate of CRL
	CRLCovers uint64    // ledger size that CRL covers
	CRL       []byte    // newest signed CRL, or nil
}

// StoredCertificate is a certificate row with its revocation.
type StoredCertificate struct {
	PutCertificate
	Done    uint64
	Revoked *Revocation
}

// RevokedSerial is one entry of a CRL.
type RevokedSerial struct {
	Serial []byte
	Reason Reason
	At     time.Time
}

// Query selects certificates, newest first.
type Query struct {
	Before uint64 // done index to start below; 0: from the newest
	Limit  int    // 1..500
	Name   string // "": any; else a part of a subject alternative name
}

// Storage reads what the projections of this package have committed.
type Storage interface {
	Issuers(ctx context.Context) ([]IssuerRecord, error)
	// Certificate finds a certificate by issuer and serial, or audit.ErrNotFound.
	Certificate(ctx context.Context, issuer [32]byte, serial []byte) (*StoredCertificate, error)
	// CertificateOfKey finds the newest certificate for a key (SHA-256 of its SPKI) of a
	// profile that is not revoked, or audit.ErrNotFound.
	CertificateOfKey(ctx context.Context, spki [32]byte, profile string) (*StoredCertificate, error)
	Certificates(ctx context.Context, q Query) ([]StoredCertificate, error)
	// Revocations returns, from one snapshot, the ledger size and every revocation
	// of the issuer below it whose certificate has not expired at the given time.
	Revocations(ctx context.Context, issuer [32]byte, at time.Time) (covers uint64, revoked []RevokedSerial, err error)
	Setting(ctx context.Context, name string) ([]byte, error)
}
