package hsmstore

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"chancery/admin"

	"github.com/ThalesGroup/crypto11"
	"github.com/miekg/pkcs11"
)

// Commands of a ceremony that end keys, or take them in from outside.
const (
	cerDestroy    byte = 40 // destroyKey -> nothing
	cerClear      byte = 41 // clearKey -> nothing: before a repair
	cerImportPair byte = 42 // nothing -> importPair
	cerImport     byte = 43 // importKey -> imported
	cerImportUndo byte = 44 // nothing -> nothing: what was imported goes again
)

// destroyKey names the key whose objects shall go.
type destroyKey struct {
	Name  string `json:"name"`
	Pin   pin    `json:"pin"`
	Label string `json:"label"` // of one of our own
}

// destroy destroys the private and the public objects of a key. It looks first
// whether what it found is that key: the label, and the public half where the token
// shows one. What is not there is gone already.
func (c *ceremony) destroy(q destroyKey) (struct{}, error) {
	var none struct{}
	if err := c.allowed(admin.DestroyKeyAct(q.Name, sha256.Sum256(q.Pin.SPKI))); err != nil {
		return none, err
	}
	t, err := c.as(pkcs11.CKU_USER)
	if err != nil {
		return none, err
	}
	return none, t.destroyKey(q)
}

func (t *token) destroyKey(q destroyKey) error {
	pub, _, err := parseSPKI(q.Pin.SPKI, q.Pin.Algorithm)
	if err != nil {
		return err
	}
	var doomed []pkcs11.ObjectHandle
	for _, class := range []uint{q.Pin.class(), pkcs11.CKO_PUBLIC_KEY} {
		template, what := q.Pin.template(class)
		hs, err := t.findEvery(template)
		if err != nil {
			return err
		}
		if class != pkcs11.CKO_PUBLIC_KEY && len(hs) > 1 {
			return fmt.Errorf("%d keys have %s; remove the others with the vendor's tool first; nothing was destroyed", len(hs), what)
		}
		for _, h := range hs {
			if err := t.isKey(h, q, pub); err != nil {
				return fmt.Errorf("object with %s: %w; nothing was destroyed", what, err)
			}
		}
		doomed = append(doomed, hs...)
	}
	for _, h := range doomed {
		if err := t.m.DestroyObject(t.session, h); err != nil {
			return classify("C_DestroyObject", err)
		}
	}
	return nil
}

// clearKey names the copy that is to be made anew.
type clearKey struct {
	Name   string `json:"name"`
	Member string `json:"member"`
	ID     KeyID  `json:"id"`
}

// clear destroys all that has a key's CKA_ID, whatever it is: that is how the copy is
// not what it shall be.
func (c *ceremony) clear(q clearKey) (struct{}, error) {
	var none struct{}
	if err := c.allowed(admin.RepairKeyAct(q.Name, q.Member)); err != nil {
		return none, err
	}
	t, err := c.as(pkcs11.CKU_USER)
	if err != nil {
		return none, err
	}
	hs, err := t.findEvery([]*pkcs11.Attribute{attr(pkcs11.CKA_ID, q.ID[:])})
	if err != nil {
		return none, err
	}
	for _, h := range hs { // the officers named a key; the CKA_ID is the server's word
		v, err := t.attributes(h, pkcs11.CKA_LABEL)
		if err != nil {
			return none, err
		}
		if _, name, ours := ourLabel(string(v[pkcs11.CKA_LABEL])); ours && name != q.Name {
			return none, fmt.Errorf("CKA_ID %x is key %s on the token, not %s; nothing was destroyed", q.ID, name, q.Name)
		}
	}
	for _, h := range hs {
		if err := t.m.DestroyObject(t.session, h); err != nil {
			return none, classify("C_DestroyObject", err)
		}
	}
	return none, nil
}

// isKey makes sure that an object belongs to a key.
func (t *token) isKey(h pkcs11.ObjectHandle, q destroyKey, want crypto.PublicKey) error {
	v, err := t.attributes(h, pkcs11.CKA_LABEL)
	if err != nil {
		return err
	}
	if label := string(v[pkcs11.CKA_LABEL]); q.Pin.Adopted == nil && label != q.Label {
		return fmt.Errorf("it is %q, not %q", label, q.Label)
	}
	alg, err := algorithmByName(q.Pin.Algorithm)
	if err != nil {
		return err
	}
	got, err := t.publicOf(h, alg)
	if err != nil {
		return nil // EC private keys do not show theirs
	}
	if k, ok := got.(interface{ Equal(crypto.PublicKey) bool }); !ok || !k.Equal(want) {
		return errors.New("its public half is another key's")
	}
	return nil
}

// bear makes one key. crypto11 can neither do Ed25519 and AES as we want them nor pass
// settings to C_Initialize.
func (c *ceremony) bear(o keyObject) (bornKey, error) {
	if o.Algorithm != algEd25519 && o.Algorithm != algAES && c.open.Reserved == "" {
		ctx, err := c.context()
		if err != nil {
			return bornKey{}, err
		}
		return c.bearWith(ctx, o)
	}
	t, err := c.as(pkcs11.CKU_USER)
	if err != nil {
		return bornKey{}, err
	}
	alg, err := algorithmByName(o.Algorithm)
	if err != nil {
		return bornKey{}, err
	}
	if alg.scheme == macScheme {
		return t.bearSecret(o, alg)
	}
	return t.bear(o, alg, c.open.Weak, c.patiently)
}

// bearWith makes a key pair by crypto11, which reads the public half at once: a node of
// a vendor's cluster that does not know it yet makes that fail, and the pair is looked
// for then.
func (c *ceremony) bearWith(ctx *crypto11.Context, o keyObject) (bornKey, error) {
	alg, err := algorithmByName(o.Algorithm)
	if err != nil {
		return bornKey{}, err
	}
	public := attributeSet(publicTemplate(o.ID, o.label(), o.Subject))
	var k crypto11.Signer
	err = boundToMechanism(privateTemplate(o.ID, o.label(), o.Subject, o.Replicable), alg, func(private []*pkcs11.Attribute) (err error) {
		if alg.curve != nil {
			k, err = ctx.GenerateECDSAKeyPairWithAttributes(public, attributeSet(private), alg.curve)
		} else {
			k, err = ctx.GenerateRSAKeyPairWithAttributes(public, attributeSet(private), alg.bits)
		}
		return err
	})
	if c.open.Native && (errors.Is(err, pkcs11.Error(pkcs11.CKR_OBJECT_HANDLE_INVALID)) || errors.Is(err, pkcs11.Error(pkcs11.CKR_KEY_HANDLE_INVALID))) {
		err = c.patiently(func() (err error) {
			if k, err = ctx.FindKeyPair(o.ID[:], nil); err != nil || k == nil {
				return pkcs11.Error(pkcs11.CKR_OBJECT_HANDLE_INVALID)
			}
			return nil
		})
	}
	if err != nil {
		return bornKey{}, classify("making the key pair", err)
	}
	born := bornKey{ID: o.ID}
	if born.SPKI, err = x509.MarshalPKIXPublicKey(k.Public()); err != nil {
		return bornKey{}, err
	}
	for _, a := range snapshotAttributes {
		var value []byte
		err := c.patiently(func() error {
			v, err := ctx.GetAttribute(k, a.id)
			if err == nil {
				value = v.Value
			}
			return err
		})
		if err != nil && !errors.Is(err, pkcs11.Error(pkcs11.CKR_ATTRIBUTE_TYPE_INVALID)) { // what a module does not know shows as false
			return bornKey{}, classify("reading "+a.name, err)
		}
		born.Attributes = append(born.Attributes, snapshotLine(a.name, value))
	}
	return born, checkSnapshot(born.Attributes, o.Replicable)
}

// patiently repeats a call into a vendor's cluster that says it is not the moment.
func (c *ceremony) patiently(call func() error) error {
	for end := time.Now().Add(nativePatience); ; time.Sleep(nativePause) {
		err := call()
		var rv pkcs11.Error
		if err == nil || !c.open.Native || !errors.As(err, &rv) || !throttled(rv) || time.Now().After(end) {
			return err
		}
	}
}

// boundToMechanism makes a private key with CKA_ALLOWED_MECHANISMS in its template,
// or without it where the module does not know the attribute.
func boundToMechanism(private []*pkcs11.Attribute, alg *algorithm, make func([]*pkcs11.Attribute) error) error {
	err := make(withMechanism(private, alg))
	for _, rv := range []pkcs11.Error{pkcs11.CKR_ATTRIBUTE_TYPE_INVALID, pkcs11.CKR_ATTRIBUTE_VALUE_INVALID, pkcs11.CKR_ATTRIBUTE_READ_ONLY, pkcs11.CKR_TEMPLATE_INCONSISTENT} {
		if errors.Is(err, rv) {
			return make(private)
		}
	}
	return err
}

// generation is the mechanism that makes keys of an algorithm, with the parameters of
// its public template: one of them is understood (PKCS#11 §2.1.3, §2.3.5, v3.0 §2.3.5).
func (a *algorithm) generation() (mech uint, params [][]*pkcs11.Attribute) {
	switch a.scheme {
	case ecdsaScheme:
		return pkcs11.CKM_EC_KEY_PAIR_GEN, [][]*pkcs11.Attribute{{attr(pkcs11.CKA_EC_PARAMS, a.ecParams())}}
	case eddsaScheme:
		return ckmEdwardsKeyPairGen, [][]*pkcs11.Attribute{{attr(pkcs11.CKA_EC_PARAMS, edwards25519)}, {attr(pkcs11.CKA_EC_PARAMS, edwards25519OID)}}
	}
	return pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, [][]*pkcs11.Attribute{{attr(pkcs11.CKA_MODULUS_BITS, a.bits), attr(pkcs11.CKA_PUBLIC_EXPONENT, publicExponent)}}
}

// bear makes a key pair of any algorithm. weak: in a module whose attributes an
// operator has accepted as they are. patiently repeats what a lagging node refuses.
func (t *token) bear(o keyObject, alg *algorithm, weak bool, patiently func(func() error) error) (bornKey, error) {
	var pub, priv pkcs11.ObjectHandle
	var err error
	template := privateTemplate(o.ID, o.label(), o.Subject, o.Replicable)
	beside := publicTemplate(o.ID, o.label(), o.Subject)
	if weak {
		template, beside = weakCopyTemplate(o.ID, o.label(), nil), weakPublicTemplate(o.ID, o.label())
	}
	mech, all := alg.generation()
	for _, params := range all {
		public := append(params, beside...)
		make := func(private []*pkcs11.Attribute) (err error) {
			pub, priv, err = t.m.GenerateKeyPair(t.session, mechanism(mech, nil), public, private)
			return err
		}
		if weak {
			err = again(func() error { return make(template) }) // NSS answers CKR_GENERAL_ERROR to CKA_ALLOWED_MECHANISMS
		} else {
			err = boundToMechanism(template, alg, make)
		}
		if err == nil {
			break
		}
	}
	if errors.Is(err, pkcs11.Error(pkcs11.CKR_MECHANISM_INVALID)) {
		return bornKey{}, fmt.Errorf("the module makes no keys of algorithm %s (mechanism %#x); take P-256, or another member", alg.name, mech)
	}
	if err != nil {
		return bornKey{}, classify("making the key pair", err)
	}
	var key crypto.PublicKey
	born := bornKey{ID: o.ID}
	err = patiently(func() (err error) {
		if key, err = t.publicKey(pub); err == nil {
			born.Attributes, err = t.snapshot(priv)
		}
		return err
	})
	if err != nil {
		return bornKey{}, fmt.Errorf("reading the new key: %w", err)
	}
	if born.SPKI, err = x509.MarshalPKIXPublicKey(key); err != nil {
		return bornKey{}, err
	}
	if weak {
		return born, nil
	}
	if err := checkSnapshot(born.Attributes, o.Replicable); err != nil { // it is not to lie about
		return bornKey{}, errors.Join(err, t.m.DestroyObject(t.session, priv), t.m.DestroyObject(t.session, pub))
	}
	return born, nil
}
