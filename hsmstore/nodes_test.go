package hsmstore

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"
)

// offline is a store of one key and one member, with no HSM behind it; while it reads the
// rows of the database, meanwhile happens.
func offline(t *testing.T, state KeyState, standing Standing, meanwhile func(*Key, *member)) (*Store, *Key, *member) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	s := &Store{log: log, keys: map[string]*Key{}, changed: make(chan struct{}, 1), up: make(chan struct{})}
	s.running, s.cancel = context.WithCancel(t.Context())
	k := &Key{store: s, name: "k"}
	k.setMembers([]string{"beta"})
	k.setState(state)
	s.keys["k"] = k
	m := s.newMember(MemberConfig{Name: "beta"}, Up)
	m.log, m.standing = log, standing
	s.members.Store(&[]*member{m})
	s.queue.beside = s.beside
	s.cfg.Nodes = &Nodes{Rows: func(context.Context) ([]KeyRecord, []MemberRecord, error) {
		keys, members := []KeyRecord{{Name: "k", State: KeyUsable, Members: []string{"beta"}}}, []MemberRecord{{Name: "beta", Standing: StandingActive}}
		meanwhile(k, m)
		return keys, members, nil
	}}
	t.Cleanup(func() { s.Close() })
	return s, k, m
}

// What this node decides or hears while it reads the rows is newer than they are: a fenced
// member is not let in again, a disabled key stays disabled.
func TestDecidedWhileRowsAreRead(t *testing.T) {
	disable := map[string]func(*Key){
		"decided": func(k *Key) { was, to := k.state.Load(), KeyDisabled; k.state.CompareAndSwap(was, &to) },
		"heard":   func(k *Key) { k.heard(KeyDisabled) },
	}
	for how, disable := range disable {
		s, k, m := offline(t, KeyUsable, StandingActive, func(k *Key, m *member) {
			disable(k)
			m.set(Fenced, errors.New("by a person"))
			m.decided(StandingFenced)
		})
		check(t, s.takeUp(t.Context()))
		if k.State() != KeyDisabled || m.current().State != Fenced || m.standing != StandingFenced {
			t.Errorf("%s: key %s, member %s, standing %s", how, k.State(), m.current().State, m.standing)
		}
	}
}

// An act that waits for the other nodes does not keep this node from learning what they
// decide, and begins with it.
func TestActWaitsForOtherNodes(t *testing.T) {
	s, k, _ := offline(t, KeyDisabled, StandingActive, func(*Key, *member) {})
	waits, theirs := make(chan struct{}), make(chan struct{})
	s.cfg.Nodes.Exclusive = func(context.Context, string) (func(), error) {
		close(waits)
		<-theirs
		return func() {}, nil
	}
	done := make(chan error, 1)
	go func() {
		unlock, err := s.ceremony(t.Context())
		if err == nil {
			unlock()
		}
		done <- err
	}()
	<-waits
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	check(t, s.takeUp(ctx))
	k.setState(KeyDisabled)
	close(theirs)
	check(t, <-done)
	if k.State() != KeyUsable {
		t.Errorf("the act began with a key that is %s", k.State())
	}
}

// A member that another node let in comes up when it can, not only if it can at once.
func TestAdmittedElsewhereAndNotReachable(t *testing.T) {
	s, k, m := offline(t, KeyDisabled, StandingDrained, func(*Key, *member) {})
	m.set(Out, nil)
	check(t, s.takeUp(t.Context()))
	m.mu.Lock()
	r := m.run
	m.mu.Unlock()
	if r == nil || !m.restarting() || k.State() != KeyUsable {
		t.Fatalf("member %s has no supervision; key %s", m.current().State, k.State())
	}
	select {
	case <-r.ended:
		t.Error("the supervision has ended")
	case <-r.settled:
	}
}
