package acme

import (
	"context"
	"slices"
	"sync"
)

// The bounds of validations in this process. One takes up to 10 s if its target is a
// black hole, so nobody may occupy them all.
const (
	maxRunning        = 256
	maxRunningAccount = 32
	maxWaiting        = 16384
	maxWaitingAccount = 1024
	// Accounts cost nothing: whoever makes many at one address still leaves room.
	maxRunningSource = 192
	maxWaitingSource = 8192
)

// dispatcher runs validations: at most one per authorization at a time, and the
// accounts take turns. What one source, see sourceOf, has running and waiting is bounded
// too; validations that a restart found have no source.
type dispatcher struct {
	run   func(context.Context, PendingValidation) bool
	again func() // called after a run that returned false, when it may be started anew

	mu      sync.Mutex
	ctx     context.Context // nil: closed, what is started waits
	lanes   map[string]*lane
	sources map[string]*share
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

// share is what one source occupies.
type share struct{ waiting, running int }

func newDispatcher(run func(context.Context, PendingValidation) bool, again func()) *dispatcher {
	return &dispatcher{run: run, again: again, lanes: map[string]*lane{}, sources: map[string]*share{}, flying: map[string]chan struct{}{}}
}

// reserve takes a place in the queue, or reports that there is none.
func (d *dispatcher) reserve(account, source string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if l := d.lanes[account]; d.waiting >= maxWaiting || l != nil && len(l.queue)+l.reserved >= maxWaitingAccount || d.share(source).waiting >= maxWaitingSource {
		return false
	}
	d.lane(account).reserved++
	d.wait(source, 1)
	return true
}

func (d *dispatcher) share(source string) share {
	if s := d.sources[source]; s != nil {
		return *s
	}
	return share{}
}

// wait counts places taken (+1) and left (-1); occupy does so for running ones.
func (d *dispatcher) wait(source string, n int) {
	d.waiting += n
	d.count(source, n, 0)
}

func (d *dispatcher) occupy(source string, n int) {
	d.running += n
	d.count(source, 0, n)
}

func (d *dispatcher) count(source string, waiting, running int) {
	if source == "" {
		return
	}
	s := d.share(source)
	s.waiting, s.running = s.waiting+waiting, s.running+running
	if d.sources[source] = &s; s == (share{}) {
		delete(d.sources, source)
	}
}

// release gives a reserved place back.
func (d *dispatcher) release(account, source string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lane(account).reserved--
	d.wait(source, -1)
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
		d.wait(v.source, -1)
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
	for next := 0; d.ctx != nil && d.ctx.Err() == nil && d.running < maxRunning && next < len(d.turn); {
		account := d.turn[next]
		l := d.lanes[account]
		v := l.queue[0]
		if d.share(v.source).running >= maxRunningSource {
			next++
			continue
		}
		d.turn = slices.Delete(d.turn, next, next+1)
		l.queue = l.queue[1:]
		l.queued = false
		l.running++
		d.wait(v.source, -1)
		d.occupy(v.source, 1)
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
	d.occupy(v.source, -1)
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
