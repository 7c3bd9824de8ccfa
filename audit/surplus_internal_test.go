package audit

import (
	"fmt"
	"testing"
	"time"
)

type noWitness struct{}

func (noWitness) Exempt(string, [32]byte) (uint64, int)              { return 0, 0 }
func (noWitness) Under(string, [32]byte, uint64) (n uint64, ok bool) { return 0, false }

// signed is a tally in which a key of issuers signed once an hour for so many hours.
func signed(key [32]byte, begin time.Time, hours int) *Tally {
	t := NewTally()
	t.keep = tallyKeep
	t.token["alpha"] = "T1"
	for i := range hours {
		at := begin.Add(time.Duration(i) * time.Hour)
		var in, done Fields
		in.Hash(TagKey, key)
		in.Uint8(TagPurpose, uint8(PurposeIssuer))
		done.Bytes(TagAttempts, attempts([]Attempt{{Member: "alpha", Count: 1}}))
		t.add(uint64(2*i+1), Leaf{Kind: KindIntent, Time: at, Closes: NoIndex, Fields: in.sorted()})
		t.add(uint64(2*i+2), Leaf{Kind: KindDone, Time: at, Closes: uint64(2*i + 1), Fields: done.sorted()})
	}
	return t
}

// A reading that was old when the server started is no base for the next: the tally does
// not know any more what the ledger had by then, and would find a surplus.
func TestSurplusOfOldReading(t *testing.T) {
	key, begin := [32]byte{1}, time.Date(2026, 7, 1, 0, 0, 0, 0, time.UTC)
	tally := signed(key, begin, 48)
	w := newSurplusWatch()
	read := func(count uint64, hour int) []Alarm {
		c := SignatureCount{Token: "T1", Key: key, Count: count, From: begin.Add(-time.Hour), To: begin.Add(time.Duration(hour)*time.Hour + time.Minute)}
		return w.alarms(tally, CountsReading{Counts: []SignatureCount{c}, Witness: noWitness{}})
	}
	for _, r := range []struct {
		count  uint64
		hour   int
		alarms int
	}{{24, 23, 0}, {48, 47, 0}, {48, 48, 0}, {49, 49, 1}} {
		if a := read(r.count, r.hour); len(a) != r.alarms {
			t.Errorf("%d by hour %d: %v", r.count, r.hour, a)
		}
	}
}

// Who writes the file of counts fills no memory with keys and tokens that he invents.
func TestSurplusInvented(t *testing.T) {
	key, begin := [32]byte{1}, time.Date(2026, 7, 1, 0, 0, 0, 0, time.UTC)
	tally := signed(key, begin, 1)
	w := newSurplusWatch()
	for i := range 4 {
		var all []SignatureCount
		for n := range mostCounters {
			all = append(all, SignatureCount{Token: fmt.Sprint(i, n), Key: key, Count: 1, To: begin})
		}
		var unknown [32]byte
		unknown[1] = byte(i)
		all = append(all, SignatureCount{Token: "T1", Key: unknown, Count: 1, To: begin})
		w.alarms(tally, CountsReading{Counts: all, Witness: noWitness{}})
	}
	if len(w.at) > 2*mostCounters || len(w.worst) > mostSurplus {
		t.Errorf("%d counters and %d surpluses are kept", len(w.at), len(w.worst))
	}
}
