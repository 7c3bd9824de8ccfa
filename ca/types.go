package ca

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"chancery/audit"
)

// NameKind is the kind of a subject alternative name (RFC 5280 §4.2.1.6).
type NameKind string

// The kinds of names that profiles know.
const (
	DNS NameKind = "dns"
	IP  NameKind = "ip"
)

// Name is one subject alternative name in canonical form: lower-case A-labels
// without a trailing dot, or the shortest text of an address. [ParseName] makes it.
type Name struct {
	Kind  NameKind
	Value string
}

func (n Name) String() string { return string(n.Kind) + ":" + n.Value }

// Addr is the address of an IP name.
func (n Name) Addr() netip.Addr { a, _ := netip.ParseAddr(n.Value); return a }

// Request is what is asked of the CA.
type Request struct {
	Profile   string // name of a profile, e.g. "tls-server"
	CSR       []byte // PKCS#10 DER (RFC 2986); of it only the public key and the names are looked at
	Names     []Name // what the requester is entitled to; nil: the CSR's own names. The CSR must ask for exactly these
	Requester string // pseudonym, stands in the ledger: "acme:<account>", "api:admin-token", "machine:<name>/<owner>"
	Client    string // address of who asks, or ""; the ledger commits to it

	// Evidence is what entitles the requester: how it was asked for, order and
	// authorizations. What the CA itself decided on is added to it.
	Evidence audit.Evidence
}

// Projections are the caller's row changes that commit with the certificate.
type Projections struct {
	Intent []audit.Projection // with the intent, before the HSM is called
	Done   []audit.Projection // with the certificate row
}

// Certificate is an issued certificate.
type Certificate struct {
	Serial    string // lower-case hex, no leading zeros stripped: as in the ledger
	Issuer    string // name of the issuer
	Profile   string
	DER       []byte
	Chain     [][]byte // DER of the issuers, nearest first, without the root
	NotBefore time.Time
	NotAfter  time.Time
	Names     []Name
	Requester string
	Done      uint64 // index of the done leaf
	Receipt   audit.Receipt
	Revoked   *Revocation // nil while good

	Predecessor bool // the ledger before this one issued it: DER and what follows from it is all that is known
}

// Revocation is why and when a certificate was revoked (RFC 5280 §5.3).
type Revocation struct {
	Reason Reason
	At     time.Time
}

// Reason is a CRLReason (RFC 5280 §5.3.1).
type Reason int

// The reasons that may be asked for.
const (
	Unspecified          Reason = 0
	KeyCompromise        Reason = 1
	CACompromise         Reason = 2
	AffiliationChanged   Reason = 3
	Superseded           Reason = 4
	CessationOfOperation Reason = 5
	CertificateHold      Reason = 6
	PrivilegeWithdrawn   Reason = 9
)

var reasonNames = map[Reason]string{Unspecified: "unspecified", KeyCompromise: "keyCompromise", CACompromise: "cACompromise",
	AffiliationChanged: "affiliationChanged", Superseded: "superseded", CessationOfOperation: "cessationOfOperation",
	CertificateHold: "certificateHold", PrivilegeWithdrawn: "privilegeWithdrawn"}

func (r Reason) String() string {
	if s, ok := reasonNames[r]; ok {
		return s
	}
	return fmt.Sprintf("reason(%d)", int(r))
}

// RevokeRequest asks for a revocation.
type RevokeRequest struct {
	Issuer    string // name of the issuer; "": the default issuer
	Serial    string // lower-case hex
	Reason    Reason
	Requester string // pseudonym, stands in the ledger
	Client    string // address of who asks, or ""; the ledger commits to it

	// Certificate is the DER of one that a predecessor's ledger issued: this one does not
	// have it. Issuer and Serial must be its own.
	Certificate []byte
}

// Code is the machine-readable part of a [Refusal].
type Code string

// The codes of refusals.
const (
	BadCSR            Code = "badCSR"
	BadPublicKey      Code = "badPublicKey"
	BadName           Code = "rejectedIdentifier"
	BadProfile        Code = "badProfile"
	BadReason         Code = "badRevocationReason"
	AlreadyRevoked    Code = "alreadyRevoked"
	NotFound          Code = "notFound"
	IssuerUnavailable Code = "issuerUnavailable"
)

// Refusal says what was wrong with a request, where, and how to repair it. Its
// text is made for the requester: it holds no secret and no raw input.
type Refusal struct {
	Code   Code
	Field  string // e.g. "csr.subjectAltName"
	Detail string
	Name   *Name // the name that was refused, if one was
}

func (r *Refusal) Error() string { return fmt.Sprintf("%s: %s: %s", r.Code, r.Field, r.Detail) }

func refuse(code Code, field, format string, args ...any) *Refusal {
	return &Refusal{Code: code, Field: field, Detail: fmt.Sprintf(format, args...)}
}

// ErrSerialTaken: the serial was given before; a new one must be drawn.
var ErrSerialTaken = errors.New("serial is taken")
