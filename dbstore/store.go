// Package dbstore keeps everything that survives a restart: the ledger, and the
// rows that its projections write. It alone imports gorm and database drivers and
// holds all SQL.
//
// Writes have one door: [Store.Update], which the ledger's sequencer calls from one
// goroutine. On SQLite it owns the only write connection; reads have a pool of
// their own and see what is committed. The statements of the hot path are plain
// SQL, prepared once on the writing connection; reads use gorm.
package dbstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"strings"
	"sync"

	"github.com/pressly/goose/v3"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"chancery/audit"
)

// Store is an open database.
type Store struct {
	dialect
	ro   *gorm.DB // reads, own pool
	rodb reads
	rwdb *sql.DB

	mu    sync.Mutex // one Update at a time
	conn  *sql.Conn  // the only connection that writes; nil while there is none
	stmts map[string]*sql.Stmt
}

// dialect is what differs between the databases.
type dialect struct {
	name  string
	begin string // begins the write transaction
	head  string // reads the head row, and locks it where others may write
	// rebind writes the placeholders of a statement, ?, as the database wants them.
	rebind func(string) string
	// node is whose advisory lock the writing connection holds (PostgreSQL).
	node string
}

// Open opens the database of a configuration value, "sqlite:PATH" or
// "postgres://…", and brings its schema up to date.
func Open(ctx context.Context, database string) (*Store, error) {
	kind, rest, _ := strings.Cut(database, ":")
	switch kind {
	case "sqlite":
		return openSQLite(ctx, rest)
	case "postgres", "postgresql":
		return openPostgres(ctx, database)
	}
	return nil, fmt.Errorf("database: kind %q is not known; allowed: sqlite:/path/to/file.db, postgres://user@host/database", kind) // never more: the rest may hold a password
}

// OpenSnapshot opens a database beside a running server: all that is read is of one
// moment. Nothing is migrated or written.
func OpenSnapshot(ctx context.Context, database string) (*Store, error) {
	if kind, path, _ := strings.Cut(database, ":"); kind == "sqlite" {
		return snapshotSQLite(ctx, path)
	}
	return snapshotPostgres(ctx, database)
}

// reads is where queries outside the write transaction go.
type reads struct {
	gorm.ConnPool // of the pool, or the one connection of a snapshot
	db            *sql.DB
	rebind        func(string) string
}

// QueryContext sends a query; on a connection that has ended while it lay in the pool
// (a restart of the database) it sends it again on another one.
func (r reads) QueryContext(ctx context.Context, query string, args ...any) (rows *sql.Rows, err error) {
	for range retries {
		if rows, err = r.ConnPool.QueryContext(ctx, r.rebind(query), args...); !connectionLost(err) || ctx.Err() != nil {
			break
		}
	}
	return rows, err
}

// QueryRowContext is QueryContext for one row.
func (r reads) QueryRowContext(ctx context.Context, query string, args ...any) (row *sql.Row) {
	for range retries {
		if row = r.ConnPool.QueryRowContext(ctx, r.rebind(query), args...); !connectionLost(row.Err()) || ctx.Err() != nil {
			break
		}
	}
	return row
}

// retries is one more than the connections that a pool may hold.
var retries = poolSize() + 1

// poolSize is the fixed number of connections for reading.
func poolSize() int { return 2 * runtime.GOMAXPROCS(0) }

// snapshot runs fn on one moment of the database.
func (r reads) snapshot(ctx context.Context, fn func(reads) error) error {
	tx, err := r.db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return mapError(err)
	}
	defer tx.Rollback()
	return fn(reads{ConnPool: tx, db: r.db, rebind: r.rebind})
}

// gormConfig is for reading: gorm neither logs, nor pings, nor wraps in transactions.
func gormConfig(prepare bool) *gorm.Config {
	return &gorm.Config{Logger: logger.Discard, SkipDefaultTransaction: true, PrepareStmt: prepare, DisableAutomaticPing: true}
}

// migrate brings the schema up to date with the numbered files of the dialect.
func migrate(ctx context.Context, db *sql.DB, d goose.Dialect, files fs.FS, opts ...goose.ProviderOption) error {
	// Numbers are given when work begins, and some comes to its end earlier than what has
	// a lower one: each file stands for itself.
	p, err := goose.NewProvider(d, db, files, append(opts, goose.WithAllowOutofOrder(true))...)
	if err != nil {
		return fmt.Errorf("reading migrations: %w", err)
	}
	have, err := p.GetDBVersion(ctx)
	if err != nil {
		return fmt.Errorf("reading the schema version: %w", err)
	}
	sources := p.ListSources()
	if newest := sources[len(sources)-1].Version; have > newest {
		return fmt.Errorf("the database has schema %d, this program knows %d at most: it is an older version; start the newer one", have, newest)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("bringing the schema up to date: %w", err)
	}
	return nil
}

// Close closes all connections.
func (s *Store) Close() error {
	var errs []error
	for _, st := range s.stmts {
		errs = append(errs, st.Close())
	}
	if s.conn != nil {
		errs = append(errs, s.conn.Close())
	}
	for _, db := range []*sql.DB{s.rwdb, s.rodb.db} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	return errors.Join(errs...)
}

// tx is one write transaction on the writing connection.
type tx struct {
	ctx context.Context
	s   *Store
	together
}

// stmt prepares a statement once for the life of the writing connection.
func (t *tx) stmt(query string) (*sql.Stmt, error) {
	if st, ok := t.s.stmts[query]; ok {
		return st, nil
	}
	st, err := t.s.conn.PrepareContext(t.ctx, t.s.rebind(query))
	if err != nil {
		return nil, fmt.Errorf("preparing %q: %w", query, mapError(err))
	}
	t.s.stmts[query] = st
	return st, nil
}

// exec runs a statement and returns the number of rows that it changed. A row that
// is there already is audit.ErrExists.
func (t *tx) exec(query string, args ...any) (int64, error) {
	st, err := t.stmt(query)
	if err != nil {
		return 0, err
	}
	res, err := st.ExecContext(t.ctx, args...)
	if err != nil {
		return 0, mapError(err)
	}
	return res.RowsAffected()
}

// row runs a query for one row; no row is audit.ErrNotFound.
func (t *tx) row(dest []any, query string, args ...any) error {
	st, err := t.stmt(query)
	if err != nil {
		return err
	}
	return mapError(st.QueryRowContext(t.ctx, args...).Scan(dest...))
}

// mapError translates what a driver says into the sentinels of package audit.
func mapError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, sql.ErrNoRows), errors.Is(err, gorm.ErrRecordNotFound):
		return audit.ErrNotFound
	}
	if mapped := sqliteError(err); mapped != nil {
		return mapped
	}
	if mapped := postgresError(err); mapped != nil {
		return mapped
	}
	return err
}
