package hsmstore

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"chancery/admin"
	"chancery/audit"

	"github.com/ThalesGroup/crypto11"
	"github.com/miekg/pkcs11"
)

// A ceremony is a dialogue with one short-lived process per member: one JSON
// command, one JSON reply. The process gets the acts of the grant first and does
// nothing that is not among them. It never signs.

// Commands of a ceremony, in the op of their frame.
const (
	cerOpen      byte = 16 // openCeremony; first
	cerInit      byte = 17 // initToken: an empty slot becomes a token (dev)
	cerGenerate  byte = 18 // []keyObject -> []bornKey
	cerTransport byte = 19 // nothing -> transport
	cerNewKEKs   byte = 20 // newKEKs -> []wrappedKEK
	cerWrap      byte = 21 // wrapKeys -> []wrappedKey
	cerUnwrap    byte = 22 // []wrappedKey -> []bornKey
)

type openCeremony struct {
	Module string   `json:"module"`
	Label  string   `json:"label"`
	Serial string   `json:"serial"`
	Acts   []string `json:"acts"`
	SO     bool     `json:"so"` // log in as SO now
}

type initToken struct {
	Label string `json:"label"`
}

// keyObject is a key as the token is to hold it.
type keyObject struct {
	ID         KeyID         `json:"id"`
	Name       string        `json:"name"`
	Purpose    audit.Purpose `json:"purpose"`
	Algorithm  string        `json:"algorithm"`
	Subject    []byte        `json:"subject,omitempty"`
	SPKI       []byte        `json:"spki,omitempty"`
	Replicable bool          `json:"replicable"`
}

func (o keyObject) label() string { return keyLabel(o.Purpose, o.Name) }
func (o keyObject) act() string {
	return admin.GenerateKeyAct(o.Name, o.Purpose.String(), o.Algorithm, o.Subject)
}

// bornKey is what came to be, with the attributes that the token shows for it.
type bornKey struct {
	ID         KeyID    `json:"id"`
	SPKI       []byte   `json:"spki"`
	Attributes []string `json:"attributes"`
}

type transport struct {
	Modulus []byte `json:"modulus"`
}

type newKEKs struct {
	Modulus []byte `json:"modulus"`
	Types   []uint `json:"types"` // CKK_EC, CKK_RSA
}

type wrappedKEK struct {
	Type uint   `json:"type"`
	Blob []byte `json:"blob"`
}

type wrapKeys struct {
	KEKs []wrappedKEK `json:"keks"`
	Keys []keyObject  `json:"keys"`
}

type wrappedKey struct {
	Key       keyObject `json:"key"`
	Mechanism uint      `json:"mechanism"`
	Blob      []byte    `json:"blob"`
}

// ceremony is the state of the process.
type ceremony struct {
	open    openCeremony
	pin     string
	soPIN   string
	serial  string
	c11     *crypto11.Context // for births
	tok     *token            // for all else; never beside c11
	private pkcs11.ObjectHandle
	public  pkcs11.ObjectHandle
	keks    map[uint]pkcs11.ObjectHandle
}

// ceremonyMain is the life of a ceremony worker. The secrets are the user PIN and
// the SO PIN, which may be empty for a birth.
func ceremonyMain(c *child) error {
	if len(c.secrets) != 2 {
		return faultf(exitProtocol, "two secrets expected, %d came", len(c.secrets))
	}
	cer := &ceremony{pin: c.secrets[0], soPIN: c.secrets[1], keks: map[uint]pkcs11.ObjectHandle{}}
	for {
		f, err := readFrame(c.r)
		if err != nil {
			return err
		}
		reply, err := cer.do(f)
		if err != nil {
			return err
		}
		if err := writeJSON(c.conn, f.id, statusOK, reply); err != nil {
			return err
		}
	}
}

// do carries out one command. Any error ends the ceremony.
func (c *ceremony) do(f frame) (any, error) {
	switch f.op {
	case cerOpen:
		if err := json.Unmarshal(f.payload, &c.open); err != nil {
			return nil, err
		}
		if err := checkModule(c.open.Module); err != nil {
			return nil, &fault{exitModule, err}
		}
		if c.open.SO {
			if _, err := c.as(pkcs11.CKU_SO); err != nil {
				return nil, err
			}
		}
		return struct{}{}, nil
	case cerInit:
		return with(f, c.initToken)
	case cerGenerate:
		return with(f, c.generate)
	case cerTransport:
		return with(f, c.newTransport)
	case cerNewKEKs:
		return with(f, c.newKEKs)
	case cerWrap:
		return with(f, c.wrap)
	case cerUnwrap:
		return with(f, c.unwrap)
	}
	return nil, faultf(exitProtocol, "unknown ceremony command %d", f.op)
}

func with[Q, A any](f frame, do func(Q) (A, error)) (any, error) {
	var q Q
	if err := json.Unmarshal(f.payload, &q); err != nil {
		return nil, faultf(exitProtocol, "ceremony command %d: %v", f.op, err)
	}
	return do(q)
}

// allowed holds the grant: the birth of a key covers its copies.
func (c *ceremony) allowed(act string) error {
	if !slices.Contains(c.open.Acts, act) {
		return fmt.Errorf("%w: %q is not on the grant of this ceremony", admin.ErrNotGranted, act)
	}
	return nil
}

// context opens the token with crypto11, which bears keys.
func (c *ceremony) context() (*crypto11.Context, error) {
	if c.c11 != nil {
		return c.c11, nil
	}
	if c.tok != nil {
		return nil, faultf(exitProtocol, "keys are born before a ceremony copies any")
	}
	info, err := findToken(c.open.Module, c.open.Label, c.open.Serial)
	if err != nil {
		return nil, err
	}
	c.serial = info.SerialNumber
	c.c11, err = crypto11.Configure(&crypto11.Config{Path: c.open.Module, TokenSerial: info.SerialNumber, Pin: c.pin, MaxSessions: 4})
	if err != nil {
		return nil, classify("opening the token", err)
	}
	return c.c11, nil
}

// token opens the token with miekg/pkcs11. crypto11 must be gone: a logout would
// break its handles for ever.
func (c *ceremony) token() (*token, error) {
	if c.tok != nil {
		return c.tok, nil
	}
	if c.c11 != nil {
		if err := c.c11.Close(); err != nil {
			return nil, classify("closing the context", err)
		}
		c.c11 = nil
	}
	m := pkcs11.New(c.open.Module)
	if m == nil {
		return nil, faultf(exitModule, "%w: %s does not load", ErrModule, c.open.Module)
	}
	if err := m.Initialize(); err != nil {
		return nil, faultf(exitModule, "%w: C_Initialize of %s: %v", ErrModule, c.open.Module, err)
	}
	slot, info, err := slotOf(m, c.open.Label, c.open.Serial)
	if err != nil {
		return nil, err
	}
	c.serial = info.SerialNumber
	s, err := m.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return nil, classify("C_OpenSession", err)
	}
	c.tok = &token{m: m, session: s, slot: slot, user: noUser}
	return c.tok, nil
}

// as opens the token for one user.
func (c *ceremony) as(user uint) (*token, error) {
	t, err := c.token()
	if err != nil {
		return nil, err
	}
	secret := c.pin
	if user == pkcs11.CKU_SO {
		if secret = c.soPIN; secret == "" {
			return nil, faultf(exitPIN, "%w: this ceremony needs the SO PIN of the member", ErrPIN)
		}
	}
	return t, t.login(user, secret)
}

// generate bears keys by crypto11.
func (c *ceremony) generate(keys []keyObject) ([]bornKey, error) {
	ctx, err := c.context()
	if err != nil {
		return nil, err
	}
	out := make([]bornKey, len(keys))
	for i, o := range keys {
		if err := c.allowed(o.act()); err != nil {
			return nil, err
		}
		if out[i], err = bear(ctx, o); err != nil {
			return nil, fmt.Errorf("key %s: %w", o.Name, err)
		}
	}
	return out, nil
}

func bear(ctx *crypto11.Context, o keyObject) (bornKey, error) {
	alg, err := algorithmByName(o.Algorithm)
	if err != nil {
		return bornKey{}, err
	}
	public := attributeSet(publicTemplate(o.ID, o.label(), o.Subject))
	private := attributeSet(privateTemplate(o.ID, o.label(), o.Subject, o.Replicable))
	var k crypto11.Signer
	if alg.curve != nil {
		k, err = ctx.GenerateECDSAKeyPairWithAttributes(public, private, alg.curve)
	} else {
		k, err = ctx.GenerateRSAKeyPairWithAttributes(public, private, alg.bits)
	}
	if err != nil {
		return bornKey{}, classify("making the key pair", err)
	}
	spki, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		return bornKey{}, err
	}
	born := bornKey{ID: o.ID, SPKI: spki}
	for _, a := range snapshotAttributes {
		v, err := ctx.GetAttribute(k, a.id)
		if err != nil {
			return bornKey{}, classify("reading "+a.name, err)
		}
		born.Attributes = append(born.Attributes, snapshotLine(a.name, v.Value))
	}
	return born, checkSnapshot(born.Attributes, o.Replicable)
}

func attributeSet(as []*pkcs11.Attribute) crypto11.AttributeSet {
	set := crypto11.NewAttributeSet()
	for _, a := range as {
		set[a.Type] = a
	}
	return set
}

// checkSnapshot believes no module: the attributes are read back and compared.
func checkSnapshot(got []string, extractable bool) error {
	want := []string{"TOKEN=true", "PRIVATE=true", "SENSITIVE=true", fmt.Sprintf("EXTRACTABLE=%t", extractable), "MODIFIABLE=false", "SIGN=true", "DECRYPT=false", "UNWRAP=false", "DERIVE=false"}
	if extractable {
		want = append(want, "WRAP_WITH_TRUSTED=true")
	}
	for _, w := range want {
		if !slices.Contains(got, w) {
			return fmt.Errorf("the token did not honour %s: it shows %v", w, got)
		}
	}
	return nil
}

func (c *ceremony) newTransport(struct{}) (transport, error) {
	t, err := c.as(pkcs11.CKU_SO)
	if err != nil {
		return transport{}, err
	}
	var tr transport
	c.private, tr.Modulus, err = t.newTransport(transportBits)
	return tr, err
}

func (c *ceremony) newKEKs(q newKEKs) ([]wrappedKEK, error) {
	t, err := c.as(pkcs11.CKU_SO)
	if err != nil {
		return nil, err
	}
	if c.public, err = t.importTransport(q.Modulus); err != nil {
		return nil, err
	}
	if t, err = c.as(pkcs11.CKU_USER); err != nil {
		return nil, err
	}
	var out []wrappedKEK
	for _, typ := range q.Types {
		kek, blob, err := t.newKEK(c.public, typ)
		if err != nil {
			return nil, err
		}
		c.keks[typ] = kek
		out = append(out, wrappedKEK{typ, blob})
	}
	return out, nil
}

// wrap takes the target's KEKs and wraps the keys with them. The KEKs are
// destroyed at once: they would survive a logout.
func (c *ceremony) wrap(q wrapKeys) ([]wrappedKey, error) {
	t, err := c.as(pkcs11.CKU_SO)
	if err != nil {
		return nil, err
	}
	keks := map[uint]pkcs11.ObjectHandle{}
	for _, k := range q.KEKs {
		if keks[k.Type], err = t.takeKEK(c.private, k.Blob); err != nil {
			return nil, err
		}
	}
	if t, err = c.as(pkcs11.CKU_USER); err != nil {
		return nil, err
	}
	out := make([]wrappedKey, len(q.Keys))
	for i, o := range q.Keys {
		if err := c.allowed(o.act()); err != nil {
			return nil, err
		}
		pub, _, err := parseSPKI(o.SPKI)
		if err != nil {
			return nil, err
		}
		kek, ok := keks[keyTypeOf(pub)]
		if !ok {
			return nil, faultf(exitProtocol, "no KEK for key %s", o.Name)
		}
		if err := t.isKey(o); err != nil {
			return nil, err
		}
		out[i].Key = o
		if out[i].Mechanism, out[i].Blob, err = t.wrapKey(kek, o.ID); err != nil {
			return nil, fmt.Errorf("key %s: %w", o.Name, err)
		}
	}
	for _, h := range keks {
		if err := t.m.DestroyObject(t.session, h); err != nil {
			return nil, classify("destroying the KEK", err)
		}
	}
	return out, nil
}

// isKey makes sure that what the store calls a key is the key of that label here.
func (t *token) isKey(o keyObject) error {
	h, err := t.find(pkcs11.CKO_PRIVATE_KEY, o.ID)
	if err != nil {
		return err
	}
	as, err := t.m.GetAttributeValue(t.session, h, []*pkcs11.Attribute{attr(pkcs11.CKA_LABEL, nil)})
	if err != nil {
		return classify("reading the label", err)
	}
	if string(as[0].Value) != o.label() {
		return fmt.Errorf("key %x is %q on the token, not %q", o.ID, as[0].Value, o.label())
	}
	return nil
}

// unwrap makes the copies. A copy that an interrupted ceremony left is taken as
// it is; its proof will tell whether it is the key.
func (c *ceremony) unwrap(keys []wrappedKey) ([]bornKey, error) {
	t, err := c.as(pkcs11.CKU_USER)
	if err != nil {
		return nil, err
	}
	out := make([]bornKey, len(keys))
	for i, w := range keys {
		if err := c.allowed(w.Key.act()); err != nil {
			return nil, err
		}
		h, err := t.find(pkcs11.CKO_PRIVATE_KEY, w.Key.ID)
		if errors.Is(err, errAbsent) {
			pub, _, perr := parseSPKI(w.Key.SPKI)
			if perr != nil {
				return nil, perr
			}
			h, err = t.unwrapKey(c.keks[keyTypeOf(pub)], w.Mechanism, w.Blob, w.Key)
		}
		if err != nil {
			return nil, fmt.Errorf("key %s: %w", w.Key.Name, err)
		}
		out[i] = bornKey{ID: w.Key.ID, SPKI: bytes.Clone(w.Key.SPKI)}
		if out[i].Attributes, err = t.snapshot(h); err != nil {
			return nil, err
		}
		if err := checkSnapshot(out[i].Attributes, true); err != nil {
			return nil, fmt.Errorf("key %s: %w", w.Key.Name, err)
		}
	}
	for _, h := range c.keks {
		if err := t.m.DestroyObject(t.session, h); err != nil {
			return nil, classify("destroying the KEK", err)
		}
	}
	clear(c.keks)
	return out, nil
}

// initToken makes a token in the first empty slot and gives it its user PIN
// (PKCS#11 §5.5, C_InitToken and C_InitPIN). A token of that label is left alone.
func (c *ceremony) initToken(q initToken) (struct{}, error) {
	var none struct{}
	m := pkcs11.New(c.open.Module)
	if m == nil {
		return none, faultf(exitModule, "%w: %s does not load", ErrModule, c.open.Module)
	}
	if err := m.Initialize(); err != nil {
		return none, faultf(exitModule, "%w: C_Initialize: %v", ErrModule, err)
	}
	defer m.Finalize()
	if _, _, err := slotOf(m, q.Label, ""); err == nil {
		return none, nil
	}
	slots, err := m.GetSlotList(true)
	if err != nil {
		return none, classify("listing slots", err)
	}
	for _, s := range slots {
		info, err := m.GetTokenInfo(s)
		if err != nil || info.Flags&pkcs11.CKF_TOKEN_INITIALIZED != 0 {
			continue
		}
		if err := m.InitToken(s, c.soPIN, q.Label); err != nil {
			return none, classify("C_InitToken", err)
		}
		session, err := m.OpenSession(s, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		if err != nil {
			return none, classify("C_OpenSession", err)
		}
		if err := m.Login(session, pkcs11.CKU_SO, c.soPIN); err != nil {
			return none, classify("C_Login of the SO", err)
		}
		if err := m.InitPIN(session, c.pin); err != nil {
			return none, classify("C_InitPIN", err)
		}
		return none, nil
	}
	return none, faultf(exitToken, "%w: none of %d slots has an empty token", ErrToken, len(slots))
}
