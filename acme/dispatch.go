package acme

import (
	"context"
	"sync"
)

// The bounds of validations in this process. One takes up to 10 s if its target is a
// black hole, so nobody may occupy them all.
const (
	maxRunning        = 256
	maxRunningAccount = 32
	maxWaiting        = 16384
	maxWaitingAccount = 1024
)

// dispatcher runs validations: at most one per authorization at a time, and the
// accounts take turns.
type dispatcher struct {
	run   func(context.Context, PendingValidation) bool
	again func() // called after a run that returned false, when it may be started anew

	mu      sync.Mutex
	ctx     context.Context // nil: closed, what is started waits
	lanes   map[string]*lane
	turn    []string // accounts with something to start, next first
	flying  map[string]chan struct{}
	running int
	waiting int // with those reserved
	wg      sync.WaitGroup
}

// lane is what one account waits for.
type lane struct {
	queue    []PendingValidation
	reserved int
	running  int
	queued   bool // stands in turn
}

func newDispatcher(run func(context.Context, PendingValidation) bool, again func()) *dispatcher {
	return &dispatcher{run: run, again: again, lanes: map[string]*lane{}, flying: map[string]chan struct{}{}}
}

// reserve takes a place in the queue, or reports that there is none.
func (d *dispatcher) reserve(account string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.lane(account)
	if d.waiting >= maxWaiting || len(l.queue)+l.reserved >= maxWaitingAccount {
		return false
	}
	l.reserved++
	d.waiting++
	return true
}

// release gives a reserved place back.
func (d *dispatcher) release(account string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lane(account).reserved--
	d.waiting--
	d.tidy(account)
}

func (d *dispatcher) lane(account string) *lane {
	l := d.lanes[account]
	if l == nil {
		l = &lane{}
		d.lanes[account] = l
	}
	return l
}

func (d *dispatcher) tidy(account string) {
	if l := d.lanes[account]; l != nil && l.reserved+l.running+len(l.queue) == 0 && !l.queued {
		delete(d.lanes, account)
	}
}

// start puts a validation into a reserved place. The channel closes at its end.
func (d *dispatcher) start(v PendingValidation) <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.lane(v.Account)
	l.reserved--
	if ch, ok := d.flying[v.Challenge.Authz]; ok {
		d.waiting--
		d.tidy(v.Account)
		return ch
	}
	ch := make(chan struct{})
	d.flying[v.Challenge.Authz] = ch
	l.queue = append(l.queue, v)
	d.enqueue(v.Account, l)
	d.pump()
	return ch
}

func (d *dispatcher) enqueue(account string, l *lane) {
	if !l.queued && len(l.queue) > 0 && l.running < maxRunningAccount {
		l.queued = true
		d.turn = append(d.turn, account)
	}
}

// pump starts what may start. The caller holds mu.
func (d *dispatcher) pump() {
	for d.ctx != nil && d.ctx.Err() == nil && d.running < maxRunning && len(d.turn) > 0 {
		account := d.turn[0]
		d.turn = d.turn[1:]
		l := d.lanes[account]
		v := l.queue[0]
		l.queue = l.queue[1:]
		l.queued = false
		l.running++
		d.running++
		d.waiting--
		d.enqueue(account, l)
		d.wg.Go(func() { d.one(v) })
	}
}

func (d *dispatcher) one(v PendingValidation) {
	ok := d.run(context.Background(), v) // what has begun is ended, it is bounded by its own timeout
	defer func() {
		if !ok {
			d.again()
		}
	}()
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.lanes[v.Account]
	l.running--
	d.running--
	close(d.flying[v.Challenge.Authz])
	delete(d.flying, v.Challenge.Authz)
	d.enqueue(v.Account, l)
	d.tidy(v.Account)
	d.pump()
}

// open lets validations run until ctx is done.
func (d *dispatcher) open(ctx context.Context) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ctx = ctx
	d.pump()
}

// drain waits for what has begun. What has not is still in processing in the database.
func (d *dispatcher) drain() {
	d.mu.Lock()
	d.ctx = nil
	d.mu.Unlock()
	d.wg.Wait()
}
