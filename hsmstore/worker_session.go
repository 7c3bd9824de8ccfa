package hsmstore

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/miekg/pkcs11"
	"golang.org/x/sys/unix"
)

// Each signing session belongs to one goroutine, which takes requests as they come.
// A worker begins with few sessions. It opens another when requests wait although
// the processor is idle and signatures do not take longer than they did at their
// best: then the way to the HSM is what limits, and only more requests under way help.
// A token that gives no more sessions is no fault.

const (
	firstSessions   = 4
	defaultSessions = 64
	// slow is the time of a signature from which waiting for it may be what limits.
	slow = 2 * time.Millisecond
	// crowded is how much longer than at their best signatures take in an HSM that
	// works on as many as it can.
	crowded = 1.5
	// capPause is how long a refused session is not asked for again.
	capPause = 30 * time.Second
)

// pool counts the sessions.
type pool struct {
	mu     sync.Mutex
	n, max int
	until  time.Time     // no new one before
	last   time.Duration // of the last signature
	ratio  float64       // of the time of signatures to the best of their key; a moving average
	looked time.Time     // when cpu was read
	cpu    time.Duration
	idle   bool
}

func (p *pool) size() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.n
}

// took notes how long a signature took in the module. What was best is forgotten slowly.
func (p *pool) took(k *workerKey, d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = d
	if k.best == 0 || d < k.best {
		k.best = d
	}
	k.best += (d - k.best) >> 16
	p.ratio += (float64(d)/float64(k.best) - p.ratio) / 8
}

// wants tells whether another session would help, and counts it in.
func (p *pool) wants() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if p.n >= p.max || p.last < slow || p.ratio > crowded || now.Before(p.until) {
		return false
	}
	if since := now.Sub(p.looked); since > 5*time.Millisecond {
		cpu := cpuTime()
		p.idle = cpu-p.cpu < since/2
		p.looked, p.cpu = now, cpu
	}
	if p.idle {
		p.n++
	}
	return p.idle
}

// lost counts a session out that could not be opened.
func (p *pool) lost() {
	p.mu.Lock()
	p.n--
	p.until = time.Now().Add(capPause)
	p.mu.Unlock()
}

// cpuTime is what this process has used so far.
func cpuTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// startSessions opens the first sessions; the token's own bound and what it refuses
// beyond one are taken as they are (PKCS#11 §5.6.1, CKR_SESSION_COUNT).
func (w *worker) startSessions(want int, info pkcs11.TokenInfo) error {
	w.pool.max = defaultSessions
	if want > 0 {
		w.pool.max = want
	}
	for _, limit := range []uint{info.MaxSessionCount, info.MaxRwSessionCount} {
		// 0 is CK_EFFECTIVELY_INFINITE, ^0 CK_UNAVAILABLE_INFORMATION; one is for control.
		if limit > 1 && limit < 1<<16 {
			w.pool.max = min(w.pool.max, int(limit)-1)
		}
	}
	for w.pool.n < min(firstSessions, w.pool.max) {
		w.pool.n++
		if err := w.session(); err != nil {
			if w.pool.lost(); w.pool.size() == 0 {
				return err
			}
			break
		}
	}
	return nil
}

// session opens a session and serves with it.
func (w *worker) session() error {
	var s pkcs11.SessionHandle
	err := w.patiently(time.Now(), func() (err error) {
		s, err = w.token.m.OpenSession(w.token.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		return err
	}, func(rv pkcs11.Error) bool { return rv == pkcs11.CKR_SESSION_COUNT && w.pool.size() <= 1 })
	if err != nil {
		return classify("C_OpenSession", err)
	}
	go func() {
		for j := range w.jobs {
			w.sign(s, j)
		}
	}()
	return nil
}

// grow opens another session if requests wait and it would help. It is called for
// each request, by one goroutine.
func (w *worker) grow() {
	if len(w.jobs) == 0 || !w.pool.wants() {
		return
	}
	if runtime.GOMAXPROCS(0) == 1 {
		runtime.GOMAXPROCS(min(4, runtime.NumCPU()))
	}
	go func() {
		if err := w.session(); err != nil {
			w.pool.lost()
			return
		}
		w.reply(0, statusSessions, binary.BigEndian.AppendUint16(nil, uint16(w.pool.size())))
	}()
}

// patiently repeats a call into a vendor's cluster that says it is not the moment:
// throttled, out of sessions, or on a node that does not know a fresh key yet. Other
// modules get one try: there these codes are faults, and a new process is the cure.
// Patience counts from the arrival of the request: the store's deadline does too.
func (w *worker) patiently(came time.Time, call func() error, more func(pkcs11.Error) bool) error {
	pause := time.Millisecond
	for end := came.Add(w.patience); ; {
		err := call()
		rv, is := err.(pkcs11.Error)
		if !is || !w.native || !more(rv) || time.Now().Add(pause).After(end) {
			return err
		}
		time.Sleep(pause)
		pause = min(2*pause, 50*time.Millisecond)
	}
}

// throttled are the codes by which vendors' clusters say "later" to C_SignInit and
// C_Sign, and by which a node says that it does not know a fresh key.
func throttled(rv pkcs11.Error) bool {
	switch rv {
	case pkcs11.CKR_FUNCTION_FAILED, pkcs11.CKR_HOST_MEMORY, pkcs11.CKR_DEVICE_MEMORY, pkcs11.CKR_SESSION_COUNT, pkcs11.CKR_FUNCTION_CANCELED,
		pkcs11.CKR_KEY_HANDLE_INVALID, pkcs11.CKR_OBJECT_HANDLE_INVALID:
		return true
	}
	return rv >= pkcs11.CKR_VENDOR_DEFINED
}

// testRandom asks the token's random source for a little and looks for what no
// working source gives: one octet for ever, or the same twice (compare SP 800-90B
// §4.4.1). Serial numbers and nonces come from the operating system; keys do not.
func (w *worker) testRandom() error {
	const n = 32
	var all [3][]byte
	for i := range all {
		b, err := w.token.m.GenerateRandom(w.token.session, n)
		if err == pkcs11.Error(pkcs11.CKR_RANDOM_NO_RNG) || err == pkcs11.Error(pkcs11.CKR_FUNCTION_NOT_SUPPORTED) {
			return nil
		}
		if err != nil {
			return classify("C_GenerateRandom", err)
		}
		all[i] = b
	}
	for i, b := range all {
		if len(b) != n || bytes.Count(b, b[:1]) > n/4 || i > 0 && bytes.Equal(b, all[i-1]) {
			return faultf(exitRandom, "%w: C_GenerateRandom of token %s repeats itself; keys born on it would not be secret. Have the vendor look at it", ErrRandom, w.serial)
		}
	}
	return w.rememberRandom(all[0])
}

// rememberRandom writes the hash of one output to the journal, and refuses one that
// stands there: a source that starts from the same state at each start.
func (w *worker) rememberRandom(b []byte) error {
	a, err := readAccount(w.account)
	if err != nil {
		return &fault{exitJournal, err}
	}
	hash := fmt.Sprintf("%x", sha256.Sum256(b))
	seen, err := w.journal.addRandom(b)
	if seen = seen || a.random[hash]; err == nil && !seen {
		err = a.add("random %s", hash)
	}
	switch {
	case err != nil:
		return &fault{exitJournal, err}
	case seen:
		return faultf(exitRandom, "%w: C_GenerateRandom of token %s gave what it gave at an earlier start. Have the vendor look at it", ErrRandom, w.serial)
	}
	return nil
}
