package acme

import (
	"context"
	"time"

	"chancery/audit"
	"chancery/ca"
)

// Status of an account, order, authorization or challenge (RFC 8555 §7.1.6).
type Status string

// The statuses. An order that is pending or ready and an authorization that is
// pending or valid change by the clock alone, too: see [Order.At], [Authz.At].
const (
	Pending     Status = "pending"
	Processing  Status = "processing"
	Ready       Status = "ready"
	Valid       Status = "valid"
	Invalid     Status = "invalid"
	Deactivated Status = "deactivated"
	Expired     Status = "expired"
	Revoked     Status = "revoked"
)

// HTTP01 is the type of the challenge of RFC 8555 §8.3.
const HTTP01 = "http-01"

// Account is a registered key (RFC 8555 §7.1.2).
type Account struct {
	ID          string   // 22 base64url characters, 128 random bits, like every id here
	Thumbprint  string   // RFC 7638, SHA-256, base64url; unique
	JWK         []byte   // the public key as JSON
	Contact     []string // mailto: URLs
	Status      Status   // valid, deactivated, revoked
	TermsAgreed bool
	Created     time.Time
}

// Order is a request for one certificate (RFC 8555 §7.1.3).
type Order struct {
	ID      string
	Account string
	Status  Status // pending, ready, processing, valid, invalid
	Names   []ca.Name
	Authzs  []string // one per name, in their order; never changes
	Created time.Time
	Expires time.Time
	CSR     []byte   // DER, in processing only: what is personal in it shall not outlive its use
	Serial  string   // of the attempt under way (processing) or the certificate (valid)
	Error   *Problem // why it is invalid
}

// At is the status at a moment: an order not finalized in time is invalid.
func (o Order) At(now time.Time) Status {
	if (o.Status == Pending || o.Status == Ready) && !now.Before(o.Expires) {
		return Invalid
	}
	return o.Status
}

// Authz is an account's authorization for a name (RFC 8555 §7.1.4).
type Authz struct {
	ID         string
	Account    string
	Name       ca.Name
	Status     Status // pending, valid, invalid, deactivated, revoked
	Created    time.Time
	Expires    time.Time
	Challenges []Challenge
}

// At is the status at a moment (RFC 8555 §7.1.6).
func (a Authz) At(now time.Time) Status {
	if !now.Before(a.Expires) {
		switch a.Status {
		case Pending:
			return Invalid
		case Valid:
			return Expired
		}
	}
	return a.Status
}

// Challenge is one way to prove control of a name (RFC 8555 §7.1.5).
type Challenge struct {
	ID        string
	Authz     string
	Type      string // http-01
	Token     string // 43 base64url characters
	Status    Status // pending, processing, valid, invalid
	Validated time.Time
	Error     *Problem
}

// Cursor is a place in the list of an account's orders, newest first.
// The zero Cursor is the beginning.
type Cursor struct {
	Created time.Time
	ID      string
}

// PendingValidation is a challenge whose answer is awaited.
type PendingValidation struct {
	Challenge  Challenge
	Account    string
	Thumbprint string // of the account's key
	Name       ca.Name

	source string // who asked for it, see sourceOf; "" after a restart
}

// Authority issues and revokes. [FromCA] makes one of package ca's.
type Authority interface {
	// Prepare checks everything that can be checked without the key. It changes
	// nothing. Errors: *ca.Refusal if the requester must change something.
	Prepare(ctx context.Context, r ca.Request) (Prepared, error)
	// Issue signs what was prepared. with.Intent is durable before the key is used;
	// with.Done commits with the certificate. When Issue returns a certificate, it
	// is on the ledger for good. When it returns an error, with.Intent may have been
	// committed (then the serial is spent) and with.Done was not.
	Issue(ctx context.Context, p Prepared, with ca.Projections) (*ca.Certificate, error)
	// Revoke returns when the revocation is durable. Errors: *ca.Refusal.
	Revoke(ctx context.Context, r ca.RevokeRequest) error
	// Certificate returns a certificate that was issued, or an error that wraps
	// audit.ErrNotFound or is a *ca.Refusal with code ca.NotFound.
	Certificate(ctx context.Context, serial string) (*ca.Certificate, error)
	// CertificateByDER finds the certificate with exactly these bytes.
	CertificateByDER(ctx context.Context, der []byte) (*ca.Certificate, error)
}

// Ledger makes projections durable. *audit.Ledger implements it.
type Ledger interface {
	// Write commits all of p or nothing. When it returns nil, p survives the loss of
	// process and power. Errors: audit.ErrConflict if a projection found another
	// state than it expects, audit.ErrExists, audit.ErrUnavailable, audit.ErrBusy.
	Write(ctx context.Context, p ...audit.Projection) error
	// Refused counts what policy or authentication refused. It neither waits nor fails.
	Refused(r audit.Refusal)
}

// Storage reads what is committed: whatever a Write that has returned had
// changed is seen. Methods for one object return an error that wraps
// audit.ErrNotFound if there is none. Package dbstore implements it.
type Storage interface {
	ACMEAccount(ctx context.Context, id string) (Account, error)
	ACMEAccountByKey(ctx context.Context, thumbprint string) (Account, error)
	ACMEOrder(ctx context.Context, id string) (Order, error)
	// ACMEOrders lists orders of an account that are not invalid, newest first,
	// beginning behind a cursor.
	ACMEOrders(ctx context.Context, account string, after Cursor, limit int) ([]Order, error)
	// ACMEAuthzs returns authorizations with their challenges, in the order of ids.
	ACMEAuthzs(ctx context.Context, ids ...string) ([]Authz, error)
	// ACMEAuthzByChallenge returns the authorization that a challenge belongs to.
	ACMEAuthzByChallenge(ctx context.Context, challenge string) (Authz, error)
	// ACMEValidAuthz returns an authorization of the account for the name that is
	// valid until after the given time, without its challenges.
	ACMEValidAuthz(ctx context.Context, account string, name ca.Name, until time.Time) (Authz, error)
	// ACMEStaleOrders lists orders that never got a certificate and expired before the
	// given time, oldest first.
	ACMEStaleOrders(ctx context.Context, before time.Time, limit int) ([]string, error)
	// ACMEProcessingOrders lists orders that a crash or a fault left in processing: the
	// intent of their attempt is not open.
	ACMEProcessingOrders(ctx context.Context, limit int) ([]Order, error)
	// ACMEProcessingChallenges lists challenges whose validation has no result yet.
	ACMEProcessingChallenges(ctx context.Context, limit int) ([]PendingValidation, error)
}
