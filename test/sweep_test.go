package test

import (
	"database/sql"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	_ "github.com/mattn/go-sqlite3"

	"chancery/test/pgcluster"
)

// get is the status and the text of a page.
func (s *site) get(c *http.Client, path string) (int, string) {
	s.t.Helper()
	resp, err := c.Get(s.url(path))
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// Somebody with all rights on the database changes it under the running server: the
// server finds it, says so in log, metrics and /readyz, and signs nothing any more.
func TestSweeperFindsTampering(t *testing.T) {
	const keepNot = "DROP TRIGGER ledger_leaf_keep_u; DROP TRIGGER ledger_leaf_keep_d; "
	for _, c := range []struct{ name, sqlite, postgres, says, promise string }{
		{"an old entry changed", keepNot + "UPDATE ledger_leaf SET leaf = substr(leaf, 1, 60) || x'0102' || substr(leaf, 63) WHERE idx = 7",
			"ALTER TABLE ledger_leaf DISABLE TRIGGER ALL; UPDATE ledger_leaf SET leaf = overlay(leaf placing '\\x0102' from 61) WHERE idx = 7", "entry ", "P9"},
		{"an old entry removed", keepNot + "DELETE FROM ledger_leaf WHERE idx = 9",
			"ALTER TABLE ledger_leaf DISABLE TRIGGER ALL; DELETE FROM ledger_leaf WHERE idx = 9", "entry 9: it is missing", "P9"},
		{"a certificate removed", "DELETE FROM certificate WHERE done = (SELECT max(done) FROM certificate)",
			"DELETE FROM certificate WHERE done = (SELECT max(done) FROM certificate)", "records a certificate that is not stored", "P3"},
		{"a reserved serial removed", "DELETE FROM serial WHERE intent = (SELECT max(intent) FROM certificate)",
			"DELETE FROM serial WHERE intent = (SELECT max(intent) FROM certificate)", "could be given again", "P4"},
		{"a revocation added", "INSERT INTO revocation SELECT issuer, serial, 3, 1, 1, not_after FROM certificate LIMIT 1",
			"INSERT INTO revocation SELECT issuer, serial, 3, 1, 1, not_after FROM certificate LIMIT 1", "which no entry does", "P4"},
	} {
		for _, kind := range []string{"sqlite", "postgres"} {
			t.Run(c.name+"/"+kind, func(t *testing.T) {
				t.Parallel()
				s := newSite(t)
				tamper := func() {
					db, err := sql.Open("sqlite3", strings.TrimPrefix(s.dbURL, "sqlite:")+"?_busy_timeout=10000")
					if err != nil {
						t.Fatal(err)
					}
					defer db.Close()
					if _, err := db.Exec(c.sqlite); err != nil {
						t.Fatal(err)
					}
				}
				if kind == "postgres" {
					cluster := pgcluster.New(t)
					s = newSiteOn(t, cluster.Database())
					tamper = func() {
						name, _, _ := strings.Cut(strings.TrimPrefix(s.dbURL, "postgres://"), "@")
						cluster.SQL(name, c.postgres)
					}
				}
				monitor := freeAddr(t)
				s.overlay("database: " + s.dbURL + "\nledger:\n  sweep: 200ms\nlisten:\n  metrics: " + monitor + "\n")
				s.alarms = true
				s.start()
				client, token := s.client(), s.token()
				for i := range 3 {
					if _, err := s.issue(client, token, fmt.Sprintf("n%d.example.org", i)); err != nil {
						t.Fatal(err)
					}
				}
				// Everything is in order, and has been read twice.
				s.await(20*time.Second, func() bool {
					m := scrape(t, monitor)
					return m.total("chancery_ledger_reread_age_seconds", "", "") >= 0
				})
				if status, text := s.get(client, "/readyz"); status != 200 || text != "ready\n" {
					t.Fatalf("readyz before: %d %s", status, text)
				}
				tamper()
				s.await(20*time.Second, func() bool { status, _ := s.get(client, "/readyz"); return status == 503 })
				if _, text := s.get(client, "/readyz"); !strings.Contains(text, c.says) || !strings.Contains(text, c.promise) {
					t.Errorf("readyz: %s", text)
				}
				if !strings.Contains(s.log.String(), `msg="ALARM: `+c.promise) {
					t.Error("the log has no alarm")
				}
				m := scrape(t, monitor)
				if m.total("chancery_ledger_violations", "promise", c.promise) < 1 || m.total("chancery_ledger_closed", "", "") != 1 {
					t.Error("the metrics do not show it")
				}
				if _, err := s.issue(client, token, "after.example.org"); err == nil || !strings.Contains(err.Error(), "503") {
					t.Errorf("issuing: %v, want 503", err)
				}
			})
		}
	}
}

// An old CRL is put back, on which a revoked certificate is missing: an alarm, and a new
// CRL without anybody's help. Others than the issuer's certificates can still be signed.
func TestSweeperMendsCRL(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.overlay("ledger:\n  sweep: 100ms\n")
	s.alarms = true
	s.start()
	client, token := s.client(), s.token()
	crt, err := s.issue(client, token, "www.example.org")
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite3", strings.TrimPrefix(s.dbURL, "sqlite:")+"?_busy_timeout=10000&_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for name, broken := range map[string][]byte{"old": nil, "garbage": []byte("garbage")} {
		if name == "old" {
			if err := db.QueryRow("SELECT crl FROM issuer WHERE name = 'issuing'").Scan(&broken); err != nil {
				t.Fatal(err)
			}
			if _, err := s.api(client, token, "POST", "/api/v1/certificates/"+crt.Serial+"/revoke", map[string]string{"reason": "keyCompromise"}, nil); err != nil {
				t.Fatal(err)
			}
			s.awaitRevoked(crt.Serial)
		}
		before := strings.Count(s.log.String(), "ALARM: P4")
		if _, err := db.Exec("UPDATE issuer SET crl = ? WHERE name = 'issuing'", broken); err != nil {
			t.Fatal(err)
		}
		s.await(10*time.Second, func() bool { return strings.Count(s.log.String(), "ALARM: P4") > before })
		s.await(10*time.Second, func() bool {
			var now []byte
			return db.QueryRow("SELECT crl FROM issuer WHERE name = 'issuing'").Scan(&now) == nil && string(now) != string(broken)
		})
		s.await(10*time.Second, func() bool { _, text := s.get(client, "/readyz"); return text == "ready\n" })
	}
	s.awaitRevoked(crt.Serial)
	if _, err := s.issue(client, token, "after.example.org"); err != nil {
		t.Error(err)
	}
	s.auditVerify()
}
