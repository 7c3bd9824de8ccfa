package hsmstore

import (
	"crypto"
	"crypto/ecdsa"
	"encoding/binary"
	"runtime"
	"unsafe"

	"github.com/miekg/pkcs11"
)

// The templates of all objects that are ever made, in one place: they are what
// keeps private keys inside the HSMs. The negative tests hold each line of them.
// In templates for C_UnwrapKey MODIFIABLE must be the last attribute, or SoftHSM
// 2.6 answers CKR_ATTRIBUTE_READ_ONLY.

func attr(t uint, v any) *pkcs11.Attribute { return pkcs11.NewAttribute(t, v) }

// Mechanisms that miekg/pkcs11 does not name (PKCS#11 §2.14).
const (
	ckmAESKeyWrap    = 0x2109 // RFC 3394
	ckmAESKeyWrapPad = 0x210A // in SoftHSM: RFC 5649, for any length
	ckmAESKeyWrapKWP = 0x210B // RFC 5649 (PKCS#11 v3.0)
)

// privateTemplate is that of a private key of the cluster. A replicable key may
// leave, but only wrapped by a key that an SO has marked trusted.
func privateTemplate(id KeyID, label string, subject []byte, replicable bool) []*pkcs11.Attribute {
	t := []*pkcs11.Attribute{
		attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_PRIVATE, true), attr(pkcs11.CKA_SENSITIVE, true),
		attr(pkcs11.CKA_EXTRACTABLE, replicable), attr(pkcs11.CKA_WRAP_WITH_TRUSTED, true),
		attr(pkcs11.CKA_SIGN, true), attr(pkcs11.CKA_DECRYPT, false), attr(pkcs11.CKA_UNWRAP, false), attr(pkcs11.CKA_DERIVE, false), attr(pkcs11.CKA_SIGN_RECOVER, false),
		attr(pkcs11.CKA_ID, id[:]), attr(pkcs11.CKA_LABEL, label),
	}
	if len(subject) > 0 {
		t = append(t, attr(pkcs11.CKA_SUBJECT, subject))
	}
	return append(t, attr(pkcs11.CKA_MODIFIABLE, false))
}

// publicTemplate is that of the public key beside it.
func publicTemplate(id KeyID, label string, subject []byte) []*pkcs11.Attribute {
	t := []*pkcs11.Attribute{
		attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_PRIVATE, false),
		attr(pkcs11.CKA_VERIFY, true), attr(pkcs11.CKA_ENCRYPT, false), attr(pkcs11.CKA_WRAP, false),
		attr(pkcs11.CKA_ID, id[:]), attr(pkcs11.CKA_LABEL, label),
	}
	if len(subject) > 0 {
		t = append(t, attr(pkcs11.CKA_SUBJECT, subject))
	}
	return append(t, attr(pkcs11.CKA_MODIFIABLE, false))
}

// transportPair is the source's RSA pair, session objects of its SO. Whatever the
// private half unwraps is a WRAP-only key that cannot leave.
func transportPair(bits int) (public, private []*pkcs11.Attribute, free func()) {
	inner, free := nested(pkcs11.CKA_UNWRAP_TEMPLATE, attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, false), attr(pkcs11.CKA_DECRYPT, false),
		attr(pkcs11.CKA_ENCRYPT, false), attr(pkcs11.CKA_UNWRAP, false), attr(pkcs11.CKA_TOKEN, false))
	public = []*pkcs11.Attribute{
		attr(pkcs11.CKA_TOKEN, false), attr(pkcs11.CKA_PRIVATE, false), attr(pkcs11.CKA_MODULUS_BITS, bits), attr(pkcs11.CKA_PUBLIC_EXPONENT, publicExponent),
		attr(pkcs11.CKA_WRAP, true), attr(pkcs11.CKA_ENCRYPT, false), attr(pkcs11.CKA_VERIFY, false),
	}
	private = []*pkcs11.Attribute{
		attr(pkcs11.CKA_TOKEN, false), attr(pkcs11.CKA_PRIVATE, false), attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, false),
		attr(pkcs11.CKA_UNWRAP, true), attr(pkcs11.CKA_DECRYPT, false), attr(pkcs11.CKA_SIGN, false), inner, attr(pkcs11.CKA_MODIFIABLE, false),
	}
	return public, private, free
}

// hopPair is the target's pair for copies by one hop, session objects of its user: what
// the private half unwraps is a key like the first one, or nothing.
func hopPair(bits int, class uint) (public, private []*pkcs11.Attribute, free func()) {
	into := []*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, class), attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_PRIVATE, true), attr(pkcs11.CKA_WRAP_WITH_TRUSTED, true),
		attr(pkcs11.CKA_DECRYPT, false), attr(pkcs11.CKA_UNWRAP, false), attr(pkcs11.CKA_DERIVE, false)}
	if class == pkcs11.CKO_SECRET_KEY {
		into = unwrapsInto(pkcs11.CKK_AES)
	}
	inner, free := nested(pkcs11.CKA_UNWRAP_TEMPLATE, into...)
	public = []*pkcs11.Attribute{
		attr(pkcs11.CKA_TOKEN, false), attr(pkcs11.CKA_PRIVATE, false), attr(pkcs11.CKA_MODULUS_BITS, bits), attr(pkcs11.CKA_PUBLIC_EXPONENT, publicExponent),
		attr(pkcs11.CKA_WRAP, true), attr(pkcs11.CKA_ENCRYPT, false), attr(pkcs11.CKA_VERIFY, false),
	}
	private = []*pkcs11.Attribute{
		attr(pkcs11.CKA_TOKEN, false), attr(pkcs11.CKA_PRIVATE, true), attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, false),
		attr(pkcs11.CKA_UNWRAP, true), attr(pkcs11.CKA_DECRYPT, false), attr(pkcs11.CKA_SIGN, false), attr(pkcs11.CKA_DERIVE, false), inner, attr(pkcs11.CKA_MODIFIABLE, false),
	}
	return public, private, free
}

// transportImport is the transport key's public half at the target, made TRUSTED
// by its SO.
func transportImport(modulus []byte) []*pkcs11.Attribute {
	return []*pkcs11.Attribute{
		attr(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY), attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA), attr(pkcs11.CKA_TOKEN, false), attr(pkcs11.CKA_PRIVATE, false),
		attr(pkcs11.CKA_WRAP, true), attr(pkcs11.CKA_ENCRYPT, false), attr(pkcs11.CKA_VERIFY, false), attr(pkcs11.CKA_TRUSTED, true),
		attr(pkcs11.CKA_MODULUS, modulus), attr(pkcs11.CKA_PUBLIC_EXPONENT, publicExponent), attr(pkcs11.CKA_MODIFIABLE, false),
	}
}

// kekTemplate is the key-encryption key that the target makes: it only unwraps,
// only into keys of the template inside, and leaves only to a trusted key.
func kekTemplate(keyType uint) (t []*pkcs11.Attribute, free func()) {
	inner, free := nested(pkcs11.CKA_UNWRAP_TEMPLATE, unwrapsInto(keyType)...)
	return []*pkcs11.Attribute{
		attr(pkcs11.CKA_TOKEN, false), attr(pkcs11.CKA_PRIVATE, true), attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, true), attr(pkcs11.CKA_WRAP_WITH_TRUSTED, true),
		attr(pkcs11.CKA_VALUE_LEN, 32), attr(pkcs11.CKA_UNWRAP, true), attr(pkcs11.CKA_WRAP, false), attr(pkcs11.CKA_ENCRYPT, false), attr(pkcs11.CKA_DECRYPT, false),
		inner, attr(pkcs11.CKA_MODIFIABLE, false),
	}, free
}

// classOf is the class of keys of a type.
func classOf(keyType uint) uint {
	if keyType == pkcs11.CKK_AES {
		return pkcs11.CKO_SECRET_KEY
	}
	return pkcs11.CKO_PRIVATE_KEY
}

// unwrapsInto is what every copy of a key of that type must be.
func unwrapsInto(keyType uint) []*pkcs11.Attribute {
	class := classOf(keyType)
	t := []*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, class), attr(pkcs11.CKA_KEY_TYPE, keyType),
		attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_PRIVATE, true), attr(pkcs11.CKA_WRAP_WITH_TRUSTED, true),
		attr(pkcs11.CKA_DECRYPT, false), attr(pkcs11.CKA_UNWRAP, false), attr(pkcs11.CKA_DERIVE, false)}
	if class == pkcs11.CKO_SECRET_KEY { // private keys have neither
		t = append(t, attr(pkcs11.CKA_ENCRYPT, false), attr(pkcs11.CKA_WRAP, false))
	}
	return t
}

// weakKEKTemplate is that of a module that knows no unwrap templates.
func weakKEKTemplate() []*pkcs11.Attribute {
	return []*pkcs11.Attribute{
		attr(pkcs11.CKA_TOKEN, false), attr(pkcs11.CKA_PRIVATE, true), attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, true),
		attr(pkcs11.CKA_VALUE_LEN, 32), attr(pkcs11.CKA_UNWRAP, true), attr(pkcs11.CKA_WRAP, false), attr(pkcs11.CKA_ENCRYPT, false), attr(pkcs11.CKA_DECRYPT, false),
	}
}

// ckaNSSDB is how NSS is told the public point of an EC key that it unwraps.
const ckaNSSDB = 0xD5A0DB00

// weakCopyTemplate is that of a copy in such a module. It asks that the copy never
// leaves; NSS does not see to that: who has its PIN gets keys out. NSS takes no CKA_SUBJECT beside a CKA_LABEL; what the key is bound
// to is kept by the worker there.
func weakCopyTemplate(id KeyID, label string, pub crypto.PublicKey) []*pkcs11.Attribute {
	t := []*pkcs11.Attribute{
		attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_PRIVATE, true), attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, false), attr(pkcs11.CKA_SIGN, true), attr(pkcs11.CKA_DERIVE, false),
		attr(pkcs11.CKA_ID, id[:]), attr(pkcs11.CKA_LABEL, label),
	}
	if k, ok := pub.(*ecdsa.PublicKey); ok {
		if point, err := k.Bytes(); err == nil {
			t = append(t, attr(ckaNSSDB, point))
		}
	}
	return t
}

func weakPublicTemplate(id KeyID, label string) []*pkcs11.Attribute {
	return []*pkcs11.Attribute{attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_PRIVATE, false), attr(pkcs11.CKA_VERIFY, true), attr(pkcs11.CKA_ID, id[:]), attr(pkcs11.CKA_LABEL, label)}
}

// kekImport is the same key at the source, unwrapped by its SO: TRUSTED, and it
// only wraps.
func kekImport() []*pkcs11.Attribute {
	return []*pkcs11.Attribute{
		attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES), attr(pkcs11.CKA_TOKEN, false), attr(pkcs11.CKA_PRIVATE, false),
		attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, false), attr(pkcs11.CKA_WRAP, true), attr(pkcs11.CKA_UNWRAP, false),
		attr(pkcs11.CKA_DECRYPT, false), attr(pkcs11.CKA_ENCRYPT, false), attr(pkcs11.CKA_TRUSTED, true), attr(pkcs11.CKA_MODIFIABLE, false),
	}
}

// nested builds an attribute whose value is an array of CK_ATTRIBUTE, for which
// miekg/pkcs11 has no type: {CK_ULONG type; void *value; CK_ULONG length} each, on
// LP64. The values stay where they are until free is called.
func nested(t uint, inner ...*pkcs11.Attribute) (a *pkcs11.Attribute, free func()) {
	var pins runtime.Pinner
	var b []byte
	for _, in := range inner {
		p := unsafe.Pointer(unsafe.SliceData(in.Value))
		pins.Pin(p)
		b = binary.NativeEndian.AppendUint64(b, uint64(in.Type))
		b = binary.NativeEndian.AppendUint64(b, uint64(uintptr(p)))
		b = binary.NativeEndian.AppendUint64(b, uint64(len(in.Value)))
	}
	return attr(t, b), pins.Unpin
}
