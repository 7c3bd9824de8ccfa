package test

import (
	"database/sql"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	_ "github.com/mattn/go-sqlite3"
)

// newOfficer makes a CLI key beside those of the officers of dev.
func (s *site) newOfficer(name string) (public string) {
	s.t.Helper()
	file := filepath.Join(s.dir, "officers", name+".pem")
	if out, code := run(s.t, nil, chancery, "officer", "new", name, "--out", file); code != 0 {
		s.t.Fatalf("officer new: %d\n%s", code, out)
	}
	return file + ".pub"
}

// rosters are the lines "roster …" of the account of each HSM member.
func (s *site) rosters() (out []string) {
	s.t.Helper()
	files, err := filepath.Glob(filepath.Join(s.dir, "journal", "*.mandates"))
	if err != nil || len(files) == 0 {
		s.t.Fatalf("no accounts of ceremonies: %v", err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			s.t.Fatal(err)
		}
		known := ""
		for line := range strings.Lines(string(b)) {
			if r, ok := strings.CutPrefix(line, "roster "); ok {
				known += r
			}
		}
		out = append(out, known)
	}
	return out
}

// TestHSM11OfficersChange has an officer join and another leave. Every HSM member knows it
// at once, who left decides nothing any more, and no older database brings him back: neither
// one from which the change was taken, nor an old backup.
func TestHSM11OfficersChange(t *testing.T) {
	s := newSite(t)
	s.start()
	c := commandLine{t, s}
	ask := func(args ...string) (id string) {
		t.Helper()
		var asked struct{ ID string }
		if err := json.Unmarshal([]byte(lastObject(c.run(5, append(args, "--json")...))), &asked); err != nil || asked.ID == "" {
			t.Fatalf("%s: no proposal: %v", strings.Join(args, " "), err)
		}
		return asked.ID
	}
	sign := func(want int, id, officer string) string {
		t.Helper()
		return c.run(want, append([]string{"approve", "sign", id}, c.officer(officer)...)...)
	}
	becomes := func(id, want string) (reason string) {
		t.Helper()
		var shown struct{ State, Reason string }
		eventually(t, func() bool {
			if _, err := s.api(s.client(), s.token(), "GET", "/api/v1/approvals/"+id, nil, &shown); err != nil {
				t.Fatal(err)
			}
			return shown.State == want || shown.State == "failed"
		})
		if shown.State != want {
			t.Fatalf("%s: %s", shown.State, shown.Reason)
		}
		return shown.Reason
	}
	decided := func(id string, officers ...string) {
		t.Helper()
		for _, o := range officers {
			sign(0, id, o)
		}
		becomes(id, "done")
	}
	count := func(want int) {
		t.Helper()
		for _, known := range s.rosters() {
			if n := strings.Count(known, "\n"); n != want {
				t.Errorf("a member knows %d rosters, want %d", n, want)
			}
		}
	}
	count(1)
	decided(ask("officer", "add", "officer-3", "--public", s.newOfficer("officer-3"), "--role", "crypto-officer"), "officer-1", "officer-2")
	count(2)
	old := filepath.Join(t.TempDir(), "old.db")
	s.stop()
	copyFile(t, filepath.Join(s.dir, "chancery.db"), old)
	s.start()

	// officer-2 leaves; what he signed before is worth nothing after.
	waits := ask("key", "generate", "one", "--purpose", "document", "--algorithm", "P-256")
	sign(0, waits, "officer-2")
	decided(ask("officer", "remove", "officer-2"), "officer-1", "officer-3")
	count(3)
	becomes(waits, "cancelled")
	next := ask("key", "generate", "two", "--purpose", "document", "--algorithm", "P-256")
	if out, code := run(t, nil, chancery, append([]string{"approve", "sign", next, "--dir", s.dir}, c.officer("officer-2")...)...); code == 0 {
		t.Errorf("ATTACK WORKED: who left approves: %s", out)
	}
	decided(next, "officer-3", "officer-1")
	s.auditVerify()
	s.exportVerify()
	s.stop()
	s.auditVerify()

	// The newest change is taken from the database: the tokens know better.
	exec := func(statements ...string) {
		t.Helper()
		db, err := sql.Open("sqlite3", filepath.Join(s.dir, "chancery.db"))
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		db.SetMaxOpenConns(1)
		for _, q := range statements {
			if _, err := db.Exec(q); err != nil {
				t.Fatal(err)
			}
		}
	}
	exec("CREATE TABLE kept AS SELECT * FROM roster_change WHERE version = 2", "DELETE FROM roster_change WHERE version = 2")
	s.fail(7, "older than those that this token knows")
	c.run(7, "audit", "verify")
	exec("INSERT INTO roster_change SELECT * FROM kept", "DROP TABLE kept", "PRAGMA wal_checkpoint(TRUNCATE)")
	good := filepath.Join(t.TempDir(), "good.db")
	copyFile(t, filepath.Join(s.dir, "chancery.db"), good)

	// Nor do the officers of before let the ledger go on from a database without any change.
	copyFile(t, old, filepath.Join(s.dir, "chancery.db"))
	request := filepath.Join(t.TempDir(), "request.json")
	if out := c.run(7, "audit", "recover", "--request", request, "--reason", "an old backup"); !strings.Contains(out, "the officers changed among the entries that are lost") {
		t.Errorf("a recovery that loses a change of the officers does not say so:\n%s", out)
	}
	s.fail(7, "it was rolled back")

	// The whole database is put back.
	copyFile(t, good, filepath.Join(s.dir, "chancery.db"))
	s.start()
	decided(ask("key", "generate", "three", "--purpose", "document", "--algorithm", "P-256"), "officer-1", "officer-3")
	count(3)
	s.auditVerify()
}
