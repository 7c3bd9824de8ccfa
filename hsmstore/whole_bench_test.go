package hsmstore_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chancery/admin"
	"chancery/audit"
	"chancery/dbstore"
	"chancery/hsmstore"
	"chancery/test/hsmfault"
	"chancery/test/pgcluster"
)

// whole is a cluster of two SoftHSM members on a real database with its intent journal:
// everything that stands between a caller and a signature.
type whole struct {
	dir    string
	ledger *audit.Ledger
	store  *hsmstore.Store
	ctl    []*hsmfault.Control
}

// newWhole bears its keys. With slow, the members go through the module that can take time.
func newWhole(b *testing.B, url string, slow bool) *whole {
	b.Helper()
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "chancery-whole-") // SoftHSM's configuration takes no '='
	must(err)
	b.Cleanup(func() { os.RemoveAll(dir) })
	w := &whole{dir: dir}
	var members []hsmstore.MemberConfig
	for _, n := range []string{"m1", "m2"} {
		m, err := hsmstore.WriteSoftHSMConf(w.dir, n)
		must(err)
		must(hsmstore.InitToken(ctx, m, m.TokenLabel))
		if slow {
			ctl := hsmfault.New(b, filepath.Join(w.dir, n+".control"))
			ctl.Delegate(m.Module)
			m.Module, m.Env = hsmfault.Build(b), append(slices.Clone(m.Env), ctl.Env()...)
			m.Sessions = wholeSessions
			w.ctl = append(w.ctl, ctl)
		}
		members = append(members, m)
	}
	db, err := dbstore.Open(ctx, url)
	must(err)
	b.Cleanup(func() { db.Close() })
	journal, err := audit.OpenJournal(filepath.Join(w.dir, "intents"))
	must(err)
	b.Cleanup(func() { journal.Close() })
	log := slog.New(slog.DiscardHandler)
	w.ledger, err = audit.Open(ctx, db, audit.Options{Node: "n1", Build: "bench", Journal: journal, Shared: db.Shared(), Log: log})
	must(err)
	run, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() { defer close(ended); w.ledger.Run(run) }()
	b.Cleanup(func() { cancel(); <-ended })
	w.store, err = hsmstore.Open(ctx, hsmstore.Config{Members: members, Ledger: w.ledger, Log: log})
	must(err)
	b.Cleanup(func() { w.store.Close() })
	acts := w.store.GenesisActs(issuerSpec, documentSpec)
	grant, err := admin.Genesis(w.ledger.Head(), acts)
	must(err)
	must(w.store.Genesis(ctx, grant, audit.Genesis{Random: [32]byte{2}, Dev: true, Domain: "ca.example", Acts: acts}, issuerSpec, documentSpec))
	return w
}

// age lets the ledger have so many entries.
func (w *whole) age(entries uint64) {
	var f audit.Fields
	f.Text(audit.TagReason, "an old entry, about as long as most are, which is some three hundred octets of this and that: digests, names, times, the build of the program")
	f.Bytes(audit.TagAttributes, make([]byte, 128))
	var wg sync.WaitGroup
	var n atomic.Int64
	missing := int64(entries) - int64(w.ledger.Head().Size)
	for range 2048 {
		wg.Go(func() {
			for n.Add(1) <= missing {
				_, err := w.ledger.Append(context.Background(), audit.Event(audit.OpConfig, f))
				must(err)
			}
		})
	}
	wg.Wait()
}

// operations runs whole operations: intent durable, signed, verified, done durable.
func (w *whole) operations(b *testing.B, key string, callers int) {
	k, err := w.store.Key(key)
	must(err)
	req := hsmstore.SignRequest{Op: audit.OpCMS, Message: attributes(oidData, 32), Requester: "bench"}
	if key == "issuing" {
		serial := newSerial()
		req = hsmstore.SignRequest{Op: audit.OpCertificate, Message: tbs(b, "Issuing CA", serial), Serial: serial.Bytes(), Requester: "bench"}
	}
	times := make([][]time.Duration, callers)
	var wg sync.WaitGroup
	var n atomic.Int64
	b.ResetTimer()
	began := time.Now()
	for i := range callers {
		wg.Go(func() {
			for n.Add(1) <= int64(b.N) {
				at := time.Now()
				if err := once(context.Background(), k, req); err != nil {
					b.Error(err)
					return
				}
				times[i] = append(times[i], time.Since(at))
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/time.Since(began).Seconds(), "op/s")
	all := slices.Concat(times...)
	slices.Sort(all)
	if len(all) > 0 {
		b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, "p50-ms")
		b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, "p99-ms")
	}
}

// fsyncs is how many 4 KiB writes a second the disk makes durable in that folder.
func fsyncs(dir string) float64 {
	f, err := os.Create(filepath.Join(dir, "fsync"))
	must(err)
	defer f.Close()
	buf := make([]byte, 4096)
	n, began := 0, time.Now()
	for ; time.Since(began) < 300*time.Millisecond; n++ {
		_, err := f.Write(buf)
		must(err)
		must(f.Sync())
	}
	return float64(n) / time.Since(began).Seconds()
}

// Members that take their time: each call takes wholeWay, a signature is two.
const (
	wholeSessions = 16
	wholeWay      = 10 * time.Millisecond
	wholeOld      = 1_000_000
)

// BenchmarkWhole is the whole of a signing operation on a real database. old is how many
// entries the ledger has before: the cost must not grow with it.
func BenchmarkWhole(b *testing.B) {
	pg := pgcluster.New(b)
	for _, kind := range []string{"sqlite", "postgres"} {
		b.Run(kind, func(b *testing.B) {
			url := func() string {
				if kind == "postgres" {
					return pg.Database()
				}
				return "sqlite:" + filepath.Join(b.TempDir(), "chancery.db")
			}
			w := newWhole(b, url(), false)
			for _, old := range []uint64{0, wholeOld} {
				w.age(old)
				for _, callers := range []int{1, 16, 64, 128} {
					b.Run(fmt.Sprintf("P-256/old=%d/callers=%d", old, callers), func(b *testing.B) {
						rate := fsyncs(w.dir)
						w.operations(b, "issuing", callers)
						b.ReportMetric(rate, "fsync/s")
					})
				}
			}
			b.Run("RSA-2048/callers=64", func(b *testing.B) { w.operations(b, "document", 64) })
			b.Run("RSA-2048/far/callers=128", func(b *testing.B) {
				far := newWhole(b, url(), true)
				for _, c := range far.ctl {
					c.SetLatency(wholeWay)
				}
				k, err := far.store.Key("document")
				must(err)
				var wg sync.WaitGroup
				for range 128 { // the sessions grow
					wg.Go(func() {
						for began := time.Now(); time.Since(began) < 2*time.Second; {
							must(once(context.Background(), k, hsmstore.SignRequest{Op: audit.OpCMS, Message: attributes(oidData, 32), Requester: "bench"}))
						}
					})
				}
				wg.Wait()
				far.operations(b, "document", 128)
				sessions := 0
				for _, m := range far.store.Members() {
					sessions += int(m.Sessions)
				}
				b.ReportMetric(float64(sessions)/(2*wholeWay).Seconds(), "limit-op/s")
			})
		})
	}
}
