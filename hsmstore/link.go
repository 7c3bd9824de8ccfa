package hsmstore

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// link is the connection with one worker process: requests by id, in any order.
type link struct {
	proc  *process
	of    *member // told how many sessions there are
	out   chan []byte
	dead  chan struct{} // closed when nothing will be heard any more
	ended atomic.Bool   // the same, set first: a member that has just failed has few calls and must not attract those of others

	mu      sync.Mutex
	next    uint64
	pending map[uint64]chan frame
	err     error
}

func newLink(p *process, of *member) *link {
	l := &link{proc: p, of: of, out: make(chan []byte, 256), dead: make(chan struct{}), pending: make(map[uint64]chan frame)}
	go l.write()
	go l.read()
	return l
}

// write sends until the link is dead.
func (l *link) write() {
	if err := writeLoop(l.proc.conn, l.out, l.dead); err != nil {
		l.failWith(fmt.Errorf("%w: %v", errDied, err))
	}
}

func (l *link) read() {
	for {
		f, err := readFrame(l.proc.r)
		if err != nil {
			l.failWith(errDied)
			return
		}
		if f.op == statusFatal {
			l.failWith(fatalError(f.payload))
			return
		}
		if f.op == statusSessions && len(f.payload) == 2 {
			l.of.setSessions(int(binary.BigEndian.Uint16(f.payload)))
			continue
		}
		l.mu.Lock()
		ch := l.pending[f.id]
		delete(l.pending, f.id)
		l.mu.Unlock()
		if ch != nil {
			ch <- f // has room for one
		}
	}
}

// failWith ends the link once: the process is killed, whoever waits is told.
func (l *link) failWith(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return
	}
	l.err = err
	if up := l.of.live.Load(); up != nil && up.link == l {
		l.of.gone.Store(time.Now().UnixNano())
	}
	l.ended.Store(true)
	clear(l.pending)
	l.proc.kill()
	close(l.dead)
}

func (l *link) kill() { l.failWith(errDied) }

// cause waits for the end of the process and makes the most of err, why the link
// failed: when the last words of the worker did not get through, its exit code
// still tells whether another try is allowed.
func (l *link) cause(err error) error {
	code := l.proc.wait()
	var f *fault
	if code >= exitProtocol && !errors.As(err, &f) {
		return &fault{code, fmt.Errorf("%w: exit code %d: %w", exitError(code), code, err)}
	}
	return err
}

func (l *link) why() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// call sends one request and waits for its answer, the deadline, or the end of
// the worker. When it returns an error, the answer will never be heard.
func (l *link) call(build func(id uint64) []byte, deadline <-chan time.Time) (frame, error) {
	ch := make(chan frame, 1)
	l.mu.Lock()
	if l.err != nil {
		err := l.err
		l.mu.Unlock()
		return frame{}, err
	}
	l.next++
	id := l.next
	l.pending[id] = ch
	l.mu.Unlock()
	select {
	case l.out <- build(id):
	case <-l.dead:
		return frame{}, l.why()
	case <-deadline:
		return frame{}, errDeadline
	}
	select {
	case f := <-ch:
		return f, nil
	case <-l.dead:
		return frame{}, l.why()
	case <-deadline:
		return frame{}, errDeadline
	}
}

// control does a rare request with JSON both ways. A worker that does not answer within
// startTimeout ends the link; a caller who goes away does not.
func (l *link) control(ctx context.Context, op byte, req, reply any) error {
	b, err := json.Marshal(req)
	if err != nil {
		return err
	}
	deadline := make(chan time.Time)
	var once sync.Once
	var late atomic.Bool
	end := func() { once.Do(func() { close(deadline) }) }
	stop := context.AfterFunc(ctx, end)
	defer stop()
	timer := time.AfterFunc(startTimeout, func() { late.Store(true); end() })
	defer timer.Stop()
	f, err := l.call(func(id uint64) []byte { return finishFrame(append(newFrame(id, op, len(b)), b...)) }, deadline)
	if errors.Is(err, errDeadline) {
		if !late.Load() {
			return fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
		}
		l.failWith(err)
	}
	if err != nil {
		return err
	}
	if f.op != statusOK {
		return fmt.Errorf("worker answered with status %d: %s", f.op, f.payload)
	}
	return json.Unmarshal(f.payload, reply)
}
