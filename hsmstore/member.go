package hsmstore

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"
)

// State is the state of one member.
type State string

// The states. Only an up member gets requests.
const (
	Starting State = "starting" // its worker opens the token
	Up       State = "up"
	Suspect  State = "suspect" // missed a deadline or failed a probe; its worker is being killed
	Down     State = "down"    // its worker ended; it is started again
	Fenced   State = "fenced"  // needs a person: PIN, foreign token, wrong signatures
	Out      State = "drained" // taken out by a person; its worker is stopped
	Joining  State = "joining" // up, but gets no requests before all its copies have proved themselves
	Absent   State = "absent"  // enrolled, but the configuration of this node does not say how to reach it
)

// MemberStatus is what is known of one member.
type MemberStatus struct {
	Name        string           `json:"name"`
	State       State            `json:"state"`
	Since       time.Time        `json:"since"`
	Err         error            `json:"-"` // why it is not up, or was not lately
	Serial      string           `json:"serial"`
	Label       string           `json:"label"`
	Starts      uint64           `json:"starts"` // worker processes started so far
	Pid         int              `json:"pid"`    // of the running worker; 0: none
	Calls       uint64           `json:"calls"`  // signatures asked for, retries included
	Outstanding int64            `json:"outstanding"`
	Sessions    int64            `json:"sessions"` // that sign at the same time
	Replication Replication      `json:"replication"`
	Role        Role             `json:"role,omitempty"`
	Bad         map[KeyID]string `json:"-"` // keys that cannot be used here, and why
	JournalSeq  uint64           `json:"journal_seq"`
	JournalHead [32]byte         `json:"-"`
}

// member is one HSM and the worker process that serves it now.
type member struct {
	cfg   MemberConfig
	store *Store
	log   *slog.Logger

	outstanding atomic.Int64
	sessions    atomic.Int64
	calls       atomic.Uint64
	lastUse     atomic.Int64 // unix nanoseconds of the last good answer
	pace        atomic.Int64 // nanoseconds that a signature takes; a moving average
	gone        atomic.Int64 // unix nanoseconds of the end of the last worker that was up
	live        atomic.Pointer[live]
	sealed      atomic.Bool // up, but only for its proofs
	count       counts
	stats       stats

	mu        sync.Mutex
	state     State
	since     time.Time
	err       error
	standing  Standing // as the database had it when this node last knew
	serial    string   // as enrolled, or as seen at the first start
	label     string
	starts    uint64
	badSigs   int
	link      *link // nil unless up or suspect
	head      workerStatus
	bad       map[KeyID]string // keys that this token cannot use
	drift     map[KeyID]string // those of them that Verify found out; see markDrift
	run       *run             // the supervision at hand; nil: none
	decisions uint64           // about its standing, recorded by this node
}

// live is what signing needs of a member that is up; it never changes.
type live struct {
	link *link
	bad  map[KeyID]string
}

// run is one time of supervision, from a launch to its end.
type run struct {
	cancel  context.CancelFunc
	settled chan struct{} // closed when the first start has ended, well or not
	settle  sync.Once
	ended   chan struct{}
}

func (r *run) done() { r.settle.Do(func() { close(r.settled) }) }

const (
	backoffMin = 10 * time.Millisecond
	backoffMax = 500 * time.Millisecond // a member is back soon after the cause is gone
	// startTimeout bounds opening the module, login and the first load. Network
	// HSMs need seconds for it.
	startTimeout = 30 * time.Second
)

// launch begins the supervision of a member that has none.
func (m *member) launch(ctx context.Context) *run {
	ctx, cancel := context.WithCancel(ctx)
	r := &run{cancel: cancel, settled: make(chan struct{}), ended: make(chan struct{})}
	m.mu.Lock()
	m.run = r
	m.mu.Unlock()
	m.store.wg.Go(func() {
		defer close(r.ended)
		defer cancel()
		m.supervise(ctx, r)
	})
	return r
}

// halt ends the supervision and the worker with it.
func (m *member) halt() {
	m.mu.Lock()
	r := m.run
	m.run = nil
	m.mu.Unlock()
	if r != nil {
		r.cancel()
		<-r.ended
	}
}

// supervise keeps a worker running until ctx ends or the member is fenced.
func (m *member) supervise(ctx context.Context, r *run) {
	defer r.done()
	wait := backoffMin
	for ctx.Err() == nil {
		m.set(Starting, nil)
		l, err := m.start(ctx)
		if err == nil {
			began := time.Now()
			err = m.serve(ctx, l, r)
			if time.Since(began) > 10*time.Second {
				wait = backoffMin
			}
		}
		if ctx.Err() != nil {
			return
		}
		if fences(err) {
			m.set(Fenced, err)
			return
		}
		if m.current().State == Fenced {
			return
		}
		m.set(Down, err)
		r.done()
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		wait = min(2*wait, backoffMax)
	}
}

// fences tells whether an error must not be met by another try.
func fences(err error) bool {
	var f *fault
	return errors.As(err, &f) && (f.code == exitPIN || f.code == exitForeign || f.code == exitRandom || f.code == exitGrant)
}

// start starts a worker and waits until it has opened the token and found its keys.
func (m *member) start(ctx context.Context) (*link, error) {
	if err := checkModule(m.cfg.Module); err != nil {
		return nil, err
	}
	userPIN, err := m.cfg.PIN()
	if err != nil {
		return nil, fmt.Errorf("getting the PIN of member %s: %w", m.cfg.Name, err)
	}
	m.mu.Lock()
	m.starts++
	serial := m.serial
	m.mu.Unlock()
	p, err := startProcess(workerCommand, m.cfg, userPIN)
	if err != nil {
		return nil, err
	}
	l := newLink(p, m)
	load := m.store.loadRequest(m.cfg.Name)
	load.Module, load.Reserved, load.Label, load.Serial, load.Journal = m.cfg.Module, m.cfg.Reserved, m.cfg.TokenLabel, serial, m.cfg.JournalPath
	load.Sessions, load.Native = m.cfg.Sessions, m.cfg.Replication == ReplicateNative
	load.Weak = m.cfg.WeakUnwrap
	load.Role = m.cfg.Role
	load.Others = m.store.serials(m)
	load.Patience = int(m.store.cfg.SignTimeout.Milliseconds() * 8 / 10)
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	err = m.load(ctx, l, load)
	if err == nil {
		err = m.firstProbe(l)
	}
	if err != nil {
		l.kill()
		return nil, l.cause(err)
	}
	return l, nil
}

// firstProbe lets a new worker sign its probe text before anyone waits for it: a
// token that opens and does not sign is not up.
func (m *member) firstProbe(l *link) error {
	k := m.store.probeKey(m.cfg.Name)
	if k == nil || !k.on(m) || !k.usable() {
		return nil // before its birth
	}
	m.mu.Lock()
	why := m.bad[k.id]
	m.mu.Unlock()
	if why != "" {
		return fmt.Errorf("%w: probe key: %s", ErrToken, why)
	}
	_, err := m.store.try(m, l, m.probe(k))
	if err != nil {
		return fmt.Errorf("probing after the start: %w", err)
	}
	return nil
}

// serials are the enrolled serial numbers of the members but one.
func (s *Store) serials(but *member) (out []string) {
	for _, m := range s.list() {
		if m != but {
			out = append(out, m.current().Serial)
		}
	}
	return out
}

// load sends a load request and takes in its reply.
func (m *member) load(ctx context.Context, l *link, req loadRequest) error {
	var reply loadReply
	if err := l.control(ctx, opLoad, req, &reply); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.serial != "" && m.serial != reply.Status.Serial {
		return &fault{exitForeign, fmt.Errorf("%w: token %s is enrolled, %s is there", ErrToken, m.serial, reply.Status.Serial)}
	}
	m.serial, m.label, m.head = reply.Status.Serial, reply.Status.Label, reply.Status
	for _, k := range req.Keys {
		id := hex.EncodeToString(k.ID[:])
		if why, bad := reply.Bad[id]; bad {
			m.bad[k.ID] = why
			m.log.Error("key cannot be used on this member", "key_id", id, "why", why)
		} else {
			delete(m.bad, k.ID)
			if why, drifted := m.drift[k.ID]; drifted {
				m.bad[k.ID] = why
			}
		}
	}
	m.setSessions(reply.Status.Sessions)
	if m.link == l && m.state == Up {
		m.live.Store(&live{l, maps.Clone(m.bad)})
	}
	return nil
}

// setSessions notes how much a member can do at the same time.
func (m *member) setSessions(n int) {
	m.sessions.Store(int64(n))
	m.store.resize()
}

// serve gives the member's requests to a worker until the worker ends, and says why.
func (m *member) serve(ctx context.Context, l *link, r *run) error {
	if err := m.store.tellRosters(ctx, m, l); err != nil {
		m.log.Error("the worker could not be told who the officers are; it takes no ceremony, or learns of them at the next one", "err", err)
	}
	m.mu.Lock()
	m.link = l
	m.setLocked(Up, nil)
	if m.state == Up { // it may have been fenced while its worker started
		m.live.Store(&live{l, maps.Clone(m.bad)})
	}
	m.mu.Unlock()
	m.lastUse.Store(time.Now().UnixNano())
	m.store.resize()
	r.done()
	m.store.wake()
	select {
	case <-l.dead:
	case <-ctx.Done():
	}
	m.mu.Lock()
	m.link = nil
	m.live.Store(nil)
	m.mu.Unlock()
	m.store.resize()
	if ctx.Err() != nil {
		l.proc.stop()
		return ctx.Err()
	}
	err := l.cause(l.why())
	m.log.Warn("worker ended", "exit", l.proc.wait(), "err", err, "stderr", l.proc.stderr.String())
	return err
}

func (m *member) set(s State, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.setLocked(s, err)
}

func (m *member) setLocked(s State, err error) {
	if m.state == Fenced && s != Out { // only people take a member out of it
		return
	}
	if s != Up {
		m.live.Store(nil)
	}
	if s != m.state {
		attrs := []any{"from", m.state, "to", s}
		if err != nil {
			attrs = append(attrs, "err", err)
		}
		switch s {
		case Fenced:
			m.log.Error("HSM member is fenced and needs a person", attrs...)
		case Down, Suspect:
			if m.state != Starting || m.err == nil { // a failing restart is told once
				m.log.Warn("HSM member", attrs...)
			}
		case Up:
			m.log.Info("HSM member", attrs...)
		default:
			m.log.Debug("HSM member", attrs...)
		}
		m.state, m.since = s, time.Now()
	}
	if err != nil || s == Up {
		m.err = err
	}
}

// suspect takes the member out of the choice and kills its worker: nothing that
// the worker says from now on is heard.
func (m *member) suspect(l *link, why error) {
	m.mu.Lock()
	if m.link == l {
		m.setLocked(Suspect, why)
	}
	m.mu.Unlock()
	l.failWith(why)
}

// wrongSignature counts a signature that did not verify; the second one fences.
func (m *member) wrongSignature(l *link) {
	m.mu.Lock()
	m.badSigs++
	n := m.badSigs
	m.mu.Unlock()
	m.log.Error("HSM made a signature that does not verify", "count", n)
	if n == 2 { // those that were under way beside it change nothing any more
		m.set(Fenced, fmt.Errorf("%w: %d times; the key or the HSM is damaged", errBadSig, n))
		l.failWith(errBadSig)
		m.store.background(func(ctx context.Context) {
			m.store.recordStanding(ctx, m, StandingFenced, "two signatures did not verify")
		})
	}
}

// shown is current for people: a member that joins is not up for them.
func (m *member) shown() MemberStatus {
	s := m.current()
	if s.State == Up && m.sealed.Load() {
		s.State = Joining
	}
	return s
}

// current is a copy of the member's status.
func (m *member) current() MemberStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := MemberStatus{Name: m.cfg.Name, State: m.state, Since: m.since, Err: m.err, Serial: m.serial, Label: m.label, Starts: m.starts,
		Calls: m.calls.Load(), Outstanding: m.outstanding.Load(), JournalSeq: m.head.JournalSeq, Sessions: m.sessions.Load(), Replication: m.cfg.Replication, Role: m.cfg.Role, Bad: maps.Clone(m.bad)}
	if s.Replication == "" {
		s.Replication = ReplicateWrap
	}
	copy(s.JournalHead[:], m.head.JournalHead)
	if m.link != nil {
		s.Pid = m.link.proc.cmd.Process.Pid
	}
	return s
}

// restarting tells whether a worker is to come up by itself.
func (m *member) restarting() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state == Starting || m.state == Down || m.state == Suspect || m.state == Up
}

// ready returns the link of a member that is up and can use the key.
func (m *member) ready(id KeyID) *link {
	l := m.live.Load()
	if l == nil || l.link.ended.Load() {
		return nil
	}
	if _, bad := l.bad[id]; bad {
		return nil
	}
	return l.link
}

// refreshStatus asks the worker where its journal stands.
func (m *member) refreshStatus(ctx context.Context) {
	m.mu.Lock()
	l := m.link
	m.mu.Unlock()
	if l == nil {
		return
	}
	var st workerStatus
	if err := l.control(ctx, opStatus, struct{}{}, &st); err != nil {
		return
	}
	m.mu.Lock()
	m.head = st
	m.mu.Unlock()
}

// native tells whether the vendor's cluster behind the module copies its keys itself.
func (m *member) native() bool { return m.cfg.Replication == ReplicateNative }
