package hsmstore

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"runtime"
	"slices"
	"time"
	"unsafe"

	"chancery/admin"

	"github.com/miekg/pkcs11"
)

// An import, seen from the ceremony worker: it makes a one-time RSA pair, whose private
// half only unwraps, and takes one blob. Between blob and key nothing is ever in clear
// outside of the token.

// ckmRSAAESKeyWrap is CKM_RSA_AES_KEY_WRAP (PKCS#11 v2.40 §2.1.21).
const ckmRSAAESKeyWrap = 0x1054

// importPair tells the caller what to wrap to, and how.
type importPair struct {
	SPKI       []byte   `json:"spki"`
	Hash       string   `json:"hash"` // of OAEP and MGF1
	Mechanisms []string `json:"mechanisms"`
}

func (p importPair) hashOctets() int {
	if p.Hash == "SHA-1" {
		return 20
	}
	return 32
}

// importKey is the blob and what it shall become.
type importKey struct {
	Mandate   mandate   `json:"mandate"` // the process began without one
	Act       string    `json:"act"`
	Key       keyObject `json:"key"`
	Mechanism string    `json:"mechanism"`
	Blob      []byte    `json:"blob"`
}

// imported is what came of it. Failed is all that is told of a bad blob.
type imported struct {
	Failed bool    `json:"failed"`
	How    string  `json:"how"` // "natively", "in two steps", "at once"
	Born   bornKey `json:"born"`
}

// importState is what an import has in the process.
type importState struct {
	private pkcs11.ObjectHandle // of the wrapping pair
	modulus int                 // octets
	oaep    oaepHash
	native  bool // the module has RSA_AES_KEY_WRAP
	kwp     uint // its RFC 5649 mechanism, or 0
	tried   bool // a blob came
	made    []pkcs11.ObjectHandle
}

// oaepHash is a hash for RSA-OAEP (PKCS#11 §2.1.8).
type oaepHash struct {
	name      string
	mech, mgf uint
}

var oaepHashes = []oaepHash{{"SHA-256", pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256}, {"SHA-1", pkcs11.CKM_SHA_1, pkcs11.CKG_MGF1_SHA1}}

func (h oaepHash) mechanism() []*pkcs11.Mechanism {
	return mechanism(pkcs11.CKM_RSA_PKCS_OAEP, pkcs11.NewOAEPParams(h.mech, h.mgf, pkcs11.CKZ_DATA_SPECIFIED, nil))
}

// newImportPair makes the wrapping pair and finds out what the module can unwrap.
func (c *ceremony) newImportPair(struct{}) (importPair, error) {
	t, err := c.as(pkcs11.CKU_USER)
	if err != nil {
		return importPair{}, err
	}
	list, err := t.m.GetMechanismList(t.slot)
	if err != nil {
		return importPair{}, classify("C_GetMechanismList", err)
	}
	has := func(id uint) bool {
		return slices.ContainsFunc(list, func(m *pkcs11.Mechanism) bool { return m.Mechanism == id })
	}
	im := &importState{native: has(ckmRSAAESKeyWrap)}
	for _, id := range []uint{ckmAESKeyWrapKWP, ckmAESKeyWrapPad} { // 0x210A is RFC 5649 only where 0x210B is missing
		if has(id) && im.kwp == 0 {
			im.kwp = id
		}
	}
	public, private := importTemplates(importBits)
	pubHandle, privHandle, err := t.m.GenerateKeyPair(t.session, mechanism(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, nil), public, private)
	if err != nil {
		return importPair{}, classify("making the wrapping pair", err)
	}
	im.private = privHandle
	pub, err := t.publicKey(pubHandle)
	if err != nil {
		return importPair{}, classify("reading the wrapping key", err)
	}
	key, ok := pub.(*rsa.PublicKey)
	if !ok {
		return importPair{}, faultf(exitDevice, "the module made a %T for an RSA key", pub)
	}
	im.modulus = key.Size()
	out := importPair{}
	if out.SPKI, err = x509.MarshalPKIXPublicKey(pub); err != nil {
		return importPair{}, err
	}
	if im.oaep, err = t.oaepHash(pubHandle, privHandle); err != nil {
		return importPair{}, err
	}
	out.Hash = im.oaep.name
	if im.native || im.kwp != 0 {
		out.Mechanisms = append(out.Mechanisms, ImportRSAAES)
	}
	out.Mechanisms = append(out.Mechanisms, ImportRSAOAEP)
	c.importing = im
	return out, nil
}

// oaepHash finds the hash with which the module really does RSA-OAEP, by a key that
// is thrown away: the list of mechanisms does not tell.
func (t *token) oaepHash(public, private pkcs11.ObjectHandle) (oaepHash, error) {
	key, err := t.m.GenerateKey(t.session, mechanism(pkcs11.CKM_AES_KEY_GEN, nil), []*pkcs11.Attribute{
		attr(pkcs11.CKA_TOKEN, false), attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, true), attr(pkcs11.CKA_VALUE_LEN, 32)})
	if err != nil {
		return oaepHash{}, classify("making a key for a test", err)
	}
	defer t.m.DestroyObject(t.session, key)
	for _, h := range oaepHashes {
		blob, werr := t.m.WrapKey(t.session, h.mechanism(), public, key)
		if err = werr; err != nil {
			continue
		}
		back, uerr := t.m.UnwrapKey(t.session, h.mechanism(), private, blob, importAES())
		if err = uerr; err != nil {
			continue
		}
		return h, t.m.DestroyObject(t.session, back)
	}
	return oaepHash{}, faultf(exitModule, "%w: it does no RSA-OAEP with SHA-256 or SHA-1: %v", ErrModule, err)
}

// importKey takes the blob.
func (c *ceremony) importKey(q importKey) (imported, error) {
	if q.Act != admin.ImportKeyAct(q.Key.Name, q.Key.Purpose.String(), q.Key.Algorithm, q.Key.Subject, sha256.Sum256(q.Key.SPKI)) {
		return imported{}, faultf(exitProtocol, "act %q is not about key %s", q.Act, q.Key.Name)
	}
	if err := q.Mandate.accept(time.Now()); err != nil {
		return imported{}, err
	}
	c.open.mandate = q.Mandate
	if err := c.allowed(q.Act); err != nil {
		return imported{}, err
	}
	if err := c.mayHold(q.Key.Purpose); err != nil {
		return imported{}, err
	}
	im := c.importing
	if im == nil || im.tried || len(q.Blob) < im.modulus {
		return imported{}, faultf(exitProtocol, "an import takes one blob, after its wrapping pair was made")
	}
	im.tried = true
	pub, alg, err := parseSPKI(q.Key.SPKI, q.Key.Algorithm)
	if err != nil {
		return imported{}, err
	}
	t, err := c.as(pkcs11.CKU_USER)
	if err != nil {
		return imported{}, err
	}
	template := append([]*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, alg.class()), attr(pkcs11.CKA_KEY_TYPE, keyTypeOf(pub))},
		keyTemplate(alg, q.Key.ID, q.Key.label(), q.Key.Subject, q.Key.Replicable)...)
	out := imported{}
	var h pkcs11.ObjectHandle
	err = boundToMechanism(template, alg, func(template []*pkcs11.Attribute) (err error) {
		h, out.How, err = im.unwrap(t, q, template)
		return err
	})
	if err != nil {
		return imported{Failed: true}, nil // whatever it was: one answer
	}
	im.made = append(im.made, h)
	out.Born = bornKey{ID: q.Key.ID, SPKI: q.Key.SPKI}
	if out.Born.Attributes, err = t.snapshot(h); err != nil {
		return imported{}, err
	}
	if got, err := t.publicOf(h, alg); err == nil { // RSA keys show it, others prove themselves later
		if k, ok := got.(interface{ Equal(crypto.PublicKey) bool }); !ok || !k.Equal(pub) {
			_, err := c.undoImport(struct{}{})
			return imported{Failed: true}, err
		}
	}
	if err = checkSnapshot(out.Born.Attributes, q.Key.Replicable); err == nil {
		err = t.makePublic(pub, alg, q.Key, publicTemplate(q.Key.ID, q.Key.label(), q.Key.Subject))
	}
	if err != nil {
		_, _ = c.undoImport(struct{}{})
		return imported{}, err
	}
	if p, err := t.find(pkcs11.CKO_PUBLIC_KEY, q.Key.ID); err == nil {
		im.made = append(im.made, p)
	}
	return out, nil
}

// unwrap takes the key out of the blob, inside the token.
func (im *importState) unwrap(t *token, q importKey, template []*pkcs11.Attribute) (h pkcs11.ObjectHandle, how string, err error) {
	if q.Mechanism == ImportRSAOAEP {
		h, err = t.m.UnwrapKey(t.session, im.oaep.mechanism(), im.private, q.Blob, template)
		return h, "at once", err
	}
	if im.native {
		mech, free := rsaAESMechanism(im.oaep)
		h, err = t.m.UnwrapKey(t.session, mech, im.private, q.Blob, template)
		free()
		if err == nil || im.kwp == 0 {
			return h, "natively", err
		}
	}
	aes, err := t.m.UnwrapKey(t.session, im.oaep.mechanism(), im.private, q.Blob[:im.modulus], importAES())
	if err != nil {
		return 0, "", err
	}
	h, err = t.m.UnwrapKey(t.session, mechanism(im.kwp, nil), aes, q.Blob[im.modulus:], template)
	if derr := t.m.DestroyObject(t.session, aes); err == nil {
		err = derr
	}
	return h, "in two steps", err
}

// undoImport destroys what the import has made.
func (c *ceremony) undoImport(struct{}) (struct{}, error) {
	var none struct{}
	if c.importing == nil {
		return none, nil
	}
	for _, h := range c.importing.made {
		if err := c.tok.m.DestroyObject(c.tok.session, h); err != nil {
			return none, classify("C_DestroyObject", err)
		}
	}
	c.importing.made = nil
	return none, nil
}

// rsaAESMechanism builds CK_RSA_AES_KEY_WRAP_PARAMS {CK_ULONG bits of the AES key;
// CK_RSA_PKCS_OAEP_PARAMS *}, for which miekg/pkcs11 has no type, on LP64. The inner
// structure stays where it is until free is called.
func rsaAESMechanism(h oaepHash) (mech []*pkcs11.Mechanism, free func()) {
	inner := make([]byte, 0, 5*ulong)
	for _, n := range []uint64{uint64(h.mech), uint64(h.mgf), pkcs11.CKZ_DATA_SPECIFIED, 0, 0} {
		inner = binary.NativeEndian.AppendUint64(inner, n)
	}
	var pins runtime.Pinner
	p := unsafe.Pointer(unsafe.SliceData(inner))
	pins.Pin(p)
	params := binary.NativeEndian.AppendUint64(nil, 256)
	params = binary.NativeEndian.AppendUint64(params, uint64(uintptr(p)))
	return mechanism(ckmRSAAESKeyWrap, params), pins.Unpin
}

// importTemplates are those of the wrapping pair: session objects of this process; the
// private half does nothing but unwrap. It has no unwrap template: whoever wrapped the blob
// had the key anyway, and nobody else reaches the session.
func importTemplates(bits int) (public, private []*pkcs11.Attribute) {
	public = []*pkcs11.Attribute{
		attr(pkcs11.CKA_TOKEN, false), attr(pkcs11.CKA_PRIVATE, false), attr(pkcs11.CKA_MODULUS_BITS, bits), attr(pkcs11.CKA_PUBLIC_EXPONENT, publicExponent),
		attr(pkcs11.CKA_WRAP, true), attr(pkcs11.CKA_ENCRYPT, false), attr(pkcs11.CKA_VERIFY, false),
	}
	private = []*pkcs11.Attribute{
		attr(pkcs11.CKA_TOKEN, false), attr(pkcs11.CKA_PRIVATE, true), attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, false),
		attr(pkcs11.CKA_UNWRAP, true), attr(pkcs11.CKA_DECRYPT, false), attr(pkcs11.CKA_SIGN, false), attr(pkcs11.CKA_DERIVE, false),
		attr(pkcs11.CKA_MODIFIABLE, false),
	}
	return public, private
}

// importAES is what the AES key of a blob becomes: a session object that only unwraps.
func importAES() []*pkcs11.Attribute {
	return []*pkcs11.Attribute{
		attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES), attr(pkcs11.CKA_TOKEN, false), attr(pkcs11.CKA_PRIVATE, true),
		attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, false), attr(pkcs11.CKA_UNWRAP, true), attr(pkcs11.CKA_WRAP, false),
		attr(pkcs11.CKA_DECRYPT, false), attr(pkcs11.CKA_ENCRYPT, false), attr(pkcs11.CKA_MODIFIABLE, false),
	}
}
