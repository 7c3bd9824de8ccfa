package admin_test

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chancery/admin"
	"chancery/audit"
	"chancery/dbstore"
	"chancery/test/pgcluster"
)

// database is the setting "database" of a new database; the tests run with SQLite
// first, then with PostgreSQL.
var database func(testing.TB) string

func TestMain(m *testing.M) {
	os.Exit(pgcluster.RunTwice(m, func(db func(testing.TB) string) { database = db }))
}

// room is a board on a real database and ledger.
type room struct {
	*college
	t      *testing.T
	url    string
	db     *dbstore.Store
	ledger *audit.Ledger
	board  *admin.Board
	now    atomic.Int64 // seconds since 1970
	ran    atomic.Int32 // executions
	spends atomic.Int32 // acts that could be spent
	fail   error        // of the executor
	close  func()
}

const testAction = "generate-key"

func newRoom(t *testing.T, quorum int, names ...string) *room {
	t.Helper()
	r := &room{college: newCollege(quorum, names...), t: t, url: database(t)}
	r.now.Store(1790000000)
	r.open()
	if err := r.ledger.Genesis(t.Context(), audit.Genesis{Random: [32]byte{1}, Dev: true, Domain: "d.example", CheckpointKeys: [][]byte{{1}}, Roster: r.roster.Digest(), Acts: []string{"x"}}, admin.PutRoster{History: admin.History{Base: r.roster}}); err != nil {
		t.Fatal(err)
	}
	r.build(r.roster)
	t.Cleanup(func() { r.close() })
	return r
}

func (r *room) open() {
	r.t.Helper()
	var err error
	if r.db, err = dbstore.Open(r.t.Context(), r.url); err != nil {
		r.t.Fatal(err)
	}
	if r.ledger, err = audit.Open(r.t.Context(), r.db, audit.Options{Node: "n", Build: "test", Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return time.Unix(r.now.Load(), 0) }}); err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); r.ledger.Run(ctx) }()
	r.close = func() { cancel(); <-done; r.db.Close() }
}

// build makes the board anew, as a start does.
func (r *room) build(roster admin.Roster) {
	r.t.Helper()
	var err error
	r.board, err = admin.NewBoard(admin.Config{Ledger: r.ledger, Storage: r.db, Rosters: admin.History{Base: roster}, Log: slog.New(slog.DiscardHandler),
		Now: func() time.Time { return time.Unix(r.now.Load(), 0) }, Actions: map[string]admin.Action{testAction: {Acts: testActs, Execute: r.execute}}})
	if err != nil {
		r.t.Fatal(err)
	}
}

func testActs(parameters []byte) ([]string, error) {
	var p struct{ Name string }
	if err := json.Unmarshal(parameters, &p); err != nil || p.Name == "" {
		return nil, errors.New("name is missing")
	}
	return []string{admin.GenerateKeyAct(p.Name, "code", "P-256", nil)}, nil
}

func (r *room) execute(_ context.Context, g *admin.Grant, parameters []byte) (any, error) {
	r.ran.Add(1)
	acts, _ := testActs(parameters)
	w, ok := g.Warrant()
	if !ok {
		return nil, errors.New("no warrant")
	}
	if _, _, err := w.Check(r.ledger.ID(), r.roster.Digest(), time.Unix(r.now.Load(), 0)); err != nil {
		return nil, err
	}
	if w.Grant() != g.Hash() {
		return nil, errors.New("the warrant stands behind another grant")
	}
	if err := g.Spend(acts[0]); err != nil {
		return nil, err
	}
	r.spends.Add(1)
	return map[string]string{"key": "made"}, r.fail
}

// run starts the loop of the board until the test ends or stop is called.
func (r *room) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func(b *admin.Board) { done <- b.Run(ctx) }(r.board)
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Error(err)
		}
	})
	r.t.Cleanup(stop)
	return stop
}

func (r *room) propose(name string) *admin.Approval {
	r.t.Helper()
	a, err := r.board.Propose(r.t.Context(), admin.Ask{Action: testAction, Parameters: fmt.Appendf(nil, `{"name": %q}`, name)})
	if err != nil {
		r.t.Fatal(err)
	}
	return a
}

// approve has officer i approve exactly what raw says, for the proposal id.
func (r *room) approve(i int, id string, raw []byte) error {
	_, err := r.board.Vote(r.t.Context(), id, admin.Ballot{Officer: r.keys[i].Name, Decision: admin.Approve, Signature: must(r.keys[i].SignVote(admin.Approve, raw))})
	return err
}

func (r *room) wait(id string, want admin.State) *admin.Approval {
	r.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		a, err := r.board.Show(r.t.Context(), id)
		if err != nil {
			r.t.Fatal(err)
		}
		if a.State == want {
			return a
		}
		if time.Now().After(end) {
			r.t.Fatalf("proposal is %s (%s), want %s", a.State, a.Reason, want)
		}
	}
}

// leaves counts the leaves of an operation.
func (r *room) leaves(op audit.Op) (n int) {
	r.t.Helper()
	err := r.db.Leaves(r.t.Context(), 0, r.ledger.Head().Size, func(_ uint64, b []byte) error {
		l, err := audit.DecodeLeaf(b)
		if err == nil && l.Op == op {
			n++
		}
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return n
}

func TestApprove(t *testing.T) {
	r := newRoom(t, 2, "ada", "bob", "cyd")
	r.run()
	a := r.propose("k1")
	if a.State != admin.Pending || a.Asked.Requester != admin.AdminToken || !slices.Equal(a.Asked.Acts, []string{"generate-key k1 code P-256"}) || a.Leaf == 0 {
		t.Fatalf("%+v", a)
	}
	if a.Asked.Expires.Sub(a.Asked.NotBefore) != admin.DefaultLifetime {
		t.Errorf("it lives %s", a.Asked.Expires.Sub(a.Asked.NotBefore))
	}
	if err := r.approve(0, a.ID, a.Proposal); err != nil {
		t.Fatal(err)
	}
	if s := r.wait(a.ID, admin.Pending); len(s.Votes) != 1 || r.ran.Load() != 0 {
		t.Fatalf("after one vote: %+v", s)
	}
	if err := r.approve(2, a.ID, a.Proposal); err != nil {
		t.Fatal(err)
	}
	s := r.wait(a.ID, admin.Done)
	if string(s.Result) != `{"key":"made"}` || s.Grant == ([32]byte{}) || r.spends.Load() != 1 || s.EndLeaf <= s.GrantLeaf {
		t.Errorf("%+v", s)
	}
	if g, e := r.leaves(audit.OpGrant), r.leaves(audit.OpGrantResult); g != 1 || e != 1 {
		t.Errorf("%d grants, %d results", g, e)
	}
	// What was spent makes nothing any more, by a late vote either.
	if err := r.approve(1, a.ID, a.Proposal); !refused(err, admin.Closed, "done") {
		t.Error(err)
	}
	if l, err := r.board.List(t.Context(), admin.Done); err != nil || len(l) != 1 || l[0].ID != a.ID || len(l[0].Votes) != 2 {
		t.Errorf("list: %v %v", l, err)
	}
	r.verify()
}

func refused(err error, code admin.Code, says string) bool {
	var r *admin.Refusal
	return errors.As(err, &r) && r.Code == code && strings.Contains(r.Detail, says)
}

func (r *room) verify() {
	r.t.Helper()
	if _, err := audit.Verify(r.t.Context(), r.db, nil); err != nil {
		r.t.Errorf("audit verify: %v", err)
	}
}

// otherS is the other valid form of an ECDSA signature, which anyone can make.
func otherS(t *testing.T, sig []byte) []byte {
	t.Helper()
	var v struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(sig, &v); err != nil {
		t.Fatal(err)
	}
	n, _ := new(big.Int).SetString("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551", 16)
	v.S.Sub(n, v.S)
	return must(asn1.Marshal(v))
}

// TestHSM11Quorum is HSM-11 of the attacks: each way to get along without M people
// is refused, nothing is carried out, and the proposal can still be approved properly.
func TestHSM11Quorum(t *testing.T) {
	vote := func(r *room, id, officer string, key int, raw []byte) error {
		_, err := r.board.Vote(t.Context(), id, admin.Ballot{Officer: officer, Decision: admin.Approve, Signature: must(r.keys[key].SignVote(admin.Approve, raw))})
		return err
	}
	for name, c := range map[string]struct {
		attack func(r *room, a *admin.Approval) error
		code   admin.Code
		says   string
		dead   bool // cannot be approved afterwards either
	}{
		"same person twice": {attack: func(r *room, a *admin.Approval) error { return r.approve(0, a.ID, a.Proposal) }, code: admin.VoteRefused, says: "has voted"},
		"same signature in its other form": {attack: func(r *room, a *admin.Approval) error {
			s := must(r.keys[0].SignVote(admin.Approve, a.Proposal))
			_, err := r.board.Vote(t.Context(), a.ID, admin.Ballot{Officer: "ada", Decision: admin.Approve, Signature: otherS(t, s)})
			return err
		}, code: admin.VoteRefused, says: "has voted"},
		"same person under a second name": {attack: func(r *room, a *admin.Approval) error { return vote(r, a.ID, "bob", 0, a.Proposal) }, code: admin.VoteRefused, says: "not by officer bob"},
		"same person under a second key":  {attack: func(r *room, a *admin.Approval) error { return vote(r, a.ID, "ada", 1, a.Proposal) }, code: admin.VoteRefused, says: "not by officer ada"},
		"somebody else": {attack: func(r *room, a *admin.Approval) error {
			k := must(admin.NewOfficerKey("eve"))
			_, err := r.board.Vote(t.Context(), a.ID, admin.Ballot{Officer: "eve", Decision: admin.Approve, Signature: must(k.SignVote(admin.Approve, a.Proposal))})
			return err
		}, code: admin.VoteRefused, says: "no officer"},
		"nobody":               {attack: func(r *room, a *admin.Approval) error { return vote(r, a.ID, "", 1, a.Proposal) }, code: admin.VoteRefused, says: "no officer"},
		"approval of another":  {attack: func(r *room, a *admin.Approval) error { return vote(r, a.ID, "bob", 1, r.propose("k2").Proposal) }, code: admin.VoteRefused, says: "not by officer bob"},
		"approval of the like": {attack: func(r *room, a *admin.Approval) error { return vote(r, a.ID, "bob", 1, r.propose("k1").Proposal) }, code: admin.VoteRefused, says: "not by officer bob"},
		"altered payload": {attack: func(r *room, a *admin.Approval) error {
			p := a.Asked
			p.Acts = []string{admin.SignRootAct("evil")}
			return vote(r, a.ID, "bob", 1, must(p.Encode()))
		}, code: admin.VoteRefused, says: "not by officer bob"},
		"rejection passed off as approval": {attack: func(r *room, a *admin.Approval) error {
			_, err := r.board.Vote(t.Context(), a.ID, admin.Ballot{Officer: "bob", Decision: admin.Approve, Signature: must(r.keys[1].SignVote(admin.Reject, a.Proposal))})
			return err
		}, code: admin.VoteRefused, says: "not by officer bob"},
		"request as a vote": {attack: func(r *room, a *admin.Approval) error {
			_, err := r.board.Vote(t.Context(), a.ID, admin.Ballot{Officer: "bob", Decision: admin.Request, Signature: must(r.keys[1].SignVote(admin.Request, a.Proposal))})
			return err
		}, code: admin.BadProposal, says: "approve or reject"},
		"expired": {attack: func(r *room, a *admin.Approval) error {
			r.now.Add(86400)
			return r.approve(1, a.ID, a.Proposal)
		}, code: admin.Closed, says: "expired", dead: true},
		"before its time": {attack: func(r *room, a *admin.Approval) error {
			r.now.Add(-60)
			defer r.now.Add(60)
			return r.approve(1, a.ID, a.Proposal)
		}, code: admin.VoteRefused, says: "holds from"},
		"M lowered by one person": {attack: func(r *room, a *admin.Approval) error {
			exec(r, "UPDATE roster SET quorum = 1")
			lowered := must(r.db.Rosters(t.Context()))
			if err := lowered.Check(t.Context(), r.ledger.Leaf); !errors.Is(err, audit.ErrTampered) {
				t.Errorf("start with a lowered quorum: %v", err)
			}
			_, err := admin.NewBoard(admin.Config{Ledger: r.ledger, Storage: r.db, Rosters: lowered, Actions: map[string]admin.Action{"x": {}}})
			if err == nil {
				t.Error("a board with a quorum of one")
			}
			if err := vote(r, a.ID, "ada", 0, a.Proposal); !errors.Is(err, audit.ErrTampered) {
				t.Errorf("a vote with a lowered quorum: %v", err)
			}
			exec(r, "UPDATE roster SET quorum = 2")
			return vote(r, a.ID, "ada", 0, a.Proposal)
		}, code: admin.VoteRefused, says: "has voted"},
		"cancelled": {attack: func(r *room, a *admin.Approval) error {
			must(r.board.Cancel(t.Context(), a.ID))
			return r.approve(1, a.ID, a.Proposal)
		}, code: admin.Closed, says: "cancelled", dead: true},
		"rejected by too many": {attack: func(r *room, a *admin.Approval) error {
			must(r.board.Vote(t.Context(), a.ID, admin.Ballot{Officer: "bob", Decision: admin.Reject, Signature: must(r.keys[1].SignVote(admin.Reject, a.Proposal))}))
			must(r.board.Vote(t.Context(), a.ID, admin.Ballot{Officer: "cyd", Decision: admin.Reject, Signature: must(r.keys[2].SignVote(admin.Reject, a.Proposal))}))
			return r.approve(1, a.ID, a.Proposal)
		}, code: admin.Closed, says: "rejected", dead: true},
		"reject after approval": {attack: func(r *room, a *admin.Approval) error {
			_, err := r.board.Vote(t.Context(), a.ID, admin.Ballot{Officer: "ada", Decision: admin.Reject, Signature: must(r.keys[0].SignVote(admin.Reject, a.Proposal))})
			return err
		}, code: admin.VoteRefused, says: "has voted"},
		"no such proposal": {attack: func(r *room, a *admin.Approval) error { return r.approve(1, "0123456789abcdef", a.Proposal) }, code: admin.NotFound},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRoom(t, 2, "ada", "bob", "cyd")
			r.run()
			a := r.propose("k1")
			if err := r.approve(0, a.ID, a.Proposal); err != nil { // M-1
				t.Fatal(err)
			}
			if err := c.attack(r, a); !refused(err, c.code, c.says) {
				t.Errorf("%v; want %s: …%s…", err, c.code, c.says)
			}
			if r.ran.Load() != 0 || r.leaves(audit.OpGrant) != 0 {
				t.Fatal("it was carried out")
			}
			if c.dead {
				return
			}
			if err := r.approve(1, a.ID, a.Proposal); err != nil {
				t.Fatal(err)
			}
			r.wait(a.ID, admin.Done)
		})
	}
}

// exec writes past the server into the database.
func exec(r *room, query string) {
	r.t.Helper()
	driver, source := "pgx", r.url
	if path, ok := strings.CutPrefix(r.url, "sqlite:"); ok {
		driver, source = "sqlite3", path
	}
	db := must(sql.Open(driver, source))
	defer db.Close()
	if _, err := db.Exec(query); err != nil {
		r.t.Fatal(err)
	}
}

// Votes that were put into the database past the board make no grant.
func TestHSM11ForgedRows(t *testing.T) {
	r := newRoom(t, 2, "ada", "bob", "cyd")
	if !strings.HasPrefix(r.url, "sqlite:") {
		t.Skip("writes past the server into a SQLite file")
	}
	r.run()
	a := r.propose("k1")
	exec(r, fmt.Sprintf("INSERT INTO vote SELECT 90, hash, 'cyd', x'%x', 1, x'3006020101020101' FROM proposal", r.roster.Officers[2].SPKI))
	if err := r.approve(0, a.ID, a.Proposal); !errors.Is(err, audit.ErrTampered) {
		t.Errorf("with a forged vote: %v", err)
	}
	exec(r, "DELETE FROM vote WHERE leaf = 90; UPDATE proposal SET parameters = '{\"name\":\"evil\"}'")
	if err := r.approve(1, a.ID, a.Proposal); !errors.Is(err, audit.ErrTampered) {
		t.Errorf("with other parameters: %v", err)
	}
	if r.ran.Load() != 0 {
		t.Error("it was carried out")
	}
}

// An officer who asks is known by signature and cannot approve.
func TestHSM11RequesterApprovesOwn(t *testing.T) {
	r := newRoom(t, 2, "ada", "bob", "cyd")
	r.run()
	ask := func(i int, edit func(*admin.Proposal)) admin.Ask {
		params := must(admin.CanonicalParameters([]byte(`{"name":"k1"}`)))
		p := must(r.board.Terms(t.Context())).Draft(testAction, must(testActs(params)), params, admin.OfficerRequester(r.keys[i].Name), time.Unix(r.now.Load(), 0), 0)
		edit(&p)
		raw := must(p.Encode())
		return admin.Ask{Action: testAction, Parameters: params, Officer: r.keys[i].Name, Proposal: raw, Signature: must(r.keys[i].SignVote(admin.Request, raw))}
	}
	same := func(*admin.Proposal) {}
	good := ask(0, same)
	a, err := r.board.Propose(t.Context(), good)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.approve(0, a.ID, a.Proposal); !refused(err, admin.VoteRefused, "asked for it") {
		t.Error(err)
	}
	_, err = r.board.Vote(t.Context(), a.ID, admin.Ballot{Officer: "ada", Decision: admin.Approve, Signature: good.Signature})
	if !refused(err, admin.VoteRefused, "asked for it") {
		t.Error(err)
	}
	if _, err := r.board.Propose(t.Context(), good); !refused(err, admin.Closed, "made before") {
		t.Errorf("the same request again: %v", err)
	}
	for name, c := range map[string]struct {
		ask  admin.Ask
		says string
	}{
		"in another's name":  {func() admin.Ask { x := ask(0, same); x.Officer = "bob"; return x }(), "not for this ledger"},
		"without signature":  {func() admin.Ask { x := ask(0, same); x.Signature = nil; return x }(), "not by officer ada"},
		"other parameters":   {func() admin.Ask { x := ask(0, same); x.Parameters = []byte(`{"name":"k2"}`); return x }(), "not for this ledger"},
		"other acts":         {ask(0, func(p *admin.Proposal) { p.Acts = []string{"sign-root root"} }), "not for this ledger"},
		"other ledger":       {ask(0, func(p *admin.Proposal) { p.Ledger[0]++ }), "not for this ledger"},
		"other roster":       {ask(0, func(p *admin.Proposal) { p.Roster[0]++ }), "not for this ledger"},
		"other policy":       {ask(0, func(p *admin.Proposal) { p.Policy[0]++ }), "not for this ledger"},
		"as the admin token": {ask(0, func(p *admin.Proposal) { p.Requester = admin.AdminToken }), "not for this ledger"},
		"long over":          {ask(0, func(p *admin.Proposal) { p.NotBefore, p.Expires = time.Unix(1700000000, 0), time.Unix(1700000060, 0) }), "set the clock"},
		"not yet":            {ask(0, func(p *admin.Proposal) { p.NotBefore, p.Expires = p.NotBefore.Add(time.Hour), p.Expires.Add(time.Hour) }), "set the clock"},
		"no officer":         {func() admin.Ask { x := ask(0, same); x.Officer = "eve"; return x }(), "no officer"},
		"nameless":           {func() admin.Ask { x := ask(0, same); x.Officer = ""; return x }(), "names its officer"},
		"unknown action":     {admin.Ask{Action: "fly", Parameters: []byte("{}")}, "no action"},
		"bad parameters":     {admin.Ask{Action: testAction, Parameters: []byte(`{"a":1,"a":2}`)}, "no proper JSON"},
		"refused parameters": {admin.Ask{Action: testAction, Parameters: []byte("{}")}, "name is missing"},
		"for a month":        {admin.Ask{Action: testAction, Parameters: []byte(`{"name":"k"}`), Lifetime: 31 * 24 * time.Hour}, "at most"},
	} {
		if _, err := r.board.Propose(t.Context(), c.ask); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v; want %q", name, err, c.says)
		}
	}
	for i := 1; i < 3; i++ {
		if err := r.approve(i, a.ID, a.Proposal); err != nil {
			t.Fatal(err)
		}
	}
	r.wait(a.ID, admin.Done)
	r.verify()
	// Of two officers with a quorum of two, none can ask.
	two := newRoom(t, 2, "ada", "bob")
	r = two
	if _, err := r.board.Propose(t.Context(), ask(0, same)); !refused(err, admin.VoteRefused, "not possible") {
		t.Error(err)
	}
}

// TestHSM12ParallelApprovals is HSM-12: however many votes reach M at once, the acts
// are carried out exactly once.
func TestHSM12ParallelApprovals(t *testing.T) {
	var names []string
	for i := range 20 {
		names = append(names, fmt.Sprintf("officer-%02d", i))
	}
	r := newRoom(t, 10, names...)
	r.run()
	boards := []*admin.Board{r.board}
	r.build(r.roster) // two boards on one database, as two servers have
	r.run()
	boards = append(boards, r.board)
	a := r.propose("k1")
	start := make(chan struct{})
	var wg sync.WaitGroup
	var counted atomic.Int32
	for i := range 100 { // each officer five times
		sig := must(r.keys[i%20].SignVote(admin.Approve, a.Proposal))
		wg.Go(func() {
			<-start
			_, err := boards[i/20%2].Vote(t.Context(), a.ID, admin.Ballot{Officer: names[i%20], Decision: admin.Approve, Signature: sig})
			var refusal *admin.Refusal
			switch {
			case err == nil:
				counted.Add(1)
			case !errors.As(err, &refusal):
				t.Errorf("vote %d: %v", i, err)
			}
		})
	}
	close(start)
	wg.Wait()
	s := r.wait(a.ID, admin.Done)
	if r.ran.Load() != 1 || r.spends.Load() != 1 || r.leaves(audit.OpGrant) != 1 || r.leaves(audit.OpGrantResult) != 1 {
		t.Errorf("executed %d times, %d grants, %d results", r.ran.Load(), r.leaves(audit.OpGrant), r.leaves(audit.OpGrantResult))
	}
	if n := int(counted.Load()); n < 10 || n > 20 || n != len(s.Votes) || n != r.leaves(audit.OpVote) {
		t.Errorf("%d votes counted, %d stored, %d leaves", n, len(s.Votes), r.leaves(audit.OpVote))
	}
	r.verify()
}

// A crash between grant and result: nothing is carried out twice.
func TestHSM12Crash(t *testing.T) {
	r := newRoom(t, 2, "ada", "bob")
	a, b, c := r.propose("k1"), r.propose("k2"), r.propose("k3")
	for i := range 2 {
		if err := r.approve(i, a.ID, a.Proposal); err != nil { // granted, but Run never came
			t.Fatal(err)
		}
	}
	r.wait(a.ID, admin.Approved)
	// The server ends and starts anew.
	r.close()
	r.open()
	r.build(must(r.db.Rosters(t.Context())).Base)
	if err := r.approve(0, b.ID, b.Proposal); err != nil {
		t.Fatal(err)
	}
	if err := r.approve(1, b.ID, b.Proposal); err != nil { // before Run, in this process
		t.Fatal(err)
	}
	stop := r.run()
	if s := r.wait(a.ID, admin.Failed); !strings.Contains(s.Reason, "interrupted") {
		t.Errorf("%+v", s)
	}
	r.wait(b.ID, admin.Done)
	if r.ran.Load() != 1 {
		t.Errorf("executed %d times", r.ran.Load())
	}
	// An executor that fails.
	r.fail = errors.New("HSM member beta: unplugged")
	for i := range 2 {
		if err := r.approve(i, c.ID, c.Proposal); err != nil {
			t.Fatal(err)
		}
	}
	if s := r.wait(c.ID, admin.Failed); !strings.Contains(s.Reason, "unplugged") || s.Result != nil {
		t.Errorf("%+v", s)
	}
	stop()
	// What nobody decides expires.
	d := r.propose("k4")
	r.now.Add(86400)
	r.run()
	r.wait(d.ID, admin.Expired)
	r.verify()
}

// TestTamperApprovals changes what officers decided as somebody with full access to
// the database would: audit verify notices each change.
func TestTamperApprovals(t *testing.T) {
	if !strings.HasPrefix(database(t), "sqlite:") {
		t.Skip("one database suffices: the verifier reads rows, not SQL")
	}
	for name, change := range map[string]string{
		"vote removed":           "DELETE FROM vote WHERE officer = 'ada' AND decision = 1",
		"vote of another":        "UPDATE vote SET officer = 'cyd' WHERE officer = 'bob'",
		"vote turned":            "UPDATE vote SET decision = 2 WHERE officer = 'bob'",
		"vote moved":             "UPDATE vote SET proposal = (SELECT hash FROM proposal WHERE state = 'pending') WHERE officer = 'bob'",
		"signature replaced":     "UPDATE vote SET signature = x'3000' WHERE officer = 'bob'",
		"vote added":             "INSERT INTO vote SELECT 1, hash, 'cyd', x'00', 1, x'3000' FROM proposal WHERE state = 'pending'",
		"proposal removed":       "DELETE FROM vote; DELETE FROM proposal",
		"spent again":            "UPDATE proposal SET state = 'pending', grant_hash = NULL, grant_leaf = NULL, end_leaf = NULL WHERE state = 'done'",
		"approved without votes": "UPDATE proposal SET state = 'approved' WHERE state = 'pending'",
		"failure hidden":         "UPDATE proposal SET state = 'failed' WHERE state = 'done'",
		"parameters replaced":    "UPDATE proposal SET parameters = '{\"name\":\"evil\"}' WHERE state = 'pending'",
		"result replaced":        "UPDATE proposal SET result = '{}' WHERE state = 'done'",
		"officer replaced":       "UPDATE officer SET spki = x'3000' WHERE name = 'cyd'",
		"officer renamed":        "UPDATE officer SET name = 'eve' WHERE name = 'cyd'",
		"officer removed":        "DELETE FROM officer WHERE name = 'cyd'",
		"quorum lowered":         "UPDATE roster SET quorum = 1",
		"signature in the entry": "DROP TRIGGER ledger_leaf_keep_u; UPDATE ledger_leaf SET leaf = substr(leaf, 1, length(leaf) - 1) || x'00' WHERE idx = (SELECT max(leaf) FROM vote)",
	} {
		t.Run(name, func(t *testing.T) {
			r := newRoom(t, 2, "ada", "bob", "cyd")
			r.run()
			a := r.propose("k1")
			for i := range 2 {
				if err := r.approve(i, a.ID, a.Proposal); err != nil {
					t.Fatal(err)
				}
			}
			r.wait(a.ID, admin.Done)
			r.propose("k2")
			if rep, err := audit.Verify(t.Context(), r.db, nil); err != nil || rep.Grants != 1 {
				t.Fatalf("before: %+v %v", rep, err)
			}
			exec(r, change)
			_, err := audit.Verify(t.Context(), r.db, nil)
			var v *audit.Violation
			if !errors.As(err, &v) {
				t.Errorf("verify: %v; want a violation", err)
			}
			t.Log(err)
		})
	}
}

// Leaves that the board would never write are noticed, although rows and tree agree.
func TestForgedDecisions(t *testing.T) {
	for name, forge := range map[string]func(r *room, f *audit.Fields, a *admin.Approval) audit.Op{
		"key without a grant": func(*room, *audit.Fields, *admin.Approval) audit.Op { return audit.OpKeyGenerate },
		"key with a grant that was never made": func(_ *room, f *audit.Fields, _ *admin.Approval) audit.Op {
			f.Hash(audit.TagGrant, [32]byte{9})
			return audit.OpKeyGenerate
		},
		"grant without votes": func(_ *room, f *audit.Fields, a *admin.Approval) audit.Op {
			f.Hash(audit.TagProposalHash, a.Hash)
			f.Hash(audit.TagGrant, admin.GrantHash(a.Hash, nil))
			return audit.OpGrant
		},
		"vote that nobody signed": func(r *room, f *audit.Fields, a *admin.Approval) audit.Op {
			f.Hash(audit.TagProposalHash, a.Hash)
			f.Hash(audit.TagOfficer, sha256.Sum256(r.roster.Officers[0].SPKI))
			f.Uint8(audit.TagDecision, 1)
			f.Bytes(audit.TagVote, []byte{0x30, 0})
			return audit.OpVote
		},
		"vote on nothing": func(_ *room, f *audit.Fields, _ *admin.Approval) audit.Op {
			f.Hash(audit.TagProposalHash, [32]byte{9})
			return audit.OpVote
		},
		"result without a grant": func(_ *room, f *audit.Fields, a *admin.Approval) audit.Op {
			f.Hash(audit.TagProposalHash, a.Hash)
			f.Text(audit.TagOutcome, "done")
			return audit.OpGrantResult
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRoom(t, 2, "ada", "bob", "cyd")
			a := r.propose("k1")
			r.verify()
			var f audit.Fields
			op := forge(r, &f, a)
			must(r.ledger.Append(t.Context(), audit.Event(op, f)))
			_, err := audit.Verify(t.Context(), r.db, nil)
			var v *audit.Violation
			if !errors.As(err, &v) {
				t.Errorf("verify: %v; want a violation", err)
			}
			t.Log(err)
		})
	}
}
