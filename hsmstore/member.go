package hsmstore

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
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
)

// MemberStatus is what is known of one member.
type MemberStatus struct {
	Name        string    `json:"name"`
	State       State     `json:"state"`
	Since       time.Time `json:"since"`
	Err         error     `json:"-"` // why it is not up, or was not lately
	Serial      string    `json:"serial"`
	Label       string    `json:"label"`
	Starts      uint64    `json:"starts"` // worker processes started so far
	Pid         int       `json:"pid"`    // of the running worker; 0: none
	Calls       uint64    `json:"calls"`  // signatures asked for, retries included
	Outstanding int64     `json:"outstanding"`
	JournalSeq  uint64    `json:"journal_seq"`
	JournalHead [32]byte  `json:"-"`
}

// member is one HSM and the worker process that serves it now.
type member struct {
	cfg     MemberConfig
	store   *Store
	log     *slog.Logger
	settled chan struct{} // closed when the first start has ended, well or not
	settle  sync.Once

	outstanding atomic.Int64
	calls       atomic.Uint64
	lastUse     atomic.Int64 // unix nanoseconds of the last good answer
	count       counts

	mu      sync.Mutex
	state   State
	since   time.Time
	err     error
	serial  string // as enrolled, or as seen at the first start
	label   string
	starts  uint64
	badSigs int
	link    *link // nil unless up or suspect
	head    workerStatus
	bad     map[KeyID]string // keys that this token cannot use
}

const (
	backoffMin = 10 * time.Millisecond
	backoffMax = time.Second
	// startTimeout bounds opening the module, login and the first load. Network
	// HSMs need seconds for it.
	startTimeout = 30 * time.Second
)

// supervise keeps a worker running until ctx ends or the member is fenced.
func (m *member) supervise(ctx context.Context) {
	defer m.settle.Do(func() { close(m.settled) })
	wait := backoffMin
	for ctx.Err() == nil {
		m.set(Starting, nil)
		l, err := m.start(ctx)
		if err == nil {
			began := time.Now()
			err = m.serve(ctx, l)
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
		m.settle.Do(func() { close(m.settled) })
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
	return errors.As(err, &f) && (f.code == exitPIN || f.code == exitForeign)
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
	l := newLink(p)
	load := m.store.loadRequest(m.cfg.Name)
	load.Module, load.Label, load.Serial, load.Journal = m.cfg.Module, m.cfg.TokenLabel, serial, m.cfg.JournalPath
	if load.Sessions = m.cfg.Sessions; load.Sessions == 0 {
		load.Sessions = defaultSessions
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := m.load(ctx, l, load); err != nil {
		l.kill()
		return nil, l.cause(err)
	}
	return l, nil
}

const defaultSessions = 4

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
		}
	}
	return nil
}

// serve gives the member's requests to a worker until the worker ends, and says why.
func (m *member) serve(ctx context.Context, l *link) error {
	m.mu.Lock()
	m.link = l
	m.mu.Unlock()
	m.lastUse.Store(time.Now().UnixNano())
	m.set(Up, nil)
	m.settle.Do(func() { close(m.settled) })
	m.store.wake()
	select {
	case <-l.dead:
	case <-ctx.Done():
	}
	m.mu.Lock()
	m.link = nil
	m.mu.Unlock()
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
	if m.state == Fenced { // only a restart of the server leaves it
		return
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
	if n >= 2 {
		m.set(Fenced, fmt.Errorf("%w: %d times; the key or the HSM is damaged", errBadSig, n))
		l.failWith(errBadSig)
	}
}

// current is a copy of the member's status.
func (m *member) current() MemberStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := MemberStatus{Name: m.cfg.Name, State: m.state, Since: m.since, Err: m.err, Serial: m.serial, Label: m.label, Starts: m.starts,
		Calls: m.calls.Load(), Outstanding: m.outstanding.Load(), JournalSeq: m.head.JournalSeq}
	copy(s.JournalHead[:], m.head.JournalHead)
	if m.link != nil {
		s.Pid = m.link.proc.cmd.Process.Pid
	}
	return s
}

// ready returns the link of a member that is up and can use the key.
func (m *member) ready(id KeyID) *link {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state != Up || m.link == nil {
		return nil
	}
	if _, bad := m.bad[id]; bad {
		return nil
	}
	return m.link
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
