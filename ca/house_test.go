package ca_test

import (
	"context"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chancery/admin"
	"chancery/audit"
	"chancery/ca"
	"chancery/dbstore"
	"chancery/hsmstore"
)

func TestMain(m *testing.M) {
	hsmstore.RunIfWorker()
	code := m.Run()
	if built.Load() {
		if h, err := theHouse(); err == nil {
			h.close()
		}
	}
	os.Exit(code)
}

// house is a CA on real parts: two SoftHSM members, SQLite, ledger and journal.
// All tests share one, as its genesis costs seconds; so no test may count on what
// another one left there.
type house struct {
	dir       string
	db        *faulty
	ledger    *audit.Ledger
	hsm       *hsmstore.Store
	members   []hsmstore.MemberConfig
	grant     *admin.Grant
	authority *ca.Authority
	offset    atomic.Int64 // the house's clock is that much ahead; it only goes forward
	close     func()

	oddOnce sync.Once
	oddErr  error
}

// oddName is a subject that would break out of any text template (CA-27).
const oddName = "{{.Evil}} \"}],\"sans\":[\"evil.example\"] \\u0000 ${X} <b>"

var (
	rootSubject    = pkix.Name{Organization: []string{"Test"}, CommonName: "Test Root CA"}
	issuingSubject = pkix.Name{Organization: []string{"Test"}, CommonName: "Test Issuing CA"}
	oddSubject     = pkix.Name{Organization: []string{"Test"}, CommonName: oddName}
	spareSubject   = pkix.Name{Organization: []string{"Test"}, CommonName: "Spare"}

	rootSpec    = ca.IssuerSpec{Name: "root", Profile: "root", KeyName: "root", Parent: "root", Subject: rootSubject}
	issuingSpec = ca.IssuerSpec{Name: "issuing", Profile: "issuing", KeyName: "issuing", Parent: "root", Subject: issuingSubject}
	oddSpec     = ca.IssuerSpec{Name: "odd", Profile: "issuing", KeyName: "odd", Parent: "root", Subject: oddSubject}
	spareSpec   = ca.IssuerSpec{Name: "spare", Profile: "issuing", KeyName: "spare", Parent: "root", Subject: spareSubject}
)

var built atomic.Bool

var theHouse = sync.OnceValues(func() (*house, error) {
	built.Store(true)
	return build(context.Background())
})

func home(t testing.TB) *house {
	t.Helper()
	h, err := theHouse()
	if err != nil {
		t.Fatalf("building the house (is SoftHSM installed?): %v", err)
	}
	return h
}

func key(name, alg string, subject pkix.Name) hsmstore.KeySpec {
	der, err := asn1.Marshal(subject.ToRDNSequence())
	if err != nil {
		panic(err)
	}
	return hsmstore.KeySpec{Name: name, Purpose: audit.PurposeIssuer, Algorithm: alg, Subject: der}
}

func build(ctx context.Context) (h *house, err error) {
	h = &house{}
	var undo []func()
	h.close = func() {
		for i := len(undo) - 1; i >= 0; i-- {
			undo[i]()
		}
	}
	defer func() {
		if err != nil {
			h.close()
		}
	}()
	if h.dir, err = os.MkdirTemp("", "chancery-ca-test-"); err != nil {
		return nil, err
	}
	undo = append(undo, func() { os.RemoveAll(h.dir) })
	log := slog.New(slog.DiscardHandler)
	for _, name := range []string{"m1", "m2"} {
		m, err := hsmstore.WriteSoftHSMConf(h.dir, name)
		if err != nil {
			return nil, err
		}
		if err := hsmstore.InitToken(ctx, m, m.TokenLabel); err != nil {
			return nil, err
		}
		h.members = append(h.members, m)
	}
	db, err := dbstore.Open(ctx, "sqlite:"+filepath.Join(h.dir, "chancery.db"))
	if err != nil {
		return nil, err
	}
	undo = append(undo, func() { db.Close() })
	h.db = &faulty{Store: db}
	journal, err := audit.OpenJournal(h.journalPath())
	if err != nil {
		return nil, err
	}
	undo = append(undo, func() { journal.Close() })
	h.ledger, err = audit.Open(ctx, h.db, audit.Options{Node: "n1", Build: "test", Journal: journal, Log: log})
	if err != nil {
		return nil, err
	}
	undo = append(undo, background(h.ledger.Run))
	if h.hsm, err = hsmstore.Open(ctx, hsmstore.Config{Members: h.members, Ledger: h.ledger, Log: log}); err != nil {
		return nil, err
	}
	undo = append(undo, func() { h.hsm.Close() }, background(h.hsm.Run))
	return h, h.genesis(ctx)
}

func background(run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	return func() { cancel(); <-done }
}

func (h *house) genesis(ctx context.Context) (err error) {
	keys := []hsmstore.KeySpec{key("root", "P-384", rootSubject), key("issuing", "P-256", issuingSubject), key("odd", "P-256", oddSubject), key("spare", "P-256", spareSubject)}
	acts := append(h.hsm.GenesisActs(keys...), admin.SignRootAct("root"), admin.SignCAAct("root", "issuing"), admin.SignCAAct("root", "odd"))
	if h.grant, err = admin.Genesis(h.ledger.Head(), acts); err != nil {
		return err
	}
	if err := h.hsm.Genesis(ctx, h.grant, audit.Genesis{Random: [32]byte{1}, Dev: true, Domain: "ca.example", Acts: acts}, keys...); err != nil {
		return err
	}
	if h.authority, err = h.newAuthority(ctx, "issuing", h.now, h.db); err != nil {
		return err
	}
	return errors.Join(h.makeIssuer(ctx, rootSpec), h.makeIssuer(ctx, issuingSpec))
}

// newAuthority is another node, or the same one after a restart.
func (h *house) newAuthority(ctx context.Context, issuer string, now func() time.Time, st ca.Storage) (*ca.Authority, error) {
	return ca.New(ctx, ca.Config{Keys: h.hsm, Ledger: h.ledger, Storage: st, URL: "http://ca.example:8080/", API: "https://ca.example", Issuer: issuer,
		Log: slog.New(slog.DiscardHandler), Now: now})
}

func (h *house) another(t testing.TB, issuer string, now func() time.Time, st ca.Storage) *ca.Authority {
	t.Helper()
	a, err := h.newAuthority(t.Context(), issuer, now, st)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (h *house) makeIssuer(ctx context.Context, spec ca.IssuerSpec) error {
	p, err := h.authority.PrepareIssuer(ctx, h.grant, spec)
	if err != nil {
		return fmt.Errorf("issuer %s: %w", spec.Name, err)
	}
	_, err = h.authority.Issue(ctx, p, ca.Projections{})
	return err
}

// odd makes the issuer with the odd name, once.
func (h *house) odd(t testing.TB) *ca.Authority {
	t.Helper()
	h.oddOnce.Do(func() { h.oddErr = h.makeIssuer(context.Background(), oddSpec) })
	if h.oddErr != nil {
		t.Fatal(h.oddErr)
	}
	return h.another(t, "odd", h.now, h.db)
}

func (h *house) journalPath() string { return filepath.Join(h.dir, "ledger.journal") }

func (h *house) now() time.Time { return time.Now().Add(time.Duration(h.offset.Load())) }

// pass lets time pass.
func (h *house) pass(d time.Duration) { h.offset.Add(int64(d)) }

// signatures counts by the workers' own journals how often keys were used, probes
// and checkpoints aside.
func (h *house) signatures(t testing.TB) (n int) {
	t.Helper()
	for _, m := range h.members {
		recs, err := hsmstore.ReadJournal(m.JournalPath)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range recs {
			if r.Kind == hsmstore.JournalIntent {
				n++
			}
		}
	}
	return n
}

// untouched runs f, which must leave the ledger and the HSMs alone.
func (h *house) untouched(t testing.TB, f func()) {
	t.Helper()
	size, signed := h.ledger.Head().Size, h.signatures(t)
	f()
	if now := h.ledger.Head().Size; now != size {
		t.Errorf("%d leaves were written", now-size)
	}
	if now := h.signatures(t); now != signed {
		t.Errorf("%d signatures were made", now-signed)
	}
}

// refuses runs f, which must be refused with one of the codes, and nothing signed.
func (h *house) refuses(t testing.TB, what string, f func() error, codes ...ca.Code) (r *ca.Refusal) {
	t.Helper()
	h.untouched(t, func() {
		err := f()
		if !errors.As(err, &r) {
			t.Errorf("%s: not refused: %v", what, err)
			return
		}
		for _, c := range codes {
			if r.Code == c {
				if r.Field == "" || len(r.Detail) < 10 || len(r.Detail) > 600 {
					t.Errorf("%s: poor answer: %v", what, r)
				}
				return
			}
		}
		t.Errorf("%s: refused with %v, want code %v", what, r, codes)
	})
	if r == nil {
		r = &ca.Refusal{}
	}
	return r
}

func (h *house) prepare(csr []byte) error {
	_, err := h.authority.Prepare(context.Background(), ca.Request{Profile: "tls-server", CSR: csr, Requester: "test"})
	return err
}

// issue takes a request the whole way.
func (h *house) issue(t testing.TB, a *ca.Authority, csr []byte) *ca.Certificate {
	t.Helper()
	p, err := a.Prepare(t.Context(), ca.Request{Profile: "tls-server", CSR: csr, Requester: "test"})
	if err != nil {
		t.Fatal(err)
	}
	c, err := a.Issue(t.Context(), p, ca.Projections{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (h *house) revoke(t testing.TB, serial string, reason ca.Reason) {
	t.Helper()
	if err := h.authority.Revoke(t.Context(), ca.RevokeRequest{Serial: serial, Reason: reason, Requester: "test"}); err != nil {
		t.Fatal(err)
	}
}

// verify runs the auditor's check over the whole ledger.
func (h *house) verify(t testing.TB) audit.Report {
	t.Helper()
	j, err := os.Open(h.journalPath())
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	r, err := audit.Verify(t.Context(), h.db, j)
	if err != nil {
		t.Fatalf("the ledger does not verify: %v", err)
	}
	return r
}

// leaves counts leaves from index on by kind and operation.
func (h *house) leaves(t testing.TB, from uint64) map[string]int {
	t.Helper()
	out := map[string]int{}
	err := h.db.Leaves(t.Context(), from, h.ledger.Head().Size, func(_ uint64, b []byte) error {
		l, err := audit.DecodeLeaf(b)
		out[l.Op.String()+" "+l.Kind.String()]++
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// faulty is the database with a fault: what fail returns for a projection happens
// instead of it.
type faulty struct {
	*dbstore.Store
	fail atomic.Pointer[func(audit.Projection) error]
}

func (f *faulty) Update(ctx context.Context, fn func(audit.Tx) error) error {
	return f.Store.Update(ctx, func(tx audit.Tx) error { return fn(faultyTx{tx, f}) })
}

type faultyTx struct {
	audit.Tx
	f *faulty
}

func (t faultyTx) Apply(p audit.Projection, at *audit.StoredLeaf) error {
	if fail := t.f.fail.Load(); fail != nil {
		if err := (*fail)(p); err != nil {
			return err
		}
	}
	return t.Tx.Apply(p, at)
}

// breakOn makes projections of one kind fail with err until the test ends or mend is called.
func breakOn[P audit.Projection](t testing.TB, h *house, err error) (mend func()) {
	fail := func(p audit.Projection) error {
		if _, ok := p.(P); ok {
			return err
		}
		return nil
	}
	h.db.fail.Store(&fail)
	mend = func() { h.db.fail.Store(nil) }
	t.Cleanup(mend)
	return mend
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
