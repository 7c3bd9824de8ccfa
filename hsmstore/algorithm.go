package hsmstore

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"math/big"
	"strings"

	"github.com/miekg/pkcs11"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// An algorithm is a kind of key together with the one way in which it signs: a
// key never has a choice of hash or padding.
type algorithm struct {
	name   string
	scheme scheme
	hash   crypto.Hash    // 0: the message itself is signed (Ed25519, CMAC)
	curve  elliptic.Curve // of ECDSA
	bits   int            // modulus bits of RSA
	ident  []byte         // AlgorithmIdentifier of its signatures, DER (RFC 5280 §4.1.1.2)
}

// scheme is how an algorithm signs.
type scheme uint8

const (
	ecdsaScheme scheme = iota + 1 // FIPS 186-5 §6
	pkcs1Scheme                   // RSASSA-PKCS1-v1_5, RFC 8017 §8.2
	pssScheme                     // RSASSA-PSS, RFC 8017 §8.1, salt as long as the hash
	eddsaScheme                   // Ed25519, RFC 8032 §5.1
	macScheme                     // AES-CMAC; see mac.go
)

// AlgorithmIdentifiers: RFC 5758 §3.2 (ECDSA, parameters absent), RFC 4055 §5
// (RSA PKCS #1 v1.5, parameters NULL) and §3.1 (PSS), RFC 8410 §3 (Ed25519).
var (
	identECDSA256 = mustHex("300a06082a8648ce3d040302")
	identECDSA384 = mustHex("300a06082a8648ce3d040303")
	identECDSA512 = mustHex("300a06082a8648ce3d040304")
	identRSA256   = mustHex("300d06092a864886f70d01010b0500")
	identPSS256   = mustHex("304106092a864886f70d01010a3034a00f300d06096086480165030402010500a11c301a06092a864886f70d010108300d06096086480165030402010500a203020120")
	identEd25519  = mustHex("300506032b6570")
)

// algEd25519 is the one kind of key that is named in the code.
const algEd25519 = "Ed25519"

var algorithms = []*algorithm{
	{name: "P-256", scheme: ecdsaScheme, hash: crypto.SHA256, curve: elliptic.P256(), ident: identECDSA256},
	{name: "P-384", scheme: ecdsaScheme, hash: crypto.SHA384, curve: elliptic.P384(), ident: identECDSA384},
	{name: "P-521", scheme: ecdsaScheme, hash: crypto.SHA512, curve: elliptic.P521(), ident: identECDSA512},
	{name: "RSA-2048", scheme: pkcs1Scheme, hash: crypto.SHA256, bits: 2048, ident: identRSA256},
	{name: "RSA-3072", scheme: pkcs1Scheme, hash: crypto.SHA256, bits: 3072, ident: identRSA256},
	{name: "RSA-4096", scheme: pkcs1Scheme, hash: crypto.SHA256, bits: 4096, ident: identRSA256},
	{name: "RSA-PSS-2048", scheme: pssScheme, hash: crypto.SHA256, bits: 2048, ident: identPSS256},
	{name: "RSA-PSS-3072", scheme: pssScheme, hash: crypto.SHA256, bits: 3072, ident: identPSS256},
	{name: "RSA-PSS-4096", scheme: pssScheme, hash: crypto.SHA256, bits: 4096, ident: identPSS256},
	{name: algEd25519, scheme: eddsaScheme, ident: identEd25519},
	{name: algAES, scheme: macScheme, ident: identAES},
}

// Algorithms lists the names of the algorithms that keys can have.
func Algorithms() []string {
	out := make([]string, len(algorithms))
	for i, a := range algorithms {
		out[i] = a.name
	}
	return out
}

func algorithmByName(name string) (*algorithm, error) {
	for _, a := range algorithms {
		if a.name == name {
			return a, nil
		}
	}
	return nil, fmt.Errorf("key algorithm %q is unknown; allowed: %s", name, strings.Join(Algorithms(), ", "))
}

// fits tells whether a public key is of the algorithm. RSA keys fit two: which
// padding a key signs with was settled at its birth.
func (a *algorithm) fits(pub crypto.PublicKey) bool {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		return a.scheme == ecdsaScheme && a.curve == k.Curve
	case *rsa.PublicKey:
		return a.bits == k.N.BitLen()
	case ed25519.PublicKey:
		return a.scheme == eddsaScheme
	case checkValue:
		return a.scheme == macScheme
	}
	return false
}

// digest hashes a whole message the way the algorithm does; Ed25519 and CMAC take
// the message as it is.
func (a *algorithm) digest(message []byte) []byte {
	switch a.hash {
	case crypto.SHA256:
		d := sha256.Sum256(message)
		return d[:]
	case crypto.SHA384:
		d := sha512.Sum384(message)
		return d[:]
	case crypto.SHA512:
		d := sha512.Sum512(message)
		return d[:]
	}
	return message
}

// verify checks a signature over the digest of a message with the pinned key.
func (a *algorithm) verify(pub crypto.PublicKey, digest, sig []byte) bool {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(k, digest, sig)
	case *rsa.PublicKey:
		if a.scheme == pssScheme {
			return rsa.VerifyPSS(k, a.hash, digest, sig, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: a.hash}) == nil
		}
		return rsa.VerifyPKCS1v15(k, a.hash, digest, sig) == nil
	case ed25519.PublicKey:
		return ed25519.Verify(k, digest, sig)
	case checkValue:
		return k.verifyMAC(sig)
	}
	return false
}

// Mechanisms that miekg/pkcs11 does not name (PKCS#11 v3.0 §2.3).
const (
	ckmEdwardsKeyPairGen = 0x1055
	ckmEdDSA             = 0x1057
	ckkEdwards           = 0x40
)

// mechanism is the signing mechanism with its parameters (PKCS#11 §2.1, §2.3).
func (a *algorithm) mechanism() []*pkcs11.Mechanism {
	switch a.scheme {
	case ecdsaScheme:
		return mechanism(pkcs11.CKM_ECDSA, nil)
	case pkcs1Scheme:
		return mechanism(pkcs11.CKM_RSA_PKCS, nil)
	case pssScheme:
		return mechanism(pkcs11.CKM_RSA_PKCS_PSS, pkcs11.NewPSSParams(pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256, uint(a.hash.Size())))
	case macScheme:
		return mechanism(ckmAESCMAC, nil)
	}
	return mechanism(ckmEdDSA, nil)
}

// mechanismName is its name in the standard.
func (a *algorithm) mechanismName() string {
	return [...]string{ecdsaScheme: "CKM_ECDSA", pkcs1Scheme: "CKM_RSA_PKCS", pssScheme: "CKM_RSA_PKCS_PSS", eddsaScheme: "CKM_EDDSA", macScheme: "CKM_AES_CMAC"}[a.scheme]
}

// digestInfo is what precedes a SHA-256 digest under PKCS #1 v1.5 (RFC 8017 §9.2).
var digestInfo = mustHex("3031300d060960864801650304020105000420")

// input is what C_Sign gets for a digest.
func (a *algorithm) input(digest []byte) []byte {
	if a.scheme == pkcs1Scheme {
		return append(digestInfo[:len(digestInfo):len(digestInfo)], digest...)
	}
	return digest
}

// output turns what C_Sign gave into the form in which signatures are used: ECDSA
// as ASN.1 (RFC 3279 §2.2.3) instead of the two halves of PKCS#11 §2.3.1.
func (a *algorithm) output(raw []byte) ([]byte, error) {
	if a.scheme != ecdsaScheme {
		return raw, nil
	}
	n := (a.curve.Params().BitSize + 7) / 8
	if len(raw) != 2*n {
		return nil, fmt.Errorf("ECDSA signature of %d octets, %d expected", len(raw), 2*n)
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1BigInt(new(big.Int).SetBytes(raw[:n]))
		b.AddASN1BigInt(new(big.Int).SetBytes(raw[n:]))
	})
	return b.Bytes()
}

// signatureR is the r of an ECDSA signature in ASN.1, as octets; ok is false for
// other schemes.
func (a *algorithm) signatureR(sig []byte) (r []byte, ok bool) {
	if a.scheme != ecdsaScheme {
		return nil, false
	}
	in := cryptobyte.String(sig)
	var seq cryptobyte.String
	ok = in.ReadASN1(&seq, cbasn1.SEQUENCE) && seq.ReadASN1Integer(&r)
	return r, ok
}

// parseSPKI reads a pinned public key and insists that its one encoding was given
// and that it is of the named algorithm.
func parseSPKI(spki []byte, name string) (crypto.PublicKey, *algorithm, error) {
	alg, err := algorithmByName(name)
	if err != nil {
		return nil, nil, err
	}
	if alg.scheme == macScheme {
		v, err := parseCheckValue(spki)
		return v, alg, err
	}
	pub, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, nil, fmt.Errorf("public key is no SubjectPublicKeyInfo: %w", err)
	}
	if !alg.fits(pub) {
		return nil, nil, fmt.Errorf("public key %T is not of algorithm %s", pub, name)
	}
	again, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil || string(again) != string(spki) {
		return nil, nil, fmt.Errorf("public key is not in its DER encoding")
	}
	return pub, alg, nil
}

func marshalSPKI(pub crypto.PublicKey) ([]byte, error) { return x509.MarshalPKIXPublicKey(pub) }

// edwards25519 is the CKA_EC_PARAMS of Ed25519: its name as a PrintableString, which
// SoftHSM wants (PKCS#11 v3.0 §2.3.5 allows it beside the OID).
var edwards25519 = append([]byte{0x13, 12}, "edwards25519"...)

// edwards25519OID is the other form of it, which RFC 8410 §3 gives.
var edwards25519OID = []byte{0x06, 3, 0x2b, 0x65, 0x70}

// ecParams is the CKA_EC_PARAMS of a curve: its OID in DER (PKCS#11 §2.3.3).
func (a *algorithm) ecParams() []byte {
	if a.scheme == eddsaScheme {
		return edwards25519
	}
	oid := map[string]asn1.ObjectIdentifier{"P-256": {1, 2, 840, 10045, 3, 1, 7}, "P-384": {1, 3, 132, 0, 34}, "P-521": {1, 3, 132, 0, 35}}[a.name]
	b, err := asn1.Marshal(oid)
	if err != nil {
		panic("hsmstore: curve without an OID: " + a.name)
	}
	return b
}

// ecPoint is the CKA_EC_POINT of a public key: the point in an OCTET STRING (PKCS#11 §2.3.3).
func ecPoint(pub crypto.PublicKey) ([]byte, error) {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		point, err := k.Bytes()
		if err != nil {
			return nil, err
		}
		return asn1.Marshal(point)
	case ed25519.PublicKey:
		return asn1.Marshal([]byte(k))
	}
	return nil, fmt.Errorf("a %T has no point", pub)
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
