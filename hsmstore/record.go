package hsmstore

import (
	"fmt"
	"regexp"
	"time"

	"chancery/audit"
)

// KeyID is the CKA_ID of a key: 16 random octets, the same on every member.
type KeyID = [16]byte

// KeyState is where a key stands in its life.
type KeyState string

// The states. Only a usable key signs.
const (
	KeyBorn        KeyState = "born"        // not yet proved on every member
	KeyUsable      KeyState = "usable"      //
	KeyDisabled    KeyState = "disabled"    // by an administrator; may be enabled again
	KeyQuarantined KeyState = "quarantined" // one ECDSA nonce served two messages: the private key may be known
	KeyDestroyed   KeyState = "destroyed"   // every copy was destroyed
)

// KeyRecord is what the server's database knows of a key.
type KeyRecord struct {
	ID        KeyID
	Name      string // unique in the cluster, also after the key's end
	Purpose   audit.Purpose
	Algorithm string   // one of [Algorithms]
	SPKI      []byte   // DER; the pinned public key
	Subject   []byte   // Name DER that an issuer key is bound to, else nil
	Origin    string   // member where it was born
	Members   []string // members that hold it
	Confined  bool     // its members were named at its birth: members that join later do not get it
	Birth     uint64   // index of the leaf of its birth or adoption; as a projection: 0, the leaf at hand is meant
	State     KeyState
	Adopted   *Adopted // nil: born here

	Description string // free text for people
}

// Adopted is how a key that others made is found on its token, and what of it was
// accepted.
type Adopted struct {
	CKAID []byte   `json:"cka_id,omitempty"` // CKA_ID; empty: found by label
	Label string   `json:"label,omitempty"`  // CKA_LABEL
	Weak  []string `json:"weak,omitempty"`   // attributes that are weaker than ours and were accepted by name
}

// MemberRecord is what the server's database knows of an HSM member.
type MemberRecord struct {
	Name        string
	Serial      string // token serial number (PKCS#11 CK_TOKEN_INFO)
	Label       string // token label
	Replication Replication
	Role        Role
	Standing    Standing
}

// Standing is what people have decided about a member; it outlives restarts.
type Standing string

// The standings.
const (
	StandingActive  Standing = "active"
	StandingDrained Standing = "drained" // gets no requests until it is admitted
	StandingFenced  Standing = "fenced"  // signatures or people said that it must not be used
	StandingRemoved Standing = "removed" // left the cluster
	StandingRetired Standing = "retired" // the officers ended the cluster: for good
)

// PutKey stores a new key with the leaf of its birth (checkpoint keys of genesis: with leaf 0), whose index becomes Birth.
// A key of that name or ID that is there already is audit.ErrExists.
type PutKey struct{ KeyRecord }

// KeyCopied adds a member to KeyRecord.Members, with the leaf of the copy.
type KeyCopied struct {
	ID     KeyID
	Member string
}

// KeyGone takes a member out of KeyRecord.Members, with the leaf that says why.
type KeyGone struct {
	ID     KeyID
	Member string
}

// SetKeyState moves a key to a state, with the leaf that says so: the done leaf of
// the last proof, or an event. audit.ErrConflict if it is not in From.
type SetKeyState struct {
	ID   KeyID
	From []KeyState
	To   KeyState
}

// PutMember stores an HSM member with its OpMemberAdd leaf.
type PutMember struct{ MemberRecord }

// KeyDescribed changes KeyRecord.Description; it has no leaf.
type KeyDescribed struct {
	ID          KeyID
	Description string
}

// SetStanding records what was decided about a member, with its leaf.
type SetStanding struct {
	Member string
	To     Standing
}

// SeenNonce notes the r of an ECDSA signature with the message that it signed.
// audit.ErrExists if the key has used it for another message: whoever holds both
// signatures can compute the private key (SEC 1 §4.1.3).
type SeenNonce struct {
	Key     [32]byte // SHA-256 of the SPKI
	R       [32]byte // SHA-256 of r
	Message [32]byte // SHA-256
}

// Orphaned goes with every orphan leaf of an intent that named a serial: a
// signature may exist that nobody was given, so the serial is to be revoked.
type Orphaned struct {
	Intent uint64   // index of the intent
	Issuer [32]byte // SHA-256 of the issuer's SPKI
	Serial []byte   // big-endian (RFC 5280 §4.1.2.2)
	At     time.Time
}

// Projection marks the types as audit.Projection; dbstore carries them out.
func (PutKey) Projection()       {}
func (KeyCopied) Projection()    {}
func (KeyGone) Projection()      {}
func (SetKeyState) Projection()  {}
func (SetStanding) Projection()  {}
func (KeyDescribed) Projection() {}
func (SeenNonce) Projection()    {}
func (PutMember) Projection()    {}
func (Orphaned) Projection()     {}

var nameShape = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

// checkName holds the shape of key and member names: they stand in labels, file
// names, log lines and acts.
func checkName(what, name string) error {
	if !nameShape.MatchString(name) {
		return fmt.Errorf("%s name %q: 1 to 63 of a-z, 0-9, '.', '_', '-', starting with a letter or digit, please", what, name)
	}
	return nil
}
