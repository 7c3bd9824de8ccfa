package hsmstore

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/asn1"
	"errors"
	"fmt"
	"regexp"

	"chancery/audit"

	"github.com/miekg/pkcs11"
)

// A symmetric key of the cluster is an AES-256 key that makes CMACs (NIST SP 800-38B)
// and does nothing else: it neither encrypts nor wraps, so that nobody who has a PIN can
// turn it against other keys. Secrets of the server come from it: see [Key.Secret].
//
// It has no public half. In the place of one it has its check value, the CMAC of a fixed
// text, which is pinned at its birth. Each CMAC comes with the check value made by the
// same object, so that another key's is noticed: "signature" = CMAC(message) ‖ check value.

// algAES is the one symmetric algorithm.
const algAES = "AES-256"

// ckmAESCMAC is CKM_AES_CMAC (PKCS#11 v2.40 §2.12.5).
const ckmAESCMAC = pkcs11.CKM_AES_CMAC

// macSize is that of a CMAC, in octets.
const macSize = 16

// checkText is what the check value is the CMAC of.
var checkText = []byte("chancery/key-check/v1\n")

// checkValue stands where others have a public key. It gives nothing of the key away.
type checkValue [macSize]byte

// Equal is that of the standard library's public keys.
func (v checkValue) Equal(o crypto.PublicKey) bool { w, ok := o.(checkValue); return ok && v == w }

// oidAES is NIST's arc of AES; it has no OID of its own for CMAC keys (CSOR 2.16.840.1.101.3.4.1).
var oidAES = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1}

// identAES stands in the ledger as the AlgorithmIdentifier of CMACs.
var identAES = mustHex("300a06086086480165030401")

// checkInfo has the shape of a SubjectPublicKeyInfo (RFC 5280 §4.1.2.7).
type checkInfo struct {
	Algorithm struct{ OID asn1.ObjectIdentifier }
	Value     asn1.BitString
}

func (v checkValue) marshal() []byte {
	info := checkInfo{Value: asn1.BitString{Bytes: v[:], BitLength: 8 * macSize}}
	info.Algorithm.OID = oidAES
	b, err := asn1.Marshal(info)
	if err != nil {
		panic("hsmstore: a check value without an encoding: " + err.Error())
	}
	return b
}

func parseCheckValue(b []byte) (checkValue, error) {
	var info checkInfo
	rest, err := asn1.Unmarshal(b, &info)
	if err != nil || len(rest) > 0 || !info.Algorithm.OID.Equal(oidAES) || info.Value.BitLength != 8*macSize {
		return checkValue{}, errors.New("it is no check value of an AES key")
	}
	v := checkValue(info.Value.Bytes)
	if !bytes.Equal(v.marshal(), b) {
		return checkValue{}, errors.New("check value is not in its DER encoding")
	}
	return v, nil
}

// CheckInfo is what an AES-256 key has in the place of a public key, from its check value:
// the CMAC under the key of "chancery/key-check/v1\n". Who imports a key needs it.
func CheckInfo(value [16]byte) []byte { return checkValue(value).marshal() }

// verifyMAC tells whether a CMAC was made by the key of the check value.
func (v checkValue) verifyMAC(sig []byte) bool {
	return len(sig) == 2*macSize && subtle.ConstantTimeCompare(sig[macSize:], v[:]) == 1
}

// secretTemplate is that of an AES key of the cluster; compare privateTemplate.
func secretTemplate(id KeyID, label string, replicable bool) []*pkcs11.Attribute {
	return []*pkcs11.Attribute{
		attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_PRIVATE, true), attr(pkcs11.CKA_SENSITIVE, true),
		attr(pkcs11.CKA_EXTRACTABLE, replicable), attr(pkcs11.CKA_WRAP_WITH_TRUSTED, true),
		attr(pkcs11.CKA_SIGN, true), attr(pkcs11.CKA_VERIFY, false), attr(pkcs11.CKA_ENCRYPT, false), attr(pkcs11.CKA_DECRYPT, false),
		attr(pkcs11.CKA_WRAP, false), attr(pkcs11.CKA_UNWRAP, false), attr(pkcs11.CKA_DERIVE, false),
		attr(pkcs11.CKA_ID, id[:]), attr(pkcs11.CKA_LABEL, label), attr(pkcs11.CKA_MODIFIABLE, false),
	}
}

// keyTemplate is the template of a key of any algorithm.
func keyTemplate(alg *algorithm, id KeyID, label string, subject []byte, replicable bool) []*pkcs11.Attribute {
	if alg.scheme == macScheme {
		return secretTemplate(id, label, replicable)
	}
	return privateTemplate(id, label, subject, replicable)
}

// class is the class of the object that signs (PKCS#11 §4.4).
func (a *algorithm) class() uint {
	if a.scheme == macScheme {
		return pkcs11.CKO_SECRET_KEY
	}
	return pkcs11.CKO_PRIVATE_KEY
}

// class of the object that a pin means; a pin without an algorithm means a private key.
func (p pin) class() uint {
	if p.Algorithm == algAES {
		return pkcs11.CKO_SECRET_KEY
	}
	return pkcs11.CKO_PRIVATE_KEY
}

// bearSecret makes an AES key.
func (t *token) bearSecret(o keyObject, alg *algorithm) (bornKey, error) {
	var h pkcs11.ObjectHandle
	err := boundToMechanism(secretTemplate(o.ID, o.label(), o.Replicable), alg, func(template []*pkcs11.Attribute) (err error) {
		h, err = t.generateSecret(template)
		return err
	})
	if err != nil {
		return bornKey{}, classify("making the key", err)
	}
	born := bornKey{ID: o.ID}
	v, err := t.checkValueOf(h)
	if err == nil {
		born.SPKI = v.marshal()
		born.Attributes, err = t.snapshot(h)
	}
	if err == nil {
		err = errors.Join(checkSnapshot(born.Attributes, o.Replicable), t.onlyMAC(h, alg))
	}
	if err != nil {
		_ = t.m.DestroyObject(t.session, h)
		return bornKey{}, fmt.Errorf("reading the new key: %w", err)
	}
	return born, nil
}

// onlyMAC refuses an AES key that also encrypts or wraps, whatever its template asked for.
// Other keys pass: they have neither.
func (t *token) onlyMAC(h pkcs11.ObjectHandle, alg *algorithm) error {
	if alg.scheme != macScheme {
		return nil
	}
	v, err := t.attributes(h, pkcs11.CKA_ENCRYPT, pkcs11.CKA_WRAP)
	if err != nil {
		return err
	}
	for a, value := range v {
		if len(value) != 1 || value[0] != 0 {
			return fmt.Errorf("attributes on the token are too weak: %s=true", attributeNames[a])
		}
	}
	return nil
}

// generateSecret makes an AES-256 key; CKA_VALUE_LEN goes before the last attribute.
func (t *token) generateSecret(template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	last := len(template) - 1
	whole := append(append(append([]*pkcs11.Attribute{}, template[:last]...), attr(pkcs11.CKA_VALUE_LEN, 32)), template[last])
	return t.m.GenerateKey(t.session, mechanism(pkcs11.CKM_AES_KEY_GEN, nil), whole)
}

// checkValueOf lets a key make its check value.
func (t *token) checkValueOf(h pkcs11.ObjectHandle) (v checkValue, err error) {
	if err := t.m.SignInit(t.session, mechanism(ckmAESCMAC, nil), h); err != nil {
		return v, classify("C_SignInit", err)
	}
	mac, err := t.m.Sign(t.session, checkText)
	if err != nil {
		return v, classify("C_Sign", err)
	}
	if len(mac) != macSize {
		return v, fmt.Errorf("a CMAC of %d octets, %d expected", len(mac), macSize)
	}
	return checkValue(mac), nil
}

// publicOf is publicKey, for AES keys the check value.
func (t *token) publicOf(h pkcs11.ObjectHandle, alg *algorithm) (crypto.PublicKey, error) {
	if alg.scheme == macScheme {
		return t.checkValueOf(h)
	}
	return t.publicKey(h)
}

const secretMagic = "chancery/secret/v1\n"

var secretLabel = regexp.MustCompile(`^[a-z0-9][a-z0-9./_-]{0,99}$`)

// secretText is what a secret comes from: one half each of counter 1 and 2 (the counter
// mode of NIST SP 800-108r1 §4.1, with its fields in text).
func secretText(label string, counter int) []byte {
	return fmt.Appendf(nil, "%s%d\n%s\n256\n", secretMagic, counter, label)
}

// parseSecret is the only frame that keys of purpose secret take, but for key proofs.
func parseSecret(_ *binding, message []byte) (parsed, error) {
	lines := bytes.Split(message, []byte("\n"))
	if len(lines) == 5 && secretLabel.Match(lines[2]) {
		for counter := 1; counter <= 2; counter++ {
			if bytes.Equal(message, secretText(string(lines[2]), counter)) {
				return parsed{kind: kindSecret}, nil
			}
		}
	}
	return parsed{}, fmt.Errorf("the text of a secret is expected: %q, the counter 1 or 2, a label, 256, each on a line", secretMagic)
}

// Secret derives 32 octets from a key of purpose secret, always the same for one label
// (1 to 100 of a-z, 0-9, '.', '/', '_', '-'): keys for what the server seals, which then
// stand in no file and in no database. Both uses of the key are on the ledger.
//
// Errors: those of [Key.Begin] and [Operation.SignMessage].
func (k *Key) Secret(ctx context.Context, label, requester string) (secret [32]byte, err error) {
	if k.purpose != audit.PurposeSecret || !secretLabel.MatchString(label) {
		return secret, fmt.Errorf("%w: key %q of purpose %s gives no secret for label %q; a key of purpose secret and a label of a-z, 0-9, '.', '/', '_', '-' are needed", ErrRefused, k.name, k.purpose, label)
	}
	for half := range 2 {
		text := secretText(label, half+1)
		op, err := k.Begin(ctx, SignRequest{Op: audit.OpSecret, Message: text, Requester: requester})
		if err != nil {
			return secret, err
		}
		mac, err := op.SignMessage(nil, text, k.alg.hash)
		if err == nil {
			_, err = op.Commit(ctx, audit.Done{Artefact: sha256.Sum256(text)}) // nothing of the secret itself
		}
		if cerr := op.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return [32]byte{}, err
		}
		copy(secret[half*macSize:], mac[:macSize])
	}
	return secret, nil
}
