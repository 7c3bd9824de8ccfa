package audit_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"chancery/audit"
)

// sweeping runs a sweeper on the ledger of b until the test ends.
func (b *bench) sweeping(opt audit.SweepOptions) *audit.Sweeper {
	s := audit.NewSweeper(b.ledger, b.db, opt)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	b.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			b.Error(err)
		}
	})
	return s
}

func (b *bench) await(what string, is func() bool) {
	b.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			b.Fatalf("waited in vain: %s", what)
		}
	}
}

// The sweeper reads all, follows what is new, reads all again, and leaves a ledger that
// is in order alone.
func TestSweeperFollows(t *testing.T) {
	b := newLedger(t)
	b.fill(300)
	b.checkpoint()
	s := b.sweeping(audit.SweepOptions{Every: 20 * time.Millisecond, Chunk: 100})
	size := func() uint64 { return b.ledger.Head().Size }
	b.await("all is read", func() bool { return s.State().Swept == size() })
	b.fill(200) // a writer beside it
	b.checkpoint()
	b.await("what is new is read", func() bool { return s.State().Swept == size() })
	b.await("all is read again", func() bool { return !s.State().Whole.IsZero() })
	if st := s.State(); len(st.Alarms) != 0 || b.ledger.Broken() != nil {
		t.Errorf("alarms %v, ledger %v", st.Alarms, b.ledger.Broken())
	}
}

// What TestTamper changes behind a stopped server is found under a running one, too, and
// closes the ledger: what is in flight is refused, and the sequencer stays.
func TestSweeperFinds(t *testing.T) {
	onlySQLite(t)
	const drop = "DROP TRIGGER ledger_leaf_keep_u; DROP TRIGGER ledger_leaf_keep_d; DROP TRIGGER ledger_tile_keep_u;"
	flip := "substr(leaf, 1, 56) || x'05' || substr(leaf, 58)"
	for _, c := range []struct {
		name, sql, promise string
		index              uint64 // 0: the size that the note shows or that it has
	}{
		{"byte in a full tile", drop + "UPDATE ledger_leaf SET leaf = " + flip + " WHERE idx = 300", "P1 P9", 300}, // an intent is missed by its closing leaf before its tile is full,
		{"leaf removed", drop + "DELETE FROM ledger_leaf WHERE idx = 333", "P9", 333},
		{"leaf added", "INSERT INTO ledger_leaf (idx, kind, leaf) SELECT 901, kind, leaf FROM ledger_leaf WHERE idx = 1", "P9", 901},
		{"tile changed", drop + "UPDATE ledger_tile SET data = CASE WHEN substr(data, 1, 1) = x'00' THEN x'01' ELSE x'00' END || substr(data, 2) WHERE level = 0 AND n = 1", "P9", 256},
		{"checkpoint changed", "UPDATE ledger_checkpoint SET note = replace(note, char(10)||'901'||char(10), char(10)||'902'||char(10)) WHERE size = 901", "P9", 0},
		{"kind changed", drop + "UPDATE ledger_leaf SET kind = 3 WHERE idx = 700", "P9", 700},
		{"closed intent is open again", "INSERT INTO ledger_open (idx, node) VALUES (1, 'n')", "P1", 1},
		{"open intent is not listed", "DELETE FROM ledger_open", "P1", 901},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newLedger(t)
			b.fill(450)
			b.checkpoint()
			if strings.HasPrefix(c.name, "open intent") {
				if _, err := b.ledger.Begin(context.Background(), intent(1)); err != nil {
					t.Fatal(err)
				}
			}
			s := b.sweeping(audit.SweepOptions{Every: 20 * time.Millisecond})
			b.await("all is read twice", func() bool { return !s.State().Whole.IsZero() })
			raw, err := sql.Open("sqlite3", b.path("x.db")+"?_busy_timeout=10000")
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			if _, err := raw.Exec(c.sql); err != nil {
				t.Fatal(err)
			}
			b.await("an alarm", func() bool { return len(s.State().Alarms) > 0 })
			if a := s.State().Alarms[0]; !strings.Contains(c.promise, a.Promise) || c.index > 0 && a.Index != c.index || !a.Closed {
				t.Errorf("alarm %+v, want %s at entry %d", a, c.promise, c.index)
			}
			b.await("the ledger is closed", func() bool { return b.ledger.Broken() != nil })
			if _, err := b.ledger.Begin(context.Background(), intent(2)); !errors.Is(err, audit.ErrUnavailable) || !errors.Is(err, audit.ErrTampered) {
				t.Errorf("Begin: %v", err)
			}
		})
	}
}

// An intent of this node that nothing closes is an alarm after a while, which ends when it
// is closed; an old entry without a checkpoint is one, too. Neither closes the ledger.
func TestSweeperWaits(t *testing.T) {
	t.Parallel()
	b := newLedger(t)
	b.fill(1)
	o, err := b.ledger.Begin(context.Background(), intent(1))
	if err != nil {
		t.Fatal(err)
	}
	b.ahead.Store(int64(10 * time.Minute)) // the clock, which is the ledger's
	s := b.sweeping(audit.SweepOptions{Every: 20 * time.Millisecond})
	count := func(promise string) (n int) {
		for _, a := range s.State().Alarms {
			if a.Promise == promise {
				n++
			}
		}
		return n
	}
	b.await("no checkpoint", func() bool { return count("P9") == 1 })
	b.await("it is noticed", func() bool { return s.State().Swept == b.ledger.Head().Size })
	if count("P1") != 0 {
		t.Error("an alarm before the intent was given time")
	}
	b.ahead.Store(int64(20 * time.Minute))
	b.await("the open intent", func() bool { return count("P1") == 1 })
	if a := s.State().Alarms; b.ledger.Broken() != nil {
		t.Errorf("the ledger is closed because of %v", a)
	}
	if _, err := b.ledger.Orphan(context.Background(), o, "test", nil); err != nil {
		t.Fatal(err)
	}
	b.checkpoint()
	b.await("no alarm any more", func() bool { return len(s.State().Alarms) == 0 })
}

// BenchmarkSweep tells what reading entries again costs.
func BenchmarkSweep(b *testing.B) {
	l := newLedger(b)
	h := newHouse(l)
	for i := range 5000 {
		h.certificate(fmt.Sprintf("n%d.example", i), nil)
	}
	l.checkpoint()
	b.ResetTimer()
	before := cpuTime(b)
	for range b.N {
		if _, err := audit.SweepOnce(context.Background(), l.ledger, l.db); err != nil {
			b.Fatal(err)
		}
	}
	n := float64(b.N) * float64(l.ledger.Head().Size)
	b.ReportMetric(n/b.Elapsed().Seconds(), "entries/s")
	cpu := (cpuTime(b) - before).Seconds() / n // of one entry
	b.ReportMetric(cpu*1e6, "cpu-µs/entry")
	b.ReportMetric(cpu*1024/10*100, "cpu-%-at-1024-in-10s")
}

func cpuTime(t testing.TB) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// The files outside the database only grow. One that does not is an alarm until a restart,
// even if it looks whole again.
func TestSweeperKeepsWitnesses(t *testing.T) {
	for file, cut := range map[string]func(path string) error{
		"journal": func(path string) error { return os.Truncate(path, 10) },
		"anchor":  os.Remove,
	} {
		t.Run(file, func(t *testing.T) {
			t.Parallel()
			b := newLedger(t)
			b.fill(20)
			b.checkpoint()
			var looks atomic.Int64
			s := b.sweeping(audit.SweepOptions{Every: 20 * time.Millisecond, Counts: func(map[uint64]bool) (audit.CountsReading, error) {
				looks.Add(1)
				return audit.CountsReading{}, nil
			}})
			b.await("three looks", func() bool { return looks.Load() > 3 })
			b.fill(20)
			b.checkpoint()
			b.await("three looks more", func() bool { return looks.Load() > 6 })
			if a := s.State().Alarms; len(a) > 0 {
				t.Fatalf("alarms before: %v", a)
			}
			if err := cut(b.path(file)); err != nil {
				t.Fatal(err)
			}
			found := func() bool {
				a := s.State().Alarms
				return len(a) == 1 && a[0].Promise == "P9" && strings.Contains(a[0].What, file)
			}
			b.await("an alarm", found)
			b.fill(20)
			b.checkpoint()
			was := looks.Load()
			b.await("three looks after", func() bool { return looks.Load() > was+3 })
			if !found() || b.ledger.Broken() != nil {
				t.Errorf("alarms %v, ledger %v", s.State().Alarms, b.ledger.Broken())
			}
		})
	}
}

// A counter that began at some time is compared from its first reading on; what was found
// stays, until the counter begins anew.
func TestSweeperCounts(t *testing.T) {
	t.Parallel()
	b := newLedger(t)
	b.fill(10)
	b.checkpoint()
	now := time.Now()
	at := func(hours int) time.Time { return now.Add(time.Duration(hours) * time.Hour) }
	var reading atomic.Pointer[audit.SignatureCount]
	var asked atomic.Int64
	s := b.sweeping(audit.SweepOptions{Every: 20 * time.Millisecond, Counts: func(map[uint64]bool) (audit.CountsReading, error) {
		asked.Add(1)
		if r := reading.Load(); r != nil {
			return audit.CountsReading{Counts: []audit.SignatureCount{*r}, Witness: witness{}}, nil
		}
		return audit.CountsReading{}, errors.New("line 7: no counts")
	}})
	surplus := func() (out []string) {
		for _, a := range s.State().Alarms {
			if a.Promise == "surplus" {
				out = append(out, a.What)
			}
		}
		return out
	}
	read := func(count uint64, from, to int) {
		reading.Store(&audit.SignatureCount{Token: "T1", Key: intent(0).Key, Count: count, From: at(from), To: at(to)})
		before := asked.Load()
		b.await("two looks", func() bool { return asked.Load() > before+2 }) // the first of them has been compared
	}
	b.await("an unreadable file", func() bool { a := surplus(); return len(a) == 1 && strings.Contains(a[0], "cannot be read") })
	read(1000, -5, 1) // from here on
	if a := surplus(); len(a) != 0 {
		t.Errorf("the first reading: %v", a)
	}
	b.ahead.Store(int64(2 * time.Hour))
	b.fill(5)
	read(1005, -5, 3)
	if a := surplus(); len(a) != 0 {
		t.Errorf("as many as are recorded: %v", a)
	}
	read(1007, -5, 4)
	if a := surplus(); len(a) != 1 || !strings.Contains(a[0], "2 were made behind it") {
		t.Errorf("two more: %v", a)
	}
	reading.Store(nil)
	b.await("both", func() bool { return len(surplus()) == 2 })
	read(1007, -5, 5)
	if a := surplus(); len(a) != 1 {
		t.Errorf("it is not over: %v", a)
	}
	read(0, 5, 6) // a counter that begins after it was judged
	if a := surplus(); len(a) != 0 {
		t.Errorf("a new counter: %v", a)
	}
	if b.ledger.Broken() != nil {
		t.Error("a count closed the ledger")
	}
}
