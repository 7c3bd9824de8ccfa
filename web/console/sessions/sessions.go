// Package sessions says what a session of the console is, and how it is written. It stands
// beneath both the console and the database, so that any node of a cluster knows the
// sessions that another one opened.
package sessions

import (
	"crypto/sha256"
	"time"

	"chancery/audit"
)

// The limits of a session, and how many there are at a time: in all, and of one person.
const (
	Idle  = 15 * time.Minute
	Whole = 8 * time.Hour
	Max   = 256
	Each  = 16
)

// The kinds of sessions: how somebody signed in. They stand in the database.
const (
	Officer = "officer" // with a passkey of the roster
	OIDC    = "oidc"    // by an OpenID provider
)

// ID is how the database knows a session: SHA-256 of what the browser has.
type ID [sha256.Size]byte

// IDOf is the ID of a browser's secret.
func IDOf(secret string) ID { return sha256.Sum256([]byte(secret)) }

// Session is a browser that signed in.
type Session struct {
	Kind       string
	Subject    string   // name of the officer, or subject of the provider
	Credential []byte   // ID of the passkey that signed in
	Entry      [32]byte // digest of the officer's entry on the roster, or of the provider's settings: another one ends the session
	Roles      string   // of who signed in by a provider, JSON; "" for officers, whose roles the roster has
	Created    time.Time
	Seen       time.Time  // to the minute
	Stepped    time.Time  // last proof that the person is there
	Form       string     // token of its forms
	Op         audit.OpID // of its entries in the ledger
}

// Ended tells whether the session is over by its age.
func (s Session) Ended(now time.Time) bool {
	return now.Sub(s.Seen) >= Idle || now.Sub(s.Created) >= Whole
}

// Put stores a session, in place of the one that the browser had (zero: none). Those that
// ended go; when there are too many, of this person or in all, who was away longest loses
// theirs.
type Put struct {
	ID      ID
	Instead ID
	Session
}

// Rotate gives a session another ID and form token, after a proof that the person is
// there. A session that is not there is audit.ErrConflict.
type Rotate struct {
	From, To ID
	Form     string
	At       time.Time
}

// Touch notes that a session is used.
type Touch struct {
	ID ID
	At time.Time
}

// Close ends a session; one that is not there is no error.
type Close struct{ ID ID }

// Spend notes that a challenge was answered. One that was answered before is
// audit.ErrExists. After Expires nobody takes it anyway.
type Spend struct {
	Challenge [32]byte // SHA-256
	Expires   time.Time
	At        time.Time
}

// Projection marks the types as audit.Projection; dbstore carries them out.
func (Put) Projection()    {}
func (Rotate) Projection() {}
func (Touch) Projection()  {}
func (Close) Projection()  {}
func (Spend) Projection()  {}
