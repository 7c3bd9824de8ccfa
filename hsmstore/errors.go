package hsmstore

import "errors"

// Sentinels to branch on; the errors of this package wrap them with what happened,
// where, and the cure.
var (
	// ErrUnavailable: no member that holds the key can sign now. From Begin it
	// means that no intent was written; try later.
	ErrUnavailable = errors.New("no HSM member is available")
	// ErrBusy: too many operations wait for the HSMs. No intent was written; try later.
	ErrBusy = errors.New("HSM queue is full")
	// ErrRefused: the key is not for that. Another try will be refused as well.
	ErrRefused = errors.New("refused by the key's purpose")
	// ErrPIN: the token did not accept the PIN. It is never tried again by itself,
	// because tokens lock after a few wrong PINs.
	ErrPIN = errors.New("PIN was not accepted")
	// ErrModule: the PKCS#11 module is missing, not to be trusted, or does not load.
	ErrModule = errors.New("PKCS#11 module is unusable")
	// ErrToken: the token is missing, or another token than the enrolled one is there.
	ErrToken = errors.New("HSM token is missing or foreign")
	// ErrRandom: the token's random source is broken.
	ErrRandom = errors.New("random source of the HSM is broken")
	// ErrNoKey: there is no key of that name, or it is not proved yet.
	ErrNoKey = errors.New("no such key")
	// ErrNonceReused is what the database says to a [SeenNonce] that it has seen with
	// another message.
	ErrNonceReused = errors.New("ECDSA nonce was used for another message")
	// ErrNoMember: there is no member of that name.
	ErrNoMember = errors.New("no such HSM member")
	// ErrStanding: what was asked for does not fit the state of the member or key.
	ErrStanding = errors.New("does not fit the state")
	// ErrClosed: the store was closed.
	ErrClosed = errors.New("HSM store is closed")
)

// Faults between store and worker; callers see them only wrapped in ErrUnavailable.
var (
	errDied     = errors.New("worker ended")
	errDeadline = errors.New("worker missed the deadline and was killed")
	errBusy     = errors.New("HSM is throttled")
	errKeyFault = errors.New("token refused this key")
	errUnusable = errors.New("the worker cannot use the key")
	errBadSig   = errors.New("signature does not verify with the pinned key")
)
