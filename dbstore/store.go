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
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/mattn/go-sqlite3"
	"github.com/pressly/goose/v3"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"chancery/audit"
	"chancery/migrations"
)

// Store is an open database.
type Store struct {
	ro   *gorm.DB // reads, own pool
	rodb *sql.DB
	rwdb *sql.DB

	mu    sync.Mutex // one Update at a time
	conn  *sql.Conn  // the only connection that writes
	stmts map[string]*sql.Stmt
}

// Open opens the database of a configuration value "sqlite:PATH" and brings its
// schema up to date. The folder must exist.
func Open(ctx context.Context, database string) (*Store, error) {
	path, ok := strings.CutPrefix(database, "sqlite:")
	if !ok {
		return nil, fmt.Errorf("database: %q is not known; allowed: sqlite:/path/to/file.db", scheme(database))
	}
	if err := writable(path); err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	// A new file is for our eyes only, and so are -wal and -shm, which SQLite makes like
	// it. An old one is not touched: closing it here would drop SQLite's locks on it.
	switch f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); {
	case err == nil:
		f.Close()
	case !errors.Is(err, fs.ErrExist):
		return nil, fmt.Errorf("database: %w", err)
	}
	// synchronous(FULL): a commit is on the disk when it returns, P1 rests on it.
	const common = "_journal_mode=WAL&_synchronous=FULL&_busy_timeout=10000&_foreign_keys=on"
	file := (&url.URL{Scheme: "file", Opaque: filepath.Clean(path)}).String()
	rwdb, err := sql.Open("sqlite3", file+"?"+common+"&_txlock=immediate")
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	rwdb.SetMaxOpenConns(1)
	s := &Store{rwdb: rwdb, stmts: map[string]*sql.Stmt{}}
	if err := s.open(ctx, file+"?"+common+"&_query_only=on"); err != nil {
		s.Close()
		return nil, fmt.Errorf("database %s: %w", path, err)
	}
	return s, nil
}

// OpenSnapshot opens a SQLite database beside a running server: all that is read
// is of one moment. Nothing is migrated or written.
func OpenSnapshot(ctx context.Context, database string) (*Store, error) {
	path := strings.TrimPrefix(database, "sqlite:")
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	file := (&url.URL{Scheme: "file", Opaque: filepath.Clean(path)}).String()
	s := &Store{}
	if err := s.openReads(file + "?mode=ro&_busy_timeout=10000&_query_only=on"); err != nil {
		return nil, err
	}
	s.rodb.SetMaxOpenConns(1) // the one connection stays in its read transaction
	s.rodb.SetConnMaxLifetime(0)
	if _, err := s.rodb.ExecContext(ctx, "BEGIN"); err != nil {
		return nil, errors.Join(mapError(err), s.Close())
	}
	return s, nil
}

func (s *Store) open(ctx context.Context, readDSN string) error {
	if err := s.migrate(ctx); err != nil {
		return err
	}
	var err error
	if s.conn, err = s.rwdb.Conn(ctx); err != nil {
		return err
	}
	return s.openReads(readDSN)
}

func (s *Store) openReads(dsn string) error {
	var err error
	if s.rodb, err = sql.Open("sqlite3", dsn); err != nil {
		return err
	}
	s.rodb.SetMaxOpenConns(2 * runtime.GOMAXPROCS(0))
	s.rodb.SetMaxIdleConns(2 * runtime.GOMAXPROCS(0))
	s.ro, err = gorm.Open(sqlite.Dialector{Conn: s.rodb}, &gorm.Config{
		Logger: logger.Discard, SkipDefaultTransaction: true, PrepareStmt: true, DisableAutomaticPing: true,
	})
	return err
}

func (s *Store) migrate(ctx context.Context) error {
	sub, err := fs.Sub(migrations.SQLite, "sqlite")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, s.rwdb, sub)
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

func scheme(database string) string {
	s, _, _ := strings.Cut(database, ":")
	return s + ":" // never more: the rest may hold a password
}

func writable(path string) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".writable-*")
	if err != nil {
		return fmt.Errorf("folder %s is not writable: %w; make it writable for this user or name another", dir, errors.Unwrap(err))
	}
	f.Close()
	return os.Remove(f.Name())
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
	for _, db := range []*sql.DB{s.rwdb, s.rodb} {
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
}

// stmt prepares a statement once for the life of the writing connection.
func (t *tx) stmt(query string) (*sql.Stmt, error) {
	if st, ok := t.s.stmts[query]; ok {
		return st, nil
	}
	st, err := t.s.conn.PrepareContext(t.ctx, query)
	if err != nil {
		return nil, fmt.Errorf("preparing %q: %w", query, err)
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

// query runs a query in the transaction. The caller closes the rows.
func (t *tx) query(query string, args ...any) (*sql.Rows, error) {
	st, err := t.stmt(query)
	if err != nil {
		return nil, err
	}
	rows, err := st.QueryContext(t.ctx, args...)
	return rows, mapError(err)
}

// row runs a query for one row; no row is audit.ErrNotFound.
func (t *tx) row(dest []any, query string, args ...any) error {
	st, err := t.stmt(query)
	if err != nil {
		return err
	}
	return mapError(st.QueryRowContext(t.ctx, args...).Scan(dest...))
}

func mapError(err error) error {
	var se sqlite3.Error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, sql.ErrNoRows), errors.Is(err, gorm.ErrRecordNotFound):
		return audit.ErrNotFound
	case errors.As(err, &se) && (se.ExtendedCode == sqlite3.ErrConstraintUnique || se.ExtendedCode == sqlite3.ErrConstraintPrimaryKey):
		return fmt.Errorf("%w", audit.ErrExists)
	case errors.As(err, &se) && se.Code != sqlite3.ErrConstraint:
		return fmt.Errorf("%w: %w", audit.ErrUnavailable, err) // full disk, I/O error, lock: nobody's fault
	}
	return err
}
