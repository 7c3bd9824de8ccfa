package hsmstore

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"
)

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

// errAbsent: the token holds no such object.
var errAbsent = errors.New("the token has no such object")

// find returns the one object of a class with that CKA_ID.
func (t *token) find(class uint, id KeyID) (pkcs11.ObjectHandle, error) {
	return t.findOne([]*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, class), attr(pkcs11.CKA_ID, id[:])}, fmt.Sprintf("CKA_ID %x", id))
}

// findPrivate returns the private or secret key that a pin means.
func (t *token) findPrivate(p pin) (pkcs11.ObjectHandle, error) {
	template, what := p.template(p.class())
	return t.findOne(template, what)
}

// template finds an object of a key, in words too.
func (p pin) template(class uint) ([]*pkcs11.Attribute, string) {
	template := []*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, class)}
	if p.Adopted == nil {
		return append(template, attr(pkcs11.CKA_ID, p.ID[:])), fmt.Sprintf("CKA_ID %x", p.ID)
	}
	var what []string
	if len(p.Adopted.CKAID) > 0 {
		template, what = append(template, attr(pkcs11.CKA_ID, p.Adopted.CKAID)), append(what, fmt.Sprintf("CKA_ID %x", p.Adopted.CKAID))
	}
	if p.Adopted.Label != "" {
		template, what = append(template, attr(pkcs11.CKA_LABEL, p.Adopted.Label)), append(what, fmt.Sprintf("CKA_LABEL %q", p.Adopted.Label))
	}
	return template, strings.Join(what, ", ")
}

func (t *token) findOne(template []*pkcs11.Attribute, what string) (pkcs11.ObjectHandle, error) {
	hs, err := t.findAll(template, 2)
	switch {
	case err != nil:
		return 0, err
	case len(hs) == 0:
		return 0, fmt.Errorf("%w: %s", errAbsent, what)
	case len(hs) > 1:
		return 0, fmt.Errorf("the token has more than one object with %s", what)
	}
	return hs[0], nil
}

func (t *token) findAll(template []*pkcs11.Attribute, limit int) ([]pkcs11.ObjectHandle, error) {
	if err := t.m.FindObjectsInit(t.session, template); err != nil {
		return nil, classify("C_FindObjectsInit", err)
	}
	hs, _, err := t.m.FindObjects(t.session, limit)
	if ferr := t.m.FindObjectsFinal(t.session); err == nil {
		err = ferr
	}
	if err != nil {
		return nil, classify("C_FindObjects", err)
	}
	return hs, nil
}

// hasPublic compares the public half that the token shows with the pinned one. A
// token that shows none (adopted keys may lack the public object) is believed for
// now: no signature is released that does not verify with the pinned key.
func (t *token) hasPublic(private pkcs11.ObjectHandle, p pin, want crypto.PublicKey) error {
	if p.class() == pkcs11.CKO_SECRET_KEY {
		return nil // its check value comes with each of its CMACs
	}
	template, _ := p.template(pkcs11.CKO_PUBLIC_KEY)
	from := private
	hs, err := t.findAll(template, 2)
	if err != nil {
		return err
	}
	if len(hs) == 1 {
		from = hs[0]
	}
	pub, err := t.publicKey(from)
	if err != nil {
		if p.Adopted != nil {
			return nil
		}
		return fmt.Errorf("the token shows no public key: %w", err)
	}
	if k, ok := pub.(interface{ Equal(crypto.PublicKey) bool }); !ok || !k.Equal(want) {
		return errors.New("public key on the token is not the pinned one")
	}
	return nil
}

// publicKey reads the public half from a public key object, or from a private one
// where the module shows it there.
func (t *token) publicKey(h pkcs11.ObjectHandle) (crypto.PublicKey, error) {
	as, err := t.m.GetAttributeValue(t.session, h, []*pkcs11.Attribute{attr(pkcs11.CKA_KEY_TYPE, nil)})
	if err != nil {
		return nil, err
	}
	keyType := nativeUint(as[0].Value)
	if keyType == pkcs11.CKK_RSA {
		as, err := t.m.GetAttributeValue(t.session, h, []*pkcs11.Attribute{attr(pkcs11.CKA_MODULUS, nil), attr(pkcs11.CKA_PUBLIC_EXPONENT, nil)})
		if err != nil {
			return nil, err
		}
		n, e := new(big.Int).SetBytes(as[0].Value), new(big.Int).SetBytes(as[1].Value)
		if n.BitLen() < 2048 || e.BitLen() > 31 || e.Sign() == 0 {
			return nil, fmt.Errorf("RSA key of %d bits with exponent %v", n.BitLen(), e)
		}
		return &rsa.PublicKey{N: n, E: int(e.Int64())}, nil
	}
	as, err = t.m.GetAttributeValue(t.session, h, []*pkcs11.Attribute{attr(pkcs11.CKA_EC_PARAMS, nil), attr(pkcs11.CKA_EC_POINT, nil)})
	if err != nil {
		return nil, err
	}
	point := as[1].Value
	var inner []byte // an OCTET STRING by the standard, raw by some modules
	if rest, err := asn1.Unmarshal(point, &inner); err == nil && len(rest) == 0 {
		point = inner
	}
	for _, a := range algorithms {
		switch {
		case keyType == ckkEdwards && a.scheme == eddsaScheme && len(point) == ed25519.PublicKeySize:
			return ed25519.PublicKey(point), nil
		case keyType == pkcs11.CKK_EC && a.scheme == ecdsaScheme && bytes.Equal(a.ecParams(), as[0].Value):
			return ecdsa.ParseUncompressedPublicKey(a.curve, point)
		}
	}
	return nil, fmt.Errorf("key type %#x with parameters %x is not supported", keyType, as[0].Value)
}

// nativeUint reads a CK_ULONG of any width.
func nativeUint(b []byte) uint {
	var n uint
	for i := len(b) - 1; i >= 0; i-- { // little-endian, as on every platform that we build for
		n = n<<8 | uint(b[i])
	}
	return n
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

// snapshot reads the attributes of a private key. One that the module does not know
// shows as false; that is the weak side for all that must be true.
func (t *token) snapshot(h pkcs11.ObjectHandle) ([]string, error) {
	out := make([]string, 0, len(snapshotAttributes))
	all := make([]*pkcs11.Attribute, len(snapshotAttributes))
	for i, a := range snapshotAttributes {
		all[i] = attr(a.id, nil)
	}
	// All at once: the way to the HSM may be long. Where one is not known, one by one.
	if as, err := t.m.GetAttributeValue(t.session, h, all); err == nil && len(as) == len(all) {
		for i, a := range snapshotAttributes {
			out = append(out, snapshotLine(a.name, as[i].Value))
		}
		return out, nil
	}
	for _, a := range snapshotAttributes {
		as, err := t.m.GetAttributeValue(t.session, h, []*pkcs11.Attribute{attr(a.id, nil)})
		if err == pkcs11.Error(pkcs11.CKR_ATTRIBUTE_TYPE_INVALID) {
			as, err = []*pkcs11.Attribute{{}}, nil
		}
		if err != nil {
			return nil, classify("reading "+a.name, err)
		}
		out = append(out, snapshotLine(a.name, as[0].Value))
	}
	return out, nil
}

// weaknesses lists what of a key's attributes is weaker than our own keys are, but
// for what was accepted by name. What would give the key away is never accepted.
func weaknesses(snapshot, accepted []string) (out []string) {
	has := func(s string) bool { return slices.Contains(snapshot, s) }
	if !has("SENSITIVE=true") {
		out = append(out, "SENSITIVE=false")
	}
	if has("EXTRACTABLE=true") && !has("WRAP_WITH_TRUSTED=true") {
		out = append(out, "EXTRACTABLE=true without WRAP_WITH_TRUSTED")
	}
	if !has("SIGN=true") {
		out = append(out, "SIGN=false")
	}
	for _, w := range acceptable {
		if has(w) && !slices.Contains(accepted, w) {
			out = append(out, w)
		}
	}
	return out
}

// acceptable are the weaknesses of an adopted key that officers may accept: each
// lets the holder of the user PIN misuse the key, none gives it away by itself.
var acceptable = []string{"MODIFIABLE=true", "DECRYPT=true", "UNWRAP=true", "DERIVE=true"}
