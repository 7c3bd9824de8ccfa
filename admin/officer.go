package admin

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"

	"chancery/audit"
)

// Officer is one person, as the roster knows them.
type Officer struct {
	Name     string       `json:"name"`
	SPKI     []byte       `json:"spki,omitempty"` // of the CLI key: DER of a P-256 public key (RFC 5280 §4.1.2.7); nil: none
	Passkeys []Passkey    `json:"passkeys,omitempty"`
	Roles    []Assignment `json:"roles,omitempty"` // none on the roster of leaf 0, whose officers are crypto officers
}

// Passkey is a WebAuthn credential of an officer (W3C WebAuthn Level 3 §4).
type Passkey struct {
	ID    []byte `json:"id"`              // credential ID, 1 to 1023 octets
	SPKI  []byte `json:"spki"`            // DER of its public key: P-256, Ed25519 or RSA of 2048 bits or more
	Label string `json:"label,omitempty"` // what its owner calls it
}

// OfficerKey is the private half of an officer's CLI key: a software key in a
// file of mode 0600 on the officer's own machine. It signs votes, and requests to the API (admin.RequestText), whose
// texts begin differently.
type OfficerKey struct {
	Name string
	key  *ecdsa.PrivateKey
}

// NewOfficerKey draws a fresh P-256 key.
func NewOfficerKey(name string) (*OfficerKey, error) {
	if name == "" || audit.Text(name, 64) != name {
		return nil, fmt.Errorf("officer name %q: 1 to 64 octets of plain text, please", name)
	}
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("drawing an officer key: %w", err)
	}
	return &OfficerKey{Name: name, key: k}, nil
}

// Officer is the public half.
func (k *OfficerKey) Officer() (Officer, error) {
	spki, err := x509.MarshalPKIXPublicKey(k.key.Public())
	if err != nil {
		return Officer{}, fmt.Errorf("encoding the key of officer %s: %w", k.Name, err)
	}
	return Officer{Name: k.Name, SPKI: spki}, nil
}

// Save writes the key as PKCS#8 PEM (RFC 5958) with mode 0600. An existing file
// is never overwritten: the error then wraps fs.ErrExist.
func (k *OfficerKey) Save(path string) error {
	der, err := x509.MarshalPKCS8PrivateKey(k.key)
	if err != nil {
		return fmt.Errorf("encoding the key of officer %s: %w", k.Name, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("making the officers' folder: %w", err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("saving the key of officer %s: %w", k.Name, err)
	}
	err = pem.Encode(f, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(fmt.Errorf("saving the key of officer %s: %w", k.Name, err), os.Remove(path)) // half a key would be in the way of a whole one
	}
	return nil
}

// LoadOfficerKey reads what [OfficerKey.Save] wrote. A file that others may read
// is refused.
func LoadOfficerKey(name, path string) (*OfficerKey, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("reading the key of officer %s: %w", name, err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s: mode %04o lets others read the key; set it to 0600: %w", path, st.Mode().Perm(), fs.ErrPermission)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the key of officer %s: %w", name, err)
	}
	block, rest := pem.Decode(b)
	if block == nil || block.Type != "PRIVATE KEY" || len(rest) > 0 {
		return nil, fmt.Errorf("%s: not one PEM block of type PRIVATE KEY", path)
	}
	any, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	k, ok := any.(*ecdsa.PrivateKey)
	if !ok || k.Curve != elliptic.P256() {
		return nil, fmt.Errorf("%s: an officer's key must be P-256", path)
	}
	return &OfficerKey{Name: name, key: k}, nil
}

// RosterDigest is H("roster", quorum u16 ‖ (name, SPKI)*) with the officers in the
// order of their SPKI and each text behind its u32 length, so that one roster has
// one digest in whatever order it is given.
func RosterDigest(officers []Officer, quorum int) [32]byte {
	sorted := append([]Officer(nil), officers...)
	sort.Slice(sorted, func(i, j int) bool { return string(sorted[i].SPKI) < string(sorted[j].SPKI) })
	b := binary.BigEndian.AppendUint16(nil, uint16(quorum))
	for _, o := range sorted {
		for _, v := range []string{o.Name, string(o.SPKI)} {
			b = binary.BigEndian.AppendUint32(b, uint32(len(v)))
			b = append(b, v...)
		}
	}
	return audit.Digest("roster", b)
}
