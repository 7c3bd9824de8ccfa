package hsmstore

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"chancery/audit"
)

// Store is the cluster of HSM members with the keys that they hold. Its methods
// are safe for concurrent use.
type Store struct {
	cfg       Config
	ledger    *audit.Ledger
	log       *slog.Logger
	members   atomic.Pointer[[]*member] // replaced as a whole; see list
	queue     queue
	begun     atomic.Int64    // operations between Begin and the end of their signature
	running   context.Context // of all workers; ended by Close
	cancel    context.CancelFunc
	done      <-chan struct{} // closed by Close
	wg        sync.WaitGroup
	failovers atomic.Uint64 // attempts that another attempt followed

	mu     sync.RWMutex
	keys   map[string]*Key
	up     chan struct{} // closed and replaced when a member comes up
	closed bool

	opens       sync.Map   // index of an intent -> struct{}: this process will close it
	keysMu      sync.Mutex // one ceremony at a time
	probing     sync.WaitGroup
	pairs       pairs
	collections collections
	opened      openImport
	drift       drifts

	changed   chan struct{} // another node changed keys or members
	importing atomic.Bool   // an ImportSession is open
	retired   atomic.Bool   // the officers ended this cluster

	finishRestore func(ctx context.Context, carried uint64, done []audit.Projection) error // set by Restore

	provingBackup sync.Mutex // one proof of a whole backup at a time
}

// Open starts one worker per member and waits until each is up or has failed. It
// fails if no member comes up; the error then wraps ErrPIN, ErrModule or ErrToken.
// A member that fails beside one that works is logged and shows in [Store.Members].
// Members are supervised until [Store.Close].
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	s := &Store{cfg: cfg, ledger: cfg.Ledger, log: cfg.Log, keys: map[string]*Key{}, up: make(chan struct{}), changed: make(chan struct{}, 1)}
	for _, r := range cfg.Keys {
		k, err := newKey(s, r)
		if err != nil {
			return nil, fmt.Errorf("key %q of the database: %w", r.Name, err)
		}
		s.keys[r.Name] = k
	}
	s.queue.beside = s.beside
	s.running, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	s.done = s.running.Done()
	members, err := s.enrolled()
	if err != nil {
		return nil, err
	}
	if s.retired.Load() {
		s.cancel()
		return nil, fmt.Errorf("opening the HSM store: %w", errRetired)
	}
	s.members.Store(&members)
	if cfg.Nodes != nil { // from here on; what changed while the rows were read is read again
		s.ledger.OnForeign(s.heard)
		s.changed <- struct{}{}
	}
	var runs []*run
	for _, m := range members {
		if m.state == Starting {
			runs = append(runs, m.launch(s.running))
		}
	}
	for _, r := range runs {
		select {
		case <-r.settled:
		case <-ctx.Done():
			s.Close()
			return nil, ctx.Err()
		}
	}
	if s.anyUp() {
		if cfg.Nodes != nil {
			s.background(s.follow)
		}
		return s, nil
	}
	err = errors.New("no member came up")
	for _, st := range s.Members() {
		if st.Err == nil {
			st.Err = fmt.Errorf("it is %s", st.State)
		}
		err = fmt.Errorf("%w; member %s: %w", err, st.Name, st.Err)
	}
	s.Close()
	return nil, fmt.Errorf("opening the HSM store: %w", err)
}

// list is the members at this moment. The slice is never changed.
func (s *Store) list() []*member {
	if l := s.members.Load(); l != nil {
		return *l
	}
	return nil
}

// background starts work that a caller does not wait for; Close does.
func (s *Store) background(do func(context.Context)) {
	s.wg.Go(func() { do(s.running) })
}

// resize fits the number of signatures under way to what the members can do: twice
// their sessions, so that the next request is there when one ends.
func (s *Store) resize() {
	places := 0
	for _, m := range s.list() {
		if m.live.Load() == nil {
			continue
		}
		places += int(s.places(m))
	}
	s.queue.resize(places)
}

// beside is how many bulk signatures may be under way beside others: one, or a few on
// each member that is far away, where they do not cost the processor that the others
// need.
func (s *Store) beside() (n int) {
	for _, m := range s.list() {
		if m.live.Load() != nil && time.Duration(m.pace.Load()) >= slow {
			n += max(1, int(m.sessions.Load())/4)
		}
	}
	return n
}

// places are the signatures that a member can have under way.
func (s *Store) places(m *member) int64 {
	if s.cfg.Concurrency > 0 {
		return int64(s.cfg.Concurrency)
	}
	return 2 * m.sessions.Load()
}

// Close ends the workers. Signatures that are under way fail; end the callers first.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
	return nil
}

// Members tells the state of every member, in the order of the configuration.
func (s *Store) Members() []MemberStatus {
	out := make([]MemberStatus, 0, len(s.list()))
	for _, m := range s.list() {
		out = append(out, m.shown())
	}
	return out
}

func (s *Store) anyUp() bool {
	return slices.ContainsFunc(s.list(), func(m *member) bool { return m.current().State == Up })
}

// Ready tells whether every usable key, and of the checkpoint keys one, can sign on at
// least one member.
func (s *Store) Ready() bool {
	if s.retired.Load() || !s.anyUp() {
		return false
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	checkpoints := false // one is enough
	for _, k := range s.keys {
		switch {
		case !k.usable() || k.purpose == audit.PurposeProbe:
		case k.purpose == audit.PurposeCheckpoint:
			checkpoints = checkpoints || s.available(k)
		case !s.available(k):
			return false
		}
	}
	return !s.closed && checkpoints
}

// Key returns a key that is proved and so may be used; else the error wraps ErrNoKey.
func (s *Store) Key(name string) (*Key, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	k, ok := s.keys[name]
	switch {
	case !ok:
		return nil, fmt.Errorf("%w: %q", ErrNoKey, name)
	case !k.usable():
		return nil, fmt.Errorf("%w: key %q is %s", ErrNoKey, name, k.State())
	}
	return k, nil
}

// Keys lists all keys by name, also those that are not usable yet.
func (s *Store) Keys() []KeyInfo {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]KeyInfo, 0, len(s.keys))
	for _, k := range s.keys {
		info := KeyInfo{KeyRecord: k.record()}
		for _, m := range s.list() {
			if k.on(m) && m.ready(k.id) != nil {
				info.Ready = append(info.Ready, m.cfg.Name)
			}
		}
		out = append(out, info)
	}
	slices.SortFunc(out, func(a, b KeyInfo) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return out
}

// KeyInfo is a key as it stands now.
type KeyInfo struct {
	KeyRecord
	Ready []string // members where it can sign at this moment
}

// available tells whether some member can sign with the key now.
func (s *Store) available(k *Key) bool {
	return slices.ContainsFunc(s.list(), func(m *member) bool { return k.on(m) && m.ready(k.id) != nil })
}

// wake tells those who wait for a member that one came up.
func (s *Store) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.up)
	s.up = make(chan struct{})
}

func (s *Store) upSignal() <-chan struct{} {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.up
}

// loadRequest names the ledger and all keys of a member.
func (s *Store) loadRequest(member string) loadRequest {
	var req loadRequest
	if id := s.ledger.ID(); id != (audit.LedgerID{}) {
		req.Ledger, req.Origin = hex.EncodeToString(id[:]), s.ledger.Origin()
	}
	if p := s.probeKey(member); p != nil && slices.Contains(*p.members.Load(), member) {
		req.Probe = p.id
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, k := range s.keys {
		if slices.Contains(*k.members.Load(), member) && k.State() != KeyDestroyed {
			req.Keys = append(req.Keys, k.pin())
		}
	}
	return req
}

// reload makes new keys, and the ledger after its genesis, known to all workers
// that run. A worker that starts later gets them anyway.
func (s *Store) reload(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for _, m := range s.list() {
		m.mu.Lock()
		l := m.link
		m.mu.Unlock()
		if l == nil {
			continue
		}
		if err := m.load(ctx, l, s.loadRequest(m.cfg.Name)); err != nil {
			return fmt.Errorf("making keys known to member %s: %w", m.cfg.Name, err)
		}
	}
	return nil
}

// Run probes members that are idle, closes intents that a full ledger left open, and
// writes the hourly counts of exempt signatures, until ctx ends; then it writes the
// last counts. The ledger must
// still run when ctx ends, or the last counts wait for the next hour that never
// comes: they are logged then.
func (s *Store) Run(ctx context.Context) error {
	probes := time.NewTicker(probeInterval)
	defer probes.Stop()
	hour := time.NewTicker(countsInterval)
	defer hour.Stop()
	sweep := time.NewTicker(sweepInterval)
	defer sweep.Stop()
	check := time.NewTimer(driftFirst)
	defer check.Stop()
	for {
		select {
		case <-probes.C:
			s.probeIdle(ctx)
		case <-sweep.C:
			s.sweep(ctx, sweepAge)
		case <-hour.C:
			s.HourlyCounts(ctx)
		case <-check.C:
			s.probing.Go(func() { s.watchDrift(ctx) })
			check.Reset(driftInterval)
		case <-ctx.Done():
			s.probing.Wait()
			s.HourlyCounts(context.WithoutCancel(ctx))
			return nil
		}
	}
}
