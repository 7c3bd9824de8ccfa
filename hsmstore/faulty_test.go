package hsmstore_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"chancery/audit"
	"chancery/hsmstore"
	"chancery/test/hsmfault"

	"github.com/miekg/pkcs11"
)

// faultyTimeout is the SignTimeout of the tests with faults.
const faultyTimeout = 500 * time.Millisecond

// faulty is a copy of the template whose members have the fault-injecting module
// between worker and token.
type faulty struct {
	*cluster
	ctl map[string]*hsmfault.Control
}

// copyFaulty is copyCluster behind the module; it is not open yet.
func copyFaulty(t testing.TB) *faulty {
	t.Helper()
	lib := hsmfault.Build(t)
	f := &faulty{cluster: copyCluster(t), ctl: map[string]*hsmfault.Control{}}
	for i := range f.members {
		m := &f.members[i]
		ctl := hsmfault.New(t, filepath.Join(f.dir, m.Name+".control"))
		ctl.Delegate(m.Module)
		m.Module, m.Env = lib, append(slices.Clone(m.Env), ctl.Env()...)
		f.ctl[m.Name] = ctl
	}
	return f
}

func newFaulty(t testing.TB, change ...func(*hsmstore.Config)) *faulty {
	t.Helper()
	f := copyFaulty(t)
	f.start(t, change...)
	return f
}

// start opens the store until the end of the test.
func (f *faulty) start(t testing.TB, change ...func(*hsmstore.Config)) {
	t.Helper()
	quick := func(cfg *hsmstore.Config) { cfg.SignTimeout = faultyTimeout }
	stop, err := f.open(context.Background(), append([]func(*hsmstore.Config){quick}, change...)...)
	if err != nil {
		t.Fatalf("opening the store: %v\n%s", err, f.log)
	}
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			t.Logf("end of the log:\n%s", f.log.last(6000))
		}
	})
}

// last is the end of the log.
func (l *logBuffer) last(n int) string {
	s := l.String()
	return s[max(0, len(s)-n):]
}

// loading is a load of the whole door that can be looked at while it runs.
type loading struct {
	done, failed, worst atomic.Int64
	end                 atomic.Bool
	wg                  sync.WaitGroup
}

func (c *cluster) loading(t *testing.T, callers int) *loading {
	t.Helper()
	k := c.key(t, "issuing")
	l := &loading{}
	for range callers {
		req := issue(t, k)
		l.wg.Go(func() {
			for !l.end.Load() {
				began := time.Now()
				if err := once(context.Background(), k, req); err != nil {
					l.failed.Add(1)
					t.Error("caller error:", err)
					return
				}
				l.done.Add(1)
				took := int64(time.Since(began))
				for old := l.worst.Load(); took > old && !l.worst.CompareAndSwap(old, took); old = l.worst.Load() {
				}
			}
		})
	}
	t.Cleanup(l.stop)
	return l
}

func (l *loading) stop() {
	l.end.Store(true)
	l.wg.Wait()
}

// more waits until so many calls more have ended well.
func (l *loading) more(t *testing.T, n int64) {
	t.Helper()
	until(t, "the load to go on", func() bool { return l.done.Load() >= n })
}

// until waits for what other processes bring about and nobody announces.
func until(t *testing.T, what string, ok func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for !ok() {
		if time.Since(began) > 20*time.Second {
			t.Fatal("waited 20 s for", what)
		}
		time.Sleep(time.Millisecond)
	}
	return time.Since(began)
}

// settled looks at what the ledger says after a load: every intent is done.
func (c *cluster) settled(t *testing.T) {
	t.Helper()
	for i := range c.db.size() {
		if l := c.db.leaf(i); l.Kind == audit.KindFailed || l.Kind == audit.KindOrphan {
			t.Errorf("leaf %d is %s", i, l.Kind)
		}
	}
	if open, err := c.ledger.OpenIntents(context.Background()); len(open) != 0 || err != nil {
		t.Errorf("%d intents are open (%v)", len(open), err)
	}
}

func isUp(s hsmstore.MemberStatus) bool { return s.State == hsmstore.Up }

// TestAttack_HSM_03_FaultUnderLoad lets member m2 of two fail in one way after another while 24
// callers issue. Nobody may see an error or wait longer than one deadline and a
// little, nothing may be left on the ledger, and the member comes back by itself.
func TestAttack_HSM_03_FaultUnderLoad(t *testing.T) {
	const lasting = 5 * time.Second
	failing := func(fn hsmfault.Function, rv hsmfault.CKR) func(*testing.T, *faulty) func() {
		return func(t *testing.T, f *faulty) func() {
			f.ctl["m2"].Fail(fn, rv, hsmfault.Always)
			return func() { f.ctl["m2"].Heal(fn) }
		}
	}
	for _, tc := range []struct {
		name   string
		lasts  time.Duration // 0: it is over when it has happened
		inject func(*testing.T, *faulty) (cure func())
	}{
		{"kill -9 of the worker", 0, func(t *testing.T, f *faulty) func() {
			must(f.store.WorkerProcess("m2").Kill())
			return nil
		}},
		{"SIGSEGV in the module", 0, func(t *testing.T, f *faulty) func() {
			f.ctl["m2"].Crash(hsmfault.Sign, hsmfault.Segfault, 1)
			return nil
		}},
		{"sessions closed behind our back", 0, func(t *testing.T, f *faulty) func() {
			f.ctl["m2"].CloseSessions()
			return nil
		}},
		{"failover inside the module", 0, func(t *testing.T, f *faulty) func() {
			f.ctl["m2"].Failover(pkcs11.CKR_SESSION_HANDLE_INVALID)
			return nil
		}},
		{"calls lost on their way", 0, func(t *testing.T, f *faulty) func() {
			f.ctl["m2"].FailInFlight(pkcs11.CKR_DEVICE_ERROR)
			f.ctl["m2"].FailSign(pkcs11.CKR_DEVICE_ERROR, 1) // if none was on its way
			return nil
		}},
		{"token folder moved away", time.Second, func(t *testing.T, f *faulty) func() { return f.away(t, "m2") }},
		{"SIGSTOP", lasting, func(t *testing.T, f *faulty) func() {
			p := f.store.WorkerProcess("m2")
			f.hang(t, "m2")
			return func() { _ = p.Signal(syscall.SIGCONT) }
		}},
		{"hang in the module", lasting, func(t *testing.T, f *faulty) func() {
			f.ctl["m2"].Hang(hsmfault.Sign)
			return f.ctl["m2"].Release
		}},
		{"CKR_DEVICE_ERROR", lasting, failing(hsmfault.Sign, pkcs11.CKR_DEVICE_ERROR)},
		{"CKR_DEVICE_REMOVED", lasting, failing(hsmfault.Any, pkcs11.CKR_DEVICE_REMOVED)},
		{"CKR_TOKEN_NOT_PRESENT", lasting, failing(hsmfault.SignInit, pkcs11.CKR_TOKEN_NOT_PRESENT)},
		{"token out of its slot", lasting, func(t *testing.T, f *faulty) func() {
			f.ctl["m2"].SetAbsent(true)
			return func() { f.ctl["m2"].SetAbsent(false) }
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			f := newFaulty(t)
			l := f.loading(t, 24)
			l.more(t, 100)
			starts, before := f.status("m2").Starts, l.done.Load()
			cure := tc.inject(t, f)
			f.await(t, "m2", func(s hsmstore.MemberStatus) bool { return s.State != hsmstore.Up || s.Starts > starts })
			if tc.lasts > 0 {
				time.Sleep(tc.lasts) // the fault is one of that length
			}
			during := l.done.Load() - before
			if cure != nil {
				cure()
			}
			back := f.await(t, "m2", func(s hsmstore.MemberStatus) bool { return isUp(s) && s.Starts > starts })
			calls := f.status("m2").Calls
			f.await(t, "m2", func(s hsmstore.MemberStatus) bool { return s.Calls > calls+20 })
			l.stop()
			done, failed, worst := l.done.Load(), l.failed.Load(), time.Duration(l.worst.Load())
			t.Logf("%d certificates, %d of them during the fault, %d errors, worst call %v, member back after %v", done, during, failed, worst.Round(time.Millisecond), back.Round(time.Millisecond))
			if tc.lasts > 0 && during == 0 {
				t.Error("nothing was signed during the fault")
			}
			if worst > faultyTimeout+150*time.Millisecond {
				t.Errorf("the worst call took %v", worst)
			}
			if back > time.Second {
				t.Errorf("the member was back after %v", back)
			}
			f.settled(t)
		})
	}
}

// initToken wipes the token of a member and initializes it anew; with fresh another
// one is put in its place, which has another serial number.
func (c *cluster) initToken(t *testing.T, m hsmstore.MemberConfig, label string, fresh bool) {
	t.Helper()
	m.Env, m.Module = m.Env[:1], layout(c.dir, m.Name).Module
	if fresh {
		c.away(t, m.Name)
		if err := hsmstore.InitToken(context.Background(), m, label); err != nil {
			t.Fatal(err)
		}
		return
	}
	inToken(t, m, func(p *pkcs11.Ctx, session pkcs11.SessionHandle) {
		slots, err := p.GetSlotList(true)
		must(err)
		must(p.CloseAllSessions(slots[0]))
		so, err := m.SOPIN()
		must(err)
		pin, err := m.PIN()
		must(err)
		must(p.InitToken(slots[0], so, label))
		s, err := p.OpenSession(slots[0], pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		must(err)
		must(p.Login(s, pkcs11.CKU_SO, so))
		must(p.InitPIN(s, pin))
	})
}

// A token that is not the enrolled one, or was wiped, is never used, also when its
// label, PIN and serial number are right. The other member goes on.
func TestForeignToken(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*testing.T, *faulty)
		state  hsmstore.State
	}{
		{"initialized anew with its label", func(t *testing.T, f *faulty) {
			f.initToken(t, f.members[1], f.members[1].TokenLabel, false)
		}, hsmstore.Fenced},
		{"initialized anew with another label", func(t *testing.T, f *faulty) {
			f.initToken(t, f.members[1], "wiped", false)
		}, hsmstore.Fenced},
		{"another token with its label", func(t *testing.T, f *faulty) {
			f.initToken(t, f.members[1], f.members[1].TokenLabel, true)
		}, hsmstore.Fenced},
		{"another token with another label", func(t *testing.T, f *faulty) {
			f.initToken(t, f.members[1], "stranger", true)
		}, hsmstore.Fenced},
		{"another serial number", func(t *testing.T, f *faulty) { f.ctl["m2"].SetSerial("0123456789abcdef") }, hsmstore.Fenced},
		// The token of another member is known: this can be a module with the tokens of
		// both, one of which cannot be reached now.
		{"the token of the other member", func(t *testing.T, f *faulty) {
			f.away(t, "m2")
			must(os.CopyFS(filepath.Join(f.dir, "hsm", "m2", "tokens"), os.DirFS(filepath.Join(f.dir, "hsm", "m1", "tokens"))))
		}, hsmstore.Down},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFaulty(t)
			starts := f.status("m2").Starts
			tc.change(t, f)
			l := f.loading(t, 4)
			f.endWorker("m2")
			f.await(t, "m2", func(s hsmstore.MemberStatus) bool { return s.State == tc.state && s.Starts > starts })
			if tc.state == hsmstore.Down {
				f.await(t, "m2", func(s hsmstore.MemberStatus) bool { return s.Starts > starts+2 })
			}
			if st := f.status("m2"); !errors.Is(st.Err, hsmstore.ErrToken) {
				t.Errorf("error %v", st.Err)
			}
			calls := f.status("m2").Calls
			l.more(t, l.done.Load()+50)
			l.stop()
			if st := f.status("m2"); isUp(st) || st.Calls != calls {
				t.Errorf("the member is used: %+v", st)
			}
			f.settled(t)
		})
	}
}

// endWorker kills a worker that may have ended already.
func (c *cluster) endWorker(member string) {
	if p := c.store.WorkerProcess(member); p != nil {
		_ = p.Kill()
	}
}

// A fenced member stays out when its token is back, until a person admits it.
func TestForeignTokenStaysFenced(t *testing.T) {
	f := newFaulty(t)
	f.ctl["m2"].SetSerial("0123456789abcdef")
	must(f.store.WorkerProcess("m2").Kill())
	f.await(t, "m2", func(s hsmstore.MemberStatus) bool { return s.State == hsmstore.Fenced })
	starts := f.status("m2").Starts
	f.ctl["m2"].ResetCounts()
	f.ctl["m2"].SetSerial("")
	f.kill(t, "m1") // a whole restart of the other one takes longer than any retry would
	time.Sleep(hsmstore.BackoffMax)
	if st := f.status("m2"); st.State != hsmstore.Fenced || st.Starts != starts || f.ctl["m2"].Count(hsmfault.Initialize) != 0 {
		t.Errorf("a fenced member was tried: %+v", st)
	}
	if err := f.store.Admit(t.Context(), "m2", "the right token is back"); err != nil {
		t.Fatal(err)
	}
	f.await(t, "m2", isUp)
}

// A PIN that is not accepted is tried once. People are told.
func TestAttack_HSM_01_WrongPINIsTriedOnce(t *testing.T) {
	f := newFaulty(t)
	ctl := f.ctl["m2"]
	ctl.FailLogin(pkcs11.CKR_PIN_INCORRECT, hsmfault.Always)
	ctl.ResetCounts()
	l := f.loading(t, 4)
	must(f.store.WorkerProcess("m2").Kill())
	f.await(t, "m2", func(s hsmstore.MemberStatus) bool { return s.State == hsmstore.Fenced })
	time.Sleep(3 * time.Second) // six times the longest pause between two starts
	if n := ctl.Count(hsmfault.Login); n != 1 {
		t.Errorf("the PIN was tried %d times", n)
	}
	if st := f.status("m2"); st.State != hsmstore.Fenced || !errors.Is(st.Err, hsmstore.ErrPIN) {
		t.Errorf("%+v", st)
	}
	alarm := false
	for line := range strings.Lines(f.log.String()) {
		alarm = alarm || strings.Contains(line, "level=ERROR") && strings.Contains(line, "fenced") && strings.Contains(line, "member=m2")
	}
	if !alarm {
		t.Error("no alarm")
	}
	l.stop()
	f.settled(t)
}

// Signatures that are wrong in any way are never released; the second fences the
// member, on the ledger too, and the other one serves.
func TestWrongSignatures(t *testing.T) {
	for kind, name := range map[hsmfault.WrongKind]string{hsmfault.FlippedBit: "flipped bit", hsmfault.OtherKey: "other key", hsmfault.OtherData: "other data", hsmfault.Truncated: "truncated"} {
		t.Run(name, func(t *testing.T) {
			f := newFaulty(t)
			l := f.loading(t, 8)
			f.ctl["m2"].WrongSignatures(kind, hsmfault.Always)
			f.await(t, "m2", func(s hsmstore.MemberStatus) bool { return s.State == hsmstore.Fenced })
			l.more(t, l.done.Load()+50)
			l.stop()
			until(t, "the leaf", func() bool { return len(f.standings("m2")) > 0 })
			if s := f.standings("m2"); !slices.Equal(s, []string{"fenced"}) {
				t.Errorf("recorded: %v", s)
			}
			if n := strings.Count(f.log.String(), "signature that does not verify"); n < 2 {
				t.Errorf("fenced after %d wrong signatures", n)
			}
			f.settled(t)
		})
	}
}

// standings are what the ledger says was decided about a member.
func (c *cluster) standings(member string) (out []string) {
	for i := range c.db.size() {
		l := c.db.leaf(i)
		if m, _ := l.Get(audit.TagMember); l.Op == audit.OpMemberState && string(m) == member {
			s, _ := l.Get(audit.TagState)
			out = append(out, string(s))
		}
	}
	return out
}

// One wrong signature is a warning; the same operation gets a right one.
func TestOneWrongSignature(t *testing.T) {
	f := newFaulty(t)
	for _, ctl := range f.ctl { // whichever member it meets
		ctl.WrongSignatures(hsmfault.FlippedBit, 1)
	}
	k := f.key(t, "issuing")
	for range 20 { // once verifies nothing itself: the signature is looked at here
		req := issue(t, k)
		op, err := k.Begin(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		sig, err := op.SignMessage(nil, req.Message, k.Hash())
		if err != nil || !verifies(k, req.Message, sig) {
			t.Errorf("released: %x: %v", sig, err)
		}
		if _, err := op.Commit(t.Context(), audit.Done{}); err != nil {
			t.Error(err)
		}
	}
	for _, m := range []string{"m1", "m2"} {
		if st := f.status(m); !isUp(st) {
			t.Errorf("%+v", st)
		}
	}
	if n := strings.Count(f.log.String(), "signature that does not verify"); n != 2 {
		t.Errorf("%d wrong signatures were seen", n)
	}
	f.settled(t)
}

// All members away: nothing is begun, and it goes on by itself when one is back.
func TestAllDownAndBack(t *testing.T) {
	f := newFaulty(t)
	for m, ctl := range f.ctl {
		ctl.SetAbsent(true)
		must(f.store.WorkerProcess(m).Kill())
		f.await(t, m, func(s hsmstore.MemberStatus) bool { return s.State == hsmstore.Down && s.Starts > 1 })
	}
	k := f.key(t, "issuing")
	size := f.db.size()
	began := time.Now()
	if _, err := k.Begin(t.Context(), issue(t, k)); !errors.Is(err, hsmstore.ErrUnavailable) {
		t.Errorf("Begin: %v", err)
	}
	if took := time.Since(began); took > faultyTimeout+150*time.Millisecond { // they may be back at any moment
		t.Errorf("the answer took %v", took)
	}
	began = time.Now()
	if _, err := k.Begin(t.Context(), issue(t, k)); !errors.Is(err, hsmstore.ErrUnavailable) || time.Since(began) > 100*time.Millisecond {
		t.Errorf("a later Begin, after %v: %v", time.Since(began), err)
	}
	if f.db.size() != size || f.store.Ready() {
		t.Error("an intent was written, or the store calls itself ready")
	}
	f.ctl["m1"].SetAbsent(false)
	if back := f.await(t, "m1", isUp); back > time.Second {
		t.Errorf("back after %v", back)
	}
	if err := once(t.Context(), k, issue(t, k)); err != nil || !f.store.Ready() {
		t.Errorf("with one member back: %v", err)
	}
	f.settled(t)
}
