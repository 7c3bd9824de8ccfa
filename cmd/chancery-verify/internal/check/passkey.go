package check

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json/jsontext"
	"errors"
	"io"
	"slices"

	"chancery/cmd/chancery-verify/internal/leaf"
)

// maxAssertion is the most octets that the vote of a passkey has.
const maxAssertion = 8 << 10

// asserted tells whether a passkey signed the challenge: the vote is a list of
// authenticator data, client data and signature (W3C WebAuthn Level 3 §6.3.3, §7.2). It is
// for this relying party, from one of its origins, and its user was verified.
func (r *roster) asserted(key any, challenge leaf.Hash, vote []byte) error {
	items, err := leaf.List(vote)
	if err != nil || len(items) != 3 || len(vote) > maxAssertion {
		return errors.New("the vote of a passkey cannot be read")
	}
	authenticator, client, signature := items[0], items[1], items[2]
	says, err := clientData(client)
	if err != nil {
		return err
	}
	rp := sha256.Sum256([]byte(r.rpID))
	const present, verified = 1 << 0, 1 << 2 // §6.1
	switch {
	case says["type"] != `"webauthn.get"`:
		return errors.New("a passkey signed something that is no assertion")
	case says["challenge"] != `"`+base64.RawURLEncoding.EncodeToString(challenge[:])+`"`:
		return errors.New("a passkey signed something else")
	case r.rpID == "" || !slices.ContainsFunc(r.origins, func(o string) bool { return says["origin"] == quoted(o) }):
		return errors.New("a passkey signed for another origin")
	case says["crossOrigin"] != "" && says["crossOrigin"] != "false" && says["crossOrigin"] != "null":
		return errors.New("a passkey signed for another origin")
	case len(authenticator) < 37 || !bytes.Equal(authenticator[:32], rp[:]):
		return errors.New("a passkey signed for another relying party")
	case authenticator[32]&present == 0 || authenticator[32]&verified == 0:
		return errors.New("a passkey signed, but its user was not verified")
	}
	sum := sha256.Sum256(client)
	if !verifies(key, append(bytes.Clone(authenticator), sum[:]...), signature) {
		return errors.New("the signature of a passkey does not verify")
	}
	return nil
}

// clientData are the members of a JSON object, each in its one canonical form (RFC 8785
// §3.2.2); an object that has a member twice, or anything behind it, is refused.
func clientData(b []byte) (map[string]string, error) {
	broken := errors.New("the client data of a passkey are no proper JSON object")
	dec := jsontext.NewDecoder(bytes.NewReader(b)) // members that stand there twice are an error
	if t, err := dec.ReadToken(); err != nil || t.Kind() != '{' {
		return nil, broken
	}
	out := map[string]string{}
	for dec.PeekKind() == '"' {
		name, err := dec.ReadToken()
		if err != nil {
			return nil, broken
		}
		at := name.String()
		value, err := dec.ReadValue()
		if value = value.Clone(); err != nil || value.Canonicalize() != nil {
			return nil, broken
		}
		out[at] = string(value)
	}
	if t, err := dec.ReadToken(); err != nil || t.Kind() != '}' {
		return nil, broken
	}
	if _, err := dec.ReadToken(); err != io.EOF {
		return nil, broken
	}
	return out, nil
}

// quoted is a text as clientData has it.
func quoted(s string) string {
	b, err := jsontext.AppendQuote(nil, s)
	v := jsontext.Value(b)
	if err != nil || v.Canonicalize() != nil {
		return ""
	}
	return string(v)
}

// verifies checks ES256, EdDSA with Ed25519, and RS256 with 2048 to 4096 bits (RFC 9053
// §2, RFC 8812 §2); nothing else is a passkey here.
func verifies(key any, message, signature []byte) bool {
	sum := sha256.Sum256(message)
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		return k.Curve == elliptic.P256() && ecdsa.VerifyASN1(k, sum[:], signature)
	case ed25519.PublicKey:
		return ed25519.Verify(k, message, signature)
	case *rsa.PublicKey:
		bits := k.N.BitLen()
		return bits >= 2048 && bits <= 4096 && rsa.VerifyPKCS1v15(k, crypto.SHA256, sum[:], signature) == nil
	}
	return false
}
