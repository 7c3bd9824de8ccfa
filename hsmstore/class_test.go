package hsmstore_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chancery/audit"
	"chancery/hsmstore"
	"chancery/test/hsmfault"
)

// Those who wait get a place by class, first come first served within one.
func TestQueueOrder(t *testing.T) {
	q := hsmstore.NewQueue(2)
	ctx := t.Context()
	must(q.Acquire(ctx, hsmstore.ClassAPI))
	must(q.Acquire(ctx, hsmstore.ClassAPI))
	var mu sync.Mutex
	var order []hsmstore.Class
	var wg sync.WaitGroup
	arrive := []hsmstore.Class{hsmstore.ClassBulk, hsmstore.ClassAPI, hsmstore.ClassOCSP, hsmstore.ClassRevocation, hsmstore.ClassBulk, hsmstore.ClassAPI, hsmstore.ClassRevocation}
	for i, c := range arrive {
		wg.Go(func() {
			must(q.Acquire(ctx, c))
			mu.Lock()
			order = append(order, c)
			mu.Unlock()
			q.Release(c)
		})
		until(t, "it to wait", func() bool { return q.Waiting() == i+1 })
	}
	q.Release(hsmstore.ClassAPI) // one place goes round; the other stays taken
	wg.Wait()
	want := []hsmstore.Class{hsmstore.ClassRevocation, hsmstore.ClassRevocation, hsmstore.ClassOCSP, hsmstore.ClassAPI, hsmstore.ClassAPI, hsmstore.ClassBulk, hsmstore.ClassBulk}
	if !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
}

// Bulk signing takes half of the places at most, and one while others sign; who stops
// waiting leaves no place taken.
func TestQueueBoundsBulk(t *testing.T) {
	const places = 16
	q := hsmstore.NewQueue(places)
	ctx, cancel := context.WithCancel(t.Context())
	var got atomic.Int64
	var wg sync.WaitGroup
	for range 2 * places {
		wg.Go(func() {
			if err := q.Acquire(ctx, hsmstore.ClassBulk); err == nil {
				got.Add(1)
			} else if !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
	until(t, "all to have come", func() bool { return int(got.Load())+q.Waiting() == 2*places })
	if n := got.Load(); n != places/2 {
		t.Errorf("bulk signing has %d of %d places", n, places)
	}
	for range places / 2 { // the other half is for the others, without waiting
		must(q.Acquire(t.Context(), hsmstore.ClassOCSP))
	}
	for range places/2 - 1 {
		q.Release(hsmstore.ClassBulk)
	}
	if n := got.Load(); n != places/2 {
		t.Errorf("bulk signing took %d places again beside others", n-places/2)
	}
	q.Release(hsmstore.ClassBulk) // one is always for it
	until(t, "bulk signing to go on", func() bool { return got.Load() == places/2+1 })
	cancel()
	wg.Wait()
	q.Release(hsmstore.ClassBulk)
	for range places / 2 {
		q.Release(hsmstore.ClassOCSP)
	}
	if n := q.Running(); n != 0 || q.Waiting() != 0 {
		t.Errorf("%d run, %d wait, when all have gone", n, q.Waiting())
	}
}

// On a store whose HSM does not answer: bulk signing cannot take what revocations need.
func TestBulkLeavesPlaces(t *testing.T) {
	f := newFaulty(t, func(cfg *hsmstore.Config) { cfg.SignTimeout = 20 * time.Second })
	for _, ctl := range f.ctl {
		ctl.ResetCounts()
		ctl.Hang(hsmfault.Sign)
	}
	var wg sync.WaitGroup
	flood := func(n int, c hsmstore.Class) {
		for range n {
			k, req := f.key(t, "issuing"), issue(t, nil)
			req.Class = c
			wg.Go(func() {
				if err := once(context.Background(), k, req); err != nil {
					t.Error(err)
				}
			})
		}
	}
	running := func() int { _, n := f.store.Waiting(); return n }
	flood(64, hsmstore.ClassBulk)
	until(t, "the flood", func() bool { n, _ := f.store.Waiting(); return n == 64 })
	const places = 2 * 2 * 4 // two members with four sessions
	until(t, "bulk signing to take its half", func() bool { return running() == places/2 })
	flood(3, hsmstore.ClassRevocation)
	until(t, "the revocations to get places", func() bool { return running() == places/2+3 })
	for _, ctl := range f.ctl {
		ctl.Release()
	}
	wg.Wait()
	f.settled(t)
}

// BenchmarkClasses is the time that CRLs and certificates of ACME take while 64 callers
// sign in bulk, against the same without them; with SoftHSM, where all share the
// processor, and with network HSMs as the module plays them.
func BenchmarkClasses(b *testing.B) {
	b.Run("softhsm", func(b *testing.B) { classes(b, false) })
	b.Run("network", func(b *testing.B) { classes(b, true) })
}

func classes(b *testing.B, network bool) {
	f := newFaulty(b, func(cfg *hsmstore.Config) { cfg.SignTimeout = 5 * time.Second })
	if network {
		f.slow()
	}
	must(onceAs(f.cluster, "issuing", hsmstore.ClassAPI)) // remembers
	for b.Loop() {
		f.p99(b, "idle")
		end, wg := make(chan struct{}), sync.WaitGroup{}
		var bulk atomic.Int64
		began := time.Now()
		for range 64 {
			wg.Go(func() {
				for {
					select {
					case <-end:
						return
					default:
					}
					if err := onceAs(f.cluster, "document", hsmstore.ClassBulk); err != nil {
						b.Error(err)
						return
					}
					bulk.Add(1)
				}
			})
		}
		f.p99(b, "flood")
		close(end)
		wg.Wait()
		b.ReportMetric(float64(bulk.Load())/time.Since(began).Seconds(), "bulk/s")
	}
}

func onceAs(c *cluster, key string, class hsmstore.Class) error {
	k, err := c.store.Key(key)
	if err != nil {
		return err
	}
	req := hsmstore.SignRequest{Op: audit.OpCMS, Message: attributes(oidData, 32), Class: class}
	if key == "issuing" {
		req = issueOnce()
		req.Class = class
	}
	op, err := k.Begin(context.Background(), req)
	if err != nil {
		return err
	}
	defer op.Close()
	sig, err := op.SignMessage(nil, req.Message, k.Hash())
	if err != nil {
		return err
	}
	_, err = op.Commit(context.Background(), audit.Done{Artefact: sha256.Sum256(sig)})
	return err
}

var issueOnce = sync.OnceValue(func() hsmstore.SignRequest {
	serial := newSerial()
	return hsmstore.SignRequest{Op: audit.OpCertificate, Message: tbs(panicTB{}, "Issuing CA", serial), Serial: serial.Bytes(), Requester: "test"}
})

// panicTB is a testing.TB for what is made once.
type panicTB struct{ testing.TB }

func (panicTB) Helper() {}

func (panicTB) Fatal(args ...any) { panic(args) }

// p99 measures both urgent classes for a second and a half and reports their p99.
func (f *faulty) p99(b *testing.B, when string) {
	for class, name := range map[hsmstore.Class]string{hsmstore.ClassRevocation: "crl", hsmstore.ClassAPI: "acme"} {
		var took []time.Duration
		for began := time.Now(); time.Since(began) < 1500*time.Millisecond; time.Sleep(time.Millisecond) {
			at := time.Now()
			if err := onceAs(f.cluster, "issuing", class); err != nil {
				b.Fatal(err)
			}
			took = append(took, time.Since(at))
		}
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), when+"-"+name+"-p99-µs")
		b.ReportMetric(float64(took[len(took)/2].Microseconds()), when+"-"+name+"-p50-µs")
	}
}
