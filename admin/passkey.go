package admin

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json/v2"
	"errors"
	"fmt"
	"slices"

	"chancery/audit"
)

// An assertion is what a passkey signs (W3C WebAuthn Level 3 §6.3.3): the signature is over
// authenticatorData ‖ SHA-256(clientDataJSON), and the client data hold the challenge. As
// the signature of a vote the three stand in one list, each behind its u16 length.
type Assertion struct {
	AuthenticatorData []byte
	ClientDataJSON    []byte
	Signature         []byte
}

// maxAssertion bounds an encoded assertion; it stands in a leaf.
const maxAssertion = 8 << 10

// Encode is the one encoding of an assertion, see [Assertion].
func (a Assertion) Encode() []byte {
	var f audit.Fields
	f.List(audit.TagVote, a.AuthenticatorData, a.ClientDataJSON, a.Signature)
	return f[0].Value
}

// DecodeAssertion reads what [Assertion.Encode] wrote.
func DecodeAssertion(b []byte) (a Assertion, err error) {
	if len(b) > maxAssertion {
		return a, fmt.Errorf("an assertion of %d octets; at most %d are allowed", len(b), maxAssertion)
	}
	items, err := audit.ParseList(b)
	if err != nil || len(items) != 3 {
		return a, errors.New("no assertion: it is a list of authenticator data, client data and signature")
	}
	return Assertion{items[0], items[1], items[2]}, nil
}

// The flags of authenticator data (WebAuthn Level 3 §6.1).
const (
	flagUserPresent  = 1 << 0
	flagUserVerified = 1 << 2
)

// Verify tells whether a passkey with this public key signed the challenge, for this
// relying party, from one of its origins, and with its user verified (WebAuthn Level 3
// §7.2, what the signature itself shows). Signature counters are not compared, as synced
// passkeys have none.
func (a Assertion) Verify(spki []byte, rpID string, origins []string, challenge [32]byte) error {
	var client struct {
		Type        string `json:"type"`
		Challenge   string `json:"challenge"`
		Origin      string `json:"origin"`
		CrossOrigin bool   `json:"crossOrigin"`
	}
	if err := json.Unmarshal(a.ClientDataJSON, &client); err != nil { // a member that stands there twice is refused
		return errors.New("its client data are no proper JSON")
	}
	rp := sha256.Sum256([]byte(rpID))
	switch {
	case client.Type != "webauthn.get":
		return fmt.Errorf("it is of type %q", audit.Text(client.Type, 64))
	case client.Challenge != base64.RawURLEncoding.EncodeToString(challenge[:]):
		return errors.New("it is about something else")
	case rpID == "" || !slices.Contains(origins, client.Origin) || client.CrossOrigin:
		return fmt.Errorf("it comes from the origin %q; allowed: %q", audit.Text(client.Origin, 128), origins)
	case len(a.AuthenticatorData) < 37 || !bytes.Equal(a.AuthenticatorData[:32], rp[:]):
		return fmt.Errorf("it is for another relying party than %s", rpID)
	case a.AuthenticatorData[32]&flagUserPresent == 0 || a.AuthenticatorData[32]&flagUserVerified == 0:
		return errors.New("the authenticator did not verify its user; set a PIN or biometrics")
	}
	sum := sha256.Sum256(a.ClientDataJSON)
	if err := verifyWith(spki, append(bytes.Clone(a.AuthenticatorData), sum[:]...), a.Signature); err != nil {
		return err
	}
	return nil
}

// Check tells whether the passkey can be on a roster.
func (k Passkey) Check() error {
	if len(k.ID) == 0 || len(k.ID) > 1023 || audit.Text(k.Label, 64) != k.Label {
		return errors.New("a passkey has an ID of 1 to 1023 octets and a label of at most 64")
	}
	_, err := passkeyPublic(k.SPKI)
	return err
}

// passkeyPublic reads a public key of the algorithms that are allowed: ES256, EdDSA with
// Ed25519, RS256 (RFC 9053, RFC 8812).
func passkeyPublic(spki []byte) (any, error) {
	pub, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, fmt.Errorf("passkey: %w", err)
	}
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() {
			return k, nil
		}
	case ed25519.PublicKey:
		return k, nil
	case *rsa.PublicKey:
		if k.N.BitLen() >= 2048 && k.N.BitLen() <= 4096 {
			return k, nil
		}
	}
	return nil, errors.New("a passkey must be ES256, EdDSA or RS256 with 2048 to 4096 bits")
}

func verifyWith(spki, message, signature []byte) error {
	pub, err := passkeyPublic(spki)
	if err != nil {
		return err
	}
	sum, ok := sha256.Sum256(message), false
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		ok = ecdsa.VerifyASN1(k, sum[:], signature)
	case ed25519.PublicKey:
		ok = ed25519.Verify(k, message, signature)
	case *rsa.PublicKey:
		ok = rsa.VerifyPKCS1v15(k, crypto.SHA256, sum[:], signature) == nil
	}
	if !ok {
		return errors.New("its signature does not verify")
	}
	return nil
}
