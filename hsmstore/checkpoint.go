package hsmstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"chancery/admin"
	"chancery/audit"

	"github.com/miekg/pkcs11"
)

// Role is what a member is for.
type Role string

// The roles.
const (
	RoleAll        Role = ""           // keys of all purposes
	RoleCheckpoint Role = "checkpoint" // its own checkpoint and probe keys, no others: a token and a PIN apart from those of the CA
)

// holds tells whether a member of the role may have keys of a purpose.
func (r Role) holds(p audit.Purpose) bool {
	return r == RoleAll || r == RoleCheckpoint && (p == audit.PurposeCheckpoint || p == audit.PurposeProbe)
}

func (m *member) holds(p audit.Purpose) bool { return m.cfg.Role.holds(p) }

// CheckpointKeyName is the name of the checkpoint key of a member.
func CheckpointKeyName(member string) string { return "checkpoint-" + member }

// alone: the key is born non-extractable and stays on the one member of its spec.
func (p KeySpec) alone() bool {
	return p.Purpose == audit.PurposeProbe || p.Purpose == audit.PurposeCheckpoint && p.Members != nil
}

// checkpointSpec is the checkpoint key that a member gets: Ed25519 where the module has
// it (edwards), else P-256.
func (s *Store) checkpointSpec(member string, edwards bool) KeySpec {
	spec := KeySpec{Name: CheckpointKeyName(member), Purpose: audit.PurposeCheckpoint, Algorithm: "P-256", Members: []string{member}}
	if edwards {
		spec.Algorithm = algEd25519
	}
	return s.unusedName(spec)
}

// unusedName gives a spec a name that no key had: names of keys are never used again. One
// that is being born keeps its own, and its algorithm.
func (s *Store) unusedName(spec KeySpec) KeySpec {
	s.mu.RLock()
	defer s.mu.RUnlock()
	base := spec.Name
	for n := 2; ; n++ {
		k := s.keys[spec.Name]
		if k == nil {
			return spec
		}
		if k.purpose == spec.Purpose && k.State() != KeyDestroyed {
			spec.Algorithm = k.alg.name
			return spec
		}
		spec.Name = fmt.Sprintf("%s-%d", base, n)
	}
}

// bearsCheckpoints tells whether a member of a role gets a checkpoint key: where members
// of the role checkpoint are, only they do.
func (s *Store) bearsCheckpoints(r Role) bool {
	return r == RoleCheckpoint || !slices.ContainsFunc(s.list(), func(m *member) bool { return m.cfg.Role == RoleCheckpoint })
}

// checkpointSpecs are the checkpoint keys of a genesis.
func (s *Store) checkpointSpecs() (out []KeySpec) {
	for _, m := range s.list() {
		if s.bearsCheckpoints(m.cfg.Role) {
			out = append(out, s.checkpointSpec(m.cfg.Name, m.edwards()))
		}
	}
	return out
}

// ownSpecs are the keys that a member is born with when it joins: see joinActs.
func (s *Store) ownSpecs(cfg MemberConfig, t openedCeremony) []KeySpec {
	specs := []KeySpec{s.probeSpec(cfg.Name)}
	if s.bearsCheckpoints(cfg.Role) {
		specs = append(specs, s.checkpointSpec(cfg.Name, hasEdwards(t.Mechanisms)))
	}
	return specs
}

// joinActs are the acts under which a member joins.
func joinActs(name, serial string, role Role, own []KeySpec) []string {
	acts := []string{admin.AddMemberAct(name, serial, string(role))}
	for _, p := range own {
		acts = append(acts, p.Act())
	}
	return acts
}

// hasEdwards tells whether a module makes Ed25519 keys and signs with them.
func hasEdwards(mechanisms []uint) bool {
	return slices.Contains(mechanisms, ckmEdDSA) && slices.Contains(mechanisms, ckmEdwardsKeyPairGen)
}

func mechanismNumbers(list []*pkcs11.Mechanism) (out []uint) {
	for _, m := range list {
		out = append(out, m.Mechanism)
	}
	return out
}

func (m *member) edwards() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.head.Edwards
}

// checkpointKeys are the usable keys of purpose checkpoint in the order of their births.
func (s *Store) checkpointKeys() (out []*Key) {
	for _, k := range s.all() {
		if k.purpose == audit.PurposeCheckpoint && k.usable() {
			out = append(out, k)
		}
	}
	slices.SortStableFunc(out, func(a, b *Key) int { return int(a.birth) - int(b.birth) })
	return out
}

// othersCheckpoint tells whether a checkpoint key that is not on m alone can go on
// signing; now: at this moment; first: one that leaf 0 names.
func (s *Store) othersCheckpoint(m *member, now, first bool) bool {
	return slices.ContainsFunc(s.checkpointKeys(), func(k *Key) bool {
		return (!first || k.birth == 0) && slices.ContainsFunc(s.list(), func(o *member) bool { return o != m && k.on(o) && (!now || o.ready(k.id) != nil) })
	})
}

// checkpointSigner implements audit.CheckpointSigner.
type checkpointSigner struct{ store *Store }

// CheckpointSigner signs checkpoints with every usable key of purpose checkpoint, which it
// looks up at each call: one of each member, and in older ledgers one that all members
// hold, which signs once. It needs no intent; every try is counted.
func (s *Store) CheckpointSigner() audit.CheckpointSigner { return checkpointSigner{s} }

// SignCheckpoint implements [audit.CheckpointSigner]. A member that is not up is passed
// over; only if all are away it is waited for.
func (c checkpointSigner) SignCheckpoint(ctx context.Context, body []byte) ([]audit.CheckpointLine, error) {
	keys := c.store.checkpointKeys()
	if len(keys) == 0 {
		return nil, fmt.Errorf("%w: a proved key of purpose checkpoint", ErrNoKey)
	}
	up := map[*Key]bool{}
	for _, k := range keys {
		if m, _ := c.store.choose(&signature{key: k}, nil); m != nil {
			up[k] = true
		}
	}
	lines := make([]audit.CheckpointLine, len(keys))
	var wg sync.WaitGroup
	for i, k := range keys {
		lines[i] = audit.CheckpointLine{Key: k.name, SPKI: k.SPKI(), Birth: k.birth}
		if len(up) > 0 && !up[k] {
			lines[i].Err = fmt.Errorf("%w: member %s is not up", ErrUnavailable, strings.Join(k.Members(), ", "))
			continue
		}
		attempts := uint8(defaultAttempts)
		if len(up) > 1 && len(k.Members()) == 1 { // nobody waits for a member that dies over it
			attempts = 1
		}
		wg.Go(func() { lines[i].Signature, lines[i].Err = c.store.signCheckpoint(ctx, k, body, attempts) })
	}
	wg.Wait()
	var errs []error
	signed := false
	for _, l := range lines {
		if errors.Is(l.Err, audit.ErrTampered) {
			return nil, l.Err
		}
		signed = signed || l.Err == nil
		errs = append(errs, l.Err)
	}
	if !signed {
		return nil, errors.Join(errs...)
	}
	return lines, nil
}

// signCheckpoint signs with one key.
func (s *Store) signCheckpoint(ctx context.Context, k *Key, body []byte, attempts uint8) ([]byte, error) {
	b := k.binding()
	p, err := b.inspect(body)
	if err != nil {
		return nil, err
	}
	if p.kind != kindCheckpoint {
		return nil, fmt.Errorf("%w: that is no checkpoint", ErrRefused)
	}
	if err := s.queue.acquire(ctx, ClassRevocation); err != nil {
		return nil, fmt.Errorf("%w: waiting to sign a checkpoint: %w", ErrUnavailable, err)
	}
	defer s.queue.release(ClassRevocation)
	sig, err := s.sign(ctx, &signature{key: k, intent: audit.NoIndex, message: body, digest: k.alg.digest(body), attempts: attempts, exempt: kindCheckpoint})
	if errors.Is(err, ErrRefused) { // the worker has signed a later tree, or another one of that size
		err = fmt.Errorf("%w: %w", audit.ErrTampered, err)
	}
	if err != nil {
		return nil, err
	}
	if n, ok := k.nonce(sig, sha256.Sum256(body)); ok {
		if err = k.nonces.check(n.R, n.Message); err == nil {
			err = s.ledger.Write(ctx, n)
		}
		if errors.Is(err, ErrNonceReused) {
			s.quarantine(ctx, k)
		}
		if err != nil {
			return nil, fmt.Errorf("releasing a checkpoint: %w", err)
		}
	}
	return sig, nil
}
