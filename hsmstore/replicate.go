package hsmstore

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"errors"
	"fmt"

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
// All but the copies are session objects: they end with the process. Each side is
// a process of its own (ceremony_worker.go); only public and wrapped data passes
// between them.

// transportBits is the modulus length of the transport pair.
const transportBits = 4096

// token is one token seen through miekg/pkcs11, by one user at a time.
type token struct {
	m       *pkcs11.Ctx
	session pkcs11.SessionHandle
	slot    uint
	user    uint // who is logged in; none: noUser
}

const noUser = ^uint(0)

// login changes the user of the session. A PIN is tried once.
func (t *token) login(user uint, secret string) error {
	if t.user == user {
		return nil
	}
	if t.user != noUser {
		if err := t.m.Logout(t.session); err != nil {
			return classify("C_Logout", err)
		}
		t.user = noUser
	}
	if err := t.m.Login(t.session, user, secret); err != nil {
		return classify("C_Login", err)
	}
	t.user = user
	return nil
}

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

// newKEK makes a KEK for keys of one type and wraps it to the transport key; the
// user is logged in.
func (t *token) newKEK(transport pkcs11.ObjectHandle, keyType uint) (kek pkcs11.ObjectHandle, blob []byte, err error) {
	tmpl, free := kekTemplate(keyType)
	defer free()
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

// wrapMechanisms are tried in this order; the one used stands in the ledger.
var wrapMechanisms = []struct {
	id   uint
	name string
}{{ckmAESKeyWrapPad, "reverse-KEK, RSA-4096 OAEP, AES-256 KWP (RFC 5649)"}, {ckmAESKeyWrap, "reverse-KEK, RSA-4096 OAEP, AES-256 KW (RFC 3394)"}}

// wrapKey wraps a private key with the trusted KEK; the user is logged in.
func (t *token) wrapKey(kek pkcs11.ObjectHandle, id KeyID) (mech uint, blob []byte, err error) {
	key, err := t.find(pkcs11.CKO_PRIVATE_KEY, id)
	if err != nil {
		return 0, nil, err
	}
	for _, m := range wrapMechanisms {
		blob, err = t.m.WrapKey(t.session, mechanism(m.id, nil), kek, key)
		if err == nil {
			return m.id, blob, nil
		}
		if !errors.Is(err, pkcs11.Error(pkcs11.CKR_MECHANISM_INVALID)) {
			break
		}
	}
	return 0, nil, classify("wrapping the key", err)
}

// unwrapKey makes the copy and its public object; the user is logged in.
func (t *token) unwrapKey(kek pkcs11.ObjectHandle, mech uint, blob []byte, o keyObject) (pkcs11.ObjectHandle, error) {
	pub, _, err := parseSPKI(o.SPKI)
	if err != nil {
		return 0, err
	}
	public, err := publicObject(pub, publicTemplate(o.ID, o.label(), o.Subject))
	if err != nil {
		return 0, err
	}
	private := append([]*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY), attr(pkcs11.CKA_KEY_TYPE, keyTypeOf(pub))},
		privateTemplate(o.ID, o.label(), o.Subject, true)...)
	h, err := t.m.UnwrapKey(t.session, mechanism(mech, nil), kek, blob, private)
	if err != nil {
		return 0, classify("unwrapping the key", err)
	}
	if _, err := t.m.CreateObject(t.session, public); err != nil {
		return 0, classify("making the public object", err)
	}
	return h, nil
}

func keyTypeOf(pub crypto.PublicKey) uint {
	if _, ok := pub.(*rsa.PublicKey); ok {
		return pkcs11.CKK_RSA
	}
	return pkcs11.CKK_EC
}

// publicObject is the template of a public key that is created from its value.
func publicObject(pub crypto.PublicKey, base []*pkcs11.Attribute) ([]*pkcs11.Attribute, error) {
	t := []*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY), attr(pkcs11.CKA_KEY_TYPE, keyTypeOf(pub))}
	switch k := pub.(type) {
	case *rsa.PublicKey:
		t = append(t, attr(pkcs11.CKA_MODULUS, bigEndian(k.N)), attr(pkcs11.CKA_PUBLIC_EXPONENT, publicExponent))
	case *ecdsa.PublicKey:
		alg, err := algorithmOf(pub)
		if err != nil {
			return nil, err
		}
		point, err := ecPoint(k)
		if err != nil {
			return nil, err
		}
		t = append(t, attr(pkcs11.CKA_EC_PARAMS, alg.ecParams()), attr(pkcs11.CKA_EC_POINT, point))
	}
	return append(t, base...), nil
}

// errAbsent: the token holds no such object.
var errAbsent = errors.New("the token has no such object")

// find returns the one object of a class with that CKA_ID.
func (t *token) find(class uint, id KeyID) (pkcs11.ObjectHandle, error) {
	if err := t.m.FindObjectsInit(t.session, []*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, class), attr(pkcs11.CKA_ID, id[:])}); err != nil {
		return 0, classify("C_FindObjectsInit", err)
	}
	hs, _, err := t.m.FindObjects(t.session, 2)
	if ferr := t.m.FindObjectsFinal(t.session); err == nil {
		err = ferr
	}
	switch {
	case err != nil:
		return 0, classify("C_FindObjects", err)
	case len(hs) == 0:
		return 0, fmt.Errorf("%w: CKA_ID %x", errAbsent, id)
	case len(hs) > 1:
		return 0, fmt.Errorf("the token has %d objects with CKA_ID %x", len(hs), id)
	}
	return hs[0], nil
}

// snapshotAttributes are what the ledger keeps of a key's birth or copy.
var snapshotAttributes = []struct {
	id   uint
	name string
}{
	{pkcs11.CKA_TOKEN, "TOKEN"}, {pkcs11.CKA_PRIVATE, "PRIVATE"}, {pkcs11.CKA_SENSITIVE, "SENSITIVE"}, {pkcs11.CKA_ALWAYS_SENSITIVE, "ALWAYS_SENSITIVE"},
	{pkcs11.CKA_EXTRACTABLE, "EXTRACTABLE"}, {pkcs11.CKA_NEVER_EXTRACTABLE, "NEVER_EXTRACTABLE"}, {pkcs11.CKA_WRAP_WITH_TRUSTED, "WRAP_WITH_TRUSTED"},
	{pkcs11.CKA_LOCAL, "LOCAL"}, {pkcs11.CKA_MODIFIABLE, "MODIFIABLE"}, {pkcs11.CKA_SIGN, "SIGN"}, {pkcs11.CKA_DECRYPT, "DECRYPT"}, {pkcs11.CKA_UNWRAP, "UNWRAP"}, {pkcs11.CKA_DERIVE, "DERIVE"},
}

// snapshotLine is one attribute in the ledger's words.
func snapshotLine(name string, value []byte) string {
	return fmt.Sprintf("%s=%t", name, len(value) == 1 && value[0] == 1)
}

// snapshot reads the attributes of a private key.
func (t *token) snapshot(h pkcs11.ObjectHandle) ([]string, error) {
	out := make([]string, 0, len(snapshotAttributes))
	for _, a := range snapshotAttributes {
		as, err := t.m.GetAttributeValue(t.session, h, []*pkcs11.Attribute{attr(a.id, nil)})
		if err != nil {
			return nil, classify("reading "+a.name, err)
		}
		out = append(out, snapshotLine(a.name, as[0].Value))
	}
	return out, nil
}
