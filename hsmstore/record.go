package hsmstore

import (
	"fmt"
	"regexp"
	"time"

	"chancery/audit"
)

// KeyID is the CKA_ID of a key: 16 random octets, the same on every member.
type KeyID = [16]byte

// KeyRecord is what the server's database knows of a key.
type KeyRecord struct {
	ID        KeyID
	Name      string // unique in the cluster
	Purpose   audit.Purpose
	Algorithm string   // "P-256", "P-384", "P-521", "RSA-2048", "RSA-3072", "RSA-4096"
	SPKI      []byte   // DER; the pinned public key
	Subject   []byte   // Name DER that an issuer key is bound to, else nil
	Origin    string   // member where it was born
	Members   []string // members that hold it
	Birth     uint64   // index of its OpKeyGenerate leaf; as a projection: 0, the leaf at hand is meant
	Usable    bool     // proved on every member
}

// MemberRecord is what the server's database knows of an HSM member.
type MemberRecord struct {
	Name   string
	Serial string // token serial number (PKCS#11 CK_TOKEN_INFO)
	Label  string // token label
}

// PutKey stores a new key with the leaf of its birth (the checkpoint key: with leaf 0), whose index becomes Birth.
// A key of that name or ID that is there already is audit.ErrExists.
type PutKey struct{ KeyRecord }

// KeyCopied adds a member to KeyRecord.Members, with the leaf of the copy.
type KeyCopied struct {
	ID     KeyID
	Member string
}

// KeyUsable sets KeyRecord.Usable, with the done leaf of the last proof.
type KeyUsable struct{ ID KeyID }

// PutMember stores an HSM member with its OpMemberAdd leaf.
type PutMember struct{ MemberRecord }

// Orphaned goes with every orphan leaf of an intent that named a serial: a
// signature may exist that nobody was given, so the serial is to be revoked.
type Orphaned struct {
	Intent uint64   // index of the intent
	Issuer [32]byte // SHA-256 of the issuer's SPKI
	Serial []byte   // big-endian (RFC 5280 §4.1.2.2)
	At     time.Time
}

// Projection marks the types as audit.Projection; dbstore carries them out.
func (PutKey) Projection()    {}
func (KeyCopied) Projection() {}
func (KeyUsable) Projection() {}
func (PutMember) Projection() {}
func (Orphaned) Projection()  {}

var nameShape = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

// checkName holds the shape of key and member names: they stand in labels, file
// names, log lines and acts.
func checkName(what, name string) error {
	if !nameShape.MatchString(name) {
		return fmt.Errorf("%s name %q: 1 to 63 of a-z, 0-9, '.', '_', '-', starting with a letter or digit, please", what, name)
	}
	return nil
}
