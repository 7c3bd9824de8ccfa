package dbstore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
	"golang.org/x/sys/unix"
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
	if s.rwdb, err = openPool(dsn, fmt.Sprintf("SET idle_in_transaction_session_timeout = %d", idleTime.Milliseconds())); err != nil {
		return err
	}
	s.rwdb.SetMaxOpenConns(4) // the writing connection, locks; migrations and their lock
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
	db, err := openPool(dsn)
	if err != nil {
		return err
	}
	db.SetMaxOpenConns(poolSize())
	db.SetMaxIdleConns(poolSize())
	s.rodb = reads{ConnPool: db, db: db, rebind: s.rebind}
	s.ro, err = gorm.Open(postgres.New(postgres.Config{Conn: s.rodb}), gormConfig(false)) // pgx keeps prepared statements itself
	return err
}

// How soon a PostgreSQL that is gone is given up: a host that does not answer when it is
// dialled, and one that stopped answering.
const (
	dialTime = 3 * time.Second
	deadTime = 8 * time.Second
)

// idleTime is how long a transaction that writes may wait for its node, which has the
// lock on the head row: a node that hangs or whose machine is gone must not stop the others.
const idleTime = 10 * time.Second

// serverSide has PostgreSQL notice as soon as we do that the other side is gone: its own
// settings wait two hours, and until then the node's locks are not free.
var serverSide = fmt.Sprintf("SET tcp_keepalives_idle = %d; SET tcp_keepalives_interval = %d; SET tcp_keepalives_count = 4; SET tcp_user_timeout = %d",
	int((deadTime / 2).Seconds()), int((deadTime / 8).Seconds()), deadTime.Milliseconds())

// openPool makes a pool for a URL, which may name several hosts: connections go to the
// one that takes writes, so that a promoted standby is found. Each begins with the
// statements of set.
func openPool(dsn string, set ...string) (*sql.DB, error) {
	c, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = dialTime
	}
	c.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	c.DialFunc = (&net.Dialer{Control: func(network, _ string, raw syscall.RawConn) (err error) {
		if !strings.HasPrefix(network, "tcp") {
			return nil
		}
		if cerr := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(deadTime.Milliseconds()))
		}); cerr != nil {
			return cerr
		}
		return err
	}, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: deadTime / 2, Interval: deadTime / 8, Count: 4}}).DialContext
	begin := strings.Join(append(set, serverSide), "; ")
	return stdlib.OpenDB(*c, stdlib.OptionAfterConnect(func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, begin, pgx.QueryExecModeSimpleProtocol)
		return err
	})), nil
}

// Risks are settings of the database that an operator should know of at start.
func (s *Store) Risks(ctx context.Context) (out []string, err error) {
	if s.name != "postgres" {
		return nil, nil
	}
	var names, commit string
	var standbys int
	err = s.rodb.QueryRowContext(ctx, "SELECT current_setting('synchronous_standby_names'), current_setting('synchronous_commit'), (SELECT count(*) FROM pg_stat_replication)").Scan(&names, &commit, &standbys)
	switch {
	case err != nil:
		return nil, mapError(err)
	case standbys > 0 && (names == "" || commit == "local"):
		out = append(out, fmt.Sprintf("PostgreSQL has standbys and does not wait for them (synchronous_standby_names=%q, synchronous_commit=%s): a failover would lose the newest entries, and the ledger would have to be recovered", names, commit))
	}
	return out, nil
}

func snapshotPostgres(ctx context.Context, dsn string) (*Store, error) {
	s := &Store{dialect: postgresDialect()}
	db, err := openPool(dsn)
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
func checkDurable(ctx context.Context, db interface {
	QueryRowContext(context.Context, string, ...any) *sql.Row
}) error {
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

func postgresError(err error) error {
	var pe *pgconn.PgError
	var ce *pgconn.ConnectError
	switch {
	case errors.As(err, &pe):
		switch {
		case pe.Code == "23505": // unique_violation
			return audit.ErrExists
		case strings.HasPrefix(pe.Code, "08"), strings.HasPrefix(pe.Code, "53"), strings.HasPrefix(pe.Code, "57"), strings.HasPrefix(pe.Code, "58"),
			pe.Code == "25006", strings.HasPrefix(pe.Code, "40"), pe.Code == "25P02", pe.Code == "25P03": // connection, resources, operator, system, read-only, rollback, idle
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
