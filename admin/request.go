package admin

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strconv"
	"time"
)

// RequestTime is how far the time of a signed request may be from the server's.
const RequestTime = 5 * time.Minute

// RequestText is what an officer's CLI key signs to come to the API without any token: the
// request, whole, to one host (host[:port], as in the URL), at one time, once. Its first
// line keeps it apart from votes.
func RequestText(host, method, uri string, at time.Time, nonce [16]byte, body []byte) []byte {
	sum := sha256.Sum256(body)
	b := []byte("chancery/request/v1\n")
	for _, line := range []string{host, method, uri, strconv.FormatInt(at.Unix(), 10), hex.EncodeToString(nonce[:]), hex.EncodeToString(sum[:])} {
		b = strconv.AppendQuote(b, line)
		b = append(b, '\n')
	}
	return b
}

// SignRequest signs a [RequestText]: ECDSA P-256 with SHA-256, DER.
func (k *OfficerKey) SignRequest(text []byte) ([]byte, error) {
	sum := sha256.Sum256(text)
	sig, err := ecdsa.SignASN1(rand.Reader, k.key, sum[:])
	if err != nil {
		return nil, fmt.Errorf("signing with the key of officer %s: %w", k.Name, err)
	}
	return sig, nil
}

// VerifyRequest tells whether the officer's CLI key signed a [RequestText].
func (o Officer) VerifyRequest(text, signature []byte) bool {
	if o.SPKI == nil {
		return false
	}
	pub, err := x509.ParsePKIXPublicKey(o.SPKI)
	key, ok := pub.(*ecdsa.PublicKey)
	sum := sha256.Sum256(text)
	return err == nil && ok && ecdsa.VerifyASN1(key, sum[:], signature)
}
