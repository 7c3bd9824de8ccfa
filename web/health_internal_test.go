package web

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"chancery/audit"
)

// A check that hangs is "not ready", for everyone who asks, and no second one is begun; when
// it has ended the next one tells.
func TestReadinessThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hold := make(chan struct{})
		var checks atomic.Int32
		r := readiness{check: func(context.Context) error { checks.Add(1); <-hold; return nil }}
		for range 3 {
			if err := r.ask(t.Context()); !errors.Is(err, audit.ErrUnavailable) {
				t.Errorf("while it hangs: %v", err)
			}
			time.Sleep(2 * readyFor)
		}
		if checks.Load() != 1 {
			t.Errorf("%d checks were begun", checks.Load())
		}
		close(hold)
		synctest.Wait()
		if err := r.ask(t.Context()); err != nil || checks.Load() != 2 {
			t.Errorf("afterwards: %v, %d checks", err, checks.Load())
		}
	})
}
