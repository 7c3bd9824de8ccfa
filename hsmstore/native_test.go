package hsmstore_test

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chancery/audit"
	"chancery/hsmstore"
	"chancery/test/hsmfault"

	"github.com/miekg/pkcs11"
)

// vendor is a store whose only member is a vendor's cluster behind one module: keys
// are copied by the vendor, its nodes come and go.
func vendor(t testing.TB, sessions int, change ...func(*hsmstore.Config)) (*faulty, *hsmfault.Control) {
	t.Helper()
	f := copyFaulty(t)
	f.members = f.members[:1]
	f.members[0].Replication, f.members[0].Sessions = hsmstore.ReplicateNative, sessions
	f.ctl["m1"].SetNoExport(true)
	alone := func(cfg *hsmstore.Config) {
		cfg.Enrolled = cfg.Enrolled[:1]
		cfg.Enrolled[0].Replication = hsmstore.ReplicateNative
		cfg.SignTimeout = 2 * time.Second
	}
	f.start(t, append([]func(*hsmstore.Config){alone}, change...)...)
	return f, f.ctl["m1"]
}

// What a vendor's cluster does on its bad days reaches no caller, although there is
// no other member.
func TestNativeUnderLoad(t *testing.T) {
	for _, tc := range []struct {
		name    string
		restart bool // the worker is expected to end
		inject  func(*hsmfault.Control)
	}{
		{"throttled, SDK 5", false, func(c *hsmfault.Control) { c.SetThrottle(200, pkcs11.CKR_FUNCTION_FAILED) }},
		{"throttled, SDK 3", false, func(c *hsmfault.Control) { c.SetThrottle(200, pkcs11.CKR_OPERATION_ACTIVE) }},
		{"failover", true, func(c *hsmfault.Control) { c.Failover(pkcs11.CKR_SESSION_HANDLE_INVALID) }},
		{"failover with device errors", true, func(c *hsmfault.Control) { c.Failover(pkcs11.CKR_DEVICE_ERROR) }},
		{"calls lost on their way", true, func(c *hsmfault.Control) {
			c.SetLatency(2 * time.Millisecond) // so that there are some
			c.FailInFlight(pkcs11.CKR_DEVICE_ERROR)
			c.FailSign(pkcs11.CKR_DEVICE_ERROR, 1)
		}},
		{"stalled", false, func(c *hsmfault.Control) { c.Stall(200 * time.Millisecond) }},
		{"flaky", false, func(c *hsmfault.Control) { c.FailSign(pkcs11.CKR_DEVICE_MEMORY, 50) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			f, ctl := vendor(t, 0)
			l := f.loading(t, 24)
			l.more(t, 100)
			starts, began := f.status("m1").Starts, time.Now()
			tc.inject(ctl)
			before := l.done.Load()
			if tc.restart {
				f.await(t, "m1", func(s hsmstore.MemberStatus) bool { return isUp(s) && s.Starts > starts })
			} else if time.Sleep(1500 * time.Millisecond); f.status("m1").Starts != starts { // a window of the throttle and a half
				t.Error("the worker was given up")
			}
			l.more(t, before+50)
			l.stop()
			t.Logf("%d certificates, %d of them in %v since, %d errors, worst call %v", l.done.Load(), l.done.Load()-before, time.Since(began).Round(time.Millisecond), l.failed.Load(), time.Duration(l.worst.Load()).Round(time.Millisecond))
			f.settled(t)
		})
	}
}

// A session bound of the HSM is taken as it is, at the start and while it runs.
func TestNativeSessionCap(t *testing.T) {
	f, ctl := vendor(t, 0)
	if n := f.status("m1").Sessions; n != 4 {
		t.Errorf("%d sessions without a cap", n)
	}
	ctl.SetSessionCap(3)
	l := f.loading(t, 24)
	l.more(t, 100)
	starts := f.status("m1").Starts
	must(f.store.WorkerProcess("m1").Kill())
	f.await(t, "m1", func(s hsmstore.MemberStatus) bool { return isUp(s) && s.Starts > starts })
	l.more(t, l.done.Load()+100)
	ctl.SetLatency(3 * time.Millisecond) // now more would help
	l.more(t, l.done.Load()+200)
	if n := f.status("m1").Sessions; n != 2 || ctl.Sessions() != 3 { // one of three is for control
		t.Errorf("%d sessions sign, %d are open, under a cap of 3", n, ctl.Sessions())
	}
	l.stop()
	f.settled(t)
}

// signing runs callers that sign without the ledger, for a while, and returns the rate.
func (c *cluster) signing(t testing.TB, callers int, d time.Duration) float64 {
	t.Helper()
	k := c.key(t, "issuing")
	message := issue(t, k).Message
	var n atomic.Int64
	var wg sync.WaitGroup
	began := time.Now()
	for range callers {
		wg.Go(func() {
			for time.Since(began) < d {
				if _, err := c.store.SignRaw(context.Background(), k, 7, message); err != nil {
					t.Error(err)
					return
				}
				n.Add(1)
			}
		})
	}
	wg.Wait()
	return float64(n.Load()) / time.Since(began).Seconds()
}

// With a long way to the HSM the number of sessions grows, and the rate with it. A
// signature is two calls of the module, C_SignInit and C_Sign.
func TestNativeRateFollowsSessions(t *testing.T) {
	const way = 5 * time.Millisecond
	for _, sessions := range []int{4, 16} {
		f, ctl := vendor(t, sessions)
		ctl.SetLatency(way)
		f.signing(t, 2*sessions, 500*time.Millisecond) // grows
		if n := f.status("m1").Sessions; n != int64(sessions) {
			t.Errorf("%d sessions of %d", n, sessions)
		}
		rate := f.signing(t, 2*sessions, time.Second)
		limit := float64(sessions) / (2 * way).Seconds()
		t.Logf("%d sessions: %.0f/s of %.0f/s", sessions, rate, limit)
		if rate < 0.7*limit {
			t.Errorf("%d sessions make %.0f signatures/s, %.0f are possible", sessions, rate, limit)
		}
	}
}

// A key that is born in a vendor's cluster cannot leave it, and is used only when all
// nodes have it.
func TestAttack_HSM_14_NativeBirth(t *testing.T) {
	f, ctl := vendor(t, 0)
	ctl.SetInvisible(300 * time.Millisecond)
	ctl.SetFlaky(600*time.Millisecond, 500)
	spec := hsmstore.KeySpec{Name: "native", Purpose: audit.PurposeIssuer, Algorithm: "P-256", Subject: name("Native CA")}
	began := time.Now()
	if _, err := f.store.GenerateKey(t.Context(), granting(spec.Act()), spec); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	if took < 300*time.Millisecond {
		t.Errorf("the key was usable after %v, when no other node can have it", took)
	}
	k := f.key(t, "native")
	for range 50 {
		serial := newSerial()
		req := hsmstore.SignRequest{Op: audit.OpCertificate, Message: tbs(t, "Native CA", serial), Serial: serial.Bytes()}
		if err := once(t.Context(), k, req); err != nil {
			t.Fatal(err)
		}
	}
	found := false
	look(t, layout(f.dir, "m1"), func(get func(uint) []byte, class uint) {
		if class != pkcs11.CKO_PRIVATE_KEY || !strings.HasSuffix(string(get(pkcs11.CKA_LABEL)), ":native") {
			return
		}
		found = true
		if get(pkcs11.CKA_EXTRACTABLE)[0] != 0 || get(pkcs11.CKA_NEVER_EXTRACTABLE)[0] != 1 || get(pkcs11.CKA_SENSITIVE)[0] != 1 {
			t.Error("the key can leave")
		}
	})
	if !found {
		t.Error("the key is not on the token")
	}
	f.settled(t)
}
