package hsmstore

import (
	"context"
	"fmt"
	"time"

	"chancery/admin"
	"chancery/audit"
)

// errRetired: the keys go on elsewhere.
var errRetired = fmt.Errorf("%w: the officers retired this cluster: its keys go on in another one, and nothing is signed here any more", ErrUnavailable)

// settlePatience bounds the wait for operations that have begun.
const settlePatience = 10 * time.Second

// settle waits until no operation is between its intent and its signature: after the leaf
// that ends the cluster there is no intent (audit verify holds that).
func (s *Store) settle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, settlePatience)
	defer cancel()
	for tick := time.NewTicker(5 * time.Millisecond); s.begun.Load() > 0; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			s.log.Warn("retired with operations under way", "begun", s.begun.Load())
			return
		}
	}
}

// Retire ends the use of every key here, because another cluster goes on with them: no
// operation begins any more, every member is recorded as retired, for good, and so do the
// workers and ceremony processes in their own account, whatever the database says later.
// last, if not nil, is called when the leaves are
// written and the members still sign: for the checkpoint that covers them. The act is
// admin.RetireAct.
//
// The keys stay on the tokens: destroy or wipe them with the vendor's tools when the
// other cluster has proved itself.
func (s *Store) Retire(ctx context.Context, grant *admin.Grant, reason string, last func(context.Context) error) error {
	unlock, err := s.ceremony(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := grant.Spend(admin.RetireAct()); err != nil {
		return err
	}
	s.retired.Store(true)
	s.provingBackup.Lock() // and never given back
	s.settle(ctx)
	for _, m := range s.list() {
		var f audit.Fields
		f.Text(audit.TagReason, audit.Text(reason, 500))
		f.Text(audit.TagMember, m.cfg.Name)
		f.Text(audit.TagSerialNumber, m.current().Serial)
		f.Text(audit.TagState, string(StandingRetired))
		f.Hash(audit.TagGrant, grant.Hash())
		if _, err := s.ledger.Append(context.WithoutCancel(ctx), audit.Event(audit.OpMemberState, f), SetStanding{Member: m.cfg.Name, To: StandingRetired}); err != nil {
			return fmt.Errorf("recording that member %s is retired: %w; nothing is signed here any more all the same", m.cfg.Name, err)
		}
	}
	if last != nil {
		if err := last(ctx); err != nil {
			s.log.Warn("last checkpoint of a retired cluster not signed", "err", err)
		}
	}
	for _, m := range s.list() {
		s.endRetired(ctx, m)
	}
	s.resize()
	s.log.Warn("the cluster is retired; nothing is signed any more", "reason", reason)
	return nil
}

// endRetired ends a member for good, here and in its worker's own account.
func (s *Store) endRetired(ctx context.Context, m *member) {
	if err := m.quiet(ctx); err != nil {
		m.log.Warn("retired with requests under way", "err", err)
	}
	if l := m.worker(); l != nil {
		if err := l.control(ctx, opRetire, struct{}{}, &struct{}{}); err != nil {
			m.log.Error("a retired worker could not write that down itself; only the database tells it after a restart", "err", err)
		}
	}
	m.set(Fenced, errRetired)
	m.halt()
}
