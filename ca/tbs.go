package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// capture stands in for the issuer's key while crypto/x509 builds what is to be
// signed: it has the real public key, keeps the message and signs nothing.
type capture struct {
	pub crypto.PublicKey
	msg []byte
}

var errCaptured = errors.New("captured")

func (c *capture) Public() crypto.PublicKey { return c.pub }

func (c *capture) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("ca: a digest was offered where the whole message is needed")
}

// SignMessage makes capture a [crypto.MessageSigner], which crypto/x509 hands the TBS bytes.
func (c *capture) SignMessage(_ io.Reader, msg []byte, _ crypto.SignerOpts) ([]byte, error) {
	c.msg = append([]byte(nil), msg...)
	return nil, errCaptured
}

// captureTBS runs build with a capturing signer and returns the message that it
// would have had signed.
func captureTBS(pub crypto.PublicKey, build func(crypto.Signer) error) ([]byte, error) {
	c := &capture{pub: pub}
	if err := build(c); !errors.Is(err, errCaptured) {
		return nil, fmt.Errorf("building the message to sign: %w", err)
	}
	return c.msg, nil
}

// algorithmIn reads the inner AlgorithmIdentifier of a TBSCertificate or TBSCertList
// (RFC 5280 §4.1.2.3, §5.1.2.2).
func algorithmIn(tbs []byte) ([]byte, error) {
	in := cryptobyte.String(tbs)
	var body, alg cryptobyte.String
	if !in.ReadASN1(&body, cbasn1.SEQUENCE) || !in.Empty() {
		return nil, errors.New("no SEQUENCE")
	}
	body.SkipOptionalASN1(cbasn1.Tag(0).ContextSpecific().Constructed())                        // version of a certificate
	if !body.SkipOptionalASN1(cbasn1.INTEGER) || !body.ReadASN1Element(&alg, cbasn1.SEQUENCE) { // serial, or version of a CRL
		return nil, errors.New("no AlgorithmIdentifier")
	}
	return alg, nil
}

// assemble joins the kept TBS bytes and a signature; nothing is encoded anew.
func assemble(tbs, sig []byte) ([]byte, error) {
	alg, err := algorithmIn(tbs)
	if err != nil {
		return nil, fmt.Errorf("assembling: %w", err)
	}
	return asn1.Marshal(struct {
		TBS, Algorithm asn1.RawValue
		Signature      asn1.BitString
	}{
		asn1.RawValue{FullBytes: tbs}, asn1.RawValue{FullBytes: alg}, asn1.BitString{Bytes: sig, BitLength: 8 * len(sig)},
	})
}

// lintKey makes a throw-away key that signs like the issuer's, so that what is linted
// differs from the final certificate in the signature bits alone.
func lintKey(pub crypto.PublicKey) (crypto.Signer, error) {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.GenerateKey(k.Curve, rand.Reader)
	case *rsa.PublicKey:
		return rsa.GenerateKey(rand.Reader, k.N.BitLen())
	}
	return nil, fmt.Errorf("no lint key for %T", pub)
}

// signatureAlgorithm is the one that a kind of key signs with.
func signatureAlgorithm(pub crypto.PublicKey) (x509.SignatureAlgorithm, crypto.Hash, error) {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return x509.ECDSAWithSHA256, crypto.SHA256, nil
		case elliptic.P384():
			return x509.ECDSAWithSHA384, crypto.SHA384, nil
		case elliptic.P521():
			return x509.ECDSAWithSHA512, crypto.SHA512, nil
		}
	case *rsa.PublicKey:
		return x509.SHA256WithRSA, crypto.SHA256, nil
	}
	return 0, 0, fmt.Errorf("no signature algorithm for %T", pub)
}
