package dbstore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"hash/fnv"
	"strings"
	"time"

	"chancery/audit"
)

// Classes of advisory locks.
const (
	nodeLock      = 0x43485259 // a node lives; on its committing connection
	exclusiveLock = 0x4348525a // work that one node at a time does
)

// Shared tells whether other nodes can use the database at the same time.
func (s *Store) Shared() bool { return s.name == "postgres" }

func lockKey(name string) int32 {
	h := fnv.New32a()
	h.Write([]byte(name))
	return int32(h.Sum32())
}

// LockDead implements [audit.Storage].
func (s *Store) LockDead(ctx context.Context, node string) (release func(), dead bool, err error) {
	if s.name != "postgres" { // this process holds the lock of the intent journal: there is no other
		return func() {}, true, nil
	}
	return s.tryLock(ctx, nodeLock, node)
}

// Exclusive waits until no other node does the work of that name, and keeps them from
// it until release is called or this process ends.
func (s *Store) Exclusive(ctx context.Context, work string) (release func(), err error) {
	if s.name != "postgres" {
		return func() {}, nil
	}
	for {
		release, ok, err := s.tryLock(ctx, exclusiveLock, work)
		if err != nil || ok {
			return release, err
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: another node is at %s: %w", audit.ErrBusy, work, ctx.Err())
		}
	}
}

// tryLock takes an advisory lock on a connection of its own, if it is free.
func (s *Store) tryLock(ctx context.Context, class int, name string) (release func(), ok bool, err error) {
	conn, err := s.rwdb.Conn(ctx)
	if err != nil {
		return nil, false, mapError(err)
	}
	if err = conn.QueryRowContext(ctx, "SELECT pg_try_advisory_lock($1, $2)", class, lockKey(name)).Scan(&ok); err != nil || !ok {
		return nil, false, errors.Join(mapError(err), conn.Close())
	}
	return func() { // the end of the session frees the lock, whatever state the connection is in
		_ = conn.Raw(func(any) error { return driver.ErrBadConn })
		conn.Close()
	}, true, nil
}

// LockNode takes the lock of a node on the connection that commits, and waits while
// another session has it: after kill -9 of a server its backend may still commit,
// and only then what it left open may be judged (AUD-12). Two servers with one
// node_id never write at the same time. SQLite needs none: the intent journal's
// lock is enough on one machine.
func (s *Store) LockNode(ctx context.Context, node string) error {
	if s.name != "postgres" {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.node = node
	return s.takeNodeLock(ctx)
}

func (s *Store) takeNodeLock(ctx context.Context) error {
	if s.node == "" {
		return nil
	}
	wait, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if _, err := s.conn.ExecContext(wait, "SELECT pg_advisory_lock($1, $2)", nodeLock, lockKey(s.node)); err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("%w: another server with node_id %q is running; give each its own, or stop the other", audit.ErrUnavailable, s.node)
		}
		return mapError(err)
	}
	return nil
}

// connect makes the writing connection, with the node's lock on it.
func (s *Store) connect(ctx context.Context) error {
	conn, err := s.rwdb.Conn(ctx)
	if err != nil {
		return mapError(err)
	}
	s.conn = conn
	if err := checkDurable(ctx, conn); err != nil { // it may be another server than before
		s.disconnect()
		return err
	}
	if err := s.takeNodeLock(ctx); err != nil {
		s.disconnect()
		return err
	}
	return nil
}

// disconnect gives the writing connection up for good, and its session with it.
func (s *Store) disconnect() {
	for _, st := range s.stmts {
		st.Close()
	}
	clear(s.stmts)
	if s.conn != nil {
		_ = s.conn.Raw(func(any) error { return driver.ErrBadConn }) // the pool drops it
		s.conn.Close()
		s.conn = nil
	}
}

// reconnect comes back after a connection was lost in COMMIT: the lock of the node
// is free only when the old backend has ended, so that the head then tells what
// became of the commit. It tries until the database answers.
func (s *Store) reconnect() {
	for wait := 10 * time.Millisecond; s.conn == nil; wait = min(2*wait, time.Second) {
		if err := s.connect(context.Background()); err != nil {
			if errors.Is(err, sql.ErrConnDone) || strings.Contains(err.Error(), "database is closed") {
				return
			}
			time.Sleep(wait)
		}
	}
}
