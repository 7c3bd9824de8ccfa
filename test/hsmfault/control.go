package hsmfault

import (
	"os"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// CKR is a return value of PKCS#11 (v2.40 §5.1).
type CKR uint64

// Always is the number of times of a fault that stays until it is taken back.
const Always = -1

// Function names a PKCS#11 function that is counted, and can fail, on its own.
type Function int

// The functions; all others share Other. All but C_Initialize count as Any too.
// C_Finalize, C_GetInfo and the question for the length of a signature (C_Sign without
// a buffer) are neither counted nor delayed: client libraries answer them themselves.
const (
	Any Function = iota
	Other
	Initialize
	GetSlotList
	GetTokenInfo
	OpenSession
	CloseSession
	Login
	FindObjectsInit
	FindObjects
	GetAttributeValue
	CreateObject
	DestroyObject
	GenerateKey
	GenerateKeyPair
	WrapKey
	UnwrapKey
	SignInit
	Sign
	GenerateRandom
)

// CrashKind is the way in which a process ends.
type CrashKind uint64

// How to crash.
const (
	Segfault CrashKind = iota + 1
	Abort
)

// WrongKind is what is wrong with a signature.
type WrongKind uint64

// Wrong signatures.
const (
	FlippedBit WrongKind = iota + 1
	OtherKey             // valid under another private key of the token that has the same type and size
	OtherData            // valid for other data
	Truncated            // one octet short
)

// Kinds of broken random numbers.
const (
	rngConstant = iota + 1
	rngRepeat
)

// Control steers the module in all processes of one member. Its methods can be
// called by several goroutines.
type Control struct {
	path   string
	module string
	mem    *control
	mu     sync.Mutex // setters of more than one field
}

// New makes the control file of a member; the module does nothing special until it is
// told to. At the end of the test hung calls are released.
func New(t testing.TB, path string) *Control {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatalf("making the control file: %v", err)
	}
	defer f.Close()
	size := int(unsafe.Sizeof(control{}))
	if err := f.Truncate(int64(size)); err != nil {
		t.Fatalf("sizing the control file: %v", err)
	}
	b, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatalf("mapping the control file: %v", err)
	}
	c := &Control{path: path, mem: (*control)(unsafe.Pointer(&b[0]))}
	c.mem.layout.Store(layoutHash())
	// The mapping stays: a goroutine that outlives its test must not crash the others.
	t.Cleanup(func() { c.Release() })
	return c
}

// Delegate names the real module, where that is not Debian's SoftHSM. It must be
// called before Env.
func (c *Control) Delegate(module string) { c.module = module }

// Env is the environment of processes that are to load the module under this control.
func (c *Control) Env() []string {
	env := []string{"HSMFAULT_CONTROL=" + c.path}
	if c.module != "" {
		env = append(env, "HSMFAULT_MODULE="+c.module)
	}
	return env
}

// Count tells how often a function was called in all processes, calls that failed
// included.
func (c *Control) Count(f Function) uint64 { return c.mem.counts[f].Load() }

// Signatures tells how many signatures the token made with the key of that CKA_ID, in all
// processes, whoever asked for them: an HSM's own account.
func (c *Control) Signatures(id []byte) (n uint64) {
	identity := uint64(14695981039346656037) + 1 // FNV-1a, with the basis that module.c has for CKA_ID
	for _, b := range id {
		identity = (identity ^ uint64(b)) * 1099511628211
	}
	for i := range c.mem.signers {
		if c.mem.signers[i].identity.Load() == identity {
			n += c.mem.signers[i].count.Load()
		}
	}
	return n
}

// ResetCounts starts counting anew.
func (c *Control) ResetCounts() {
	for i := range c.mem.counts {
		c.mem.counts[i].Store(0)
	}
}

// Sessions tells how many sessions the processes that live have open.
func (c *Control) Sessions() int {
	n := uint64(0)
	for i := range c.mem.users {
		u := &c.mem.users[i]
		if pid := u.pid.Load(); pid != 0 && unix.Kill(int(pid), 0) != unix.ESRCH {
			n += u.sessions.Load()
		}
	}
	return int(n)
}

// SetLatency adds a round trip to every call but C_Initialize, C_Finalize and C_GetInfo.
func (c *Control) SetLatency(d time.Duration) { c.mem.latency.Store(micros(d)) }

// SetCapacity lets the HSM make so many signatures per second, one after the other,
// in the order in which they come, without using the CPU for it; 0: no limit.
func (c *Control) SetCapacity(perSecond int) {
	if perSecond == 0 {
		c.mem.service.Store(0)
		return
	}
	c.mem.service.Store(uint64(time.Second/time.Microsecond) / uint64(perSecond))
}

// SetMemo answers a signature that the same process asked for before (same key,
// mechanism, data) from memory: valid, and without the CPU time. With lazyInit the
// real C_SignInit is only called when the signature is not in memory; its errors are
// then seen in C_Sign.
func (c *Control) SetMemo(on, lazyInit bool) {
	c.mem.lazyInit.Store(flag(lazyInit))
	c.mem.memo.Store(flag(on))
}

// SetSessionCap refuses, with CKR_SESSION_COUNT, to open more sessions than n in all
// processes together; 0: no cap.
func (c *Control) SetSessionCap(n int) { c.mem.sessionCap.Store(uint64(n)) }

// SetThrottle refuses signatures above n in a second with rv; 0: no throttling. AWS
// CloudHSM's client SDK 5 gives CKR_FUNCTION_FAILED, its SDK 3 CKR_OPERATION_ACTIVE.
func (c *Control) SetThrottle(n int, rv CKR) {
	c.mem.throttleRv.Store(uint64(rv))
	c.mem.throttleWindow.Store(0)
	c.mem.throttle.Store(uint64(n))
}

// SetInvisible hides token objects from all processes for d after their birth, also
// after births that have been already. Handles give CKR_KEY_HANDLE_INVALID or its
// like. Objects are told apart by CKA_ID, or CKA_LABEL where there is none.
func (c *Control) SetInvisible(d time.Duration) { c.mem.invisible.Store(micros(d)) }

// SetFlaky lets, for d after the birth of a token object, permille of the calls that
// use it reach a node that does not have it yet.
func (c *Control) SetFlaky(d time.Duration, permille int) {
	c.mem.flakyPermille.Store(uint64(permille))
	c.mem.flaky.Store(micros(d))
}

// Failover moves the client library to another node, which does not know its
// sessions: calls on those that are open now give rv, for ever; new ones need a login.
func (c *Control) Failover(rv CKR) {
	c.mem.sessionRv.Store(uint64(rv))
	c.mem.sessionEpoch.Add(1)
}

// FailInFlight fails the calls that are on their way with rv; sessions survive.
func (c *Control) FailInFlight(rv CKR) {
	c.mem.flightRv.Store(uint64(rv))
	c.mem.flightEpoch.Add(1)
}

// Stall lets calls of the next d wait until it is over; sessions survive.
func (c *Control) Stall(d time.Duration) { c.mem.stallUntil.Store(monotonic() + micros(d)) }

// CloseSessions makes the next C_Sign lose all sessions and the login of its process,
// as another user of the same library can do, before it signs.
func (c *Control) CloseSessions() { c.mem.closeLeft.Store(1) }

// Fail lets the next n calls of f give rv. For Any these are the calls that open or
// use a session.
func (c *Control) Fail(f Function, rv CKR, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mem.failLeft[f].Store(0)
	c.mem.failRv[f].Store(uint64(rv))
	c.mem.failLeft[f].Store(times(n))
}

// Heal takes a Fail back.
func (c *Control) Heal(f Function) { c.mem.failLeft[f].Store(0) }

// FailSign is Fail(Sign, rv, n).
func (c *Control) FailSign(rv CKR, n int) { c.Fail(Sign, rv, n) }

// FailLogin is Fail(Login, rv, n). Count(Login) tells the tries; none reaches the token.
func (c *Control) FailLogin(rv CKR, n int) { c.Fail(Login, rv, n) }

// FailOpenSession is Fail(OpenSession, rv, n).
func (c *Control) FailOpenSession(rv CKR, n int) { c.Fail(OpenSession, rv, n) }

// Hang lets calls of these functions block, also those of new processes. Count tells
// how many have come.
func (c *Control) Hang(fs ...Function) {
	set := uint64(0)
	for _, f := range fs {
		set |= 1 << f
	}
	c.mem.hang.Store(set)
}

// Release lets hung calls go on.
func (c *Control) Release() { c.mem.hang.Store(0) }

// Crash ends the processes of the next n calls of f.
func (c *Control) Crash(f Function, kind CrashKind, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mem.crashLeft.Store(0)
	c.mem.crash.Store(uint64(kind))
	c.mem.crashFunction.Store(uint64(f))
	c.mem.crashLeft.Store(times(n))
}

// WrongSignatures makes the next n signatures wrong in one way; 0 ends it.
func (c *Control) WrongSignatures(kind WrongKind, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mem.wrongLeft.Store(0)
	c.mem.wrong.Store(uint64(kind))
	c.mem.wrongLeft.Store(times(n))
}

// Forge makes C_Sign return signature (for ECDSA r ‖ s) for exactly this data (for
// ECDSA the digest) under any key, as an HSM whose nonces repeat would. The table has
// 64 entries.
func (c *Control) Forge(t testing.TB, data, signature []byte) {
	t.Helper()
	if len(data) > maxData || len(signature) > maxSignature {
		t.Fatalf("forging a signature of %d octets over %d octets: at most %d and %d", len(signature), len(data), maxSignature, maxData)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.mem.forgeries {
		f := &c.mem.forgeries[i]
		if f.used.Load() != 0 {
			continue
		}
		copy(f.data[:], data)
		copy(f.signature[:], signature)
		f.dataLen.Store(uint64(len(data)))
		f.signatureLen.Store(uint64(len(signature)))
		f.hits.Store(0)
		f.used.Store(1)
		return
	}
	t.Fatalf("more than %d forged signatures", maxForgeries)
}

// Forged tells how many forged signatures were given out.
func (c *Control) Forged() uint64 {
	n := uint64(0)
	for i := range c.mem.forgeries {
		n += c.mem.forgeries[i].hits.Load()
	}
	return n
}

// ForgetForgeries empties the table.
func (c *Control) ForgetForgeries() {
	for i := range c.mem.forgeries {
		c.mem.forgeries[i].used.Store(0)
		c.mem.forgeries[i].hits.Store(0)
	}
}

// SetSerial gives all initialised tokens a serial number (16 octets at most); "" gives
// them back their own. A call of C_GetTokenInfo at the same time may see half of it.
func (c *Control) SetSerial(serial string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mem.serialSet.Store(0)
	clear(c.mem.serial[:])
	copy(c.mem.serial[:], serial)
	c.mem.serialSet.Store(flag(serial != ""))
}

// SetLabel is SetSerial for the label (32 octets at most).
func (c *Control) SetLabel(label string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mem.labelSet.Store(0)
	clear(c.mem.label[:])
	copy(c.mem.label[:], label)
	c.mem.labelSet.Store(flag(label != ""))
}

// SetAbsent takes the token out of its slot: there are no slots, calls on a slot give
// CKR_TOKEN_NOT_PRESENT, and calls on a session CKR_DEVICE_REMOVED.
func (c *Control) SetAbsent(absent bool) { c.mem.absent.Store(flag(absent)) }

// ConstantRandom fills all random numbers with one octet.
func (c *Control) ConstantRandom(octet byte) {
	c.mem.rngSeed.Store(uint64(octet))
	c.mem.rng.Store(rngConstant)
}

// RepeatRandom gives the same random numbers in every call.
func (c *Control) RepeatRandom(seed uint64) {
	c.mem.rngSeed.Store(seed)
	c.mem.rng.Store(rngRepeat)
}

// TrueRandom gives the random numbers of the token again.
func (c *Control) TrueRandom() { c.mem.rng.Store(0) }

// SetOneHop makes the token one that has CKM_RSA_AES_KEY_WRAP, as vendors' HSMs and
// SoftHSM from 2.7 on do. It counts for keys that are made afterwards.
func (c *Control) SetOneHop(on bool) { c.mem.oneHop.Store(flag(on)) }

// SetNoExport makes the token one whose private keys are copied by cloning only:
// C_GenerateKeyPair refuses CKA_EXTRACTABLE=true with CKR_TEMPLATE_INCONSISTENT, and
// C_WrapKey of a private key gives CKR_KEY_UNEXTRACTABLE.
func (c *Control) SetNoExport(on bool) { c.mem.noExport.Store(flag(on)) }

// SetProtectedPath makes the token one with CKF_PROTECTED_AUTHENTICATION_PATH: the SO
// logs in at the device, where each login takes so many cards, and which then enters
// soPIN itself; a SO PIN from outside gives CKR_PIN_INCORRECT. The user goes on with a
// PIN. 0 cards: an ordinary token again.
func (c *Control) SetProtectedPath(t testing.TB, cards int, soPIN string) {
	t.Helper()
	if len(soPIN) > maxPIN {
		t.Fatalf("a SO PIN of %d octets: at most %d", len(soPIN), maxPIN)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mem.protectedPath.Store(0)
	clear(c.mem.soPin[:])
	copy(c.mem.soPin[:], soPIN)
	c.mem.quorumNeeded.Store(uint64(cards))
	c.mem.quorumGiven.Store(0)
	c.mem.quorumRefused.Store(0)
	c.mem.protectedPath.Store(flag(cards > 0))
}

// PresentCards puts n cards into the device.
func (c *Control) PresentCards(n int) { c.mem.quorumGiven.Add(uint64(n)) }

// RefuseQuorum breaks the next login of the SO off, or the one that waits:
// CKR_FUNCTION_CANCELED.
func (c *Control) RefuseQuorum() { c.mem.quorumRefused.Store(1) }

// QuorumAsked tells how many logins of the SO have waited for cards so far.
func (c *Control) QuorumAsked() uint64 { return c.mem.quorumAsked.Load() }

// SOLogins tells how many logins of the SO reached the token.
func (c *Control) SOLogins() uint64 { return c.mem.soLogins.Load() }

// HideMechanisms leaves these mechanisms, and no others, out of what the token offers;
// their use gives CKR_MECHANISM_INVALID.
func (c *Control) HideMechanisms(t testing.TB, mechanisms ...uint) {
	t.Helper()
	if len(mechanisms) > maxHidden {
		t.Fatalf("hiding %d mechanisms: at most %d", len(mechanisms), maxHidden)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mem.hiddenLen.Store(0)
	for i, m := range mechanisms {
		c.mem.hidden[i].Store(uint64(m))
	}
	c.mem.hiddenLen.Store(uint64(len(mechanisms)))
}

// monotonic is the time of CLOCK_MONOTONIC in µs, as the module reads it.
func monotonic() uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // there is no Linux without it
	}
	return uint64(ts.Nano()) / 1000
}

func micros(d time.Duration) uint64 { return uint64(d.Microseconds()) }

func times(n int) uint64 { return uint64(int64(n)) }

func flag(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}
