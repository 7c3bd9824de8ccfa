package hsmstore

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"
)

// The part of the doctor's child that finds out what an unknown HSM can do. All that it
// makes are session objects, which are destroyed at once, and end with the process
// whatever happens.

// qualifier goes on where the doctor ends: the user is logged in.
type qualifier struct {
	*examiner
	facts Facts
}

func (q *qualifier) run() {
	info := q.info
	q.facts.Token = TokenFacts{Label: info.Label, Serial: info.SerialNumber, Manufacturer: strings.TrimSpace(info.ManufacturerID), Model: strings.TrimSpace(info.Model),
		Firmware: fmt.Sprintf("%d.%d", info.FirmwareVersion.Major, info.FirmwareVersion.Minor), Flags: flagNames(info.Flags)}
	q.mechanismFacts()
	for _, section := range []func(){q.pairs, q.secret, q.attributes, q.sessions, q.rates, q.behaviour} {
		section()
		q.send(opFacts, q.facts) // a crash later on takes none of it away
	}
	q.begin("throw-away objects", "C_CloseAllSessions")
	q.ok("all were session objects; they are gone")
}

func (q *qualifier) mechanismFacts() {
	for _, n := range needed {
		q.facts.Mechanisms = append(q.facts.Mechanisms, Mechanism{Name: n.name, Number: n.mech, There: slices.Contains(q.mechs, n.mech), Missing: n.means})
	}
	add := func(name string, number uint) {
		q.facts.Mechanisms = append(q.facts.Mechanisms, Mechanism{Name: name, Number: number, There: slices.Contains(q.mechs, number), Missing: "one way of copying less"})
	}
	for _, w := range wrappers {
		add(w.name, w.mech)
	}
	add("CKM_RSA_AES_KEY_WRAP", ckmRSAAESKeyWrap)
}

// pair is a throw-away key pair; an AES key has no public object.
type pair struct {
	public, private pkcs11.ObjectHandle
	key             crypto.PublicKey
}

func (p *pair) destroy(t *token) {
	_ = t.m.DestroyObject(t.session, p.private)
	if p.public != 0 {
		_ = t.m.DestroyObject(t.session, p.public)
	}
}

// throwAway makes a key pair of session objects, or an AES key.
func (t *token) throwAway(alg *algorithm, private []*pkcs11.Attribute) (*pair, error) {
	if alg.scheme == macScheme {
		h, err := t.generateSecret(sessionObject(private))
		if err != nil {
			return nil, err
		}
		p := &pair{private: h}
		if p.key, err = t.checkValueOf(h); err != nil {
			p.destroy(t)
			return nil, err
		}
		return p, nil
	}
	mech, all := alg.generation()
	var err error
	for _, params := range all {
		public := append(params, attr(pkcs11.CKA_TOKEN, false), attr(pkcs11.CKA_PRIVATE, false), attr(pkcs11.CKA_VERIFY, true))
		p := &pair{}
		p.public, p.private, err = t.m.GenerateKeyPair(t.session, mechanism(mech, nil), public, sessionObject(private))
		if err != nil {
			continue
		}
		if p.key, err = t.publicKey(p.public); err != nil {
			p.destroy(t)
			return nil, err
		}
		return p, nil
	}
	return nil, err
}

// simplePrivate is the template of a private key that every module understands.
func simplePrivate(more ...*pkcs11.Attribute) []*pkcs11.Attribute {
	return append([]*pkcs11.Attribute{attr(pkcs11.CKA_TOKEN, false), attr(pkcs11.CKA_PRIVATE, true), attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_SIGN, true)}, more...)
}

// pairs lets a key pair of each kind be born and sign.
func (q *qualifier) pairs() {
	for _, alg := range algorithms {
		if alg.scheme != macScheme {
			q.begin("algorithm "+alg.name, "C_GenerateKeyPair", true)
			q.algorithm(alg)
		}
	}
}

// secret lets an AES key be born and make a CMAC.
func (q *qualifier) secret() {
	alg, err := algorithmByName(algAES)
	if err == nil {
		q.begin("algorithm "+alg.name, "C_GenerateKey")
		q.algorithm(alg)
	}
}

func (q *qualifier) algorithm(alg *algorithm) {
	text := make([]byte, 64)
	rand.Read(text)
	f := AlgorithmFacts{Name: alg.name}
	began := time.Now()
	p, err := q.tok.throwAway(alg, simplePrivate(attr(pkcs11.CKA_EXTRACTABLE, false)))
	f.Generate = time.Since(began)
	if err == nil {
		q.begin(q.now.Step, "C_Sign")
		began = time.Now()
		f.OK, err = q.tok.signsWith(p.private, alg, p.key, text)
		f.Sign = time.Since(began)
		p.destroy(q.tok)
	}
	switch {
	case err != nil:
		f.Call, f.Detail = q.now.Call, words(err)
	case !f.OK:
		f.Call, f.Detail = q.now.Call, "the signature does not verify with the public key"
	}
	q.facts.Algorithms = append(q.facts.Algorithms, f)
}

// words is an error with its return code explained.
func words(err error) string {
	if rv, is := returnCode(err); is {
		x := explain(rv)
		return x.name + ": " + x.meaning
	}
	return err.Error()
}

// note keeps the outcome of one test of an attribute.
func (q *qualifier) note(name string, honoured bool, format string, args ...any) {
	q.facts.Checks = append(q.facts.Checks, Check{Name: name, Known: true, Honoured: honoured, Detail: fmt.Sprintf(format, args...)})
}

func (q *qualifier) unknown(name string, format string, args ...any) {
	q.facts.Checks = append(q.facts.Checks, Check{Name: name, Detail: fmt.Sprintf(format, args...)})
}

// attributes tests what protects our keys (compare Clulow 2003; Bortolozzo et al. 2010).
func (q *qualifier) attributes() {
	alg, err := algorithmByName(ProbeAlgorithm)
	if err != nil {
		return
	}
	q.template(CheckWrapTemplate, alg, true)
	q.template(CheckNativeTemplate, alg, false)
	q.sensitive(alg)
	q.extractable(alg)
	q.modifiable(alg)
	q.copies(alg)
	q.trusted()
	q.wrapWithTrusted(alg)
	q.allowedMechanisms()
}

// template makes a key as ours are, and reads back what became of it.
func (q *qualifier) template(name string, alg *algorithm, replicable bool) {
	var id KeyID
	rand.Read(id[:])
	q.begin(name, "C_GenerateKeyPair", true)
	var p *pair
	err := boundToMechanism(privateTemplate(id, "qualify", nil, replicable), alg, func(private []*pkcs11.Attribute) (err error) {
		p, err = q.tok.throwAway(alg, private)
		return err
	})
	if err != nil {
		q.note(name, false, "refused: %s", words(err))
		return
	}
	defer p.destroy(q.tok)
	q.begin(name, "C_GetAttributeValue")
	lines, err := q.tok.snapshot(p.private)
	if err != nil {
		q.note(name, false, "not readable: %s", words(err))
		return
	}
	if i := slices.Index(lines, "TOKEN=false"); i >= 0 {
		lines[i] = "TOKEN=true" // a session object, where ours are token objects
	}
	if err := checkSnapshot(lines, replicable); err != nil {
		q.note(name, false, "%v", err)
		return
	}
	q.note(name, true, "as asked for")
}

// change tries to set an attribute.
func (q *qualifier) change(h pkcs11.ObjectHandle, a *pkcs11.Attribute) error {
	q.begin(q.now.Step, "C_SetAttributeValue")
	return q.tok.m.SetAttributeValue(q.tok.session, h, []*pkcs11.Attribute{a})
}

// isSet reads one boolean attribute.
func (q *qualifier) isSet(h pkcs11.ObjectHandle, t uint) (set, known bool) {
	as, err := q.tok.m.GetAttributeValue(q.tok.session, h, []*pkcs11.Attribute{attr(t, nil)})
	if err != nil || len(as) != 1 {
		return false, false
	}
	return bytes.Equal(as[0].Value, []byte{1}), true
}

// sensitive tries to read a private key, before and after clearing SENSITIVE.
func (q *qualifier) sensitive(alg *algorithm) {
	q.begin(CheckSensitive, "C_GenerateKeyPair", true)
	p, err := q.tok.throwAway(alg, simplePrivate(attr(pkcs11.CKA_EXTRACTABLE, true)))
	if err != nil { // a token that makes no such key at all
		p, err = q.tok.throwAway(alg, simplePrivate())
	}
	if err != nil {
		q.unknown(CheckSensitive, "no key to test with: %s", words(err))
		return
	}
	defer p.destroy(q.tok)
	read := func() bool {
		q.begin(q.now.Step, "C_GetAttributeValue")
		as, err := q.tok.m.GetAttributeValue(q.tok.session, p.private, []*pkcs11.Attribute{attr(pkcs11.CKA_VALUE, nil)})
		return err == nil && len(as) == 1 && len(as[0].Value) > 0
	}
	q.note(CheckSensitive, !read(), "reading CKA_VALUE of a sensitive key")
	q.begin(CheckSticky, "C_SetAttributeValue")
	err = q.change(p.private, attr(pkcs11.CKA_SENSITIVE, false))
	set, known := q.isSet(p.private, pkcs11.CKA_SENSITIVE)
	q.note(CheckSticky, !read() && (!known || set), "clearing CKA_SENSITIVE: %s", outcome(err))
}

// outcome says how an attempt ended that should not have worked.
func outcome(err error) string {
	if err == nil {
		return "accepted"
	}
	return "refused by " + words(err)
}

func (q *qualifier) extractable(alg *algorithm) {
	q.begin(CheckExtractable, "C_GenerateKeyPair", true)
	p, err := q.tok.throwAway(alg, simplePrivate(attr(pkcs11.CKA_EXTRACTABLE, false)))
	if err != nil {
		q.unknown(CheckExtractable, "no key to test with: %s", words(err))
		return
	}
	defer p.destroy(q.tok)
	q.begin(CheckUnextractable, "C_WrapKey")
	mech, err := q.leaves(p.private)
	if err == nil {
		q.note(CheckUnextractable, false, "an AES key of the user wrapped it by mechanism %#x: the private key leaves", mech)
	} else {
		q.note(CheckUnextractable, true, "wrapping one by an AES key of the user: %s", outcome(err))
	}
	q.begin(CheckExtractable, "C_SetAttributeValue")
	err = q.change(p.private, attr(pkcs11.CKA_EXTRACTABLE, true))
	set, known := q.isSet(p.private, pkcs11.CKA_EXTRACTABLE)
	q.note(CheckExtractable, known && !set, "making a key extractable later: %s", outcome(err))
}

func (q *qualifier) modifiable(alg *algorithm) {
	q.begin(CheckModifiable, "C_GenerateKeyPair", true)
	p, err := q.tok.throwAway(alg, simplePrivate(attr(pkcs11.CKA_LABEL, "before"), attr(pkcs11.CKA_MODIFIABLE, false)))
	if err != nil {
		q.note(CheckModifiable, false, "such a key is refused: %s", words(err))
		return
	}
	defer p.destroy(q.tok)
	err = q.change(p.private, attr(pkcs11.CKA_LABEL, "after"))
	v, rerr := q.tok.attributes(p.private, pkcs11.CKA_LABEL)
	q.note(CheckModifiable, err != nil && rerr == nil && string(v[pkcs11.CKA_LABEL]) == "before", "changing the label of a key that cannot be changed: %s", outcome(err))
}

// copies tries to get a weaker copy of a key that may not leave (PKCS#11 v2.40 §5.7,
// C_CopyObject). A module without that function is safe.
func (q *qualifier) copies(alg *algorithm) {
	q.begin(CheckCopy, "C_GenerateKeyPair", true)
	p, err := q.tok.throwAway(alg, simplePrivate(attr(pkcs11.CKA_EXTRACTABLE, false), attr(pkcs11.CKA_WRAP_WITH_TRUSTED, true)))
	if err != nil {
		q.unknown(CheckCopy, "no key to test with: %s", words(err))
		return
	}
	defer p.destroy(q.tok)
	var said []string
	for _, a := range []struct {
		name string
		id   uint
		weak bool
	}{{"SENSITIVE=false", pkcs11.CKA_SENSITIVE, false}, {"EXTRACTABLE=true", pkcs11.CKA_EXTRACTABLE, true}} {
		q.begin(CheckCopy, "C_CopyObject")
		h, err := q.tok.m.CopyObject(q.tok.session, p.private, []*pkcs11.Attribute{attr(pkcs11.CKA_TOKEN, false), attr(a.id, a.weak)})
		said = append(said, a.name+": "+outcome(err))
		if err != nil {
			continue
		}
		set, known := q.isSet(h, a.id)
		mech, err := q.leaves(h)
		q.begin(CheckCopy, "C_DestroyObject")
		_ = q.tok.m.DestroyObject(q.tok.session, h)
		if !known || set == a.weak {
			out := ""
			if err == nil {
				out = fmt.Sprintf("; and an AES key of the user wrapped it by mechanism %#x: the private key leaves", mech)
			}
			q.note(CheckCopy, false, "a copy with %s: accepted%s", a.name, out)
			return
		}
	}
	q.note(CheckCopy, true, "a copy with %s", strings.Join(said, ", "))
}

// leaves tries to take a private key out with an AES key of the user's own, and gives
// the mechanism that did it, or what the last one said.
func (q *qualifier) leaves(h pkcs11.ObjectHandle) (mech uint, err error) {
	kek, err := q.aes()
	if err != nil {
		return 0, err
	}
	defer func() { _ = q.tok.m.DestroyObject(q.tok.session, kek) }()
	err = errors.New("there is no AES key wrap mechanism")
	for _, w := range wrappers {
		if !slices.Contains(q.mechs, w.mech) {
			continue
		}
		q.begin(q.now.Step, "C_WrapKey")
		if _, err = q.tok.m.WrapKey(q.tok.session, mechanism(w.mech, nil), kek, h); err == nil {
			return w.mech, nil
		}
	}
	return 0, err
}

// aes makes a wrapping key that nobody has marked trusted.
func (q *qualifier) aes(more ...*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	q.begin(q.now.Step, "C_GenerateKey")
	return q.tok.m.GenerateKey(q.tok.session, mechanism(pkcs11.CKM_AES_KEY_GEN, nil), append([]*pkcs11.Attribute{
		attr(pkcs11.CKA_TOKEN, false), attr(pkcs11.CKA_VALUE_LEN, 32), attr(pkcs11.CKA_WRAP, true), attr(pkcs11.CKA_UNWRAP, true)}, more...))
}

// trusted: only the SO may mark a key so (PKCS#11 v2.40 §4.9).
func (q *qualifier) trusted() {
	q.begin(CheckTrusted, "C_GenerateKey")
	h, err := q.aes(attr(pkcs11.CKA_TRUSTED, true))
	made := err
	if err != nil {
		if h, err = q.aes(); err != nil {
			q.unknown(CheckTrusted, "no AES key to test with: %s", words(err))
			return
		}
	}
	defer func() { _ = q.tok.m.DestroyObject(q.tok.session, h) }()
	set, known := q.isSet(h, pkcs11.CKA_TRUSTED)
	if !set {
		_ = q.change(h, attr(pkcs11.CKA_TRUSTED, true))
		set, known = q.isSet(h, pkcs11.CKA_TRUSTED)
	}
	if !known {
		q.note(CheckTrusted, false, "the module does not know CKA_TRUSTED")
		return
	}
	q.note(CheckTrusted, !set, "the user makes a key trusted: %s", outcome(made))
}

// wrapWithTrusted: an untrusted key must not wrap a key that wants a trusted one. That
// it wraps another shows that the refusal is not for a lack of the mechanism.
func (q *qualifier) wrapWithTrusted(alg *algorithm) {
	wraps := func(more ...*pkcs11.Attribute) (uint, error) {
		q.begin(CheckWrapTrusted, "C_GenerateKeyPair", true)
		p, err := q.tok.throwAway(alg, simplePrivate(more...))
		if err != nil {
			return 0, err
		}
		defer p.destroy(q.tok)
		if set, _ := q.isSet(p.private, pkcs11.CKA_WRAP_WITH_TRUSTED); set { // it must not be one that the user takes back
			_ = q.change(p.private, attr(pkcs11.CKA_WRAP_WITH_TRUSTED, false))
		}
		return q.leaves(p.private)
	}
	if _, err := wraps(attr(pkcs11.CKA_EXTRACTABLE, true)); err != nil {
		q.unknown(CheckWrapTrusted, "no key can be wrapped at all: %s", words(err))
		return
	}
	mech, err := wraps(attr(pkcs11.CKA_EXTRACTABLE, true), attr(pkcs11.CKA_WRAP_WITH_TRUSTED, true))
	if err == nil {
		q.note(CheckWrapTrusted, false, "an untrusted AES key wrapped the private key by mechanism %#x", mech)
		return
	}
	q.note(CheckWrapTrusted, true, "wrapping by an untrusted AES key: %s", outcome(err))
}

// allowedMechanisms: a key that is for RSA PKCS #1 only must not sign by PSS.
func (q *qualifier) allowedMechanisms() {
	q.begin(CheckAllowed, "C_GenerateKeyPair", true)
	pkcs1, err := algorithmByName("RSA-2048")
	if err != nil {
		return
	}
	pss, err := algorithmByName("RSA-PSS-2048")
	if err != nil {
		return
	}
	p, err := q.tok.throwAway(pkcs1, withMechanism(simplePrivate(attr(pkcs11.CKA_EXTRACTABLE, false)), pkcs1))
	if err != nil {
		q.note(CheckAllowed, false, "such a key is refused: %s", words(err))
		return
	}
	defer p.destroy(q.tok)
	q.begin(CheckAllowed, "C_Sign")
	_, err = q.tok.signsWith(p.private, pss, p.key, []byte("qualify"))
	q.note(CheckAllowed, err != nil, "signing by RSA-PSS with a key for PKCS #1 only: %s", outcome(err))
}

// maxSessions is how many sessions are opened at most.
const maxSessions = 256

// sessions opens sessions until the token refuses one.
func (q *qualifier) sessions() {
	q.begin("sessions", "C_OpenSession")
	var open []pkcs11.SessionHandle
	for len(open) < maxSessions-1 { // one is open all the time
		s, err := q.m.OpenSession(q.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		if err != nil {
			q.facts.Sessions.Limit = words(err)
			break
		}
		open = append(open, s)
	}
	q.facts.Sessions.Opened = len(open) + 1
	q.begin("sessions", "C_CloseSession")
	for _, s := range open {
		_ = q.m.CloseSession(s)
	}
}

const (
	rateTime     = 500 * time.Millisecond
	latencyTries = 50
)

// rates measures signatures of a P-256 key, one after the other and side by side.
func (q *qualifier) rates() {
	q.begin("speed", "C_GenerateKeyPair", true)
	alg, err := algorithmByName(ProbeAlgorithm)
	if err != nil {
		return
	}
	p, err := q.tok.throwAway(alg, simplePrivate())
	if err != nil {
		return
	}
	defer p.destroy(q.tok)
	k := &workerKey{handle: p.private, alg: alg, mech: alg.mechanism()}
	digest := alg.digest([]byte("qualify"))
	q.begin("speed", "C_Sign", true)
	var took []time.Duration
	for range latencyTries {
		began := time.Now()
		if _, err := q.tok.sign(q.tok.session, k, digest); err != nil {
			q.facts.SpeedNote = words(err)
			return
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	q.facts.Latency, q.facts.LatencyWorst = took[len(took)/2], took[len(took)-1]
	for _, n := range []int{1, 4, 16} {
		q.facts.Rates = append(q.facts.Rates, q.rate(n, k, digest))
	}
}

// rate signs in n sessions at the same time.
func (q *qualifier) rate(n int, k *workerKey, digest []byte) Rate {
	r := Rate{Sessions: n}
	var wg sync.WaitGroup
	var done, refused atomic.Int64
	began := time.Now()
	for range n {
		s, err := q.m.OpenSession(q.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		if err != nil {
			refused.Add(1)
			continue
		}
		wg.Go(func() {
			defer q.m.CloseSession(s)
			for time.Since(began) < rateTime {
				if _, err := q.tok.sign(s, k, digest); err != nil {
					refused.Add(1)
					return
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	r.PerSecond = float64(done.Load()) / time.Since(began).Seconds()
	r.Refused = int(refused.Load())
	return r
}

// behaviour looks at how the module takes mistakes. It ends all sessions.
func (q *qualifier) behaviour() {
	alg, err := algorithmByName(ProbeAlgorithm)
	if err != nil {
		return
	}
	said := func(err error) string {
		if err == nil {
			return "CKR_OK"
		}
		return words(err)
	}
	q.begin("wrong key handle", "C_SignInit")
	err = q.m.SignInit(q.tok.session, alg.mechanism(), pkcs11.ObjectHandle(1<<31-3))
	q.note(CheckHandle, err != nil, "C_SignInit with a handle that does not exist: %s", said(err))
	q.begin("wrong session handle", "C_SignInit")
	p, err := q.tok.throwAway(alg, simplePrivate())
	if err != nil {
		q.unknown(CheckSession, "no key to test with: %s", words(err))
		return
	}
	err = q.m.SignInit(pkcs11.SessionHandle(1<<31-3), alg.mechanism(), p.private)
	q.note(CheckSession, err != nil, "C_SignInit in a session that does not exist: %s", said(err))
	q.begin("end of all sessions", "C_CloseAllSessions")
	if err := q.m.CloseAllSessions(q.slot); err != nil {
		q.unknown(CheckCloseAll, "C_CloseAllSessions: %s", said(err))
		return
	}
	q.begin("end of all sessions", "C_SignInit")
	err = q.m.SignInit(q.tok.session, alg.mechanism(), p.private)
	q.note(CheckCloseAll, err != nil, "C_SignInit after C_CloseAllSessions: %s", said(err))
}
