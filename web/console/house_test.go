package console_test

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/admin"
	"chancery/audit"
	"chancery/dbstore"
	"chancery/web/console"
)

// house is a console on a real ledger, database and board, served as http://localhost.
type house struct {
	*fixture
	t      *testing.T
	base   string
	file   string // of the database
	db     *dbstore.Store
	ledger *audit.Ledger
	board  *admin.Board
	links  *admin.Enrolments
	people map[string]*admin.OfficerKey // with CLI keys
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// newHouse begins as dev does: two officers with CLI keys, who decide 2 of 2.
func newHouse(t *testing.T) *house {
	t.Helper()
	h := &house{t: t, people: map[string]*admin.OfficerKey{}}
	roster := admin.Roster{Quorum: 2}
	for _, name := range []string{"officer-1", "officer-2"} {
		h.people[name] = must(admin.NewOfficerKey(name))
		roster.Officers = append(roster.Officers, must(h.people[name].Officer()))
	}
	ctx := t.Context()
	h.file = filepath.Join(t.TempDir(), "house.db")
	h.db = must(dbstore.Open(ctx, "sqlite:"+h.file))
	h.ledger = must(audit.Open(ctx, h.db, audit.Options{Node: "n", Build: "test", Log: slog.New(slog.DiscardHandler)}))
	run := func(loop func(context.Context) error) {
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { loop(ctx) })
		t.Cleanup(func() { cancel(); wg.Wait() })
	}
	t.Cleanup(func() { h.db.Close() })
	run(h.ledger.Run)
	if err := h.ledger.Genesis(ctx, audit.Genesis{Random: [32]byte{1}, Dev: true, Domain: "d.example", CheckpointKeys: [][]byte{{1}}, Roster: roster.Digest(), Acts: []string{"x"}}, admin.PutRoster{History: admin.History{Base: roster}}); err != nil {
		t.Fatal(err)
	}
	h.board = must(admin.NewBoard(admin.Config{Ledger: h.ledger, Storage: h.db, Rosters: admin.History{Base: roster}, Log: slog.New(slog.DiscardHandler), Actions: map[string]admin.Action{admin.GenerateKey: {Acts: keyActs, Execute: makeKey}}}))
	run(h.board.Run)
	srv := httptest.NewUnstartedServer(nil)
	h.base = "http://" + strings.Replace(srv.Listener.Addr().String(), "127.0.0.1", "localhost", 1)
	h.links = &admin.Enrolments{Ledger: h.ledger, Storage: h.db, Board: h.board, RPID: "localhost", Origins: []string{h.base}}
	secret := make([]byte, 32)
	rand.Read(secret)
	h.fixture = filled(t, func(f *fixture, c *console.Config) {
		f.now = time.Now().UTC()
		c.Now, c.Dev, c.Secret, c.PublicURL = time.Now, true, secret, h.base
		c.Board, c.Enrolments, c.Sessions = h.board, h.links, dbstore.Sessions{Store: h.db, Ledger: h.ledger}
		c.Machines = &admin.Machines{Ledger: h.ledger, Storage: h.db, Board: h.board}
		c.Session, c.Refused = h.ledger.Session, h.ledger.Refused
		c.Ledger.Head, c.Ledger.Entries = h.ledger.Head, h.db.Leaves
		c.Ledger.Checkpoint = func(context.Context) (string, error) { return "", audit.ErrNotFound }
	})
	srv.Config.Handler = h.withSessions(t)
	srv.Start()
	t.Cleanup(srv.Close)
	return h
}

func keyActs(parameters []byte) ([]string, error) {
	var p admin.KeyParameters
	if err := json.Unmarshal(parameters, &p); err != nil || p.Name == "" {
		return nil, errors.New("name is missing")
	}
	return []string{admin.GenerateKeyAct(p.Name, p.Purpose, p.Algorithm, nil)}, nil
}

func makeKey(_ context.Context, g *admin.Grant, parameters []byte) (any, error) {
	acts, err := keyActs(parameters)
	if err != nil {
		return nil, err
	}
	return map[string]string{"key": "made"}, g.Spend(acts[0])
}

// invite makes a link as the admin token does.
func (h *house) invite(name string, roles ...admin.Assignment) string {
	h.t.Helper()
	secret, _, err := h.links.Open(h.t.Context(), name, roles, admin.AdminToken, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	return h.base + "/console/enrol#" + secret
}

// approve has the CLI keys approve a proposal, and waits until it is carried out.
func (h *house) approve(id string) {
	h.t.Helper()
	a := must(h.board.Show(h.t.Context(), id))
	for name, k := range h.people {
		a = must(h.board.Vote(h.t.Context(), id, admin.Ballot{Officer: name, Decision: admin.Approve, Signature: must(k.SignVote(admin.Approve, a.Proposal))}))
	}
	h.settled(id, admin.Done)
}

// exec changes the database past the program.
func (h *house) exec(query string) {
	h.t.Helper()
	db := must(sql.Open("sqlite3", h.file))
	defer db.Close()
	if _, err := db.Exec(query); err != nil {
		h.t.Fatal(err)
	}
}

// settled waits until a proposal has a state.
func (h *house) settled(id string, want admin.State) *admin.Approval {
	h.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; {
		a := must(h.board.Show(h.t.Context(), id))
		if a.State == want {
			return a
		}
		if time.Now().After(end) {
			h.t.Fatalf("proposal %s is %s (%s), not %s", id, a.State, a.Reason, want)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
