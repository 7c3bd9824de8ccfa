// Package passkey runs the WebAuthn ceremonies of the console (W3C WebAuthn Level 3 §7):
// making a passkey, and signing in with one. It alone sees the library for them; what
// comes out is in the types of package admin. Challenges are its caller's, who makes them
// once and spends them once.
package passkey

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"sync"
	"time"

	"github.com/go-webauthn/webauthn/protocol"
	"github.com/go-webauthn/webauthn/protocol/webauthncbor"
	"github.com/go-webauthn/webauthn/protocol/webauthncose"
	"github.com/go-webauthn/webauthn/webauthn"

	"chancery/admin"
)

// RP is the relying party: who the passkeys are for, and from where they sign.
type RP struct {
	ID      string
	Origins []string
}

// Timeout is how long a browser waits for its person.
const Timeout = 2 * time.Minute

// User is who a passkey belongs to.
type User struct {
	Handle []byte // 1 to 64 octets, the same for all passkeys of a person
	Name   string
	keys   []webauthn.Credential
}

// WebAuthnID and the others implement webauthn.User.
func (u User) WebAuthnID() []byte                         { return u.Handle }
func (u User) WebAuthnName() string                       { return u.Name }
func (u User) WebAuthnDisplayName() string                { return u.Name }
func (u User) WebAuthnCredentials() []webauthn.Credential { return u.keys }

// parameters are the algorithms that [admin.Passkey.Check] allows, best first.
var parameters = []protocol.CredentialParameter{
	{Type: protocol.PublicKeyCredentialType, Algorithm: webauthncose.AlgES256},
	{Type: protocol.PublicKeyCredentialType, Algorithm: webauthncose.AlgEdDSA},
	{Type: protocol.PublicKeyCredentialType, Algorithm: webauthncose.AlgRS256},
}

func (rp RP) ceremony() (*webauthn.WebAuthn, error) {
	required := true
	w, err := webauthn.New(&webauthn.Config{RPID: rp.ID, RPDisplayName: "Chancery", RPOrigins: rp.Origins, AttestationPreference: protocol.PreferNoAttestation,
		AuthenticatorSelection: protocol.AuthenticatorSelection{ResidentKey: protocol.ResidentKeyRequirementRequired, RequireResidentKey: &required, UserVerification: protocol.VerificationRequired}})
	if err != nil {
		return nil, fmt.Errorf("passkeys for %q from %q: %w", rp.ID, rp.Origins, err)
	}
	return w, nil
}

func descriptors(ids [][]byte) (out []protocol.CredentialDescriptor) {
	for _, id := range ids {
		out = append(out, protocol.CredentialDescriptor{Type: protocol.PublicKeyCredentialType, CredentialID: id})
	}
	return out
}

// CreationOptions are what a browser needs to make a passkey, as JSON of the standard
// (§5.4): one that the authenticator keeps and for which it verifies its user, without
// attestation. Of the credentials in have, the person has one already.
func (rp RP) CreationOptions(u User, have [][]byte, challenge []byte) ([]byte, error) {
	w, err := rp.ceremony()
	if err != nil {
		return nil, err
	}
	o, _, err := w.BeginRegistration(u, webauthn.WithCredentialParameters(parameters), webauthn.WithExclusions(descriptors(have)))
	if err != nil {
		return nil, err
	}
	o.Response.Challenge, o.Response.Timeout = challenge, int(Timeout/time.Millisecond)
	return json.Marshal(o.Response)
}

// Created is the passkey that a browser made for a challenge (§7.1). It has no label.
func (rp RP) Created(u User, challenge, response []byte) (admin.Passkey, error) {
	w, err := rp.ceremony()
	if err != nil {
		return admin.Passkey{}, err
	}
	parsed, err := protocol.ParseCredentialCreationResponseBytes(response)
	if err != nil {
		return admin.Passkey{}, err
	}
	made, err := w.CreateCredential(u, webauthn.SessionData{Challenge: base64.RawURLEncoding.EncodeToString(challenge), RelyingPartyID: rp.ID, UserID: u.Handle,
		UserVerification: protocol.VerificationRequired, CredParams: parameters}, parsed)
	if err != nil {
		return admin.Passkey{}, err
	}
	spki, err := fromCOSE(made.PublicKey)
	return admin.Passkey{ID: made.ID, SPKI: spki}, err
}

// RequestOptions are what a browser needs to sign a challenge (§5.5). Without allow, the
// person picks a passkey.
func (rp RP) RequestOptions(challenge []byte, allow [][]byte) ([]byte, error) {
	w, err := rp.ceremony()
	if err != nil {
		return nil, err
	}
	o, _, err := w.BeginDiscoverableLogin(webauthn.WithChallenge(challenge), webauthn.WithUserVerification(protocol.VerificationRequired))
	if err != nil {
		return nil, err
	}
	o.Response.Timeout, o.Response.AllowedCredentials = int(Timeout/time.Millisecond), descriptors(allow)
	return json.Marshal(o.Response)
}

// errUnknown is the one answer to a credential that nobody has.
var errUnknown = errors.New("the credential is nobody's")

// Signed verifies what a browser signed (§7.2). find knows whose a credential is. For one
// that is nobody's the signature is verified all the same, with a key that nobody has, so
// that the time of the answer does not tell.
func (rp RP) Signed(challenge, response []byte, find func(credential []byte) (User, admin.Passkey, bool)) (id []byte, err error) {
	w, err := rp.ceremony()
	if err != nil {
		return nil, err
	}
	parsed, err := protocol.ParseCredentialRequestResponseBytes(response)
	if err != nil {
		return nil, err
	}
	known := false
	_, err = w.ValidateDiscoverableLogin(func(raw, handle []byte) (webauthn.User, error) {
		u, k, ok := find(raw)
		if known = ok; !ok {
			spki, err := nobody()
			if err != nil {
				return nil, err
			}
			u, k = User{Handle: bytes.Clone(handle), Name: "nobody"}, admin.Passkey{ID: bytes.Clone(raw), SPKI: spki}
		}
		cose, err := toCOSE(k.SPKI)
		if err != nil {
			return nil, err
		}
		flags := parsed.Response.AuthenticatorData.Flags // whether it can be synced is not on the roster
		u.keys = []webauthn.Credential{{ID: k.ID, PublicKey: cose, Flags: webauthn.CredentialFlags{BackupEligible: flags.HasBackupEligible()}}}
		return u, nil
	}, webauthn.SessionData{Challenge: base64.RawURLEncoding.EncodeToString(challenge), RelyingPartyID: rp.ID, UserVerification: protocol.VerificationRequired}, parsed)
	if err == nil && !known {
		err = errUnknown
	}
	return parsed.RawID, err
}

// Challenge reads the challenge that a response is about; it is not verified here.
func Challenge(response []byte) ([]byte, error) {
	var r struct {
		Response struct {
			Client string `json:"clientDataJSON"`
		} `json:"response"`
	}
	var client struct {
		Challenge string `json:"challenge"`
	}
	if err := json.Unmarshal(response, &r); err != nil {
		return nil, errors.New("no response of a browser")
	}
	data, err := base64.RawURLEncoding.DecodeString(r.Response.Client)
	if err != nil || json.Unmarshal(data, &client) != nil {
		return nil, errors.New("the client data cannot be read")
	}
	return base64.RawURLEncoding.DecodeString(client.Challenge)
}

// Vote takes a response apart for [admin.Ballot] and [admin.Ask]: which credential signed,
// and the assertion. The board verifies it.
func Vote(response []byte) (credential []byte, a admin.Assertion, err error) {
	parsed, err := protocol.ParseCredentialRequestResponseBytes(response)
	if err != nil {
		return nil, a, err
	}
	raw := parsed.Raw.AssertionResponse
	return parsed.RawID, admin.Assertion{AuthenticatorData: raw.AuthenticatorData, ClientDataJSON: raw.ClientDataJSON, Signature: raw.Signature}, nil
}

// nobody is the SPKI of a key whose private half is not kept: it is on no roster.
var nobody = sync.OnceValues(func() ([]byte, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("a key for credentials that nobody has: %w", err)
	}
	return x509.MarshalPKIXPublicKey(k.Public())
})

// fromCOSE is the SPKI of a COSE key (RFC 9052 §7).
func fromCOSE(b []byte) ([]byte, error) {
	parsed, err := webauthncose.ParsePublicKey(b)
	if err != nil {
		return nil, err
	}
	var pub any
	switch k := parsed.(type) {
	case webauthncose.EC2PublicKeyData:
		if webauthncose.COSEEllipticCurve(k.Curve) != webauthncose.P256 || len(k.XCoord) != 32 || len(k.YCoord) != 32 {
			return nil, errors.New("passkeys of ES256 are P-256")
		}
		pub, err = ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append(append([]byte{4}, k.XCoord...), k.YCoord...))
		if err != nil {
			return nil, err
		}
	case webauthncose.OKPPublicKeyData:
		if len(k.XCoord) != ed25519.PublicKeySize {
			return nil, errors.New("passkeys of EdDSA are Ed25519")
		}
		pub = ed25519.PublicKey(k.XCoord)
	case webauthncose.RSAPublicKeyData:
		if len(k.Exponent) == 0 || len(k.Exponent) > 4 {
			return nil, errors.New("the exponent is too long")
		}
		pub = &rsa.PublicKey{N: new(big.Int).SetBytes(k.Modulus), E: int(new(big.Int).SetBytes(k.Exponent).Int64())}
	default:
		return nil, fmt.Errorf("a key of type %T", parsed)
	}
	return x509.MarshalPKIXPublicKey(pub)
}

// toCOSE is the COSE key of an SPKI, of the algorithms that are allowed.
func toCOSE(spki []byte) ([]byte, error) {
	pub, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, err
	}
	kind := func(t webauthncose.COSEKeyType, a webauthncose.COSEAlgorithmIdentifier) webauthncose.PublicKeyData {
		return webauthncose.PublicKeyData{KeyType: int64(t), Algorithm: int64(a)}
	}
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		point, err := k.Bytes()
		if err != nil || len(point) != 65 {
			return nil, errors.New("passkeys of ES256 are P-256")
		}
		return webauthncbor.Marshal(webauthncose.EC2PublicKeyData{PublicKeyData: kind(webauthncose.EllipticKey, webauthncose.AlgES256), Curve: int64(webauthncose.P256), XCoord: point[1:33], YCoord: point[33:]})
	case ed25519.PublicKey:
		return webauthncbor.Marshal(webauthncose.OKPPublicKeyData{PublicKeyData: kind(webauthncose.OctetKey, webauthncose.AlgEdDSA), Curve: int64(webauthncose.Ed25519), XCoord: k})
	case *rsa.PublicKey:
		return webauthncbor.Marshal(webauthncose.RSAPublicKeyData{PublicKeyData: kind(webauthncose.RSAKey, webauthncose.AlgRS256), Modulus: k.N.Bytes(), Exponent: bytes.TrimLeft(binary.BigEndian.AppendUint32(nil, uint32(k.E)), "\x00")})
	}
	return nil, fmt.Errorf("a key of type %T", pub)
}
