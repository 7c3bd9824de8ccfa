package hsmstore_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
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
	if strings.HasPrefix(os.Args[4], "document:") {
		mechanism, size = pkcs11.CKM_RSA_PKCS, 51 // a DigestInfo with SHA-256 (RFC 8017 §9.2)
	}
	digest, n := make([]byte, size), 0
	fmt.Println("ready")
	_, _ = io.ReadAll(os.Stdin)
	for end := time.Now().Add(time.Duration(seconds * float64(time.Second))); time.Now().Before(end); n++ {
		must(p.SignInit(session, []*pkcs11.Mechanism{pkcs11.NewMechanism(mechanism, nil)}, key))
		_, err := p.Sign(session, digest)
		must(err)
	}
	fmt.Println(n)
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
	for name, key := range map[string]string{"P-256": "issuer:issuing", "RSA-2048": "document:document"} {
		b.Run(name, func(b *testing.B) { rawSign(b, key) })
	}
}

func rawSign(b *testing.B, key string) {
	c := copyCluster(b)
	const seconds = 2.0
	for b.Loop() {
		var total int
		var cpu time.Duration
		var mu sync.Mutex
		var wg, ready sync.WaitGroup
		start := make(chan struct{})
		for _, m := range c.members {
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
				mu.Lock()
				total += n
				mu.Unlock()
				must(cmd.Wait())
				mu.Lock()
				cpu += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
				mu.Unlock()
			})
		}
		ready.Wait()
		close(start)
		wg.Wait()
		b.ReportMetric(float64(total)/seconds, "sign/s")
		b.ReportMetric(float64(cpu.Microseconds())/float64(total), "cpu-µs/sign")
	}
}

// BenchmarkStoreSign is the store's part of a signature: parse, journal, sign,
// verify; without the ledger.
func BenchmarkStoreSign(b *testing.B) {
	for _, key := range []string{"issuing", "root", "document"} {
		b.Run(key, func(b *testing.B) {
			c := newCluster(b)
			k := c.key(b, key)
			message := map[string][]byte{"issuing": tbs(b, "Issuing CA", newSerial()), "root": rootTBS(b), "document": attributes(oidData, 32)}[key]
			parallel(b, c, 24, func(ctx context.Context) error {
				_, err := c.store.SignRaw(ctx, k, 7, message)
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
