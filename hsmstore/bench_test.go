package hsmstore_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chancery/audit"
	"chancery/hsmstore"

	"github.com/miekg/pkcs11"
)

// rawSigner is the process of BenchmarkRawSign: miekg/pkcs11 and nothing else.
// Arguments: module, PIN, end of the key's label, seconds. It prints how often it signed.
func rawSigner() {
	p, session, key := rawOpen(os.Args[2], os.Args[3], os.Args[4])
	seconds, _ := strconv.ParseFloat(os.Args[5], 64)
	mechanism, size := uint(pkcs11.CKM_ECDSA), 32
	switch {
	case strings.HasPrefix(os.Args[4], "document:"):
		mechanism, size = pkcs11.CKM_RSA_PKCS, 51 // a DigestInfo with SHA-256 (RFC 8017 §9.2)
	case os.Args[4] == "issuer:root":
		size = 48
	}
	sessions := []pkcs11.SessionHandle{session}
	if strings.Contains(os.Args[2], "hsmfault") { // a far HSM: one session waits most of the time
		slots, err := p.GetSlotList(true)
		must(err)
		for range 3 {
			s, err := p.OpenSession(slots[0], pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
			must(err)
			sessions = append(sessions, s)
		}
	}
	digest := make([]byte, size)
	fmt.Println("ready")
	_, _ = io.ReadAll(os.Stdin)
	var n atomic.Int64
	var wg sync.WaitGroup
	end := time.Now().Add(time.Duration(seconds * float64(time.Second)))
	for _, s := range sessions {
		wg.Go(func() {
			for time.Now().Before(end) {
				must(p.SignInit(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(mechanism, nil)}, key))
				_, err := p.Sign(s, digest)
				must(err)
				n.Add(1)
			}
		})
	}
	wg.Wait()
	fmt.Println(n.Load())
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// rawOpen logs the user in on the one token of the module and finds a private key
// by the end of its label.
func rawOpen(module, pin, name string) (*pkcs11.Ctx, pkcs11.SessionHandle, pkcs11.ObjectHandle) {
	p := pkcs11.New(module)
	must(p.Initialize())
	slots, err := p.GetSlotList(true)
	must(err)
	session, err := p.OpenSession(slots[0], pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	must(err)
	must(p.Login(session, pkcs11.CKU_USER, pin))
	must(p.FindObjectsInit(session, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY), pkcs11.NewAttribute(pkcs11.CKA_LABEL, "chancery:"+name)}))
	hs, _, err := p.FindObjects(session, 1)
	must(err)
	must(p.FindObjectsFinal(session))
	return p, session, hs[0]
}

// BenchmarkRawSign is the ceiling: one process per token that does nothing but C_Sign.
func BenchmarkRawSign(b *testing.B) {
	for _, k := range speedKeys {
		b.Run(k.algorithm, func(b *testing.B) {
			c := copyCluster(b)
			const seconds = 2.0
			for b.Loop() {
				total, cpu := rawSign(c.members, k.label, seconds)
				b.ReportMetric(float64(total)/seconds, "sign/s")
				b.ReportMetric(float64(cpu.Microseconds())/float64(total), "cpu-µs/sign")
			}
		})
	}
}

// speedKeys are the keys whose speed is measured.
var speedKeys = []struct{ algorithm, name, label string }{
	{"P-256", "issuing", "issuer:issuing"}, {"P-384", "root", "issuer:root"}, {"RSA-2048", "document", "document:document"},
}

// message is one that the key signs.
func message(t testing.TB, key string) []byte {
	switch key {
	case "issuing":
		return tbs(t, "Issuing CA", newSerial())
	case "root":
		return rootTBS(t)
	}
	return attributes(oidData, 32)
}

// rawSign lets one process per member sign for a while, and tells how often they did
// and what processor time they used in all.
func rawSign(members []hsmstore.MemberConfig, key string, seconds float64) (total int, cpu time.Duration) {
	var mu sync.Mutex
	var wg, ready sync.WaitGroup
	start := make(chan struct{})
	for _, m := range members {
		pin, err := m.PIN()
		must(err)
		cmd := exec.Command("/proc/self/exe", "raw-signer", m.Module, pin, key, fmt.Sprint(seconds))
		cmd.Env = append(os.Environ(), m.Env...)
		in, err := cmd.StdinPipe()
		must(err)
		out, err := cmd.StdoutPipe()
		must(err)
		must(cmd.Start())
		ready.Add(1)
		wg.Go(func() {
			line := make([]byte, len("ready\n"))
			_, err := io.ReadFull(out, line)
			must(err)
			ready.Done()
			<-start
			in.Close()
			text, err := io.ReadAll(out)
			must(err)
			n, err := strconv.Atoi(strings.TrimSpace(string(text)))
			must(err)
			must(cmd.Wait())
			mu.Lock()
			defer mu.Unlock()
			total += n
			cpu += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
		})
	}
	ready.Wait()
	close(start)
	wg.Wait()
	return total, cpu
}

// BenchmarkShare is what of the raw rate comes through the store, by turns in the same
// seconds: parse, journal, frames and balance cost the rest. Verification is left out;
// the raw clients do not verify either.
func BenchmarkShare(b *testing.B) {
	for _, k := range speedKeys {
		b.Run(k.algorithm, func(b *testing.B) {
			c := newCluster(b)
			const rounds, seconds = 3, 1.0
			var raw, store int
			var rawCPU, storeCPU time.Duration
			for b.Loop() {
				raw, store, rawCPU, storeCPU = 0, 0, 0, 0
				for range rounds {
					n, cpu := rawSign(c.members, k.label, seconds)
					raw, rawCPU = raw+n, rawCPU+cpu
					self, workers := cpuTime(c)
					store += c.signFor(b, k.name, 24, time.Duration(seconds*float64(time.Second)), c.store.SignUnverified)
					self2, workers2 := cpuTime(c)
					storeCPU += self2 - self + workers2 - workers
				}
			}
			b.ReportMetric(float64(rawCPU)/float64(storeCPU)*float64(store)/float64(raw), "cpu-share") // what the share is when nobody else takes the cores
			b.ReportMetric(float64(raw)/rounds/seconds, "raw-sign/s")
			b.ReportMetric(float64(store)/rounds/seconds, "store-sign/s")
			b.ReportMetric(float64(store)/float64(raw), "share")
		})
	}
}

// BenchmarkOneCaller is the time that the store adds to a signature for a lone caller.
func BenchmarkOneCaller(b *testing.B) {
	c := newCluster(b)
	const rounds, seconds = 5, 0.5
	for b.Loop() {
		var raw, store int
		for range rounds {
			n, _ := rawSign(c.members[:1], "issuer:issuing", seconds)
			raw += n
			store += c.signFor(b, "issuing", 1, time.Duration(seconds*float64(time.Second)), c.store.SignUnverified)
		}
		r, s := rounds*seconds*1e6/float64(raw), rounds*seconds*1e6/float64(store)
		b.ReportMetric(r, "raw-µs")
		b.ReportMetric(s, "store-µs")
		b.ReportMetric(s-r, "added-µs")
	}
}

// signFor runs callers for a while and tells how many signatures they got.
func (c *cluster) signFor(b *testing.B, key string, callers int, d time.Duration, sign func(context.Context, *hsmstore.Key, uint64, []byte) ([]byte, error)) int {
	k, text := c.key(b, key), message(b, key)
	var wg sync.WaitGroup
	done := make([]int, callers)
	began := time.Now()
	for i := range callers {
		wg.Go(func() {
			for time.Since(began) < d {
				if _, err := sign(context.Background(), k, 7, text); err != nil {
					b.Error(err)
					return
				}
				done[i]++
			}
		})
	}
	wg.Wait()
	n := 0
	for _, d := range done {
		n += d
	}
	return int(float64(n) * float64(d) / float64(time.Since(began)))
}

// BenchmarkSessions is the rate with HSMs that are 5 ms away: it follows the sessions.
// A signature is two calls, so one session makes 100 a second at most.
func BenchmarkSessions(b *testing.B) {
	const way = 5 * time.Millisecond
	for _, n := range []int{4, 16, 64} {
		b.Run(fmt.Sprintf("%d_sessions", n), func(b *testing.B) {
			f := copyFaulty(b)
			for i := range f.members {
				f.members[i].Sessions = n
			}
			f.start(b, func(cfg *hsmstore.Config) { cfg.SignTimeout = 5 * time.Second })
			for _, ctl := range f.ctl {
				ctl.SetLatency(way)
			}
			callers := 2 * n * len(f.members)
			f.signFor(b, "issuing", callers, 2*time.Second, f.store.SignRaw) // the sessions grow
			for b.Loop() {
				rate := f.signFor(b, "issuing", callers, 2*time.Second, f.store.SignRaw) / 2
				sessions := 0
				for _, st := range f.store.Members() {
					sessions += int(st.Sessions)
				}
				b.ReportMetric(float64(rate), "sign/s")
				b.ReportMetric(float64(sessions), "sessions")
				b.ReportMetric(float64(sessions)/(2*way).Seconds(), "limit-sign/s")
			}
		})
	}
}

// BenchmarkIdle is what a cluster costs that has nothing to do but its probes.
func BenchmarkIdle(b *testing.B) {
	c := newCluster(b)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { must(c.store.Run(ctx)) })
	c.signFor(b, "issuing", 24, time.Second, c.store.SignRaw) // a worker that has worked
	for b.Loop() {
		const while = 6 * time.Second
		self, workers := cpuTime(c)
		time.Sleep(while)
		self2, workers2 := cpuTime(c)
		b.ReportMetric(100*(self2-self+workers2-workers).Seconds()/while.Seconds(), "%core")
		resident, own := 0.0, 0.0
		for _, m := range c.members {
			pid := c.store.WorkerProcess(m.Name).Pid
			resident, own = max(resident, memoryMB(pid, "VmRSS:")), max(own, memoryMB(pid, "RssAnon:"))
		}
		b.ReportMetric(resident, "worker-MB")
		b.ReportMetric(own, "worker-own-MB") // without the pages of files, which all processes share
	}
	cancel()
	wg.Wait()
}

// memoryMB is one figure of a process's memory (proc_pid_status(5)).
func memoryMB(pid int, figure string) float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(err)
	_, rest, _ := strings.Cut(string(text), figure)
	kb, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
	must(err)
	return kb / 1024
}

// BenchmarkManyMembers is the largest cluster: 28 members that make 1,100 RSA-2048
// signatures a second each, 1 ms away, and cost the processor next to nothing (see
// many_test.go). Two cores cannot feed them; the limit is what the cores allow: the
// time that nobody else used of them during the run, divided by what a signature costs
// in store and workers together. A store that waits where it need not leaves cores idle
// and stays below it. raw-sign/s is what bare clients do with the same module in the
// same minute: per member one process with four sessions, no check, no journal.
func BenchmarkManyMembers(b *testing.B) {
	f, change := copyMany(b)
	f.start(b, change, func(cfg *hsmstore.Config) { cfg.SignTimeout = 5 * time.Second })
	f.slow()
	const callers = 8 * manyMembers
	f.signFor(b, "document", callers, time.Second, f.store.SignRaw)
	for b.Loop() {
		const while = 4 * time.Second
		self, workers := cpuTime(f.cluster)
		busy, began := machineTime(), time.Now()
		n := f.signFor(b, "document", callers, while, f.store.SignRaw)
		took := time.Since(began)
		busy = machineTime() - busy
		self2, workers2 := cpuTime(f.cluster)
		ours := self2 - self + workers2 - workers
		free := time.Duration(runtime.NumCPU())*took - max(0, busy-ours)
		rate, perSign := float64(n)/while.Seconds(), ours.Seconds()/float64(n)
		b.ReportMetric(rate, "sign/s")
		b.ReportMetric(min(manyMembers*manyCapacity, free.Seconds()/took.Seconds()/perSign), "limit-sign/s")
		b.ReportMetric(1e6*(self2-self).Seconds()/float64(n), "store-cpu-µs/sign")
		b.ReportMetric(1e6*(workers2-workers).Seconds()/float64(n), "worker-cpu-µs/sign")
	}
	raw, cpu := rawSign(f.members, "document:document", 3)
	b.ReportMetric(float64(raw)/3, "raw-sign/s")
	b.ReportMetric(float64(cpu.Microseconds())/float64(raw), "raw-cpu-µs/sign")
}

// machineTime is what all processes of the machine have used.
func machineTime() time.Duration {
	text, err := os.ReadFile("/proc/stat")
	must(err)
	fields := strings.Fields(strings.SplitN(string(text), "\n", 2)[0])
	var sum time.Duration
	for i, f := range fields[1:9] {
		if n, _ := strconv.Atoi(f); i != 3 && i != 4 { // idle, iowait
			sum += time.Duration(n) * 10 * time.Millisecond
		}
	}
	return sum
}

// BenchmarkStoreSign is the store's part of a signature: parse, journal, sign,
// verify; without the ledger.
func BenchmarkStoreSign(b *testing.B) {
	for _, key := range []string{"issuing", "root", "document"} {
		b.Run(key, func(b *testing.B) {
			c := newCluster(b)
			k := c.key(b, key)
			text := message(b, key)
			parallel(b, c, 24, func(ctx context.Context) error {
				_, err := c.store.SignRaw(ctx, k, 7, text)
				return err
			})
		})
	}
}

// BenchmarkDoor is the whole way of a signature: intent, signature, done, on a ledger
// in memory.
func BenchmarkDoor(b *testing.B) {
	serial := newSerial()
	for name, r := range map[string]hsmstore.SignRequest{
		"issuing":  {Op: opCertificate, Message: tbs(b, "Issuing CA", serial), Serial: serial.Bytes(), Requester: "bench"},
		"document": {Op: audit.OpCMS, Message: attributes(oidData, 32), Requester: "bench"},
	} {
		b.Run(name, func(b *testing.B) {
			c := newCluster(b)
			k := c.key(b, name)
			parallel(b, c, 24, func(ctx context.Context) error { return once(ctx, k, r) })
		})
	}
}

// cpuTime is what this process and the workers have used so far.
func cpuTime(c *cluster) (self, workers time.Duration) {
	read := func(pid string) time.Duration {
		text, err := os.ReadFile("/proc/" + pid + "/stat")
		must(err)
		f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+2:]))
		user, _ := strconv.Atoi(f[11])
		sys, _ := strconv.Atoi(f[12])
		return time.Duration(user+sys) * 10 * time.Millisecond
	}
	self = read("self")
	for _, m := range c.members {
		workers += read(strconv.Itoa(c.store.WorkerProcess(m.Name).Pid))
	}
	return self, workers
}

func parallel(b *testing.B, c *cluster, callers int, do func(context.Context) error) {
	b.ReportAllocs()
	self, workers := cpuTime(c)
	b.ResetTimer()
	began := time.Now()
	work := make(chan struct{}, b.N)
	for range b.N {
		work <- struct{}{}
	}
	close(work)
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for range work {
				if err := do(context.Background()); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/time.Since(began).Seconds(), "sign/s")
	self2, workers2 := cpuTime(c)
	b.ReportMetric(float64((self2-self).Microseconds())/float64(b.N), "store-cpu-µs/sign")
	b.ReportMetric(float64((workers2-workers).Microseconds())/float64(b.N), "worker-cpu-µs/sign")
}
