package test

import (
	"database/sql"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	_ "github.com/mattn/go-sqlite3"

	"chancery/audit"
)

// TestApprove has two officers decide about a new key from the command line: it is
// born when both have signed, never before, and everything is on the ledger.
func TestApprove(t *testing.T) {
	s := newSite(t)
	s.start()
	at := []string{"--dir", s.dir}
	cli := func(want int, args ...string) string {
		t.Helper()
		out, code := run(t, nil, chancery, append(args, at...)...)
		if code != want {
			t.Fatalf("chancery %s: exit code %d, want %d\n%s", strings.Join(args, " "), code, want, out)
		}
		return out
	}
	key := func(officer string) []string {
		return []string{"--officer", officer, "--key", filepath.Join(s.dir, "officers", officer+".pem")}
	}
	usable := func(name string) bool {
		keys, err := s.database().Keys(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range keys {
			if k.Name == name {
				return len(k.Members) == 2
			}
		}
		return false
	}
	propose := func(name string) (id string) {
		t.Helper()
		out, _, _ := strings.Cut(cli(5, "key", "generate", name, "--purpose", "document", "--algorithm", "P-256"), " ")
		return out
	}

	id := propose("contracts")
	if out := cli(0, "approve", "list"); !strings.Contains(out, id) || !strings.Contains(out, "generate-key contracts document P-256") || !strings.Contains(out, "0 of 2") {
		t.Errorf("list:\n%s", out)
	}
	if out := cli(0, "approve", "show", id); !strings.Contains(out, "would      generate-key contracts document P-256") || !strings.Contains(out, "asked by   admin-token") {
		t.Errorf("show:\n%s", out)
	}
	cli(0, append([]string{"approve", "sign", id}, key("officer-1")...)...)
	cli(4, append([]string{"approve", "sign", id}, key("officer-1")...)...) // the same person
	second := filepath.Join(s.dir, "officers", "officer-1.pem")
	cli(4, "approve", "sign", id, "--officer", "officer-2", "--key", second) // under a second name
	if usable("contracts") {
		t.Fatal("one officer sufficed")
	}
	cli(0, append([]string{"approve", "sign", id}, key("officer-2")...)...)
	var shown struct {
		State, Reason string
		Result        struct{ Key string }
	}
	c, token := s.client(), s.token()
	eventually(t, func() bool {
		if _, err := s.api(c, token, "GET", "/api/v1/approvals/"+id, nil, &shown); err != nil {
			t.Fatal(err)
		}
		return shown.State == "done" || shown.State == "failed"
	})
	if shown.State != "done" || shown.Result.Key != "contracts" || !usable("contracts") {
		t.Fatalf("%+v", shown)
	}
	// The new key signs.
	doc := filepath.Join(t.TempDir(), "contract.txt")
	if err := os.WriteFile(doc, []byte("a contract"), 0o600); err != nil {
		t.Fatal(err)
	}
	cli(0, "sign", doc, "--key", "contracts")

	// What was spent cannot be used again; the name is taken; a rejection by one of two ends it.
	cli(1, append([]string{"approve", "sign", id}, key("officer-2")...)...)
	cli(1, "key", "generate", "contracts")
	other := propose("other")
	cli(0, append([]string{"approve", "reject", other}, key("officer-2")...)...)
	if out := cli(0, "approve", "show", other); !strings.Contains(out, ", rejected") {
		t.Errorf("after a rejection:\n%s", out)
	}
	third := propose("third")
	cli(0, "approve", "cancel", third)
	cli(1, append([]string{"approve", "sign", third}, key("officer-1")...)...)
	// An officer who asks cannot approve, and without that vote two are not possible here.
	if out := cli(4, append([]string{"key", "generate", "own"}, key("officer-1")...)...); !strings.Contains(out, "not possible") {
		t.Errorf("an officer asks:\n%s", out)
	}
	cli(2, "key", "generate", "x", "--purpose", "issuer")
	cli(2, "approve", "sign", third)
	cli(1, "approve", "show", "0000000000000000")

	// The next start knows it all, and nothing is made twice.
	waits := propose("later")
	cli(0, append([]string{"approve", "sign", waits}, key("officer-1")...)...)
	s.kill()
	s.start()
	cli(0, append([]string{"approve", "sign", waits}, key("officer-2")...)...)
	eventually(t, func() bool { return usable("later") })
	list := struct{ Approvals []struct{ State string } }{}
	if err := json.Unmarshal([]byte(cli(0, "approve", "list", "--state", "all", "--json")), &list); err != nil || len(list.Approvals) != 4 {
		t.Errorf("list: %+v %v", list, err)
	}
	s.auditVerify()
	grants := 0
	db := s.database()
	head, err := db.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = db.Leaves(t.Context(), 0, head.Size, func(_ uint64, b []byte) error {
		l, err := audit.DecodeLeaf(b)
		if err == nil && l.Op == audit.OpGrant {
			grants++
		}
		return err
	})
	if err != nil || grants != 2 {
		t.Errorf("%d grants on the ledger: %v", grants, err)
	}

	// A command that waits learns what became of its request.
	waiting := make(chan string)
	go func() {
		out, _ := exec.Command(chancery, append([]string{"key", "generate", "awaited", "--wait"}, at...)...).Output()
		waiting <- string(out)
	}()
	var awaited string
	eventually(t, func() bool {
		var list struct{ Approvals []struct{ ID string } }
		if err := json.Unmarshal([]byte(cli(0, "approve", "list", "--json")), &list); err != nil {
			t.Fatal(err)
		}
		if len(list.Approvals) == 1 {
			awaited = list.Approvals[0].ID
		}
		return awaited != ""
	})
	cli(0, append([]string{"approve", "sign", awaited}, key("officer-2")...)...)
	cli(0, append([]string{"approve", "sign", awaited}, key("officer-1")...)...)
	if out := <-waiting; !strings.Contains(out, awaited+": done") {
		t.Errorf("--wait printed %q", out)
	}

	// A quorum that one person lowered in the database ends the next start.
	s.stop()
	lowerQuorum(t, filepath.Join(s.dir, "chancery.db"))
	out, code := run(t, nil, chancery, append([]string{"dev", "--dir", s.dir}, s.args...)...)
	if code != 7 || !strings.Contains(out, "leaf 0") {
		t.Errorf("start with a lowered quorum: exit code %d\n%s", code, out)
	}
}

// eventually waits for what the server does after its answer.
func eventually(t testing.TB, what func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !what(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it did not happen within 30 s")
		}
	}
}

// lowerQuorum writes past a stopped server into its database.
func lowerQuorum(t *testing.T, file string) {
	t.Helper()
	db, err := sql.Open("sqlite3", file)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec("UPDATE roster SET quorum = 1"); err != nil {
		t.Fatal(err)
	}
}
