// Package migrations holds the numbered SQL files of the database, one folder per
// dialect. They are run by goose through database/sql; a file once released never
// changes.
package migrations

import "embed"

// SQLite holds the files for SQLite.
//
//go:embed sqlite/*.sql
var SQLite embed.FS

// Postgres holds the files for PostgreSQL.
//
//go:embed postgres/*.sql
var Postgres embed.FS
