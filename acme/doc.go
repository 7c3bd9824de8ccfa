// Package acme is the ACME server of a Chancery (RFC 8555): the way by which
// machines ask for certificates without a person.
//
// An account is a key. Its holder orders a certificate for some names, proves
// control of each name by a challenge, and finalizes the order with a CSR:
//
//	newAccount → newOrder → challenge … validation → finalize → certificate
//
// Every request is a JWS that names its URL and spends a nonce (jws.go, nonce.go).
// Every change of state is a projection with a compare-and-swap (projections.go),
// durable before the answer leaves; so two requests that race are told apart by
// the database and not by a lock in this process, and after a crash the server
// goes on from any state: challenges in "processing" are validated again, orders
// in "processing" are issued again from the stored CSR under a new serial (run.go).
//
// Validation fetches what a stranger names, from inside the operator's network.
// It therefore resolves names itself, judges every address before a packet is
// sent, dials exactly the address that was judged, and tells the stranger nothing
// of what it read (resolve.go, address.go, http01.go).
//
// Whoever may reach the server may have an account, so what one can occupy is bounded:
// open orders and the names in them by account, exactly (CreateOrder), new accounts by
// address (limit.go), validations by account and by address (dispatch.go). Orders that
// came to nothing are deleted after a while (sweep.go).
//
// The package speaks HTTP with net/http and knows neither SQL nor HSMs: it asks
// an [Authority] for certificates, hands its projections to a [Ledger], and reads
// through a [Storage].
package acme
