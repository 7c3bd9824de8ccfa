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

// A backup is the reverse KEK of replicate.go with a KEK that stays: at its designation
// the recipient's user makes one for each type of key, as token objects under an unwrap
// template. For each backup the source makes a one-time transport key, the recipient
// wraps the KEK to it, the source takes it as a trusted session object and wraps the
// keys. What is kept of that are the wrapped keys, which only the recipient can unwrap,
// and only into keys that are as strong as they were.
//
// Whoever has the recipient's user PIN could put another KEK in the place of one.
// So before each backup the KEK shows its attributes, and a throw-away key is tried
// with every attribute that the template must hold: see [ceremony.backupTest].

// Commands of a ceremony with a backup recipient.
const (
	cerBackupMake byte = 70 // makeBackupKEKs -> []BackupKEK: at the designation
	cerBackupOpen byte = 71 // openBackup -> []wrappedKEK
	cerBackupTest byte = 72 // testKey -> backupVerdict
	cerProve      byte = 73 // proveBackup -> []proofMade
	cerRestore    byte = 74 // restoreKeys -> []bornKey
)

// BackupKEK is a key of a recipient that unwraps its backups.
type BackupKEK struct {
	KeyType uint   `json:"key_type"`      // CKK_ number of the keys that it unwraps
	CKAID   []byte `json:"cka_id"`        // 16 octets
	KCV     []byte `json:"kcv,omitempty"` // CKA_CHECK_VALUE, 3 octets; none if the module shows none
}

// line is how a KEK stands in the ledger.
func (k BackupKEK) line() string {
	return fmt.Sprintf("KEK for keys of type %#x, CKA_ID %x, KCV %x", k.KeyType, k.CKAID, k.KCV)
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

type makeBackupKEKs struct {
	Recipient string `json:"recipient"`
	Types     []uint `json:"types"`
}

type openBackup struct {
	Recipient string      `json:"recipient"`
	Modulus   []byte      `json:"modulus"`
	KEKs      []BackupKEK `json:"keks"`
}

// backupVerdict is what came of a throw-away key at the recipient.
type backupVerdict struct {
	Way  int      `json:"way"`  // the first that works; -1: none
	Why  string   `json:"why"`  // of -1
	Weak []string `json:"weak"` // attributes that the unwrap template does not hold
}

type proveBackup struct {
	KEKs   []BackupKEK  `json:"keks"`
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
	KEKs     []BackupKEK  `json:"keks"`
	Keys     []wrappedKey `json:"keys"`
}

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

// makeBackupKEKs makes the KEKs of a designation. Those of an earlier one are left: they
// open earlier backups.
func (c *ceremony) makeBackupKEKs(q makeBackupKEKs) ([]BackupKEK, error) {
	if err := c.allowed(admin.BackupRecipientAct(q.Recipient, c.open.Serial)); err != nil {
		return nil, err
	}
	t, err := c.as(pkcs11.CKU_USER)
	if err != nil {
		return nil, err
	}
	var out []BackupKEK
	for _, typ := range q.Types {
		k := BackupKEK{KeyType: typ, CKAID: make([]byte, len(KeyID{}))}
		rand.Read(k.CKAID)
		template, free := backupKEKTemplate(typ, k.CKAID)
		h, err := t.m.GenerateKey(t.session, mechanism(pkcs11.CKM_AES_KEY_GEN, nil), template)
		free()
		if err != nil {
			return nil, classify("making the KEK for backups", err)
		}
		v, err := t.attributes(h, pkcs11.CKA_CHECK_VALUE)
		if err != nil {
			return nil, err
		}
		k.KCV = bytes.Clone(v[pkcs11.CKA_CHECK_VALUE])
		out = append(out, k)
	}
	return out, c.findKEKs(t, out)
}

// findKEKs finds the KEKs of a recipient and holds each against what it must be.
func (c *ceremony) findKEKs(t *token, keks []BackupKEK) error {
	for _, k := range keks {
		h, err := t.findOne([]*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attr(pkcs11.CKA_ID, k.CKAID)}, fmt.Sprintf("CKA_ID %x, the KEK of a backup", k.CKAID))
		if err != nil {
			return err
		}
		if err := t.checkKEK(h, k); err != nil {
			return fmt.Errorf("KEK with CKA_ID %x is not the one of the designation: %w; designate the recipient anew", k.CKAID, err)
		}
		c.keks[k.KeyType] = h
	}
	return nil
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

// mayBackUp holds the grant for giving a KEK out: a backup to this recipient, or a birth
// or import, which covers the key's backups.
func (c *ceremony) mayBackUp(recipient string) error {
	births := []string{firstWord(admin.GenerateKeyAct("", "", "", nil)), firstWord(admin.ImportKeyAct("", "", "", nil, [32]byte{}))}
	for _, act := range c.open.Acts {
		if act == admin.BackupAct(recipient) || slices.Contains(births, firstWord(act)) {
			return nil
		}
	}
	return fmt.Errorf("%w: a backup to %s is not on the grant of this ceremony", admin.ErrNotGranted, recipient)
}

func firstWord(act string) string {
	w, _, _ := strings.Cut(act, " ")
	return w
}

// openBackup wraps the KEKs to the source's transport key.
func (c *ceremony) openBackup(q openBackup) (out []wrappedKEK, err error) {
	if err := c.mayBackUp(q.Recipient); err != nil {
		return nil, err
	}
	t, err := c.as(pkcs11.CKU_SO)
	if err != nil {
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
	if err := c.findKEKs(t, q.KEKs); err != nil {
		return nil, err
	}
	for _, k := range q.KEKs {
		blob, err := t.m.WrapKey(t.session, oaep(), transport, c.keks[k.KeyType])
		if err != nil {
			return nil, classify("wrapping the KEK", err)
		}
		out = append(out, wrappedKEK{k.KeyType, blob})
	}
	return out, nil
}

// weaker are the templates that a recipient's KEK must refuse: each is what would give
// a key away, or a way to it.
func weaker(keyType uint) map[string][]*pkcs11.Attribute {
	class, typ := attr(pkcs11.CKA_CLASS, classOf(keyType)), attr(pkcs11.CKA_KEY_TYPE, keyType)
	base := []*pkcs11.Attribute{class, typ, attr(pkcs11.CKA_TOKEN, false), attr(pkcs11.CKA_PRIVATE, true), attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, true),
		attr(pkcs11.CKA_WRAP_WITH_TRUSTED, true), attr(pkcs11.CKA_DECRYPT, false), attr(pkcs11.CKA_UNWRAP, false), attr(pkcs11.CKA_DERIVE, false)}
	out := map[string][]*pkcs11.Attribute{}
	for name, a := range map[string]*pkcs11.Attribute{"SENSITIVE": attr(pkcs11.CKA_SENSITIVE, false), "PRIVATE": attr(pkcs11.CKA_PRIVATE, false), "WRAP_WITH_TRUSTED": attr(pkcs11.CKA_WRAP_WITH_TRUSTED, false),
		"DECRYPT": attr(pkcs11.CKA_DECRYPT, true), "UNWRAP": attr(pkcs11.CKA_UNWRAP, true), "DERIVE": attr(pkcs11.CKA_DERIVE, true), "CLASS": attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY)} {
		t := slices.Clone(base)
		for i := range t {
			if t[i].Type == a.Type {
				t[i] = a
			}
		}
		if name == "CLASS" {
			t[1] = attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET)
		}
		out[name] = t
	}
	return out
}

// holds tells which attributes of the unwrap template a KEK does not hold, by name.
func (t *token) holds(by pkcs11.ObjectHandle, w way, blob []byte, keyType uint) (weak []string) {
	for name, template := range weaker(keyType) {
		h, err := t.unwrapBy(by, w, blob, template)
		if err == nil {
			_ = t.m.DestroyObject(t.session, h)
			weak = append(weak, name)
		}
	}
	slices.Sort(weak)
	return weak
}

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
	v.Weak = c.tok.holds(c.keks[keyTypeOf(pub)], ways[v.Way], q.Blobs[v.Way], keyTypeOf(pub))
	return v, nil
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
	if err := c.findKEKs(t, q.KEKs); err != nil {
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
	by, ok := c.travels(w.Way, keyTypeOf(pub))
	if !ok || ways[w.Way].hop != nil {
		return nil, nil, fmt.Errorf("the recipient has no KEK for way %d of keys of type %#x", w.Way, keyTypeOf(pub))
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
	return sig, t.holds(by, ways[w.Way], w.Blob, keyTypeOf(pub)), nil
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
	if err := c.findKEKs(t, q.KEKs); err != nil {
		return nil, err
	}
	for _, w := range q.Keys {
		if w.Way < 0 || w.Way >= len(ways) || ways[w.Way].hop != nil {
			return nil, faultf(exitProtocol, "no backup is wrapped by way %d", w.Way)
		}
	}
	return c.takeCopies(t, q.Keys)
}
