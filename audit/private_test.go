package audit_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chancery/audit"
	"chancery/ca"
	"chancery/dbstore"
)

// appended is an event with personal values.
func (b *bench) appended(private ...audit.Private) audit.Appended {
	b.Helper()
	e := audit.Event(audit.OpSession, nil)
	e.Private = private
	return must(b.ledger.Append(context.Background(), e))
}

// stored are the openings that are kept for an entry.
func (b *bench) stored(index uint64) (out []audit.Opening) {
	b.Helper()
	err := b.db.Openings(context.Background(), audit.OpeningQuery{From: index, To: index + 1}, func(s audit.StoredOpenings) error {
		out = s.Openings
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	return out
}

func TestCommitments(t *testing.T) {
	b := newLedger(t)
	a := b.appended(audit.Private{Tag: audit.TagAddress, Value: "192.0.2.7"}, audit.Private{Tag: audit.TagAsked})
	open := b.stored(a.Index)
	if len(open) != 1 || string(open[0].Value) != "192.0.2.7" || !open[0].Opens(a.Leaf) {
		t.Fatalf("openings %v of %+v", open, a.Leaf)
	}
	if _, empty := a.Leaf.Get(audit.TagAsked); empty {
		t.Error("an empty value is committed to")
	}
	if bytes.Contains(a.Bytes, []byte("192.0.2.7")) {
		t.Error("the value stands in the leaf")
	}
	// The same value again: nobody sees that it is the same.
	again := b.appended(audit.Private{Tag: audit.TagAddress, Value: "192.0.2.7"})
	one, _ := a.Leaf.Hash(audit.TagAddress)
	two, _ := again.Leaf.Hash(audit.TagAddress)
	if one == two || one == ([32]byte{}) {
		t.Errorf("commitments %x and %x", one, two)
	}
	wrong := open[0]
	for what, o := range map[string]audit.Opening{
		"value": {Tag: wrong.Tag, Salt: wrong.Salt, Value: []byte("192.0.2.8")},
		"salt":  {Tag: wrong.Tag, Salt: [32]byte{1}, Value: wrong.Value},
		"tag":   {Tag: audit.TagAsked, Salt: wrong.Salt, Value: wrong.Value},
	} {
		if o.Opens(a.Leaf) {
			t.Errorf("another %s opens it", what)
		}
	}
	if open[0].Opens(again.Leaf) {
		t.Error("it opens the commitment of another entry")
	}
	rows, err := audit.DecodeOpenings(audit.EncodeOpenings(open))
	if err != nil || len(rows) != 1 || !rows[0].Opens(a.Leaf) {
		t.Errorf("decoded %v, %v", rows, err)
	}
	enc := audit.EncodeOpenings(open)
	for n := 1; n < len(enc); n++ {
		if _, err := audit.DecodeOpenings(enc[:n]); err == nil {
			t.Errorf("%d of %d octets are taken", n, len(enc))
		}
	}
}

// An entry that cannot be stored leaves no openings, nor takes those of its neighbours along.
func TestOpeningsFailAlone(t *testing.T) {
	b := newLedger(t)
	ctx := context.Background()
	o := must(b.ledger.Begin(ctx, intent(1)))
	must(b.ledger.Failed(ctx, o, "a test", nil))
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			e := audit.Event(audit.OpSession, nil)
			if i%8 == 0 { // it closes what is closed, which shows when its openings are stored
				e = audit.Entry{Kind: audit.KindFailed, Op: audit.OpCRL, ID: o.Leaf.ID, Closes: o.Index}
			}
			e.Private = []audit.Private{{Tag: audit.TagAddress, Value: fmt.Sprint("192.0.2.", i)}}
			a, err := b.ledger.Append(ctx, e)
			switch {
			case i%8 == 0 && !errors.Is(err, audit.ErrConflict), i%8 != 0 && err != nil:
				t.Errorf("%d: %v", i, err)
			case err == nil && len(b.stored(a.Index)) != 1:
				t.Errorf("%d: its openings are not stored", i)
			}
		})
	}
	wg.Wait()
	b.checkpoint()
	if rep, err := b.verify(); err != nil || rep.Size != 59 {
		t.Errorf("%+v %v", rep, err)
	}
}

func TestOpeningIs(t *testing.T) {
	o := audit.Opening{Tag: audit.TagAsked, Value: []byte("CN=Jane Roe\nO=Firm = 2\ndns:a.example\nip:2001:db8::1")}
	for _, text := range []string{"Jane Roe", "CN=Jane Roe", "a.example", "dns:a.example", "2001:db8::1", "Firm = 2", "jane ROE", "A.Example", "2001:DB8:0::1", "cn=jane roe"} {
		if !o.Is(text) {
			t.Errorf("%q is not found", text)
		}
	}
	for _, text := range []string{"", "Jane", "example", "a.example\n", "1", "Roe"} {
		if o.Is(text) {
			t.Errorf("%q is found", text)
		}
	}
	if accent := (audit.Opening{Tag: audit.TagAsked, Value: []byte("CN=Ren\u00e9")}); !accent.Is("Rene\u0301") {
		t.Error("a name is not found when its accents are written apart")
	}
	if address := (audit.Opening{Tag: audit.TagAddress, Value: []byte("2001:db8::1\n192.0.2.7")}); !address.Is("192.0.2.7") || !address.Is("2001:db8::1") || !address.Is("::ffff:192.0.2.7") || !address.Is("2001:0DB8::0001") || address.Is("db8::1") || address.Is("2.7") {
		t.Error("an address is not found, or a part of one is")
	}
}

// TestAttack_AUD_18 erases what is personal: hashes, proofs and every check stay as they
// are, and the value is in no file of the database any more.
func TestAttack_AUD_18(t *testing.T) {
	b := newLedger(t)
	h := newHouse(b)
	const jane = "jane.roe@subject.example"
	address := audit.Private{Tag: audit.TagAddress, Value: "198.51.100.23"}
	asked := audit.Private{Tag: audit.TagAsked, Value: "emailAddress=" + jane + strings.Repeat("\ndns:long.names.example", 1000) + "\nCN=the end of " + jane} // more than a page of SQLite
	var of []audit.Appended
	for range 5 {
		of = append(of, b.appended(address, asked))
	}
	other := b.appended(audit.Private{Tag: audit.TagAsked, Value: "emailAddress=john.doe@subject.example"})
	h.certificate("four.example", nil)
	ctx := context.Background()
	before := b.checkpoint()
	_, err := b.verify()
	if err != nil {
		t.Fatal(err)
	}

	if n, err := b.ledger.Erase(ctx, audit.OpeningsOf("nobody@subject.example"), "a test", "test", ""); n != 0 || err != nil {
		t.Errorf("%d %v", n, err)
	}
	size := b.ledger.Head().Size
	n, err := b.ledger.Erase(ctx, audit.OpeningsOf(jane), "the subject asked for it", "test", "")
	if n != 5 || err != nil || b.ledger.Head().Size != size+1 {
		t.Fatalf("erased %d, %v, %d entries more", n, err, b.ledger.Head().Size-size)
	}
	leaf := must(b.ledger.Leaf(ctx, size))
	list := slices.IndexFunc(leaf.Fields, func(f audit.Field) bool { return f.Tag == audit.TagErased })
	if want := fmt.Sprintf("%d asked", of[0].Index); leaf.Op != audit.OpErase || !strings.Contains(fmt.Sprint(leaf.Fields[list].Show()), want) {
		t.Errorf("%+v", leaf)
	}
	for _, a := range of { // what did not hold it is left
		if open := b.stored(a.Index); len(open) != 1 || open[0].Tag != audit.TagAddress {
			t.Errorf("entry %d: %v", a.Index, open)
		}
	}
	if n, err := b.ledger.Erase(ctx, audit.EntryOpenings(of[0].Index), "a test", "test", ""); n != 1 || err != nil {
		t.Errorf("%d %v", n, err)
	}
	if open := b.stored(of[0].Index); open != nil {
		t.Errorf("%v", open)
	}
	if open := b.stored(other.Index); len(open) != 1 {
		t.Errorf("another subject's: %v", open)
	}
	b.checkpoint()
	if _, err := b.verify(); err != nil {
		t.Error(err)
	}
	// An older checkpoint is a prefix still, and each entry is proved as before.
	c := must(audit.OpenCheckpoint(before, b.ledger.Origin(), [][]byte{b.spki}))
	for _, a := range of {
		if _, err := audit.Proof(ctx, b.db, a.Index, c.Size); err != nil {
			t.Error(err)
		}
	}
	b.absent(jane)
}

// Many are erased in pages, each by an entry of its own.
func TestEraseMany(t *testing.T) {
	b := newLedger(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 150 {
				e := audit.Event(audit.OpSession, nil)
				e.Private = []audit.Private{{Tag: audit.TagAddress, Value: fmt.Sprint("192.0.2.", i%2)}, {Tag: audit.TagAsked, Value: "CN=Jane Roe"}}
				if _, err := b.ledger.Append(context.Background(), e); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	size := b.ledger.Head().Size
	if n, err := b.ledger.Erase(context.Background(), audit.OpeningsOf("Jane Roe"), "a test", "test", ""); n != 1200 || err != nil || b.ledger.Head().Size != size+3 {
		t.Errorf("%d erased by %d entries, %v", n, b.ledger.Head().Size-size, err)
	}
	var erased atomic.Int64 // by several at once: each is erased once
	for range 4 {
		wg.Go(func() {
			n, err := b.ledger.Erase(context.Background(), audit.OpeningsOf("::ffff:192.0.2.1"), "a test", "test", "")
			if erased.Add(int64(n)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if erased.Load() != 600 {
		t.Errorf("%d erased", erased.Load())
	}
	b.checkpoint()
	if rep, err := b.verify(); err != nil || rep.Opened != 600 || rep.Erased != 1800 {
		t.Errorf("%+v %v", rep, err)
	}
}

// However many are erased in whatever order: no file has any of them, not even a copy that
// SQLite made when it moved them.
func TestEraseLeavesNoCopies(t *testing.T) {
	onlySQLite(t)
	b := newLedger(t)
	const each, groups = 400, 20
	group := func(n int) string { return fmt.Sprintf("of group %02d", n%groups) }
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range each {
				asked := "OU=" + group(rand.IntN(groups)) + strings.Repeat("\ndns:padding.example", rand.IntN(40))
				b.appended(audit.Private{Tag: audit.TagAsked, Value: asked})
			}
		})
	}
	wg.Wait()
	for n := range groups {
		must(b.ledger.Erase(context.Background(), audit.OpeningsOf(group(n)), "a test", "test", ""))
		for erased := range n + 1 {
			b.absent(group(erased))
		}
	}
	b.checkpoint()
	if rep, err := b.verify(); err != nil || rep.Erased != 8*each {
		t.Errorf("%+v %v", rep, err)
	}
}

// Who has something erased is on the ledger, unless that is what is to be erased.
func TestEraseNamesWhoAsks(t *testing.T) {
	b := newLedger(t)
	a := b.appended(audit.Private{Tag: audit.TagAddress, Value: "192.0.2.1"})
	for range 2 {
		b.appended(audit.Private{Tag: audit.TagAddress, Value: "192.0.2.2"})
	}
	must(b.ledger.Erase(context.Background(), audit.EntryOpenings(a.Index), "a test", "test", "192.0.2.3"))
	if open := b.stored(b.ledger.Head().Size - 1); len(open) != 1 || string(open[0].Value) != "192.0.2.3" {
		t.Errorf("%v", open)
	}
	if n := must(b.ledger.Erase(context.Background(), audit.OpeningsOf("192.0.2.2"), "a test", "test", "192.0.2.2")); n != 2 || b.stored(b.ledger.Head().Size-1) != nil {
		t.Errorf("%d erased, the entry commits to it again", n)
	}
	b.checkpoint()
	if rep, err := b.verify(); err != nil || rep.Erased != 3 || rep.Opened != 1 {
		t.Errorf("%+v %v", rep, err)
	}
}

// scrubbed fails from the second transaction on, once it is armed, and counts the scrubs.
type scrubbed struct {
	*dbstore.Store
	armed  bool
	writes atomic.Int64
	scrubs atomic.Int64
}

func (s *scrubbed) Update(ctx context.Context, fn func(audit.Tx) error) error {
	if s.armed && s.writes.Add(1) > 1 {
		return fmt.Errorf("%w: down", audit.ErrUnavailable)
	}
	return s.Store.Update(ctx, fn)
}

func (s *scrubbed) Scrub(ctx context.Context) error { s.scrubs.Add(1); return s.Store.Scrub(ctx) }

// What was erased before the database went away is scrubbed too, and said.
func TestEraseHalf(t *testing.T) {
	b := newLedger(t)
	b.stop()
	f := &scrubbed{}
	b.wrap = func(db *dbstore.Store) audit.Storage { f.Store = db; return f }
	if err := b.open(); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				b.appended(audit.Private{Tag: audit.TagAddress, Value: "192.0.2.1"})
			}
		})
	}
	wg.Wait()
	f.armed = true
	n, err := b.ledger.Erase(context.Background(), audit.OpeningsOf("192.0.2.1"), "a test", "test", "")
	if n != 512 || !errors.Is(err, audit.ErrUnavailable) || f.scrubs.Load() != 1 {
		t.Errorf("%d erased, %v, %d scrubs", n, err, f.scrubs.Load())
	}
}

// Nodes that erase the same at the same time erase each value once.
func TestEraseNodes(t *testing.T) {
	b, all := nodes(t, "a", "b")
	for range 300 {
		e := audit.Event(audit.OpSession, nil)
		e.Private = []audit.Private{{Tag: audit.TagAddress, Value: "192.0.2.1"}, {Tag: audit.TagAsked, Value: "CN=Jane Roe"}}
		if _, err := all[0].ledger.Append(context.Background(), e); err != nil {
			t.Fatal(err)
		}
	}
	var erased atomic.Int64
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() { // whole rows and parts of them, beside others who write
			value := []string{"Jane Roe", "192.0.2.1"}[i/4]
			n, err := all[i%2].ledger.Erase(context.Background(), audit.OpeningsOf(value), "a test", "test", "")
			if erased.Add(int64(n)); err != nil {
				t.Error(err)
			}
		})
	}
	for _, n := range all {
		wg.Go(func() { n.operations(t, 50, 4) })
	}
	wg.Wait()
	if erased.Load() != 600 {
		t.Errorf("%d erased", erased.Load())
	}
	for _, n := range all {
		n.close()
	}
	if err := b.open(); err != nil {
		t.Fatal(err)
	}
	b.checkpoint()
	if rep, err := b.verify(); err != nil || rep.Opened != 0 || rep.Erased != 600 {
		t.Errorf("%+v %v", rep, err)
	}
}

// absent wants a value to be in no file of the database, or in no row of it.
func (b *bench) absent(value string) {
	b.Helper()
	if !strings.HasPrefix(b.url, "sqlite:") {
		all := audit.OpeningQuery{To: 1 << 62}
		err := b.db.Openings(context.Background(), all, func(s audit.StoredOpenings) error {
			if strings.Contains(string(audit.EncodeOpenings(s.Openings)), value) {
				b.Errorf("entry %d holds it", s.Index)
			}
			return nil
		})
		if err != nil {
			b.Error(err)
		}
		return
	}
	path := strings.TrimPrefix(b.url, "sqlite:")
	for _, end := range []string{"", "-wal"} {
		content, err := os.ReadFile(path + end)
		if err != nil || bytes.Contains(content, []byte(value)) {
			b.Errorf("%s%s holds it, or %v", path, end, err)
		}
	}
}

// TestAttack_AUD_19 tries to find a value from its commitment: the dictionary has it, the
// salt is gone.
func TestAttack_AUD_19(t *testing.T) {
	b := newLedger(t)
	a := b.appended(audit.Private{Tag: audit.TagAddress, Value: "10.0.3.77"})
	salt := b.stored(a.Index)[0].Salt
	c, _ := a.Leaf.Hash(audit.TagAddress)
	found := func(salts ...[32]byte) (n int) {
		for i := range 1 << 16 { // the whole of 10.0.0.0/16, with every salt
			value := fmt.Sprintf("10.0.%d.%d", i>>8, i&255)
			if plain := sha256.Sum256([]byte(value)); plain == c {
				t.Fatal("the commitment is a bare hash")
			}
			for _, s := range salts {
				if (audit.Opening{Tag: audit.TagAddress, Salt: s, Value: []byte(value)}).Commitment(a.Leaf.Ledger, a.Leaf.ID) == c {
					n++
				}
			}
		}
		return n
	}
	if found(salt) != 1 {
		t.Fatal("with the salt it is not found: this test would see nothing")
	}
	must(b.ledger.Erase(context.Background(), audit.EntryOpenings(a.Index), "a test", "test", ""))
	// What is left to guess with: no salt, and what stands in the entry.
	h := audit.LeafHash(a.Bytes)
	guesses := [][32]byte{{}, h, a.Leaf.Ledger, c, sha256.Sum256(a.Bytes)}
	if found(guesses...) != 0 {
		t.Error("the value is found without the salt")
	}
	if slices.Contains(guesses, salt) || bytes.Contains(a.Bytes, salt[:8]) {
		t.Error("the salt can be guessed")
	}
	b.absent(string(salt[:]))
	if again := b.appended(audit.Private{Tag: audit.TagAddress, Value: "10.0.3.77"}); b.stored(again.Index)[0].Salt == salt {
		t.Error("a salt comes twice")
	}
}

// Who erases without an entry, or lies about what opens a commitment, is noticed.
func TestTamperOpenings(t *testing.T) {
	onlySQLite(t)
	for what, change := range map[string]string{
		"opening removed":           "DELETE FROM opening WHERE idx = (SELECT min(idx) FROM opening)",
		"opening exchanged":         "UPDATE opening SET data = (SELECT data FROM opening ORDER BY idx DESC LIMIT 1) WHERE idx = (SELECT min(idx) FROM opening)",
		"opening edited":            "UPDATE opening SET data = substr(data, 1, length(data) - 1) || x'58' WHERE idx = (SELECT min(idx) FROM opening)",
		"opening put back":          "INSERT OR REPLACE INTO opening SELECT %d, retain_until, data FROM opening LIMIT 1",
		"opening of nothing":        "UPDATE opening SET idx = 4711 WHERE idx = (SELECT max(idx) FROM opening)",
		"opening of another entry":  "INSERT INTO opening SELECT 3, retain_until, data FROM opening LIMIT 1",
		"evidence of another asker": "UPDATE serial SET evidence = CAST('chancery/evidence/v1' || char(10) || 'order other' || char(10) AS BLOB) WHERE evidence IS NOT NULL",
		"evidence removed":          "UPDATE serial SET evidence = NULL WHERE evidence IS NOT NULL",
	} {
		t.Run(what, func(t *testing.T) {
			b := newLedger(t)
			h := newHouse(b)
			var erased uint64
			for _, ip := range []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"} {
				erased = b.appended(audit.Private{Tag: audit.TagAddress, Value: ip}).Index
			}
			b.appended(audit.Private{Tag: audit.TagAddress, Value: "192.0.2.4"})
			record := audit.Evidence{{Name: "order", Value: "x"}}.Record()
			in := h.intent()
			in.Evidence, in.Private = audit.EvidenceDigest(record), []audit.Private{{Tag: audit.TagAsked, Value: "dns:five.example"}}
			must(b.ledger.Begin(context.Background(), in, ca.ReserveSerial{Issuer: h.spki, Serial: in.Serial, NotAfter: notAfter, Evidence: record}))
			must(b.ledger.Erase(context.Background(), audit.EntryOpenings(erased), "a test", "test", ""))
			b.checkpoint()
			if _, err := b.verify(); err != nil {
				t.Fatal(err)
			}
			b.stop()
			raw := must(sql.Open("sqlite3", b.path("x.db")))
			defer raw.Close()
			if strings.Contains(change, "%d") {
				change = fmt.Sprintf(change, erased)
			}
			if res, err := raw.Exec(change); err != nil {
				t.Fatal(err)
			} else if n, _ := res.RowsAffected(); n != 1 {
				t.Fatalf("%d rows changed", n)
			}
			_, err := b.verify()
			var v *audit.Violation
			if !errors.As(err, &v) {
				t.Errorf("verify: %v; want a violation", err)
			}
			t.Log(err)
		})
	}
}

// told is a log that tells of each line.
type told chan string

func (c told) Write(p []byte) (int, error) { c <- string(p); return len(p), nil }

// What is past its retention goes by itself, the rest stays.
func TestRetention(t *testing.T) {
	b := newLedger(t)
	old := b.appended(audit.Private{Tag: audit.TagAddress, Value: "192.0.2.1"})
	b.stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	b.db = must(dbstore.Open(ctx, b.url))
	defer b.db.Close()
	later := time.Now().Add(audit.DefaultRetain + time.Minute)
	log := make(told, 8)
	l := must(audit.Open(ctx, b.db, audit.Options{Node: "n", Now: func() time.Time { return later }, Retain: time.Hour, Log: slog.New(slog.NewTextHandler(log, nil))}))
	done := make(chan error, 2)
	go func() { done <- l.Run(ctx) }()
	e := audit.Event(audit.OpSession, nil)
	e.Private = []audit.Private{{Tag: audit.TagAddress, Value: "192.0.2.2"}}
	kept := must(l.Append(ctx, e))
	go func() { done <- l.RunRetention(ctx) }()
	for line := ""; !strings.Contains(line, "past their retention are erased"); {
		select {
		case line = <-log:
		case err := <-done:
			t.Fatal(err)
		}
	}
	if b.stored(old.Index) != nil || len(b.stored(kept.Index)) != 1 {
		t.Errorf("openings %v and %v", b.stored(old.Index), b.stored(kept.Index))
	}
	last := must(l.Leaf(ctx, l.Head().Size-1))
	if why, _ := last.Get(audit.TagReason); last.Op != audit.OpErase || string(why) != "retention ended" {
		t.Errorf("%+v", last)
	}
	cancel()
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// TestRefusals has a stranger refused very often: a few entries say so.
func TestRefusals(t *testing.T) {
	b := newLedger(t)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.ledger.RunRefusals(ctx) }()
	for i := range 100_000 {
		b.ledger.Refused(audit.Refusal{Kind: "acme:unauthorized", Detail: "new-order", Client: fmt.Sprintf("192.0.%d.%d", i>>8&255, i&255)})
	}
	b.ledger.Refused(audit.Refusal{Kind: "api:badCSR", Detail: "csr"})
	for i := range 1000 { // kinds are of a fixed set; if they were not, it would still be few entries
		b.ledger.Refused(audit.Refusal{Kind: fmt.Sprint("kind", i)})
	}
	size := b.ledger.Head().Size
	cancel() // what is counted is written when the server ends
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	grew := b.ledger.Head().Size - size
	if grew > 65 {
		t.Errorf("%d entries", grew)
	}
	total, seen := uint64(0), map[string]audit.Leaf{}
	for i := size; i < size+grew; i++ {
		l := must(b.ledger.Leaf(context.Background(), i))
		kind, _ := l.Get(audit.TagRefusal)
		n, _ := l.Uint(audit.TagCount)
		total += n
		seen[string(kind)] = l
		if open := b.stored(i); string(kind) == "acme:unauthorized" && (len(open) != 1 || len(strings.Split(string(open[0].Value), "\n")) != 32 || !open[0].Opens(l)) {
			t.Errorf("%d addresses", len(open))
		}
	}
	if n, _ := seen["acme:unauthorized"].Uint(audit.TagCount); total != 101_001 || n != 100_000 {
		t.Errorf("%d counted, %d of the one kind", total, n)
	}
	if detail, _ := seen["acme:unauthorized"].Get(audit.TagReason); string(detail) != "new-order" {
		t.Errorf("detail %q", detail)
	}
	b.checkpoint()
	if _, err := b.verify(); err != nil {
		t.Error(err)
	}
}

// What cannot be written is counted on.
func TestRefusalsWhileUnavailable(t *testing.T) {
	b, f := newFaulty(t)
	ctx := context.Background()
	for range 3 {
		b.ledger.Refused(audit.Refusal{Kind: "a", Client: "192.0.2.1"})
	}
	b.ledger.Refused(audit.Refusal{Kind: "a", Client: "192.0.2.2"})
	fails(&f.before, "%w: down", audit.ErrUnavailable)
	if err := b.ledger.FlushRefusals(ctx); !errors.Is(err, audit.ErrUnavailable) {
		t.Fatal(err)
	}
	f.before.Store(nil)
	began := uint64(time.Now().Unix())
	time.Sleep(1100 * time.Millisecond)
	b.ledger.Refused(audit.Refusal{Kind: "a", Client: "192.0.2.3"})
	if err := b.ledger.FlushRefusals(ctx); err != nil {
		t.Fatal(err)
	}
	index := b.ledger.Head().Size - 1
	l := must(b.ledger.Leaf(ctx, index))
	open := b.stored(index)
	if n, _ := l.Uint(audit.TagCount); n != 5 || len(open) != 1 || string(open[0].Value) != "192.0.2.1\n192.0.2.2\n192.0.2.3" {
		t.Errorf("%d counted, %s", n, open)
	}
	if since, _ := l.Uint(audit.TagSince); since > began {
		t.Errorf("counted since %d, the first came before %d", since, began)
	}
	if err := b.ledger.FlushRefusals(ctx); err != nil || b.ledger.Head().Size != index+1 {
		t.Errorf("nothing is left, but it grows: %v", err)
	}
}

func TestEvidence(t *testing.T) {
	e := audit.Evidence{{Name: "order", Value: "x y"}, {Name: "proof", Value: "a\nb"}, {Name: "proof", Value: "c"}}
	record := e.Record()
	if want := "chancery/evidence/v1\norder x y\nproof a\uFFFDb\nproof c\n"; string(record) != want {
		t.Errorf("%q", record)
	}
	back, err := audit.ParseEvidence(record)
	if err != nil || !bytes.Equal(back.Record(), record) || len(back.All("proof")) != 2 {
		t.Errorf("%v %v", back, err)
	}
	if d := audit.EvidenceDigest(record); hex.EncodeToString(d[:]) == strings.Repeat("0", 64) || d == audit.EvidenceDigest(record[:len(record)-1]) {
		t.Errorf("digest %x", d)
	}
	for _, bad := range []string{"", "order x\n", "chancery/evidence/v1\norder x", "chancery/evidence/v1\norder\n", "chancery/evidence/v1\n\n", "chancery/evidence/v2\n"} {
		if _, err := audit.ParseEvidence([]byte(bad)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func FuzzDecodeOpenings(f *testing.F) {
	f.Add(audit.EncodeOpenings([]audit.Opening{{Tag: audit.TagAddress, Salt: [32]byte{1}, Value: []byte("192.0.2.7")}, {Tag: audit.TagAsked}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if open, err := audit.DecodeOpenings(b); err == nil && !bytes.Equal(audit.EncodeOpenings(open), b) {
			t.Error("it is decoded to something else")
		}
	})
}

func FuzzParseEvidence(f *testing.F) {
	f.Add(audit.Evidence{{Name: "order", Value: "x"}}.Record())
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := audit.ParseEvidence(b)
		if err != nil {
			return
		}
		again, err := audit.ParseEvidence(e.Record())
		if err != nil || len(again) != len(e) {
			t.Errorf("%q is read as %q and then as %q, %v", b, e, again, err)
		}
	})
}
