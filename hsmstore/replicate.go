package hsmstore

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"fmt"
	"slices"

	"github.com/miekg/pkcs11"
)

// Replication by wrapping, "reverse KEK". The key-encryption key (KEK) is born at
// the target under an UNWRAP_TEMPLATE, so that not even the target's own PIN can
// unwrap a copy with weaker attributes. (Where the source makes the KEK, the
// target's PIN holder unwraps the KEK without a template and reads the copy.)
//
//	source SO    makes an RSA transport pair, session objects          newTransport
//	target SO    imports its public half as TRUSTED                    newKEK
//	target user  makes the KEK and wraps it to the transport key       newKEK
//	source SO    unwraps the KEK as TRUSTED, WRAP only; session object takeKEK
//	source user  wraps the keys with the KEK                           wrapKey
//	target user  unwraps them under the template                       unwrapKey
//
// Where both modules have RSA_AES_KEY_WRAP one hop does: the target's user makes a
// transport pair whose UNWRAP_TEMPLATE covers the copies, the source's SO imports its
// public half as TRUSTED, the source's user wraps the keys straight to it.
//
// All but the copies are session objects: they end with the process. Each side is
// a process of its own (ceremony_worker.go); only public and wrapped data passes
// between them.

// transportBits is the modulus length of the transport pair.
const transportBits = 4096

// hopBits is that of the one hop's pair, made while everybody waits.
const hopBits = 3072

func mechanism(m uint, params any) []*pkcs11.Mechanism {
	return []*pkcs11.Mechanism{pkcs11.NewMechanism(m, params)}
}

// oaep is RSA-OAEP with SHA-1, the only hash that SoftHSM knows for it. OAEP does
// not rest on the collision resistance of its hash (RFC 8017 §B.1).
func oaep() []*pkcs11.Mechanism {
	return mechanism(pkcs11.CKM_RSA_PKCS_OAEP, pkcs11.NewOAEPParams(pkcs11.CKM_SHA_1, pkcs11.CKG_MGF1_SHA1, pkcs11.CKZ_DATA_SPECIFIED, nil))
}

// newTransport makes the transport pair; the SO is logged in.
func (t *token) newTransport(bits int) (private pkcs11.ObjectHandle, modulus []byte, err error) {
	pub, priv, free := transportPair(bits)
	defer free()
	pubHandle, private, err := t.m.GenerateKeyPair(t.session, mechanism(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, nil), pub, priv)
	if err != nil {
		return 0, nil, classify("making the transport pair", err)
	}
	as, err := t.m.GetAttributeValue(t.session, pubHandle, []*pkcs11.Attribute{attr(pkcs11.CKA_MODULUS, nil)})
	if err != nil {
		return 0, nil, classify("reading the transport key", err)
	}
	return private, as[0].Value, nil
}

// newHop makes the target's transport pair for the one hop; the user is logged in.
func (t *token) newHop(class uint) (private pkcs11.ObjectHandle, modulus []byte, err error) {
	pub, priv, free := hopPair(hopBits, class)
	defer free()
	pubHandle, private, err := t.m.GenerateKeyPair(t.session, mechanism(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, nil), pub, priv)
	if err != nil {
		return 0, nil, classify("making the transport pair", err)
	}
	as, err := t.m.GetAttributeValue(t.session, pubHandle, []*pkcs11.Attribute{attr(pkcs11.CKA_MODULUS, nil)})
	if err != nil {
		return 0, nil, classify("reading the transport key", err)
	}
	return private, as[0].Value, nil
}

// importTransport makes the transport key TRUSTED here; the SO is logged in.
func (t *token) importTransport(modulus []byte) (pkcs11.ObjectHandle, error) {
	if len(modulus)*8 < 3072 {
		return 0, fmt.Errorf("transport key of %d bits; at least 3,072 expected", len(modulus)*8)
	}
	h, err := t.m.CreateObject(t.session, transportImport(modulus))
	if err != nil {
		return 0, classify("importing the transport key as trusted", err)
	}
	return h, nil
}

// importUntrusted takes the transport key into a module that has no trusted keys.
func (t *token) importUntrusted(modulus []byte) (pkcs11.ObjectHandle, error) {
	h, err := t.m.CreateObject(t.session, []*pkcs11.Attribute{
		attr(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY), attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA), attr(pkcs11.CKA_TOKEN, false),
		attr(pkcs11.CKA_WRAP, true), attr(pkcs11.CKA_MODULUS, modulus), attr(pkcs11.CKA_PUBLIC_EXPONENT, publicExponent)})
	if err != nil {
		return 0, classify("importing the transport key", err)
	}
	return h, nil
}

// newKEK makes a KEK for keys of one type and wraps it to the transport key; the
// user is logged in.
func (t *token) newKEK(transport pkcs11.ObjectHandle, keyType uint, weak bool) (kek pkcs11.ObjectHandle, blob []byte, err error) {
	tmpl, free := kekTemplate(keyType)
	defer free()
	if weak {
		tmpl = weakKEKTemplate()
	}
	kek, err = t.m.GenerateKey(t.session, mechanism(pkcs11.CKM_AES_KEY_GEN, nil), tmpl)
	if err != nil {
		return 0, nil, classify("making the KEK", err)
	}
	blob, err = t.m.WrapKey(t.session, oaep(), transport, kek)
	if err != nil {
		return 0, nil, classify("wrapping the KEK", err)
	}
	return kek, blob, nil
}

// takeKEK unwraps a KEK at the source as a trusted key; the SO is logged in.
func (t *token) takeKEK(transport pkcs11.ObjectHandle, blob []byte) (pkcs11.ObjectHandle, error) {
	h, err := t.m.UnwrapKey(t.session, oaep(), transport, blob, kekImport())
	if err != nil {
		return 0, classify("unwrapping the KEK", err)
	}
	return h, nil
}

// way is one way by which a wrapped key gets from one module into another. Numbers
// alone do not tell: 0x210A is RFC 5649 in SoftHSM and something else in NSS, whose
// RFC 5649 is 0x210B. Which way works between two members is found out by a key that
// is thrown away ([selfTest]).
type way struct {
	wrap, unwrap uint
	hop          *oaepHash // not nil: RSA_AES_KEY_WRAP straight to the target's transport key, without a KEK
	name         string    // stands in the ledger
}

var ways = []way{
	{ckmAESKeyWrapPad, ckmAESKeyWrapPad, nil, "reverse-KEK, RSA-4096 OAEP, AES-256 KWP (RFC 5649)"},
	{ckmAESKeyWrapKWP, ckmAESKeyWrapKWP, nil, "reverse-KEK, RSA-4096 OAEP, AES-256 KWP (RFC 5649, 0x210B)"},
	{ckmAESKeyWrapPad, ckmAESKeyWrapKWP, nil, "reverse-KEK, RSA-4096 OAEP, AES-256 KWP (RFC 5649, 0x210A to 0x210B)"},
	{ckmAESKeyWrapKWP, ckmAESKeyWrapPad, nil, "reverse-KEK, RSA-4096 OAEP, AES-256 KWP (RFC 5649, 0x210B to 0x210A)"},
	{ckmAESKeyWrap, ckmAESKeyWrap, nil, "reverse-KEK, RSA-4096 OAEP, AES-256 KW (RFC 3394)"},
	{ckmRSAAESKeyWrap, ckmRSAAESKeyWrap, &oaepHashes[0], "one hop, RSA_AES_KEY_WRAP, RSA-3072 OAEP SHA-256, AES-256 KWP"},
	{ckmRSAAESKeyWrap, ckmRSAAESKeyWrap, &oaepHashes[1], "one hop, RSA_AES_KEY_WRAP, RSA-3072 OAEP SHA-1, AES-256 KWP"},
}

// preferred are the ways, the best first: with one hop there is no KEK that anyone
// could take, and the target's unwrap template covers the key itself. Their numbers
// are kept in backups, so that new ways are added at the end.
var preferred = []int{5, 6, 0, 1, 2, 3, 4}

// mechanisms are those of both sides, with their parameters.
func (w way) wrapMechanism() (mech []*pkcs11.Mechanism, free func()) {
	if w.hop != nil {
		return rsaAESMechanism(*w.hop)
	}
	return mechanism(w.wrap, nil), func() {}
}

func (w way) unwrapMechanism() (mech []*pkcs11.Mechanism, free func()) {
	if w.hop != nil {
		return rsaAESMechanism(*w.hop)
	}
	return mechanism(w.unwrap, nil), func() {}
}

// waysBetween are those that both modules claim to have.
func waysBetween(source, target []uint) (out []int) {
	for _, i := range preferred {
		w := ways[i]
		if slices.Contains(source, w.wrap) && slices.Contains(target, w.unwrap) {
			out = append(out, i)
		}
	}
	return out
}

// wrapKey wraps a private key with a trusted key, the KEK or with one hop the target's
// transport key; the user is logged in.
func (t *token) wrapKey(by, key pkcs11.ObjectHandle, w way) ([]byte, error) {
	mech, free := w.wrapMechanism()
	defer free()
	blob, err := t.m.WrapKey(t.session, mech, by, key)
	if err != nil {
		return nil, classify("wrapping the key", err)
	}
	return blob, nil
}

// makePublic makes the public object beside a copy.
func (t *token) makePublic(pub crypto.PublicKey, alg *algorithm, o keyObject, template []*pkcs11.Attribute) error {
	if alg.scheme == macScheme {
		return nil
	}
	public, err := publicObject(pub, alg, template)
	if err != nil {
		return err
	}
	if _, err := t.m.CreateObject(t.session, public); err != nil {
		return classify("making the public object", err)
	}
	return nil
}

func keyTypeOf(pub crypto.PublicKey) uint {
	switch pub.(type) {
	case *rsa.PublicKey:
		return pkcs11.CKK_RSA
	case ed25519.PublicKey:
		return ckkEdwards
	case checkValue:
		return pkcs11.CKK_AES
	}
	return pkcs11.CKK_EC
}

// publicObject is the template of a public key that is created from its value.
func publicObject(pub crypto.PublicKey, alg *algorithm, base []*pkcs11.Attribute) ([]*pkcs11.Attribute, error) {
	t := []*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY), attr(pkcs11.CKA_KEY_TYPE, keyTypeOf(pub))}
	switch k := pub.(type) {
	case *rsa.PublicKey:
		t = append(t, attr(pkcs11.CKA_MODULUS, bigEndian(k.N)), attr(pkcs11.CKA_PUBLIC_EXPONENT, publicExponent))
	default:
		point, err := ecPoint(k)
		if err != nil {
			return nil, err
		}
		t = append(t, attr(pkcs11.CKA_EC_PARAMS, alg.ecParams()), attr(pkcs11.CKA_EC_POINT, point))
	}
	return append(t, base...), nil
}
