package audit_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"chancery/audit"
)

const (
	countsHeader = "token_serial,key_spki_sha256,count,from,to\n"
	someKey      = "00000000000000000000000000000000000000000000000000000000000000aa"
)

func TestReadCounts(t *testing.T) {
	got, err := audit.ReadCounts(strings.NewReader("to,count,from,key_spki_sha256,token_serial\n2026-07-01T12:00:00+02:00,7,,AA" + someKey[2:] + ",T1\n2026-07-01T12:00:00.5Z,0,2026-06-01T00:00:00Z," + someKey + ",T1\n"))
	if err != nil || len(got) != 2 || got[0].Token != "T1" || got[0].Count != 7 || !got[0].From.IsZero() || got[0].To.Hour() != 12 || got[0].Key[31] != 0xaa || got[1].Line != 3 {
		t.Errorf("%+v, %v", got, err)
	}
	for name, c := range map[string]struct{ text, says string }{
		"empty":          {"", "line 1: the header"},
		"unknown column": {"token_serial,key_spki_sha256,count,from,to,why\n", `line 1: column "why"`},
		"column twice":   {"token_serial,key_spki_sha256,count,from,to,to\n", `column "to"`},
		"no column to":   {"token_serial,key_spki_sha256,count,from\n", "line 1: a column is missing"},
		"too few fields": {countsHeader + "T1," + someKey + ",1\n", "line 2"},
		"no key":         {countsHeader + "T1,abc,1,,2026-07-01T12:00:00Z\n", "line 2: key_spki_sha256"},
		"no token":       {countsHeader + "," + someKey + ",1,,2026-07-01T12:00:00Z\n", "line 2: token_serial"},
		"negative":       {countsHeader + "T1," + someKey + ",-1,,2026-07-01T12:00:00Z\n", "line 2: count"},
		"from no time":   {countsHeader + "T1," + someKey + ",1,yesterday,2026-07-01T12:00:00Z\n", "line 2: from"},
		"to missing":     {countsHeader + "T1," + someKey + ",1,,\n", "line 2: to"},
		"to before from": {countsHeader + "T1," + someKey + ",1,2026-07-01T12:00:00Z,2026-07-01T12:00:00Z\n", "line 2: to does not come after from"},
		"key twice":      {countsHeader + "T1," + someKey + ",1,,2026-07-01T12:00:00Z\nT1," + someKey + ",1,,2026-07-01T12:00:00Z\n", "line 3: line 2"},
	} {
		if _, err := audit.ReadCounts(strings.NewReader(c.text)); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
}

func FuzzReadCounts(f *testing.F) {
	f.Add(countsHeader + "T1," + someKey + ",1,,2026-07-01T12:00:00Z\n")
	f.Add("to,count,from,key_spki_sha256,token_serial\n")
	f.Fuzz(func(t *testing.T, text string) {
		counts, err := audit.ReadCounts(strings.NewReader(text))
		for _, c := range counts {
			if err == nil && (c.Token == "" || !c.From.Before(c.To)) {
				t.Errorf("%+v", c)
			}
		}
	})
}

// witness is a worker's journal that knows nothing, or so many uses of a key.
type witness struct {
	journals    int
	exempt      uint64
	underIntent map[uint64]uint64
}

func (w witness) Exempt(string, [32]byte) (uint64, int) { return w.exempt, w.journals }
func (w witness) Under(_ string, _ [32]byte, intent uint64) (uint64, bool) {
	n, known := w.underIntent[intent]
	return n, known
}

// Each way in which an intent can end bounds how many signatures there can be.
func TestSurplusBounds(t *testing.T) {
	onlySQLite(t)
	b := newLedger(t)
	ctx := context.Background()
	var member audit.Fields
	member.Text(audit.TagMember, "alpha")
	member.Text(audit.TagSerialNumber, "T1")
	if _, err := b.ledger.Append(ctx, audit.Event(audit.OpMemberAdd, member)); err != nil {
		t.Fatal(err)
	}
	begin := func() audit.Opened {
		in := intent(0)
		in.MaxAttempts = 3
		o, err := b.ledger.Begin(ctx, in)
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	tries := func(n uint32) []audit.Attempt { return []audit.Attempt{{Member: "alpha", Count: n}} }
	least, most := 0, 0
	var crashed uint64
	for _, step := range []struct {
		name        string
		do          func() error
		least, most int
	}{
		{"nothing", func() error { return nil }, 0, 0},
		{"done at once", func() error { _, err := b.ledger.Done(ctx, begin(), audit.Done{Attempts: tries(1)}); return err }, 1, 1},
		{"done with the second try", func() error { _, err := b.ledger.Done(ctx, begin(), audit.Done{Attempts: tries(2)}); return err }, 1, 2},
		{"done on another member", func() error {
			_, err := b.ledger.Done(ctx, begin(), audit.Done{Attempts: []audit.Attempt{{Member: "alpha", Count: 1}, {Member: "beta", Count: 1}}})
			return err
		}, 0, 2}, // beta is no member that the ledger knows: it may be any
		{"failed before", func() error { _, err := b.ledger.Failed(ctx, begin(), "no", nil); return err }, 0, 0},
		{"failed on the member", func() error { _, err := b.ledger.Failed(ctx, begin(), "no", tries(1)); return err }, 0, 1},
		{"orphan", func() error { _, err := b.ledger.Orphan(ctx, begin(), "no", tries(2)); return err }, 0, 2},
		{"open", func() error { begin(); return nil }, 0, 3},
		{"left by a crash", func() error {
			o := begin()
			crashed = o.Index
			_, err := b.ledger.Orphan(ctx, o, "crash", nil)
			return err
		}, 0, 3},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		least, most = least+step.least, most+step.most
		tally, err := audit.ReadTally(ctx, b.db, b.ledger.Head().Size)
		if err != nil {
			t.Fatal(err)
		}
		if step.name == "nothing" {
			continue // the ledger does not know the key
		}
		for n := max(least-1, 0); n <= most+1; n++ {
			c := audit.SignatureCount{Token: "T1", Key: intent(0).Key, Count: uint64(n), To: time.Now()}
			got := tally.Compare(c, witness{}, time.Hour)
			got.Least = uint64(least) // an hour of skew allows fewer
			if got.Surplus != (n > most) || int(got.Most) != most {
				t.Errorf("%s: %d signatures: surplus %v, at most %d; want at most %d", step.name, n, got.Surplus, got.Most, most)
			}
		}
		if got := tally.Compare(audit.SignatureCount{Token: "T2", Key: intent(0).Key, Count: 100, To: time.Now()}, witness{}, 0); !got.Surplus {
			t.Errorf("%s: a token that the ledger does not know has signed: %s", step.name, got)
		}
		if got := tally.Compare(audit.SignatureCount{Token: "T1", Key: intent(0).Key, Count: 100, To: time.Now().Add(-time.Hour)}, witness{}, 0); got.Most != 0 {
			t.Errorf("%s: %d signatures before all intents", step.name, got.Most)
		}
	}
	// The worker's journal tells how often it was tried before the crash.
	tally, err := audit.ReadTally(ctx, b.db, b.ledger.Head().Size)
	if err != nil {
		t.Fatal(err)
	}
	c := audit.SignatureCount{Token: "T1", Key: intent(0).Key, To: time.Now()}
	if got := tally.Compare(c, witness{journals: 1, underIntent: map[uint64]uint64{crashed: 1}}, time.Hour); int(got.Most) != most-2 {
		t.Errorf("with the journal at most %d, want %d", got.Most, most-2)
	}
	if lost := tally.Lost(); !lost[crashed] || len(lost) != 1 {
		t.Error("which intent the crash left open")
	}
	// A fewer count than the closed intents have surely made is a note, not an alarm.
	later := audit.SignatureCount{Token: "T1", Key: intent(0).Key, To: time.Now().Add(2 * time.Second)}
	if got := tally.Compare(later, witness{}, 0); got.Surplus || !strings.Contains(got.Note, fmt.Sprintf("%d at least", least)) {
		t.Errorf("no signature at all: %s", got)
	}
}

// A key that was adopted, or came back from a backup, has signed before: its counts are
// compared from a time on only.
func TestSurplusOfOlderKeys(t *testing.T) {
	onlySQLite(t)
	b := newLedger(t)
	var f audit.Fields
	f.Hash(audit.TagKey, intent(0).Key)
	f.Text(audit.TagKeyName, "old")
	f.Uint8(audit.TagPurpose, uint8(audit.PurposeIssuer))
	if _, err := b.ledger.Append(context.Background(), audit.Event(audit.OpKeyAdopt, f)); err != nil {
		t.Fatal(err)
	}
	tally, err := audit.ReadTally(context.Background(), b.db, b.ledger.Head().Size)
	if err != nil {
		t.Fatal(err)
	}
	c := audit.SignatureCount{Token: "T1", Key: intent(0).Key, Count: 1000, To: time.Now()}
	if got := tally.Compare(c, witness{}, 0); got.Surplus || !strings.Contains(got.Note, "adopted") {
		t.Errorf("since it came there: %s", got)
	}
	c.From = c.To.Add(-time.Minute)
	if got := tally.Compare(c, witness{}, 0); !got.Surplus || got.Name != "old" {
		t.Errorf("of the last minute: %s", got)
	}
}

func TestCountsBetween(t *testing.T) {
	at := func(hour int) time.Time { return time.Date(2026, 7, 1, hour, 0, 0, 0, time.UTC) }
	one := func(count uint64, from, to int) audit.SignatureCount {
		c := audit.SignatureCount{Token: "T", Count: count, To: at(to)}
		if from > 0 {
			c.From = at(from)
		}
		return c
	}
	for name, c := range map[string]struct {
		earlier, later audit.SignatureCount
		count          uint64
		from           int
		reset          bool
	}{
		"since birth":      {one(5, 0, 2), one(9, 0, 3), 4, 2, false},
		"since a time":     {one(5, 1, 2), one(9, 1, 3), 4, 2, false},
		"of its own":       {one(5, 1, 2), one(9, 2, 3), 9, 2, false},
		"fewer":            {one(5, 0, 2), one(3, 0, 3), 0, 0, true},
		"began elsewhere":  {one(5, 0, 2), one(9, 1, 3), 0, 0, true},
		"not later at all": {one(5, 0, 3), one(9, 0, 3), 0, 0, true},
		"the wrong way":    {one(5, 0, 4), one(9, 0, 3), 0, 0, true},
	} {
		between, reset := audit.CountsBetween([]audit.SignatureCount{c.earlier}, []audit.SignatureCount{c.later})
		switch {
		case c.reset && (len(reset) != 1 || len(between) != 0):
			t.Errorf("%s: %+v, want none", name, between)
		case !c.reset && (len(between) != 1 || between[0].Count != c.count || !between[0].From.Equal(at(c.from))):
			t.Errorf("%s: %+v, want %d from %d", name, between, c.count, c.from)
		}
	}
}
