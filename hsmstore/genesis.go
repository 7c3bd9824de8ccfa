package hsmstore

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"chancery/admin"
	"chancery/audit"
)

// GenesisActs lists the acts of [Store.Genesis] and of the births of more keys,
// to which the caller adds its own (roots to be signed).
func (s *Store) GenesisActs(more ...KeySpec) []string {
	var acts []string
	for _, p := range s.checkpointSpecs() {
		acts = append(acts, p.Act())
	}
	for _, m := range s.list() {
		acts = append(acts, joinActs(m.cfg.Name, m.current().Serial, m.cfg.Role, []KeySpec{s.probeSpec(m.cfg.Name)})...)
	}
	for _, p := range more {
		acts = append(acts, p.Act())
	}
	return acts
}

// probeSpec is the probe key that a member gets. A member that left and comes back
// gets another one: names of keys are never used again.
func (s *Store) probeSpec(member string) KeySpec {
	return s.unusedName(KeySpec{Name: ProbeKeyName(member), Purpose: audit.PurposeProbe, Algorithm: ProbeAlgorithm, Members: []string{member}})
}

// Genesis begins a ledger, in one ceremony: it bears a checkpoint key and a probe key
// for each member, and bears and copies whatever keys the caller wants besides;
// writes leaf 0 with the checkpoint keys' public halves; then enrols the members and
// records and proves the keys like any others. g.CheckpointKeys is filled in here;
// g.Acts must list all acts of grant, see [Store.GenesisActs].
//
// A crash before leaf 0 leaves keys on the tokens that no ledger knows: start with
// empty tokens again. After leaf 0, admin.ResumeGenesis and [Store.ResumeGenesis]
// go on.
func (s *Store) Genesis(ctx context.Context, grant *admin.Grant, g audit.Genesis, more ...KeySpec) error {
	if head := s.ledger.Head(); head.Size != 0 {
		return fmt.Errorf("genesis: %w: the ledger has %d leaves", audit.ErrExists, head.Size)
	}
	for _, a := range s.GenesisActs(more...) {
		if !slices.Contains(g.Acts, a) {
			return fmt.Errorf("genesis: %w: leaf 0 must list %q", admin.ErrNotGranted, a)
		}
	}
	return s.genesis(ctx, grant, g, append(s.checkpointSpecs(), more...))
}

func (s *Store) genesis(ctx context.Context, grant *admin.Grant, g audit.Genesis, specs []KeySpec) error {
	s.keysMu.Lock()
	defer s.keysMu.Unlock()
	ctx = underRosters(ctx, rosterChain{Roster: hex.EncodeToString(g.Roster[:])})
	// 1. The keys, on every member.
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

// found writes leaf 0, and with it the rows of the checkpoint keys: from here on the ledger
// has its id and origin. Then come the leaves of what happened before, a birth and what
// recorded writes of it.
func (s *Store) found(ctx context.Context, grant *admin.Grant, g audit.Genesis, births []*birth, recorded func(*birth) error) error {
	g.CheckpointKeys = nil
	var rows []audit.Projection
	for _, b := range births {
		if b.rec.Purpose == audit.PurposeCheckpoint {
			g.CheckpointKeys, rows = append(g.CheckpointKeys, b.rec.SPKI), append(rows, PutKey{b.rec})
		}
	}
	if err := s.ledger.Genesis(ctx, g, rows...); err != nil {
		return fmt.Errorf("writing the genesis leaf: %w", err)
	}
	for _, b := range births {
		var row []audit.Projection
		named := b.rec.Purpose == audit.PurposeCheckpoint
		if !named {
			row = append(row, PutKey{b.rec})
		}
		index, err := s.recordBirth(ctx, grant, b, row...)
		if err != nil {
			return err
		}
		if !named {
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
func (s *Store) ResumeGenesis(ctx context.Context, grant *admin.Grant) error {
	known := false
	var unproved []KeySpec
	for _, k := range s.all() {
		if k.purpose != audit.PurposeCheckpoint {
			continue
		}
		known = true
		if k.State() == KeyBorn {
			spec := KeySpec{Name: k.name, Purpose: k.purpose, Algorithm: k.alg.name}
			if k.confined { // an older genesis had one for all members
				spec.Members = k.Members()
			}
			unproved = append(unproved, spec)
		}
	}
	if !known {
		return fmt.Errorf("resuming genesis: %w: a checkpoint key, which leaf 0 names", ErrNoKey)
	}
	if len(unproved) > 0 {
		if _, err := s.GenerateKeys(ctx, grant, unproved...); err != nil {
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
		err := grant.Spend(admin.AddMemberAct(m.cfg.Name, m.current().Serial, string(m.cfg.Role)))
		if errors.Is(err, admin.ErrNotGranted) {
			continue
		}
		st := m.current()
		if err := s.recordMember(ctx, grant, st, StandingActive); err != nil {
			return err
		}
	}
	return nil
}

// recordMember writes that a member joined, and what it is for.
func (s *Store) recordMember(ctx context.Context, grant *admin.Grant, st MemberStatus, as Standing) error {
	var f audit.Fields
	f.Text(audit.TagMember, st.Name)
	f.Text(audit.TagSerialNumber, st.Serial)
	f.Hash(audit.TagGrant, grant.Hash())
	if as != StandingActive {
		f.Text(audit.TagState, string(as))
	}
	if st.Role != RoleAll {
		f.Text(audit.TagRole, string(st.Role))
	}
	row := PutMember{MemberRecord{Name: st.Name, Serial: st.Serial, Label: st.Label, Replication: st.Replication, Role: st.Role, Standing: as}}
	if _, err := s.ledger.Append(ctx, audit.Event(audit.OpMemberAdd, f), row); err != nil {
		return fmt.Errorf("enrolling member %s: %w", st.Name, err)
	}
	return nil
}
