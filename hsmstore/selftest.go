package hsmstore

import (
	"bytes"
	"crypto/rand"
	"fmt"

	"github.com/miekg/pkcs11"
)

// Before a key of the cluster travels between two members, one that is thrown away
// does: it is born at the source as a session object under the template of the real
// ones, goes the whole way, and must sign at the target. The other half of the test
// must fail: taking the same blob with each line of the unwrap template turned over, or
// left out. A module that lets one pass ignores its UNWRAP_TEMPLATE, and whoever holds its
// PIN could get at what it is given.

// testKey is a throw-away key on its way.
type testKey struct {
	Algorithm string         `json:"algorithm"`
	SPKI      []byte         `json:"spki"`
	Blobs     map[int][]byte `json:"blobs"` // by way; those that the source refused are missing
}

// testVerdict is what the target found out.
type testVerdict struct {
	Way  int    `json:"way"`  // the first that works; -1: none
	Weak bool   `json:"weak"` // the unwrap template was ignored
	Why  string `json:"why"`  // of -1: what the last one said
}

// wrapTest asks the source for a throw-away key.
type wrapTest struct {
	Algorithm string `json:"algorithm"`
	Ways      []int  `json:"ways"`
}

// testAlgorithms are the throw-away keys by key type, the quickest to make.
var testAlgorithms = map[uint]string{pkcs11.CKK_EC: "P-256", pkcs11.CKK_RSA: "RSA-2048", pkcs11.CKK_AES: algAES}

// wrapTest makes a throw-away key and wraps it in every way that is asked for.
func (c *ceremony) wrapTest(q wrapTest) (out testKey, err error) {
	t, err := c.as(pkcs11.CKU_USER)
	if err != nil {
		return out, err
	}
	alg, err := algorithmByName(q.Algorithm)
	if err != nil {
		return out, err
	}
	var id KeyID
	rand.Read(id[:])
	if alg.scheme == macScheme {
		return c.wrapSecretTest(t, id, q)
	}
	gen := uint(pkcs11.CKM_EC_KEY_PAIR_GEN)
	public, private := sessionObject(publicTemplate(id, "self-test", nil)), sessionObject(privateTemplate(id, "self-test", nil, true))
	if alg.scheme == ecdsaScheme {
		public = append(public, attr(pkcs11.CKA_EC_PARAMS, alg.ecParams()))
	} else {
		gen = pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN
		public = append(public, attr(pkcs11.CKA_MODULUS_BITS, alg.bits), attr(pkcs11.CKA_PUBLIC_EXPONENT, publicExponent))
	}
	pub, priv, err := t.m.GenerateKeyPair(t.session, mechanism(gen, nil), public, private)
	if err != nil {
		return out, classify("making a throw-away key", err)
	}
	defer t.m.DestroyObject(t.session, pub)
	defer t.m.DestroyObject(t.session, priv)
	key, err := t.publicKey(pub)
	if err != nil {
		return out, classify("reading the throw-away key", err)
	}
	out = testKey{Algorithm: q.Algorithm, Blobs: map[int][]byte{}}
	if out.SPKI, err = marshalSPKI(key); err != nil {
		return out, err
	}
	return out, c.wrapEach(t, priv, keyTypeOf(key), q.Ways, out.Blobs)
}

// wrapSecretTest is wrapTest for an AES key.
func (c *ceremony) wrapSecretTest(t *token, id KeyID, q wrapTest) (testKey, error) {
	out := testKey{Algorithm: q.Algorithm, Blobs: map[int][]byte{}}
	h, err := t.generateSecret(sessionObject(secretTemplate(id, "self-test", true)))
	if err != nil {
		return out, classify("making a throw-away key", err)
	}
	defer t.m.DestroyObject(t.session, h)
	v, err := t.checkValueOf(h)
	if err != nil {
		return out, fmt.Errorf("reading the throw-away key: %w", err)
	}
	out.SPKI = v.marshal()
	return out, c.wrapEach(t, h, pkcs11.CKK_AES, q.Ways, out.Blobs)
}

// wrapEach wraps a key in every way that the module can.
func (c *ceremony) wrapEach(t *token, key pkcs11.ObjectHandle, keyType uint, in []int, blobs map[int][]byte) error {
	for _, i := range in {
		by, ok := c.travels(i, keyType)
		if !ok {
			return faultf(exitProtocol, "no key for way %d of a throw-away key", i)
		}
		if blob, err := t.wrapKey(by, key, ways[i]); err == nil {
			blobs[i] = blob
		}
	}
	return nil
}

// unwrapTest takes the throw-away key in the ways that the source could, in order,
// until one works.
func (c *ceremony) unwrapTest(q testKey) (v testVerdict, err error) {
	v.Way = -1
	t, err := c.as(pkcs11.CKU_USER)
	if err != nil {
		return v, err
	}
	pub, alg, err := parseSPKI(q.SPKI, q.Algorithm)
	if err != nil {
		return v, err
	}
	var id KeyID
	rand.Read(id[:])
	text := make([]byte, 64)
	rand.Read(text)
	head := []*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, alg.class()), attr(pkcs11.CKA_KEY_TYPE, keyTypeOf(pub))}
	for _, i := range preferred {
		w := ways[i]
		blob, ok := q.Blobs[i]
		if !ok {
			continue
		}
		by, ok := c.travels(i, keyTypeOf(pub))
		if !ok {
			return v, faultf(exitProtocol, "no key for way %d of a throw-away key", i)
		}
		template := append(head[:2:2], sessionObject(c.copyTemplate(alg, id, "self-test", nil, pub))...)
		h, err := t.unwrapBy(by, w, blob, template)
		if err != nil {
			v.Why = fmt.Sprintf("%s: %v", w.name, err)
			continue
		}
		k := &workerKey{handle: h, alg: alg, mech: alg.mechanism()}
		sig, err := t.sign(t.session, k, alg.digest(text))
		if err == nil {
			sig, err = alg.output(sig)
		}
		_ = t.m.DestroyObject(t.session, h)
		if err != nil || !alg.verify(pub, alg.digest(text), sig) {
			v.Why = fmt.Sprintf("%s: the key came through and does not sign: %v", w.name, err)
			continue
		}
		v.Way = i
		if c.open.Weak {
			v.Weak = t.unwrapsWeakly(by, w, blob, template)
			return v, nil
		}
		weak, err := t.holds(by, w, blob, keyTypeOf(pub))
		if err != nil {
			v.Way, v.Why = -1, fmt.Sprintf("%s: what its unwrap template refuses could not be found out: %v", w.name, err)
			continue
		}
		v.Weak = len(weak) > 0
		return v, nil
	}
	return v, nil
}

// unwrapsWeakly tries what an attacker with the PIN would: the same blob, but with
// SENSITIVE=false.
func (t *token) unwrapsWeakly(by pkcs11.ObjectHandle, w way, blob []byte, template []*pkcs11.Attribute) bool {
	weak := make([]*pkcs11.Attribute, len(template))
	for i, a := range template {
		if a.Type == pkcs11.CKA_SENSITIVE {
			a = attr(pkcs11.CKA_SENSITIVE, false)
		}
		weak[i] = a
	}
	h, err := t.unwrapBy(by, w, blob, weak)
	if err != nil {
		return false
	}
	as, err := t.m.GetAttributeValue(t.session, h, []*pkcs11.Attribute{attr(pkcs11.CKA_SENSITIVE, nil)})
	_ = t.m.DestroyObject(t.session, h)
	return err != nil || !bytes.Equal(as[0].Value, []byte{1})
}

func (t *token) unwrapBy(by pkcs11.ObjectHandle, w way, blob []byte, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	mech, free := w.unwrapMechanism()
	defer free()
	return t.m.UnwrapKey(t.session, mech, by, blob, template)
}

// sessionObject is a template for an object that ends with the session.
func sessionObject(template []*pkcs11.Attribute) []*pkcs11.Attribute {
	out := make([]*pkcs11.Attribute, len(template))
	for i, a := range template {
		if a.Type == pkcs11.CKA_TOKEN {
			a = attr(pkcs11.CKA_TOKEN, false)
		}
		out[i] = a
	}
	return out
}
