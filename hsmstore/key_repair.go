package hsmstore

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"chancery/admin"
	"chancery/audit"
)

// Repair makes the copy of a key on one member anew: what the token has under the
// key's CKA_ID is destroyed, the key is copied from a member where it is well by the
// flow of every copy, proved, and used there again. Elsewhere it signs meanwhile.
//
// Errors wrap ErrNoKey, admin.ErrNotGranted, ErrUnavailable (no other member has a
// good copy, or this one is not up), ErrPIN.
func (s *Store) Repair(ctx context.Context, grant *admin.Grant, name, memberName string) error {
	unlock, err := s.ceremony(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	k, m, from, err := s.mayRepair(name, memberName)
	if err != nil {
		return err
	}
	act := admin.RepairKeyAct(name, memberName)
	if err := grant.Spend(act); err != nil {
		return fmt.Errorf("key %q: %w", name, err)
	}
	ctx = s.under(ctx, grant)
	// 1. It is not used here until it is proved.
	m.markDrift(k, "it is being repaired")
	src, err := openSource(ctx, from, []string{act})
	if err != nil {
		return err
	}
	defer src.end()
	// 2. What is there goes.
	if err := clearOn(ctx, m, act, k); err != nil {
		return err
	}
	// 3. A new copy, on the ledger.
	rec := k.record()
	rec.Origin = from.cfg.Name
	err = s.replicate(ctx, from, src, []string{act}, map[*member][]keyObject{m: {k.object()}}, func(c copied) error {
		return s.recordCopy(ctx, grant, c, &birth{rec: rec})
	})
	if err != nil {
		return err
	}
	// 4. The proof.
	m.clearDrift()
	if err := s.reload(ctx); err != nil {
		return err
	}
	if err := s.proveOn(ctx, grant, k, m); err != nil {
		m.markDrift(k, "its repair was not proved")
		return fmt.Errorf("proving key %q on member %s: %w", name, memberName, err)
	}
	s.log.Warn("key is repaired", "key", name, "member", memberName, "from", from.cfg.Name)
	return nil
}

// mayRepair finds the key, the member, and one that gives.
func (s *Store) mayRepair(name, memberName string) (*Key, *member, *member, error) {
	k, err := s.anyKey(name)
	if err != nil {
		return nil, nil, nil, err
	}
	m := s.member(memberName)
	switch {
	case m == nil || !slices.Contains(k.Members(), memberName):
		return nil, nil, nil, fmt.Errorf("key %q is not on member %q; its members are %v", name, memberName, k.Members())
	case k.State() == KeyDestroyed || k.State() == KeyBorn:
		return nil, nil, nil, fmt.Errorf("%w: key %q is %s", ErrNoKey, name, k.State())
	case k.adopted != nil:
		return nil, nil, nil, fmt.Errorf("key %q was adopted where it is and has no other copy; repair it with the vendor's tools", name)
	case k.purpose == audit.PurposeProbe || k.purpose == audit.PurposeCheckpoint && k.confined:
		return nil, nil, nil, fmt.Errorf("key %q is a member's own and has no copy; remove the member and add it again", name)
	case m.native():
		return nil, nil, nil, fmt.Errorf("member %s replicates natively; its vendor's tools restore keys there", memberName)
	case m.worker() == nil:
		return nil, nil, nil, fmt.Errorf("%w: member %s is %s", ErrUnavailable, memberName, m.current().State)
	}
	for _, from := range s.list() {
		if from != m && k.on(from) && from.ready(k.id) != nil && !from.native() && !from.cfg.WeakUnwrap {
			return k, m, from, nil
		}
	}
	return nil, nil, nil, fmt.Errorf("%w: no other member that is up has a good copy of key %q; restore it from a backup", ErrUnavailable, name)
}

// clearOn destroys what a member has under a key's CKA_ID.
func clearOn(ctx context.Context, m *member, act string, k *Key) error {
	c, err := startCeremony(ctx, m.cfg, m.current().Serial, []string{act}, false)
	if err != nil {
		return err
	}
	defer c.end()
	return c.do(ctx, cerClear, clearKey{Name: k.name, Member: m.cfg.Name, ID: k.id}, &json.RawMessage{})
}
