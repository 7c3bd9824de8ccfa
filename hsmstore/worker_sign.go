package hsmstore

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strings"
	"sync"
	"time"

	"chancery/audit"

	"github.com/miekg/pkcs11"
)

// workerKey is a key that this worker may use: its handle and what the key was
// bound to at its birth. In a token's sessions of one application handles are the
// same (PKCS#11 §2.2.4 of the base document).
type workerKey struct {
	handle  pkcs11.ObjectHandle
	alg     *algorithm
	mech    []*pkcs11.Mechanism
	binding binding

	best time.Duration // that a signature took; guarded by the pool

	mu   sync.Mutex // checkpoint keys: one at a time
	size uint64     // last tree size signed
	body [32]byte   // SHA-256 of that checkpoint's body
}

// same tells whether a key that was found again is what it was.
func (k *workerKey) same(o *workerKey) bool {
	return k.handle == o.handle && k.alg == o.alg && k.binding.purpose == o.binding.purpose && k.binding.spkiHash == o.binding.spkiHash && bytes.Equal(k.binding.subject, o.binding.subject)
}

// findKey reads a key from the token and believes the token, not the store, in
// what the key is for. An error that is no fault concerns this key only.
func (w *worker) findKey(p pin) (*workerKey, error) {
	pub, alg, err := parseSPKI(p.SPKI, p.Algorithm)
	if err != nil {
		return nil, err
	}
	h, err := w.token.findPrivate(p)
	if err != nil {
		return nil, err
	}
	if err := w.token.hasPublic(h, p, pub); err != nil {
		return nil, err
	}
	if err := w.token.permits(h, alg); err != nil {
		return nil, err
	}
	if err := w.token.onlyMAC(h, alg); err != nil && !w.weak {
		return nil, err
	}
	lines, err := w.token.snapshot(h)
	if err != nil {
		return nil, err
	}
	var accepted []string
	switch {
	case p.Adopted != nil:
		accepted = p.Adopted.Weak
	case w.weak:
		accepted = acceptable
	}
	if weak := weaknesses(lines, accepted); len(weak) > 0 {
		return nil, fmt.Errorf("attributes on the token are too weak: %s", strings.Join(weak, ", "))
	}
	k := &workerKey{handle: h, alg: alg, mech: alg.mechanism(), binding: binding{ident: alg.ident, spkiHash: sha256.Sum256(p.SPKI), serial: w.serial}}
	if err := w.bind(k, p); err != nil {
		return nil, err
	}
	if !w.role.holds(k.binding.purpose) {
		return nil, fmt.Errorf("it is for %s, the member has the role %s", k.binding.purpose, w.role)
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
		a, err := readAccount(w.account)
		if err != nil {
			return nil, &fault{exitJournal, err}
		}
		if ok && last.Seq <= a.regrow.seq {
			k.size, k.body = a.regrow.size, [32]byte{}
		}
	}
	return k, nil
}

// bind finds out what a key is for. Our own keys say it in attributes that cannot be
// changed; of an adopted key, and in a module whose attributes can be changed, the journal
// keeps what was told first.
func (w *worker) bind(k *workerKey, p pin) error {
	v, err := w.token.attributes(k.handle, pkcs11.CKA_LABEL)
	if err != nil {
		return err
	}
	born, err := labelPurpose(string(v[pkcs11.CKA_LABEL])) // nobody who adopts a key gives it such a label
	switch ours := err == nil; {
	case ours && p.Adopted != nil:
		return fmt.Errorf("its label says that it was born here for %s: it is no adopted key", born)
	case ours && born != p.Purpose:
		return fmt.Errorf("its label says that it was born for %s, not for %s", born, p.Purpose)
	}
	if p.Adopted != nil || w.weak {
		w.jmu.Lock()
		agrees, err := w.bound(k.binding.spkiHash, p.bindingDigest())
		w.jmu.Unlock()
		switch {
		case err != nil:
			return &fault{exitJournal, err}
		case !agrees:
			return fmt.Errorf("the worker's journal knows this adopted key with another purpose or subject")
		}
		k.binding.purpose, k.binding.subject = p.Purpose, p.Subject
		return nil
	}
	bound := []*pkcs11.Attribute{attr(pkcs11.CKA_LABEL, nil), attr(pkcs11.CKA_SUBJECT, nil)}
	if k.alg.scheme == macScheme {
		bound = bound[:1] // secret keys have no CKA_SUBJECT
	}
	as, err := w.token.m.GetAttributeValue(w.token.session, k.handle, bound)
	if err != nil {
		return classify("reading what the key is bound to", err)
	}
	if len(as) == 2 {
		k.binding.subject = as[1].Value
	}
	k.binding.purpose, err = labelPurpose(string(as[0].Value))
	return err
}

// bound notes what an adopted key is bound to, and tells whether that agrees with what was
// noted first: in the account, which is short; in the journal by an earlier version.
func (w *worker) bound(key, binding [32]byte) (agrees bool, err error) {
	a, err := readAccount(w.account)
	if err != nil {
		return false, err
	}
	if was, known := a.bound[fmt.Sprintf("%x", key)]; known {
		return was == fmt.Sprintf("%x", binding), nil
	}
	if agrees, err = w.journal.bind(key, binding); err != nil || !agrees {
		return agrees, err
	}
	return true, a.add("bound %x %x", key, binding)
}

// bindingDigest is what the journal keeps of an adopted key.
func (p pin) bindingDigest() [32]byte {
	b := []byte{byte(p.Purpose)}
	bound := []string{string(p.Subject)}
	if p.Adopted != nil {
		bound = append(bound, p.Adopted.Weak...)
	}
	for _, v := range bound {
		b = binary.BigEndian.AppendUint32(b, uint32(len(v)))
		b = append(b, v...)
	}
	return sha256.Sum256(b)
}

// keyLabel binds purpose and name to a key: chancery:<purpose>:<name> in CKA_LABEL.
func keyLabel(purpose audit.Purpose, name string) string {
	return "chancery:" + purpose.String() + ":" + name
}

func labelPurpose(label string) (audit.Purpose, error) {
	purpose, _, ours := ourLabel(label)
	if !ours {
		return 0, fmt.Errorf("label %q does not bind a purpose", label)
	}
	return audit.ParsePurpose(purpose)
}

// ourLabel takes the label of a key that was born here apart.
func ourLabel(label string) (purpose, name string, ours bool) {
	parts := strings.SplitN(label, ":", 3)
	if len(parts) != 3 || parts[0] != "chancery" {
		return "", "", false
	}
	return parts[1], parts[2], true
}

// sign does one signing request: parse, journal, sign. The order is the promise:
// nothing reaches the HSM that was not understood and written down.
func (w *worker) sign(session pkcs11.SessionHandle, f job) {
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
	var raw []byte
	began := time.Now()
	err = w.patiently(f.came, func() (err error) {
		raw, err = w.token.sign(session, k, digest)
		return err
	}, func(rv pkcs11.Error) bool { return throttled(rv) || rv == pkcs11.CKR_OPERATION_ACTIVE })
	if err == nil {
		w.pool.took(k, time.Since(began))
		if raw, err = k.alg.output(raw); err != nil { // no length that such a signature has: the store counts it as a wrong one
			raw = nil
		}
		w.reply(f.id, statusOK, raw)
		return
	}
	rv, is := err.(pkcs11.Error)
	switch {
	case is && (rv == pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED || rv == pkcs11.CKR_KEY_TYPE_INCONSISTENT || rv == pkcs11.CKR_KEY_SIZE_RANGE):
		w.reply(f.id, statusKeyFault, []byte(rv.Error()))
	case is && w.native && throttled(rv):
		w.reply(f.id, statusBusy, []byte(rv.Error()))
	default:
		// A handle, session or device that went bad: a new process is the one cure
		// that works for every module.
		w.fail(classify("signing", err))
	}
}

// sign makes one signature in a session (PKCS#11 §5.11).
func (t *token) sign(session pkcs11.SessionHandle, k *workerKey, digest []byte) ([]byte, error) {
	if err := t.m.SignInit(session, k.mech, k.handle); err != nil {
		return nil, err
	}
	sig, err := t.m.Sign(session, k.alg.input(digest))
	if err != nil || k.alg.scheme != macScheme {
		return sig, err
	}
	if err := t.m.SignInit(session, k.mech, k.handle); err != nil {
		return nil, err
	}
	check, err := t.m.Sign(session, checkText)
	return append(sig, check...), err
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
