package hsmstore_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"chancery/audit"
	"chancery/hsmstore"
)

// kill ends a member's worker and waits until another one is up.
func (c *cluster) kill(t *testing.T, member string) {
	t.Helper()
	starts := c.status(member).Starts
	if p := c.store.WorkerProcess(member); p == nil {
		t.Fatalf("member %s has no worker", member)
	} else if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	c.await(t, member, func(s hsmstore.MemberStatus) bool { return s.State == hsmstore.Up && s.Starts > starts })
}

func (c *cluster) status(member string) hsmstore.MemberStatus {
	for _, s := range c.store.Members() {
		if s.Name == member {
			return s
		}
	}
	return hsmstore.MemberStatus{}
}

func (c *cluster) await(t *testing.T, member string, ok func(hsmstore.MemberStatus) bool) time.Duration {
	t.Helper()
	began := time.Now()
	for !ok(c.status(member)) {
		if time.Since(began) > 20*time.Second {
			t.Fatalf("member %s stays %+v", member, c.status(member))
		}
		time.Sleep(time.Millisecond)
	}
	return time.Since(began)
}

// load runs n callers of the whole door until stop; every error is counted.
func (c *cluster) load(t *testing.T, n int) (stop func() (done, failed int64, worst time.Duration)) {
	k := c.key(t, "issuing")
	var done, failed, worst atomic.Int64
	var wg sync.WaitGroup
	var end atomic.Bool
	for range n {
		req := issue(t, k)
		wg.Go(func() {
			for !end.Load() {
				began := time.Now()
				if err := once(context.Background(), k, req); err != nil {
					t.Error("caller error:", err)
					failed.Add(1)
				} else {
					done.Add(1)
				}
				if d := int64(time.Since(began)); d > worst.Load() {
					worst.Store(d)
				}
			}
		})
	}
	return func() (int64, int64, time.Duration) {
		end.Store(true)
		wg.Wait()
		return done.Load(), failed.Load(), time.Duration(worst.Load())
	}
}

func TestKillWorkerUnderLoad(t *testing.T) {
	c := newCluster(t)
	stop := c.load(t, 24)
	time.Sleep(200 * time.Millisecond)
	for _, m := range []string{"m1", "m2", "m1"} {
		starts := c.status(m).Starts
		if err := c.store.WorkerProcess(m).Kill(); err != nil {
			t.Fatal(err)
		}
		back := c.await(t, m, func(s hsmstore.MemberStatus) bool { return s.State == hsmstore.Up && s.Starts > starts })
		t.Logf("member %s is back after %v", m, back)
		time.Sleep(200 * time.Millisecond)
	}
	done, failed, worst := stop()
	t.Logf("%d certificates, %d errors, worst call %v", done, failed, worst)
	if failed != 0 || done == 0 {
		t.Errorf("%d of %d callers saw an error", failed, done)
	}
	for i := range c.db.size() {
		if l := c.db.leaf(i); l.Kind == audit.KindFailed || l.Kind == audit.KindOrphan {
			t.Errorf("leaf %d is %s", i, l.Kind)
		}
	}
}

// hang stops a worker as a vendor module that never returns would.
func (c *cluster) hang(t *testing.T, member string) {
	t.Helper()
	p := c.store.WorkerProcess(member)
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Pid)); err == nil && strings.Contains(string(b), ") T ") {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("worker %d does not stop", p.Pid)
}

func TestAttack_HSM_04_HangUnderLoad(t *testing.T) {
	c := newCluster(t, func(cfg *hsmstore.Config) { cfg.SignTimeout = 500 * time.Millisecond })
	stop := c.load(t, 8)
	time.Sleep(200 * time.Millisecond)
	starts := c.status("m2").Starts
	c.hang(t, "m2")
	back := c.await(t, "m2", func(s hsmstore.MemberStatus) bool { return s.State == hsmstore.Up && s.Starts > starts })
	done, failed, worst := stop()
	t.Logf("%d certificates, %d errors, worst call %v, hung member back after %v", done, failed, worst, back)
	if failed != 0 || worst > 3*time.Second {
		t.Errorf("%d errors, worst call %v", failed, worst)
	}
}

// An idle member that hangs is found by its probe.
func TestProbeFindsHang(t *testing.T) {
	c := newCluster(t, func(cfg *hsmstore.Config) { cfg.SignTimeout = 200 * time.Millisecond })
	starts := c.status("m1").Starts
	c.hang(t, "m1")
	c.store.ProbeNow(t.Context())
	c.await(t, "m1", func(s hsmstore.MemberStatus) bool { return s.State == hsmstore.Up && s.Starts > starts })
}

// away takes the token out of a member; back puts it in again.
func (c *cluster) away(t *testing.T, member string) (back func()) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(c.dir, "hsm", member, "tokens", "*"))
	if err != nil || len(found) != 1 {
		t.Fatal(found, err)
	}
	pocket := filepath.Join(c.dir, member+".away")
	if err := os.Rename(found[0], pocket); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Rename(pocket, found[0]); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTokenGoneAndBack(t *testing.T) {
	c := newCluster(t)
	back := c.away(t, "m1")
	stop := c.load(t, 4)
	c.await(t, "m1", func(s hsmstore.MemberStatus) bool { return s.State == hsmstore.Down && s.Starts > 1 })
	if err := c.status("m1").Err; !errors.Is(err, hsmstore.ErrToken) {
		t.Errorf("without its token: %v", err)
	}
	back()
	c.await(t, "m1", func(s hsmstore.MemberStatus) bool { return s.State == hsmstore.Up })
	if _, failed, _ := stop(); failed != 0 {
		t.Errorf("%d errors", failed)
	}
}

func TestBalance(t *testing.T) {
	c := newCluster(t)
	stop := c.load(t, 8)
	time.Sleep(500 * time.Millisecond)
	stop()
	a, b := c.status("m1").Calls, c.status("m2").Calls
	if a*3 < b || b*3 < a {
		t.Errorf("calls %d and %d", a, b)
	}
}

func TestWrongPIN(t *testing.T) {
	c := copyCluster(t)
	asked := 0
	c.members[1].PIN = func() (string, error) { asked++; return "wrong-pin-canary", nil }
	stop, err := c.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	time.Sleep(300 * time.Millisecond) // more than several restarts would take
	st := c.status("m2")
	if st.State != hsmstore.Fenced || !errors.Is(st.Err, hsmstore.ErrPIN) || st.Starts != 1 || asked != 1 {
		t.Errorf("%+v after %d questions for the PIN", st, asked)
	}
	if err := once(t.Context(), c.key(t, "issuing"), issue(t, nil)); err != nil {
		t.Errorf("the other member: %v", err)
	}
	if strings.Contains(c.log.String(), "wrong-pin-canary") {
		t.Error("the PIN is in the log")
	}
}

func TestOpenSaysWhy(t *testing.T) {
	writable := filepath.Join(t.TempDir(), "evil.so")
	if err := os.WriteFile(writable, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(writable, 0o666); err != nil {
		t.Fatal(err)
	}
	notModule := filepath.Join(t.TempDir(), "not.so")
	if err := os.WriteFile(notModule, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		what   string
		change func(*hsmstore.MemberConfig)
		want   error
	}{
		{"missing module", func(m *hsmstore.MemberConfig) { m.Module = "/nowhere/lib.so" }, hsmstore.ErrModule},
		{"module that anyone can write", func(m *hsmstore.MemberConfig) { m.Module = writable }, hsmstore.ErrModule},
		{"no module at all", func(m *hsmstore.MemberConfig) { m.Module = notModule }, hsmstore.ErrModule},
		{"wrong PIN", func(m *hsmstore.MemberConfig) { m.PIN = func() (string, error) { return "0000", nil } }, hsmstore.ErrPIN},
		{"no such token", func(m *hsmstore.MemberConfig) { m.TokenLabel = "other" }, hsmstore.ErrToken},
		{"foreign token", func(m *hsmstore.MemberConfig) { m.TokenSerial = "0123456789abcdef" }, hsmstore.ErrToken},
	} {
		t.Run(tc.what, func(t *testing.T) {
			c := copyCluster(t)
			c.members = c.members[:1]
			tc.change(&c.members[0])
			stop, err := c.open(t.Context(), func(cfg *hsmstore.Config) { cfg.Enrolled = nil })
			if err == nil {
				stop()
			}
			if !errors.Is(err, tc.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v", err)
			}
		})
	}
	if _, err := hsmstore.Open(t.Context(), hsmstore.Config{Members: copyCluster(t).members}); err == nil {
		t.Error("opened without a ledger")
	}
}

func TestAllMembersDown(t *testing.T) {
	c := newCluster(t, func(cfg *hsmstore.Config) { cfg.SignTimeout = 300 * time.Millisecond })
	k := c.key(t, "issuing")
	req := issue(t, k)
	op, err := k.Begin(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range c.members {
		c.away(t, m.Name)
		_ = c.store.WorkerProcess(m.Name).Kill()
		c.await(t, m.Name, func(s hsmstore.MemberStatus) bool { return s.State == hsmstore.Down && s.Starts > 1 })
	}
	size := c.db.size()
	if _, err := k.Begin(t.Context(), issue(t, k)); !errors.Is(err, hsmstore.ErrUnavailable) {
		t.Errorf("Begin: %v", err)
	}
	if c.db.size() != size || c.store.Ready() {
		t.Error("an intent was written, or the store calls itself ready")
	}
	if _, err := op.SignMessage(nil, req.Message, k.Hash()); !errors.Is(err, hsmstore.ErrUnavailable) {
		t.Errorf("SignMessage: %v", err)
	}
	if err := op.Close(); err != nil || c.db.closing(op.Index()) != audit.KindFailed {
		t.Errorf("closed as %v: %v", c.db.closing(op.Index()), err)
	}
}

func TestAttack_HSM_19_QueueIsBounded(t *testing.T) {
	c := newCluster(t, func(cfg *hsmstore.Config) { cfg.Queue = 4 })
	k := c.key(t, "issuing")
	var ops []*hsmstore.Operation
	for range 3 { // of four: the last is for what is more urgent
		op, err := k.Begin(t.Context(), issue(t, k))
		if err != nil {
			t.Fatal(err)
		}
		ops = append(ops, op)
	}
	size := c.db.size()
	if _, err := k.Begin(t.Context(), issue(t, k)); !errors.Is(err, hsmstore.ErrBusy) || c.db.size() != size {
		t.Errorf("fourth operation: %v", err)
	}
	urgent := issue(t, k)
	urgent.Class = hsmstore.ClassRevocation
	op, err := k.Begin(t.Context(), urgent)
	if err != nil {
		t.Fatalf("what is urgent finds no place: %v", err)
	}
	ops = append(ops, op)
	if _, err := k.Begin(t.Context(), urgent); !errors.Is(err, hsmstore.ErrBusy) {
		t.Errorf("fifth operation: %v", err)
	}
	for _, op := range ops {
		if err := op.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := once(t.Context(), k, issue(t, k)); err != nil {
		t.Errorf("after the others closed: %v", err)
	}
}

// A signature that does not verify with the pinned key is not released, and a
// member that makes two of them is fenced.
func TestWrongSignatureFences(t *testing.T) {
	c := newCluster(t, func(cfg *hsmstore.Config) { cfg.Members = cfg.Members[:1]; cfg.SignTimeout = 300 * time.Millisecond })
	k := c.key(t, "issuing")
	req := issue(t, k)
	op, err := k.Begin(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	k.SetPinned(lintKey().Public())
	if _, err := op.SignMessage(nil, req.Message, k.Hash()); !errors.Is(err, hsmstore.ErrUnavailable) {
		t.Errorf("SignMessage: %v", err)
	}
	c.await(t, "m1", func(s hsmstore.MemberStatus) bool { return s.State == hsmstore.Fenced })
	if err := op.Close(); err != nil || c.db.closing(op.Index()) != audit.KindOrphan {
		t.Errorf("closed as %v: %v", c.db.closing(op.Index()), err)
	}
}

// Ten thousand callers at once: what finds no place is told so before any intent, what
// was begun is finished, and nothing is lost.
func TestAttack_HSM_19_TenThousandCallers(t *testing.T) {
	c := newCluster(t, func(cfg *hsmstore.Config) { cfg.Queue = 1000 })
	k := c.key(t, "document")
	req := hsmstore.SignRequest{Op: audit.OpCMS, Message: attributes(oidData, 32), Requester: "test"}
	before := c.db.size()
	var done, busy atomic.Int64
	var wg sync.WaitGroup
	for range 10_000 {
		wg.Go(func() {
			switch err := once(t.Context(), k, req); {
			case err == nil:
				done.Add(1)
			case errors.Is(err, hsmstore.ErrBusy):
				busy.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if done.Load() < 750 || busy.Load() == 0 {
		t.Errorf("%d done, %d told to wait", done.Load(), busy.Load())
	}
	if n := c.db.size() - before; n != 2*uint64(done.Load()) {
		t.Errorf("%d leaves for %d signatures", n, done.Load())
	}
	c.nothingHeld(t)
}
