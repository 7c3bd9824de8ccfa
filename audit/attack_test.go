package audit_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"chancery/audit"
	"chancery/ca"
	"chancery/dbstore"
	"chancery/test/pgcluster"
)

// faulty is the real store with faults before and after a commit.
type faulty struct {
	*dbstore.Store
	before, after, read atomic.Pointer[error]
}

func (f *faulty) Update(ctx context.Context, fn func(audit.Tx) error) error {
	if e := f.before.Load(); e != nil {
		return *e
	}
	err := f.Store.Update(ctx, fn)
	if e := f.after.Load(); e != nil && err == nil {
		return *e
	}
	return err
}

func (f *faulty) Head(ctx context.Context) (audit.Head, error) {
	if e := f.read.Load(); e != nil {
		return audit.Head{}, *e
	}
	return f.Store.Head(ctx)
}

// newFaulty makes a ledger whose store can be made to fail.
func newFaulty(t *testing.T) (*bench, *faulty) {
	b := newLedger(t)
	b.stop()
	f := &faulty{}
	b.wrap = func(db *dbstore.Store) audit.Storage { f.Store = db; return f }
	if err := b.open(); err != nil {
		t.Fatal(err)
	}
	return b, f
}

func fails(p *atomic.Pointer[error], format string, args ...any) {
	err := fmt.Errorf(format, args...)
	p.Store(&err)
}

func (b *bench) unavailable() {
	b.Helper()
	size := b.ledger.Head().Size
	if _, err := b.ledger.Begin(context.Background(), intent(1)); !errors.Is(err, audit.ErrUnavailable) {
		b.Errorf("Begin: %v, want ErrUnavailable", err)
	}
	if b.ledger.Head().Size != size {
		b.Error("the ledger grew")
	}
}

// verified wants a ledger without violations that has n intents, open of them open.
func (b *bench) verified(n, open uint64) {
	b.Helper()
	if rep, err := b.verify(); err != nil || rep.Intents != n || rep.Open != open {
		b.Errorf("verify: %+v, %v; want %d intents, %d open", rep, err, n, open)
	}
}

// The database is away before an intent: 503, nothing is there; then it goes on.
func TestAttack_AUD_07(t *testing.T) {
	b, f := newFaulty(t)
	fails(&f.before, "%w: connection refused", audit.ErrUnavailable)
	b.unavailable()
	f.before.Store(nil)
	b.fill(3)
	b.verified(3, 0)
}

// The database goes away between intent and completion: the intent stays open, and
// the start after it is told of it.
func TestAttack_AUD_08(t *testing.T) {
	b, f := newFaulty(t)
	ctx := context.Background()
	o, err := b.ledger.Begin(ctx, intent(1))
	if err != nil {
		t.Fatal(err)
	}
	fails(&f.before, "%w: connection refused", audit.ErrUnavailable)
	if _, err := b.ledger.Done(ctx, o, audit.Done{}, ca.PutSetting{Name: "row", Value: []byte{1}}); !errors.Is(err, audit.ErrUnavailable) {
		t.Errorf("Done: %v", err)
	}
	f.before.Store(nil)
	b.stop()
	if err := b.open(); err != nil {
		t.Fatal(err)
	}
	open, err := b.ledger.OpenIntents(ctx)
	if err != nil || len(open) != 1 || open[0].Index != o.Index {
		t.Fatalf("open: %v, %v", open, err)
	}
	if _, err := b.db.Setting(ctx, "row"); !errors.Is(err, audit.ErrNotFound) {
		t.Errorf("the row is there: %v", err)
	}
	if _, err := b.ledger.Orphan(ctx, open[0], "test", nil); err != nil {
		t.Error(err)
	}
	b.verified(1, 0)
}

// The answer to COMMIT is lost: the head decides, nothing is written twice.
func TestAttack_AUD_09(t *testing.T) {
	b, f := newFaulty(t)
	ctx := context.Background()
	fails(&f.after, "%w: connection reset", audit.ErrUncertain)
	o, err := b.ledger.Begin(ctx, intent(1)) // was made
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.ledger.Done(ctx, o, audit.Done{Signature: [32]byte{1}, Artefact: [32]byte{1}}); err != nil {
		t.Error(err)
	}
	f.after.Store(nil)
	fails(&f.before, "%w: connection reset", audit.ErrUncertain) // was not made
	b.unavailable()
	f.before.Store(nil)
	b.fill(2)
	b.verified(3, 0)
}

// Nobody can tell what became of a COMMIT: the ledger closes, and a restart looks.
func TestAttack_AUD_09_head_unreadable(t *testing.T) {
	t.Parallel()
	b, f := newFaulty(t)
	fails(&f.after, "%w: connection reset", audit.ErrUncertain)
	fails(&f.read, "%w: connection refused", audit.ErrUnavailable)
	if _, err := b.ledger.Begin(context.Background(), intent(1)); !errors.Is(err, audit.ErrDisk) || !errors.Is(err, audit.ErrUnavailable) {
		t.Errorf("Begin: %v", err)
	}
	f.after.Store(nil)
	f.read.Store(nil)
	b.closed(audit.ErrDisk)
	b.verified(1, 1)
}

// closed wants a ledger that takes nothing more until a restart.
func (b *bench) closed(why error) {
	b.Helper()
	for range 3 {
		if err := b.ledger.Write(context.Background()); !errors.Is(err, audit.ErrUnavailable) {
			b.Errorf("Write: %v", err)
		}
	}
	if !errors.Is(b.ledger.Broken(), why) {
		b.Errorf("Broken: %v, want %v", b.ledger.Broken(), why)
	}
	b.stop()
	if !errors.Is(b.ended, why) {
		b.Errorf("Run ended with %v, want %v", b.ended, why)
	}
	if err := b.open(); err != nil {
		b.Fatalf("after a restart: %v", err)
	}
	if err := b.ledger.Write(context.Background()); err != nil {
		b.Errorf("after a restart: %v", err)
	}
}

// A failed fsync is not tried again: the sequencer ends (fsyncgate).
func TestAttack_AUD_14(t *testing.T) {
	t.Run("database", func(t *testing.T) {
		b, f := newFaulty(t)
		fails(&f.before, "%w: COMMIT: disk I/O error", audit.ErrDisk)
		b.unavailable()
		f.before.Store(nil)
		b.closed(audit.ErrDisk)
		b.verified(0, 0)
	})
	t.Run("journal", func(t *testing.T) {
		b := newLedger(t)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		b.journal.OnPipe(w)
		// The batch may be committed; nobody may act upon it.
		if _, err := b.ledger.Begin(context.Background(), intent(1)); !errors.Is(err, audit.ErrUnavailable) {
			t.Errorf("Begin: %v", err)
		}
		b.closed(audit.ErrDisk)
		if open, err := b.ledger.OpenIntents(context.Background()); err != nil || len(open) != 1 {
			t.Errorf("open: %v, %v", open, err)
		}
		b.verified(1, 1)
	})
}

// tmpfs mounts a file system of that size over a folder.
func tmpfs(t *testing.T, dir, size string) (resize func(size string)) {
	t.Helper()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("a full disk needs a file system of its own: mounting tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	return func(size string) {
		if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "size="+size); err != nil {
			t.Fatal(err)
		}
	}
}

// A full disk under the database, the journal, or both, as with chancery dev:
// intents are refused, nothing is half written, and it goes on when there is room.
func TestAttack_AUD_10(t *testing.T) {
	onlySQLite(t)
	for _, where := range []string{"both", "database", "journal"} {
		t.Run(where, func(t *testing.T) {
			b := &bench{TB: t, dir: t.TempDir()}
			b.url = "sqlite:" + b.path("x.db")
			small := filepath.Join(b.dir, "small")
			if err := os.Mkdir(small, 0o700); err != nil {
				t.Fatal(err)
			}
			size := map[string]string{"both": "5m", "database": "5m", "journal": "64k"}[where]
			resize := tmpfs(t, small, size)
			whole := newLedger(t) // for its keys
			b.signer, b.spki = whole.signer, whole.spki
			for name, here := range map[string]bool{"x.db": where != "journal", "journal": where != "database"} {
				for _, more := range []string{"", "-wal", "-shm"} {
					if here && (more == "" || name == "x.db") {
						if err := os.Symlink(filepath.Join(small, name+more), b.path(name+more)); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
			b.begin()
			b.fullAndBack(func() { resize("64m") })
		})
	}
}

// A full disk under the tables of a PostgreSQL server.
func TestAttack_AUD_10_postgres(t *testing.T) {
	onlySQLite(t) // once is enough
	c := pgcluster.New(t)
	small, err := os.MkdirTemp("/tmp", "chancery-pg-full-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(small) })
	owner := ""
	if os.Getuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			t.Fatal(err)
		}
		owner = ",mode=700,uid=" + u.Uid + ",gid=" + u.Gid
	}
	resize := tmpfs(t, small, "20m"+owner)
	c.SQL("postgres", "CREATE TABLESPACE small LOCATION '"+small+"'")
	b := &bench{TB: t, dir: t.TempDir(), url: c.Database()}
	name, _, _ := strings.Cut(strings.TrimPrefix(b.url, "postgres://"), "@")
	c.SQL("postgres", "ALTER DATABASE "+name+" SET TABLESPACE small")
	whole := newLedger(t) // for its keys
	b.signer, b.spki = whole.signer, whole.spki
	b.begin()
	b.fullAndBack(func() { resize("256m" + owner) })
	b.stop() // before its file system goes
	c.Stop(syscall.SIGINT)
}

// fullAndBack fills the disk, wants refusals that leave nothing behind, makes room, and
// wants all to go on.
func (b *bench) fullAndBack(makeRoom func()) {
	b.Helper()
	full := b.untilFull()
	if full == 0 {
		b.Fatal("the disk did not get full")
	}
	b.Logf("full after %d operations", full)
	for i := range 20 { // a small one may find room yet; what does not leaves nothing
		before := b.ledger.Head().Size
		_, err := b.ledger.Begin(context.Background(), intent(i))
		if after := b.ledger.Head().Size; err != nil && (!errors.Is(err, audit.ErrUnavailable) || after != before) {
			b.Errorf("Begin: %v, %d entries more", err, after-before)
		}
	}
	if err := b.ledger.Broken(); err != nil {
		b.Errorf("a full disk closed the ledger: %v", err)
	}
	makeRoom()
	open, err := b.ledger.OpenIntents(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	for _, o := range open { // intents whose closing leaf found no room
		if _, err := b.ledger.Orphan(context.Background(), o, "test", nil); err != nil {
			b.Error(err)
		}
	}
	before, err := b.verify()
	if err != nil || before.Open != 0 {
		b.Fatalf("verify: %+v, %v", before, err)
	}
	b.fill(50)
	b.verified(before.Intents+50, 0)
	b.stop()
	if err := b.open(); err != nil {
		b.Errorf("restart: %v", err)
	}
}

// untilFull runs operations from several callers until one finds no room.
func (b *bench) untilFull() uint64 {
	var wg sync.WaitGroup
	var done, refused atomic.Uint64
	for c := range 8 {
		wg.Go(func() {
			for i := range 20000 {
				o, err := b.ledger.Begin(context.Background(), intent(c<<20|i))
				if err == nil {
					_, err = b.ledger.Done(context.Background(), o, audit.Done{Signature: [32]byte{1}, Artefact: [32]byte{2}})
				}
				if err != nil {
					if !errors.Is(err, audit.ErrUnavailable) {
						b.Error(err)
					}
					refused.Add(1)
					return
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	if refused.Load() == 0 {
		return 0
	}
	return done.Load()
}

// Two servers on one ledger: the second does not start.
func TestAttack_AUD_13(t *testing.T) {
	t.Parallel()
	b := newLedger(t)
	if j, err := audit.OpenJournal(b.path("journal")); err == nil {
		j.Close()
		t.Error("a second process got the journal")
	}
}

// The tail is cut with all that belongs to it, as a DBA would: what lies outside of
// the database tells.
func TestAttack_AUD_03(t *testing.T) {
	for _, left := range []string{"journal", "anchor"} {
		t.Run(left, func(t *testing.T) {
			b := newLedger(t)
			b.fill(10)
			b.stop()
			restore := b.backup()
			if err := b.open(); err != nil {
				t.Fatal(err)
			}
			b.fill(10)
			b.checkpoint()
			b.stop()
			restore()
			for _, w := range []string{"journal", "anchor"} {
				if w != left {
					if err := os.Remove(b.path(w)); err != nil {
						t.Fatal(err)
					}
				}
			}
			var v *audit.Violation
			if _, err := b.verify(); !errors.As(err, &v) || v.Index != 21 {
				t.Errorf("verify: %v; want a violation at entry 21", err)
			}
			if err := b.open(); !errors.Is(err, audit.ErrTampered) {
				t.Errorf("opening: %v, want ErrTampered", err)
			}
		})
	}
}

// backup copies the database; restore puts it back.
func (b *bench) backup() (restore func()) {
	b.Helper()
	onlySQLite(b)
	old, err := os.ReadFile(b.path("x.db"))
	if err != nil {
		b.Fatal(err)
	}
	return func() {
		if err := errors.Join(os.WriteFile(b.path("x.db"), old, 0o600), os.RemoveAll(b.path("x.db-wal")), os.RemoveAll(b.path("x.db-shm"))); err != nil {
			b.Fatal(err)
		}
	}
}

// Another history of more entries is put in the place of the first. The HSM signs
// it, as it is larger; journal and anchor do not agree.
func TestAttack_AUD_04_regrown(t *testing.T) {
	for _, left := range []string{"journal", "anchor"} {
		t.Run(left, func(t *testing.T) {
			b := newLedger(t)
			b.fill(5)
			b.stop()
			restore := b.backup()
			if err := b.open(); err != nil {
				t.Fatal(err)
			}
			b.fill(10)
			b.checkpoint()
			b.stop()
			witness, err := os.ReadFile(b.path(left))
			if err != nil {
				t.Fatal(err)
			}
			restore()
			if err := errors.Join(os.Remove(b.path("journal")), os.Remove(b.path("anchor")), b.open()); err != nil {
				t.Fatal(err)
			}
			b.fill(40)
			b.checkpoint()
			b.stop()
			if err := errors.Join(os.Remove(b.path("journal")), os.Remove(b.path("anchor")), os.WriteFile(b.path(left), witness, 0o600)); err != nil {
				t.Fatal(err)
			}
			var v *audit.Violation
			if _, err := b.verify(); !errors.As(err, &v) {
				t.Errorf("verify: %v; want a violation", err)
			}
			if err := b.open(); !errors.Is(err, audit.ErrTampered) {
				t.Errorf("opening: %v, want ErrTampered", err)
			}
		})
	}
}

// A size once stored keeps its body: the HSM is not even asked for a second one.
func TestForkedCheckpointClosesLedger(t *testing.T) {
	b := newLedger(t)
	b.fill(3)
	other := audit.Head{Size: b.ledger.Head().Size}.Body(b.ledger.Origin())
	if err := b.db.PutCheckpoint(context.Background(), b.ledger.Head().Size, string(other), ""); err != nil {
		t.Fatal(err)
	}
	c := audit.NewCheckpointer(b.ledger, b.signer, "")
	if err := c.Sign(context.Background()); !errors.Is(err, audit.ErrTampered) {
		t.Errorf("Sign: %v", err)
	}
	if err := b.ledger.Write(context.Background()); !errors.Is(err, audit.ErrTampered) || !errors.Is(err, audit.ErrUnavailable) {
		t.Errorf("Write: %v", err)
	}
}

// A note that a crash cut off in the anchor does not spoil the next one, and an
// anchor that cannot be written is owed.
func TestAnchor(t *testing.T) {
	b := newLedger(t)
	b.fill(1)
	signed := b.checkpoint()
	f, err := os.OpenFile(b.path("anchor"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(signed[:len(signed)/2]); err != nil {
		t.Fatal(err)
	}
	f.Close()
	b.fill(1)
	b.checkpoint()
	if rep, err := b.verify(); err != nil || rep.Anchored != 2 || rep.Signed != 5 {
		t.Errorf("verify: %+v, %v", rep, err)
	}
	c := audit.NewCheckpointer(b.ledger, b.signer, filepath.Join(b.dir, "later", "anchor"))
	b.fill(1)
	if err := c.Sign(context.Background()); err == nil {
		t.Error("signed without an anchor and did not tell")
	}
	if err := os.Mkdir(b.path("later"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := c.Sign(context.Background()); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(b.path("later/anchor")); err != nil || !strings.Contains(string(got), "\n7\n") {
		t.Errorf("anchor: %q, %v", got, err)
	}
}

// A line that a crash cut off in the journal does not spoil the next one.
func TestJournalCutOff(t *testing.T) {
	b := newLedger(t)
	b.fill(2)
	b.stop()
	f, err := os.OpenFile(b.path("journal"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("5 5 abcdef"); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := b.open(); err != nil {
		t.Fatal(err)
	}
	b.fill(2)
	b.stop()
	if rep, err := b.verify(); err != nil || rep.Journaled != 9 {
		t.Errorf("verify: %+v, %v", rep, err)
	}
}

// A transaction is carried through although its caller gives up, and the write
// connection stays usable.
func TestUpdateOutlivesContext(t *testing.T) {
	b := newLedger(t)
	ctx, cancel := context.WithCancel(context.Background())
	if err := b.db.Update(ctx, func(audit.Tx) error { cancel(); return nil }); err != nil {
		t.Error(err)
	}
	if err := b.db.Update(ctx, func(audit.Tx) error { return nil }); !errors.Is(err, audit.ErrUnavailable) {
		t.Errorf("with a context that has ended: %v", err)
	}
	b.fill(1)
}

// One genesis, however many try.
func TestGenesisOnce(t *testing.T) {
	whole := newLedger(t)
	b := &bench{TB: t, dir: t.TempDir(), url: database(t), signer: whole.signer, spki: whole.spki}
	if err := b.open(); err != nil {
		t.Fatal(err)
	}
	defer func() { b.stop() }()
	var wg sync.WaitGroup
	var won atomic.Int64
	for range 16 {
		wg.Go(func() {
			err := b.ledger.Genesis(context.Background(), b.genesis())
			if err == nil {
				won.Add(1)
			} else if !errors.Is(err, audit.ErrExists) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 || b.ledger.Head().Size != 1 {
		t.Errorf("%d genesis leaves, size %d", won.Load(), b.ledger.Head().Size)
	}
	if _, err := b.ledger.Append(context.Background(), audit.Entry{Kind: audit.KindGenesis, Op: audit.OpGenesis, Closes: audit.NoIndex}); !errors.Is(err, audit.ErrLeaf) {
		t.Errorf("appending a genesis: %v", err)
	}
	b.verified(0, 0)
}

// A projection that panics – here one that needs a leaf and has none – fails alone.
func TestPanickingProjectionFailsAlone(t *testing.T) {
	b := newLedger(t)
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			ctx := context.Background()
			if i%8 == 0 {
				if err := b.ledger.Write(ctx, ca.ReserveSerial{Serial: []byte{1}}); err == nil || errors.Is(err, audit.ErrUnavailable) {
					t.Errorf("without a leaf: %v", err)
				}
			} else if _, err := b.ledger.Append(ctx, audit.Event(audit.OpConfig, nil)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if rep, err := b.verify(); err != nil || rep.Size != 57 {
		t.Errorf("verify: %+v, %v", rep, err)
	}
}

// Whoever calls while the sequencer ends is answered, once, and truly.
func TestShutdownAnswersAll(t *testing.T) {
	for range 20 {
		b := newLedger(t)
		var wg sync.WaitGroup
		var stored atomic.Uint64
		for range 32 {
			wg.Go(func() {
				for {
					_, err := b.ledger.Begin(context.Background(), intent(1))
					if err != nil {
						if !errors.Is(err, audit.ErrUnavailable) {
							t.Error(err)
						}
						return
					}
					stored.Add(1)
				}
			})
		}
		time.Sleep(2 * time.Millisecond)
		b.stop()
		wg.Wait()
		b.verified(stored.Load(), stored.Load())
	}
}

// logged keeps what is logged.
type logged struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), what)
}

// The clock jumps: the order of entries is their index, an alarm tells of more than two
// seconds backwards, and nothing that was proved before becomes wrong.
func TestAttack_AUD_21(t *testing.T) {
	b := newLedger(t)
	b.stop()
	log := &logged{}
	b.log = log
	if err := b.open(); err != nil {
		t.Fatal(err)
	}
	entry := func(ahead time.Duration) audit.Appended {
		t.Helper()
		b.ahead.Store(int64(ahead))
		a, err := b.ledger.Append(context.Background(), audit.Event(audit.OpConfig, nil))
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	for _, step := range []struct {
		ahead  time.Duration
		alarms int
	}{{0, 0}, {time.Hour, 0}, {time.Hour - time.Second, 0}, {0, 1}, {-24 * time.Hour, 2}, {0, 2}} {
		before := b.ledger.Head().Size
		if a := entry(step.ahead); a.Index != before {
			t.Errorf("%v: entry %d after %d entries", step.ahead, a.Index, before)
		}
		b.checkpoint() // sizes only grow, whatever the time is
		if n := log.count("ALARM: the clock went back"); n != step.alarms {
			t.Errorf("%v: %d alarms, want %d", step.ahead, n, step.alarms)
		}
	}
	rep, err := b.verify()
	if err != nil || rep.Backward != 2 || rep.Checkpoints < 6 {
		t.Errorf("verify: %+v, %v", rep, err)
	}
}
