package test

import (
	"context"
	"strings"
	"testing"

	"chancery/dbstore"
	"chancery/test/pgcluster"
)

// A PostgreSQL that may lose a commit, or a role that may change the ledger, ends the start.
func TestPostgresRefused(t *testing.T) {
	for setting, says := range map[string]string{"fsync=off": "fsync", "full_page_writes=off": "full_page_writes", "synchronous_commit=off": "synchronous_commit"} {
		t.Run(setting, func(t *testing.T) {
			s := newSiteOn(t, pgcluster.New(t, setting).Database())
			s.fail(1, says, "reload")
		})
	}
	c := pgcluster.New(t)
	t.Run("superuser", func(t *testing.T) {
		s, url := newSite(t), c.Database()
		_, rest, _ := strings.Cut(url, "@")
		s.overlay("database: postgres://postgres@" + rest + "\n")
		s.fail(1, "superuser", "CREATE ROLE")
	})
	t.Run("no server", func(t *testing.T) {
		s := newSite(t)
		s.overlay("database: postgres://nobody:s3cret@/chancery?host=/nonexistent\n")
		s.fail(1, "database", "connect")
		out, _ := run(t, nil, chancery, "dev", "--dir", s.dir, "--config", s.args[1])
		if strings.Contains(out, "s3cret") {
			t.Errorf("the error shows the password: %s", out)
		}
	})
	t.Run("the role can only add", func(t *testing.T) {
		url := c.Database()
		db, err := dbstore.Open(context.Background(), url)
		if err != nil {
			t.Fatal(err)
		}
		db.Close()
		name, _, _ := strings.Cut(strings.TrimPrefix(url, "postgres://"), "@")
		for _, table := range []string{"ledger_leaf", "ledger_tile"} {
			if got := c.SQL(name, "SELECT has_table_privilege('"+name+"', '"+table+"', 'INSERT'), has_table_privilege('"+name+"', '"+table+"', 'UPDATE'), has_table_privilege('"+name+"', '"+table+"', 'DELETE')"); strings.TrimSpace(got) != "t|f|f" {
				t.Errorf("rights on %s: %s, want INSERT alone", table, got)
			}
		}
		// Taken back by the owner, the next start refuses.
		c.SQL(name, "GRANT DELETE ON ledger_leaf TO "+name)
		if _, err := dbstore.Open(context.Background(), url); err == nil || !strings.Contains(err.Error(), "REVOKE") {
			t.Errorf("opening with the right to delete: %v", err)
		}
	})
}
