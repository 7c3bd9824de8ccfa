package admin_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"chancery/admin"
	"chancery/audit"
)

// Who takes the newest roster out of the database, so that an officer who left could decide
// again, closes the ledger under a running server; a start and audit verify refuse it too.
func TestAttack_HSM_11_RosterRolledBack(t *testing.T) {
	for what, sql := range map[string]string{
		"taken away": "DELETE FROM roster_change",
		"altered":    `UPDATE roster_change SET roster = replace(roster, '"quorum":2', '"quorum":3')`,
		"no roster":  "UPDATE roster_change SET roster = 'x'",
		"moved":      "UPDATE roster_change SET leaf = leaf - 1",
	} {
		t.Run(what, func(t *testing.T) {
			r := newRoom(t, 2, "ada", "bob", "cyd")
			if !strings.HasPrefix(r.url, "sqlite:") {
				t.Skip("writes past the server into a SQLite file")
			}
			stop := r.run()
			if err := r.change(func(n *admin.Roster) { n.Officers = n.Officers[:2] }); err != nil {
				t.Fatal(err)
			}
			at := must(r.board.Rosters(t.Context())).Changes[0].Leaf
			r.verify()
			s := audit.NewSweeper(r.ledger, r.db, audit.SweepOptions{Every: 20 * time.Millisecond})
			ctx, end := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- s.Run(ctx) }()
			defer func() {
				end()
				if err := <-ended; err != nil {
					t.Error(err)
				}
			}()
			await := func(is func() bool) {
				t.Helper()
				for late := time.Now().Add(20 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
					if time.Now().After(late) {
						t.Fatalf("waited in vain; alarms %v", s.State().Alarms)
					}
				}
			}
			await(func() bool { return s.State().Swept == r.ledger.Head().Size })
			if r.ledger.Broken() != nil {
				t.Fatal(r.ledger.Broken())
			}
			stop()
			exec(r, sql)
			await(func() bool { return r.ledger.Broken() != nil })
			if a := s.State().Alarms[0]; a.Promise != "P7" || a.Index != at || !a.Closed {
				t.Errorf("alarm %+v, want P7 at entry %d", a, at)
			}
			h, err := r.db.Rosters(t.Context())
			if err == nil && len(h.Changes) > 0 { // with none left, the tokens and audit verify know better
				err = h.Check(t.Context(), r.ledger.Leaf)
				if !errors.Is(err, audit.ErrTampered) {
					t.Errorf("a start: %v", err)
				}
			}
			var v *audit.Violation
			if _, err := audit.Verify(t.Context(), r.db, nil); !errors.As(err, &v) && !errors.Is(err, audit.ErrTampered) {
				t.Errorf("audit verify: %v", err)
			}
		})
	}
}
