package hsmstore

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"chancery/admin"
	"chancery/audit"
)

// ErrNoRecipient: no backup recipient has that name.
var ErrNoRecipient = errors.New("no such backup recipient")

// openRecipient is a recipient whose ceremony process runs, with its SO logged in.
type openRecipient struct {
	rec  RecipientRecord
	proc *ceremonyProcess
	has  map[KeyID]bool
}

type recipients []*openRecipient

func (rs recipients) end() {
	for _, r := range rs {
		r.proc.end()
	}
}

// Recipients lists the backup recipients by name, also those that were removed.
func (s *Store) Recipients(ctx context.Context) ([]RecipientRecord, error) {
	if s.cfg.Backup == nil {
		return nil, nil
	}
	return s.cfg.Backup.Recipients(ctx)
}

// recipient is one that is designated.
func (s *Store) recipient(ctx context.Context, name string) (RecipientRecord, error) {
	all, err := s.Recipients(ctx)
	if err != nil {
		return RecipientRecord{}, fmt.Errorf("reading backup recipients: %w", err)
	}
	for _, r := range all {
		if r.Name == name && !r.Removed {
			return r, s.designated(ctx, r)
		}
	}
	return RecipientRecord{}, fmt.Errorf("%w: %q; name one in hsm.backups and designate it: chancery hsm backup NAME --designate", ErrNoRecipient, audit.Text(name, 64))
}

// designated wants the leaf of a designation: a row alone designates nobody.
func (s *Store) designated(ctx context.Context, rec RecipientRecord) error {
	l, err := s.ledger.Leaf(ctx, rec.Leaf)
	if err != nil && !errors.Is(err, audit.ErrNotFound) {
		return fmt.Errorf("reading the designation of backup recipient %s: %w", rec.Name, err)
	}
	text := func(t audit.Tag) string { b, _ := l.Get(t); return string(b) }
	if err != nil || l.Op != audit.OpBackup || text(audit.TagState) != stateDesignated || text(audit.TagRecipient) != rec.Name || text(audit.TagSerialNumber) != rec.Serial {
		return fmt.Errorf("%w: the database has a backup recipient %s with token %s, whose designation is not entry %d of the ledger: someone wrote to the database; chancery audit verify", audit.ErrTampered, rec.Name, rec.Serial, rec.Leaf)
	}
	return nil
}

const (
	stateDesignated = "designated"
	stateRemoved    = "removed"
)

// openRecipient starts a recipient's ceremony process.
func (s *Store) openRecipient(ctx context.Context, rec RecipientRecord, acts []string, so bool) (*openRecipient, error) {
	cfg, err := s.cfg.BackupToken(rec.Name)
	if err != nil {
		return nil, err
	}
	if cfg.TokenSerial != "" && cfg.TokenSerial != rec.Serial {
		return nil, fmt.Errorf("%w: token %s is designated, the configuration names %s", ErrToken, rec.Serial, cfg.TokenSerial)
	}
	cfg.atDevice = s.waitAtDevice
	r := &openRecipient{rec: rec, has: map[KeyID]bool{}}
	if r.proc, err = startCeremony(ctx, cfg, rec.Serial, acts, so); err != nil {
		return nil, err
	}
	blobs, err := s.cfg.Backup.Backups(ctx, rec.Name)
	if err != nil {
		r.proc.end()
		return nil, fmt.Errorf("reading the backups of %s: %w", rec.Name, err)
	}
	for _, b := range blobs {
		r.has[b.Key] = true
	}
	return r, nil
}

// recipientsFor opens every recipient, if that is needed, for keys that are to come by
// some acts. Keys are wrapped at birth, so that a recipient that is away stops the birth
// before anything happens.
func (s *Store) recipientsFor(ctx context.Context, acts []string, needed bool) (recipients, error) {
	if !needed {
		return nil, nil
	}
	all, err := s.Recipients(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading backup recipients: %w", err)
	}
	var out recipients
	for _, rec := range all {
		if rec.Removed {
			continue
		}
		if err := s.designated(ctx, rec); err != nil {
			out.end()
			return nil, err
		}
		r, err := s.openRecipient(ctx, rec, acts, true)
		if err != nil {
			out.end()
			return nil, fmt.Errorf("backup recipient %s: new keys are wrapped to it at their birth, so its token must be reachable with both PINs now; nothing was done. Bring it up, or end its designation with the officers (chancery hsm backup %s --remove): %w", rec.Name, rec.Name, err)
		}
		out = append(out, r)
	}
	return out, nil
}

// backedUp tells whether a key is wrapped at birth: not what is bound to this ledger or
// to one member, and not what no module wraps.
func (p KeySpec) backedUp() bool {
	return p.Purpose != audit.PurposeProbe && p.Purpose != audit.PurposeCheckpoint && p.Members == nil && p.Algorithm != algEd25519
}

// leftOut tells why a key has no backup and gets none, or "".
func (s *Store) leftOut(k *Key) string {
	switch {
	case k.purpose == audit.PurposeProbe || k.purpose == audit.PurposeCheckpoint:
		return "it belongs to this ledger; a new one gets its own"
	case k.adopted != nil:
		return "it was adopted: its maker has it"
	case k.confined:
		return "its members were named at its birth: it lives there alone"
	case k.alg.scheme == eddsaScheme:
		return "modules do not wrap Ed25519 keys"
	case !slices.ContainsFunc(s.list(), func(m *member) bool { return k.on(m) && !m.native() && !m.cfg.WeakUnwrap }):
		return "its members cannot give it wrapped: use their vendor's backup"
	}
	return ""
}

// toBackUp are the living keys that a recipient shall have, by age.
func (s *Store) toBackUp() (out []*Key) {
	for _, k := range s.all() {
		if st := k.State(); s.leftOut(k) == "" && st != KeyDestroyed && st != KeyBorn {
			out = append(out, k)
		}
	}
	slices.SortFunc(out, func(a, b *Key) int { return int(a.birth) - int(b.birth) })
	return out
}

// MissingBackups names the keys that a recipient shall have and does not.
func (s *Store) MissingBackups(ctx context.Context, name string) ([]string, error) {
	if _, err := s.recipient(ctx, name); err != nil {
		return nil, err
	}
	blobs, err := s.cfg.Backup.Backups(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("reading the backups of %s: %w", name, err)
	}
	var out []string
	for _, k := range s.toBackUp() {
		if !slices.ContainsFunc(blobs, func(b BackupRecord) bool { return b.Key == k.id }) {
			out = append(out, k.name)
		}
	}
	return out, nil
}

// Designate makes a token a backup recipient: a throw-away key travels there and proves
// that it can be one, and from now on every new key is wrapped to it at birth. Keys that are
// there already are wrapped by [Store.Backup]. What a recipient that was removed has got
// before, it still has. The act is admin.BackupRecipientAct.
//
// Errors wrap admin.ErrNotGranted, audit.ErrExists for a token of the cluster, ErrToken,
// ErrPIN, ErrModule.
func (s *Store) Designate(ctx context.Context, grant *admin.Grant, cfg MemberConfig) (RecipientRecord, error) {
	unlock, err := s.ceremony(ctx)
	if err != nil {
		return RecipientRecord{}, err
	}
	defer unlock()
	cand, err := s.InspectRecipient(ctx, cfg)
	if err != nil {
		return RecipientRecord{}, err
	}
	act := cand.Acts[0]
	if err := grant.Spend(act); err != nil {
		return RecipientRecord{}, fmt.Errorf("backup recipient %s: %w", cfg.Name, err)
	}
	ctx = s.under(ctx, grant)
	rec := RecipientRecord{Name: cfg.Name, Serial: cand.Serial, Label: cand.Label}
	if err := s.tryRecipient(ctx, cfg, rec, act); err != nil {
		return rec, err
	}
	a, err := s.ledger.Append(ctx, audit.Event(audit.OpBackup, recipientFields(rec, grant, stateDesignated)), PutRecipient{rec})
	if err != nil {
		return rec, fmt.Errorf("recording backup recipient %s: %w", rec.Name, err)
	}
	rec.Leaf = a.Index
	return rec, nil
}

// tryRecipient lets throw-away keys travel from some member to a token that is to become
// a recipient. Nothing stays there.
func (s *Store) tryRecipient(ctx context.Context, cfg MemberConfig, rec RecipientRecord, act string) error {
	var from *member
	for _, m := range s.list() {
		if m.worker() != nil && !m.native() && !m.cfg.WeakUnwrap && from == nil {
			from = m
		}
	}
	if from == nil {
		return fmt.Errorf("%w: no member that can give keys wrapped is up", ErrUnavailable)
	}
	cfg.atDevice = s.waitAtDevice
	proc, err := startCeremony(ctx, cfg, rec.Serial, []string{act}, true)
	if err != nil {
		return fmt.Errorf("backup recipient %s: %w", rec.Name, err)
	}
	defer proc.end()
	src, err := openSource(ctx, from, []string{act})
	if err != nil {
		return err
	}
	defer src.end()
	r := &openRecipient{rec: rec, proc: proc}
	if _, err := r.open(ctx, src, backupTypes); err != nil {
		return err
	}
	defer r.drop(s)
	for _, typ := range backupTypes {
		if _, err := backupWay(ctx, src.proc, r, typ); err != nil {
			return err
		}
	}
	return nil
}

func recipientFields(rec RecipientRecord, grant *admin.Grant, state string) (f audit.Fields) {
	f.Text(audit.TagRecipient, rec.Name)
	f.Text(audit.TagSerialNumber, rec.Serial)
	f.Hash(audit.TagGrant, grant.Hash())
	f.Text(audit.TagState, state)
	return f
}

// InspectRecipient looks at the token of a recipient that is to be designated.
func (s *Store) InspectRecipient(ctx context.Context, cfg MemberConfig) (Candidate, error) {
	cand, err := s.Inspect(ctx, cfg)
	if err != nil {
		return cand, err
	}
	cand.Acts = []string{admin.BackupRecipientAct(cfg.Name, cand.Serial)}
	for _, m := range s.list() {
		if m.current().Serial == cand.Serial {
			return cand, fmt.Errorf("%w: token %s is member %s of the cluster; a backup belongs on a token elsewhere", audit.ErrExists, cand.Serial, m.cfg.Name)
		}
	}
	all, err := s.Recipients(ctx)
	if err != nil {
		return cand, fmt.Errorf("reading backup recipients: %w", err)
	}
	for _, r := range all {
		if r.Serial == cand.Serial && r.Name != cfg.Name {
			return cand, fmt.Errorf("%w: token %s is backup recipient %s", audit.ErrExists, cand.Serial, r.Name)
		}
		if r.Serial != cand.Serial && r.Name == cfg.Name {
			return cand, fmt.Errorf("%w: backup recipient %s is token %s, which has its backups; give token %s another name", audit.ErrExists, r.Name, r.Serial, cand.Serial)
		}
	}
	return cand, nil
}

// NotRecipient refuses a token that receives backups: a backup belongs outside the
// cluster. The error wraps audit.ErrExists.
func (s *Store) NotRecipient(ctx context.Context, serial string) error {
	all, err := s.Recipients(ctx)
	if err != nil {
		return fmt.Errorf("reading backup recipients: %w", err)
	}
	for _, r := range all {
		if r.Serial == serial && !r.Removed {
			return fmt.Errorf("%w: token %s is backup recipient %s, which belongs outside the cluster; take another token, or end its designation first (chancery hsm backup %s --remove)", audit.ErrExists, serial, r.Name, r.Name)
		}
	}
	return nil
}

// RemoveRecipient ends a designation. Nothing on its token changes: it can still restore
// what it has. The act is admin.RemoveRecipientAct.
func (s *Store) RemoveRecipient(ctx context.Context, grant *admin.Grant, name string) error {
	unlock, err := s.ceremony(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	rec, err := s.recipient(ctx, name)
	if err != nil {
		return err
	}
	if err := grant.Spend(admin.RemoveRecipientAct(name, rec.Serial)); err != nil {
		return fmt.Errorf("backup recipient %s: %w", name, err)
	}
	if _, err := s.ledger.Append(ctx, audit.Event(audit.OpBackup, recipientFields(rec, grant, stateRemoved)), RecipientRemoved{name}); err != nil {
		return fmt.Errorf("removing backup recipient %s: %w", name, err)
	}
	return nil
}

// Backup wraps every key that a recipient shall have and does not, and returns their
// names. Each blob has proved itself on the recipient before it counts. The act is
// admin.BackupAct; members that hold the keys and the recipient must be up, with the SO
// PINs of both. Errors wrap ErrNoRecipient, admin.ErrNotGranted, ErrUnavailable, ErrPIN.
func (s *Store) Backup(ctx context.Context, grant *admin.Grant, name string) ([]string, error) {
	unlock, err := s.ceremony(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	rec, err := s.recipient(ctx, name)
	if err != nil {
		return nil, err
	}
	act := admin.BackupAct(name, rec.Serial)
	if err := grant.Spend(act); err != nil {
		return nil, fmt.Errorf("backup to %s: %w", name, err)
	}
	ctx = s.under(ctx, grant)
	r, err := s.openRecipient(ctx, rec, []string{act}, true)
	if err != nil {
		return nil, fmt.Errorf("backup recipient %s: %w", name, err)
	}
	defer r.proc.end()
	keys := map[*member][]keyObject{}
	names := []string{}
	for _, k := range s.toBackUp() {
		if r.has[k.id] {
			continue
		}
		from := s.giver(k)
		if from == nil {
			return nil, fmt.Errorf("%w: no member that can give key %s wrapped is up", ErrUnavailable, k.name)
		}
		keys[from] = append(keys[from], k.object())
		names = append(names, k.name)
	}
	for from, objects := range keys {
		src, err := openSource(ctx, from, []string{act})
		if err != nil {
			return nil, err
		}
		err = s.wrapTo(ctx, grant, src, r, objects)
		src.end()
		if err != nil {
			return nil, fmt.Errorf("backup of member %s to %s: %w", from.cfg.Name, name, err)
		}
	}
	return names, nil
}

// backUpBirths wraps keys that are being born to the recipients.
func (s *Store) backUpBirths(ctx context.Context, grant *admin.Grant, to recipients, from sources, births []*birth) error {
	for m, src := range from {
		for _, r := range to {
			var objects []keyObject
			for _, b := range births {
				if b.origin == m && b.backup && !r.has[b.rec.ID] {
					objects = append(objects, b.object)
				}
			}
			if len(objects) == 0 {
				continue
			}
			if err := s.wrapTo(ctx, grant, src, r, objects); err != nil {
				return fmt.Errorf("wrapping new keys to backup recipient %s: %w", r.rec.Name, err)
			}
		}
	}
	return nil
}

// open makes KEKs at a recipient and gives them to the source.
func (r *openRecipient) open(ctx context.Context, src *source, types []uint) ([]madeKEK, error) {
	<-src.ready
	if src.err != nil {
		return nil, src.err
	}
	var made []madeKEK
	if err := r.proc.do(ctx, cerBackupOpen, openBackup{Recipient: r.rec.Name, Modulus: src.tr.Modulus, Types: types}, &made); err != nil {
		return nil, err
	}
	if len(made) != len(types) {
		return nil, fmt.Errorf("%d KEKs were to be made, %d were", len(types), len(made))
	}
	keks := make([]wrappedKEK, len(made))
	for i, k := range made {
		keks[i] = wrappedKEK{types[i], k.Blob}
	}
	return made, src.proc.do(ctx, cerTakeKEKs, keks, &struct{}{})
}

// drop destroys the KEKs that were made and are not needed.
func (r *openRecipient) drop(s *Store) {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if err := r.proc.do(ctx, cerBackupDrop, struct{}{}, &struct{}{}); err != nil {
		s.log.Warn("KEKs that no backup needs stay on the token of a recipient", "recipient", r.rec.Name, "err", err)
	}
}

// wrapTo wraps keys to a recipient, lets each blob prove itself there, and records it.
func (s *Store) wrapTo(ctx context.Context, grant *admin.Grant, src *source, r *openRecipient, keys []keyObject) (err error) {
	types := make([]uint, len(keys))
	var distinct []uint
	for i, o := range keys {
		pub, _, err := parseSPKI(o.SPKI, o.Algorithm)
		if err != nil {
			return err
		}
		if types[i] = keyTypeOf(pub); !slices.Contains(distinct, types[i]) {
			distinct = append(distinct, types[i])
		}
	}
	// 1. New KEKs, from the recipient to the source.
	made, err := r.open(ctx, src, distinct)
	if err != nil {
		return err
	}
	recorded := false
	defer func() {
		if err != nil && !recorded {
			r.drop(s)
		}
	}()
	// 2. A throw-away key of each type goes ahead, every time.
	chosen := make([]int, len(distinct))
	for i, typ := range distinct {
		if chosen[i], err = backupWay(ctx, src.proc, r, typ); err != nil {
			return err
		}
	}
	wrap := make([]wrappedKey, len(keys))
	for i, o := range keys {
		at := slices.Index(distinct, types[i])
		wrap[i] = wrappedKey{Key: o, Way: chosen[at], Target: r.rec.Name, Serial: r.rec.Serial, KEK: &made[at].BackupKEK}
	}
	// 3. The keys. Nothing but the blobs is taken from the source.
	var wrapped []wrappedKey
	if err := src.proc.do(ctx, cerWrap, wrap, &wrapped); err != nil {
		return err
	}
	if len(wrapped) != len(wrap) {
		return fmt.Errorf("%d keys were to be wrapped, %d were", len(wrap), len(wrapped))
	}
	for i := range wrap {
		wrap[i].Blob = wrapped[i].Blob
	}
	// 4. Each is what it should be.
	checks, err := s.proveBackups(ctx, r, wrap)
	if err != nil {
		return err
	}
	for _, c := range checks {
		if !c.OK {
			return fmt.Errorf("%w: key %s does not come back from its backup: %s", ErrModule, c.Key, c.Why)
		}
	}
	for _, w := range wrap {
		var f audit.Fields
		f.Hash(audit.TagKey, sha256.Sum256(w.Key.SPKI))
		f.Text(audit.TagKeyName, w.Key.Name)
		f.Text(audit.TagRecipient, r.rec.Name)
		f.Text(audit.TagSerialNumber, r.rec.Serial)
		f.Text(audit.TagMechanism, ways[w.Way].name)
		f.Hash(audit.TagSubject, sha256.Sum256(w.Blob))
		f.Hash(audit.TagGrant, grant.Hash())
		if _, err := s.ledger.Append(ctx, audit.Event(audit.OpBackup, f), PutBackup{BackupRecord{Key: w.Key.ID, Recipient: r.rec.Name, Way: w.Way, KEK: *w.KEK, Blob: w.Blob}}); err != nil {
			return fmt.Errorf("recording the backup of key %s: %w", w.Key.Name, err)
		}
		recorded = true
		r.has[w.Key.ID] = true
	}
	return nil
}

// backupWay lets a throw-away key travel to a recipient, and wants that nobody there can
// take it weaker than it was. Unlike between members this is tried each time: the KEK
// stays there all the year.
func backupWay(ctx context.Context, src *ceremonyProcess, r *openRecipient, keyType uint) (int, error) {
	alg, ok := testAlgorithms[keyType]
	if !ok {
		return 0, fmt.Errorf("keys of type %#x cannot be wrapped", keyType)
	}
	between := slices.DeleteFunc(waysBetween(src.token.Mechanisms, r.proc.token.Mechanisms), func(i int) bool { return ways[i].hop != nil })
	if len(between) == 0 {
		return 0, fmt.Errorf("%w: the modules have no wrapping mechanism in common (one of AES key wrap 0x2109, 0x210A, 0x210B is needed on both sides)", ErrModule)
	}
	var key testKey
	if err := src.do(ctx, cerWrapTest, wrapTest{Algorithm: alg, Ways: between}, &key); err != nil {
		return 0, err
	}
	var v backupVerdict
	if err := r.proc.do(ctx, cerBackupTest, key, &v); err != nil {
		return 0, err
	}
	switch {
	case v.Way < 0 || v.Way >= len(ways):
		return 0, fmt.Errorf("%w: no way of wrapping works between the modules; the last one said: %s", ErrModule, v.Why)
	case len(v.Weak) > 0:
		return 0, fmt.Errorf("%w: the KEK of backup recipient %s let a throw-away key come out with another %s, so whoever has its PIN could read the keys; nothing was wrapped. Its module does not keep unwrap templates: take another for backups", ErrModule, r.rec.Name, strings.Join(v.Weak, ", "))
	}
	return v.Way, nil
}

// BackupCheck is what became of one wrapped key that was to prove itself.
type BackupCheck struct {
	Key    string `json:"key"`
	SPKI   string `json:"spki_sha256"` // hex
	OK     bool   `json:"ok"`
	Why    string `json:"why,omitempty"` // it is not
	Millis int64  `json:"ms"`
}

// proveBackups lets blobs prove themselves on a recipient. That is a use of the keys, so
// that each has its intent first.
func (s *Store) proveBackups(ctx context.Context, r *openRecipient, keys []wrappedKey) ([]BackupCheck, error) {
	serial := r.proc.token.Serial
	ask := newProof(s.ledger.ID(), keys)
	var keks []BackupKEK
	for _, w := range keys {
		keks = append(keks, *w.KEK)
	}
	if err := r.proc.do(ctx, cerBackupFind, keks, &struct{}{}); err != nil { // a wrong PIN is noticed before anything is promised
		return nil, err
	}
	opened := make([]audit.Opened, 0, len(keys))
	finished := map[uint64]bool{}
	defer func() {
		for _, o := range opened { // whatever ended this early
			if !finished[o.Index] {
				s.closeProof(ctx, o, "the proof of a backup was cut short; a signature may exist")
			}
		}
	}()
	for i, w := range keys {
		alg, err := algorithmByName(w.Key.Algorithm)
		if err != nil {
			return nil, err
		}
		text := ask.text(i, serial)
		o, err := s.ledger.Begin(ctx, audit.Intent{Op: audit.OpKeyProof, Key: sha256.Sum256(w.Key.SPKI), Purpose: w.Key.Purpose, Algorithm: alg.ident, TBSHash: sha256.Sum256(text), TBSLength: uint64(len(text)),
			Requester: "backup:" + r.rec.Name, MaxAttempts: 1, Member: serial})
		if err != nil {
			return nil, fmt.Errorf("committing the intent to prove the backup of key %s: %w", w.Key.Name, err)
		}
		s.opens.Store(o.Index, struct{}{})
		opened = append(opened, o)
	}
	checks, sigs, err := ask.run(ctx, r.proc)
	if err != nil {
		return nil, err
	}
	for i, o := range opened {
		finished[o.Index] = true
		if sigs[i] == nil {
			s.closeProof(ctx, o, "the backup did not prove itself: "+checks[i].Why)
			continue
		}
		text := ask.text(i, serial)
		done := audit.Done{Signature: sha256.Sum256(sigs[i]), Artefact: sha256.Sum256(append(text[:len(text):len(text)], sigs[i]...)), Attempts: []audit.Attempt{{Member: "backup:" + r.rec.Name, Count: 1}}}
		var p []audit.Projection
		if n, ok := keys[i].Key.nonce(sigs[i], sha256.Sum256(text)); ok {
			p = append(p, n)
		}
		if _, err := s.ledger.Done(context.WithoutCancel(ctx), o, done, p...); err != nil {
			return nil, fmt.Errorf("recording the proof of key %s: %w", keys[i].Key.Name, err)
		}
		s.opens.Delete(o.Index)
	}
	return checks, nil
}

// closeProof closes the intent of a proof that came to nothing.
func (s *Store) closeProof(ctx context.Context, o audit.Opened, why string) {
	if _, err := s.ledger.Orphan(context.WithoutCancel(ctx), o, audit.Text(why, 500), nil); err != nil {
		s.log.Error("intent stays open for now", "intent", o.Index, "err", err)
	}
	s.opens.Delete(o.Index)
}

// newProof asks for a proof of each key, with a fresh nonce.
func newProof(ledger audit.LedgerID, keys []wrappedKey) *proveBackup {
	q := &proveBackup{Ledger: hex.EncodeToString(ledger[:]), Keys: keys}
	for range keys {
		nonce := make([]byte, 32)
		rand.Read(nonce)
		q.Nonces = append(q.Nonces, nonce)
	}
	return q
}

// text is the challenge of one key on the token of a serial number.
func (q *proveBackup) text(i int, serial string) []byte {
	var ledger audit.LedgerID
	_, _ = hex.Decode(ledger[:], []byte(q.Ledger)) // newProof wrote it
	return proofText(ledger, sha256.Sum256(q.Keys[i].Key.SPKI), serial, [32]byte(q.Nonces[i]))
}

// run has a recipient's process prove the keys and verifies the signatures. A key without
// a signature that verifies has nil.
func (q *proveBackup) run(ctx context.Context, proc *ceremonyProcess) ([]BackupCheck, [][]byte, error) {
	var made []proofMade
	if err := proc.do(ctx, cerProve, q, &made); err != nil {
		return nil, nil, err
	}
	if len(made) != len(q.Keys) {
		return nil, nil, fmt.Errorf("%d keys were to prove themselves, %d did", len(q.Keys), len(made))
	}
	checks, sigs := make([]BackupCheck, len(made)), make([][]byte, len(made))
	for i, p := range made {
		o := q.Keys[i].Key
		c := BackupCheck{Key: o.Name, SPKI: fmt.Sprintf("%x", sha256.Sum256(o.SPKI)), Millis: p.Took.Milliseconds(), Why: p.Why}
		pub, alg, err := parseSPKI(o.SPKI, o.Algorithm)
		switch {
		case err != nil:
			c.Why = err.Error()
		case p.Signature == nil:
		case !alg.verify(pub, alg.digest(q.text(i, proc.token.Serial)), p.Signature):
			c.Why = "its signature does not verify with the pinned public key"
		default:
			sigs[i] = bytes.Clone(p.Signature)
			if len(p.Weak) > 0 {
				c.Why = "it also comes out with another " + strings.Join(p.Weak, ", ") + ": whoever has the recipient's PIN can read it"
			}
		}
		c.OK = sigs[i] != nil && c.Why == ""
		checks[i] = c
	}
	return checks, sigs, nil
}

// VerifyBackup lets every key that a recipient has prove itself there: unwrapped as a
// session object, it signs a challenge and is destroyed again. Each is on the ledger.
// Errors mean that the check could not be made; they wrap ErrNoRecipient, ErrModule,
// ErrToken, ErrPIN.
func (s *Store) VerifyBackup(ctx context.Context, name string) ([]BackupCheck, error) {
	if s.retired.Load() {
		return nil, errRetired
	}
	// Not under the ceremonies' lock: they must not wait for a proof of many keys.
	if !s.provingBackup.TryLock() {
		return nil, fmt.Errorf("%w: the keys of a backup are proving themselves already", ErrBusy)
	}
	defer s.provingBackup.Unlock()
	rec, err := s.recipient(ctx, name)
	if err != nil {
		return nil, err
	}
	keys, err := s.BackupKeys(ctx, name)
	if err != nil {
		return nil, err
	}
	r, err := s.openRecipient(ctx, rec, nil, false)
	if err != nil {
		return nil, fmt.Errorf("backup recipient %s: %w", name, err)
	}
	defer r.proc.end()
	return s.proveBackups(ctx, r, wrappedKeys(rec, keys))
}

// BackupKey is a key as a backup holds it.
type BackupKey struct {
	KeyRecord
	Way  int
	KEK  BackupKEK
	Blob []byte
}

// BackupKeys are the living keys that a recipient has, by age, as a manifest lists them.
func (s *Store) BackupKeys(ctx context.Context, name string) (out []BackupKey, err error) {
	if _, err := s.recipient(ctx, name); err != nil {
		return nil, err
	}
	blobs, err := s.cfg.Backup.Backups(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("reading the backups of %s: %w", name, err)
	}
	for _, k := range s.toBackUp() {
		for _, b := range blobs {
			if b.Key == k.id {
				out = append(out, BackupKey{KeyRecord: k.record(), Way: b.Way, KEK: b.KEK, Blob: b.Blob})
			}
		}
	}
	return out, nil
}

// LeftOut tells by name which living keys no backup holds, and why.
func (s *Store) LeftOut() map[string]string {
	out := map[string]string{}
	for _, k := range s.all() {
		if why := s.leftOut(k); why != "" && k.State() != KeyDestroyed {
			out[k.name] = why
		}
	}
	return out
}

func wrappedKeys(rec RecipientRecord, keys []BackupKey) []wrappedKey {
	out := make([]wrappedKey, len(keys))
	for i, k := range keys {
		out[i] = wrappedKey{Way: k.Way, KEK: &keys[i].KEK, Target: rec.Name, Serial: rec.Serial, Blob: k.Blob,
			Key: keyObject{ID: k.ID, Name: k.Name, Purpose: k.Purpose, Algorithm: k.Algorithm, Subject: k.Subject, SPKI: k.SPKI, Replicable: true}}
	}
	return out
}

// Rehearse lets the keys of a backup prove themselves on their recipient without a
// server, a database or a ledger: nothing is signed but the challenges, which name the
// ledger that the backup comes from, and nothing stays on the token. Errors mean that
// it could not be tried.
func Rehearse(ctx context.Context, cfg MemberConfig, rec RecipientRecord, ledger audit.LedgerID, keys []BackupKey) ([]BackupCheck, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	proc, err := startCeremony(ctx, cfg, rec.Serial, nil, false)
	if err != nil {
		return nil, fmt.Errorf("backup recipient %s: %w", rec.Name, err)
	}
	defer proc.end()
	checks, _, err := newProof(ledger, wrappedKeys(rec, keys)).run(ctx, proc)
	return checks, err
}
