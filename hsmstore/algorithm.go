package hsmstore

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"math/big"
)

// An algorithm is a kind of key together with the one way in which it signs: a
// key never has a choice of hash.
type algorithm struct {
	name  string
	hash  crypto.Hash
	curve elliptic.Curve // nil: RSA
	bits  int            // modulus bits of RSA
	ident []byte         // AlgorithmIdentifier of its signatures, DER (RFC 5280 §4.1.1.2)
}

// AlgorithmIdentifiers: RFC 5758 §3.2 (ECDSA, parameters absent), RFC 4055 §5
// (RSA PKCS #1 v1.5, parameters NULL).
var (
	identECDSA256 = mustHex("300a06082a8648ce3d040302")
	identECDSA384 = mustHex("300a06082a8648ce3d040303")
	identECDSA512 = mustHex("300a06082a8648ce3d040304")
	identRSA256   = mustHex("300d06092a864886f70d01010b0500")
)

var algorithms = []*algorithm{
	{name: "P-256", hash: crypto.SHA256, curve: elliptic.P256(), ident: identECDSA256},
	{name: "P-384", hash: crypto.SHA384, curve: elliptic.P384(), ident: identECDSA384},
	{name: "P-521", hash: crypto.SHA512, curve: elliptic.P521(), ident: identECDSA512},
	{name: "RSA-2048", hash: crypto.SHA256, bits: 2048, ident: identRSA256},
	{name: "RSA-3072", hash: crypto.SHA256, bits: 3072, ident: identRSA256},
	{name: "RSA-4096", hash: crypto.SHA256, bits: 4096, ident: identRSA256},
}

func algorithmByName(name string) (*algorithm, error) {
	for _, a := range algorithms {
		if a.name == name {
			return a, nil
		}
	}
	return nil, fmt.Errorf("key algorithm %q is unknown; allowed: P-256, P-384, P-521, RSA-2048, RSA-3072, RSA-4096", name)
}

// algorithmOf tells the algorithm of a public key.
func algorithmOf(pub crypto.PublicKey) (*algorithm, error) {
	for _, a := range algorithms {
		switch k := pub.(type) {
		case *ecdsa.PublicKey:
			if a.curve == k.Curve {
				return a, nil
			}
		case *rsa.PublicKey:
			if a.bits == k.N.BitLen() {
				return a, nil
			}
		}
	}
	return nil, fmt.Errorf("key type %T of that size is not supported", pub)
}

// digest hashes a whole message the way the algorithm does.
func (a *algorithm) digest(message []byte) []byte {
	switch a.hash {
	case crypto.SHA384:
		d := sha512.Sum384(message)
		return d[:]
	case crypto.SHA512:
		d := sha512.Sum512(message)
		return d[:]
	default:
		d := sha256.Sum256(message)
		return d[:]
	}
}

// verify checks a signature over the digest of a message with the pinned key.
func (a *algorithm) verify(pub crypto.PublicKey, digest, sig []byte) bool {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(k, digest, sig)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(k, a.hash, digest, sig) == nil
	}
	return false
}

// parseSPKI reads a pinned public key and insists that its one encoding was given.
func parseSPKI(spki []byte) (crypto.PublicKey, *algorithm, error) {
	pub, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, nil, fmt.Errorf("public key is no SubjectPublicKeyInfo: %w", err)
	}
	alg, err := algorithmOf(pub)
	if err != nil {
		return nil, nil, err
	}
	again, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil || string(again) != string(spki) {
		return nil, nil, fmt.Errorf("public key is not in its DER encoding")
	}
	return pub, alg, nil
}

// ecParams is the CKA_EC_PARAMS of a curve: its OID in DER (PKCS#11 §2.3.3).
func (a *algorithm) ecParams() []byte {
	oid := map[string]asn1.ObjectIdentifier{"P-256": {1, 2, 840, 10045, 3, 1, 7}, "P-384": {1, 3, 132, 0, 34}, "P-521": {1, 3, 132, 0, 35}}[a.name]
	b, err := asn1.Marshal(oid)
	if err != nil {
		panic("hsmstore: curve without an OID: " + a.name)
	}
	return b
}

// ecPoint is the CKA_EC_POINT of a public key: the point in an OCTET STRING (PKCS#11 §2.3.3).
func ecPoint(k *ecdsa.PublicKey) ([]byte, error) {
	point, err := k.Bytes()
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(point)
}

// publicExponent is 65537, the only one that is accepted.
var publicExponent = []byte{1, 0, 1}

func bigEndian(n *big.Int) []byte { return n.Bytes() }

func mustHex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}
