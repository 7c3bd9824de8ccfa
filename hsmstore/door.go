package hsmstore

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"chancery/audit"
)

// SignRequest is everything that the intent says about one use of a key.
type SignRequest struct {
	Op          audit.Op
	Message     []byte   // the whole message; Begin takes a copy, which alone is signed
	Issuer      [32]byte // SHA-256 of the issuer's SPKI; zero for an issuer key: its own
	Serial      []byte   // of the certificate: big-endian, no leading zero; must be the one in Message
	Profile     [32]byte
	Evidence    [32]byte
	Requester   string
	Grant       [32]byte
	CRL         *audit.CRLScope // for OpCRL
	Class       Class
	MaxAttempts uint8 // 0: 3
	Projections []audit.Projection
	Private     []audit.Private
}

const defaultAttempts = 3

// opKinds says which kinds of messages an operation may carry. An operation that
// is not here has no message to sign.
var opKinds = map[audit.Op]kind{
	audit.OpCertificate: kindCertificate,
	audit.OpCRL:         kindCRL,
	audit.OpOCSP:        kindOCSP,
	audit.OpCMS:         kindAttributes,
	audit.OpCode:        kindAttributes,
	audit.OpTimestamp:   kindTimestamp,
	audit.OpKeyProof:    kindProof,
	audit.OpSecret:      kindSecret,
}

// Begin checks the request, makes sure that a member can sign, commits the intent
// with req.Projections in one transaction, and returns the one Operation that may
// sign req.Message once. The operation must be closed.
//
// Errors before the intent: ErrRefused (key, op and message do not go together),
// ErrUnavailable, ErrBusy. An error of the ledger (audit.ErrUnavailable,
// audit.ErrConflict …) means that no intent can be acted upon.
func (k *Key) Begin(ctx context.Context, req SignRequest) (*Operation, error) {
	if st := k.State(); st != KeyUsable {
		return nil, fmt.Errorf("%w: key %q is %s", ErrNoKey, k.name, st)
	}
	return k.begin(ctx, req, nil)
}

// begin is Begin, also for a key that is to be proved on one member.
func (k *Key) begin(ctx context.Context, req SignRequest, pinned *member) (*Operation, error) {
	s := k.store
	was := k.State()
	req.Message = bytes.Clone(req.Message) // whatever the caller does with its own later
	if err := k.fits(req); err != nil {
		s.ledger.Refused(audit.Refusal{Kind: "hsm:door", Detail: fmt.Sprintf("%s with a key for %s", req.Op, k.purpose)})
		return nil, err
	}
	if req.MaxAttempts == 0 {
		req.MaxAttempts = defaultAttempts
	}
	if req.Issuer == ([32]byte{}) && k.purpose == audit.PurposeIssuer && req.Op != audit.OpKeyProof {
		req.Issuer = k.spkiHash
	}
	if limit := s.cfg.Queue * req.Class.share() / 4; s.begun.Add(1) > int64(max(1, limit)) {
		s.begun.Add(-1)
		return nil, fmt.Errorf("%w: %d operations wait; nothing was begun, try again later", ErrBusy, limit)
	}
	err := s.expect(ctx, &signature{key: k, pinned: pinned})
	if s.retired.Load() { // after it is counted: Retire waits for what has begun
		err = errRetired
	}
	if err != nil {
		s.begun.Add(-1)
		return nil, err
	}
	in := audit.Intent{Op: req.Op, Key: k.spkiHash, Purpose: k.purpose, Algorithm: k.alg.ident, TBSHash: sha256.Sum256(req.Message), TBSLength: uint64(len(req.Message)),
		Issuer: req.Issuer, Serial: req.Serial, Profile: req.Profile, Evidence: req.Evidence, Requester: req.Requester, Grant: req.Grant, MaxAttempts: req.MaxAttempts, CRL: req.CRL, Private: req.Private}
	in.Still = func() error {
		if s.retired.Load() {
			return errRetired
		}
		if now := k.State(); now != KeyUsable && (pinned == nil || now != was) {
			return fmt.Errorf("%w: key %q is %s", ErrNoKey, k.name, now)
		}
		return nil
	}
	if pinned != nil {
		in.Member = pinned.current().Serial
	}
	opened, err := s.ledger.Begin(ctx, in, req.Projections...)
	if err != nil {
		s.begun.Add(-1)
		return nil, fmt.Errorf("committing the intent to use key %s: %w", k.name, err)
	}
	s.opens.Store(opened.Index, struct{}{})
	digest := in.TBSHash[:]
	if k.alg.hash != crypto.SHA256 {
		digest = k.alg.digest(req.Message)
	}
	return &Operation{ctx: ctx, key: k, req: req, opened: opened, waits: true,
		sig: signature{key: k, intent: opened.Index, message: req.Message, digest: digest, pinned: pinned, attempts: req.MaxAttempts}}, nil
}

// fits holds the rules that the worker holds too, before anything is written:
// what cannot be signed shall not even be intended.
func (k *Key) fits(req SignRequest) error {
	want, known := opKinds[req.Op]
	if !known {
		return fmt.Errorf("%w: operation %s signs no message", ErrRefused, req.Op)
	}
	if len(req.Message) > maxMessage {
		return fmt.Errorf("%w: a message of %d octets; at most %d are signed", ErrRefused, len(req.Message), maxMessage)
	}
	b := k.binding()
	p, err := b.inspect(req.Message)
	switch {
	case err != nil:
		return err
	case p.kind != want:
		return fmt.Errorf("%w: the message is not one of operation %s", ErrRefused, req.Op)
	case p.kind == kindCertificate && !bytes.Equal(p.serial, req.Serial):
		return fmt.Errorf("%w: serial %x of the request is not the %x of the TBSCertificate", ErrRefused, req.Serial, p.serial)
	case p.kind == kindCRL && req.CRL == nil:
		return fmt.Errorf("%w: a CRL needs its scope", ErrRefused)
	case k.purpose == audit.PurposeCode && req.Op == audit.OpCMS, k.purpose == audit.PurposeDocument && req.Op == audit.OpCode:
		return fmt.Errorf("%w: a %s key does not do operation %s", ErrRefused, k.purpose, req.Op)
	}
	return nil
}

// Operation is one use of a key whose intent is on the ledger. It is a
// crypto.MessageSigner for exactly the message of its request, once. It keeps the
// context of Begin, because crypto.MessageSigner has none.
type Operation struct {
	ctx    context.Context
	key    *Key
	req    SignRequest
	opened audit.Opened

	mu     sync.Mutex
	sig    signature
	signed []byte
	nonce  *SeenNonce // of signed
	used   bool
	waits  bool // counted in store.begun
	closed bool
	unsure bool // Commit failed in a way that does not tell whether it was made
}

var _ crypto.MessageSigner = (*Operation)(nil)

// Errors of an operation that was used in another way than once for its message.
var (
	ErrUsed         = errors.New("operation was used already")
	ErrOtherMessage = errors.New("that is not the message of the intent")
)

// Public is the pinned public key.
func (op *Operation) Public() crypto.PublicKey { return op.key.pub }

// Index is the ledger index of the intent.
func (op *Operation) Index() uint64 { return op.opened.Index }

// Message is the message of the intent. It must not be changed.
func (op *Operation) Message() []byte { return op.req.Message }

// Attempts tells what was tried so far.
func (op *Operation) Attempts() []audit.Attempt {
	op.mu.Lock()
	defer op.mu.Unlock()
	return append([]audit.Attempt(nil), op.sig.tries...)
}

// Sign accepts nothing but the digest of the intent's message, and then signs the
// message. opts must name the key's hash.
func (op *Operation) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if !bytes.Equal(digest, op.sig.digest) {
		return nil, fmt.Errorf("%w: intent %d", ErrOtherMessage, op.opened.Index)
	}
	return op.SignMessage(rand, op.req.Message, opts)
}

// SignMessage signs the intent's message on whatever member is up, verifies the
// signature with the pinned key, and returns it: ECDSA as ASN.1 DER, RSA as
// PKCS #1 v1.5. The rand is not used. The signature must not leave the process
// before Commit has returned nil.
//
// Errors: ErrOtherMessage, ErrUsed, ErrRefused (by the worker), ErrUnavailable.
func (op *Operation) SignMessage(_ io.Reader, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	if !bytes.Equal(message, op.req.Message) {
		return nil, fmt.Errorf("%w: intent %d", ErrOtherMessage, op.opened.Index)
	}
	if opts != nil && opts.HashFunc() != op.key.alg.hash {
		return nil, fmt.Errorf("%w: key %s signs with %v, %v was asked for", ErrOtherMessage, op.key.name, op.key.alg.hash, opts.HashFunc())
	}
	op.mu.Lock()
	defer op.mu.Unlock()
	if op.used || op.closed {
		return nil, fmt.Errorf("%w: intent %d", ErrUsed, op.opened.Index)
	}
	op.used = true
	defer op.leave()
	s := op.key.store
	if err := s.queue.acquire(op.ctx, op.req.Class); err != nil {
		return nil, fmt.Errorf("%w: waiting for an HSM: %w", ErrUnavailable, err)
	}
	defer s.queue.release(op.req.Class)
	audit.Failpoint("after-intent")
	sig, err := s.sign(op.ctx, &op.sig)
	if err != nil {
		return nil, fmt.Errorf("signing under intent %d: %w", op.opened.Index, err)
	}
	if n, ok := op.key.nonce(sig, sha256.Sum256(op.req.Message)); ok {
		if err := op.key.nonces.check(n.R, n.Message); err != nil {
			s.quarantine(op.ctx, op.key)
			return nil, nonceError(op.key, op.opened.Index)
		}
		op.nonce = &n
	}
	audit.Failpoint("after-signature")
	op.signed = sig
	return bytes.Clone(sig), nil
}

func (op *Operation) leave() {
	if op.waits {
		op.waits = false
		op.key.store.begun.Add(-1)
	}
}

// Commit closes the intent as done together with the rows p, in one transaction.
// Signature and Attempts of done are filled in here. It is carried through even if
// ctx ends meanwhile.
//
// An ECDSA signature whose nonce the key has used before is not committed: the key
// is quarantined.
//
// With an error nothing may be released. audit.ErrConflict and audit.ErrExists
// come from p. After audit.ErrUnavailable it is not known whether the commit was
// made: Close tries to close the intent, else the next start does.
func (op *Operation) Commit(ctx context.Context, done audit.Done, p ...audit.Projection) (audit.Appended, error) {
	op.mu.Lock()
	defer op.mu.Unlock()
	switch {
	case op.closed:
		return audit.Appended{}, fmt.Errorf("%w: intent %d is closed", ErrUsed, op.opened.Index)
	case op.signed == nil:
		return audit.Appended{}, fmt.Errorf("intent %d has no signature to commit", op.opened.Index)
	}
	done.Signature, done.Attempts = sha256.Sum256(op.signed), op.sig.tries
	if op.key.State() == KeyQuarantined {
		return audit.Appended{}, nonceError(op.key, op.opened.Index)
	}
	if op.nonce != nil {
		p = append(p[:len(p):len(p)], *op.nonce)
	}
	var a audit.Appended
	err := patiently(func() (err error) {
		a, err = op.key.store.ledger.Done(context.WithoutCancel(ctx), op.opened, done, p...)
		return err
	})
	if errors.Is(err, ErrNonceReused) {
		op.key.store.quarantine(ctx, op.key)
		return audit.Appended{}, nonceError(op.key, op.opened.Index)
	}
	if err != nil {
		op.unsure = op.unsure || errors.Is(err, audit.ErrUnavailable)
		return audit.Appended{}, fmt.Errorf("committing what was signed under intent %d: %w", op.opened.Index, err)
	}
	audit.Failpoint("after-done")
	op.close()
	return a, nil
}

// Close ends the operation. What was not committed is closed in the ledger as
// failed if no HSM can have signed, else as orphan; an orphan with a serial
// carries [Orphaned]. Close after Commit, and a second Close, do nothing. If the
// ledger does not take the leaf the intent stays open, is logged, and is closed
// by [Store.Run] later, or by [Store.Reconcile] at the next start.
func (op *Operation) Close() error {
	op.mu.Lock()
	defer op.mu.Unlock()
	if op.closed {
		return nil
	}
	s := op.key.store
	ctx := context.WithoutCancel(op.ctx)
	err := patiently(func() (err error) {
		if !op.sig.sent {
			_, err = s.ledger.Failed(ctx, op.opened, "no signature was made", op.sig.tries)
			return err
		}
		reason := "a signature may exist; it was not released"
		if op.signed != nil {
			reason = "a signature was made and not released"
		}
		_, err = s.ledger.Orphan(ctx, op.opened, reason, op.sig.tries, orphaned(op.opened)...)
		return err
	})
	if op.unsure && errors.Is(err, audit.ErrConflict) {
		err = nil // the commit of unknown outcome had been made: the intent is closed
	}
	op.close()
	if err != nil {
		s.log.Error("intent stays open for now", "intent", op.opened.Index, "err", err)
		return fmt.Errorf("closing intent %d: %w", op.opened.Index, err)
	}
	return nil
}

func (op *Operation) close() {
	op.closed = true
	op.leave()
	op.key.store.opens.Delete(op.opened.Index)
}

// patiently repeats while the ledger's queue is full: a closing leaf is owed.
func patiently(write func() error) error {
	for i := 0; ; i++ {
		if err := write(); !errors.Is(err, audit.ErrBusy) || i == 1000 {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// orphaned is the projection of an orphan leaf, if its intent named a serial.
func orphaned(o audit.Opened) []audit.Projection {
	serial, ok := o.Leaf.Get(audit.TagSerial)
	if !ok {
		return nil
	}
	issuer, _ := o.Leaf.Hash(audit.TagIssuer)
	return []audit.Projection{Orphaned{Intent: o.Index, Issuer: issuer, Serial: serial, At: time.Now().UTC()}}
}

// Reconcile closes as orphan every intent of this node that a crash left open,
// and returns how many. Operations of this process are left alone. Call it at
// start, once the node holds its lock and before any key is used.
func (s *Store) Reconcile(ctx context.Context) (int, error) {
	return s.closeOpen(ctx, "left open by a crash; a signature may exist", 0)
}

// closeOpen closes the open intents of this node that no operation of this process
// will close, if they have reached an age.
func (s *Store) closeOpen(ctx context.Context, why string, age time.Duration) (int, error) {
	open, err := s.ledger.OpenIntents(ctx)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, o := range open {
		if _, ours := s.opens.Load(o.Index); ours || age > 0 && time.Since(o.Leaf.Time) < age {
			continue
		}
		_, err := s.ledger.Orphan(ctx, o, why, nil, orphaned(o)...)
		if err != nil && !errors.Is(err, audit.ErrConflict) {
			return n, fmt.Errorf("closing intent %d: %w", o.Index, err)
		}
		n++
	}
	return n, nil
}

const (
	sweepInterval = 10 * time.Second
	// sweepAge is longer than any caller needs from the commit of an intent to the
	// note of its operation.
	sweepAge = 30 * time.Second
)

// sweep closes what the ledger did not take when its operation ended: the disk was
// full then.
func (s *Store) sweep(ctx context.Context, age time.Duration) {
	n, err := s.closeOpen(ctx, "left open when the ledger could not be written; a signature may exist", age)
	if err != nil && ctx.Err() == nil {
		s.log.Error("open intents could not be closed", "err", err)
	}
	if n > 0 {
		s.log.Warn("intents left open by failed operations are closed", "count", n)
	}
	if err := s.closeAbandoned(ctx); err != nil && ctx.Err() == nil {
		s.log.Error("intents of nodes that ended could not be closed", "err", err)
	}
}
