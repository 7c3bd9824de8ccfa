package hsmstore

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"sync"

	"chancery/audit"

	"github.com/ThalesGroup/crypto11"
	"github.com/miekg/pkcs11"
)

// workerKey is a key that this worker may use: the signer with its cached handle
// and what the key was bound to at its birth.
type workerKey struct {
	signer  crypto11.Signer
	alg     *algorithm
	binding binding

	mu   sync.Mutex // checkpoint keys: one at a time
	size uint64     // last tree size signed
	body [32]byte   // SHA-256 of that checkpoint's body
}

// findKey reads a key from the token and believes the token, not the store, in
// what the key is for. An error that is no fault concerns this key only.
func (w *worker) findKey(p pin) (*workerKey, error) {
	signer, err := w.ctx.FindKeyPair(p.ID[:], nil)
	if err != nil {
		var rv pkcs11.Error
		if errors.As(err, &rv) {
			return nil, classify("finding a key", err)
		}
		return nil, fmt.Errorf("not on the token: %v", err)
	}
	_, alg, err := parseSPKI(p.SPKI)
	if err != nil {
		return nil, err
	}
	if spki, err := x509.MarshalPKIXPublicKey(signer.Public()); err != nil || !bytes.Equal(spki, p.SPKI) {
		return nil, fmt.Errorf("public key on the token is not the pinned one")
	}
	as, err := w.ctx.GetAttributes(signer, []crypto11.AttributeType{pkcs11.CKA_LABEL, pkcs11.CKA_SUBJECT, pkcs11.CKA_SENSITIVE, pkcs11.CKA_EXTRACTABLE, pkcs11.CKA_WRAP_WITH_TRUSTED, pkcs11.CKA_MODIFIABLE, pkcs11.CKA_DECRYPT, pkcs11.CKA_UNWRAP})
	if err != nil {
		return nil, classify("reading a key's attributes", err)
	}
	is := func(t uint) bool { a := as[t]; return a != nil && len(a.Value) == 1 && a.Value[0] == 1 }
	if !is(pkcs11.CKA_SENSITIVE) || is(pkcs11.CKA_EXTRACTABLE) && !is(pkcs11.CKA_WRAP_WITH_TRUSTED) || is(pkcs11.CKA_MODIFIABLE) || is(pkcs11.CKA_DECRYPT) || is(pkcs11.CKA_UNWRAP) {
		return nil, fmt.Errorf("attributes on the token are too weak: SENSITIVE, WRAP_WITH_TRUSTED if EXTRACTABLE, and no MODIFIABLE, DECRYPT, UNWRAP are demanded")
	}
	k := &workerKey{signer: signer, alg: alg, binding: binding{ident: alg.ident, spkiHash: sha256.Sum256(p.SPKI), serial: w.serial}}
	if k.binding.purpose, err = labelPurpose(string(as[pkcs11.CKA_LABEL].Value)); err != nil {
		return nil, err
	}
	if s := as[pkcs11.CKA_SUBJECT]; s != nil {
		k.binding.subject = s.Value
	}
	if k.binding.purpose == audit.PurposeCheckpoint {
		w.jmu.Lock()
		last, ok, err := w.journal.lastCheckpoint(k.binding.spkiHash)
		w.jmu.Unlock()
		if err != nil {
			return nil, &fault{exitJournal, err}
		}
		if ok {
			k.size, k.body = last.Number, last.SHA256
		}
	}
	return k, nil
}

// keyLabel binds purpose and name to a key: chancery:<purpose>:<name> in CKA_LABEL.
func keyLabel(purpose audit.Purpose, name string) string {
	return "chancery:" + purpose.String() + ":" + name
}

func labelPurpose(label string) (audit.Purpose, error) {
	parts := strings.SplitN(label, ":", 3)
	if len(parts) != 3 || parts[0] != "chancery" {
		return 0, fmt.Errorf("label %q does not bind a purpose", label)
	}
	return audit.ParsePurpose(parts[1])
}

// sign does one signing request: parse, journal, sign. The order is the promise:
// nothing reaches the HSM that was not understood and written down.
func (w *worker) sign(f frame) {
	id, intent, message, ok := splitSign(f.payload)
	if !ok {
		w.fail(faultf(exitProtocol, "sign request of %d octets", len(f.payload)))
		return
	}
	w.mu.RLock()
	k := w.keys[id]
	b := binding{}
	if k != nil {
		b = k.binding
	}
	b.ledger, b.origin = w.ledger, w.origin
	w.mu.RUnlock()
	if k == nil {
		w.reply(f.id, statusKeyFault, []byte("the worker has no such key"))
		return
	}
	p, err := b.inspect(message)
	if err == nil {
		err = needsIntent(p.kind, intent)
	}
	if err != nil {
		w.reply(f.id, statusRefused, []byte(strings.TrimPrefix(err.Error(), ErrRefused.Error()+": ")))
		return
	}
	rec := JournalRecord{Kind: JournalIntent, Key: b.spkiHash, SHA256: sha256.Sum256(message), Number: intent}
	switch p.kind {
	case kindProbe:
		rec.Kind = JournalProbe
	case kindCheckpoint:
		rec.Kind, rec.Number = JournalCheckpoint, p.size
		k.mu.Lock()
		defer k.mu.Unlock()
		if p.size < k.size || p.size == k.size && k.body != ([32]byte{}) && k.body != rec.SHA256 {
			w.reply(f.id, statusRefused, fmt.Appendf(nil, "checkpoint of size %d after one of size %d: sizes only grow, and one size has one body", p.size, k.size))
			return
		}
		k.size, k.body = p.size, rec.SHA256
	}
	w.jmu.Lock()
	err = w.journal.append(rec)
	w.jmu.Unlock()
	if err != nil {
		w.fail(&fault{exitJournal, err})
		return
	}
	digest := rec.SHA256[:]
	if k.alg.hash != crypto.SHA256 {
		digest = k.alg.digest(message)
	}
	sig, err := k.signer.Sign(rand.Reader, digest, k.alg.hash)
	if err == nil {
		w.reply(f.id, statusOK, sig)
		return
	}
	var rv pkcs11.Error
	if errors.As(err, &rv) && (rv == pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED || rv == pkcs11.CKR_KEY_TYPE_INCONSISTENT || rv == pkcs11.CKR_KEY_SIZE_RANGE) {
		w.reply(f.id, statusKeyFault, []byte(rv.Error()))
		return
	}
	// A handle, session or device that went bad: crypto11 would keep it for ever,
	// a new process does not.
	w.fail(classify("signing", err))
}

// needsIntent: only checkpoints and probes are signed without an intent, and
// these never with one.
func needsIntent(k kind, intent uint64) error {
	exempt := k == kindCheckpoint || k == kindProbe
	if exempt != (intent == audit.NoIndex) {
		return fmt.Errorf("an intent is needed for everything but checkpoints and probes")
	}
	return nil
}
