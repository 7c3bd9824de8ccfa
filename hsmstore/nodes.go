package hsmstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"chancery/audit"
)

// Other nodes use the same keys and members through workers of their own. What they
// decide stands on the ledger; this node hears of it before it writes anything behind
// it, so that no intent of its own stands behind the entry that forbids it.

// Nodes is what a store needs where other nodes run on the same database.
type Nodes struct {
	// Rows reads keys and members anew.
	Rows func(context.Context) ([]KeyRecord, []MemberRecord, error)
	// Exclusive keeps the other nodes from work of a name until release is called, and
	// waits for its turn as long as ctx lets it.
	Exclusive func(ctx context.Context, work string) (release func(), err error)
}

// ceremonies is the work that one node at a time does.
const ceremonies = "acts on keys or members"

// keyOps are the entries behind which keys or members are others than before, or the officers
// whom the members follow.
var keyOps = []audit.Op{audit.OpKeyGenerate, audit.OpKeyReplicate, audit.OpKeyDestroy, audit.OpKeyAdopt, audit.OpKeyImport, audit.OpKeyProof, audit.OpKeyState,
	audit.OpMemberAdd, audit.OpMemberState, audit.OpRoster}

// heard is told of each entry of another node, by the sequencer. What forbids an intent
// holds at once; the rest is read from the database.
func (s *Store) heard(_ uint64, l audit.Leaf) {
	if l.Kind == audit.KindIntent || !slices.Contains(keyOps, l.Op) {
		return
	}
	state, _ := l.Get(audit.TagState)
	switch l.Op {
	case audit.OpKeyState, audit.OpKeyDestroy:
		if hash, ok := l.Hash(audit.TagKey); ok {
			if k := s.keyByHash(hash); k != nil {
				k.heard(KeyState(state))
			}
		}
	case audit.OpMemberState:
		if Standing(state) == StandingRetired {
			s.retired.Store(true)
		}
	}
	s.lookAgain()
}

// lookAgain has keys and members read from the database again.
func (s *Store) lookAgain() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// heard takes up a state that another node has recorded. A quarantine stays, and that a
// key becomes usable is read from the database, with its members.
func (k *Key) heard(to KeyState) {
	for to != KeyUsable {
		if old := k.state.Load(); *old == KeyQuarantined || k.state.CompareAndSwap(old, &to) {
			return
		}
	}
}

func (s *Store) keyByHash(hash [32]byte) *Key {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, k := range s.keys {
		if k.spkiHash == hash {
			return k
		}
	}
	return nil
}

// follow takes up what other nodes changed, until ctx ends.
func (s *Store) follow(ctx context.Context) {
	for {
		select {
		case <-s.changed:
		case <-ctx.Done():
			return
		}
		if err := s.takeUp(ctx); err != nil && ctx.Err() == nil {
			s.log.Error("what other nodes changed about keys and members is not known yet", "err", err)
			s.lookAgain()
			if wait(ctx, backoffMax) != nil {
				return
			}
			continue
		}
		if err := s.tellRostersAll(ctx); err != nil && ctx.Err() == nil {
			s.log.Error("not every HSM member could be told who the officers are", "err", err)
		}
	}
}

// takeUp makes keys and members those of the database. An act of this node that is
// under way goes first: no other node has one then.
func (s *Store) takeUp(ctx context.Context) error {
	for !s.keysMu.TryLock() {
		if err := wait(ctx, ceremonyPause); err != nil {
			return err
		}
	}
	defer s.keysMu.Unlock()
	return s.takeUpHeld(ctx)
}

// takeUpHeld is takeUp, with keysMu held.
func (s *Store) takeUpHeld(ctx context.Context) error {
	was := s.known()
	keys, members, err := s.cfg.Nodes.Rows(ctx)
	if err != nil {
		return err
	}
	for _, r := range keys {
		if err := s.takeUpKey(r, was.keys[r.Name]); err != nil {
			return fmt.Errorf("key %q: %w", r.Name, err)
		}
	}
	var errs []error
	for _, r := range members {
		errs = append(errs, s.takeUpMember(ctx, r, was.members[r.Name]))
	}
	s.resize()
	return errors.Join(append(errs, s.reload(ctx))...)
}

// known is what this node knew before it read the rows: what it decided or heard while
// they were read is newer than they are, and stays.
type known struct {
	keys    map[string]*KeyState
	members map[string]uint64 // decisions
}

func (s *Store) known() known {
	was := known{map[string]*KeyState{}, map[string]uint64{}}
	for _, k := range s.all() {
		was.keys[k.name] = k.state.Load()
	}
	for _, m := range s.list() {
		m.mu.Lock()
		was.members[m.cfg.Name] = m.decisions
		m.mu.Unlock()
	}
	return was
}

func (s *Store) takeUpKey(r KeyRecord, was *KeyState) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	k, known := s.keys[r.Name]
	if !known {
		k, err := newKey(s, r)
		if err != nil {
			return err
		}
		s.keys[r.Name] = k
		s.log.Info("key of another node taken up", "key", r.Name, "state", r.State)
		return nil
	}
	if !slices.Equal(k.Members(), r.Members) {
		k.setMembers(r.Members)
	}
	k.description.Store(&r.Description)
	if was != nil && *was != r.State && *was != KeyQuarantined && k.state.CompareAndSwap(was, &r.State) {
		s.log.Warn("state of a key changed by another node", "key", r.Name, "from", *was, "to", r.State)
	}
	return nil
}

// takeUpMember follows a decision about a member that another node recorded. What this
// node knows of the member itself, that it is fenced or down, is not undone by what was
// decided before.
func (s *Store) takeUpMember(ctx context.Context, r MemberRecord, decisions uint64) error {
	m := s.member(r.Name)
	if m == nil {
		return s.takeUpNew(r)
	}
	was, newer := m.follows(r.Standing, decisions)
	if was == r.Standing || !newer {
		return nil
	}
	m.log.Warn("standing of an HSM member changed by another node", "from", was, "to", r.Standing)
	switch st := m.current().State; r.Standing {
	case StandingRemoved:
		s.drop(m)
	case StandingRetired:
		s.retired.Store(true) // perhaps before this node heard of anything
		s.endRetired(ctx, m)
	case StandingFenced:
		m.set(Fenced, errors.New("fenced by another node"))
		m.halt()
	case StandingDrained:
		if st != Fenced && st != Absent {
			m.set(Out, nil)
			m.halt()
		}
	case StandingActive:
		if st == Out || st == Fenced {
			m.halt()
			m.mu.Lock()
			m.state, m.err, m.badSigs = Starting, nil, 0
			m.mu.Unlock()
			m.launch(s.running) // it comes up when it can
		}
	}
	return nil
}

// takeUpNew is for a member that joined on another node.
func (s *Store) takeUpNew(r MemberRecord) error {
	if r.Standing == StandingRemoved {
		return nil
	}
	m, err := s.memberOf(r)
	if err != nil {
		return err
	}
	s.setList(append(slices.Clone(s.list()), m))
	if m.current().State == Starting {
		m.launch(s.running)
	}
	return nil
}

// decided notes a standing that this node has recorded.
func (m *member) decided(now Standing) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.standing = now
	m.decisions++
}

// follows notes the standing that the database had, unless this node has recorded
// another one since it counted its decisions; it returns the one before.
func (m *member) follows(now Standing, decisions uint64) (was Standing, newer bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.decisions != decisions {
		return m.standing, false
	}
	was, m.standing = m.standing, now
	return was, true
}

// abandonAge is how old an intent is at least before another node closes it: a node that
// lost its connection to the database, as all do in a failover, comes back before.
const abandonAge = 10 * time.Second

// closeAbandoned closes, as orphans, the intents that a node left open which does not
// live any more.
func (s *Store) closeAbandoned(ctx context.Context) error {
	return s.ledger.Abandoned(ctx, func(left audit.Left) error {
		n := 0
		for _, o := range left.Intents {
			if time.Since(o.Leaf.Time) < abandonAge {
				continue
			}
			_, err := s.ledger.Orphan(ctx, o, "left open by node "+left.Node+", which ended; a signature may exist", nil, orphaned(o)...)
			if err != nil && !errors.Is(err, audit.ErrConflict) {
				return fmt.Errorf("closing intent %d: %w", o.Index, err)
			}
			n++
		}
		if n > 0 {
			s.log.Warn("a node ended and left intents open; they are closed and their serials revoked", "node", left.Node, "count", n)
		}
		return nil
	})
}
