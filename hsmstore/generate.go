package hsmstore

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"chancery/admin"
	"chancery/audit"
)

// KeySpec says which key is to be born.
type KeySpec struct {
	Name      string
	Purpose   audit.Purpose
	Algorithm string // see [KeyRecord]
	Subject   []byte // issuer Name DER (RFC 5280 §4.1.2.4): issuer keys sign under no other name
	// Members that shall hold it; nil: all whose role allows it. A key on a member of native
	// replication, and a checkpoint key, is non-extractable and lives there alone.
	Members []string
}

// Act is the act that a grant must list for the key.
func (p KeySpec) Act() string {
	return admin.GenerateKeyAct(p.Name, p.Purpose.String(), p.Algorithm, p.Subject, p.Members...)
}

func (p KeySpec) validate() error {
	if err := checkName("key", p.Name); err != nil {
		return err
	}
	if _, known := allows[p.Purpose]; !known {
		return fmt.Errorf("key %s: keys of %s sign nothing", p.Name, p.Purpose)
	}
	if _, err := algorithmByName(p.Algorithm); err != nil {
		return fmt.Errorf("key %s: %w", p.Name, err)
	}
	if (p.Purpose == audit.PurposeSecret) != (p.Algorithm == algAES) {
		return fmt.Errorf("key %s: purpose secret and algorithm %s go together, and with no other", p.Name, algAES)
	}
	if (p.Purpose == audit.PurposeIssuer) != (len(p.Subject) > 0) {
		return fmt.Errorf("key %s: issuer keys have a subject, no others do", p.Name)
	}
	return nil
}

// birth is a key on its way from a spec to a usable key.
type birth struct {
	spec    KeySpec
	members []*member
	origin  *member // where it is born
	object  keyObject
	rec     KeyRecord
	born    bornKey
	fresh   bool     // born in this ceremony, not by one that was cut short
	backup  bool     // it is wrapped to the backup recipients
	becomes KeyState // with its last proof; "": usable
}

// GenerateKey bears one key; see [Store.GenerateKeys].
func (s *Store) GenerateKey(ctx context.Context, grant *admin.Grant, spec KeySpec) (*Key, error) {
	keys, err := s.GenerateKeys(ctx, grant, spec)
	if err != nil {
		return nil, err
	}
	return keys[0], nil
}

// GenerateKeys bears keys in one ceremony: it spends the act of each, bears them
// on one member, copies them to the others of their specs, wraps them to the backup
// recipients, and proves each copy through the door; each step is on the ledger. Only then are they usable. A key
// that an interrupted ceremony left unproved is taken up where it stands.
//
// All members of the specs must be up. On a member of native replication a key is
// non-extractable and can have no other member; a key that no module can wrap
// (Ed25519) lives on one member too.
//
// Errors wrap admin.ErrNotGranted, ErrUnavailable, ErrPIN, audit.ErrExists for a name
// that is taken.
func (s *Store) GenerateKeys(ctx context.Context, grant *admin.Grant, specs ...KeySpec) ([]*Key, error) {
	for _, p := range specs {
		if _, err := s.anyKey(p.Name); err != nil && p.Purpose == audit.PurposeCheckpoint && len(p.Members) != 1 {
			return nil, fmt.Errorf("key %q: a checkpoint key never leaves its member; name the one that shall hold it", p.Name)
		}
	}
	unlock, err := s.ceremony(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	return s.generate(s.under(ctx, grant), grant, specs)
}

// generate is GenerateKeys, with keysMu held.
func (s *Store) generate(ctx context.Context, grant *admin.Grant, specs []KeySpec) ([]*Key, error) {
	var wanted []string
	for _, p := range specs {
		wanted = append(wanted, p.Act())
	}
	recipients, err := s.recipientsFor(ctx, wanted, slices.ContainsFunc(specs, KeySpec.backedUp))
	if err != nil {
		return nil, err
	}
	defer recipients.end()
	births, acts, err := s.prepare(grant, specs)
	if err != nil {
		return nil, err
	}
	for _, b := range births {
		b.backup = len(recipients) > 0 && b.spec.backedUp() && !b.origin.native() && !b.origin.cfg.WeakUnwrap
	}
	sources, err := openSources(ctx, acts, births)
	defer sources.end()
	if err != nil {
		return nil, err
	}
	if err := s.bear(ctx, acts, births); err != nil {
		return nil, err
	}
	for _, b := range births {
		if !b.fresh {
			continue
		}
		rec := b.rec
		if b.rec.Birth, err = s.recordBirth(ctx, grant, b, PutKey{rec}); err != nil {
			return nil, err
		}
	}
	err = s.spread(ctx, sources, acts, births, func(c copied, b *birth) error {
		return s.recordCopy(ctx, grant, c, b, KeyCopied{ID: b.rec.ID, Member: c.member.cfg.Name})
	})
	if err != nil {
		return nil, err
	}
	if err := s.backUpBirths(ctx, grant, recipients, sources, births); err != nil {
		return nil, err
	}
	return s.prove(ctx, grant, births)
}

// prepare checks the specs and spends their acts, before anything happens.
func (s *Store) prepare(grant *admin.Grant, specs []KeySpec) ([]*birth, []string, error) {
	var out []*birth
	var acts []string
	for _, spec := range specs {
		if err := spec.validate(); err != nil {
			return nil, nil, err
		}
		b := &birth{spec: spec, fresh: true}
		s.mu.RLock()
		old := s.keys[spec.Name]
		s.mu.RUnlock()
		if old != nil {
			if old.State() != KeyBorn || old.purpose != spec.Purpose || old.alg.name != spec.Algorithm || string(old.subject) != string(spec.Subject) {
				return nil, nil, fmt.Errorf("key %q: %w", spec.Name, audit.ErrExists)
			}
			b.fresh, b.rec = false, old.record()
		}
		for _, m := range s.list() {
			named := slices.Contains(spec.Members, m.cfg.Name)
			if named && !m.holds(spec.Purpose) {
				return nil, nil, fmt.Errorf("key %q: member %s has the role %s and holds no keys for %s; name other members, or none for all that may", spec.Name, m.cfg.Name, m.cfg.Role, spec.Purpose)
			}
			if spec.Members == nil && m.holds(spec.Purpose) || named {
				if st := m.current(); st.State != Up {
					return nil, nil, fmt.Errorf("%w: key %q: member %s is %s; all members of a new key must be up", ErrUnavailable, spec.Name, m.cfg.Name, st.State)
				}
				b.members = append(b.members, m)
			}
		}
		if b.fresh && len(b.members) > 0 {
			b.origin = b.members[0]
		} else if b.origin = s.member(b.rec.Origin); b.origin == nil {
			return nil, nil, fmt.Errorf("key %q: its origin %q is no member", spec.Name, b.rec.Origin)
		}
		if len(b.members) == 0 || spec.Members != nil && len(b.members) != len(spec.Members) {
			return nil, nil, fmt.Errorf("key %q: its members %v are not all members of the cluster", spec.Name, spec.Members)
		}
		if err := canSpread(spec, b.members); err != nil {
			return nil, nil, err
		}
		out = append(out, b)
	}
	for _, b := range out {
		if err := grant.Spend(b.spec.Act()); err != nil {
			return nil, nil, fmt.Errorf("key %q: %w", b.spec.Name, err)
		}
		acts = append(acts, b.spec.Act())
	}
	return out, acts, nil
}

// canSpread refuses a key that its members cannot share, before it is born.
func canSpread(spec KeySpec, members []*member) error {
	if len(members) < 2 {
		return nil
	}
	names := make([]string, len(members))
	for i, m := range members {
		names[i] = m.cfg.Name
	}
	for _, m := range members {
		if m.native() {
			return fmt.Errorf("key %q: member %s replicates natively, so its keys are non-extractable and live on that one member; name the one member that shall hold the key, one of %s", spec.Name, m.cfg.Name, strings.Join(names, ", "))
		}
	}
	if spec.Algorithm == algEd25519 {
		return fmt.Errorf("key %q: Ed25519 keys cannot be copied between HSMs (SoftHSM 2.6 refuses to wrap them, CKR_KEY_UNEXTRACTABLE); name the one member that shall hold the key, one of %s, or take P-256", spec.Name, strings.Join(names, ", "))
	}
	return nil
}

// bear makes the fresh keys, each on the first of its members.
func (s *Store) bear(ctx context.Context, acts []string, births []*birth) error {
	for _, m := range s.list() {
		var mine []*birth
		var objects []keyObject
		for _, b := range births {
			b.object = keyObject{ID: b.rec.ID, Name: b.spec.Name, Purpose: b.spec.Purpose, Algorithm: b.spec.Algorithm, Subject: b.spec.Subject, SPKI: b.rec.SPKI,
				Act: b.spec.Act(), Replicable: !b.spec.alone() && !b.origin.native()}
			if b.fresh && b.origin == m {
				rand.Read(b.object.ID[:])
				mine, objects = append(mine, b), append(objects, b.object)
			}
		}
		if len(mine) == 0 {
			continue
		}
		born, err := s.generateOn(ctx, m, acts, objects)
		if err != nil {
			return err
		}
		for i, b := range mine {
			if _, _, err := parseSPKI(born[i].SPKI, b.spec.Algorithm); err != nil {
				return fmt.Errorf("member %s: key %q came out as another kind of key", m.cfg.Name, b.spec.Name)
			}
			b.born = born[i]
			b.object = objects[i]
			b.object.SPKI = born[i].SPKI
			b.rec = KeyRecord{ID: objects[i].ID, Name: b.spec.Name, Purpose: b.spec.Purpose, Algorithm: b.spec.Algorithm, SPKI: born[i].SPKI, Subject: b.spec.Subject,
				Origin: m.cfg.Name, Members: []string{m.cfg.Name}, Confined: b.spec.Members != nil, State: KeyBorn}
		}
	}
	return nil
}

// sources are the giving sides of a ceremony, by the member that gives.
type sources map[*member]*source

// openSources starts one for every member whose keys must be copied to others or
// backed up.
func openSources(ctx context.Context, acts []string, births []*birth) (sources, error) {
	out := sources{}
	for _, b := range births {
		if len(b.targets()) == 0 && !b.backup || out[b.origin] != nil {
			continue
		}
		src, err := openSource(ctx, b.origin, acts)
		if err != nil {
			return out, err
		}
		out[b.origin] = src
	}
	return out, nil
}

func (ss sources) end() {
	for _, src := range ss {
		src.end()
	}
}

// targets are the members that shall hold the key and do not.
func (b *birth) targets() (out []*member) {
	for _, m := range b.members {
		if m != b.origin && !slices.Contains(b.rec.Members, m.cfg.Name) {
			out = append(out, m)
		}
	}
	return out
}

// spread copies keys to those of their members that do not hold them yet.
func (s *Store) spread(ctx context.Context, from sources, acts []string, births []*birth, record func(copied, *birth) error) error {
	byID := map[KeyID]*birth{}
	for _, b := range births {
		byID[b.rec.ID] = b
	}
	for _, m := range s.list() {
		if from[m] == nil {
			continue
		}
		keys := map[*member][]keyObject{}
		for _, b := range births {
			if b.origin != m {
				continue
			}
			for _, target := range b.targets() {
				keys[target] = append(keys[target], b.object)
			}
		}
		err := s.replicate(ctx, m, from[m], acts, keys, func(c copied) error {
			b := byID[c.key.ID]
			if err := record(c, b); err != nil {
				return err
			}
			b.rec.Members = append(b.rec.Members, c.member.cfg.Name)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// recordBirth writes the leaf of a birth and returns its index.
func (s *Store) recordBirth(ctx context.Context, grant *admin.Grant, b *birth, p ...audit.Projection) (uint64, error) {
	alg, err := algorithmByName(b.rec.Algorithm)
	if err != nil {
		return 0, err
	}
	f := s.keyFields(grant, b, s.member(b.rec.Origin), b.born.Attributes)
	f.Bytes(audit.TagSPKI, b.rec.SPKI)
	f.Uint8(audit.TagPurpose, uint8(b.rec.Purpose))
	f.Bytes(audit.TagAlgorithm, alg.ident)
	a, err := s.ledger.Append(ctx, audit.Event(audit.OpKeyGenerate, f), p...)
	if err != nil {
		return 0, fmt.Errorf("recording the birth of key %q: %w", b.rec.Name, err)
	}
	return a.Index, nil
}

func (s *Store) recordCopy(ctx context.Context, grant *admin.Grant, c copied, b *birth, p ...audit.Projection) error {
	f := s.keyFields(grant, b, c.member, c.born.Attributes)
	f.Text(audit.TagSource, b.rec.Origin)
	f.Text(audit.TagMechanism, c.mechanism)
	if _, err := s.ledger.Append(ctx, audit.Event(audit.OpKeyReplicate, f), p...); err != nil {
		return fmt.Errorf("recording the copy of key %q on member %s: %w", b.rec.Name, c.member.cfg.Name, err)
	}
	return nil
}

// keyFields are what all leaves about a key on a member have.
func (s *Store) keyFields(grant *admin.Grant, b *birth, m *member, attributes []string) audit.Fields {
	var f audit.Fields
	f.Hash(audit.TagKey, sha256.Sum256(b.rec.SPKI))
	f.Text(audit.TagKeyName, b.rec.Name)
	f.Text(audit.TagMember, m.cfg.Name)
	f.Text(audit.TagSerialNumber, m.current().Serial)
	f.Hash(audit.TagGrant, grant.Hash())
	items := make([][]byte, len(attributes))
	for i, a := range attributes {
		items[i] = []byte(a)
	}
	f.List(audit.TagAttributes, items...)
	return f
}

// prove lets every copy sign a challenge through the door; with the last proof of
// a key it becomes usable.
func (s *Store) prove(ctx context.Context, grant *admin.Grant, births []*birth) ([]*Key, error) {
	keys := make([]*Key, len(births))
	for i, b := range births {
		k, err := newKey(s, b.rec)
		if err != nil {
			return nil, fmt.Errorf("key %q: %w", b.spec.Name, err)
		}
		s.mu.Lock()
		s.keys[k.name] = k
		s.mu.Unlock()
		keys[i] = k
	}
	if err := s.reload(ctx); err != nil {
		return nil, err
	}
	for i, b := range births {
		if b.becomes == "" {
			b.becomes = KeyUsable
		}
		for j, m := range b.members {
			var last []audit.Projection
			if j == len(b.members)-1 {
				last = append(last, SetKeyState{ID: b.rec.ID, From: []KeyState{KeyBorn}, To: b.becomes})
			}
			proof := s.proveOn
			if m.native() {
				proof = s.proveNative
			}
			if err := proof(ctx, grant, keys[i], m, last...); err != nil {
				return nil, fmt.Errorf("proving key %q on member %s: %w", b.spec.Name, m.cfg.Name, err)
			}
		}
		keys[i].setState(b.becomes)
	}
	return keys, nil
}

const (
	// nativeProofs in a row say that the nodes of a vendor's cluster know a key: each
	// signature may be made by another node.
	nativeProofs = 3
	// nativePatience bounds the wait for the vendor's replication.
	nativePatience = 60 * time.Second
	nativePause    = 200 * time.Millisecond
)

// proveNative waits until the vendor's nodes know a fresh key: it is looked for and
// challenged until enough signatures in a row were made. p goes with the last one.
func (s *Store) proveNative(ctx context.Context, grant *admin.Grant, k *Key, m *member, p ...audit.Projection) error {
	ctx, cancel := context.WithTimeout(ctx, nativePatience)
	defer cancel()
	for good := 0; ; {
		var last []audit.Projection
		if good == nativeProofs-1 {
			last = p
		}
		err := s.proveOn(ctx, grant, k, m, last...)
		if err == nil {
			if good++; good == nativeProofs {
				return nil
			}
			continue
		}
		if !errors.Is(err, ErrUnavailable) && !errors.Is(err, errUnusable) {
			return err
		}
		good = 0
		select {
		case <-time.After(nativePause):
		case <-ctx.Done():
			return fmt.Errorf("the nodes behind the module did not all know the key within %v: %w", nativePatience, err)
		}
		if err := s.reload(ctx); err != nil {
			return err
		}
	}
}

func (s *Store) proveOn(ctx context.Context, grant *admin.Grant, k *Key, m *member, p ...audit.Projection) error {
	m.mu.Lock()
	why := m.bad[k.id]
	m.mu.Unlock()
	if why != "" {
		return fmt.Errorf("%w: %s", errUnusable, why)
	}
	var nonce [32]byte
	rand.Read(nonce[:])
	text := proofText(s.ledger.ID(), k.spkiHash, m.current().Serial, nonce)
	op, err := k.begin(ctx, SignRequest{Op: audit.OpKeyProof, Message: text, Requester: "ceremony", Grant: grant.Hash(), MaxAttempts: 1}, m)
	if err != nil {
		return err
	}
	defer op.Close()
	sig, err := op.SignMessage(nil, text, k.alg.hash)
	if err != nil {
		return err
	}
	// The artefact of a proof is text and signature together.
	_, err = op.Commit(ctx, audit.Done{Artefact: sha256.Sum256(append(text[:len(text):len(text)], sig...))}, p...)
	return err
}
