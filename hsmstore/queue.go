package hsmstore

import (
	"context"
	"sync"
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
// by class, first come first served within one.
type queue struct {
	mu      sync.Mutex
	free    int
	waiting [4][]chan struct{}
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
	if q.free > 0 {
		q.free--
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
	q.release() // the place came in that very moment
	return ctx.Err()
}

func (q *queue) release() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, c := range classOrder {
		if w := q.waiting[c]; len(w) > 0 {
			q.waiting[c] = w[1:]
			close(w[0])
			return
		}
	}
	q.free++
}
