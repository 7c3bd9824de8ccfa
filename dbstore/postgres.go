package dbstore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"

	"chancery/audit"
	"chancery/migrations"
)

func postgresDialect() dialect {
	return dialect{name: "postgres", begin: "BEGIN", head: "SELECT size, nodes FROM ledger_head WHERE id = 1 FOR UPDATE", rebind: dollars}
}

// dollars writes ? as $1, $2 …. No statement here holds a question mark otherwise.
func dollars(query string) string {
	var b strings.Builder
	for n := 1; ; n++ {
		before, after, found := strings.Cut(query, "?")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		b.WriteByte('$')
		b.WriteString(strconv.Itoa(n))
		query = after
	}
}

// openPostgres opens a database, checks that a commit there is durable and that the
// role can only add to the ledger, and brings the schema up to date under an advisory
// lock. Pools are fixed: connections are neither made nor ended under load.
func openPostgres(ctx context.Context, dsn string) (*Store, error) {
	s := &Store{dialect: postgresDialect(), stmts: map[string]*sql.Stmt{}}
	err := s.openPostgres(ctx, dsn)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("database: %w", withoutSecret(err)), s.Close())
	}
	return s, nil
}

func (s *Store) openPostgres(ctx context.Context, dsn string) error {
	var err error
	if s.rwdb, err = sql.Open("pgx", dsn); err != nil {
		return err
	}
	s.rwdb.SetMaxOpenConns(3) // the writing connection; migrations and their lock
	if err := checkDurable(ctx, s.rwdb); err != nil {
		return err
	}
	locker, err := lock.NewPostgresSessionLocker()
	if err != nil {
		return err
	}
	files, err := fs.Sub(migrations.Postgres, "postgres")
	if err != nil {
		return err
	}
	if err := migrate(ctx, s.rwdb, goose.DialectPostgres, files, goose.WithSessionLocker(locker)); err != nil {
		return err
	}
	if err := checkRole(ctx, s.rwdb); err != nil {
		return err
	}
	if err := s.connect(ctx); err != nil {
		return err
	}
	db, err := sql.Open("pgx", dsn)
	if err != nil {
		return err
	}
	db.SetMaxOpenConns(poolSize())
	db.SetMaxIdleConns(poolSize())
	s.rodb = reads{ConnPool: db, db: db, rebind: s.rebind}
	s.ro, err = gorm.Open(postgres.New(postgres.Config{Conn: s.rodb}), gormConfig(false)) // pgx keeps prepared statements itself
	return err
}

func snapshotPostgres(ctx context.Context, dsn string) (*Store, error) {
	s := &Store{dialect: postgresDialect()}
	db, err := sql.Open("pgx", dsn)
	if err != nil {
		return nil, fmt.Errorf("database: %w", withoutSecret(err))
	}
	s.rwdb = db // closed by Close, after the connection
	if s.conn, err = db.Conn(ctx); err == nil {
		_, err = s.conn.ExecContext(ctx, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
	}
	if err == nil {
		s.rodb = reads{ConnPool: s.conn, rebind: s.rebind}
		s.ro, err = gorm.Open(postgres.New(postgres.Config{Conn: s.conn}), gormConfig(false))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("database: %w", withoutSecret(err)), s.Close())
	}
	return s, nil
}

// withoutSecret keeps a password that stands in the URL out of the message.
func withoutSecret(err error) error {
	var parse *pgconn.ParseConfigError
	if errors.As(err, &parse) {
		return errors.New("the URL cannot be read; write postgres://user@host/database?host=/run/postgresql, the password in a .pgpass file")
	}
	var connect *pgconn.ConnectError
	if errors.As(err, &connect) {
		return fmt.Errorf("cannot connect: %w", errors.Unwrap(connect))
	}
	return err
}

// checkDurable refuses a server on which a commit may be lost (P1, P3).
func checkDurable(ctx context.Context, db *sql.DB) error {
	for name, allowed := range map[string]string{"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on remote_write remote_apply local"} {
		var v string
		if err := db.QueryRowContext(ctx, "SELECT current_setting($1)", name).Scan(&v); err != nil {
			return err
		}
		if name == "synchronous_commit" && v == "local" {
			continue // durable here; standbys are not waited for
		}
		if !strings.Contains(" "+allowed+" ", " "+v+" ") {
			return fmt.Errorf("PostgreSQL runs with %s=%s: a commit could be lost after a crash; set %s=on in postgresql.conf (also for the role and the database) and reload", name, v, name)
		}
	}
	return nil
}

// checkRole refuses a role that could change what is on the ledger.
func checkRole(ctx context.Context, db *sql.DB) error {
	var super bool
	if err := db.QueryRowContext(ctx, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user").Scan(&super); err != nil {
		return err
	}
	if super {
		return errors.New("the role is a superuser, who can change the ledger; make one for the service: CREATE ROLE chancery LOGIN; CREATE DATABASE chancery OWNER chancery")
	}
	for _, table := range []string{"ledger_leaf", "ledger_tile"} {
		for _, right := range []string{"UPDATE", "DELETE", "TRUNCATE"} {
			var has bool
			if err := db.QueryRowContext(ctx, "SELECT has_table_privilege(current_user, $1, $2)", table, right).Scan(&has); err != nil {
				return err
			}
			if has {
				return fmt.Errorf("the role may %s rows of %s, which must only grow; take the right away: REVOKE UPDATE, DELETE, TRUNCATE ON ledger_leaf, ledger_tile FROM CURRENT_USER", right, table)
			}
		}
	}
	return nil
}

// nodeLock is the class of the advisory locks of nodes.
const nodeLock = 0x43485259

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
	h := fnv.New32a()
	h.Write([]byte(s.node))
	wait, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if _, err := s.conn.ExecContext(wait, "SELECT pg_advisory_lock($1, $2)", nodeLock, int32(h.Sum32())); err != nil {
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

func postgresError(err error) error {
	var pe *pgconn.PgError
	var ce *pgconn.ConnectError
	switch {
	case errors.As(err, &pe):
		switch {
		case pe.Code == "23505": // unique_violation
			return audit.ErrExists
		case strings.HasPrefix(pe.Code, "08"), strings.HasPrefix(pe.Code, "53"), strings.HasPrefix(pe.Code, "57"), strings.HasPrefix(pe.Code, "58"),
			pe.Code == "25006", strings.HasPrefix(pe.Code, "40"), pe.Code == "25P02": // connection, resources, operator, system, read-only, rollback
			return fmt.Errorf("%w: %w", audit.ErrUnavailable, err)
		}
		return err
	case errors.As(err, &ce), errors.Is(err, sql.ErrConnDone), pgconn.Timeout(err), connectionLost(err):
		return fmt.Errorf("%w: %w", audit.ErrUnavailable, err)
	}
	return nil
}

// connectionLost tells whether a PostgreSQL connection ended under a statement.
func connectionLost(err error) bool {
	var pe *pgconn.PgError
	var ne *net.OpError
	switch {
	case err == nil:
		return false
	case errors.As(err, &pe):
		return strings.HasPrefix(pe.Code, "57P") || strings.HasPrefix(pe.Code, "08") // admin_shutdown, crash_shutdown, …
	}
	return errors.Is(err, driver.ErrBadConn) || pgconn.SafeToRetry(err) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &ne) ||
		strings.Contains(err.Error(), "conn closed") // pgx has no sentinel for it
}

// storeLeaves adds the leaves of a transaction, and the open intents and openings among
// them, in a statement each.
func (t *tx) storeLeaves() error {
	if len(t.leaves) == 0 {
		return nil
	}
	var index, openIndex []int64
	var kind []int16
	var closes []*int64
	var leaf [][]byte
	var openNode []string
	for _, l := range t.leaves {
		index, kind, leaf = append(index, int64(l.Index)), append(kind, int16(l.Kind)), append(leaf, l.Bytes)
		var c *int64
		if l.Closes != audit.NoIndex {
			v := int64(l.Closes)
			c = &v
		}
		closes = append(closes, c)
		if l.Kind == audit.KindIntent {
			openIndex, openNode = append(openIndex, int64(l.Index)), append(openNode, l.Node)
		}
	}
	t.leaves = nil
	if _, err := t.exec("INSERT INTO ledger_leaf (idx, kind, closes, leaf) SELECT * FROM unnest(?::bigint[], ?::smallint[], ?::bigint[], ?::bytea[])", index, kind, closes, leaf); err != nil {
		if errors.Is(err, audit.ErrExists) {
			return fmt.Errorf("%w: a leaf from %d on is there already", audit.ErrTampered, index[0])
		}
		return err
	}
	if len(openIndex) > 0 {
		if _, err := t.exec("INSERT INTO ledger_open (idx, node) SELECT * FROM unnest(?::bigint[], ?::text[])", openIndex, openNode); err != nil {
			return err
		}
	}
	return t.storeOpenings()
}
