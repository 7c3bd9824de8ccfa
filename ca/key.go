package ca

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"fmt"
	"math/big"
	"slices"
)

// KeyAlgorithm names a public key's kind and size, e.g. "P-256", "RSA-2048".
type KeyAlgorithm string

func algorithmOf(pub crypto.PublicKey) KeyAlgorithm {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		return KeyAlgorithm(k.Curve.Params().Name)
	case *rsa.PublicKey:
		return KeyAlgorithm(fmt.Sprintf("RSA-%d", k.N.BitLen()))
	}
	switch pub.(type) {
	case ed25519.PublicKey:
		return "Ed25519"
	case *ecdh.PublicKey:
		return "X25519"
	}
	return "of an unknown kind"
}

// checkKey refuses public keys that are weak or that the profile does not allow. The
// field names where the key came from.
func checkKey(field string, pub crypto.PublicKey, allowed []KeyAlgorithm) error {
	alg := algorithmOf(pub)
	if !slices.Contains(allowed, alg) {
		return refuse(BadPublicKey, field, "the key is %s; this profile allows %v", alg, allowed)
	}
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() && k.Curve != elliptic.P521() {
			return refuse(BadPublicKey, field, "the curve is not P-256, P-384 or P-521")
		}
		if _, err := k.ECDH(); err != nil { // checks that the point is on the curve and not infinity
			return refuse(BadPublicKey, field, "the public point is not on its curve (SP 800-56A §5.6.2.3.3)")
		}
	case *rsa.PublicKey:
		return checkRSA(field, k)
	}
	return nil
}

// smallPrimes is the product of the odd primes below 752: no sound modulus shares a factor with it.
var smallPrimes = func() *big.Int {
	p := big.NewInt(1)
	for n := int64(3); n < 752; n += 2 {
		if big.NewInt(n).ProbablyPrime(0) {
			p.Mul(p, big.NewInt(n))
		}
	}
	return p
}()

// fermatRounds finds factors that lie closer together than about 2^(bits/4) (CVE-2022-26320).
const fermatRounds = 100

func checkRSA(field string, k *rsa.PublicKey) error {
	bad := func(why string) error { return refuse(BadPublicKey, field, "%s", why) }
	if k.E < 65537 || k.E&1 == 0 {
		return bad("the RSA exponent must be odd and at least 65537")
	}
	if k.N.Bit(0) == 0 || new(big.Int).GCD(nil, nil, k.N, smallPrimes).Cmp(big.NewInt(1)) != 0 {
		return bad("the RSA modulus has a small factor; make a new key")
	}
	if fermat(k.N) {
		return bad("the RSA primes lie too close together; make a new key")
	}
	if roca(k.N) {
		return bad("the RSA key has the ROCA fingerprint (CVE-2017-15361); make a new key with other firmware")
	}
	return nil
}

// fermat tells whether n = a² - b² for an a close to √n.
func fermat(n *big.Int) bool {
	a, one, b2 := new(big.Int).Sqrt(n), big.NewInt(1), new(big.Int)
	if b2.Mul(a, a).Cmp(n) == 0 {
		return true
	}
	for range fermatRounds {
		a.Add(a, one)
		if b2.Sub(b2.Mul(a, a), n); square(b2) {
			return true
		}
	}
	return false
}

// square tells whether n ≥ 0 is a square. Squares are 0, 1, 4, 9, 16, 17, 25, 33, 36,
// 41, 49 or 57 modulo 64, which spares most numbers the root.
func square(n *big.Int) bool {
	const residues = 1<<0 | 1<<1 | 1<<4 | 1<<9 | 1<<16 | 1<<17 | 1<<25 | 1<<33 | 1<<36 | 1<<41 | 1<<49 | 1<<57
	low := n.Bit(0) | n.Bit(1)<<1 | n.Bit(2)<<2 | n.Bit(3)<<3 | n.Bit(4)<<4 | n.Bit(5)<<5
	if residues>>low&1 == 0 {
		return false
	}
	root := new(big.Int).Sqrt(n)
	return root.Mul(root, root).Cmp(n) == 0
}

// roca tells whether N is a power of 65537 modulo each of many small primes, as all
// keys of the flawed library are, and about one in 2^27 others (Nemec et al., CCS 2017).
func roca(n *big.Int) bool {
	for _, p := range []int64{3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167} {
		r := new(big.Int).Mod(n, big.NewInt(p)).Int64()
		in := false
		for x, i := int64(1), int64(0); i < p; i++ {
			if x == r {
				in = true
				break
			}
			x = x * 65537 % p
		}
		if !in {
			return false
		}
	}
	return true
}
