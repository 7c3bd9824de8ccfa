package hsmstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"chancery/admin"
	"chancery/audit"
)

// DestroyReport is what the end of a key left.
type DestroyReport struct {
	Copies  []string `json:"copies"`            // destroyed now: "member NAME token SERIAL"
	Left    []string `json:"left,omitempty"`    // members with a copy that could not be destroyed
	Backups []string `json:"backups,omitempty"` // recipients whose backups still hold the key, wrapped
}

// Destroy ends a key: it spends the act, disables the key, destroys the private and
// public object on every member, and records that with every copy and every backup
// recipient. Backups are not touched: whoever can restore one has the key again, and
// [Store.Verify] then raises an alarm.
//
// If a copy cannot be destroyed the key stays disabled, the report and the error name
// the member, and Destroy may be called again with a new grant. Errors wrap ErrNoKey,
// admin.ErrNotGranted, ErrUnavailable; a key that Config.InUse says is needed, checkpoint
// and probe keys, which end with their member, are refused.
func (s *Store) Destroy(ctx context.Context, grant *admin.Grant, name string) (DestroyReport, error) {
	unlock, err := s.ceremony(ctx)
	if err != nil {
		return DestroyReport{}, err
	}
	defer unlock()
	var report DestroyReport
	k, err := s.anyKey(name)
	if err != nil {
		return report, err
	}
	if err := s.mayDestroy(k); err != nil {
		return report, err
	}
	act := admin.DestroyKeyAct(name, k.spkiHash)
	if err := grant.Spend(act); err != nil {
		return report, fmt.Errorf("key %q: %w", name, err)
	}
	ctx = s.under(ctx, grant)
	// 1. No operation begins any more; those that have begun fail or end.
	if k.State() == KeyUsable {
		if err := s.changeState(ctx, k, KeyUsable, KeyDisabled, "to be destroyed"); err != nil {
			return report, err
		}
	}
	if s.cfg.Backups != nil {
		report.Backups = s.cfg.Backups(k.id)
	}
	// 2. The copies, one member after the other. A crash leaves the key disabled.
	var gone []audit.Projection
	var failed []error
	for _, member := range k.Members() {
		m := s.member(member)
		if m == nil {
			report.Left, failed = append(report.Left, member), append(failed, fmt.Errorf("member %s is not in the cluster any more", member))
			continue
		}
		if err := s.destroyOn(ctx, m, act, k); err != nil {
			report.Left, failed = append(report.Left, member), append(failed, err)
			continue
		}
		report.Copies = append(report.Copies, fmt.Sprintf("member %s token %s", member, m.current().Serial))
		gone = append(gone, KeyGone{ID: k.id, Member: member})
	}
	// 3. What is gone, on the ledger.
	if err := s.recordDestroyed(ctx, grant, k, report, gone); err != nil {
		return report, err
	}
	k.setMembers(report.Left)
	if len(failed) > 0 {
		return report, fmt.Errorf("key %q is disabled, and its copies on %s could not be destroyed; bring the members up and destroy it again: %w", name, strings.Join(report.Left, ", "), errors.Join(failed...))
	}
	k.setState(KeyDestroyed)
	s.log.Warn("key is destroyed", "key", name, "copies", report.Copies, "backups", report.Backups)
	return report, nil
}

// mayDestroy holds what must be so before anything happens.
func (s *Store) mayDestroy(k *Key) error {
	if k.State() == KeyDestroyed {
		return fmt.Errorf("%w: key %q is destroyed already", ErrNoKey, k.name)
	}
	if k.purpose == audit.PurposeProbe {
		return fmt.Errorf("key %q is the probe key of a member; it ends with the member", k.name)
	}
	if k.purpose == audit.PurposeCheckpoint {
		return fmt.Errorf("key %q signs the checkpoints of this ledger; it ends with its member", k.name)
	}
	if s.cfg.InUse != nil {
		if why := s.cfg.InUse(k.name); why != "" {
			return fmt.Errorf("key %q is in use: %s; end that first", k.name, why)
		}
	}
	for _, member := range k.Members() {
		if m := s.member(member); m != nil && m.worker() == nil {
			return fmt.Errorf("%w: key %q: member %s is %s; every member that holds the key must be up, so that no copy stays behind", ErrUnavailable, k.name, member, m.current().State)
		}
	}
	return nil
}

// destroyOn destroys a key's objects on one member.
func (s *Store) destroyOn(ctx context.Context, m *member, act string, k *Key) error {
	c, err := startCeremony(ctx, m.cfg, m.current().Serial, []string{act}, false)
	if err != nil {
		return err
	}
	defer c.end()
	return c.do(ctx, cerDestroy, destroyKey{Name: k.name, Pin: k.pin(), Label: keyLabel(k.purpose, k.name)}, &json.RawMessage{})
}

// recordDestroyed writes the leaf of a destruction, or of the part that was made.
func (s *Store) recordDestroyed(ctx context.Context, grant *admin.Grant, k *Key, r DestroyReport, gone []audit.Projection) error {
	op, state, reason := audit.OpKeyDestroy, KeyDestroyed, "every copy was destroyed"
	if len(r.Left) > 0 {
		op, state, reason = audit.OpKeyState, k.State(), "destroyed, but not on "+strings.Join(r.Left, ", ")
	} else {
		gone = append(gone, SetKeyState{ID: k.id, From: []KeyState{KeyBorn, KeyDisabled, KeyQuarantined}, To: KeyDestroyed})
	}
	f := k.stateFields(state, reason)
	f.Hash(audit.TagGrant, grant.Hash())
	copies := texts(r.Copies)
	for _, b := range r.Backups {
		copies = append(copies, []byte("backup "+b))
	}
	f.List(audit.TagCopies, copies...)
	if _, err := s.ledger.Append(context.WithoutCancel(ctx), audit.Event(op, f), gone...); err != nil {
		return fmt.Errorf("recording the end of key %q: %w", k.name, err)
	}
	return nil
}

// texts are the items of a list field.
func texts(items []string) [][]byte {
	out := make([][]byte, len(items))
	for i, s := range items {
		out[i] = []byte(s)
	}
	return out
}
