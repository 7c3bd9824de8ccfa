package hsmstore_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"chancery/admin"
	"chancery/audit"
	"chancery/ca"
	"chancery/dbstore"
	"chancery/hsmstore"
)

// TestOnDatabase takes the journey of a first start on the real database: genesis,
// a use of a key, a crash that leaves an intent open, and the start after it.
func TestOnDatabase(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	m, err := hsmstore.WriteSoftHSMConf(dir, "m1")
	must(err)
	must(hsmstore.InitToken(ctx, m, m.TokenLabel))
	file := "sqlite:" + filepath.Join(dir, "chancery.db")

	start := func() (*dbstore.Store, *audit.Ledger, *hsmstore.Store, func()) {
		t.Helper()
		db, err := dbstore.Open(ctx, file)
		must(err)
		ledger, err := audit.Open(ctx, db, audit.Options{Node: "n1", Build: "test"})
		must(err)
		run, cancel := context.WithCancel(context.Background())
		ended := make(chan struct{})
		go func() { defer close(ended); ledger.Run(run) }()
		keys, err := db.Keys(ctx)
		must(err)
		s, err := hsmstore.Open(ctx, hsmstore.Config{Members: []hsmstore.MemberConfig{m}, Ledger: ledger, Keys: keys})
		must(err)
		return db, ledger, s, func() { s.Close(); cancel(); <-ended; db.Close() }
	}

	_, ledger, s, stop := start()
	specs := []hsmstore.KeySpec{issuerSpec}
	acts := s.GenesisActs(specs...)
	grant, err := admin.Genesis(ledger.Head(), acts)
	must(err)
	if err := s.Genesis(ctx, grant, audit.Genesis{Random: [32]byte{2}, Dev: true, Domain: "ca.example", Acts: acts}, specs...); err != nil {
		t.Fatal(err)
	}
	k, err := s.Key("issuing")
	must(err)
	if err := once(ctx, k, issue(t, k)); err != nil {
		t.Fatal(err)
	}
	// The process dies between intent and signature.
	req := issue(t, k)
	req.Projections = []audit.Projection{ca.ReserveSerial{Issuer: k.SPKIHash(), Serial: req.Serial, NotAfter: time.Unix(2e9, 0)}}
	if _, err := k.Begin(ctx, req); err != nil {
		t.Fatal(err)
	}
	stop()

	db, ledger, s, stop := start()
	defer stop()
	if n, err := s.Reconcile(ctx); n != 1 || err != nil {
		t.Errorf("reconciled %d: %v", n, err)
	}
	if _, revoked, err := db.Revocations(ctx, k.SPKIHash(), time.Now()); err != nil || len(revoked) != 1 || string(revoked[0].Serial) != string(req.Serial) {
		t.Errorf("revoked: %v %v", revoked, err)
	}
	if open, err := ledger.OpenIntents(ctx); len(open) != 0 || err != nil {
		t.Errorf("open intents: %v %v", open, err)
	}
	if k, err = s.Key("issuing"); err != nil {
		t.Fatal(err)
	}
	if err := once(ctx, k, issue(t, k)); err != nil {
		t.Error(err)
	}
	if members, err := db.Members(ctx); err != nil || len(members) != 1 || members[0].Serial != s.Members()[0].Serial {
		t.Errorf("members %v: %v", members, err)
	}
	if _, err := os.Stat(m.JournalPath); err != nil {
		t.Error(err)
	}
}
