package acme

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json/v2"
	"net/http"
	"slices"

	"github.com/go-jose/go-jose/v4"
)

// algorithms are the signature algorithms of requests (RFC 7518 §3.1, RFC 8037
// §3.1). RFC 8555 §6.2 forbids none and every MAC.
var algorithms = []string{"ES256", "ES384", "ES512", "RS256", "PS256", "EdDSA"}

func allowed(alg string) bool { return slices.Contains(algorithms, alg) }

func badAlgorithm(format string, args ...any) *Problem {
	p := problem(http.StatusBadRequest, BadSignatureAlgorithm, format, args...)
	p.Algorithms = algorithms
	return p
}

// accountKey is a public key that is good enough for an account.
type accountKey struct {
	public     crypto.PublicKey
	thumbprint string // RFC 7638, SHA-256, base64url
}

// parseKey reads a JWK (RFC 7517) and refuses weak keys.
func parseKey(raw []byte) (*accountKey, error) {
	var members map[string]any
	if err := json.Unmarshal(raw, &members); err != nil {
		return nil, malformed("jwk is no JSON object (RFC 7517 §4): %s", jsonFault(err))
	}
	for _, private := range []string{"d", "p", "q", "dp", "dq", "qi", "k", "oth"} {
		if _, there := members[private]; there {
			return nil, problem(http.StatusBadRequest, BadPublicKey, "jwk holds a private or symmetric key; this key must not be used any more: make a new one and send its public part only")
		}
	}
	var k jose.JSONWebKey
	if err := k.UnmarshalJSON(raw); err != nil || !k.Valid() || !k.IsPublic() {
		return nil, badKey("jwk is no valid public key")
	}
	if err := strong(k.Key); err != nil {
		return nil, err
	}
	return newKey(k.Key)
}

func newKey(public crypto.PublicKey) (*accountKey, error) {
	k := jose.JSONWebKey{Key: public}
	sum, err := k.Thumbprint(crypto.SHA256)
	if err != nil {
		return nil, badKey("a key of this type cannot be used")
	}
	return &accountKey{public: public, thumbprint: base64.RawURLEncoding.EncodeToString(sum)}, nil
}

func badKey(what string) *Problem {
	return problem(http.StatusBadRequest, BadPublicKey, "%s; allowed are EC keys on P-256, P-384 and P-521, RSA keys of 2048 to 8192 bits with an odd exponent from 65537 up, and Ed25519", what)
}

func strong(public crypto.PublicKey) error {
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() && k.Curve != elliptic.P521() {
			return badKey("the curve of jwk is not allowed")
		}
		if _, err := k.ECDH(); err != nil { // on the curve, not at infinity
			return badKey("the point of jwk is not on its curve")
		}
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < 2048 || n > 8192 {
			return badKey("the RSA modulus of jwk has the wrong length")
		}
		if k.N.Bit(0) == 0 || k.E < 65537 || k.E%2 == 0 {
			return badKey("the RSA modulus or exponent of jwk is weak")
		}
	case ed25519.PublicKey:
	default:
		return badKey("the type of jwk is not allowed")
	}
	return nil
}

// json is the key as a JWK with the members that RFC 7638 §3.2 requires.
func (k *accountKey) json() []byte {
	b, err := jose.JSONWebKey{Key: k.public}.MarshalJSON()
	if err != nil {
		panic("acme: a parsed key cannot be written: " + err.Error())
	}
	return b
}

func (k *accountKey) algorithms() []string {
	switch p := k.public.(type) {
	case *ecdsa.PublicKey:
		return map[elliptic.Curve][]string{elliptic.P256(): {"ES256"}, elliptic.P384(): {"ES384"}, elliptic.P521(): {"ES512"}}[p.Curve]
	case *rsa.PublicKey:
		return []string{"RS256", "PS256"}
	case ed25519.PublicKey:
		return []string{"EdDSA"}
	}
	return nil
}

func (k *accountKey) allows(alg string) bool { return slices.Contains(k.algorithms(), alg) }

// equal tells whether the key is also the given one.
func (k *accountKey) equal(other crypto.PublicKey) bool {
	e, ok := k.public.(interface{ Equal(crypto.PublicKey) bool })
	return ok && e.Equal(other)
}
