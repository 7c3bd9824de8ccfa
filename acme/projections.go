package acme

import "time"

// The changes of state. Each is a compare-and-swap: dbstore returns
// audit.ErrConflict, and changes nothing, if the state it starts from is gone.

// CreateAccount stores an account; audit.ErrExists if its key has one.
type CreateAccount struct{ Account Account }

// UpdateContact replaces the contacts of a valid account.
type UpdateContact struct {
	ID      string
	Contact []string
}

// DeactivateAccount ends an account: valid → deactivated.
type DeactivateAccount struct{ ID string }

// ChangeAccountKey gives a valid account another key. It expects the old one, and
// returns audit.ErrExists if the new one has an account.
type ChangeAccountKey struct {
	ID         string
	Old        string // thumbprint
	Thumbprint string
	JWK        []byte
}

// CreateOrder stores an order of a valid account with the authorizations that are
// new. Those of Order.Authzs that are not among them are reused: they must still
// be the account's, and valid beyond Order.Expires. If the account has MaxOpen open
// orders already, or would have open ones with more than [NamesPerOpen] times as many
// names, the error is a [*TooManyOrders].
type CreateOrder struct {
	Order   Order
	New     []Authz
	MaxOpen int // 0: any number
}

// NamesPerOpen is how many names the open orders of an account may have, on average.
const NamesPerOpen = 10

// TooManyOrders refuses a [CreateOrder].
type TooManyOrders struct{ Until time.Time } // when the first of the open orders expires

func (e *TooManyOrders) Error() string { return "the account has too many open orders" }

// PurgeOrders deletes those of the orders that never got a certificate and expired
// before Before, with the authorizations that only they need and that expired before
// Now. What entitled an account to a certificate stays, for the ledger has its digest.
type PurgeOrders struct {
	IDs         []string
	Before, Now time.Time
}

// ChallengeProcessing begins a validation: pending → processing. The authorization
// must be pending and unexpired, and no other challenge of it processing.
type ChallengeProcessing struct {
	ID    string
	Authz string
	Now   time.Time
}

// ChallengeValid ends a validation well: the challenge and its authorization become
// valid, and each pending order all of whose authorizations are valid, ready.
type ChallengeValid struct {
	ID        string
	Authz     string
	Validated time.Time
	Expires   time.Time // of the authorization from now on
}

// ChallengeInvalid ends a validation badly: the challenge, its authorization and
// the orders that need it become invalid at once.
type ChallengeInvalid struct {
	ID    string
	Authz string
	Error *Problem
}

// DeactivateAuthz gives up a pending or valid authorization (RFC 8555 §7.5.2). Its
// open challenges and the orders that need it and are not yet processing become invalid.
type DeactivateAuthz struct {
	ID      string
	Account string
	Error   *Problem // of the orders
}

// OrderProcessing commits with the intent of a certificate: ready → processing.
// With Old set it is the resumption of an order whose certificate with that serial
// never came to be: processing → processing. In both cases account and
// authorizations must be valid now, and in the first the order unexpired.
type OrderProcessing struct {
	ID      string
	Account string
	CSR     []byte
	Serial  string
	Old     string
	Now     time.Time
}

// OrderValid commits with the certificate: processing → valid, for this serial only.
type OrderValid struct {
	ID     string
	Serial string
}

// OrderInvalid gives an order up that was processing with this serial.
type OrderInvalid struct {
	ID     string
	Serial string
	Error  *Problem
}

// Projection marks the change as one that package audit commits.
func (CreateAccount) Projection()       {}
func (UpdateContact) Projection()       {}
func (DeactivateAccount) Projection()   {}
func (ChangeAccountKey) Projection()    {}
func (CreateOrder) Projection()         {}
func (PurgeOrders) Projection()         {}
func (ChallengeProcessing) Projection() {}
func (ChallengeValid) Projection()      {}
func (ChallengeInvalid) Projection()    {}
func (DeactivateAuthz) Projection()     {}
func (OrderProcessing) Projection()     {}
func (OrderValid) Projection()          {}
func (OrderInvalid) Projection()        {}
