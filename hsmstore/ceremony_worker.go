package hsmstore

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"chancery/admin"
	"chancery/audit"

	"github.com/ThalesGroup/crypto11"
	"github.com/miekg/pkcs11"
)

// A ceremony is a dialogue with one short-lived process per member: one JSON
// command, one JSON reply. The process gets the acts of the grant first and does
// nothing that is not among them. The only thing that it signs are key proofs: of the
// throw-away keys of tests, and of what a backup holds.

// Commands of a ceremony, in the op of their frame.
const (
	cerOpen      byte = 16 // openCeremony; first
	cerInit      byte = 17 // initToken: an empty slot becomes a token (dev)
	cerGenerate  byte = 18 // []keyObject -> []bornKey
	cerTransport byte = 19 // nothing -> transport
	cerNewKEKs   byte = 20 // newKEKs -> []wrappedKEK
	cerTakeKEKs  byte = 21 // []wrappedKEK -> nothing
	cerWrapTest  byte = 22 // wrapTest -> testKey
	cerTakeTest  byte = 23 // testKey -> testVerdict
	cerWrap      byte = 24 // []wrappedKey without blobs -> []wrappedKey
	cerUnwrap    byte = 25 // []wrappedKey -> []bornKey
	cerHopPair   byte = 26 // []uint, key types -> []hop, of the target
	cerHopTake   byte = 27 // []hop -> nothing
)

type openCeremony struct {
	Module   string `json:"module"`
	Reserved string `json:"reserved,omitempty"`
	Label    string `json:"label"`
	Serial   string `json:"serial"`
	mandate
	SO     bool `json:"so"`               // log in as SO now
	Device bool `json:"device,omitempty"` // the SO logs in at the device; see quorum_device.go
	Native bool `json:"native,omitempty"` // a vendor's cluster, whose nodes may not know a fresh object yet
	Weak   bool `json:"weak,omitempty"`   // a module without unwrap templates, which an operator has accepted
}

// openedCeremony is what the token says of itself.
type openedCeremony struct {
	Serial       string `json:"serial"`
	Label        string `json:"label"`
	Manufacturer string `json:"manufacturer"`
	Model        string `json:"model"`
	Firmware     string `json:"firmware"`
	Mechanisms   []uint `json:"mechanisms"`
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
	Act        string        `json:"act"` // the act of its birth
}

func (o keyObject) label() string { return keyLabel(o.Purpose, o.Name) }

// bornKey is what came to be, with the attributes that the token shows for it.
type bornKey struct {
	ID         KeyID    `json:"id"`
	SPKI       []byte   `json:"spki"`
	Attributes []string `json:"attributes"`
}

type transport struct {
	Modulus []byte `json:"modulus"`
}

// hop is the target's transport key for keys of one class.
type hop struct {
	Class   uint   `json:"class"` // CKO_PRIVATE_KEY, CKO_SECRET_KEY
	Modulus []byte `json:"modulus"`
}

type newKEKs struct {
	Modulus []byte `json:"modulus"`
	Types   []uint `json:"types"` // CKK_EC, CKK_RSA, CKK_AES
}

type wrappedKEK struct {
	Type uint   `json:"type"`
	Blob []byte `json:"blob"`
}

// wrappedKey is a key on its way, to the member of that name and token.
type wrappedKey struct {
	Key    keyObject  `json:"key"`
	Way    int        `json:"way"`
	Target string     `json:"target"`
	Serial string     `json:"serial"`
	Blob   []byte     `json:"blob,omitempty"`
	KEK    *BackupKEK `json:"kek,omitempty"` // of a backup: the key on the recipient that unwraps it
}

// ceremony is the state of the process.
type ceremony struct {
	open    openCeremony
	conn    net.Conn // to the store
	pin     string
	soPIN   string
	serial  string
	c11     *crypto11.Context // for births
	tok     *token            // for all else; never beside c11
	private pkcs11.ObjectHandle
	public  pkcs11.ObjectHandle
	hops    map[uint]pkcs11.ObjectHandle // of the one hop, by class of what travels: private at the target, public and trusted at the source
	keks    map[uint]pkcs11.ObjectHandle
	share   shareState
	made    []pkcs11.ObjectHandle // KEKs of a backup

	importing *importState
}

// ceremonyMain is the life of a ceremony worker. The secrets are the user PIN and
// the SO PIN, which may be empty for a birth.
func ceremonyMain(c *child) error {
	if len(c.secrets) != 2 {
		return faultf(exitProtocol, "two secrets expected, %d came", len(c.secrets))
	}
	cer := &ceremony{conn: c.conn, pin: c.secrets[0], soPIN: c.secrets[1], keks: map[uint]pkcs11.ObjectHandle{}, hops: map[uint]pkcs11.ObjectHandle{}}
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
		if err := c.open.accept(time.Now()); err != nil {
			return nil, &fault{exitGrant, err}
		}
		return c.opened()
	case cerInit:
		return with(f, c.initToken)
	case cerGenerate:
		return with(f, c.generate)
	case cerShareKey:
		return with(f, c.shareKey)
	case cerShare:
		return with(f, c.takeShare)
	case cerJoin:
		return with(f, c.join)
	case cerNewShares:
		return with(f, c.newShares)
	case cerRotate:
		return with(f, c.rotate)
	case cerTransport:
		return with(f, c.newTransport)
	case cerNewKEKs:
		return with(f, c.newKEKs)
	case cerTakeKEKs:
		return with(f, c.takeKEKs)
	case cerHopPair:
		return with(f, c.hopPair)
	case cerHopTake:
		return with(f, c.hopTake)
	case cerWrapTest:
		return with(f, c.wrapTest)
	case cerTakeTest:
		return with(f, c.unwrapTest)
	case cerWrap:
		return with(f, c.wrap)
	case cerUnwrap:
		return with(f, c.unwrap)
	case cerBackupFind:
		return with(f, c.findKEKs)
	case cerBackupOpen:
		return with(f, c.openBackup)
	case cerBackupDrop:
		return with(f, c.dropBackupKEKs)
	case cerBackupTest:
		return with(f, c.backupTest)
	case cerProve:
		return with(f, c.proveBackup)
	case cerRestore:
		return with(f, c.restoreKeys)
	case cerRestoreMark:
		return with(f, c.markRestored)
	case cerRecover:
		return with(f, c.recover)
	case cerDestroy:
		return with(f, c.destroy)
	case cerClear:
		return with(f, c.clear)
	case cerImportPair:
		return with(f, c.newImportPair)
	case cerImport:
		return with(f, c.importKey)
	case cerImportUndo:
		return with(f, c.undoImport)
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

// opened logs the SO in if that is wanted, and tells what the token is.
func (c *ceremony) opened() (out openedCeremony, err error) {
	if c.open.Label == "" && c.open.Serial == "" {
		return out, nil // for a token that is to be made
	}
	look := func(m *pkcs11.Ctx, slot uint, info pkcs11.TokenInfo) error {
		list, err := m.GetMechanismList(slot)
		if err != nil {
			return classify("C_GetMechanismList", err)
		}
		out = openedCeremony{Serial: info.SerialNumber, Label: info.Label, Manufacturer: strings.TrimSpace(info.ManufacturerID), Model: strings.TrimSpace(info.Model),
			Firmware: fmt.Sprintf("%d.%d", info.FirmwareVersion.Major, info.FirmwareVersion.Minor)}
		out.Mechanisms = mechanismNumbers(list)
		return nil
	}
	if !c.open.SO {
		return out, c.look(look) // crypto11 comes, and wants the module for itself
	}
	t, err := c.token()
	if err != nil {
		return out, err
	}
	info, err := t.m.GetTokenInfo(t.slot)
	if err != nil {
		return out, classify("C_GetTokenInfo", err)
	}
	if _, err := c.as(pkcs11.CKU_SO); err != nil {
		return out, err
	}
	return out, look(t.m, t.slot, info)
}

// allowed holds the grant.
func (c *ceremony) allowed(act string) error {
	if !slices.Contains(c.open.Acts, act) {
		return fmt.Errorf("%w: %q is not on the grant of this ceremony", admin.ErrNotGranted, act)
	}
	return nil
}

// mayBear holds the grant for a birth: the act is granted and is about this very key.
func (c *ceremony) mayBear(o keyObject) error {
	base := admin.GenerateKeyAct(o.Name, o.Purpose.String(), o.Algorithm, o.Subject)
	if o.Act != base && !strings.HasPrefix(o.Act, base+" on ") {
		return fmt.Errorf("%w: %q is not about key %s", admin.ErrNotGranted, o.Act, o.Name)
	}
	return c.allowed(o.Act)
}

// mayCopy holds the grant for a copy: the birth of a key covers its copies and backups,
// a member that joins gets them all, and so does a backup recipient.
func (c *ceremony) mayCopy(w wrappedKey) error {
	if c.mayBear(w.Key) == nil {
		if _, on, named := strings.Cut(w.Key.Act, " on "); named && !slices.Contains(strings.Split(on, ","), w.Target) {
			return fmt.Errorf("%w: key %s is to be on %s, not on %s", admin.ErrNotGranted, w.Key.Name, on, w.Target)
		}
		return nil
	}
	for _, act := range []string{admin.ImportKeyAct(w.Key.Name, w.Key.Purpose.String(), w.Key.Algorithm, w.Key.Subject, sha256.Sum256(w.Key.SPKI)), admin.AddMemberAct(w.Target, w.Serial, ""), admin.RepairKeyAct(w.Key.Name, w.Target), admin.BackupAct(w.Target, w.Serial)} {
		if slices.Contains(c.open.Acts, act) {
			return nil
		}
	}
	return fmt.Errorf("%w: a copy of key %s to member %s is not on the grant of this ceremony", admin.ErrNotGranted, w.Key.Name, w.Target)
}

// mayHold refuses a key that is not for the role which the token was bound to.
func (c *ceremony) mayHold(p audit.Purpose) error {
	a, err := readAccount(c.open.Account)
	if err != nil {
		return err
	}
	if !Role(a.role).holds(p) {
		return fmt.Errorf("%w: the token has the role %s and takes no keys for %s", admin.ErrNotGranted, a.role, p)
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
	err := c.look(func(_ *pkcs11.Ctx, _ uint, info pkcs11.TokenInfo) error { c.serial = info.SerialNumber; return nil })
	if err != nil {
		return nil, err
	}
	c.c11, err = crypto11.Configure(&crypto11.Config{Path: c.open.Module, TokenSerial: c.serial, Pin: c.pin, MaxSessions: 4})
	if err != nil {
		return nil, classify("opening the token", err)
	}
	return c.c11, nil
}

// look finds the token before the PIN is used: crypto11 neither checks a second
// property of a token nor tells its serial number.
func (c *ceremony) look(see func(*pkcs11.Ctx, uint, pkcs11.TokenInfo) error) error {
	m, err := loadModule(c.open.Module, c.open.Reserved)
	if err != nil {
		return err
	}
	defer m.Destroy()
	defer m.Finalize()
	slot, info, err := slotOf(m, c.open.Label, c.open.Serial)
	if err != nil {
		return err
	}
	return see(m, slot, info)
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
	t, info, err := openToken(c.open.Module, c.open.Reserved, c.open.Label, c.open.Serial)
	if err != nil {
		return nil, err
	}
	c.tok, c.serial = t, info.SerialNumber
	return c.tok, nil
}

// as opens the token for one user.
func (c *ceremony) as(user uint) (*token, error) {
	t, err := c.token()
	if err != nil {
		return nil, err
	}
	secret := c.pin
	if user == pkcs11.CKU_SO && c.open.Device {
		return t, c.atDevice(t)
	}
	if user == pkcs11.CKU_SO {
		if secret = c.soPIN; secret == "" {
			return nil, faultf(exitPIN, "%w: this ceremony needs the SO PIN of the member", ErrPIN)
		}
	}
	return t, t.login(user, secret)
}

// generate bears keys by crypto11, and Ed25519 and AES keys, which it does not make as we
// want them, by miekg/pkcs11 after it.
func (c *ceremony) generate(keys []keyObject) ([]bornKey, error) {
	out := make([]bornKey, len(keys))
	for _, later := range []bool{false, true} {
		for i, o := range keys {
			if later != (o.Algorithm == algEd25519 || o.Algorithm == algAES) {
				continue
			}
			err := c.mayBear(o)
			if err == nil {
				err = c.mayHold(o.Purpose)
			}
			if err == nil {
				out[i], err = c.bear(o)
			}
			if err != nil {
				return nil, fmt.Errorf("key %s: %w", o.Name, err)
			}
		}
	}
	return out, nil
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

// newKEKs makes the target's KEKs. Only a module whose unwrap templates are known to
// be ignored, which an operator has accepted, does without its SO: there is nothing
// that a trusted key could protect.
func (c *ceremony) newKEKs(q newKEKs) ([]wrappedKEK, error) {
	var t *token
	var err error
	if !c.open.Weak {
		if t, err = c.as(pkcs11.CKU_SO); err != nil {
			return nil, err
		}
		if c.public, err = t.importTransport(q.Modulus); err != nil {
			return nil, err
		}
	}
	if t, err = c.as(pkcs11.CKU_USER); err != nil {
		return nil, err
	}
	if c.open.Weak {
		if c.public, err = t.importUntrusted(q.Modulus); err != nil {
			return nil, err
		}
	}
	var out []wrappedKEK
	for _, typ := range q.Types {
		kek, blob, err := t.newKEK(c.public, typ, c.open.Weak)
		if err != nil {
			return nil, err
		}
		c.keks[typ] = kek
		out = append(out, wrappedKEK{typ, blob})
	}
	return out, nil
}

// takeKEKs takes the target's KEKs as trusted ones. Those of a target before it are
// destroyed: they would survive a logout.
func (c *ceremony) takeKEKs(q []wrappedKEK) (struct{}, error) {
	var none struct{}
	if err := c.dropKEKs(); err != nil {
		return none, err
	}
	t, err := c.as(pkcs11.CKU_SO)
	if err != nil {
		return none, err
	}
	for _, k := range q {
		if c.keks[k.Type], err = t.takeKEK(c.private, k.Blob); err != nil {
			return none, err
		}
	}
	return none, nil
}

func (c *ceremony) dropKEKs() error {
	for typ, h := range c.keks {
		if err := c.tok.m.DestroyObject(c.tok.session, h); err != nil {
			return classify("destroying the KEK", err)
		}
		delete(c.keks, typ)
	}
	return nil
}

// hopPair makes the target's transport pairs for the one hop, one for each class of keys.
func (c *ceremony) hopPair(types []uint) (out []hop, err error) {
	t, err := c.as(pkcs11.CKU_USER)
	if err != nil {
		return nil, err
	}
	for _, typ := range types {
		class := classOf(typ)
		if c.hops[class] != 0 {
			continue
		}
		h := hop{Class: class}
		if c.hops[class], h.Modulus, err = t.newHop(class); err != nil {
			return nil, err
		}
		out = append(out, h)
	}
	return out, nil
}

// hopTake makes those keys TRUSTED at the source.
func (c *ceremony) hopTake(q []hop) (none struct{}, err error) {
	t, err := c.as(pkcs11.CKU_SO)
	if err != nil {
		return none, err
	}
	for _, h := range q {
		if c.hops[h.Class], err = t.importTransport(h.Modulus); err != nil {
			return none, err
		}
	}
	return none, nil
}

// travels is the key that wraps or, at the target, unwraps by a way.
func (c *ceremony) travels(way int, keyType uint) (pkcs11.ObjectHandle, bool) {
	if way < 0 || way >= len(ways) {
		return 0, false
	}
	if ways[way].hop != nil {
		h, ok := c.hops[classOf(keyType)]
		return h, ok
	}
	h, ok := c.keks[keyType]
	return h, ok
}

// wrap wraps keys with the target's KEKs, which are destroyed with that.
func (c *ceremony) wrap(keys []wrappedKey) ([]wrappedKey, error) {
	t, err := c.as(pkcs11.CKU_USER)
	if err != nil {
		return nil, err
	}
	for i, w := range keys {
		if err := c.mayCopy(w); err != nil {
			return nil, err
		}
		pub, _, err := parseSPKI(w.Key.SPKI, w.Key.Algorithm)
		if err != nil {
			return nil, err
		}
		by, ok := c.travels(w.Way, keyTypeOf(pub))
		if !ok {
			return nil, faultf(exitProtocol, "no key for way %d of key %s", w.Way, w.Key.Name)
		}
		h, err := t.theKey(w.Key)
		if err != nil {
			return nil, err
		}
		if keys[i].Blob, err = t.wrapKey(by, h, ways[w.Way]); err != nil {
			return nil, fmt.Errorf("key %s: %w", w.Key.Name, err)
		}
	}
	return keys, c.dropKEKs()
}

// theKey finds a key and makes sure that what the store calls so is the key of that
// label here.
func (t *token) theKey(o keyObject) (pkcs11.ObjectHandle, error) {
	h, err := t.findPrivate(pin{ID: o.ID, Algorithm: o.Algorithm})
	if err != nil {
		return 0, err
	}
	as, err := t.m.GetAttributeValue(t.session, h, []*pkcs11.Attribute{attr(pkcs11.CKA_LABEL, nil)})
	if err != nil {
		return 0, classify("reading the label", err)
	}
	if string(as[0].Value) != o.label() {
		return 0, fmt.Errorf("key %x is %q on the token, not %q", o.ID, as[0].Value, o.label())
	}
	return h, nil
}

// unwrap makes the copies. A copy that an interrupted ceremony left is taken as
// it is; its proof will tell whether it is the key.
func (c *ceremony) unwrap(keys []wrappedKey) ([]bornKey, error) {
	t, err := c.as(pkcs11.CKU_USER)
	if err != nil {
		return nil, err
	}
	for _, w := range keys {
		if err := c.mayCopy(w); err != nil {
			return nil, err
		}
	}
	out, err := c.takeCopies(t, keys)
	if err != nil {
		return nil, err
	}
	return out, c.dropKEKs()
}

// takeCopies unwraps keys into the token; the user is logged in.
func (c *ceremony) takeCopies(t *token, keys []wrappedKey) ([]bornKey, error) {
	for _, w := range keys {
		if err := c.mayHold(w.Key.Purpose); err != nil {
			return nil, fmt.Errorf("key %s: %w", w.Key.Name, err)
		}
	}
	out := make([]bornKey, len(keys))
	for i, w := range keys {
		h, err := t.findPrivate(pin{ID: w.Key.ID, Algorithm: w.Key.Algorithm})
		if errors.Is(err, errAbsent) {
			h, err = c.unwrapKey(t, w)
		} else if err == nil {
			err = c.completePublic(t, w.Key)
		}
		if err != nil {
			return nil, fmt.Errorf("key %s: %w", w.Key.Name, err)
		}
		out[i] = bornKey{ID: w.Key.ID, SPKI: bytes.Clone(w.Key.SPKI)}
		if out[i].Attributes, err = t.snapshot(h); err != nil {
			return nil, err
		}
		if c.open.Weak {
			continue // the operator has accepted what the module does not have
		}
		if err := checkSnapshot(out[i].Attributes, true); err != nil {
			return nil, fmt.Errorf("key %s: %w", w.Key.Name, err)
		}
	}
	return out, nil
}

// completePublic makes the public object of a copy that an interrupted ceremony left
// without one.
func (c *ceremony) completePublic(t *token, o keyObject) error {
	pub, alg, err := parseSPKI(o.SPKI, o.Algorithm)
	if err != nil || alg.scheme == macScheme {
		return err
	}
	if _, err := t.find(pkcs11.CKO_PUBLIC_KEY, o.ID); !errors.Is(err, errAbsent) {
		return err
	}
	if c.open.Weak {
		return t.makePublic(pub, alg, o, weakPublicTemplate(o.ID, o.label()))
	}
	return t.makePublic(pub, alg, o, publicTemplate(o.ID, o.label(), o.Subject))
}

// again repeats a write for a moment: NSS answers CKR_GENERAL_ERROR while another
// process (the signing worker) reads its database.
func again(write func() error) error {
	for i := 0; ; i++ {
		err := write()
		if i == 20 || err != pkcs11.Error(pkcs11.CKR_GENERAL_ERROR) {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// copyTemplate is what a copy is unwrapped into.
func (c *ceremony) copyTemplate(alg *algorithm, id KeyID, label string, subject []byte, pub crypto.PublicKey) []*pkcs11.Attribute {
	if c.open.Weak {
		return weakCopyTemplate(id, label, pub)
	}
	return keyTemplate(alg, id, label, subject, true)
}

// unwrapKey makes the copy and its public object; the user is logged in.
func (c *ceremony) unwrapKey(t *token, w wrappedKey) (pkcs11.ObjectHandle, error) {
	o := w.Key
	pub, alg, err := parseSPKI(o.SPKI, o.Algorithm)
	if err != nil {
		return 0, err
	}
	by, err := c.opener(t, w, keyTypeOf(pub))
	if err != nil {
		return 0, err
	}
	private := append([]*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, alg.class()), attr(pkcs11.CKA_KEY_TYPE, keyTypeOf(pub))}, c.copyTemplate(alg, o.ID, o.label(), o.Subject, pub)...)
	var h pkcs11.ObjectHandle
	take := func(private []*pkcs11.Attribute) (err error) {
		h, err = t.unwrapBy(by, ways[w.Way], w.Blob, private)
		return err
	}
	if c.open.Weak {
		err = again(func() error { return take(private) })
	} else {
		err = boundToMechanism(private, alg, take)
	}
	if err != nil {
		return 0, classify("unwrapping the key", err)
	}
	if c.open.Weak {
		return h, t.makePublic(pub, alg, o, weakPublicTemplate(o.ID, o.label()))
	}
	return h, t.makePublic(pub, alg, o, publicTemplate(o.ID, o.label(), o.Subject))
}

// initToken makes a token in the first empty slot and gives it its user PIN
// (PKCS#11 §5.5, C_InitToken and C_InitPIN). A token of that label is left alone.
func (c *ceremony) initToken(q initToken) (struct{}, error) {
	var none struct{}
	m, err := loadModule(c.open.Module, c.open.Reserved)
	if err != nil {
		return none, err
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
