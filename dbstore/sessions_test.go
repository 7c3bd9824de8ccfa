package dbstore_test

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chancery/audit"
	"chancery/dbstore"
	"chancery/web/console/sessions"
)

// Sessions are found by their ID, rotate once, end for good, and are never too many; a
// challenge is spent once, however many try.
func TestSessions(t *testing.T) {
	r := newACMERoom(t)
	ctx, s := t.Context(), dbstore.Sessions{Store: r.store, Ledger: r.led}
	now := time.Date(2026, 11, 25, 9, 30, 0, 123000, time.UTC)
	write := func(want error, p ...audit.Projection) {
		t.Helper()
		if err := s.Write(ctx, p...); !errors.Is(err, want) {
			t.Fatalf("%T: got %v, want %v", p[0], err, want)
		}
	}
	one := sessions.Session{Kind: sessions.Officer, Subject: "ada", Credential: []byte{1, 2}, Entry: [32]byte{3}, Created: now, Seen: now, Stepped: now, Form: "form", Op: audit.NewOpID()}
	a, b, c := sessions.IDOf("a"), sessions.IDOf("b"), sessions.IDOf("c")
	write(nil, sessions.Put{ID: a, Session: one})
	write(audit.ErrExists, sessions.Put{ID: a, Session: one})
	got, err := s.Session(ctx, a)
	if err != nil || got.Subject != "ada" || got.Kind != sessions.Officer || got.Entry != one.Entry || got.Op != one.Op || got.Form != "form" || !got.Created.Equal(now) || !got.Seen.Equal(now) || !got.Stepped.Equal(now) || string(got.Credential) != "\x01\x02" {
		t.Fatalf("%+v %v", got, err)
	}
	if _, err := s.Session(ctx, b); !errors.Is(err, audit.ErrNotFound) {
		t.Errorf("none: %v", err)
	}
	write(nil, sessions.Touch{ID: a, At: now.Add(time.Minute)}, sessions.Touch{ID: a, At: now.Add(-time.Minute)}, sessions.Touch{ID: b, At: now})
	later := now.Add(2 * time.Minute)
	write(nil, sessions.Rotate{From: a, To: b, Form: "other", At: later})
	write(audit.ErrConflict, sessions.Rotate{From: a, To: c, Form: "x", At: later})
	if _, err := s.Session(ctx, a); !errors.Is(err, audit.ErrNotFound) {
		t.Errorf("the old ID is alive: %v", err)
	}
	if got, err := s.Session(ctx, b); err != nil || got.Form != "other" || !got.Stepped.Equal(later) || !got.Created.Equal(now) {
		t.Errorf("%+v %v", got, err)
	}
	// A sign-in ends the session that the browser had.
	write(nil, sessions.Put{ID: c, Instead: b, Session: one})
	if _, err := s.Session(ctx, b); !errors.Is(err, audit.ErrNotFound) {
		t.Errorf("signing in again keeps the old session: %v", err)
	}
	write(nil, sessions.Close{ID: c}, sessions.Close{ID: c})
	if _, err := s.Session(ctx, c); !errors.Is(err, audit.ErrNotFound) {
		t.Errorf("closed: %v", err)
	}
	// Not too many: who was away longest goes first, and so does what has ended.
	for i := range sessions.Max + 10 {
		one.Subject, one.Created, one.Seen = fmt.Sprint("ada", i/sessions.Each), now.Add(time.Duration(i)*time.Second), now.Add(time.Duration(i)*time.Second)
		write(nil, sessions.Put{ID: sessions.ID{byte(i), byte(i >> 8), 1}, Session: one})
	}
	count := func() (n int) {
		for i := range sessions.Max + 10 {
			if _, err := s.Session(ctx, sessions.ID{byte(i), byte(i >> 8), 1}); err == nil {
				n++
			}
		}
		return n
	}
	if n := count(); n != sessions.Max {
		t.Errorf("%d sessions", n)
	}
	if _, err := s.Session(ctx, sessions.ID{9, 0, 1}); !errors.Is(err, audit.ErrNotFound) {
		t.Error("who was away longest stays")
	}
	one.Created, one.Seen = now.Add(time.Hour), now.Add(time.Hour)
	write(nil, sessions.Put{ID: a, Session: one})
	if n := count(); n != 0 {
		t.Errorf("%d sessions that ended stay", n)
	}
	var won atomic.Int32
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			switch err := s.Write(ctx, sessions.Spend{Challenge: [32]byte{7}, Expires: now.Add(time.Minute), At: now}); {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, audit.ErrExists):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("a challenge was spent %d times", won.Load())
	}
	write(nil, sessions.Spend{Challenge: [32]byte{8}, Expires: now.Add(2 * time.Hour), At: now.Add(time.Hour)})
	write(nil, sessions.Spend{Challenge: [32]byte{7}, Expires: now.Add(2 * time.Hour), At: now.Add(time.Hour)}) // the row has gone: nobody takes the challenge any more
}

// WEB-03: one person who signs in again and again signs nobody else out, neither an officer
// of the same name as somebody whom a provider vouches for.
func TestAttack_WEB_03_ManySessions(t *testing.T) {
	r := newACMERoom(t)
	ctx, s := t.Context(), dbstore.Sessions{Store: r.store, Ledger: r.led}
	now := time.Date(2026, 11, 25, 9, 30, 0, 0, time.UTC)
	put := func(id sessions.ID, kind, subject string, at time.Time) {
		t.Helper()
		one := sessions.Session{Kind: kind, Subject: subject, Credential: []byte{}, Created: at, Seen: at, Stepped: at, Form: "form", Op: audit.NewOpID()}
		if err := s.Write(ctx, sessions.Put{ID: id, Session: one}); err != nil {
			t.Fatal(err)
		}
	}
	bob, eve := sessions.IDOf("bob"), sessions.IDOf("eve")
	put(bob, sessions.Officer, "bob", now)
	put(eve, sessions.OIDC, "mallory", now)
	open := 0
	for i := range sessions.Max + 10 {
		put(sessions.ID{byte(i), byte(i >> 8), 1}, sessions.Officer, "mallory", now.Add(time.Duration(i)*time.Second))
	}
	for i := range sessions.Max + 10 {
		if _, err := s.Session(ctx, sessions.ID{byte(i), byte(i >> 8), 1}); err == nil {
			open++
		}
	}
	for name, id := range map[string]sessions.ID{"bob": bob, "eve": eve} {
		if _, err := s.Session(ctx, id); err != nil {
			t.Errorf("ATTACK WORKED: %s is signed out: %v", name, err)
		}
	}
	if open != sessions.Each {
		t.Errorf("one person has %d sessions", open)
	}
}
