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

	"github.com/mattn/go-sqlite3"
	"github.com/pressly/goose/v3"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"

	"chancery/audit"
	"chancery/migrations"
)

func sqliteDialect() dialect {
	return dialect{name: "sqlite", begin: "BEGIN IMMEDIATE", head: "SELECT size, nodes FROM ledger_head WHERE id = 1", rebind: func(q string) string { return q }}
}

// openSQLite opens or makes a database file. The folder must exist.
func openSQLite(ctx context.Context, path string) (*Store, error) {
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
	// secure_delete(FAST): what is deleted inside a page that is written anyway is overwritten.
	const common = "_journal_mode=WAL&_synchronous=FULL&_busy_timeout=10000&_foreign_keys=on&_secure_delete=fast"
	rwdb, err := sql.Open("sqlite3", sqliteFile(path)+"?"+common+"&_txlock=immediate")
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	rwdb.SetMaxOpenConns(1)
	s := &Store{dialect: sqliteDialect(), rwdb: rwdb, stmts: map[string]*sql.Stmt{}}
	files, err := fs.Sub(migrations.SQLite, "sqlite")
	if err == nil {
		err = migrate(ctx, rwdb, goose.DialectSQLite3, files)
	}
	if err == nil {
		s.conn, err = rwdb.Conn(ctx)
	}
	if err == nil {
		err = s.readSQLite(sqliteFile(path) + "?" + common + "&_query_only=on")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("database %s: %w", path, err), s.Close())
	}
	return s, nil
}

func sqliteFile(path string) string {
	return (&url.URL{Scheme: "file", Opaque: filepath.Clean(path)}).String()
}

func snapshotSQLite(ctx context.Context, path string) (*Store, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	s := &Store{dialect: sqliteDialect()}
	if err := s.readSQLite(sqliteFile(path) + "?mode=ro&_busy_timeout=10000&_query_only=on"); err != nil {
		return nil, err
	}
	s.rodb.db.SetMaxOpenConns(1) // the one connection stays in its read transaction
	if _, err := s.rodb.db.ExecContext(ctx, "BEGIN"); err != nil {
		return nil, errors.Join(mapError(err), s.Close())
	}
	return s, nil
}

func (s *Store) readSQLite(dsn string) error {
	db, err := sql.Open("sqlite3", dsn)
	if err != nil {
		return err
	}
	db.SetMaxOpenConns(poolSize())
	db.SetMaxIdleConns(poolSize())
	s.rodb = reads{ConnPool: db, db: db, rebind: s.rebind}
	s.ro, err = gorm.Open(sqlite.Dialector{Conn: db}, gormConfig(true))
	return err
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

func sqliteError(err error) error {
	var se sqlite3.Error
	switch {
	case !errors.As(err, &se):
		return nil
	case se.ExtendedCode == sqlite3.ErrConstraintUnique || se.ExtendedCode == sqlite3.ErrConstraintPrimaryKey:
		return audit.ErrExists
	case se.Code != sqlite3.ErrConstraint:
		return fmt.Errorf("%w: %w", audit.ErrUnavailable, err) // full disk, I/O error, lock: nobody's fault
	}
	return err
}

// commitErrorSQLite tells what a failed COMMIT means. A full disk or a lock undo the
// transaction. After a failed fsync the kernel may have dropped the pages while a
// second fsync would say "fine", so nothing is written any more (AUD-14). Of
// anything else SQLite does not say how much of it reached the disk.
func commitErrorSQLite(se sqlite3.Error) error {
	switch {
	case se.ExtendedCode == sqlite3.ErrIoErrFsync, se.ExtendedCode == sqlite3.ErrIoErrDirFsync:
		return audit.ErrDisk
	case se.Code == sqlite3.ErrFull, se.Code == sqlite3.ErrBusy, se.Code == sqlite3.ErrLocked, se.Code == sqlite3.ErrConstraint, se.Code == sqlite3.ErrNomem:
		return audit.ErrUnavailable
	}
	return audit.ErrUncertain
}
