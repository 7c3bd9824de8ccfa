package hsmstore

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/miekg/pkcs11"
)

// opObjects lets a signing worker tell what is on its token; it only reads.
// Payload: JSON objectsRequest; reply: JSON []TokenObject.
const opObjects byte = 40

// objectsRequest without an ID or label asks for all keys and certificates, in few
// words each; else for the private keys of that ID and label, in many.
type objectsRequest struct {
	CKAID  []byte `json:"cka_id,omitempty"`
	Label  string `json:"label,omitempty"`
	Secret bool   `json:"secret,omitempty"` // a secret key is meant
}

func (q objectsRequest) all() bool { return len(q.CKAID) == 0 && q.Label == "" }

// TokenObject is one object as its token shows it. In a list of all objects only
// class, CKA_ID, label and the marks of wrapping keys are filled in.
type TokenObject struct {
	Class   string `json:"class"`            // private-key, public-key, secret-key, certificate
	CKAID   string `json:"cka_id,omitempty"` // hex
	Label   string `json:"label,omitempty"`  // CKA_LABEL
	Trusted bool   `json:"trusted,omitempty"`
	Wrap    bool   `json:"wrap,omitempty"`
	Decrypt bool   `json:"decrypt,omitempty"`

	KeyType    string   `json:"key_type,omitempty"`   // RSA, EC, Edwards, AES
	Bits       int      `json:"bits,omitempty"`       // of the modulus or of the curve
	Attributes []string `json:"attributes,omitempty"` // snapshot: SENSITIVE=true …
	Mechanisms []uint   `json:"mechanisms,omitempty"` // CKA_ALLOWED_MECHANISMS; none: any, or the module does not say
	Subject    []byte   `json:"subject,omitempty"`    // CKA_SUBJECT, Name DER
	SPKI       []byte   `json:"spki,omitempty"`       // of the public half, DER
	Found      string   `json:"found,omitempty"`      // where the public half was found: "public key object", "certificate", "private key object"
}

// Classes of objects, in their words here (PKCS#11 §4.4 CKA_CLASS).
var objectClasses = []struct {
	id   uint
	name string
}{
	{pkcs11.CKO_PRIVATE_KEY, "private-key"}, {pkcs11.CKO_PUBLIC_KEY, "public-key"}, {pkcs11.CKO_SECRET_KEY, "secret-key"}, {pkcs11.CKO_CERTIFICATE, "certificate"},
}

// objects answers an objectsRequest.
func (w *worker) objects(f frame) {
	var q objectsRequest
	err := json.Unmarshal(f.payload, &q)
	var out []TokenObject
	if err == nil {
		out, err = w.token.objects(q)
	}
	if err != nil {
		w.fail(classify("listing objects", err))
		return
	}
	w.replyJSON(f.id, out)
}

// objects reads what an objectsRequest asks for.
func (t *token) objects(q objectsRequest) ([]TokenObject, error) {
	if !q.all() {
		p := pin{Adopted: &Adopted{CKAID: q.CKAID, Label: q.Label}}
		if q.Secret {
			p.Algorithm = algAES
		}
		return t.describe(p)
	}
	out := []TokenObject{}
	for _, class := range objectClasses {
		hs, err := t.findEvery([]*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, class.id), attr(pkcs11.CKA_TOKEN, true)})
		if err != nil {
			return nil, err
		}
		for _, h := range hs {
			o, err := t.brief(h, class.id)
			if err != nil {
				return nil, err
			}
			o.Class = class.name
			out = append(out, o)
		}
	}
	return out, nil
}

// brief reads the few attributes of an object that a list shows.
func (t *token) brief(h pkcs11.ObjectHandle, class uint) (TokenObject, error) {
	types := []uint{pkcs11.CKA_ID, pkcs11.CKA_LABEL}
	if class == pkcs11.CKO_PUBLIC_KEY || class == pkcs11.CKO_SECRET_KEY {
		types = append(types, pkcs11.CKA_TRUSTED, pkcs11.CKA_WRAP)
	}
	if class == pkcs11.CKO_SECRET_KEY {
		types = append(types, pkcs11.CKA_DECRYPT)
	}
	v, err := t.attributes(h, types...)
	if err != nil {
		return TokenObject{}, err
	}
	is := func(a uint) bool { return len(v[a]) == 1 && v[a][0] == 1 }
	return TokenObject{CKAID: hex.EncodeToString(v[pkcs11.CKA_ID]), Label: string(v[pkcs11.CKA_LABEL]),
		Trusted: is(pkcs11.CKA_TRUSTED), Wrap: is(pkcs11.CKA_WRAP), Decrypt: is(pkcs11.CKA_DECRYPT)}, nil
}

// describe reads all that is of interest about the keys that a pin may mean.
func (t *token) describe(p pin) ([]TokenObject, error) {
	template, _ := p.template(p.class())
	hs, err := t.findEvery(template)
	if err != nil {
		return nil, err
	}
	out := []TokenObject{}
	for _, h := range hs {
		v, err := t.attributes(h, pkcs11.CKA_ID, pkcs11.CKA_LABEL, pkcs11.CKA_SUBJECT, pkcs11.CKA_KEY_TYPE)
		if err != nil {
			return nil, err
		}
		o := TokenObject{Class: className(p.class()), CKAID: hex.EncodeToString(v[pkcs11.CKA_ID]), Label: string(v[pkcs11.CKA_LABEL]), Subject: v[pkcs11.CKA_SUBJECT],
			KeyType: map[uint]string{pkcs11.CKK_RSA: "RSA", pkcs11.CKK_EC: "EC", ckkEdwards: "Edwards", pkcs11.CKK_AES: "AES"}[nativeUint(v[pkcs11.CKA_KEY_TYPE])]}
		if o.Attributes, err = t.snapshot(h); err != nil {
			return nil, err
		}
		if o.Mechanisms, err = t.allowedMechanisms(h); err != nil {
			return nil, err
		}
		if p.class() == pkcs11.CKO_SECRET_KEY {
			out = append(out, o)
			continue
		}
		half, err := t.publicHalf(h, v[pkcs11.CKA_ID], o.Label)
		if err != nil {
			return nil, err
		}
		o.Trusted, o.Wrap, o.Found = half.trusted, half.wrap, half.found
		if half.key != nil {
			o.Bits = keyBits(half.key)
			if o.SPKI, err = x509.MarshalPKIXPublicKey(half.key); err != nil {
				return nil, err
			}
		}
		out = append(out, o)
	}
	return out, nil
}

func className(id uint) string {
	for _, c := range objectClasses {
		if c.id == id {
			return c.name
		}
	}
	return fmt.Sprintf("class %#x", id)
}

func keyBits(pub crypto.PublicKey) int {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		return k.N.BitLen()
	case *ecdsa.PublicKey:
		return k.Curve.Params().BitSize
	}
	return 256 // Ed25519
}

// publicHalf is what the token has of the public half of a private key.
type publicHalf struct {
	key           crypto.PublicKey // nil: it has none
	found         string
	trusted, wrap bool // marks of the public key object
}

// publicHalf looks for it in a public key object, in a certificate, and in the
// private object itself, where RSA keys have it and some modules keep EC points too.
func (t *token) publicHalf(private pkcs11.ObjectHandle, id []byte, label string) (out publicHalf, err error) {
	by := attr(pkcs11.CKA_ID, id)
	if len(id) == 0 {
		by = attr(pkcs11.CKA_LABEL, label)
	}
	hs, err := t.findAll([]*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY), by}, 2)
	if err != nil {
		return out, err
	}
	if len(hs) == 1 {
		o, err := t.brief(hs[0], pkcs11.CKO_PUBLIC_KEY)
		if err != nil {
			return out, err
		}
		out.trusted, out.wrap = o.Trusted, o.Wrap
		if out.key, err = t.publicKey(hs[0]); err == nil {
			out.found = "public key object"
			return out, nil
		}
	}
	if hs, err = t.findAll([]*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, pkcs11.CKO_CERTIFICATE), by}, 16); err != nil {
		return out, err
	}
	for _, h := range hs { // a renewed certificate beside the old one has the same key
		v, err := t.attributes(h, pkcs11.CKA_VALUE)
		if err != nil {
			return out, err
		}
		if cert, err := x509.ParseCertificate(v[pkcs11.CKA_VALUE]); err == nil {
			out.key, out.found = cert.PublicKey, "certificate"
			return out, nil
		}
	}
	if pub, err := t.publicKey(private); err == nil {
		out.key, out.found = pub, "private key object"
	}
	return out, nil
}

// attributes reads attributes of an object. One that the module does not know, or
// does not tell, is missing in the result.
func (t *token) attributes(h pkcs11.ObjectHandle, types ...uint) (map[uint][]byte, error) {
	out := make(map[uint][]byte, len(types))
	template := make([]*pkcs11.Attribute, len(types))
	for i, a := range types {
		template[i] = attr(a, nil)
	}
	as, err := t.m.GetAttributeValue(t.session, h, template)
	if err == nil {
		for _, a := range as {
			out[a.Type] = a.Value
		}
		return out, nil
	}
	for _, a := range types { // one by one: PKCS#11 v2.40 §4.7 lets one bad type fail the whole call
		as, err := t.m.GetAttributeValue(t.session, h, []*pkcs11.Attribute{attr(a, nil)})
		switch {
		case err == nil:
			out[a] = as[0].Value
		case errors.Is(err, pkcs11.Error(pkcs11.CKR_ATTRIBUTE_TYPE_INVALID)), errors.Is(err, pkcs11.Error(pkcs11.CKR_ATTRIBUTE_SENSITIVE)):
		default:
			return nil, classify(fmt.Sprintf("reading attribute %#x", a), err)
		}
	}
	return out, nil
}

// findEvery finds all objects of a template, however many.
func (t *token) findEvery(template []*pkcs11.Attribute) (out []pkcs11.ObjectHandle, err error) {
	if err := t.m.FindObjectsInit(t.session, template); err != nil {
		return nil, classify("C_FindObjectsInit", err)
	}
	for {
		hs, _, ferr := t.m.FindObjects(t.session, 1000)
		if ferr != nil || len(hs) == 0 {
			err = ferr
			break
		}
		out = append(out, hs...)
	}
	if ferr := t.m.FindObjectsFinal(t.session); err == nil {
		err = ferr
	}
	if err != nil {
		return nil, classify("C_FindObjects", err)
	}
	return out, nil
}

// allowedMechanisms reads CKA_ALLOWED_MECHANISMS, an array of CK_MECHANISM_TYPE
// (PKCS#11 §4.8); none means any.
func (t *token) allowedMechanisms(h pkcs11.ObjectHandle) ([]uint, error) {
	v, err := t.attributes(h, pkcs11.CKA_ALLOWED_MECHANISMS)
	if err != nil {
		return nil, err
	}
	var out []uint
	for b := v[pkcs11.CKA_ALLOWED_MECHANISMS]; len(b) >= ulong; b = b[ulong:] {
		out = append(out, nativeUint(b[:ulong]))
	}
	return out, nil
}

// permits tells whether the token lets a key sign in the way of its algorithm: a
// key that was born for PSS never signs by PKCS #1 v1.5, whatever the database says.
func (t *token) permits(h pkcs11.ObjectHandle, alg *algorithm) error {
	list, err := t.allowedMechanisms(h)
	if err != nil {
		return err
	}
	if len(list) > 0 && !slices.Contains(list, alg.mechanism()[0].Mechanism) {
		return fmt.Errorf("CKA_ALLOWED_MECHANISMS on the token (%#x) does not list %s: the key was not made for %s", list, alg.mechanismName(), alg.name)
	}
	return nil
}

// withMechanism adds CKA_ALLOWED_MECHANISMS, the one way in which a key signs, to
// the template of a private key. The last attribute stays the last (template.go).
func withMechanism(template []*pkcs11.Attribute, alg *algorithm) []*pkcs11.Attribute {
	value := make([]byte, ulong)
	for i, n := 0, alg.mechanism()[0].Mechanism; i < ulong; i++ {
		value[i] = byte(n >> (8 * i)) // little-endian, as in nativeUint
	}
	return slices.Insert(slices.Clone(template), len(template)-1, attr(pkcs11.CKA_ALLOWED_MECHANISMS, value))
}

// ulong is the size of a CK_ULONG on the platforms that we build for, LP64.
const ulong = 8

// MemberAttributes is what one member shows of a key now.
type MemberAttributes struct {
	Member  string        `json:"member"`
	Objects []TokenObject `json:"objects,omitempty"` // one, if all is well
	Err     string        `json:"error,omitempty"`   // why the member could not be asked
}

// Attributes asks every member that shall hold a key for what its token shows of it.
// A member that cannot be asked is in the result with the reason. Errors: ErrNoKey.
func (s *Store) Attributes(ctx context.Context, name string) ([]MemberAttributes, error) {
	k, err := s.anyKey(name)
	if err != nil {
		return nil, err
	}
	var out []MemberAttributes
	for _, member := range k.Members() {
		a := MemberAttributes{Member: member}
		if a.Objects, err = s.objectsOn(ctx, member, k.objectsRequest()); err != nil {
			a.Err = err.Error()
		}
		out = append(out, a)
	}
	return out, nil
}

// objectsRequest asks for the object of a key that signs.
func (k *Key) objectsRequest() objectsRequest {
	if k.adopted != nil {
		return objectsRequest{CKAID: k.adopted.CKAID, Label: k.adopted.Label}
	}
	return objectsRequest{CKAID: k.id[:], Secret: k.alg.scheme == macScheme}
}

// objectsOn asks the signing worker of a member.
func (s *Store) objectsOn(ctx context.Context, member string, q objectsRequest) ([]TokenObject, error) {
	m := s.member(member)
	if m == nil {
		return nil, fmt.Errorf("%w: %q is no member; there are %v", ErrUnavailable, member, s.names())
	}
	l := m.worker()
	if l == nil {
		return nil, fmt.Errorf("%w: member %s is %s", ErrUnavailable, member, m.current().State)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	var out []TokenObject
	if err := l.control(ctx, opObjects, q, &out); err != nil {
		return nil, fmt.Errorf("%w: asking member %s for its objects: %w", ErrUnavailable, member, err)
	}
	return out, nil
}

// worker is the link with the running worker, or nil.
func (m *member) worker() *link {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.link
}

func (s *Store) names() (out []string) {
	for _, m := range s.list() {
		out = append(out, m.cfg.Name)
	}
	return out
}

// anyKey returns a key in any state.
func (s *Store) anyKey(name string) (*Key, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if k := s.keys[name]; k != nil {
		return k, nil
	}
	return nil, fmt.Errorf("%w: %q", ErrNoKey, name)
}
