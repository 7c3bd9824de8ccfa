package acme

import (
	"context"
	"fmt"
	"time"
)

const (
	sweepEvery = time.Hour
	// An order has up to 100 authorizations: few at a time, so that other writes are
	// not held up.
	sweepBatch = 10
	sweepPause = 100 * time.Millisecond
)

// sweep deletes orders that never got a certificate, now and then.
func (s *Server) sweep(ctx context.Context) {
	for {
		pause := sweepEvery
		switch n, err := s.sweepOnce(ctx); {
		case ctx.Err() != nil:
			return
		case err != nil:
			s.log.Warn("acme: expired orders were not deleted", "err", err)
		case n == sweepBatch:
			pause = sweepPause
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

// sweepOnce deletes one batch. Orders stay for as long after their end as a valid
// authorization lives: whatever they rest on has then expired, too.
func (s *Server) sweepOnce(ctx context.Context) (n int, err error) {
	now := s.now()
	before := now.Add(-s.cfg.AuthzLife)
	ids, err := s.cfg.Storage.ACMEStaleOrders(ctx, before, sweepBatch)
	if err != nil || len(ids) == 0 {
		return 0, err
	}
	if err := s.cfg.Ledger.Write(ctx, PurgeOrders{IDs: ids, Before: before, Now: now}); err != nil {
		return 0, fmt.Errorf("deleting expired orders: %w", err)
	}
	return len(ids), nil
}
