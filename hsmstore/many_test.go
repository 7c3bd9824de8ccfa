package hsmstore_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/hsmstore"
	"chancery/test/hsmfault"
)

// The largest cluster that AWS CloudHSM gives has 28 HSMs, each of which makes 1,100
// RSA-2048 signatures a second. The module plays that speed, and a way of 1 ms, without
// using the processor for it.
const (
	manyMembers  = 28
	manyCapacity = 1100
	manyWay      = time.Millisecond
)

// copyMany makes 28 members of one: the tokens are copies of one token that say other
// serial numbers.
func copyMany(t testing.TB) (*faulty, func(*hsmstore.Config)) {
	t.Helper()
	lib := hsmfault.Build(t)
	c := copyCluster(t)
	one := c.members[0]
	f := &faulty{cluster: c, ctl: map[string]*hsmfault.Control{}}
	f.members = nil
	keys := c.db.keys()
	probe := keys[slices.IndexFunc(keys, func(r hsmstore.KeyRecord) bool { return r.Name == hsmstore.ProbeKeyName(one.Name) })]
	var names []string
	var probes []hsmstore.KeyRecord
	var enrolled []hsmstore.MemberRecord
	for i := range manyMembers {
		name := fmt.Sprintf("h%02d", i+1)
		home := filepath.Join(c.dir, "hsm", name)
		must(os.CopyFS(home, os.DirFS(filepath.Join(c.dir, "hsm", one.Name))))
		_ = os.Remove(filepath.Join(home, "worker.journal"))
		conf := filepath.Join(home, "softhsm2.conf")
		text, err := os.ReadFile(conf)
		must(err)
		must(os.WriteFile(conf, []byte(strings.ReplaceAll(string(text), filepath.Join("hsm", one.Name), filepath.Join("hsm", name))), 0o600))
		must(os.Chmod(filepath.Join(home, "pin"), 0o600))
		m := layout(c.dir, name)
		ctl := hsmfault.New(t, filepath.Join(c.dir, name+".control"))
		ctl.Delegate(m.Module)
		serial := fmt.Sprintf("%016x", i+1)
		ctl.SetSerial(serial)
		m.Module, m.Env, m.TokenLabel = lib, append(m.Env[:1:1], ctl.Env()...), one.TokenLabel
		f.members, f.ctl[name], names = append(f.members, m), ctl, append(names, name)
		p := probe
		p.Name, p.Members, p.Origin = hsmstore.ProbeKeyName(name), []string{name}, name
		probes = append(probes, p)
		enrolled = append(enrolled, hsmstore.MemberRecord{Name: name, Serial: serial, Label: one.TokenLabel, Replication: hsmstore.ReplicateWrap, Standing: hsmstore.StandingActive})
	}
	return f, func(cfg *hsmstore.Config) {
		cfg.Enrolled, cfg.Keys = enrolled, probes
		for _, r := range keys {
			if r.Name == "document" || r.Name == "issuing" {
				r.Members = names
				cfg.Keys = append(cfg.Keys, r)
			}
		}
	}
}

// slow gives the members the speed of network HSMs.
func (f *faulty) slow() {
	for _, ctl := range f.ctl {
		ctl.SetMemo(true, true)
		ctl.SetCapacity(manyCapacity)
		ctl.SetLatency(manyWay)
	}
}

// calls are the requests of each member so far.
func (c *cluster) calls() map[string]uint64 {
	out := map[string]uint64{}
	for _, st := range c.store.Members() {
		out[st.Name] = st.Calls
	}
	return out
}

func TestManyMembers(t *testing.T) {
	f, change := copyMany(t)
	began := time.Now()
	f.start(t, change, func(cfg *hsmstore.Config) { cfg.SignTimeout = 5 * time.Second })
	took := time.Since(began)
	for _, st := range f.store.Members() {
		if !isUp(st) || len(st.Bad) != 0 {
			t.Fatalf("%+v", st)
		}
	}
	t.Logf("%d members started in %v", manyMembers, took)
	if took > 3*time.Second && !raceEnabled {
		t.Errorf("the start took %v", took)
	}
	f.slow()
	while := 2 * time.Second
	if raceEnabled {
		while *= 3 // as many signatures: the evenness of few is chance
	}
	before := f.calls()
	rate := f.rawLoad(t, 8*manyMembers, while)
	var calls []uint64
	total := uint64(0)
	for m, n := range f.calls() {
		calls = append(calls, n-before[m])
		total += n - before[m]
	}
	mean := float64(total) / manyMembers
	t.Logf("%.0f signatures/s; calls per member %d to %d, mean %.0f", rate, slices.Min(calls), slices.Max(calls), mean)
	apart := 0.10
	if raceEnabled { // beside other packages' tests the scheduler adds its own unevenness
		apart = 0.25
	}
	if float64(slices.Min(calls)) < (1-apart)*mean || float64(slices.Max(calls)) > (1+apart)*mean {
		t.Errorf("the load is not even: %v", calls)
	}

	l := f.loading(t, 4*manyMembers)
	l.more(t, 200)
	starts := map[string]uint64{}
	for i, m := range f.members {
		if i%2 == 0 {
			starts[m.Name] = f.status(m.Name).Starts
			must(f.store.WorkerProcess(m.Name).Kill())
		}
	}
	l.more(t, l.done.Load()+200)
	for m, n := range starts {
		f.await(t, m, func(s hsmstore.MemberStatus) bool { return isUp(s) && s.Starts > n })
	}
	l.stop()
	t.Logf("%d killed: %d certificates, %d errors, worst call %v", len(starts), l.done.Load(), l.failed.Load(), time.Duration(l.worst.Load()))
	f.settled(t)
}

// rawLoad signs documents without the ledger and returns the rate.
func (c *cluster) rawLoad(t testing.TB, callers int, d time.Duration) float64 {
	t.Helper()
	k := c.key(t, "document")
	message := attributes(oidData, 32)
	var wg sync.WaitGroup
	done := make([]int, callers)
	began := time.Now()
	for i := range callers {
		wg.Go(func() {
			for time.Since(began) < d {
				if _, err := c.store.SignRaw(context.Background(), k, 7, message); err != nil {
					t.Error(err)
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
	return float64(n) / time.Since(began).Seconds()
}
