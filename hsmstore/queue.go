package hsmstore

import (
	"context"
	"sync"
	"time"
)

// Class orders operations that wait for the HSMs.
type Class uint8

// The classes, most urgent first. The zero value is ClassAPI.
const (
	ClassAPI        Class = 0 // ACME and API
	ClassRevocation Class = 1 // CRLs
	ClassOCSP       Class = 2
	ClassBulk       Class = 3 // bulk signing
)

var classOrder = [...]Class{ClassRevocation, ClassOCSP, ClassAPI, ClassBulk}

// queue lets a number of signatures run at the same time and lets the others wait
// by class, first come first served within one. What is under way cannot be overtaken
// any more. Bulk signing therefore never takes more than half of the places, and far
// fewer while others sign too.
type queue struct {
	mu      sync.Mutex
	places  int        // how many may run; changes with the members and their sessions
	beside  func() int // how many of bulk signing may run beside others; nil: one
	running int
	bulk    int       // of those
	others  time.Time // when something else than bulk signing last came
	waiting [4][]chan struct{}
}

// resize sets the number of places.
func (q *queue) resize(places int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.places = max(places, 2)
	q.start()
}

// acquire waits for a place until ctx ends.
func (q *queue) acquire(ctx context.Context, c Class) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if int(c) >= len(q.waiting) {
		c = ClassBulk
	}
	q.mu.Lock()
	if c != ClassBulk {
		q.others = time.Now()
	}
	if q.mayRun(c) && !q.behind(c) {
		q.take(c)
		q.mu.Unlock()
		return nil
	}
	ch := make(chan struct{})
	q.waiting[c] = append(q.waiting[c], ch)
	q.mu.Unlock()
	select {
	case <-ch:
		return nil
	case <-ctx.Done():
	}
	q.mu.Lock()
	for i, w := range q.waiting[c] {
		if w == ch {
			q.waiting[c] = append(q.waiting[c][:i], q.waiting[c][i+1:]...)
			q.mu.Unlock()
			return ctx.Err()
		}
	}
	q.mu.Unlock()
	q.release(c) // the place came in that very moment
	return ctx.Err()
}

// mayRun tells whether there is a place for the class.
func (q *queue) mayRun(c Class) bool {
	return q.running < q.places && (c != ClassBulk || q.bulk < q.bulkPlaces())
}

// share is how many quarters of the places before the door a class may fill: what is
// urgent finds one when the others wait in crowds.
func (c Class) share() int {
	switch c {
	case ClassBulk:
		return 2
	case ClassAPI:
		return 3
	}
	return 4
}

// quiet is how long nobody else must have come for bulk signing to take its half.
const quiet = 250 * time.Millisecond

func (q *queue) bulkPlaces() int {
	half := max(1, q.places/2)
	switch {
	case time.Since(q.others) >= quiet:
		return half
	case q.beside == nil:
		return 1
	}
	return min(half, max(1, q.beside()))
}

// behind tells whether others of the class came first.
func (q *queue) behind(c Class) bool { return len(q.waiting[c]) > 0 }

func (q *queue) take(c Class) {
	q.running++
	if c == ClassBulk {
		q.bulk++
	}
}

func (q *queue) release(c Class) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.running--
	if int(c) >= len(q.waiting) || c == ClassBulk {
		q.bulk--
	}
	q.start()
}

// start lets those run for whom there is a place.
func (q *queue) start() {
	for _, c := range classOrder {
		for len(q.waiting[c]) > 0 && q.mayRun(c) {
			q.take(c)
			close(q.waiting[c][0])
			q.waiting[c] = q.waiting[c][1:]
		}
	}
}

// depth tells how many wait, by class, and how many run.
func (q *queue) depth() (waiting [4]int, running int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for c := range q.waiting {
		waiting[c] = len(q.waiting[c])
	}
	return waiting, q.running
}
