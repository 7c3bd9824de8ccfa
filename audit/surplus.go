package audit

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/csv"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Surplus: an HSM that has signed more often than the ledger records was used behind
// the server. Each intent stands for between none and max_attempts signatures; its
// closing leaf tells how often which member was asked. So the ledger bounds, for each
// key on each token and each span of time, how many signatures there can be.

// SignatureCount is what an HSM, or its log, says of one key on one token.
type SignatureCount struct {
	Token string    // serial number (CK_TOKEN_INFO)
	Key   [32]byte  // SHA-256 of the public key's SPKI
	Count uint64    // signatures made with it
	From  time.Time // zero: since the key came to the token
	To    time.Time // when it was counted
	Line  int       // of the file
}

// countColumns are those of a file of counts, which all must be there, in any order.
var countColumns = []string{"token_serial", "key_spki_sha256", "count", "from", "to"}

// ReadCounts reads a file of counts: CSV (RFC 4180) with the header
//
//	token_serial,key_spki_sha256,count,from,to
//
// key_spki_sha256 is 64 hex digits; from and to are times of RFC 3339; an empty from means
// since the key came to the token. An error names the line.
func ReadCounts(r io.Reader) ([]SignatureCount, error) {
	in := csv.NewReader(r)
	in.ReuseRecord = true
	header, err := in.Read()
	if err != nil {
		return nil, fmt.Errorf("line 1: the header %q is missing: %w", strings.Join(countColumns, ","), err)
	}
	at := map[string]int{}
	for i, name := range header {
		if _, twice := at[name]; twice || !slices.Contains(countColumns, name) {
			return nil, fmt.Errorf("line 1: column %q is not known or there twice; allowed: %s, each once", Text(name, 64), strings.Join(countColumns, ", "))
		}
		at[name] = i
	}
	if len(at) != len(countColumns) {
		return nil, fmt.Errorf("line 1: a column is missing; needed: %s", strings.Join(countColumns, ", "))
	}
	var out []SignatureCount
	seen := map[use]int{}
	for {
		row, err := in.Read()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err // names the line
		}
		line, _ := in.FieldPos(0)
		c, err := parseCount(func(column string) string { return strings.TrimSpace(row[at[column]]) })
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", line, err)
		}
		c.Line = line
		if before, twice := seen[use{c.Token, c.Key}]; twice {
			return nil, fmt.Errorf("line %d: line %d counts the same key on the same token; one line for each", line, before)
		}
		seen[use{c.Token, c.Key}] = line
		out = append(out, c)
	}
}

func parseCount(get func(column string) string) (c SignatureCount, err error) {
	if c.Token = get("token_serial"); c.Token == "" || Text(c.Token, 64) != c.Token {
		return c, fmt.Errorf("token_serial: %q is no serial number of a token", Text(c.Token, 64))
	}
	key, err := hex.DecodeString(get("key_spki_sha256"))
	if err != nil || len(key) != len(c.Key) {
		return c, fmt.Errorf("key_spki_sha256: %q is no SHA-256; write 64 hex digits, as chancery key list --json shows them", Text(get("key_spki_sha256"), 80))
	}
	c.Key = [32]byte(key)
	if c.Count, err = strconv.ParseUint(get("count"), 10, 63); err != nil {
		return c, fmt.Errorf("count: %q is no whole number", Text(get("count"), 32))
	}
	if from := get("from"); from != "" {
		if c.From, err = time.Parse(time.RFC3339, from); err != nil {
			return c, fmt.Errorf("from: %q is no time; write e.g. 2026-07-01T00:00:00Z, or nothing: since the key came to the token", Text(from, 64))
		}
	}
	if c.To, err = time.Parse(time.RFC3339, get("to")); err != nil {
		return c, fmt.Errorf("to: %q is no time; write e.g. 2026-07-01T00:00:00Z", Text(get("to"), 64))
	}
	if !c.From.Before(c.To) {
		return c, errors.New("to does not come after from")
	}
	return c, nil
}

// CountsBetween is what was counted between an earlier and a later reading of the same
// counters. A counter that began anew in between counts from then on; reset names those.
func CountsBetween(earlier, later []SignatureCount) (between []SignatureCount, reset []SignatureCount) {
	before := map[use]SignatureCount{}
	for _, c := range earlier {
		before[use{c.Token, c.Key}] = c
	}
	for _, c := range later {
		b, ok := before[use{c.Token, c.Key}]
		switch {
		case !ok || !c.From.Before(b.To): // a counter of its own
		case c.Count < b.Count || !c.From.Equal(b.From) || !b.To.Before(c.To):
			reset = append(reset, c)
			continue
		default:
			c.Count, c.From = c.Count-b.Count, b.To
		}
		between = append(between, c)
	}
	return between, reset
}

// use is a key on a token; token "" stands for all that may have it.
type use struct {
	token string
	key   [32]byte
}

// clock sums up over time.
type clock struct {
	base uint64           // of the time before all that is in at
	from int64            // base is of before this second
	at   map[int64]uint64 // by second
}

func (c *clock) add(t time.Time, n uint64) {
	if sec := t.Unix(); sec < c.from {
		c.base += n
	} else if n > 0 {
		if c.at == nil {
			c.at = map[int64]uint64{}
		}
		c.at[sec] += n
	}
}

// upTo is the sum of all up to and with the second of t, or without it.
func (c *clock) upTo(t time.Time, with bool) uint64 {
	n, end := c.base, t.Unix()
	if with {
		end++
	}
	for sec, v := range c.at {
		if sec < end {
			n += v
		}
	}
	return n
}

func (c *clock) trim(before time.Time) {
	c.from = max(c.from, before.Unix())
	for sec, v := range c.at {
		if sec < c.from {
			c.base += v
			delete(c.at, sec)
		}
	}
}

// uses are the uses of one key on one token.
type uses struct {
	begun, closed         clock // how many signatures there can be: by the time of the intents, and of their closing leaves
	surelyBegun, surelyIn clock // how many there must be, likewise
}

// Tally is what the ledger says of the uses of all keys.
type Tally struct {
	keep  time.Duration // of which the times are kept; 0: all
	open  map[uint64]Leaf
	uses  map[use]*uses
	token map[string]string // of a member or backup recipient, by name
	names map[[32]byte]string
	kinds map[[32]byte]Purpose
	older map[[32]byte]bool // keys that were used before this ledger knew them
	nodes map[string]bool   // that had intents
	lost  map[uint64]lostUse
	last  time.Time // of the newest entry
	full  time.Time // trimmed last
}

// lostUse is an intent that a crash left open: the ledger does not know how often it was tried.
type lostUse struct {
	key           [32]byte
	token         string // "": any
	begun, closed time.Time
	max           uint64
}

// tallyKeep is how old a count may be to be compared to the second in a running server.
const tallyKeep = 2 * time.Hour

// NewTally begins before entry 0.
func NewTally() *Tally {
	return &Tally{open: map[uint64]Leaf{}, uses: map[use]*uses{}, token: map[string]string{}, names: map[[32]byte]string{}, kinds: map[[32]byte]Purpose{}, older: map[[32]byte]bool{}, nodes: map[string]bool{}, lost: map[uint64]lostUse{}}
}

// ReadTally adds up the entries below a size.
func ReadTally(ctx context.Context, r Reader, size uint64) (*Tally, error) {
	t := NewTally()
	for from := uint64(0); from < size; from += verifyPage {
		err := r.Leaves(ctx, from, min(from+verifyPage, size), func(i uint64, b []byte) error {
			l, err := DecodeLeaf(b)
			if err == nil {
				t.add(i, l)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return t, nil
}

// add takes the next entry.
func (t *Tally) add(index uint64, l Leaf) {
	text := func(tag Tag) string { b, _ := l.Get(tag); return string(b) }
	t.last = l.Time
	switch l.Kind {
	case KindGenesis:
		list, _ := l.Get(TagCheckpointKeys)
		keys, _ := ParseList(list)
		for _, spki := range keys {
			t.kinds[sha256.Sum256(spki)] = PurposeCheckpoint
		}
	case KindIntent:
		t.open[index] = l
		key, _ := l.Hash(TagKey)
		purpose, _ := l.Uint(TagPurpose)
		t.kinds[key] = Purpose(purpose)
		t.nodes[text(TagNode)] = true
	case KindDone, KindFailed, KindOrphan:
		if in, ok := t.open[l.Closes]; ok {
			delete(t.open, l.Closes)
			t.close(in, l)
		}
	case KindEvent:
		switch l.Op {
		case OpMemberAdd:
			t.token[text(TagMember)] = text(TagSerialNumber)
		case OpBackup:
			if serial := text(TagSerialNumber); serial != "" {
				t.token[text(TagRecipient)] = serial
			}
		case OpKeyGenerate, OpKeyAdopt, OpKeyImport, OpRestore:
			if key, ok := l.Hash(TagKey); ok {
				purpose, _ := l.Uint(TagPurpose)
				t.names[key], t.kinds[key] = text(TagKeyName), Purpose(purpose)
				t.older[key] = l.Op == OpKeyAdopt || l.Op == OpRestore
			}
		}
	}
	if t.keep > 0 && l.Time.Sub(t.full) > t.keep/8 {
		t.full = l.Time
		for _, u := range t.uses {
			for _, c := range []*clock{&u.begun, &u.closed, &u.surelyBegun, &u.surelyIn} {
				c.trim(l.Time.Add(-t.keep))
			}
		}
	}
}

// trimmed is the time before which the tally does not know when something was.
func (t *Tally) trimmed() time.Time {
	if t.full.IsZero() {
		return t.full
	}
	return t.full.Add(-t.keep)
}

func (t *Tally) of(token string, key [32]byte) *uses {
	u := t.uses[use{token, key}]
	if u == nil {
		u = &uses{}
		t.uses[use{token, key}] = u
	}
	return u
}

// close adds the attempts of a closed intent.
func (t *Tally) close(in, l Leaf) {
	key, _ := in.Hash(TagKey)
	list, _ := l.Get(TagAttempts)
	as := parseAttempts(list)
	if len(as) == 0 && l.Kind == KindOrphan { // a crash: nobody knows
		n, _ := in.Uint(TagMaxAttempts)
		pinned, _ := in.Get(TagMember) // token serial number
		t.lost[l.Closes] = lostUse{key, string(pinned), in.Time, l.Time, n}
		return
	}
	for _, a := range as {
		token, known := t.token[a.Member]
		if pinned, ok := in.Get(TagMember); ok {
			token, known = string(pinned), true
		}
		if !known {
			token = "" // its member joined later: it stands for any
		}
		u := t.of(token, key)
		u.begun.add(in.Time, uint64(a.Count))
		u.closed.add(l.Time, uint64(a.Count))
		if l.Kind == KindDone && len(as) == 1 {
			u.surelyBegun.add(in.Time, 1)
			u.surelyIn.add(l.Time, 1)
		}
	}
}

func parseAttempts(list []byte) (out []Attempt) {
	items, err := ParseList(list)
	if err != nil || len(items)%2 != 0 {
		return nil
	}
	for i := 0; i < len(items); i += 2 {
		if len(items[i+1]) == 4 {
			out = append(out, Attempt{Member: string(items[i]), Count: binary.BigEndian.Uint32(items[i+1])})
		}
	}
	return out
}

// earlier is what belongs to the time before a span, see between.
type earlier struct{ closed, surelyBegun uint64 }

// before sums up what ended, or surely began, before the span of a count.
func (t *Tally) before(c SignatureCount, skew time.Duration) (e earlier) {
	for _, token := range []string{c.Token, ""} {
		if u := t.uses[use{token, c.Key}]; u != nil && !c.From.IsZero() {
			e.closed += u.closed.upTo(c.From.Add(-skew), false)
			e.surelyBegun += u.surelyBegun.upTo(c.From.Add(skew), true)
		}
	}
	return e
}

// between bounds the signatures with a key on a token in a span of time; the HSM's clock
// may differ by skew.
func (t *Tally) between(c SignatureCount, e earlier, w Witness, skew time.Duration) (least, most uint64) {
	for _, token := range []string{c.Token, ""} {
		if u := t.uses[use{token, c.Key}]; u != nil {
			most += u.begun.upTo(c.To.Add(skew), true)
			least += u.surelyIn.upTo(c.To.Add(-skew), false)
		}
	}
	for _, in := range t.open {
		pinned, is := in.Get(TagMember)
		if key, _ := in.Hash(TagKey); key == c.Key && !in.Time.After(c.To.Add(skew)) && (!is || string(pinned) == c.Token) {
			n, _ := in.Uint(TagMaxAttempts)
			most += n
		}
	}
	least, most = least-min(least, e.surelyBegun), most-min(most, e.closed)
	_, journals := w.Exempt(c.Token, c.Key)
	for i, x := range t.lost {
		switch { // it counts unless it is of another key, token or time
		case x.key != c.Key || x.token != "" && x.token != c.Token || x.begun.After(c.To.Add(skew)) || !c.From.IsZero() && x.closed.Before(c.From.Add(-skew)):
		default:
			most += x.max
			if n, known := w.Under(c.Token, c.Key, i); known && t.whole(journals) {
				most -= x.max - min(x.max, n)
			}
		}
	}
	return least, most
}

// whole tells whether so many journals of a token are those of all nodes.
func (t *Tally) whole(journals int) bool { return journals >= max(1, len(t.nodes)) }

// Lost are the intents of which the ledger does not know how often they were tried.
func (t *Tally) Lost() map[uint64]bool {
	out := make(map[uint64]bool, len(t.lost))
	for i := range t.lost {
		out[i] = true
	}
	return out
}

// Witness is what the workers' own journals say of the uses of keys.
type Witness interface {
	// Exempt tells how often a key was used without an intent, for checkpoints and probes,
	// and how many journals of that token there are: each node has its own.
	Exempt(token string, key [32]byte) (n uint64, journals int)
	// Under tells how often it was used under an intent that a crash left open, if that is known.
	Under(token string, key [32]byte, intent uint64) (n uint64, known bool)
}

// Comparison is a count held against the ledger.
type Comparison struct {
	SignatureCount
	Name        string // of the key, "" if the ledger does not know it
	Least, Most uint64 // signatures that the ledger accounts for
	Surplus     bool   // the HSM made more
	Note        string // why it was not compared, or what is odd; "" if nothing
}

func (c Comparison) String() string {
	name := "key " + c.Name
	if c.Name == "" {
		name = "an unknown key"
	}
	since := "since it came there"
	if !c.From.IsZero() {
		since = "from " + c.From.UTC().Format(time.RFC3339)
	}
	s := fmt.Sprintf("%s (%x) on token %s: %d signatures %s to %s", name, c.Key, c.Token, c.Count, since, c.To.UTC().Format(time.RFC3339))
	switch {
	case c.Surplus:
		return fmt.Sprintf("%s, the ledger accounts for %d at most: %d were made behind it", s, c.Most, c.Count-c.Most)
	case c.Note != "":
		return s + ": " + c.Note
	}
	return s + ", all accounted for"
}

// Compare holds a count against the ledger. skew is how far the HSM's clock may be off.
func (t *Tally) Compare(c SignatureCount, w Witness, skew time.Duration) Comparison {
	return t.compare(c, t.before(c, skew), w, skew)
}

func (t *Tally) compare(c SignatureCount, e earlier, w Witness, skew time.Duration) Comparison {
	out := Comparison{SignatureCount: c, Name: t.names[c.Key]}
	purpose, known := t.kinds[c.Key]
	if known && out.Name == "" {
		out.Name = purpose.String() // the checkpoint key of genesis
	}
	out.Least, out.Most = t.between(c, e, w, skew)
	switch {
	case !known:
		out.Note = "not compared: the ledger does not know the key, so no artefact of this CA comes from it"
		return out
	case purpose == PurposeSecret:
		out.Note = "not compared: keys for secrets make no signatures"
		return out
	case t.older[c.Key] && c.From.IsZero():
		out.Note = "not compared: it was adopted or restored and may have signed before; give a count from a later time on"
		return out
	case purpose == PurposeCheckpoint || purpose == PurposeProbe:
		if !c.From.IsZero() {
			out.Note = "not compared: checkpoints and probes have no intents; a count since the key came there is compared with the worker's journal"
			return out
		}
		n, journals := w.Exempt(c.Token, c.Key)
		if !t.whole(journals) {
			out.Note = fmt.Sprintf("not compared: %d nodes have signed, and the journals of %d of their workers are here", len(t.nodes), journals)
			return out
		}
		out.Most += n
	}
	switch {
	case c.Count > out.Most:
		out.Surplus = true
	case c.Count < out.Least:
		out.Note = fmt.Sprintf("the ledger knows %d at least: the counter began later, or was set back", out.Least)
	}
	return out
}

// Uncounted are the keys that the ledger knows to be used on tokens for which counts are
// given, without one of their own.
func (t *Tally) Uncounted(counts []SignatureCount) (out []Comparison) {
	given, tokens := map[use]bool{}, map[string]bool{}
	for _, c := range counts {
		given[use{c.Token, c.Key}], tokens[c.Token] = true, true
	}
	for u := range maps.Keys(t.uses) {
		if tokens[u.token] && !given[u] && t.kinds[u.key] != PurposeSecret {
			out = append(out, Comparison{SignatureCount: SignatureCount{Token: u.token, Key: u.key}, Name: t.names[u.key]})
		}
	}
	slices.SortFunc(out, func(a, b Comparison) int {
		return cmp.Or(cmp.Compare(a.Token, b.Token), slices.Compare(a.Key[:], b.Key[:]))
	})
	return out
}

// CountsReading is what a running server is told of its HSMs' counters.
type CountsReading struct {
	Counts  []SignatureCount
	Witness Witness
}

// surplusWatch compares counts while the server runs. A counter that does not begin with
// its key is compared from the first reading on. A surplus that was found stays: whatever
// the HSM had signed by then, the ledger had by then.
type surplusWatch struct {
	bases map[use]countBase
	worst map[use]Comparison
	at    map[use]time.Time // of the last reading
}

type countBase struct {
	SignatureCount
	earlier earlier
}

func newSurplusWatch() *surplusWatch {
	return &surplusWatch{map[use]countBase{}, map[use]Comparison{}, map[use]time.Time{}}
}

// How many counters and surpluses are kept: who writes the file of counts can invent any number.
const (
	mostCounters = 10_000
	mostSurplus  = 1_000
)

// watchSkew is how far the clocks of HSM and server may be apart in a running server.
const watchSkew = 5 * time.Second

// alarms compares what was not compared before, and gives all that was found.
func (w *surplusWatch) alarms(t *Tally, r CountsReading) []Alarm {
	given := map[use]bool{}
	for _, c := range r.Counts {
		u := use{c.Token, c.Key}
		if _, known := t.kinds[c.Key]; !known {
			continue // no artefact of this CA comes from it
		}
		given[u] = true
		if w.at[u].Equal(c.To) {
			continue
		}
		w.at[u] = c.To
		span, e := c, earlier{}
		if base, ok := w.bases[u]; !c.From.IsZero() && ok && base.Count <= c.Count && base.From.Equal(c.From) {
			span.Count, span.From, e = c.Count-base.Count, base.To, base.earlier
		} else if !c.From.IsZero() { // a counter that is new here
			delete(w.bases, u)
			if c.To.Add(-watchSkew).Before(t.trimmed()) {
				continue // too old to tell what the ledger had by then: the next reading is the first
			}
			from := c
			from.From = c.To
			w.bases[u] = countBase{c, t.before(from, watchSkew)}
			delete(w.worst, u)
			continue
		}
		found := t.compare(span, e, r.Witness, watchSkew)
		if was, ok := w.worst[u]; found.Surplus && (!ok || found.Count-found.Most > was.Count-was.Most) {
			if ok || len(w.worst) < mostSurplus {
				w.worst[u] = found
			}
		}
	}
	for u := range w.at { // of very many, those that are counted no more need no memory
		if len(w.at) > mostCounters && !given[u] {
			delete(w.at, u)
			delete(w.bases, u)
		}
	}
	return w.found()
}

func (w *surplusWatch) found() (out []Alarm) {
	for _, c := range w.worst {
		out = append(out, Alarm{Promise: "surplus", Index: NoIndex, What: c.String()})
	}
	slices.SortFunc(out, func(a, b Alarm) int { return cmp.Compare(a.What, b.What) })
	return out
}
