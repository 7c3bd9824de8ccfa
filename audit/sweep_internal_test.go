package audit

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"log/slog"
	"math/big"
	"strings"
	"testing"
	"time"
)

// rowsOf are rows of checkpoints.
type rowsOf struct {
	SweepSource
	rows []struct {
		size       uint64
		body, note string
	}
}

func (r *rowsOf) put(size uint64, body, note string) {
	for i := range r.rows {
		if r.rows[i].size == size {
			r.rows[i].note = note
			return
		}
	}
	r.rows = append(r.rows, struct {
		size       uint64
		body, note string
	}{size, body, note})
}

func (r *rowsOf) CheckpointsBetween(_ context.Context, from, to uint64, fn func(size uint64, body, note string) error) error {
	for _, c := range r.rows {
		if c.size >= from && c.size <= to {
			if err := fn(c.size, c.body, c.note); err != nil {
				return err
			}
		}
	}
	return nil
}

// A checkpoint that was being signed when the sweeper read its row is read again: it may be
// the one that covers the birth of a key, which signs alone afterwards.
func TestSweeperReadsLateNotes(t *testing.T) {
	n := &softNote{t: t, origin: "ca.example/ledger/00"}
	n.key()
	n.key()
	body := func(size uint64) string { return string(Head{Size: size}.Body(n.origin)) }
	for name, c := range map[string]struct {
		note string // what is there later
		ok   bool
	}{
		"signed":          {n.note(11, 0), true},
		"not signed":      {"", false},
		"by a stranger":   {n.note(11, 1), false},
		"another's note":  {n.note(12, 0), false},
		"what is no note": {"x", false},
	} {
		t.Run(name, func(t *testing.T) {
			src := &rowsOf{}
			v := &verifier{signers: newSigners(n.origin, n.spkis[:1]), head: Head{Size: 11}}
			if err := v.signers.event(10, n.birth(1, 7), [32]byte{1}); err != nil {
				t.Fatal(err)
			}
			src.put(11, body(11), "")
			v.unsigned = []unsignedRow{{11, body(11)}}
			if err := v.signedSince(t.Context(), src); err != nil || len(v.unsigned) != 1 { // still being signed
				t.Fatalf("%v, %d wait", err, len(v.unsigned))
			}
			src.put(11, body(11), c.note)
			v.head = Head{Size: 13}
			err := v.signedSince(t.Context(), src)
			if err == nil {
				if _, err = v.signers.add(n.note(13, 1)); err != nil {
					t.Fatal(err)
				}
				err = v.signers.judge()
			}
			if (err == nil) != c.ok {
				t.Error(err)
			}
		})
	}
}

// A CRL that no entry records is one that was just made, or somebody's.
func TestSweeperUnrecordedCRL(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	list := x509.RevocationList{Number: big.NewInt(8), ThisUpdate: now.Add(-time.Minute), NextUpdate: now.Add(time.Hour)}
	der, err := x509.CreateRevocationList(rand.Reader, &list, &x509.Certificate{SubjectKeyId: []byte{1}, KeyUsage: x509.KeyUsageCRLSign}, key)
	if err != nil {
		t.Fatal(err)
	}
	row := IssuerRow{Name: "issuing", CRL: der, CRLCovers: 5}
	for number, want := range map[uint64]string{7: "no entry records", 8: "", 9: "not number 9"} {
		_, wrong, soon := crlLacks(row, recordedCRL{hash: sha256.Sum256(der), number: number, covers: 5}, nil, now)
		if (number == 7) != (soon != "") || (number == 9) != (wrong != "") || !strings.Contains(wrong+soon, want) {
			t.Errorf("number %d is recorded: %q, %q", number, wrong, soon)
		}
	}
}

// An intent of a node that ended, which nobody closes, is an alarm too, later.
func TestSweeperOpenOfOthers(t *testing.T) {
	now := time.Now()
	l := &Ledger{opt: Options{Node: "a", Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return now }}}
	s := NewSweeper(l, nil, SweepOptions{})
	s.front = newPass()
	s.front.counts = now.Add(24 * time.Hour)
	for i, node := range []string{"a", "b"} {
		var f Fields
		f.Text(TagNode, node)
		s.front.open[uint64(i)] = openIntent{leaf: Leaf{Time: now, Fields: f.sorted()}}
	}
	for _, step := range []struct {
		after  time.Duration
		alarms int
	}{{time.Minute, 0}, {2 * time.Minute, 0}, {2 * time.Minute, 1}, {8 * time.Minute, 1}, {4 * time.Minute, 1}, {2 * time.Minute, 2}} {
		now = now.Add(step.after)
		if s.openIntents(); len(s.state.Alarms) != step.alarms {
			t.Errorf("after %s more: %v, want %d alarms", step.after, s.state.Alarms, step.alarms)
		}
	}
}

// hanging is a database that does not answer.
type hanging struct{ SweepSource }

func (hanging) Snapshot(ctx context.Context, _ func(SweepSource) error) error {
	<-ctx.Done()
	return ctx.Err()
}

// A sweeper that waits for an answer says so.
func TestSweeperWaits(t *testing.T) {
	l := &Ledger{opt: Options{Log: slog.New(slog.DiscardHandler), Now: time.Now}}
	s := NewSweeper(l, hanging{}, SweepOptions{})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	for s.aliveSince().IsZero() {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(10 * time.Millisecond)
	if a := s.State().Alarms; len(a) != 0 {
		t.Errorf("at once: %v", a)
	}
	s.mu.Lock()
	s.alive = s.alive.Add(-stuckFor)
	s.mu.Unlock()
	if a := s.State().Alarms; len(a) != 1 || a[0].Promise != "sweep" || a[0].Closed {
		t.Errorf("after a while: %v", a)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func (s *Sweeper) aliveSince() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.alive
}
