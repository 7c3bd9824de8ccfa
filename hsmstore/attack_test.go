package hsmstore_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chancery/audit"
	"chancery/hsmstore"
)

// The caller's slice changes after Begin: what was checked and recorded is signed,
// or nothing.
func TestMessageChangedAfterBegin(t *testing.T) {
	c := newCluster(t)
	k := c.key(t, "issuing")
	req := issue(t, k)
	op, err := k.Begin(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	defer op.Close()
	copy(req.Message, tbs(t, "Issuing CA", newSerial()))
	if _, err := op.SignMessage(nil, req.Message, k.Hash()); !errors.Is(err, hsmstore.ErrOtherMessage) {
		t.Errorf("changed message: %v", err)
	}
	if _, err := op.SignMessage(nil, op.Message(), k.Hash()); err != nil {
		t.Errorf("the message of the intent: %v", err)
	}
}

// Everybody does everything with one operation at once: one signature, one end.
func TestOperationUnderConcurrency(t *testing.T) {
	c := newCluster(t)
	k := c.key(t, "issuing")
	for range 30 {
		req := issue(t, k)
		op, err := k.Begin(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		var signed, committed atomic.Int64
		for range 4 {
			wg.Go(func() {
				if _, err := op.SignMessage(nil, req.Message, k.Hash()); err == nil {
					signed.Add(1)
				} else if !errors.Is(err, hsmstore.ErrUsed) {
					t.Error(err)
				}
			})
			wg.Go(func() {
				if _, err := op.Commit(t.Context(), audit.Done{Artefact: [32]byte{1}}); err == nil {
					committed.Add(1)
				}
			})
			wg.Go(func() {
				if err := op.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		got := c.db.closing(op.Index())
		switch {
		case signed.Load() > 1 || committed.Load() > 1:
			t.Errorf("%d signatures, %d commits", signed.Load(), committed.Load())
		case committed.Load() == 1 && got != audit.KindDone, committed.Load() == 0 && signed.Load() == 1 && got != audit.KindOrphan, signed.Load() == 0 && got != audit.KindFailed:
			t.Errorf("%d signatures, %d commits, closed as %s", signed.Load(), committed.Load(), got)
		}
	}
	c.nothingHeld(t)
}

// nothingHeld wants every place in every queue free again.
func (c *cluster) nothingHeld(t *testing.T) {
	t.Helper()
	if begun, running := c.store.Waiting(); begun != 0 || running != 0 {
		t.Errorf("%d operations are counted as begun, %d places are taken", begun, running)
	}
}

// Every way to fail gives its places back.
func TestPlacesComeBack(t *testing.T) {
	c := newCluster(t)
	k := c.key(t, "issuing")
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	req := issue(t, k)
	if _, err := k.Begin(gone, req); err == nil {
		t.Error("began for a caller that has gone")
	}
	ctx, leave := context.WithCancel(t.Context())
	op, err := k.Begin(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	leave()
	if _, err := op.SignMessage(nil, req.Message, k.Hash()); !errors.Is(err, context.Canceled) {
		t.Errorf("signed for a caller that has gone: %v", err)
	}
	if err := op.Close(); err != nil || c.db.closing(op.Index()) != audit.KindFailed {
		t.Errorf("closed as %s: %v", c.db.closing(op.Index()), err)
	}
	c.db.set(errors.New("disk full"))
	if _, err := k.Begin(t.Context(), issue(t, k)); !errors.Is(err, audit.ErrUnavailable) {
		t.Errorf("Begin: %v", err)
	}
	c.db.set(nil)
	c.nothingHeld(t)
	c.store.Close()
	if _, err := k.Begin(t.Context(), issue(t, k)); !errors.Is(err, hsmstore.ErrUnavailable) {
		t.Errorf("Begin after Close: %v", err)
	}
}

// An intent whose closing leaf found a full disk is closed by the running server,
// not only by its next start.
func TestSweepClosesWhatStayedOpen(t *testing.T) {
	c := newCluster(t)
	k := c.key(t, "issuing")
	req := issue(t, k)
	op, err := k.Begin(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	alive, err := k.Begin(t.Context(), issue(t, k))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := op.SignMessage(nil, req.Message, k.Hash()); err != nil {
		t.Fatal(err)
	}
	c.db.set(errors.New("disk full"))
	if err := op.Close(); err == nil {
		t.Error("Close tells nothing")
	}
	c.db.set(nil)
	c.store.Sweep(t.Context())
	if got := c.db.closing(op.Index()); got != audit.KindOrphan || len(c.db.orphans()) != 1 {
		t.Errorf("closed as %s, %v", got, c.db.orphans())
	}
	if got := c.db.closing(alive.Index()); got != 0 {
		t.Errorf("an operation that is alive was closed as %s", got)
	}
	if err := alive.Close(); err != nil {
		t.Error(err)
	}
}

// The answer to the commit of a done leaf is lost: the head tells that it was made,
// and the caller gets its certificate.
func TestAttack_AUD_09(t *testing.T) {
	c := newCluster(t)
	k := c.key(t, "issuing")
	req := issue(t, k)
	op, err := k.Begin(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	sig, err := op.SignMessage(nil, req.Message, k.Hash())
	if err != nil {
		t.Fatal(err)
	}
	size := c.db.size()
	c.db.mu.Lock()
	c.db.lose = true
	c.db.mu.Unlock()
	if _, err := op.Commit(t.Context(), audit.Done{Artefact: sha256.Sum256(sig)}); err != nil {
		t.Errorf("Commit: %v", err)
	}
	if err := op.Close(); err != nil || c.db.size() != size+1 || c.db.closing(op.Index()) != audit.KindDone {
		t.Errorf("closed as %s with %d leaves: %v", c.db.closing(op.Index()), c.db.size()-size, err)
	}
}

// The database was rolled back: the worker has signed a larger tree, and the ledger
// learns that it is not what it was.
func TestWorkerNoticesRollback(t *testing.T) {
	c := newCluster(t, func(cfg *hsmstore.Config) { cfg.Members = cfg.Members[:1] })
	signer := c.store.CheckpointSigner()
	if _, err := signer.SignCheckpoint(t.Context(), checkpoint(c.ledger.Origin(), 1<<40, 1)); err != nil {
		t.Fatal(err)
	}
	if _, err := signer.SignCheckpoint(t.Context(), checkpoint(c.ledger.Origin(), 1<<39, 1)); !errors.Is(err, audit.ErrTampered) {
		t.Errorf("smaller tree: %v", err)
	}
	if err := audit.NewCheckpointer(c.ledger, signer, "").Sign(t.Context()); !errors.Is(err, audit.ErrTampered) {
		t.Errorf("Sign: %v", err)
	}
	if _, err := c.key(t, "issuing").Begin(t.Context(), issue(t, nil)); !errors.Is(err, audit.ErrTampered) {
		t.Errorf("Begin: %v", err)
	}
}

// A module in a folder where anyone can put another one (HSM-16).
func TestAttack_HSM_16(t *testing.T) {
	c := copyCluster(t)
	m := c.members[0]
	for what, lay := range map[string]func(dir string) (string, error){
		"file": func(dir string) (string, error) {
			b, err := os.ReadFile(m.Module)
			if err != nil {
				return "", err
			}
			return filepath.Join(dir, "module.so"), os.WriteFile(filepath.Join(dir, "module.so"), b, 0o644)
		},
		"link": func(dir string) (string, error) {
			return filepath.Join(dir, "module.so"), os.Symlink(m.Module, filepath.Join(dir, "module.so"))
		},
	} {
		open := filepath.Join(t.TempDir(), "open")
		must(os.Mkdir(open, 0o700))
		path, err := lay(open)
		must(err)
		must(os.Chmod(open, 0o777))
		cfg := m
		cfg.Module = path
		s, err := hsmstore.Open(t.Context(), hsmstore.Config{Members: []hsmstore.MemberConfig{cfg}, Ledger: openLedger(t, c)})
		if err == nil {
			s.Close()
		}
		if !errors.Is(err, hsmstore.ErrModule) {
			t.Errorf("%s in a folder that anyone can write: %v", what, err)
		}
	}
}

func openLedger(t *testing.T, c *cluster) *audit.Ledger {
	t.Helper()
	l, err := audit.Open(t.Context(), c.db, audit.Options{Node: "n1"})
	must(err)
	return l
}

// A message that does not fit into a frame is refused before anything is written,
// instead of ending every worker.
func TestHugeMessage(t *testing.T) {
	c := newCluster(t)
	size := c.db.size()
	req := hsmstore.SignRequest{Op: audit.OpCRL, Message: make([]byte, 64<<20), CRL: &audit.CRLScope{}}
	if _, err := c.key(t, "issuing").Begin(t.Context(), req); !errors.Is(err, hsmstore.ErrRefused) {
		t.Errorf("Begin: %v", err)
	}
	if c.db.size() != size {
		t.Error("an intent was written")
	}
	time.Sleep(50 * time.Millisecond)
	if m := c.status("m1"); m.Starts != 1 || m.State != hsmstore.Up {
		t.Errorf("%+v", m)
	}
}

// A grant for an issuer key is for one issuer name: nobody bears it under another.
func TestGrantBindsSubject(t *testing.T) {
	other := issuerSpec
	other.Subject = name("Evil CA")
	if other.Act() == issuerSpec.Act() {
		t.Error("one act allows a key under two issuer names")
	}
}
