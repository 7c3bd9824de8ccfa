package audit_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	_ "github.com/mattn/go-sqlite3"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"chancery/audit"
	"chancery/ca"
	"chancery/dbstore"
	"chancery/test/pgcluster"
)

// softSigner signs checkpoints with a software key.
type softSigner struct{ key *ecdsa.PrivateKey }

func (s softSigner) SignCheckpoint(_ context.Context, body []byte) ([]audit.CheckpointLine, error) {
	sig, err := crypto.SignMessage(s.key, rand.Reader, body, crypto.SHA256)
	spki, err2 := x509.MarshalPKIXPublicKey(s.key.Public())
	return []audit.CheckpointLine{{Key: "soft", SPKI: spki, Signature: sig}}, errors.Join(err, err2)
}

// database is the setting "database" of a new database; the tests run with SQLite
// first, then with PostgreSQL.
var database func(testing.TB) string

func TestMain(m *testing.M) {
	os.Exit(pgcluster.RunTwice(m, func(db func(testing.TB) string) { database = db }))
}

// onlySQLite skips what has to do with the file of a SQLite database.
func onlySQLite(t testing.TB) {
	t.Helper()
	if !strings.HasPrefix(database(t), "sqlite:") {
		t.Skip("about the file of a SQLite database")
	}
}

type bench struct {
	testing.TB
	dir     string
	url     string // setting "database"
	db      *dbstore.Store
	ledger  *audit.Ledger
	journal *audit.Journal
	signer  softSigner
	spki    []byte
	wrap    func(*dbstore.Store) audit.Storage // nil: the store itself
	ended   error                              // what Run returned, after stop
	log     io.Writer                          // of the ledger; nil: nobody reads it
	ahead   atomic.Int64                       // nanoseconds that the ledger's clock shows too much
	stop    func()
}

// newLedger makes a ledger with its genesis in a new folder.
func newLedger(t testing.TB) *bench {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{TB: t, dir: t.TempDir(), signer: softSigner{k}, spki: spki, url: database(t)}
	if path, ok := strings.CutPrefix(b.url, "sqlite:"); ok {
		b.dir = filepath.Dir(path)
	}
	b.begin()
	return b
}

// begin opens an empty ledger and writes its genesis.
func (b *bench) begin() {
	b.Helper()
	if err := b.open(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { b.stop() })
	if err := b.ledger.Genesis(context.Background(), b.genesis()); err != nil {
		b.Fatal(err)
	}
}

func (b *bench) genesis() audit.Genesis {
	return audit.Genesis{Random: [32]byte{1}, Dev: true, Domain: "ca.example", CheckpointKeys: [][]byte{b.spki}, Roster: [32]byte{2}, Acts: genesisActs}
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

func (b *bench) open() error {
	ctx := context.Background()
	db, err := dbstore.Open(ctx, b.url)
	if err != nil {
		return err
	}
	j, err := audit.OpenJournal(b.path("journal"))
	if err != nil {
		return errors.Join(err, db.Close())
	}
	st := audit.Storage(db)
	if b.wrap != nil {
		st = b.wrap(db)
	}
	l, err := audit.Open(ctx, st, audit.Options{Node: "n", Build: "test", Journal: j, Anchor: b.path("anchor"), Log: b.logger(),
		Now: func() time.Time { return time.Now().Add(time.Duration(b.ahead.Load())) }})
	if err != nil {
		return errors.Join(err, j.Close(), db.Close())
	}
	run, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- l.Run(run) }()
	b.db, b.ledger, b.journal = db, l, j
	b.stop = func() {
		cancel()
		b.ended = <-ended
		j.Close()
		db.Close()
		b.stop = func() {}
	}
	return nil
}

func (b *bench) logger() *slog.Logger {
	if b.log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(b.log, nil))
}

func (b *bench) checkpoint() string {
	b.Helper()
	c := audit.NewCheckpointer(b.ledger, b.signer, b.path("anchor"))
	if err := c.Sign(context.Background()); err != nil {
		b.Fatal(err)
	}
	n, err := c.Latest(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	return n
}

func (b *bench) verify() (audit.Report, error) {
	b.Helper()
	db, err := dbstore.OpenSnapshot(context.Background(), b.url)
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	var journal io.Reader
	if j, err := os.Open(b.path("journal")); err == nil {
		defer j.Close()
		journal = j
	}
	var anchors []io.Reader
	if a, err := os.Open(b.path("anchor")); err == nil {
		defer a.Close()
		anchors = append(anchors, a)
	}
	return audit.Verify(context.Background(), db, journal, anchors...)
}

func intent(i int) audit.Intent {
	sum := sha256.Sum256(fmt.Append(nil, i))
	return audit.Intent{Op: audit.OpCRL, Key: [32]byte{1}, Purpose: audit.PurposeIssuer, TBSHash: sum, TBSLength: 1, MaxAttempts: 3, Requester: "test"}
}

// fill runs n whole operations from several callers at once.
func (b *bench) fill(n int) {
	b.Helper()
	ctx := context.Background()
	var wg sync.WaitGroup
	var next atomic.Int64
	for range 16 {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				o, err := b.ledger.Begin(ctx, intent(int(i)))
				if err == nil {
					_, err = b.ledger.Done(ctx, o, audit.Done{Signature: [32]byte{1}, Artefact: [32]byte{2}, Attempts: []audit.Attempt{{Member: "alpha", Count: 1}}})
				}
				if err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestLedgerGrowsAndVerifies(t *testing.T) {
	b := newLedger(t)
	b.fill(20)
	first := b.checkpoint()
	b.fill(700)
	rep, err := b.verify()
	if err != nil || rep.Intents != 720 || rep.Done != 720 || rep.Open != 0 || rep.Size != 1441 {
		t.Fatalf("verify: %+v, %v", rep, err)
	}
	// The same after a restart, and it goes on growing.
	b.stop()
	if err := b.open(); err != nil {
		t.Fatal(err)
	}
	b.fill(300)
	last := b.checkpoint()
	if rep, err = b.verify(); err != nil || rep.Size != 2041 || rep.Checkpoints != 2 {
		t.Fatalf("verify: %+v, %v", rep, err)
	}
	b.foreign(first, last)
}

// foreign checks checkpoints and proofs with golang.org/x/mod alone.
func (b *bench) foreign(first, last string) {
	b.Helper()
	open := func(signed string) (size int64, root tlog.Hash) {
		v, err := audit.NoteVerifier(b.ledger.Origin(), b.spki)
		if err != nil {
			b.Fatal(err)
		}
		n, err := note.Open([]byte(signed), note.VerifierList(v))
		if err != nil {
			b.Fatal(err)
		}
		f := strings.Split(n.Text, "\n")
		raw, err := base64.StdEncoding.DecodeString(f[2])
		if err != nil {
			b.Fatal(err)
		}
		if _, err := fmt.Sscan(f[1], &size); err != nil {
			b.Fatal(err)
		}
		return size, tlog.Hash(raw)
	}
	n1, r1 := open(first)
	n2, r2 := open(last)
	ctx := context.Background()
	for _, i := range []uint64{0, 1, 255, 256, 511, 512, 1023, uint64(n2 - 1)} {
		p, err := audit.Proof(ctx, b.db, i, uint64(n2))
		if err != nil {
			b.Fatalf("proof of %d: %v", i, err)
		}
		var leaf []byte
		if err := b.db.Leaves(ctx, i, i+1, func(_ uint64, x []byte) error { leaf = x; return nil }); err != nil {
			b.Fatal(err)
		}
		if err := tlog.CheckRecord(p, n2, r2, int64(i), tlog.RecordHash(leaf)); err != nil {
			b.Errorf("proof of %d: %v", i, err)
		}
		if err := tlog.CheckRecord(p, n2, r2, int64(i), tlog.RecordHash(append(leaf, 0))); err == nil {
			b.Errorf("proof of %d holds for another leaf", i)
		}
	}
	tp, err := audit.TreeProof(ctx, b.db, uint64(n1), uint64(n2))
	if err != nil {
		b.Fatal(err)
	}
	if err := tlog.CheckTree(tp, n2, r2, n1, r1); err != nil {
		b.Errorf("consistency of %d and %d: %v", n1, n2, err)
	}
}

// An item that cannot be stored fails alone; what shares its batch succeeds.
func TestPoisonedItemFailsAlone(t *testing.T) {
	b := newLedger(t)
	ctx := context.Background()
	put := func(name string) error { return b.ledger.Write(ctx, ca.PutSetting{Name: name, Value: []byte{1}}) }
	if err := put("taken"); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var ok, exists atomic.Int64
	for i := range 200 {
		wg.Go(func() {
			name := fmt.Sprint("n", i)
			if i%5 == 0 {
				name = "taken"
			}
			_, err := b.ledger.Append(ctx, audit.Event(audit.OpConfig, nil), ca.PutSetting{Name: name, Value: []byte{1}})
			switch {
			case err == nil:
				ok.Add(1)
			case errors.Is(err, audit.ErrExists):
				exists.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if ok.Load() != 160 || exists.Load() != 40 {
		t.Errorf("%d stored, %d refused; want 160 and 40", ok.Load(), exists.Load())
	}
	if rep, err := b.verify(); err != nil || rep.Size != 161 {
		t.Errorf("verify: %+v, %v", rep, err)
	}
}

func TestIntentIsClosedOnce(t *testing.T) {
	b := newLedger(t)
	ctx := context.Background()
	o, err := b.ledger.Begin(ctx, intent(1))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var won atomic.Int64
	for i := range 20 {
		wg.Go(func() {
			var err error
			if i%2 == 0 {
				_, err = b.ledger.Done(ctx, o, audit.Done{Signature: [32]byte{1}, Artefact: [32]byte{1}})
			} else {
				_, err = b.ledger.Orphan(ctx, o, "test", nil)
			}
			if err == nil {
				won.Add(1)
			} else if !errors.Is(err, audit.ErrConflict) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("closed %d times", won.Load())
	}
	open, err := b.ledger.OpenIntents(ctx)
	if err != nil || len(open) != 0 {
		t.Errorf("open intents %v, %v", open, err)
	}
}

// These change what is stored as somebody with full access to the database would.
func TestAttack_AUD_01(t *testing.T) { tamper(t, "AUD-01") }
func TestAttack_AUD_02(t *testing.T) { tamper(t, "AUD-02") }
func TestTamper(t *testing.T)        { tamper(t, "other") }

// tamper runs the cases of one row of attacks.
func tamper(t *testing.T, row string) {
	onlySQLite(t)
	setup := func(t *testing.T) *bench {
		b := newLedger(t)
		b.fill(400) // three full tiles
		b.checkpoint()
		b.fill(50)
		b.checkpoint()
		b.fill(5) // not covered by a checkpoint
		b.stop()
		return b
	}
	const drop = "DROP TRIGGER ledger_leaf_keep_u; DROP TRIGGER ledger_leaf_keep_d; DROP TRIGGER ledger_tile_keep_u;"
	flip := "substr(leaf, 1, 56) || x'05' || substr(leaf, 58)" // a byte of the time, which is 6 until 2032
	for _, c := range []struct {
		name, sql string
		want      uint64
	}{
		{"AUD-01 byte in a full tile", drop + "UPDATE ledger_leaf SET leaf = " + flip + " WHERE idx = 300", 300},
		{"AUD-01 byte under a checkpoint only", drop + "UPDATE ledger_leaf SET leaf = " + flip + " WHERE idx = 850", 850},
		{"AUD-01 byte under nothing but the head", drop + "UPDATE ledger_leaf SET leaf = " + flip + " WHERE idx = 905", 905},
		{"AUD-02 leaf removed", drop + "DELETE FROM ledger_leaf WHERE idx = 333", 333},
		{"AUD-02 last leaf removed", drop + "DELETE FROM ledger_leaf WHERE idx = 910", 910},
		{"AUD-02 leaf added", "INSERT INTO ledger_leaf (idx, kind, leaf) SELECT 911, kind, leaf FROM ledger_leaf WHERE idx = 1", 911},
		{"AUD-02 two leaves swapped", drop + "UPDATE ledger_leaf SET idx = -1 WHERE idx = 20; UPDATE ledger_leaf SET idx = 20 WHERE idx = 21; UPDATE ledger_leaf SET idx = 21 WHERE idx = -1", 20},
		{"other: tile changed", drop + "UPDATE ledger_tile SET data = CASE WHEN substr(data, 1, 1) = x'00' THEN x'01' ELSE x'00' END || substr(data, 2) WHERE level = 0 AND n = 1", 256},
		{"other: head changed", "UPDATE ledger_head SET nodes = CASE WHEN substr(nodes, 1, 1) = x'00' THEN x'01' ELSE x'00' END || substr(nodes, 2)", 901},
		{"other: checkpoint changed", "UPDATE ledger_checkpoint SET note = replace(note, char(10)||'901'||char(10), char(10)||'902'||char(10)) WHERE size = 901", 902},
	} {
		if !strings.HasPrefix(c.name, row) {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			b := setup(t)
			if _, err := b.verify(); err != nil {
				t.Fatalf("before: %v", err)
			}
			raw, err := sql.Open("sqlite3", b.path("x.db"))
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			if _, err := raw.Exec(c.sql); err != nil {
				t.Fatal(err)
			}
			_, err = b.verify()
			var v *audit.Violation
			if !errors.As(err, &v) || v.Index != c.want {
				t.Errorf("verify: %v; want a violation at entry %d", err, c.want)
			}
		})
	}
}

// TestAttack_AUD_04 starts on yesterday's database: the intent journal knows better.
func TestAttack_AUD_04(t *testing.T) {
	onlySQLite(t)
	b := newLedger(t)
	b.fill(10)
	b.stop()
	yesterday, err := os.ReadFile(b.path("x.db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.open(); err != nil {
		t.Fatal(err)
	}
	b.fill(10)
	b.stop()
	if err := errors.Join(os.WriteFile(b.path("x.db"), yesterday, 0o600), os.RemoveAll(b.path("x.db-wal")), os.RemoveAll(b.path("x.db-shm"))); err != nil {
		t.Fatal(err)
	}
	if err := b.open(); !errors.Is(err, audit.ErrTampered) {
		t.Errorf("opening: %v, want ErrTampered", err)
	}
}

// A checkpoint of another key or origin is refused (AUD-05).
func TestAttack_AUD_05(t *testing.T) {
	b := newLedger(t)
	b.fill(3)
	good := b.checkpoint()
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	body, _, _ := strings.Cut(good, "\n\n")
	body += "\n"
	id := sha256.Sum256(b.spki)
	sig, err := softSigner{other}.SignCheckpoint(context.Background(), []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	origin := b.ledger.Origin()
	forged := body + "\n\u2014 " + origin + " " + base64.StdEncoding.EncodeToString(append(bytes.Clone(id[:4]), sig[0].Signature...)) + "\n"
	for name, n := range map[string]string{"other key": forged, "other origin": strings.ReplaceAll(good, "ca.example", "ca.other"), "no signature": body, "empty": ""} {
		if _, err := audit.OpenCheckpoint(n, origin, [][]byte{b.spki}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := audit.OpenCheckpoint(good, origin, [][]byte{b.spki}); err != nil {
		t.Error(err)
	}
}

func BenchmarkOperation(b *testing.B) {
	for _, callers := range []int{1, 16, 64} {
		kind, _, _ := strings.Cut(database(b), ":")
		b.Run(fmt.Sprintf("%s/callers=%d", kind, callers), func(b *testing.B) {
			l := newLedger(b)
			ctx := context.Background()
			var wg sync.WaitGroup
			var next atomic.Int64
			b.ResetTimer()
			start := time.Now()
			for range callers {
				wg.Go(func() {
					for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
						o, err := l.ledger.Begin(ctx, intent(int(i)))
						if err == nil {
							_, err = l.ledger.Done(ctx, o, audit.Done{Signature: [32]byte{1}, Artefact: [32]byte{2}})
						}
						if err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "ops/s")
		})
	}
}

// slow is a storage that waits within each transaction.
type slow struct {
	*dbstore.Store
	begun, hold chan struct{}
}

func (s slow) Update(ctx context.Context, fn func(audit.Tx) error) error {
	s.begun <- struct{}{}
	<-s.hold
	return s.Store.Update(ctx, fn)
}

// Behind a database that hangs nobody waits for longer than the request lives, and what was
// given up is not written later.
func TestHangingDatabase(t *testing.T) {
	b := newLedger(t)
	b.stop()
	s := slow{begun: make(chan struct{}, 16), hold: make(chan struct{})}
	b.wrap = func(db *dbstore.Store) audit.Storage { s.Store = db; return s }
	if err := b.open(); err != nil {
		t.Fatal(err)
	}
	size := b.ledger.Head().Size
	first := make(chan error, 1)
	go func() { _, err := b.ledger.Begin(t.Context(), intent(1)); first <- err }()
	<-s.begun
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := b.ledger.Begin(ctx, intent(2)); !errors.Is(err, audit.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("behind a database that hangs: %v", err)
	}
	close(s.hold)
	if err := <-first; err != nil {
		t.Error(err)
	}
	if err := b.ledger.Write(t.Context()); err != nil {
		t.Error(err)
	}
	if got := b.ledger.Head().Size; got != size+1 {
		t.Errorf("%d entries were written, want 1", got-size)
	}
}
