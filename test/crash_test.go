package test

import (
	"context"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"chancery/audit"
	"chancery/hsmstore"
	"chancery/test/pgcluster"
)

// kills is how often a crash test kills, by default so often: CHANCERY_KILLS is a
// percentage of that.
func kills(t testing.TB, usual int) int {
	t.Helper()
	s := os.Getenv("CHANCERY_KILLS")
	if s == "" {
		return usual
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		t.Fatalf("CHANCERY_KILLS=%q is no percentage", s)
	}
	return max(1, usual*n/100)
}

// seed makes a run repeatable: CHANCERY_SEED, default a new one, which is logged.
func seed(t testing.TB) *rand.Rand {
	t.Helper()
	n := uint64(time.Now().UnixNano())
	if s := os.Getenv("CHANCERY_SEED"); s != "" {
		var err error
		if n, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("CHANCERY_SEED=%q is no number", s)
		}
	}
	t.Logf("CHANCERY_SEED=%d", n)
	return rand.New(rand.NewPCG(n, 1))
}

// load issues and revokes certificates from several clients until it is stopped,
// and remembers what the server acknowledged.
type load struct {
	s    *site
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu      sync.Mutex
	issued  []string
	revoked []string
	errors  []error
	started chan struct{} // closed with the first acknowledged certificate
	once    sync.Once
}

func (s *site) load(clients int) *load {
	s.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	l := &load{s: s, stop: stop, started: make(chan struct{})}
	client, token := s.client(), s.token()
	for i := range clients {
		l.wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				c, err := s.issue(client, token, fmt.Sprintf("c%d-%d.example.lab", i, n))
				l.note(&l.issued, c.Serial, err)
				if err != nil || n%5 != 0 {
					continue
				}
				_, err = s.api(client, token, "POST", "/api/v1/certificates/"+c.Serial+"/revoke", map[string]string{"reason": "superseded"}, nil)
				l.note(&l.revoked, c.Serial, err)
			}
		})
	}
	return l
}

func (l *load) note(list *[]string, serial string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		if len(l.errors) < 100 {
			l.errors = append(l.errors, err)
		}
		return
	}
	*list = append(*list, serial)
	l.once.Do(func() { close(l.started) })
}

func (l *load) end() {
	l.stop()
	l.wg.Wait()
}

// TestCrash (AUD-11) kills the server under load, again and again, at random moments, and
// holds the promises P1, P3 and P4 against three witnesses outside it: what the
// clients were told, the journals of the HSM workers, and the CRL.
func TestCrash(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) { crash(t, newSite(t), kills(t, 30), nil) })
	t.Run("postgres", func(t *testing.T) {
		crash(t, newSiteOn(t, pgcluster.New(t).Database()), kills(t, 20), nil)
	})
	// The postmaster and all its backends die as well, and come back at once.
	t.Run("postmaster", func(t *testing.T) {
		c := pgcluster.New(t)
		crash(t, newSiteOn(t, c.Database()), kills(t, 6), func() {
			c.Stop(syscall.SIGKILL)
			c.Start()
		})
	})
}

// failpoints are the named places where the server ends itself, see audit.Failpoint.
var failpoints = []string{"", "before-commit", "after-commit", "after-intent", "after-signature", "after-done"}

// crash kills the server at a random moment or at one of the failpoints in turn, or
// does instead, in each round; then it starts again at once.
func crash(t *testing.T, s *site, rounds int, instead func()) {
	random := seed(t)
	var issued, revoked []string
	for round := range rounds {
		point := failpoints[round%len(failpoints)]
		if instead != nil {
			point = ""
		}
		if s.cmd == nil || point != "" {
			if s.cmd != nil {
				s.stop()
			}
			s.env = []string{fmt.Sprintf("CHANCERY_FAILPOINT=%s:%d", point, 60+random.IntN(200))}
			s.start()
			s.env = nil
		}
		l := s.load(8)
		select {
		case <-l.started:
		case <-time.After(30 * time.Second):
			t.Fatalf("round %d: no certificate in 30 s: %v", round, l.errors)
		}
		switch {
		case instead != nil:
			before := len(l.snapshot())
			instead()
			s.await(30*time.Second, func() bool { return len(l.snapshot()) > before }) // it recovers by itself
			l.end()
		case point != "": // it ends by itself, in that very place
			select {
			case <-s.exited:
				s.cmd = nil
			case <-time.After(30 * time.Second):
				t.Fatalf("round %d: failpoint %s was not reached", round, point)
			}
			l.end()
			s.start()
		default:
			time.Sleep(time.Duration(random.IntN(400)) * time.Millisecond) // the moment of the crash, not a wait
			s.kill()
			l.end()
			s.start()
		}
		issued, revoked = append(issued, l.issued...), append(revoked, l.revoked...)
		s.checkAfterCrash(round, l, instead != nil)
	}
	s.await(60*time.Second, func() bool { return s.auditVerify().Open == 0 }) // without a restart the server closes them itself
	t.Logf("%d crashes, %d certificates and %d revocations were acknowledged", rounds, len(issued), len(revoked))
	for _, serial := range revoked {
		s.awaitRevoked(serial)
	}
	client, token := s.client(), s.token()
	for _, serial := range issued {
		if status, err := s.api(client, token, "GET", "/api/v1/certificates/"+serial, nil, nil); status != http.StatusOK {
			t.Errorf("acknowledged certificate %s is lost: %v", serial, err)
		}
	}
	s.witness()
}

// checkAfterCrash looks at a server that has just started again.
func (s *site) checkAfterCrash(round int, l *load, running bool) {
	s.t.Helper()
	rep := s.auditVerify() // every intent closed at most once, no row without done, tree and checkpoints
	db := s.database()
	defer db.Close() // hundreds of rounds would use up PostgreSQL's connections
	open, err := db.OpenIntents(context.Background(), "dev")
	if err != nil {
		s.t.Fatal(err)
	}
	for _, o := range open {
		leaf, err := audit.DecodeLeaf(o.Bytes)
		if err == nil && time.Since(leaf.Time) > 5*time.Second && !running {
			s.t.Errorf("round %d: intent %d is still open", round, o.Index)
		}
	}
	client, token := s.client(), s.token()
	for _, serial := range l.issued {
		if status, err := s.api(client, token, "GET", "/api/v1/certificates/"+serial, nil, nil); status != http.StatusOK {
			s.t.Errorf("round %d: acknowledged certificate %s is lost: %v", round, serial, err)
		}
	}
	s.t.Logf("round %d: %d acknowledged, ledger of %d, %d orphans so far", round, len(l.issued), rep.Size, rep.Orphans)
}

// witness compares the ledger with the HSM workers' own journals: no key was used
// without a durable intent for just those bytes; and with the CRL: the serial of
// every orphan is revoked.
func (s *site) witness() {
	s.t.Helper()
	ctx := context.Background()
	db := s.database()
	head, err := db.Head(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	intents := map[uint64]audit.Leaf{}
	var orphans []uint64
	err = db.Leaves(ctx, 0, head.Size, func(i uint64, b []byte) error {
		l, err := audit.DecodeLeaf(b)
		switch l.Kind {
		case audit.KindIntent:
			intents[i] = l
		case audit.KindOrphan:
			orphans = append(orphans, l.Closes)
		}
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	signed := 0
	for _, member := range []string{"alpha", "beta"} {
		records, err := hsmstore.ReadJournal(filepath.Join(s.dir, "journal", "hsm-"+member+".journal"))
		if err != nil {
			s.t.Fatalf("journal of %s: %v", member, err)
		}
		for _, r := range records {
			if r.Kind != hsmstore.JournalIntent {
				continue // checkpoints and probes have no intent
			}
			signed++
			in, ok := intents[r.Number]
			if !ok && r.Number >= head.Size {
				continue // made while the snapshot was taken
			}
			tbs, _ := in.Hash(audit.TagTBSHash)
			key, _ := in.Hash(audit.TagKey)
			if !ok || tbs != r.SHA256 || key != r.Key {
				s.t.Errorf("%s signed a message for entry %d, which is no intent for it", member, r.Number)
			}
		}
	}
	for _, o := range orphans {
		if serial, ok := intents[o].Get(audit.TagSerial); ok {
			s.await(10*time.Second, func() bool { // a first start may be killed when the root signs
				return s.onCRL("issuing", hex.EncodeToString(serial)) || s.onCRL("root", hex.EncodeToString(serial))
			})
		}
	}
	s.t.Logf("%d signatures in the workers' journals, all with their intent; %d orphans", signed, len(orphans))
}

// TestCrashDuringGenesis kills the very first start at random moments until one
// gets through: there is one root in the end, and the ledger verifies (CFG-07).
func TestCrashDuringGenesis(t *testing.T) {
	random := seed(t)
	s := newSite(t)
	for round := range 8 {
		ready := s.launch()
		select {
		case <-ready:
			t.Logf("round %d: ready before the kill", round)
		case err := <-s.exited:
			s.cmd = nil
			t.Fatalf("round %d: the server ended by itself: %v\n%s", round, err, s.log)
		case <-time.After(time.Duration(random.IntN(300*(round+1))) * time.Millisecond): // the moment of the crash
		}
		s.kill()
	}
	s.start()
	rep := s.auditVerify()
	db := s.database()
	issuers, err := db.Issuers(context.Background())
	if err != nil || len(issuers) != 2 {
		t.Errorf("issuers: %d, %v; want root and issuing", len(issuers), err)
	}
	keys, err := db.Keys(context.Background())
	if err != nil || len(keys) != 7 {
		t.Errorf("keys: %d, %v; want 7", len(keys), err)
	}
	if _, err := s.issue(s.client(), s.token(), "after.example.lab"); err != nil {
		t.Error(err)
	}
	s.witness()
	t.Logf("ledger: %+v", rep)
}

// TestSIGTERMUnderLoad: what is in flight is finished, and within ten seconds (CFG-10).
func TestSIGTERMUnderLoad(t *testing.T) {
	s := newSite(t)
	s.start()
	l := s.load(32)
	<-l.started
	took := s.stop()
	l.end()
	if took > 10*time.Second {
		t.Errorf("stopping took %s", took)
	}
	rep := s.auditVerify()
	if rep.Open != 0 || s.orphans() != 0 || rep.Signed != rep.Size {
		t.Errorf("after SIGTERM: %+v; want nothing open, no orphan, and a checkpoint over everything", rep)
	}
	s.start()
	client, token := s.client(), s.token()
	for _, serial := range l.issued {
		if status, err := s.api(client, token, "GET", "/api/v1/certificates/"+serial, nil, nil); status != http.StatusOK {
			t.Errorf("acknowledged certificate %s is lost: %v", serial, err)
		}
	}
	t.Logf("%d certificates acknowledged, stopped in %s", len(l.issued), took)
}

// orphans counts the orphans of requests. The proof of a key on one member is none: it is
// for that very member, so that nobody takes its place when it is killed.
func (s *site) orphans() (n int) {
	s.t.Helper()
	db := s.database()
	head, err := db.Head(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	err = db.Leaves(s.t.Context(), 0, head.Size, func(_ uint64, b []byte) error {
		l, err := audit.DecodeLeaf(b)
		if err == nil && l.Kind == audit.KindOrphan && l.Op != audit.OpKeyProof {
			n++
		}
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

// TestWorkerKilledUnderLoad kills one HSM worker after the other: no request fails (P6).
func TestWorkerKilledUnderLoad(t *testing.T) {
	s := newSite(t)
	s.start()
	l := s.load(16)
	<-l.started
	var killed atomic.Int64
	for range 4 {
		for _, pid := range s.workers() {
			before, up := len(l.snapshot()), strings.Count(s.log.String(), "to=up")
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Error(err)
				continue
			}
			killed.Add(1)
			// The next one is killed when this member serves again: P6 is about one member.
			s.await(30*time.Second, func() bool { return len(l.snapshot()) > before+20 && strings.Count(s.log.String(), "to=up") > up })
		}
	}
	l.end()
	for _, err := range l.errors {
		t.Errorf("a request failed: %v", err)
	}
	rep := s.auditVerify()
	if n := s.orphans(); n != 0 || rep.Failed != 0 {
		t.Errorf("after %d kills of workers: %d orphans of requests, %+v", killed.Load(), n, rep)
	}
	s.witness()
	t.Logf("%d workers killed, %d certificates, %d errors", killed.Load(), len(l.issued), len(l.errors))
}

func (l *load) snapshot() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.issued
}

// await waits for a condition.
func (s *site) await(limit time.Duration, cond func() bool) {
	s.t.Helper()
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if cond() {
			return
		}
	}
	s.t.Fatalf("waited %s in vain", limit)
}

// workers are the pids of the server's HSM workers: its children, which are listed
// by the thread that started them (proc(5)).
func (s *site) workers() (pids []int) {
	s.t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	all := ""
	for _, task := range tasks {
		if c, err := os.ReadFile(task); err == nil {
			all += " " + string(c)
		}
	}
	for _, f := range strings.Fields(all) {
		if pid, err := strconv.Atoi(f); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}
