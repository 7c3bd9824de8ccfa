package hsmstore

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"chancery/admin"
	"chancery/audit"
)

// Mechanisms of an import: how the caller has wrapped a PKCS #8 PrivateKeyInfo
// (RFC 5958, DER), or the 32 octets of an AES-256 key, to the wrapping key of the session.
const (
	// ImportRSAAES is RSA_AES_KEY_WRAP (PKCS#11 v2.40 §2.1.21): an AES-256 key under
	// RSA-OAEP, followed by the private key under that AES key by RFC 5649.
	ImportRSAAES = "RSA-AES"
	// ImportRSAOAEP is the key under RSA-OAEP alone; only EC keys are that short.
	ImportRSAOAEP = "RSA-OAEP"
)

// ErrImport is the whole answer to a blob that does not become the key that it should:
// what was wrong with it is not told, so that no answer helps to decrypt another blob.
var ErrImport = errors.New("the blob did not unwrap to the private key of that public key; wrap it to the session's wrapping key with the session's hash, in a new session")

// importLife is how long a session waits for its blob.
const importLife = 15 * time.Minute

// importBits is the modulus length of the wrapping key.
const importBits = 3072

// ImportSpec says what an import shall become.
type ImportSpec struct {
	Name      string
	Purpose   audit.Purpose
	Algorithm string   // one of [Algorithms] but Ed25519
	Subject   []byte   // issuer keys: the subject Name DER of the CA's certificate
	SPKI      []byte   // public half, DER (AES-256: [CheckInfo]); it is in the act, so the officers see which key comes
	Mechanism string   // ImportRSAAES or ImportRSAOAEP
	Blob      []byte   // wrapped private key
	Members   []string // that shall hold the key, the session's among them; nil: all
}

// Act is the act that a grant must list for the import.
func (p ImportSpec) Act() string {
	return admin.ImportKeyAct(p.Name, p.Purpose.String(), p.Algorithm, p.Subject, sha256.Sum256(p.SPKI))
}

// ImportSession holds a one-time wrapping key on one member. The key lives in the
// memory of one ceremony process and ends with it: after one blob, with Close, or
// after 15 minutes.
type ImportSession struct {
	store   *Store
	member  *member
	proc    *ceremonyProcess
	pair    importPair
	modulus int // octets
	expires time.Time
	timer   *time.Timer

	mu     sync.Mutex
	closed bool
}

// BeginImport makes the wrapping key of an import on one member. There is one session
// at a time; it must be closed.
//
// Errors wrap ErrUnavailable (the member is not up), ErrPIN, ErrModule (its module
// cannot unwrap), ErrBusy (another session is open).
func (s *Store) BeginImport(ctx context.Context, memberName string) (*ImportSession, error) {
	m := s.member(memberName)
	if m == nil || m.worker() == nil {
		return nil, fmt.Errorf("%w: import on member %q: it is not up; members are %v", ErrUnavailable, memberName, s.names())
	}
	if m.cfg.WeakUnwrap {
		return nil, fmt.Errorf("%w: the module of member %s ignores unwrap templates (weak_unwrap); import on another member", ErrModule, memberName)
	}
	if !s.importing.CompareAndSwap(false, true) {
		return nil, fmt.Errorf("%w: another import is open; finish or close it first", ErrBusy)
	}
	i := &ImportSession{store: s, member: m, expires: time.Now().Add(importLife)}
	if err := i.start(ctx); err != nil {
		i.Close()
		return nil, err
	}
	i.timer = time.AfterFunc(importLife, func() { i.Close() })
	return i, nil
}

func (i *ImportSession) start(ctx context.Context) (err error) {
	if i.proc, err = startCeremony(ctx, i.member.cfg, i.member.current().Serial, nil, false); err != nil {
		return err
	}
	if err := i.proc.do(ctx, cerImportPair, struct{}{}, &i.pair); err != nil {
		return err
	}
	pub, err := x509.ParsePKIXPublicKey(i.pair.SPKI)
	if err != nil {
		return fmt.Errorf("wrapping key of member %s: %w", i.member.cfg.Name, err)
	}
	key, ok := pub.(*rsa.PublicKey)
	if !ok || key.N.BitLen() < importBits {
		return fmt.Errorf("wrapping key of member %s is no RSA key of %d bits", i.member.cfg.Name, importBits)
	}
	i.modulus = key.Size()
	return nil
}

// WrappingKey is the public key to wrap to, SPKI DER.
func (i *ImportSession) WrappingKey() []byte { return slices.Clone(i.pair.SPKI) }

// Hash is that of RSA-OAEP and of its MGF1, with an empty label: "SHA-256", or "SHA-1"
// where the module knows no other. OAEP does not rest on the collision resistance of
// its hash (RFC 8017 §B.1).
func (i *ImportSession) Hash() string { return i.pair.Hash }

// Mechanisms are those that the member's module can unwrap.
func (i *ImportSession) Mechanisms() []string { return slices.Clone(i.pair.Mechanisms) }

// Expires is when the session ends by itself.
func (i *ImportSession) Expires() time.Time { return i.expires }

// Close ends the session and its wrapping key. A second Close does nothing.
func (i *ImportSession) Close() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed {
		return nil
	}
	i.closed = true
	if i.timer != nil {
		i.timer.Stop()
	}
	if i.proc != nil {
		i.proc.end()
	}
	i.store.importing.Store(false)
	return nil
}

// Finish unwraps the blob inside the token under the template of all our keys, records
// the import (the leaf shows LOCAL=false: the key was outside of an HSM), lets it prove
// itself against spec.SPKI, copies it to the other members, and makes it usable. A spec
// that is refused leaves the session open; everything else ends it.
//
// Errors: ErrImport for whatever is wrong with the blob; else they wrap
// admin.ErrNotGranted, audit.ErrExists, ErrUnavailable, ErrUsed (the session is over).
func (i *ImportSession) Finish(ctx context.Context, grant *admin.Grant, spec ImportSpec) (*Key, error) {
	s := i.store
	unlock, err := s.ceremony(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	members, err := i.mayImport(spec)
	if err != nil {
		return nil, err
	}
	ctx = s.under(ctx, grant)
	recipients, err := s.recipientsFor(ctx, []string{spec.Act()}, KeySpec{Purpose: spec.Purpose, Algorithm: spec.Algorithm, Members: spec.Members}.backedUp())
	if err != nil {
		return nil, err
	}
	defer recipients.end()
	if err := grant.Spend(spec.Act()); err != nil {
		return nil, fmt.Errorf("key %q: %w", spec.Name, err)
	}
	defer i.Close()
	// 1. Into the token.
	o := keyObject{Name: spec.Name, Purpose: spec.Purpose, Algorithm: spec.Algorithm, Subject: spec.Subject, SPKI: spec.SPKI, Replicable: !i.member.native()}
	rand.Read(o.ID[:])
	mandate, err := mandateOf(ctx, i.member.cfg, []string{spec.Act()})
	if err != nil {
		return nil, fmt.Errorf("key %q: %w", spec.Name, err)
	}
	var got imported
	if err := i.do(ctx, cerImport, importKey{Mandate: mandate, Act: spec.Act(), Key: o, Mechanism: spec.Mechanism, Blob: spec.Blob}, &got); err != nil {
		return nil, err
	}
	if got.Failed {
		return nil, fmt.Errorf("key %q: %w", spec.Name, ErrImport)
	}
	// 2. On the ledger.
	b := &birth{spec: KeySpec{Name: spec.Name}, members: members, origin: i.member, object: o, born: got.Born,
		rec: KeyRecord{ID: o.ID, Name: spec.Name, Purpose: spec.Purpose, Algorithm: spec.Algorithm, SPKI: spec.SPKI, Subject: spec.Subject,
			Origin: i.member.cfg.Name, Members: []string{i.member.cfg.Name}, Confined: spec.Members != nil, State: KeyBorn}}
	if b.rec.Birth, err = s.recordImport(ctx, grant, b, fmt.Sprintf("%s, OAEP %s, %s", spec.Mechanism, i.pair.Hash, got.How)); err != nil {
		return nil, errors.Join(err, i.undo(ctx))
	}
	// 3. It is the key that it should be, before it goes anywhere.
	if err := i.proveImport(ctx, grant, b); err != nil {
		return nil, err
	}
	// 4. The copies.
	if b.backup = len(recipients) > 0 && !i.member.native(); b.backup || len(b.targets()) > 0 {
		if err := s.spreadImport(ctx, grant, b, spec.Act(), recipients); err != nil {
			return nil, err
		}
	}
	keys, err := s.prove(ctx, grant, []*birth{b})
	if err != nil {
		return nil, err
	}
	return keys[0], nil
}

// do sends a command to the session's process.
func (i *ImportSession) do(ctx context.Context, op byte, q, a any) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed {
		return fmt.Errorf("%w: the import session is over; begin another", ErrUsed)
	}
	return i.proc.do(ctx, op, q, a)
}

// mayImport checks all that can be known before the token sees the blob.
func (i *ImportSession) mayImport(spec ImportSpec) ([]*member, error) {
	s := i.store
	k := KeySpec{Name: spec.Name, Purpose: spec.Purpose, Algorithm: spec.Algorithm, Subject: spec.Subject, Members: spec.Members}
	if err := k.validate(); err != nil {
		return nil, err
	}
	if spec.Purpose == audit.PurposeProbe || spec.Purpose == audit.PurposeCheckpoint {
		return nil, fmt.Errorf("key %q: keys of %s are born here, not imported", spec.Name, spec.Purpose)
	}
	pub, alg, err := parseSPKI(spec.SPKI, spec.Algorithm)
	if err != nil {
		return nil, fmt.Errorf("key %q: %w", spec.Name, err)
	}
	if alg.scheme == eddsaScheme {
		return nil, fmt.Errorf("key %q: Ed25519 keys are not imported: modules do not unwrap them; make a new one", spec.Name)
	}
	if !slices.Contains(i.pair.Mechanisms, spec.Mechanism) {
		return nil, fmt.Errorf("key %q: mechanism %q cannot be unwrapped on member %s; allowed: %s", spec.Name, spec.Mechanism, i.member.cfg.Name, strings.Join(i.pair.Mechanisms, ", "))
	}
	_, isRSA := pub.(*rsa.PublicKey)
	_, isAES := pub.(checkValue)
	switch n := len(spec.Blob); {
	case spec.Mechanism == ImportRSAOAEP && isRSA:
		return nil, fmt.Errorf("key %q: an RSA private key does not fit into RSA-OAEP (at most %d octets); wrap it by %s", spec.Name, i.modulus-2-2*i.pair.hashOctets(), ImportRSAAES)
	case spec.Mechanism == ImportRSAOAEP && isAES: // AES-128 would pass: modules do not tell how long what they unwrapped is
		return nil, fmt.Errorf("key %q: RSA-OAEP does not show how long an AES key is; wrap it by %s", spec.Name, ImportRSAAES)
	case spec.Mechanism == ImportRSAAES && isAES && n != i.modulus+40:
		return nil, fmt.Errorf("key %q: an AES-256 key by RSA-AES is %d octets of RSA-OAEP and 40 of RFC 5649; this has %d", spec.Name, i.modulus, n)
	case spec.Mechanism == ImportRSAOAEP && n != i.modulus:
		return nil, fmt.Errorf("key %q: an RSA-OAEP blob has %d octets, this has %d", spec.Name, i.modulus, n)
	case spec.Mechanism == ImportRSAAES && (n < i.modulus+24 || (n-i.modulus)%8 != 0):
		return nil, fmt.Errorf("key %q: an RSA-AES blob is %d octets of RSA-OAEP, then RFC 5649 output, a multiple of 8 octets; this has %d", spec.Name, i.modulus, n)
	}
	var members []*member
	for _, m := range s.list() {
		if spec.Members != nil && !slices.Contains(spec.Members, m.cfg.Name) || !m.holds(spec.Purpose) {
			continue
		}
		if m.worker() == nil {
			return nil, fmt.Errorf("%w: key %q: member %s is %s; all members of a new key must be up", ErrUnavailable, spec.Name, m.cfg.Name, m.current().State)
		}
		members = append(members, m)
	}
	if !slices.Contains(members, i.member) || spec.Members != nil && len(members) != len(spec.Members) {
		return nil, fmt.Errorf("key %q: its members %v must be members of the cluster whose role allows it, and the session's %s one of them", spec.Name, spec.Members, i.member.cfg.Name)
	}
	if err := canSpread(k, members); err != nil {
		return nil, err
	}
	return members, s.notTaken(spec.Name, sha256.Sum256(spec.SPKI))
}

// notTaken refuses a name, or a public key, that the cluster has.
func (s *Store) notTaken(name string, spkiHash [32]byte) error {
	for _, k := range s.all() {
		if k.name == name || k.spkiHash == spkiHash && k.State() != KeyDestroyed {
			return fmt.Errorf("key %q with SPKI %x is in the cluster: %w", k.name, k.spkiHash[:8], audit.ErrExists)
		}
	}
	return nil
}

// recordImport writes the leaf of an import and returns its index.
func (s *Store) recordImport(ctx context.Context, grant *admin.Grant, b *birth, mechanism string) (uint64, error) {
	alg, err := algorithmByName(b.rec.Algorithm)
	if err != nil {
		return 0, err
	}
	f := s.keyFields(grant, b, b.origin, b.born.Attributes)
	f.Bytes(audit.TagSPKI, b.rec.SPKI)
	f.Uint8(audit.TagPurpose, uint8(b.rec.Purpose))
	f.Bytes(audit.TagAlgorithm, alg.ident)
	f.Text(audit.TagMechanism, mechanism)
	a, err := s.ledger.Append(ctx, audit.Event(audit.OpKeyImport, f), PutKey{b.rec})
	if err != nil {
		return 0, fmt.Errorf("recording the import of key %q: %w", b.rec.Name, err)
	}
	return a.Index, nil
}

// proveImport lets the imported key sign its challenge. One that is another key than
// its public half says is destroyed again.
func (i *ImportSession) proveImport(ctx context.Context, grant *admin.Grant, b *birth) error {
	s := i.store
	k, err := newKey(s, b.rec)
	if err != nil {
		return fmt.Errorf("key %q: %w", b.rec.Name, err)
	}
	s.mu.Lock()
	s.keys[k.name] = k
	s.mu.Unlock()
	if err := s.reload(ctx); err != nil {
		return err
	}
	err = s.proveOn(ctx, grant, k, i.member)
	if !errors.Is(err, errBadSig) && !errors.Is(err, errKeyFault) && !errors.Is(err, errUnusable) {
		return err
	}
	s.log.Warn("imported key did not prove itself", "key", k.name, "err", err)
	if err := i.undo(ctx); err != nil {
		return fmt.Errorf("key %q: %w; removing it: %w", k.name, ErrImport, err)
	}
	_, err = s.ledger.Append(context.WithoutCancel(ctx), audit.Event(audit.OpKeyState, k.stateFields(KeyDestroyed, "the imported key did not prove itself against its public half")),
		SetKeyState{ID: k.id, From: []KeyState{KeyBorn}, To: KeyDestroyed}, KeyGone{ID: k.id, Member: i.member.cfg.Name})
	if err != nil {
		return fmt.Errorf("recording that key %q is gone: %w", k.name, err)
	}
	k.setMembers(nil)
	k.setState(KeyDestroyed)
	return fmt.Errorf("key %q: %w", k.name, ErrImport)
}

// undo destroys what the session has put on the token.
func (i *ImportSession) undo(ctx context.Context) error {
	return i.do(context.WithoutCancel(ctx), cerImportUndo, struct{}{}, &json.RawMessage{})
}

// spreadImport copies an imported key to its other members and to backup recipients.
func (s *Store) spreadImport(ctx context.Context, grant *admin.Grant, b *birth, act string, to recipients) error {
	acts := []string{act}
	from, err := openSources(ctx, acts, []*birth{b})
	defer from.end()
	if err != nil {
		return err
	}
	err = s.spread(ctx, from, acts, []*birth{b}, func(c copied, b *birth) error {
		return s.recordCopy(ctx, grant, c, b, KeyCopied{ID: b.rec.ID, Member: c.member.cfg.Name})
	})
	if err != nil {
		return err
	}
	return s.backUpBirths(ctx, grant, to, from, []*birth{b})
}
