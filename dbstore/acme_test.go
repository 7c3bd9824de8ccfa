package dbstore_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	_ "github.com/mattn/go-sqlite3"

	"chancery/acme"
	"chancery/audit"
	"chancery/ca"
	"chancery/dbstore"
	"chancery/test/pgcluster"
)

// database is the setting "database" of a new database; the tests run with SQLite
// first, then with PostgreSQL.
var database func(testing.TB) string

func TestMain(m *testing.M) {
	os.Exit(pgcluster.RunTwice(m, func(db func(testing.TB) string) { database = db }))
}

// acmeRoom is an open database with a running sequencer and some accounts.
type acmeRoom struct {
	t     *testing.T
	url   string
	store *dbstore.Store
	led   *audit.Ledger
	now   time.Time
	n     int
}

func newACMERoom(t *testing.T) *acmeRoom {
	t.Helper()
	r := &acmeRoom{t: t, url: database(t), now: time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)}
	var err error
	if r.store, err = dbstore.Open(t.Context(), r.url); err != nil {
		t.Fatal(err)
	}
	if r.led, err = audit.Open(t.Context(), r.store, audit.Options{Log: slog.New(slog.DiscardHandler)}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); r.led.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done; r.store.Close() })
	return r
}

func (r *acmeRoom) id() string { r.n++; return fmt.Sprintf("id%020d", r.n) }

func (r *acmeRoom) write(want error, p ...audit.Projection) {
	r.t.Helper()
	if err := r.led.Write(r.t.Context(), p...); !errors.Is(err, want) {
		r.t.Fatalf("%T: got %v, want %v", p[0], err, want)
	}
}

func (r *acmeRoom) account() acme.Account {
	r.t.Helper()
	id := r.id()
	a := acme.Account{ID: id, Thumbprint: "tp-" + id, JWK: []byte(`{"kty":"EC"}`), Contact: []string{"mailto:a@b.c"}, Status: acme.Valid, TermsAgreed: true, Created: r.now}
	r.write(nil, acme.CreateAccount{Account: a})
	return a
}

func (r *acmeRoom) newOrder(account string, reuse []acme.Authz, names ...string) acme.CreateOrder {
	o := acme.Order{ID: r.id(), Account: account, Status: acme.Ready, Created: r.now.Add(time.Duration(r.n) * time.Millisecond), Expires: r.now.Add(time.Hour)}
	p := acme.CreateOrder{}
	for _, a := range reuse {
		o.Names, o.Authzs = append(o.Names, a.Name), append(o.Authzs, a.ID)
	}
	for _, n := range names {
		o.Status = acme.Pending
		a := acme.Authz{ID: r.id(), Account: account, Name: ca.Name{Kind: ca.DNS, Value: n}, Status: acme.Pending, Created: r.now, Expires: r.now.Add(time.Hour)}
		a.Challenges = []acme.Challenge{{ID: r.id(), Authz: a.ID, Type: acme.HTTP01, Token: "t", Status: acme.Pending}, {ID: r.id(), Authz: a.ID, Type: "dns-01", Token: "t", Status: acme.Pending}}
		o.Names, o.Authzs, p.New = append(o.Names, a.Name), append(o.Authzs, a.ID), append(p.New, a)
	}
	p.Order = o
	return p
}

func (r *acmeRoom) order(id string) acme.Order {
	r.t.Helper()
	o, err := r.store.ACMEOrder(r.t.Context(), id)
	if err != nil {
		r.t.Fatal(err)
	}
	return o
}

func (r *acmeRoom) authz(id string) acme.Authz {
	r.t.Helper()
	list, err := r.store.ACMEAuthzs(r.t.Context(), id)
	if err != nil {
		r.t.Fatal(err)
	}
	return list[0]
}

func (r *acmeRoom) prove(a acme.Authz) {
	r.t.Helper()
	c := a.Challenges[0].ID
	r.write(nil, acme.ChallengeProcessing{ID: c, Authz: a.ID, Now: r.now})
	r.write(nil, acme.ChallengeValid{ID: c, Authz: a.ID, Validated: r.now, Expires: r.now.Add(24 * time.Hour)})
}

func TestACMEAccountRows(t *testing.T) {
	r := newACMERoom(t)
	a, b := r.account(), r.account()
	got, err := r.store.ACMEAccount(t.Context(), a.ID)
	if err != nil || fmt.Sprint(got) != fmt.Sprint(a) {
		t.Fatalf("%v %v, want %v", got, err, a)
	}
	if _, err := r.store.ACMEAccountByKey(t.Context(), "nobody"); !errors.Is(err, audit.ErrNotFound) {
		t.Fatal(err)
	}
	dup := a
	dup.ID = r.id()
	r.write(audit.ErrExists, acme.CreateAccount{Account: dup})
	r.write(nil, acme.UpdateContact{ID: a.ID, Contact: nil})
	r.write(audit.ErrExists, acme.ChangeAccountKey{ID: a.ID, Old: a.Thumbprint, Thumbprint: b.Thumbprint, JWK: b.JWK})
	r.write(audit.ErrConflict, acme.ChangeAccountKey{ID: a.ID, Old: "other", Thumbprint: "new", JWK: b.JWK})
	r.write(nil, acme.ChangeAccountKey{ID: a.ID, Old: a.Thumbprint, Thumbprint: "new", JWK: b.JWK})
	if got, err := r.store.ACMEAccountByKey(t.Context(), "new"); err != nil || got.ID != a.ID || len(got.Contact) != 0 {
		t.Fatalf("%v %v", got, err)
	}
	r.write(nil, acme.DeactivateAccount{ID: a.ID})
	for _, p := range []audit.Projection{acme.DeactivateAccount{ID: a.ID}, acme.UpdateContact{ID: a.ID}, r.newOrder(a.ID, nil, "a.lab"),
		acme.ChangeAccountKey{ID: a.ID, Old: "new", Thumbprint: "newer", JWK: b.JWK}, r.newOrder("nobody", nil, "a.lab")} {
		r.write(audit.ErrConflict, p)
	}
}

// The life of an order, with every step that the state does not allow.
func TestACMEOrderRows(t *testing.T) {
	r := newACMERoom(t)
	acct := r.account().ID
	p := r.newOrder(acct, nil, "a.lab", "b.lab")
	r.write(nil, p)
	o := p.Order
	if got := r.order(o.ID); fmt.Sprint(got) != fmt.Sprint(o) {
		t.Fatalf("%v, want %v", got, o)
	}
	a, b := p.New[0], p.New[1]
	ch, other := a.Challenges[0].ID, a.Challenges[1].ID
	processing := acme.OrderProcessing{ID: o.ID, Account: acct, CSR: []byte("csr"), Serial: "01", Now: r.now}
	bad := &acme.Problem{Type: acme.Connection, Detail: "no"}

	r.write(audit.ErrConflict, processing)
	r.write(audit.ErrConflict, acme.ChallengeValid{ID: ch, Authz: a.ID})
	r.write(audit.ErrConflict, acme.ChallengeInvalid{ID: ch, Authz: a.ID, Error: bad})
	r.write(audit.ErrConflict, acme.ChallengeProcessing{ID: ch, Authz: b.ID, Now: r.now})
	r.write(audit.ErrConflict, acme.ChallengeProcessing{ID: ch, Authz: a.ID, Now: r.now.Add(time.Hour)})
	r.write(nil, acme.ChallengeProcessing{ID: ch, Authz: a.ID, Now: r.now})
	r.write(audit.ErrConflict, acme.ChallengeProcessing{ID: ch, Authz: a.ID, Now: r.now})
	r.write(audit.ErrConflict, acme.ChallengeProcessing{ID: other, Authz: a.ID, Now: r.now}) // one at a time per authorization
	todo, err := r.store.ACMEProcessingChallenges(t.Context(), 10)
	if err != nil || len(todo) != 1 || todo[0].Challenge.ID != ch || todo[0].Challenge.Token != "t" || todo[0].Account != acct || todo[0].Thumbprint != "tp-"+acct || todo[0].Name != a.Name {
		t.Fatalf("%+v %v", todo, err)
	}
	r.write(nil, acme.ChallengeValid{ID: ch, Authz: a.ID, Validated: r.now, Expires: r.now.Add(24 * time.Hour)})
	if r.order(o.ID).Status != acme.Pending {
		t.Fatal("ready with one name of two")
	}
	if got := r.authz(a.ID); got.Status != acme.Valid || !got.Expires.Equal(r.now.Add(24*time.Hour)) || len(got.Challenges) != 2 || got.Challenges[1].Validated != r.now {
		t.Fatalf("%+v", got)
	}
	r.prove(b)
	if r.order(o.ID).Status != acme.Ready {
		t.Fatal("not ready")
	}
	late := processing
	late.Now = r.now.Add(2 * time.Hour)
	r.write(audit.ErrConflict, late)
	foreign := processing
	foreign.Account = r.account().ID
	r.write(audit.ErrConflict, foreign)
	r.write(audit.ErrConflict, acme.OrderValid{ID: o.ID, Serial: "01"})
	r.write(nil, processing)
	r.write(audit.ErrConflict, processing)
	if list, err := r.store.ACMEProcessingOrders(t.Context(), 10); err != nil || len(list) != 1 || string(list[0].CSR) != "csr" || list[0].Serial != "01" {
		t.Fatalf("%+v %v", list, err)
	}
	again := processing
	again.Serial, again.Old = "02", "01"
	again.Now = late.Now // an order in processing does not expire
	r.write(nil, again)
	r.write(audit.ErrConflict, again) // the second one to resume loses
	r.write(audit.ErrConflict, acme.OrderValid{ID: o.ID, Serial: "01"})
	r.write(audit.ErrConflict, acme.OrderInvalid{ID: o.ID, Serial: "01", Error: bad})
	r.write(nil, acme.OrderValid{ID: o.ID, Serial: "02"})
	r.write(audit.ErrConflict, acme.OrderInvalid{ID: o.ID, Serial: "02", Error: bad})
	if got := r.order(o.ID); got.Status != acme.Valid || got.Serial != "02" {
		t.Fatalf("%+v", got)
	}
}

// What is lost takes with it the orders that need it, and no others.
func TestACMELoss(t *testing.T) {
	r := newACMERoom(t)
	acct := r.account().ID
	bad := &acme.Problem{Type: acme.Connection, Detail: "no", Subproblems: []*acme.Problem{{Type: acme.DNS, Detail: "x"}}}
	first := r.newOrder(acct, nil, "a.lab")
	r.write(nil, first)
	a := first.New[0]
	early := r.newOrder(acct, []acme.Authz{a})
	r.write(audit.ErrConflict, early) // reuse of what is not valid
	if _, err := r.store.ACMEOrder(t.Context(), early.Order.ID); !errors.Is(err, audit.ErrNotFound) {
		t.Fatalf("half an order was stored: %v", err)
	}
	r.prove(a)
	found, err := r.store.ACMEValidAuthz(t.Context(), acct, a.Name, r.now.Add(time.Hour))
	if err != nil || found.ID != a.ID {
		t.Fatalf("%v %v", found, err)
	}
	if _, err := r.store.ACMEValidAuthz(t.Context(), acct, a.Name, r.now.Add(25*time.Hour)); !errors.Is(err, audit.ErrNotFound) {
		t.Fatal(err)
	}
	second := r.newOrder(acct, []acme.Authz{found}, "b.lab")
	third := r.newOrder(acct, []acme.Authz{found})
	stranger := r.newOrder(r.account().ID, []acme.Authz{found})
	r.write(nil, second)
	r.write(nil, third)
	r.write(audit.ErrConflict, stranger)
	r.write(nil, acme.OrderProcessing{ID: third.Order.ID, Account: acct, CSR: []byte("x"), Serial: "01", Now: r.now})

	b := second.New[0]
	r.write(nil, acme.ChallengeProcessing{ID: b.Challenges[0].ID, Authz: b.ID, Now: r.now})
	r.write(nil, acme.ChallengeInvalid{ID: b.Challenges[0].ID, Authz: b.ID, Error: bad})
	got := r.order(second.Order.ID)
	if got.Status != acme.Invalid || got.Error == nil || got.Error.Detail != "no" || len(got.Error.Subproblems) != 1 {
		t.Fatalf("%+v", got)
	}
	if z := r.authz(b.ID); z.Status != acme.Invalid || z.Challenges[1].Error == nil && z.Challenges[0].Error == nil {
		t.Fatalf("%+v", z)
	}
	if r.order(first.Order.ID).Status != acme.Ready {
		t.Fatal("an order that does not need it is lost, too")
	}
	r.write(audit.ErrConflict, acme.DeactivateAuthz{ID: a.ID, Account: "other", Error: bad})
	r.write(nil, acme.DeactivateAuthz{ID: a.ID, Account: acct, Error: bad})
	r.write(audit.ErrConflict, acme.DeactivateAuthz{ID: a.ID, Account: acct, Error: bad})
	if r.order(first.Order.ID).Status != acme.Invalid || r.order(third.Order.ID).Status != acme.Processing {
		t.Fatal("deactivation must end ready orders and leave those in processing")
	}
	r.write(audit.ErrConflict, acme.OrderProcessing{ID: third.Order.ID, Account: acct, CSR: []byte("x"), Serial: "02", Old: "01", Now: r.now})
	if _, err := r.store.ACMEAuthzs(t.Context(), a.ID, "nothing"); !errors.Is(err, audit.ErrNotFound) {
		t.Fatal(err)
	}
}

func TestACMEOrderPages(t *testing.T) {
	r := newACMERoom(t)
	acct := r.account().ID
	same := r.now
	for i := range 25 {
		p := r.newOrder(acct, nil, "a.lab")
		if i%5 > 0 { // several at the same moment
			p.Order.Created = same
		}
		same = p.Order.Created
		r.write(nil, p)
	}
	seen := map[string]bool{}
	var after acme.Cursor
	for {
		list, err := r.store.ACMEOrders(t.Context(), acct, after, 7)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range list {
			if seen[o.ID] {
				t.Fatal("twice")
			}
			seen[o.ID] = true
			after = acme.Cursor{Created: o.Created, ID: o.ID}
		}
		if len(list) < 7 {
			break
		}
	}
	if len(seen) != 25 {
		t.Fatalf("%d orders", len(seen))
	}
}

// Every statement of the hot path goes by an index, however much there is.
func TestACMEPlans(t *testing.T) {
	r := newACMERoom(t)
	path, ok := strings.CutPrefix(r.url, "sqlite:")
	if !ok {
		t.Skip("the plans of a small table in PostgreSQL say nothing")
	}
	db, err := sql.Open("sqlite3", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, q := range []string{
		"SELECT * FROM acme_authz WHERE account = ? AND name = ? AND expires > ? AND status = 'valid' ORDER BY expires DESC LIMIT 1",
		"SELECT * FROM acme_order WHERE account = ? AND status <> 'invalid' AND created <= ? AND (created < ? OR id < ?) ORDER BY created DESC, id DESC LIMIT 100",
		"SELECT * FROM acme_order WHERE status = 'processing' ORDER BY created LIMIT 100",
		"SELECT expires, length(authzs) FROM acme_order WHERE account = ? AND status IN ('pending', 'ready') AND expires > ? ORDER BY expires LIMIT ?",
		"SELECT id FROM acme_order WHERE status IN ('pending', 'ready', 'invalid') AND expires < ? ORDER BY expires LIMIT ?",
		"DELETE FROM acme_authz WHERE id IN (SELECT a.id FROM acme_order_authz oa JOIN acme_authz a ON a.id = oa.authz WHERE oa.order_id = ? AND a.expires < ? AND NOT EXISTS (SELECT 1 FROM acme_order_authz other WHERE other.authz = oa.authz AND other.order_id <> oa.order_id))",
		"SELECT acme_challenge.* FROM acme_challenge JOIN acme_authz ON acme_authz.id = acme_challenge.authz JOIN acme_account ON acme_account.id = acme_authz.account WHERE acme_challenge.status = 'processing' ORDER BY acme_challenge.id LIMIT 1",
		"SELECT * FROM acme_challenge WHERE authz IN (?, ?)",
		`UPDATE acme_order SET status = 'ready' WHERE id IN (SELECT order_id FROM acme_order_authz WHERE authz = ?) AND status = 'pending'
			AND NOT EXISTS (SELECT 1 FROM acme_order_authz oa JOIN acme_authz a ON a.id = oa.authz WHERE oa.order_id = acme_order.id AND a.status <> 'valid')`,
	} {
		args := make([]any, strings.Count(q, "?"))
		for i := range args {
			args[i] = "x"
		}
		rows, err := db.Query("EXPLAIN QUERY PLAN "+q, args...)
		if err != nil {
			t.Fatal(err)
		}
		var plan []string
		for rows.Next() {
			var a, b, c int
			var detail string
			if err := rows.Scan(&a, &b, &c, &detail); err != nil {
				t.Fatal(err)
			}
			plan = append(plan, detail)
		}
		rows.Close()
		if strings.Contains(q, "length(authzs)") && !strings.Contains(plan[0], "COVERING INDEX acme_order_open") {
			t.Errorf("%s\n%s", q, plan)
		}
		for _, line := range plan {
			if strings.HasPrefix(line, "SCAN") && !strings.Contains(line, "_processing") || strings.Contains(line, "TEMP B-TREE") {
				t.Errorf("%s\n%s", q, strings.Join(plan, "\n"))
				break
			}
		}
	}
}

// The bound of open orders is exact, names when a place becomes free, and what expired
// or ended takes none.
func TestACMEOpenOrders(t *testing.T) {
	r := newACMERoom(t)
	a := r.account()
	add := func(fits bool, life time.Duration) acme.CreateOrder {
		t.Helper()
		p := r.newOrder(a.ID, nil, "a.lab")
		p.Order.Expires, p.MaxOpen = r.now.Add(life), 3
		err := r.led.Write(t.Context(), p)
		var many *acme.TooManyOrders
		if fits && err != nil || !fits && !errors.As(err, &many) {
			t.Fatalf("%v", err)
		}
		if many != nil && !many.Until.Equal(r.now.Add(time.Hour)) {
			t.Fatalf("until %s", many.Until)
		}
		return p
	}
	first := add(true, 2*time.Hour)
	add(true, 3*time.Hour)
	add(true, time.Minute)
	r.now = r.now.Add(2 * time.Minute) // the third has expired
	add(true, time.Hour)
	add(false, time.Hour)
	r.write(nil, acme.DeactivateAuthz{ID: first.New[0].ID, Account: a.ID})
	add(true, 4*time.Hour)
	add(false, time.Hour)
	other := r.account().ID
	names := func(n int) (out []string) {
		for i := range n {
			out = append(out, fmt.Sprintf("n%d.lab", i))
		}
		return out
	}
	for i, n := range []int{20, 11, 10, 1} {
		p := r.newOrder(other, nil, names(n)...)
		p.MaxOpen = 3
		err := r.led.Write(t.Context(), p)
		var many *acme.TooManyOrders
		if full := errors.As(err, &many); full != (i%2 == 1) || !full && err != nil {
			t.Errorf("order %d with %d names: %v", i, n, err)
		}
	}
}

// An order whose intent is open is under way, here or on another node: nobody else takes
// it. When the intent is closed without a certificate it is there for whoever looks.
func TestProcessingOrdersOfOthers(t *testing.T) {
	r := newACMERoom(t)
	if err := r.led.Genesis(t.Context(), audit.Genesis{Random: [32]byte{1}, Domain: "ca.example", CheckpointKeys: [][]byte{{1}}, Acts: []string{"x"}}); err != nil {
		t.Fatal(err)
	}
	acct := r.account().ID
	create := r.newOrder(acct, nil, "a.example")
	r.write(nil, create)
	r.prove(create.New[0])
	o := create.Order
	listed := func() int {
		t.Helper()
		list, err := r.store.ACMEProcessingOrders(t.Context(), 10)
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	serial := []byte{0x5e, 0x01}
	in := audit.Intent{Op: audit.OpCertificate, Key: [32]byte{1}, Purpose: audit.PurposeIssuer, Serial: serial, Issuer: [32]byte{2}, TBSHash: [32]byte{3}}
	op, err := r.led.Begin(t.Context(), in, acme.OrderProcessing{ID: o.ID, Account: acct, CSR: []byte("csr"), Serial: "5e01", Now: r.now})
	if err != nil {
		t.Fatal(err)
	}
	if n := listed(); n != 0 {
		t.Errorf("%d orders are listed although the intent is open", n)
	}
	if _, err := r.led.Failed(t.Context(), op, "test", nil); err != nil {
		t.Fatal(err)
	}
	if n := listed(); n != 1 {
		t.Errorf("%d orders are listed after the intent was closed, want 1", n)
	}
}
