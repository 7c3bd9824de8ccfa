package test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/acme"

	"chancery/test/pgcluster"
)

// BenchmarkLimits measures, in the same run as the rest, what the machine gives:
// durable writes and P-256 operations of one process on all cores.
func BenchmarkLimits(b *testing.B) {
	b.Run("fsync-4KiB", func(b *testing.B) {
		f, err := os.Create(filepath.Join(b.TempDir(), "f"))
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		block := make([]byte, 4096)
		for i := 0; b.Loop(); i++ {
			if _, err := f.WriteAt(block, int64(i%256)*4096); err != nil {
				b.Fatal(err)
			}
			if err := f.Sync(); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "fsync/s")
	})
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	digest := sha256.Sum256(nil)
	sig, err := ecdsa.SignASN1(rand.Reader, k, digest[:])
	if err != nil {
		b.Fatal(err)
	}
	for name, do := range map[string]func(){
		"P256-sign":   func() { _, _ = k.Sign(rand.Reader, digest[:], crypto.SHA256) },
		"P256-verify": func() { ecdsa.VerifyASN1(&k.PublicKey, digest[:], sig) },
	} {
		b.Run(name, func(b *testing.B) {
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					do()
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "op/s")
		})
	}
}

// databases are the databases that the whole program is measured on.
func databases(b *testing.B, do func(b *testing.B, s *site)) {
	b.Run("sqlite", func(b *testing.B) { do(b, newSite(b)) })
	b.Run("postgres", func(b *testing.B) { do(b, newSiteOn(b, pgcluster.New(b).Database())) })
}

// BenchmarkAPI is a certificate through POST /api/v1/certificates, CSR made by the client.
func BenchmarkAPI(b *testing.B) {
	databases(b, func(b *testing.B, s *site) {
		s.start()
		client, token := s.client(), s.token()
		csr, err := newCSR("bench.example.lab")
		if err != nil {
			b.Fatal(err)
		}
		for _, clients := range []int{1, 8, 32} {
			b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
				s.measure(b, clients, func(int) error {
					_, err := s.api(client, token, "POST", "/api/v1/certificates", map[string]string{"csr": csr, "profile": "tls-server"}, nil)
					return err
				})
			})
		}
	})
}

// BenchmarkACME is a whole order: newOrder, authorization, http-01 really fetched,
// finalize, download.
func BenchmarkACME(b *testing.B) {
	databases(b, func(b *testing.B, s *site) {
		profile := filepath.Join(b.TempDir(), "cpu")
		s.args = append(s.args, "--cpuprofile", profile)
		s.start()
		r := newResponder(b, s.challenge)
		var clients []*acme.Client
		for range 32 {
			k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				b.Fatal(err)
			}
			c := &acme.Client{Key: k, DirectoryURL: s.url("/acme/directory"), HTTPClient: s.client(), RetryBackoff: func(int, *http.Request, *http.Response) time.Duration { return 5 * time.Millisecond }}
			if _, err := c.Register(context.Background(), &acme.Account{}, acme.AcceptTOS); err != nil {
				b.Fatal(err)
			}
			clients = append(clients, c)
		}
		var n atomic.Int64
		for _, callers := range []int{1, 8, 32} {
			b.Run(fmt.Sprintf("clients=%d", callers), func(b *testing.B) {
				s.measure(b, callers, func(i int) error {
					return r.order(clients[i], fmt.Sprintf("n%d.localhost", n.Add(1)))
				})
			})
		}
		s.stop()
		fmt.Printf("%s, server CPU by part, parts within parts:\n%s", b.Name(), split(b, profile))
	})
}

// measure runs do from several callers and reports rate and CPU of server and HSM workers.
func (s *site) measure(b *testing.B, callers int, do func(caller int) error) {
	server, workers := s.cpu()
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ResetTimer()
	start := time.Now()
	for i := range callers {
		wg.Go(func() {
			for next.Add(1) <= int64(b.N) {
				if err := do(i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(start)
	b.StopTimer()
	server2, workers2 := s.cpu()
	b.ReportMetric(float64(b.N)/took.Seconds(), "op/s")
	b.ReportMetric((server2-server).Seconds()*1000/float64(b.N), "server-cpu-ms/op")
	b.ReportMetric((workers2-workers).Seconds()*1000/float64(b.N), "hsm-cpu-ms/op")
}

// cpu is what the server and its workers have used so far (proc(5), stat).
func (s *site) cpu() (server, workers time.Duration) {
	used := func(pid int) time.Duration {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0
		}
		f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		user, _ := strconv.Atoi(f[11])
		sys, _ := strconv.Atoi(f[12])
		return time.Duration(user+sys) * 10 * time.Millisecond
	}
	for _, pid := range s.workers() {
		workers += used(pid)
	}
	return used(s.cmd.Process.Pid), workers
}

// split sums a CPU profile by the parts that matter.
func split(b *testing.B, profile string) string {
	out, err := exec.Command("go", "tool", "pprof", "-top", "-cum", "-nodecount=100000", "-nodefraction=0", "-edgefraction=0", profile).CombinedOutput()
	if err != nil {
		b.Fatalf("pprof: %v\n%s", err, out)
	}
	var text strings.Builder
	for _, part := range []struct{ name, function string }{
		{"TLS and HTTP", `net/http\.\(\*conn\)\.serve$`},
		{"JWS verification", `go-jose.*\.(Verify|DetachedVerify|verifyPayload)$`},
		{"SQL of the sequencer", `dbstore\.\(\*Store\)\.Update$`},
		{"reads", `dbstore\.\(\*Store\)\.ACME`},
		{"lint", `chancery/ca\.lintCertificate$`},
		{"prepare with lint", `chancery/ca\.\(\*Authority\)\.Prepare$`},
		{"HSM store, verification included", `hsmstore\.\(\*Operation\)\.SignMessage$`},
		{"validation", `acme\.\(\*validator\)`},
	} {
		re := regexp.MustCompile(`(?m)^\s*\S+\s+\S+\s+\S+\s+(\S+)\s+(\S+)\s+\S*` + part.function)
		if m := re.FindStringSubmatch(string(out)); m != nil {
			fmt.Fprintf(&text, "%8s %7s  %s\n", m[1], m[2], part.name)
		}
	}
	return text.String()
}

// responder answers http-01 for every account that is registered with it.
type responder struct {
	mu   sync.RWMutex
	keys map[string]string // path → key authorization
}

func newResponder(t testing.TB, port int) *responder {
	t.Helper()
	r := &responder{keys: map[string]string{}}
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.RLock()
		defer r.mu.RUnlock()
		fmt.Fprint(w, r.keys[req.URL.Path])
	})}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return r
}

// order gets one certificate.
func (r *responder) order(c *acme.Client, name string) error {
	_, err := r.certificate(c, name, &x509.CertificateRequest{DNSNames: []string{name}})
	return err
}

// certificate gets one for a request; it returns the chain.
func (r *responder) certificate(c *acme.Client, name string, request *x509.CertificateRequest) ([][]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	o, err := c.AuthorizeOrder(ctx, acme.DomainIDs(name))
	if err != nil {
		return nil, err
	}
	for _, u := range o.AuthzURLs {
		a, err := c.GetAuthorization(ctx, u)
		if err != nil {
			return nil, err
		}
		for _, ch := range a.Challenges {
			if ch.Type != "http-01" {
				continue
			}
			text, err := c.HTTP01ChallengeResponse(ch.Token)
			if err != nil {
				return nil, err
			}
			r.mu.Lock()
			r.keys[c.HTTP01ChallengePath(ch.Token)] = text
			r.mu.Unlock()
			if _, err := c.Accept(ctx, ch); err != nil {
				return nil, err
			}
		}
		if _, err := c.WaitAuthorization(ctx, u); err != nil {
			return nil, err
		}
	}
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, request, k)
	if err != nil {
		return nil, err
	}
	chain, _, err := c.CreateOrderCert(ctx, o.FinalizeURL, csr, true)
	if err == nil && len(chain) != 2 {
		err = errors.New("the chain has not two certificates")
	}
	return chain, err
}
