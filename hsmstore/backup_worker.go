package hsmstore

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"chancery/admin"
	"chancery/audit"

	"github.com/miekg/pkcs11"
)

// A backup is the reverse KEK of replicate.go with a KEK that stays: in each ceremony
// the recipient's user makes a new one for each type of key, as token objects under an
// unwrap template. The source makes a one-time transport key, the recipient wraps the KEK
// to it, the source takes it as a trusted session object and wraps the keys. What is
// kept of that are the wrapped keys, which only the recipient can unwrap, and only into
// keys that are as strong as they were.
//
// Nothing is ever wrapped to a KEK that was found on the token: whoever has the
// recipient's user PIN could have made it, with a copy that decrypts. And before the
// keys a throw-away key is tried with every attribute that the template must hold:
// see [ceremony.backupTest].

// Commands of a ceremony with a backup recipient.
const (
	cerBackupFind  byte = 70 // []BackupKEK -> nothing: they are there
	cerBackupOpen  byte = 71 // openBackup -> []madeKEK
	cerBackupTest  byte = 72 // testKey -> backupVerdict
	cerProve       byte = 73 // proveBackup -> []proofMade
	cerRestore     byte = 74 // restoreKeys -> []bornKey
	cerRestoreMark byte = 76 // restoreMark -> nothing: at the end of a restore
	cerBackupDrop  byte = 75 // nothing -> nothing: the KEKs that were made here are not needed
)

// BackupKEK is a key of a recipient that unwraps some of its backups.
type BackupKEK struct {
	KeyType uint   `json:"key_type"`      // CKK_ number of the keys that it unwraps
	CKAID   []byte `json:"cka_id"`        // 16 octets
	KCV     []byte `json:"kcv,omitempty"` // CKA_CHECK_VALUE, 3 octets; none if the module shows none
}

const backupLabel = "chancery:backup-kek:"

// backupTypes are the types of keys that are backed up.
var backupTypes = []uint{pkcs11.CKK_EC, pkcs11.CKK_RSA, pkcs11.CKK_AES}

func backupKEKLabel(keyType uint) string {
	switch keyType {
	case pkcs11.CKK_RSA:
		return backupLabel + "RSA"
	case pkcs11.CKK_AES:
		return backupLabel + "AES"
	}
	return backupLabel + "EC"
}

type openBackup struct {
	Recipient string `json:"recipient"`
	Modulus   []byte `json:"modulus"` // of the source's transport key
	Types     []uint `json:"types"`   // CKK_ numbers of the keys that will come
}

// madeKEK is a new KEK, wrapped to the source.
type madeKEK struct {
	BackupKEK
	Blob []byte `json:"blob"`
}

// backupVerdict is what came of a throw-away key at the recipient.
type backupVerdict struct {
	Way  int      `json:"way"`  // the first that works; -1: none
	Why  string   `json:"why"`  // of -1
	Weak []string `json:"weak"` // attributes that the unwrap template does not hold
}

type proveBackup struct {
	Ledger string       `json:"ledger"` // hex; stands in the challenge
	Keys   []wrappedKey `json:"keys"`
	Nonces [][]byte     `json:"nonces"` // 32 octets, of each challenge
}

// proofMade is what came of one wrapped key.
type proofMade struct {
	Signature []byte        `json:"signature,omitempty"`
	Why       string        `json:"why,omitempty"`  // there is no signature
	Weak      []string      `json:"weak,omitempty"` // it came out weaker than it went in
	Took      time.Duration `json:"took"`
}

type restoreKeys struct {
	Manifest string       `json:"manifest"` // hex of its SHA-256
	Keys     []wrappedKey `json:"keys"`
}

// restoreMark is what a token keeps of a restore that came to its end.
type restoreMark struct {
	Manifest string `json:"manifest"` // hex of its SHA-256
	Ledger   string `json:"ledger"`   // hex of the id of the new ledger
}

// restoredLabel is that of the data objects in which a token keeps which warrants it has
// served: hex of the warrant's nonce, a space, hex of the ledger's id.
const restoredLabel = "chancery:restored"

// backupKEKTemplate is kekTemplate as an object of the token.
func backupKEKTemplate(keyType uint, id []byte) (t []*pkcs11.Attribute, free func()) {
	base, free := kekTemplate(keyType)
	t = []*pkcs11.Attribute{attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_LABEL, backupKEKLabel(keyType)), attr(pkcs11.CKA_ID, id), attr(pkcs11.CKA_DERIVE, false)}
	for _, a := range base {
		if a.Type != pkcs11.CKA_TOKEN {
			t = append(t, a)
		}
	}
	return t, free
}

// newBackupKEK makes a KEK; the user is logged in.
func (t *token) newBackupKEK(keyType uint) (k BackupKEK, h pkcs11.ObjectHandle, err error) {
	k = BackupKEK{KeyType: keyType, CKAID: make([]byte, len(KeyID{}))}
	rand.Read(k.CKAID)
	template, free := backupKEKTemplate(keyType, k.CKAID)
	defer free()
	if h, err = t.m.GenerateKey(t.session, mechanism(pkcs11.CKM_AES_KEY_GEN, nil), template); err != nil {
		return k, 0, classify("making the KEK for a backup", err)
	}
	v, err := t.attributes(h, pkcs11.CKA_CHECK_VALUE)
	if err != nil {
		return k, h, err
	}
	k.KCV = bytes.Clone(v[pkcs11.CKA_CHECK_VALUE])
	return k, h, t.checkKEK(h, k)
}

// findKEK finds the KEK of a backup and holds it against what it must be.
func (t *token) findKEK(k BackupKEK) (pkcs11.ObjectHandle, error) {
	h, err := t.findOne([]*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attr(pkcs11.CKA_ID, k.CKAID)}, fmt.Sprintf("CKA_ID %x, the KEK of a backup", k.CKAID))
	if err != nil {
		return 0, err
	}
	if err := t.checkKEK(h, k); err != nil {
		return 0, fmt.Errorf("KEK with CKA_ID %x is not the one of the backup: %w; somebody with the PIN has exchanged it", k.CKAID, err)
	}
	return h, nil
}

// findKEKs logs the user in and finds KEKs, before anything is promised.
func (c *ceremony) findKEKs(q []BackupKEK) (none struct{}, err error) {
	t, err := c.as(pkcs11.CKU_USER)
	if err != nil {
		return none, err
	}
	for _, k := range q {
		if _, err := t.findKEK(k); err != nil {
			return none, err
		}
	}
	return none, nil
}

// opener is the key that unwraps what comes: the KEK of a backup, or what travels made.
func (c *ceremony) opener(t *token, w wrappedKey, keyType uint) (pkcs11.ObjectHandle, error) {
	if w.KEK == nil {
		h, ok := c.travels(w.Way, keyType)
		if !ok {
			return 0, faultf(exitProtocol, "no key for way %d of key %s", w.Way, w.Key.Name)
		}
		return h, nil
	}
	if w.Way < 0 || w.Way >= len(ways) || ways[w.Way].hop != nil || w.KEK.KeyType != keyType {
		return 0, faultf(exitProtocol, "no backup of a key of type %#x is wrapped by way %d to a KEK for type %#x", keyType, w.Way, w.KEK.KeyType)
	}
	return t.findKEK(*w.KEK)
}

// checkKEK holds a KEK against what makes it safe. Its unwrap template shows only by
// what it refuses.
func (t *token) checkKEK(h pkcs11.ObjectHandle, k BackupKEK) error {
	v, err := t.attributes(h, pkcs11.CKA_LABEL, pkcs11.CKA_CHECK_VALUE, pkcs11.CKA_TOKEN, pkcs11.CKA_PRIVATE, pkcs11.CKA_SENSITIVE, pkcs11.CKA_ALWAYS_SENSITIVE, pkcs11.CKA_LOCAL,
		pkcs11.CKA_WRAP_WITH_TRUSTED, pkcs11.CKA_UNWRAP, pkcs11.CKA_WRAP, pkcs11.CKA_DECRYPT, pkcs11.CKA_ENCRYPT, pkcs11.CKA_DERIVE, pkcs11.CKA_MODIFIABLE)
	if err != nil {
		return err
	}
	if label := string(v[pkcs11.CKA_LABEL]); label != backupKEKLabel(k.KeyType) {
		return fmt.Errorf("its label is %q", label)
	}
	if !bytes.Equal(v[pkcs11.CKA_CHECK_VALUE], k.KCV) {
		return fmt.Errorf("its check value is %x, not %x", v[pkcs11.CKA_CHECK_VALUE], k.KCV)
	}
	for what, want := range map[string][]uint{
		"true":  {pkcs11.CKA_TOKEN, pkcs11.CKA_PRIVATE, pkcs11.CKA_SENSITIVE, pkcs11.CKA_ALWAYS_SENSITIVE, pkcs11.CKA_LOCAL, pkcs11.CKA_WRAP_WITH_TRUSTED, pkcs11.CKA_UNWRAP},
		"false": {pkcs11.CKA_WRAP, pkcs11.CKA_DECRYPT, pkcs11.CKA_ENCRYPT, pkcs11.CKA_DERIVE, pkcs11.CKA_MODIFIABLE},
	} {
		for _, a := range want {
			if got := snapshotLine("", v[a]); got != "="+what {
				return fmt.Errorf("attribute %#x is not %s", a, what)
			}
		}
	}
	return nil
}

// mayBackUp holds the grant for making KEKs: a backup to this token, its designation,
// which tries one, or a birth or import, which covers the key's backups. What the KEKs are
// made for comes out of the source only by its own grant.
func (c *ceremony) mayBackUp(recipient string) error {
	births := []string{firstWord(admin.GenerateKeyAct("", "", "", nil)), firstWord(admin.ImportKeyAct("", "", "", nil, [32]byte{}))}
	for _, act := range c.open.Acts {
		if act == admin.BackupAct(recipient, c.serial) || act == admin.BackupRecipientAct(recipient, c.serial) || slices.Contains(births, firstWord(act)) {
			return nil
		}
	}
	return fmt.Errorf("%w: a backup to %s, token %s, is not on the grant of this ceremony", admin.ErrNotGranted, recipient, c.serial)
}

func firstWord(act string) string {
	w, _, _ := strings.Cut(act, " ")
	return w
}

// openBackup makes the KEKs of this ceremony and wraps them to the source's transport key.
func (c *ceremony) openBackup(q openBackup) (out []madeKEK, err error) {
	t, err := c.as(pkcs11.CKU_SO)
	if err != nil {
		return nil, err
	}
	if err := c.mayBackUp(q.Recipient); err != nil {
		return nil, err
	}
	transport, err := t.importTransport(q.Modulus)
	if err != nil {
		return nil, err
	}
	if t, err = c.as(pkcs11.CKU_USER); err != nil {
		return nil, err
	}
	// Trusted keys can stay no longer than they are needed: whoever has the user PIN
	// could wrap to it while it lives.
	defer t.m.DestroyObject(t.session, transport)
	for _, typ := range q.Types {
		k, h, err := t.newBackupKEK(typ)
		if h != 0 {
			c.made = append(c.made, h)
		}
		if err != nil {
			return nil, err
		}
		c.keks[typ] = h
		blob, err := t.m.WrapKey(t.session, oaep(), transport, h)
		if err != nil {
			return nil, classify("wrapping the KEK", err)
		}
		out = append(out, madeKEK{k, blob})
	}
	return out, nil
}

// dropBackupKEKs destroys what openBackup has made.
func (c *ceremony) dropBackupKEKs(struct{}) (none struct{}, err error) {
	t, err := c.as(pkcs11.CKU_USER)
	if err != nil {
		return none, err
	}
	for _, h := range c.made {
		if err := t.m.DestroyObject(t.session, h); err != nil {
			return none, classify("destroying the KEK", err)
		}
	}
	c.made = nil
	clear(c.keks)
	return none, nil
}

// copyAttributes are those of a copy as a KEK must make it.
func copyAttributes(keyType uint) []*pkcs11.Attribute {
	return append(unwrapsInto(keyType), attr(pkcs11.CKA_TOKEN, false), attr(pkcs11.CKA_EXTRACTABLE, true))
}

// weaker are the templates that a recipient's KEK must refuse: each is what would give
// a key away, or a way to it. bare are those that say nothing about one attribute, which
// the KEK must then refuse, or add.
func weaker(keyType uint) (refused, bare map[string][]*pkcs11.Attribute) {
	refused, bare = map[string][]*pkcs11.Attribute{}, map[string][]*pkcs11.Attribute{}
	base := copyAttributes(keyType)
	other := uint(pkcs11.CKO_SECRET_KEY)
	if keyType == pkcs11.CKK_AES {
		other = pkcs11.CKO_PRIVATE_KEY
	}
	bad := map[string]*pkcs11.Attribute{"SENSITIVE": attr(pkcs11.CKA_SENSITIVE, false), "PRIVATE": attr(pkcs11.CKA_PRIVATE, false), "WRAP_WITH_TRUSTED": attr(pkcs11.CKA_WRAP_WITH_TRUSTED, false),
		"DECRYPT": attr(pkcs11.CKA_DECRYPT, true), "UNWRAP": attr(pkcs11.CKA_UNWRAP, true), "DERIVE": attr(pkcs11.CKA_DERIVE, true), "CLASS": attr(pkcs11.CKA_CLASS, other)}
	if keyType == pkcs11.CKK_AES {
		bad["ENCRYPT"], bad["WRAP"] = attr(pkcs11.CKA_ENCRYPT, true), attr(pkcs11.CKA_WRAP, true)
	}
	for name, a := range bad {
		t := slices.Clone(base)
		at := slices.IndexFunc(t, func(b *pkcs11.Attribute) bool { return b.Type == a.Type })
		t[at] = a
		if name == "CLASS" {
			t[1] = attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET)
		} else {
			bare[name] = slices.Delete(slices.Clone(base), at, at+1)
		}
		refused[name] = t
	}
	return refused, bare
}

// refusals are the answers that say that a template was refused. Any other says nothing.
var refusals = []pkcs11.Error{pkcs11.CKR_TEMPLATE_INCONSISTENT, pkcs11.CKR_TEMPLATE_INCOMPLETE, pkcs11.CKR_ATTRIBUTE_VALUE_INVALID, pkcs11.CKR_ATTRIBUTE_READ_ONLY,
	pkcs11.CKR_WRAPPED_KEY_INVALID, pkcs11.CKR_WRAPPED_KEY_LEN_RANGE, pkcs11.CKR_KEY_TYPE_INCONSISTENT}

// holds tells which attributes of the unwrap template a KEK does not hold, by name. That
// the key comes as it should, by the same call, is tried first.
func (t *token) holds(by pkcs11.ObjectHandle, w way, blob []byte, keyType uint) (weak []string, err error) {
	h, err := t.unwrapBy(by, w, blob, copyAttributes(keyType))
	if err != nil {
		return nil, classify("unwrapping the key as it should be", err)
	}
	_ = t.m.DestroyObject(t.session, h)
	refused, bare := weaker(keyType)
	for name, template := range refused {
		h, err := t.unwrapBy(by, w, blob, template)
		switch rv, is := err.(pkcs11.Error); {
		case err == nil:
			_ = t.m.DestroyObject(t.session, h)
			weak = append(weak, name)
		case !is || !slices.Contains(refusals, rv):
			return nil, classify("unwrapping the key with another "+name, err)
		}
	}
	for name, template := range bare {
		h, err := t.unwrapBy(by, w, blob, template)
		if err != nil {
			if rv, is := err.(pkcs11.Error); !is || !slices.Contains(refusals, rv) {
				return nil, classify("unwrapping the key without "+name, err)
			}
			continue
		}
		want := slices.IndexFunc(copyAttributes(keyType), func(a *pkcs11.Attribute) bool { return attributeNames[a.Type] == name })
		v, err := t.attributes(h, copyAttributes(keyType)[want].Type)
		_ = t.m.DestroyObject(t.session, h)
		if err != nil {
			return nil, err
		}
		if a := copyAttributes(keyType)[want]; !bytes.Equal(v[a.Type], a.Value) {
			weak = append(weak, name)
		}
	}
	slices.Sort(weak)
	return slices.Compact(weak), nil
}

// attributeNames are those that [weaker] is about.
var attributeNames = map[uint]string{pkcs11.CKA_SENSITIVE: "SENSITIVE", pkcs11.CKA_PRIVATE: "PRIVATE", pkcs11.CKA_WRAP_WITH_TRUSTED: "WRAP_WITH_TRUSTED", pkcs11.CKA_DECRYPT: "DECRYPT",
	pkcs11.CKA_UNWRAP: "UNWRAP", pkcs11.CKA_DERIVE: "DERIVE", pkcs11.CKA_ENCRYPT: "ENCRYPT", pkcs11.CKA_WRAP: "WRAP"}

// backupTest takes a throw-away key and then tries it weaker.
func (c *ceremony) backupTest(q testKey) (v backupVerdict, err error) {
	first, err := c.unwrapTest(q)
	v.Way, v.Why = first.Way, first.Why
	if err != nil || v.Way < 0 {
		return v, err
	}
	pub, _, err := parseSPKI(q.SPKI, q.Algorithm)
	if err != nil {
		return v, err
	}
	v.Weak, err = c.tok.holds(c.keks[keyTypeOf(pub)], ways[v.Way], q.Blobs[v.Way], keyTypeOf(pub))
	return v, err
}

// proveBackup lets each wrapped key prove that it is the key: as a session object, under
// the template of all our keys, it signs one key-proof text (ENCODINGS), which it makes up
// itself but for the nonce; then it is destroyed. And it must not come out weaker.
func (c *ceremony) proveBackup(q proveBackup) ([]proofMade, error) {
	ledger, err := hex.DecodeString(q.Ledger)
	if err != nil || len(ledger) != len(audit.LedgerID{}) || len(q.Nonces) != len(q.Keys) {
		return nil, faultf(exitProtocol, "proof of a backup is malformed")
	}
	t, err := c.as(pkcs11.CKU_USER)
	if err != nil {
		return nil, err
	}
	out := make([]proofMade, len(q.Keys))
	for i, w := range q.Keys {
		begun := time.Now()
		p := &out[i]
		if len(q.Nonces[i]) != 32 {
			return nil, faultf(exitProtocol, "proof of key %s: nonce of %d octets", w.Key.Name, len(q.Nonces[i]))
		}
		pub, alg, err := parseSPKI(w.Key.SPKI, w.Key.Algorithm)
		if err != nil {
			p.Why = err.Error()
			continue
		}
		text := proofText(audit.LedgerID(ledger), sha256.Sum256(w.Key.SPKI), c.serial, [32]byte(q.Nonces[i]))
		if p.Signature, p.Weak, err = c.proveWrapped(t, w, pub, alg, text); err != nil {
			p.Why = err.Error()
		}
		p.Took = time.Since(begun)
	}
	return out, nil
}

func (c *ceremony) proveWrapped(t *token, w wrappedKey, pub crypto.PublicKey, alg *algorithm, text []byte) (sig []byte, weak []string, err error) {
	if w.KEK == nil {
		return nil, nil, fmt.Errorf("the backup names no KEK")
	}
	by, err := c.opener(t, w, keyTypeOf(pub))
	if err != nil {
		return nil, nil, err
	}
	template := append([]*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, alg.class()), attr(pkcs11.CKA_KEY_TYPE, keyTypeOf(pub))},
		sessionObject(keyTemplate(alg, w.Key.ID, w.Key.label(), w.Key.Subject, true))...)
	h, err := t.unwrapBy(by, ways[w.Way], w.Blob, template)
	if err != nil {
		return nil, nil, classify("unwrapping the key", err)
	}
	defer t.m.DestroyObject(t.session, h)
	sig, err = t.sign(t.session, &workerKey{handle: h, alg: alg, mech: alg.mechanism()}, alg.digest(text))
	if err == nil {
		sig, err = alg.output(sig)
	}
	if err != nil {
		return nil, nil, err
	}
	if !alg.verify(pub, alg.digest(text), sig) {
		return nil, nil, fmt.Errorf("what was unwrapped is another key")
	}
	weak, err = t.holds(by, ways[w.Way], w.Blob, keyTypeOf(pub))
	return sig, weak, err
}

// restoreKeys makes the keys of a backup objects of the token. A key that an interrupted
// restore left is taken as it is; its proof will tell whether it is the key.
func (c *ceremony) restoreKeys(q restoreKeys) ([]bornKey, error) {
	manifest, err := hex.DecodeString(q.Manifest)
	if err != nil || len(manifest) != 32 {
		return nil, faultf(exitProtocol, "restore is malformed")
	}
	if err := c.allowed(admin.RestoreAct([32]byte(manifest))); err != nil {
		return nil, err
	}
	t, err := c.as(pkcs11.CKU_USER)
	if err != nil {
		return nil, err
	}
	for _, w := range q.Keys {
		if w.KEK == nil {
			return nil, faultf(exitProtocol, "the backup of key %s names no KEK", w.Key.Name)
		}
	}
	if err := c.unusedWarrant(t); err != nil {
		return nil, err
	}
	return c.takeCopies(t, q.Keys)
}

// warrantNonce is hex of the nonce of the ceremony's warrant.
func (c *ceremony) warrantNonce() (string, error) {
	if c.open.Warrant == nil {
		return "", faultf(exitGrant, "%w: a restore needs the officers' warrant", admin.ErrNotGranted)
	}
	p, err := admin.DecodeProposal(c.open.Warrant.Proposal)
	return hex.EncodeToString(p.Nonce[:]), err
}

// unusedWarrant refuses a warrant that has restored a ledger from this token already. A
// restore that was cut short leaves no mark. Modules without data objects have none.
func (c *ceremony) unusedWarrant(t *token) error {
	nonce, err := c.warrantNonce()
	if err != nil {
		return err
	}
	hs, err := t.findEvery([]*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, pkcs11.CKO_DATA), attr(pkcs11.CKA_LABEL, restoredLabel)})
	if rv, is := returnCode(err); is && slices.Contains([]pkcs11.Error{pkcs11.CKR_ATTRIBUTE_VALUE_INVALID, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID, pkcs11.CKR_TEMPLATE_INCONSISTENT, pkcs11.CKR_FUNCTION_NOT_SUPPORTED}, rv) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, h := range hs {
		v, err := t.attributes(h, pkcs11.CKA_VALUE)
		if err != nil {
			return err
		}
		if was, ledger, _ := strings.Cut(string(v[pkcs11.CKA_VALUE]), " "); was == nonce {
			return faultf(exitGrant, "%w: this warrant has restored ledger %s; ask the officers for another", admin.ErrNotGranted, audit.Text(ledger, 64))
		}
	}
	return nil
}

// markRestored has the token keep that the warrant was used.
func (c *ceremony) markRestored(q restoreMark) (none struct{}, err error) {
	manifest, err := hex.DecodeString(q.Manifest)
	if err != nil || len(manifest) != 32 {
		return none, faultf(exitProtocol, "restore is malformed")
	}
	if err := c.allowed(admin.RestoreAct([32]byte(manifest))); err != nil {
		return none, err
	}
	nonce, err := c.warrantNonce()
	if err != nil {
		return none, err
	}
	t, err := c.as(pkcs11.CKU_USER)
	if err != nil {
		return none, err
	}
	_, err = t.m.CreateObject(t.session, []*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, pkcs11.CKO_DATA), attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_PRIVATE, true), attr(pkcs11.CKA_APPLICATION, "chancery"),
		attr(pkcs11.CKA_LABEL, restoredLabel), attr(pkcs11.CKA_VALUE, nonce+" "+q.Ledger), attr(pkcs11.CKA_MODIFIABLE, false)})
	if err != nil {
		return none, classify("keeping that the warrant was used", err)
	}
	return none, nil
}
