package hsmstore

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"chancery/admin"
	"chancery/audit"
)

// Restoration is what a new ledger takes over from a predecessor. Its caller has
// verified the manifest.
type Restoration struct {
	Manifest  [32]byte       // its SHA-256
	Ledger    audit.LedgerID // of the predecessor
	Origin    string         // of the predecessor
	Genesis   []byte         // its leaf 0
	Rosters   admin.History  // of the predecessor, up to the one that the new ledger begins with
	Recipient RecipientRecord
	Keys      []BackupKey
	Warrant   *admin.Warrant // of the predecessor's officers, for admin.RestoreAct
}

// Restore begins a ledger with the keys of a predecessor. It is [Store.Genesis], but
// besides the checkpoint key and the probe key, which are new, the keys of the backup
// come out of their blobs as objects of the recipient's token, which is the one member;
// others join later. The officers' warrant is checked here, and again in the ceremony
// process. g.Previous must be the predecessor's last checkpoint, g.Roster its roster, and
// g.Acts must list the acts of [Store.RestoreActs].
//
// After a crash begin again with an empty database and journal; keys that are on the
// token by then are taken as they are. Errors wrap admin.ErrNotGranted, ErrToken,
// audit.ErrExists.
func (s *Store) Restore(ctx context.Context, grant *admin.Grant, g audit.Genesis, r Restoration) error {
	if head := s.ledger.Head(); head.Size != 0 {
		return fmt.Errorf("restore: %w: the ledger has %d leaves; restore into an empty database", audit.ErrExists, head.Size)
	}
	m, err := s.restoreMember(r)
	if err != nil {
		return err
	}
	rosters, err := r.rosters(g.Roster)
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	act := admin.RestoreAct(r.Manifest)
	acts, _, err := r.Warrant.Check(r.Ledger, g.Roster, time.Now())
	if err == nil && !slices.Contains(acts, act) {
		err = fmt.Errorf("%w: the officers did not sign %q", admin.ErrNotGranted, act)
	}
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	for _, a := range s.RestoreActs(r.Manifest) {
		if !slices.Contains(g.Acts, a) {
			return fmt.Errorf("restore: %w: leaf 0 must list %q", admin.ErrNotGranted, a)
		}
	}
	s.keysMu.Lock()
	defer s.keysMu.Unlock()
	// 1. What this ledger has of its own, while no warrant is needed for it.
	births, own, err := s.prepare(grant, append(s.checkpointSpecs(), s.probeSpec(m.cfg.Name)))
	if err != nil {
		return err
	}
	if err := s.bear(underRosters(ctx, rosters), own, births); err != nil {
		return err
	}
	// 2. The keys, out of their blobs.
	if err := grant.Spend(act); err != nil {
		return err
	}
	under := context.WithValue(ctx, mandateKey{}, mandate{Warrant: r.Warrant, Session: rand.Text(), rosterChain: rosters})
	restored, err := s.unwrapRestored(under, m, act, r)
	if err != nil {
		return err
	}
	// 3. Leaf 0 names the predecessor's last checkpoint; then what happened before it.
	if err := s.found(ctx, grant, g, births, func(*birth) error { return nil }); err != nil {
		return err
	}
	if err := s.recordWarrant(ctx, grant, r); err != nil {
		return err
	}
	for _, b := range restored {
		if b.rec.Birth, err = s.recordRestored(ctx, grant, b, r); err != nil {
			return err
		}
	}
	if err := s.enrol(ctx, grant); err != nil {
		return err
	}
	// 4. The proofs, with which the keys become what they were.
	if _, err := s.prove(ctx, grant, append(births, restored...)); err != nil {
		return err
	}
	s.finishRestore = func(ctx context.Context, carried uint64, done []audit.Projection) error {
		return s.completeRestore(ctx, under, m, act, grant, r, carried, done)
	}
	return nil
}

// rosters are those of the predecessor, from its leaf 0 to the one with which this ledger
// begins: the recipient's token may know an earlier one.
func (r Restoration) rosters(now [32]byte) (rosterChain, error) {
	leaf, _, _, err := audit.OpenGenesis(r.Genesis)
	if err != nil {
		return rosterChain{}, fmt.Errorf("leaf 0 of the predecessor: %w", err)
	}
	first, _ := leaf.Hash(audit.TagRoster)
	changes, err := r.Rosters.CheckChain(first)
	if err != nil {
		return rosterChain{}, err
	}
	if r.Rosters.Current().Digest() != now {
		return rosterChain{}, fmt.Errorf("%w: the new ledger begins with other officers than the predecessor ended with", admin.ErrNotGranted)
	}
	return chainOf(r.Ledger, first, changes), nil
}

// FinishRestore ends what [Store.Restore] began, when issuers and revocations are there
// too: a leaf says so, without which audit verify does not accept the ledger, and the
// token keeps that the warrant was used. carried is the number of revocations; done
// commits with the leaf. The token comes first: a crash before the leaf costs a new
// warrant, one after it must not leave a warrant that could be used again.
func (s *Store) FinishRestore(ctx context.Context, carried uint64, done ...audit.Projection) error {
	if s.finishRestore == nil {
		return errors.New("no restore was begun here")
	}
	return s.finishRestore(ctx, carried, done)
}

func (s *Store) completeRestore(ctx, under context.Context, m *member, act string, grant *admin.Grant, r Restoration, carried uint64, done []audit.Projection) error {
	id := s.ledger.ID()
	c, err := startCeremony(under, m.cfg, m.current().Serial, []string{act}, false)
	if err != nil {
		return err
	}
	defer c.end()
	if err := c.do(ctx, cerRestoreMark, restoreMark{Manifest: hex.EncodeToString(r.Manifest[:]), Ledger: hex.EncodeToString(id[:])}, &struct{}{}); err != nil {
		s.log.Warn("the token does not keep that the warrant was used: see to it that nobody else uses it", "err", err)
	}
	var f audit.Fields
	f.Hash(audit.TagManifest, r.Manifest)
	f.Text(audit.TagSource, r.Origin)
	f.Hash(audit.TagGrant, grant.Hash())
	f.Text(audit.TagState, "complete")
	f.Uint64(audit.TagCount, carried)
	if _, err := s.ledger.Append(ctx, audit.Event(audit.OpRestore, f), done...); err != nil {
		return fmt.Errorf("recording the end of the restore: %w", err)
	}
	return nil
}

// RestoreActs lists the acts of [Store.Restore].
func (s *Store) RestoreActs(manifest [32]byte) []string {
	return append(s.GenesisActs(), admin.RestoreAct(manifest))
}

// restoreMember is the recipient as the one member of the new cluster.
func (s *Store) restoreMember(r Restoration) (*member, error) {
	list := s.list()
	if len(list) != 1 || list[0].current().Serial != r.Recipient.Serial {
		var have []string
		for _, m := range list {
			have = append(have, fmt.Sprintf("%s (token %s)", m.cfg.Name, m.current().Serial))
		}
		return nil, fmt.Errorf("%w: a restore begins with one member, the recipient %s with token %s; hsm.members names %v. Name only it; others join afterwards by hsm add", ErrToken, r.Recipient.Name, r.Recipient.Serial, have)
	}
	switch st := list[0].current(); {
	case st.State != Up:
		return nil, fmt.Errorf("%w: member %s is %s", ErrUnavailable, st.Name, st.State)
	case st.Role != RoleAll:
		return nil, fmt.Errorf("%w: hsm.members gives %s role: %s, but the keys of the backup come back there; leave the role out", ErrToken, st.Name, st.Role)
	}
	for _, k := range r.Keys {
		if k.State == KeyUsable || k.State == KeyDisabled || k.State == KeyQuarantined {
			continue
		}
		return nil, fmt.Errorf("key %q of the manifest is %q, which cannot be restored", k.Name, k.State)
	}
	return list[0], nil
}

// unwrapRestored makes the keys objects of the token.
func (s *Store) unwrapRestored(ctx context.Context, m *member, act string, r Restoration) ([]*birth, error) {
	c, err := startCeremony(ctx, m.cfg, m.current().Serial, []string{act}, false)
	if err != nil {
		return nil, err
	}
	defer c.end()
	ask := restoreKeys{Manifest: hex.EncodeToString(r.Manifest[:]), Keys: wrappedKeys(r.Recipient, r.Keys)}
	var born []bornKey
	if err := c.do(ctx, cerRestore, ask, &born); err != nil {
		return nil, err
	}
	if len(born) != len(r.Keys) {
		return nil, fmt.Errorf("%d keys were to be restored, %d were", len(r.Keys), len(born))
	}
	out := make([]*birth, len(born))
	for i, k := range r.Keys {
		if born[i].ID != k.ID {
			return nil, fmt.Errorf("another key than %q was restored", k.Name)
		}
		rec := k.KeyRecord
		rec.Origin, rec.Members, rec.State, rec.Birth, rec.Adopted, rec.Confined = m.cfg.Name, []string{m.cfg.Name}, KeyBorn, 0, nil, false
		out[i] = &birth{spec: KeySpec{Name: k.Name}, becomes: k.State, members: []*member{m}, origin: m, object: ask.Keys[i].Key, born: born[i], rec: rec}
	}
	return out, nil
}

// recordWarrant writes down that the predecessor's officers decided this.
func (s *Store) recordWarrant(ctx context.Context, grant *admin.Grant, r Restoration) error {
	var f audit.Fields
	f.Hash(audit.TagManifest, r.Manifest)
	f.Text(audit.TagSource, r.Origin)
	f.Hash(audit.TagGrant, grant.Hash())
	f.List(audit.TagWarrant, r.Warrant.Evidence()...)
	f.Bytes(audit.TagPredecessor, r.Genesis)
	if _, err := s.ledger.Append(ctx, audit.Event(audit.OpRestore, f)); err != nil {
		return fmt.Errorf("recording the officers' warrant: %w", err)
	}
	return nil
}

// recordRestored writes the leaf of a restored key and returns its index.
func (s *Store) recordRestored(ctx context.Context, grant *admin.Grant, b *birth, r Restoration) (uint64, error) {
	alg, err := algorithmByName(b.rec.Algorithm)
	if err != nil {
		return 0, err
	}
	f := s.keyFields(grant, b, b.origin, b.born.Attributes)
	f.Bytes(audit.TagSPKI, b.rec.SPKI)
	f.Uint8(audit.TagPurpose, uint8(b.rec.Purpose))
	f.Bytes(audit.TagAlgorithm, alg.ident)
	f.Hash(audit.TagManifest, r.Manifest)
	f.Text(audit.TagSource, r.Origin)
	f.Text(audit.TagState, string(b.becomes))
	a, err := s.ledger.Append(ctx, audit.Event(audit.OpRestore, f), PutKey{b.rec})
	if err != nil {
		return 0, fmt.Errorf("recording the restored key %q: %w", b.rec.Name, err)
	}
	return a.Index, nil
}

// CheckBackupKey holds a key of a manifest against itself.
func CheckBackupKey(k BackupKey) error {
	if err := checkName("key", k.Name); err != nil {
		return err
	}
	if _, known := allows[k.Purpose]; !known || k.Purpose == audit.PurposeProbe || k.Purpose == audit.PurposeCheckpoint {
		return fmt.Errorf("key %s: keys of %s are not restored", k.Name, k.Purpose)
	}
	if _, _, err := parseSPKI(k.SPKI, k.Algorithm); err != nil {
		return fmt.Errorf("key %s: %w", k.Name, err)
	}
	if k.Way < 0 || k.Way >= len(ways) || ways[k.Way].hop != nil || len(k.Blob) == 0 || len(k.KEK.CKAID) == 0 {
		return fmt.Errorf("key %s: its blob is wrapped in a way (%d) that no backup uses", k.Name, k.Way)
	}
	return nil
}

// WayName is how a blob is wrapped, in words; "" for a number that no backup has.
func WayName(way int) string {
	if way < 0 || way >= len(ways) {
		return ""
	}
	return ways[way].name
}
