package hsmfault_test

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chancery/test/hsmfault"

	"github.com/miekg/pkcs11"
)

func TestDelegates(t *testing.T) {
	k := newToken(t)
	p := k.signer(t, "k")
	k.ctl.ResetCounts()
	k.good(t, p)
	for f, want := range map[hsmfault.Function]uint64{hsmfault.SignInit: 1, hsmfault.Sign: 1, hsmfault.Any: 2, hsmfault.Login: 0} {
		if got := k.ctl.Count(f); got != want {
			t.Errorf("function %d was called %d times, want %d", f, got, want)
		}
	}
}

func TestLayoutIsChecked(t *testing.T) {
	lib := hsmfault.Build(t)
	path := filepath.Join(t.TempDir(), "control")
	c := hsmfault.New(t, path)
	b, err := os.ReadFile(path)
	must(t, err)
	for name, change := range map[string]func() []byte{
		"other hash": func() []byte { x := bytes.Clone(b); x[0] ^= 1; return x },
		"other size": func() []byte { return append(bytes.Clone(b), 0) },
	} {
		t.Run(name, func(t *testing.T) {
			bad := filepath.Join(t.TempDir(), "control")
			must(t, os.WriteFile(bad, change(), 0o600))
			t.Setenv("HSMFAULT_CONTROL", bad)
			m := pkcs11.New(lib)
			defer m.Destroy()
			wants(t, m.Initialize(), pkcs11.CKR_GENERAL_ERROR)
		})
	}
	if c.Count(hsmfault.Initialize) != 0 {
		t.Error("the module used a control file that it was not given")
	}
}

func TestBuildIsSafeAndCached(t *testing.T) {
	lib := hsmfault.Build(t)
	st, err := os.Stat(lib)
	must(t, err)
	if st.Mode().Perm() != 0o755 {
		t.Errorf("mode %v", st.Mode())
	}
	if dir, err := os.Stat(filepath.Dir(lib)); err != nil || dir.Mode().Perm() != 0o700 {
		t.Errorf("folder %v: %v", dir, err)
	}
	if again := hsmfault.Build(t); again != lib {
		t.Errorf("built again as %s", again)
	}
}

func TestLatency(t *testing.T) {
	k := newToken(t)
	p := k.signer(t, "k")
	k.ctl.SetLatency(20 * time.Millisecond)
	began := time.Now()
	k.good(t, p)
	if d := time.Since(began); d < 40*time.Millisecond {
		t.Errorf("two calls took %v", d)
	}
}

// Signatures of several sessions wait for one another.
func TestCapacity(t *testing.T) {
	k := newToken(t)
	p := k.signer(t, "k")
	k.ctl.SetCapacity(100)
	began := time.Now()
	var wg sync.WaitGroup
	for range 4 {
		s := k.open(t)
		wg.Go(func() {
			for range 3 {
				if _, err := k.signIn(s, p.priv, digest("x")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if d := time.Since(began); d < 115*time.Millisecond || d > 3*time.Second {
		t.Errorf("12 signatures at 100/s took %v", d)
	}
}

func TestMemo(t *testing.T) {
	for _, lazy := range []bool{false, true} {
		k := newToken(t)
		p, q := k.signer(t, "p"), k.signer(t, "q")
		k.ctl.SetMemo(true, lazy)
		d := digest("one")
		first, err := k.sign(p, d)
		must(t, err)
		for range 3 {
			if again, err := k.sign(p, d); err != nil || !bytes.Equal(again, first) {
				t.Fatalf("lazy %t: %x, then %x: %v", lazy, first, again, err)
			}
		}
		if sig, err := k.sign(q, d); err != nil || !q.verify(d, sig) {
			t.Errorf("lazy %t: other key: %v", lazy, err)
		}
		if sig, err := k.sign(p, digest("two")); err != nil || !p.verify(digest("two"), sig) || !p.verify(d, first) {
			t.Errorf("lazy %t: other data: %v", lazy, err)
		}
		k.ctl.SetMemo(false, false)
		if sig, err := k.sign(p, d); err != nil || bytes.Equal(sig, first) {
			t.Errorf("lazy %t: remembered without memo: %v", lazy, err)
		}
		must(t, k.Finalize())
	}
}

// Mechanisms with and without a parameter, and signatures that are the same each time.
func TestMemoRSA(t *testing.T) {
	k := newToken(t)
	public := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_VERIFY, true), pkcs11.NewAttribute(pkcs11.CKA_MODULUS_BITS, 1024), pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1})}
	pub, priv, err := k.GenerateKeyPair(k.s, mechanism(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN), public, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_SIGN, true)})
	must(t, err)
	k.ctl.SetMemo(true, true)
	pss := []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_PSS, pkcs11.NewPSSParams(pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256, 32))}
	for _, m := range [][]*pkcs11.Mechanism{mechanism(pkcs11.CKM_RSA_PKCS), pss} {
		var first []byte
		for range 3 {
			must(t, k.SignInit(k.s, m, priv))
			sig, err := k.Sign(k.s, digest("x"))
			must(t, err)
			if first == nil {
				first = sig
			}
			must(t, k.VerifyInit(k.s, m, pub))
			if err := k.Verify(k.s, digest("x"), sig); err != nil || !bytes.Equal(sig, first) {
				t.Errorf("mechanism %x: %v", m[0].Mechanism, err)
			}
		}
	}
}

func TestSessionCap(t *testing.T) {
	k := newToken(t)
	k.ctl.SetSessionCap(3)
	a := k.open(t)
	k.open(t)
	_, err := k.OpenSession(k.slot, pkcs11.CKF_SERIAL_SESSION)
	wants(t, err, pkcs11.CKR_SESSION_COUNT)
	must(t, k.CloseSession(a))
	hold := k.other(t, "hold", "-")
	in, err := hold.StdinPipe()
	must(t, err)
	out, err := hold.StdoutPipe()
	must(t, err)
	must(t, hold.Start())
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "open\n" {
		t.Fatalf("other process: %q %v", line, err)
	}
	if n := k.ctl.Sessions(); n != 3 {
		t.Errorf("%d sessions", n)
	}
	_, err = k.OpenSession(k.slot, pkcs11.CKF_SERIAL_SESSION)
	wants(t, err, pkcs11.CKR_SESSION_COUNT)
	must(t, hold.Process.Kill()) // its session ends with it
	_ = hold.Wait()
	in.Close()
	k.open(t)
	must(t, k.CloseAllSessions(k.slot))
	if n := k.ctl.Sessions(); n != 0 {
		t.Errorf("%d sessions after all were closed", n)
	}
}

func TestThrottle(t *testing.T) {
	k := newToken(t)
	p := k.signer(t, "k")
	k.ctl.SetThrottle(5, pkcs11.CKR_FUNCTION_FAILED)
	began, refused := time.Now(), 0
	for range 12 {
		if _, err := k.sign(p, digest("x")); err != nil {
			wants(t, err, pkcs11.CKR_FUNCTION_FAILED)
			refused++
		}
	}
	if time.Since(began) < time.Second && refused != 7 {
		t.Errorf("%d of 12 signatures refused", refused)
	}
	k.ctl.SetThrottle(0, 0)
	k.good(t, p)
}

func TestFail(t *testing.T) {
	k := newToken(t)
	p := k.signer(t, "k")
	k.ctl.FailSign(pkcs11.CKR_DEVICE_MEMORY, 2)
	for range 2 {
		_, err := k.sign(p, digest("x"))
		wants(t, err, pkcs11.CKR_DEVICE_MEMORY)
		if !strings.HasPrefix(err.Error(), "C_Sign:") {
			t.Error(err)
		}
	}
	k.good(t, p)

	k.ctl.Fail(hsmfault.Any, pkcs11.CKR_DEVICE_REMOVED, hsmfault.Always)
	for range 3 {
		_, err := k.GetSessionInfo(k.s)
		wants(t, err, pkcs11.CKR_DEVICE_REMOVED)
	}
	_, err := k.OpenSession(k.slot, pkcs11.CKF_SERIAL_SESSION)
	wants(t, err, pkcs11.CKR_DEVICE_REMOVED)
	k.ctl.Heal(hsmfault.Any)
	k.good(t, p)

	k.ctl.FailOpenSession(pkcs11.CKR_DEVICE_ERROR, 1)
	_, err = k.OpenSession(k.slot, pkcs11.CKF_SERIAL_SESSION)
	wants(t, err, pkcs11.CKR_DEVICE_ERROR)
	must(t, k.CloseSession(k.open(t)))
	if n := k.ctl.Sessions(); n != 1 {
		t.Errorf("%d sessions", n)
	}
}

func TestFailLoginCountsTries(t *testing.T) {
	k := newToken(t)
	must(t, k.Logout(k.s))
	k.ctl.FailLogin(pkcs11.CKR_PIN_INCORRECT, 2)
	for range 2 {
		wants(t, k.Login(k.s, pkcs11.CKU_USER, pin), pkcs11.CKR_PIN_INCORRECT)
	}
	must(t, k.Login(k.s, pkcs11.CKU_USER, pin))
	if n := k.ctl.Count(hsmfault.Login); n != 3 {
		t.Errorf("%d tries", n)
	}
	if info, err := k.GetTokenInfo(k.slot); err != nil || info.Flags&pkcs11.CKF_USER_PIN_COUNT_LOW != 0 {
		t.Errorf("a try reached the token: %v", err)
	}
}

// A crash ends one process; the next one that signs is well.
func TestCrash(t *testing.T) {
	k := newToken(t)
	k.signer(t, "k")
	for kind, word := range map[hsmfault.CrashKind]string{hsmfault.Segfault: "SIGSEGV", hsmfault.Abort: "SIGABRT"} {
		k.ctl.Crash(hsmfault.Sign, kind, 1)
		out, err := k.other(t, "sign", "k").CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || !bytes.Contains(out, []byte(word)) {
			t.Errorf("%s: %v\n%s", word, err, out)
		}
		if out, err := k.other(t, "sign", "k").CombinedOutput(); err != nil {
			t.Errorf("after %s: %v\n%s", word, err, out)
		}
	}
	if n := k.ctl.Count(hsmfault.Initialize); n != 5-1 { // ResetCounts has forgotten our own
		t.Errorf("C_Initialize was called %d times", n)
	}
}

// A hang outlives the process that hangs.
func TestHang(t *testing.T) {
	k := newToken(t)
	k.signer(t, "k")
	k.ctl.Hang(hsmfault.Sign)
	hung := func() *exec.Cmd {
		t.Helper()
		n := k.ctl.Count(hsmfault.Sign)
		c := k.other(t, "sign", "k")
		must(t, c.Start())
		for began := time.Now(); k.ctl.Count(hsmfault.Sign) == n; time.Sleep(time.Millisecond) {
			if time.Since(began) > 10*time.Second {
				t.Fatal("the other process does not sign")
			}
		}
		return c
	}
	killed := hung()
	must(t, killed.Process.Kill())
	_ = killed.Wait()
	next := hung()
	ended := make(chan error, 1)
	go func() { ended <- next.Wait() }()
	select {
	case err := <-ended:
		t.Fatal("did not hang:", err)
	case <-time.After(30 * time.Millisecond):
	}
	k.ctl.Release()
	if err := <-ended; err != nil {
		t.Error("after the release:", err)
	}
}

func TestWrongSignatures(t *testing.T) {
	k := newToken(t)
	p, q := k.signer(t, "p"), k.signer(t, "q")
	d := digest("x")
	altered := bytes.Clone(d)
	altered[31] ^= 1
	for name, tc := range map[string]struct {
		kind hsmfault.WrongKind
		ok   func(sig []byte) bool
	}{
		"flipped bit": {hsmfault.FlippedBit, func(sig []byte) bool { sig[32] ^= 1; return p.verify(d, sig) }},
		"other key":   {hsmfault.OtherKey, func(sig []byte) bool { return q.verify(d, sig) }},
		"other data":  {hsmfault.OtherData, func(sig []byte) bool { return p.verify(altered, sig) }},
		"truncated":   {hsmfault.Truncated, func(sig []byte) bool { return len(sig) == 63 }},
	} {
		t.Run(name, func(t *testing.T) {
			for _, lazy := range []bool{false, true} {
				k.ctl.SetMemo(lazy, lazy)
				k.ctl.WrongSignatures(tc.kind, 1)
				sig, err := k.sign(p, d)
				must(t, err)
				if p.verify(d, sig) || !tc.ok(sig) {
					t.Errorf("lazy %t: %x", lazy, sig)
				}
				k.good(t, p)
			}
		})
	}
	k.ctl.WrongSignatures(hsmfault.FlippedBit, hsmfault.Always)
	for range 3 {
		if sig, err := k.sign(p, d); err != nil || p.verify(d, sig) {
			t.Errorf("%x: %v", sig, err)
		}
	}
}

func TestForge(t *testing.T) {
	k := newToken(t)
	p := k.signer(t, "p")
	one, two := digest("one"), digest("two")
	forged := bytes.Repeat([]byte{7}, 64)
	k.ctl.Forge(t, one, forged)
	k.ctl.Forge(t, two, bytes.Repeat([]byte{8}, 64))
	for range 2 {
		if sig, err := k.sign(p, one); err != nil || !bytes.Equal(sig, forged) {
			t.Errorf("%x: %v", sig, err)
		}
	}
	if sig, err := k.sign(p, two); err != nil || sig[0] != 8 {
		t.Errorf("%x: %v", sig, err)
	}
	k.good(t, p)
	if n := k.ctl.Forged(); n != 3 {
		t.Errorf("%d forged signatures", n)
	}
	k.ctl.ForgetForgeries()
	if sig, err := k.sign(p, one); err != nil || !p.verify(one, sig) {
		t.Errorf("%x: %v", sig, err)
	}
}

func TestFailover(t *testing.T) {
	for _, rv := range []uint{pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_DEVICE_ERROR} {
		k := newToken(t)
		k.signer(t, "k")
		old := k.open(t)
		k.ctl.Failover(hsmfault.CKR(rv))
		for _, s := range []pkcs11.SessionHandle{k.s, old} {
			_, err := k.GetSessionInfo(s)
			wants(t, err, rv)
			_, err = k.Sign(s, digest("x"))
			wants(t, err, rv)
		}
		k.s = k.open(t)
		if n := k.ctl.Sessions(); n != 1 {
			t.Errorf("%d sessions", n)
		}
		if found := k.search(t, k.s, "k"); len(found) != 1 { // the public key
			t.Errorf("%d objects are seen without a login", len(found))
		}
		must(t, k.Login(k.s, pkcs11.CKU_USER, pin))
		found := k.search(t, k.s, "k")
		if len(found) != 2 {
			t.Fatalf("%d objects after the login", len(found))
		}
		_, err := k.GetSessionInfo(old)
		wants(t, err, rv)
		wants(t, k.CloseSession(old), rv)
		signed := 0
		for _, h := range found {
			if _, err := k.signIn(k.s, h, digest("x")); err == nil {
				signed++
			}
		}
		if signed != 1 {
			t.Errorf("%d keys sign", signed)
		}
		must(t, k.Finalize())
	}
}

// inFlight signs, and runs event while the call is on its way.
func (k *token) inFlight(t *testing.T, p key, event func()) error {
	t.Helper()
	k.ctl.SetCapacity(10)
	defer k.ctl.SetCapacity(0)
	n := k.ctl.Count(hsmfault.Sign)
	ended := make(chan error, 1)
	go func() {
		_, err := k.sign(p, digest("x"))
		ended <- err
	}()
	for k.ctl.Count(hsmfault.Sign) == n {
		time.Sleep(time.Millisecond)
	}
	event()
	return <-ended
}

func TestFailInFlight(t *testing.T) {
	k := newToken(t)
	p := k.signer(t, "k")
	wants(t, k.inFlight(t, p, func() { k.ctl.FailInFlight(pkcs11.CKR_DEVICE_ERROR) }), pkcs11.CKR_DEVICE_ERROR)
	k.good(t, p)
	wants(t, k.inFlight(t, p, func() { k.ctl.Failover(pkcs11.CKR_SESSION_HANDLE_INVALID) }), pkcs11.CKR_SESSION_HANDLE_INVALID)
}

// A failover under load neither deadlocks nor crashes the real module.
func TestFailoverUnderLoad(t *testing.T) {
	k := newToken(t)
	p := k.signer(t, "k")
	var end atomic.Bool
	var wg sync.WaitGroup
	for range 4 {
		s := k.open(t)
		wg.Go(func() {
			for !end.Load() {
				if _, err := k.signIn(s, p.priv, digest("x")); err != nil {
					wants(t, err, pkcs11.CKR_DEVICE_ERROR)
					return
				}
			}
		})
	}
	time.Sleep(30 * time.Millisecond)
	k.ctl.Failover(pkcs11.CKR_DEVICE_ERROR)
	time.Sleep(30 * time.Millisecond)
	end.Store(true)
	wg.Wait()
	if n := k.ctl.Sessions(); n != 0 {
		t.Errorf("%d sessions live", n)
	}
}

func TestStall(t *testing.T) {
	k := newToken(t)
	p := k.signer(t, "k")
	began := time.Now()
	k.ctl.Stall(60 * time.Millisecond)
	k.good(t, p)
	if d := time.Since(began); d < 60*time.Millisecond {
		t.Errorf("took %v", d)
	}
}

func TestCloseSessions(t *testing.T) {
	k := newToken(t)
	p := k.signer(t, "k")
	k.open(t)
	k.ctl.CloseSessions()
	if _, err := k.sign(p, digest("x")); err == nil {
		t.Error("signed")
	}
	_, err := k.GetSessionInfo(k.s)
	wants(t, err, pkcs11.CKR_SESSION_HANDLE_INVALID)
	if n := k.ctl.Sessions(); n != 0 {
		t.Errorf("%d sessions", n)
	}
	k.s = k.open(t)
	must(t, k.Login(k.s, pkcs11.CKU_USER, pin))
}

func TestInvisible(t *testing.T) {
	k := newToken(t)
	old := k.signer(t, "old")
	const delay = 300 * time.Millisecond
	time.Sleep(delay)
	k.ctl.SetInvisible(delay)
	began := time.Now()
	fresh := k.generate(t, "fresh")
	born := time.Now()
	_, err := k.GetAttributeValue(k.s, fresh.pub, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_ID, nil)})
	wants(t, err, pkcs11.CKR_OBJECT_HANDLE_INVALID)
	_, err = k.sign(fresh, digest("x"))
	wants(t, err, pkcs11.CKR_KEY_HANDLE_INVALID)
	found := k.search(t, k.s, "fresh")
	out, _ := k.other(t, "sign", "fresh").CombinedOutput()
	if time.Since(began) < delay {
		if len(found) != 0 {
			t.Errorf("%d objects are found at once", len(found))
		}
		if !bytes.Contains(out, []byte("no such key")) {
			t.Errorf("another process: %s", out)
		}
	}
	k.good(t, old)
	time.Sleep(time.Until(born.Add(delay + 50*time.Millisecond)))
	if found := k.search(t, k.s, "fresh"); len(found) != 2 {
		t.Errorf("%d objects are found later", len(found))
	}
	if _, err := k.sign(fresh, digest("x")); err != nil {
		t.Error(err)
	}
}

// The objects of C_CreateObject have a birth too, also those without a CKA_ID.
func TestInvisibleObject(t *testing.T) {
	k := newToken(t)
	k.ctl.SetInvisible(time.Hour)
	o, err := k.CreateObject(k.s, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_DATA), pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, "note"), pkcs11.NewAttribute(pkcs11.CKA_VALUE, []byte("v"))})
	must(t, err)
	wants(t, k.DestroyObject(k.s, o), pkcs11.CKR_OBJECT_HANDLE_INVALID)
	session, err := k.GenerateKey(k.s, mechanism(pkcs11.CKM_AES_KEY_GEN), []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false), pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32)})
	must(t, err)
	must(t, k.DestroyObject(k.s, session)) // a session object is not replicated
	k.ctl.SetInvisible(0)
	must(t, k.DestroyObject(k.s, o))
}

func TestFlaky(t *testing.T) {
	k := newToken(t)
	old := k.signer(t, "old")
	time.Sleep(20 * time.Millisecond)
	fresh := k.generate(t, "fresh")
	k.ctl.SetFlaky(time.Hour, 300)
	missed := 0
	for range 200 {
		if _, err := k.sign(fresh, digest("x")); err != nil {
			wants(t, err, pkcs11.CKR_KEY_HANDLE_INVALID)
			missed++
		}
	}
	if missed < 30 || missed > 90 {
		t.Errorf("%d of 200 calls missed the key, 60 expected", missed)
	}
	k.ctl.SetFlaky(10*time.Millisecond, 1000)
	time.Sleep(10 * time.Millisecond)
	k.good(t, old)
}

func TestIdentity(t *testing.T) {
	k := newToken(t)
	own, err := k.GetTokenInfo(k.slot)
	must(t, err)
	k.ctl.SetSerial("foreign")
	k.ctl.SetLabel("another label")
	if info, err := k.GetTokenInfo(k.slot); err != nil || info.SerialNumber != "foreign" || info.Label != "another label" {
		t.Errorf("%+v: %v", info, err)
	}
	k.ctl.SetSerial("")
	k.ctl.SetLabel("")
	if info, err := k.GetTokenInfo(k.slot); err != nil || info.SerialNumber != own.SerialNumber || info.Label != own.Label {
		t.Errorf("%+v: %v", info, err)
	}
}

func TestAbsent(t *testing.T) {
	k := newToken(t)
	p := k.signer(t, "k")
	k.ctl.SetAbsent(true)
	if slots, err := k.GetSlotList(true); err != nil || len(slots) != 0 {
		t.Errorf("slots %v: %v", slots, err)
	}
	_, err := k.GetTokenInfo(k.slot)
	wants(t, err, pkcs11.CKR_TOKEN_NOT_PRESENT)
	_, err = k.OpenSession(k.slot, pkcs11.CKF_SERIAL_SESSION)
	wants(t, err, pkcs11.CKR_TOKEN_NOT_PRESENT)
	_, err = k.sign(p, digest("x"))
	wants(t, err, pkcs11.CKR_DEVICE_REMOVED)
	k.ctl.SetAbsent(false)
	k.good(t, p)
}

func TestRandom(t *testing.T) {
	k := newToken(t)
	draw := func() []byte {
		t.Helper()
		b, err := k.GenerateRandom(k.s, 32)
		must(t, err)
		return b
	}
	k.ctl.ConstantRandom(0)
	if b := draw(); !bytes.Equal(b, make([]byte, 32)) {
		t.Errorf("%x", b)
	}
	k.ctl.RepeatRandom(5)
	if a, b := draw(), draw(); !bytes.Equal(a, b) || bytes.Count(a, a[:1]) > 8 {
		t.Errorf("%x, then %x", a, b)
	}
	k.ctl.TrueRandom()
	if a, b := draw(), draw(); bytes.Equal(a, b) {
		t.Errorf("%x twice", a)
	}
	if n := k.ctl.Count(hsmfault.GenerateRandom); n != 5 {
		t.Errorf("%d calls", n)
	}
}

func TestHideMechanisms(t *testing.T) {
	k := newToken(t)
	p := k.signer(t, "k")
	list := func() []uint {
		t.Helper()
		ms, err := k.GetMechanismList(k.slot)
		must(t, err)
		var have []uint
		for _, m := range ms {
			have = append(have, m.Mechanism)
		}
		return have
	}
	all := len(list())
	k.ctl.HideMechanisms(t, pkcs11.CKM_ECDSA, pkcs11.CKM_EC_KEY_PAIR_GEN)
	if have := list(); len(have) != all-2 || slices.Contains(have, pkcs11.CKM_ECDSA) {
		t.Errorf("%d of %d mechanisms: %x", len(have), all, have)
	}
	_, err := k.GetMechanismInfo(k.slot, mechanism(pkcs11.CKM_ECDSA))
	wants(t, err, pkcs11.CKR_MECHANISM_INVALID)
	_, err = k.sign(p, digest("x"))
	wants(t, err, pkcs11.CKR_MECHANISM_INVALID)
	public, private := pair("other", false)
	_, _, err = k.GenerateKeyPair(k.s, mechanism(pkcs11.CKM_EC_KEY_PAIR_GEN), public, private)
	wants(t, err, pkcs11.CKR_MECHANISM_INVALID)
	k.ctl.HideMechanisms(t)
	k.good(t, p)
}

func TestNoExport(t *testing.T) {
	k := newToken(t)
	p := k.signer(t, "extractable")
	kek, err := k.GenerateKey(k.s, mechanism(pkcs11.CKM_AES_KEY_GEN), []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false),
		pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32), pkcs11.NewAttribute(pkcs11.CKA_WRAP, true)})
	must(t, err)
	const aesKeyWrapPad = 0x210a
	if _, err := k.WrapKey(k.s, mechanism(aesKeyWrapPad), kek, p.priv); err != nil {
		t.Fatal(err)
	}
	k.ctl.SetNoExport(true)
	_, err = k.WrapKey(k.s, mechanism(aesKeyWrapPad), kek, p.priv)
	wants(t, err, pkcs11.CKR_KEY_UNEXTRACTABLE)
	public, private := pair("new", true)
	_, _, err = k.GenerateKeyPair(k.s, mechanism(pkcs11.CKM_EC_KEY_PAIR_GEN), public, private)
	wants(t, err, pkcs11.CKR_TEMPLATE_INCONSISTENT)
	public, private = pair("new", false)
	if _, _, err := k.GenerateKeyPair(k.s, mechanism(pkcs11.CKM_EC_KEY_PAIR_GEN), public, private); err != nil {
		t.Error(err)
	}
}

// A process that starts over keeps its control and its place among the users.
func TestInitializeAgain(t *testing.T) {
	k := newToken(t)
	p := k.signer(t, "k")
	k.ctl.SetMemo(true, true)
	k.good(t, p)
	must(t, k.Finalize())
	if n := k.ctl.Sessions(); n != 0 {
		t.Errorf("%d sessions after C_Finalize", n)
	}
	must(t, k.Initialize())
	k.slot = k.find(t) // SoftHSM numbers it by its serial number now
	k.s = k.open(t)
	must(t, k.Login(k.s, pkcs11.CKU_USER, pin))
	for _, h := range k.search(t, k.s, "k") {
		p.priv = h
		if sig, err := k.sign(p, digest("x")); err == nil && !p.verify(digest("x"), sig) {
			t.Errorf("%x", sig)
		}
	}
	if n, s := k.ctl.Count(hsmfault.Initialize), k.ctl.Sessions(); n != 1 || s != 1 {
		t.Errorf("C_Initialize was called %d times since the start, %d sessions", n, s)
	}
}

// What the module costs, and what a signature from memory costs.
func BenchmarkSign(b *testing.B) {
	for name, set := range map[string]func(*hsmfault.Control){
		"real": func(*hsmfault.Control) {},
		"memo": func(c *hsmfault.Control) { c.SetMemo(true, true) },
	} {
		b.Run(name, func(b *testing.B) {
			k := newToken(b)
			p := k.signer(b, "k")
			set(k.ctl)
			for b.Loop() {
				if _, err := k.sign(p, digest("x")); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
