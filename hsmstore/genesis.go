package hsmstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"chancery/admin"
	"chancery/audit"
)

// GenesisActs lists the acts of [Store.Genesis] and of the births of more keys,
// to which the caller adds its own (roots to be signed).
func (s *Store) GenesisActs(checkpoint KeySpec, more ...KeySpec) []string {
	acts := []string{checkpoint.Act()}
	for _, m := range s.list() {
		acts = append(acts, admin.AddMemberAct(m.cfg.Name, m.current().Serial), s.probeSpec(m.cfg.Name).Act())
	}
	for _, p := range more {
		acts = append(acts, p.Act())
	}
	return acts
}

// probeSpec is the probe key that a member gets. A member that left and comes back
// gets another one: names of keys are never used again.
func (s *Store) probeSpec(member string) KeySpec {
	spec := KeySpec{Name: ProbeKeyName(member), Purpose: audit.PurposeProbe, Algorithm: "P-256", Members: []string{member}}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for n := 2; ; n++ {
		if k := s.keys[spec.Name]; k == nil || k.State() != KeyDestroyed {
			return spec
		}
		spec.Name = fmt.Sprintf("%s-%d", ProbeKeyName(member), n)
	}
}

// Genesis begins a ledger, in one ceremony: it bears and copies the checkpoint
// key, a probe key for each member and whatever keys the caller wants besides;
// writes leaf 0 with the checkpoint key's public half; then enrols the members and
// records and proves the keys like any others. g.CheckpointKeys is filled in here;
// g.Acts must list all acts of grant, see [Store.GenesisActs].
//
// A crash before leaf 0 leaves keys on the tokens that no ledger knows: start with
// empty tokens again. After leaf 0, admin.ResumeGenesis and [Store.ResumeGenesis]
// go on.
func (s *Store) Genesis(ctx context.Context, grant *admin.Grant, g audit.Genesis, checkpoint KeySpec, more ...KeySpec) error {
	if checkpoint.Purpose != audit.PurposeCheckpoint {
		return fmt.Errorf("genesis: key %q is for %s, not for checkpoints", checkpoint.Name, checkpoint.Purpose)
	}
	if head := s.ledger.Head(); head.Size != 0 {
		return fmt.Errorf("genesis: %w: the ledger has %d leaves", audit.ErrExists, head.Size)
	}
	for _, a := range s.GenesisActs(checkpoint, more...) {
		if !slices.Contains(g.Acts, a) {
			return fmt.Errorf("genesis: %w: leaf 0 must list %q", admin.ErrNotGranted, a)
		}
	}
	s.keysMu.Lock()
	defer s.keysMu.Unlock()
	ctx = underRoster(ctx, g.Roster)
	// 1. The keys, on every member.
	specs := append([]KeySpec{checkpoint}, more...)
	for _, m := range s.list() {
		specs = append(specs, s.probeSpec(m.cfg.Name))
	}
	births, acts, err := s.prepare(grant, specs)
	if err != nil {
		return err
	}
	sources, err := openSources(ctx, acts, births)
	defer sources.end()
	if err != nil {
		return err
	}
	if err := s.bear(ctx, acts, births); err != nil {
		return err
	}
	copies := map[*birth][]copied{}
	err = s.spread(ctx, sources, acts, births, func(c copied, b *birth) error { copies[b] = append(copies[b], c); return nil })
	if err != nil {
		return err
	}
	// 2. Leaf 0, and what happened before it.
	err = s.found(ctx, grant, g, births, func(b *birth) error {
		for _, c := range copies[b] {
			if err := s.recordCopy(ctx, grant, c, b); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := s.enrol(ctx, grant); err != nil {
		return err
	}
	// 3. The proofs, with which the keys become usable.
	_, err = s.prove(ctx, grant, births)
	return err
}

// found writes leaf 0, and with it the row of the checkpoint key, the first of births: from
// here on the ledger has its id and origin. Then come the leaves of what happened before,
// a birth and what recorded writes of it.
func (s *Store) found(ctx context.Context, grant *admin.Grant, g audit.Genesis, births []*birth, recorded func(*birth) error) error {
	g.CheckpointKeys = [][]byte{births[0].rec.SPKI}
	if err := s.ledger.Genesis(ctx, g, PutKey{births[0].rec}); err != nil {
		return fmt.Errorf("writing the genesis leaf: %w", err)
	}
	for i, b := range births {
		var row []audit.Projection
		if i > 0 {
			row = append(row, PutKey{b.rec})
		}
		index, err := s.recordBirth(ctx, grant, b, row...)
		if err != nil {
			return err
		}
		if i > 0 {
			b.rec.Birth = index
		}
		if err := recorded(b); err != nil {
			return err
		}
	}
	return nil
}

// ResumeGenesis goes on where a crash after leaf 0 stopped [Store.Genesis]. grant
// is that of admin.ResumeGenesis; [Store.ActDone] tells it what is done.
func (s *Store) ResumeGenesis(ctx context.Context, grant *admin.Grant, checkpoint KeySpec) error {
	s.mu.RLock()
	k := s.keys[checkpoint.Name]
	s.mu.RUnlock()
	if k == nil {
		return fmt.Errorf("resuming genesis: %w: %q, which leaf 0 names", ErrNoKey, checkpoint.Name)
	}
	if !k.usable() {
		if _, err := s.GenerateKeys(ctx, grant, checkpoint); err != nil {
			return err
		}
	}
	s.keysMu.Lock()
	defer s.keysMu.Unlock()
	if err := s.enrol(ctx, grant); err != nil {
		return err
	}
	var probes []KeySpec
	for _, m := range s.list() {
		if p := s.probeSpec(m.cfg.Name); !s.ActDone(p.Act()) {
			probes = append(probes, p)
		}
	}
	_, err := s.generate(ctx, grant, probes)
	return err
}

// ActDone tells whether the birth that an act allows is done: its key is usable.
// Other acts are not known here.
func (s *Store) ActDone(act string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, k := range s.keys {
		whole := admin.GenerateKeyAct(k.name, k.purpose.String(), k.alg.name, k.subject)
		if k.usable() && (act == whole || strings.HasPrefix(act, whole+" on ")) {
			return true
		}
	}
	return false
}

// enrol records the members; those whose act is spent were enrolled before a crash.
func (s *Store) enrol(ctx context.Context, grant *admin.Grant) error {
	for _, m := range s.list() {
		err := grant.Spend(admin.AddMemberAct(m.cfg.Name, m.current().Serial))
		if errors.Is(err, admin.ErrNotGranted) {
			continue
		}
		st := m.current()
		var f audit.Fields
		f.Text(audit.TagMember, st.Name)
		f.Text(audit.TagSerialNumber, st.Serial)
		f.Hash(audit.TagGrant, grant.Hash())
		if _, err := s.ledger.Append(ctx, audit.Event(audit.OpMemberAdd, f), PutMember{MemberRecord{Name: st.Name, Serial: st.Serial, Label: st.Label, Replication: st.Replication, Standing: StandingActive}}); err != nil {
			return fmt.Errorf("enrolling member %s: %w", m.cfg.Name, err)
		}
	}
	return nil
}
