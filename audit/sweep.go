package audit

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// The sweeper does in small steps, beside the running server, what [Verify] does at
// once. Two passes go through the entries: the front has read all and follows the head,
// so that a new entry is checked within one look; the round reads all once more from 0,
// slowly, so that old entries that somebody changed are found within a day. A round that
// has reached the head also holds the rows of the database against the entries, and
// another begins.

// SweepSource is what the sweeper reads.
type SweepSource interface {
	VerifySource
	// Snapshot runs fn on one moment of the database.
	Snapshot(ctx context.Context, fn func(SweepSource) error) error
	// CheckpointsBetween is Checkpoints for sizes from..to.
	CheckpointsBetween(ctx context.Context, from, to uint64, fn func(size uint64, body, note string) error) error
	// Unreserved calls fn for each certificate with its done leaf in from..to-1 whose
	// serial is not reserved for its intent: it could be given again.
	Unreserved(ctx context.Context, from, to uint64, fn func(done uint64, serial []byte) error) error
	// LastCheckpoint is that of [Storage].
	LastCheckpoint(ctx context.Context) (note string, err error)
}

// CRLs makes good what the sweeper finds wrong with the CRLs. Package ca implements it.
type CRLs interface {
	// FreshCRLs issues a CRL for each issuer whose newest one lacks a revocation or is old.
	FreshCRLs(ctx context.Context) error
	// Halt ends (or, with "", allows again) the signing of certificates by the issuer
	// whose key has that SHA-256.
	Halt(issuer [32]byte, why string)
}

// SweepOptions of a [Sweeper].
type SweepOptions struct {
	Every time.Duration // between two looks; 0: 10 s
	Chunk uint64        // entries of one step; 0: 1,024
	Round time.Duration // within which all entries are read again, at the latest; 0: 24 h
	CRLs  CRLs
	// Counts gives what the HSMs say that they have signed; nil: nobody says it. lost are
	// the intents that a crash left open.
	Counts func(lost map[uint64]bool) (CountsReading, error)
	Log    *slog.Logger
}

// Alarm is a broken promise that stands.
type Alarm struct {
	Promise string // P1 … P9, "surplus", "sweep"
	Index   uint64 // NoIndex if it is not about one entry
	What    string
	Since   time.Time
	Closed  bool // the ledger is closed because of it
}

func (a Alarm) String() string {
	s := a.Promise + ": "
	if a.Index != NoIndex {
		s += fmt.Sprintf("entry %d: ", a.Index)
	}
	return s + a.What
}

// Sweep is how far the sweeper is.
type Sweep struct {
	Alarms []Alarm   // that stand, eldest first
	Swept  uint64    // entries below this one are checked
	At     time.Time // when the head was reached last; zero: not yet since the start
	Reread uint64    // the round has read so many again
	Whole  time.Time // when the last round ended; zero: none since the start
}

// Sweeper checks the promises again and again while the server runs.
type Sweeper struct {
	ledger *Ledger
	src    SweepSource
	opt    SweepOptions
	log    *slog.Logger

	front, round *verifier // only Run
	reached      bool      // the front has been at the head
	tally        *Tally    // of the front
	seen         map[[32]byte]crlSeen
	old          map[uint64]time.Time // open intents that are too old, since when they are noticed
	failed       time.Time            // the database could not be read since
	unlisted     map[string]time.Time // what a CRL lacks, since when it is noticed
	surplus      *surplusWatch
	kept         []*keptFile
	unread       string // why the counts could not be read last
	began        time.Time

	mu    sync.Mutex
	state Sweep
	alive time.Time // when the last step began; zero: before Run
}

// crlSeen is what was looked at last, so that a CRL is read once.
type crlSeen struct {
	hash           [32]byte
	covers, newest uint64
	next           time.Time
}

// NewSweeper makes the sweeper of l.
func NewSweeper(l *Ledger, src SweepSource, opt SweepOptions) *Sweeper {
	if opt.Every == 0 {
		opt.Every = 10 * time.Second
	}
	if opt.Chunk == 0 {
		opt.Chunk = 1024
	}
	if opt.Round == 0 {
		opt.Round = 24 * time.Hour
	}
	if opt.Log == nil {
		opt.Log = l.opt.Log
	}
	s := &Sweeper{ledger: l, src: src, opt: opt, log: opt.Log, seen: map[[32]byte]crlSeen{}, old: map[uint64]time.Time{}, began: l.opt.Now()}
	if j := l.opt.Journal; j != nil {
		s.kept = append(s.kept, &keptFile{name: "the intent journal", path: j.path})
	}
	if l.opt.Anchor != "" {
		s.kept = append(s.kept, &keptFile{name: "the anchor of checkpoints", path: l.opt.Anchor})
	}
	return s
}

// State is how far the sweeper is and what stands.
func (s *Sweeper) State() Sweep {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.state
	out.Alarms = slices.Clone(out.Alarms)
	if err := s.ledger.Broken(); err != nil && !slices.ContainsFunc(out.Alarms, func(a Alarm) bool { return a.Closed }) {
		out.Alarms = append(out.Alarms, Alarm{Promise: "P1", Index: NoIndex, What: err.Error(), Closed: true})
	}
	if !s.alive.IsZero() && time.Since(s.alive) > stuckFor { // a database, or a disk, that neither answers nor fails
		out.Alarms = append(out.Alarms, Alarm{Promise: "sweep", Index: NoIndex, What: "the promises have not been checked since " + s.alive.UTC().Format(time.RFC3339) + ": the sweeper waits for an answer", Since: s.alive})
	}
	return out
}

func (s *Sweeper) lives() {
	s.mu.Lock()
	s.alive = time.Now()
	s.mu.Unlock()
}

// firstShare is the share of its time that the sweeper works until it has read all
// entries once: a quarter.
const firstShare = 4

// Run looks until ctx is done.
func (s *Sweeper) Run(ctx context.Context) error {
	var look, step time.Time // when the next is due
	for {
		s.lives()
		now := time.Now()
		pause := time.Duration(0)
		switch {
		case !s.reached: // a share of the time until all entries are read once
			before := s.state.Swept
			s.follow(ctx)
			if pause = (firstShare - 1) * time.Since(now); s.state.Swept == before {
				pause = s.opt.Every
			}
		case !now.Before(look):
			s.look(ctx)
			look = now.Add(s.opt.Every)
		case !now.Before(step):
			s.again(ctx)
			step = now.Add(s.pace())
		default:
			pause = min(time.Until(look), time.Until(step))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// pace is the time between two steps of the round.
func (s *Sweeper) pace() time.Duration {
	steps := s.ledger.Head().Size/s.opt.Chunk + 1
	return min(s.opt.Every, s.opt.Round/time.Duration(steps))
}

// newPass begins with entry 0. Serials are not kept in memory: the source finds those
// that are not reserved.
func newPass() *verifier {
	v := &verifier{open: map[uint64]openIntent{}, rows: newRows()}
	v.rows.serials = nil
	return v
}

// feed checks the next entries, limit at most, against one moment of the database and
// tells whether the pass has reached its head.
func (v *verifier) feed(ctx context.Context, src SweepSource, limit uint64) (atHead bool, err error) {
	head, err := src.Head(ctx)
	if err != nil {
		return false, err
	}
	v.src, v.head = src, head
	from := v.edge.size()
	to := min(from+limit, head.Size)
	if head.Size < from || head.Size == 0 {
		return false, violate(head.Size, "the ledger ends at %d, %d entries were there: entries were cut off", head.Size, max(from, 1))
	}
	if from == 0 {
		if err := v.genesis(ctx); err != nil {
			return false, err
		}
	}
	if err := v.rows.want(ctx, src); err != nil {
		return false, err
	}
	v.marks = v.marks[:0]
	if err := v.signedSince(ctx, src); err != nil {
		return false, err
	}
	err = src.CheckpointsBetween(ctx, from+1, to, func(size uint64, body, note string) error {
		if note == "" && head.Size-size < signedLate {
			v.unsigned = append(v.unsigned, unsignedRow{size, body})
		}
		return v.storedCheckpoint(size, body, note)
	})
	if err != nil {
		return false, err
	}
	slices.SortStableFunc(v.marks, func(a, b mark) int { return cmp.Compare(a.Size, b.Size) })
	err = src.Unreserved(ctx, from, to, func(done uint64, serial []byte) error {
		return breaks("P4", violate(done, "serial %x is not reserved for the certificate that has it: it could be given again", serial))
	})
	if err != nil {
		return false, err
	}
	if err := v.page(ctx, from, to); err != nil {
		return false, err
	}
	if err := v.signers.judge(); err != nil { // all is read that can say something of these notes
		return false, breaks("P9", err)
	}
	if to < head.Size {
		return false, nil
	}
	if signed, err := signedSize(ctx, src); err != nil || signed > head.Size {
		if err != nil {
			return false, err
		}
		return false, violate(head.Size, "there is a checkpoint of %d entries, but the ledger ends at %d: entries were cut off", signed, head.Size)
	}
	return true, v.atHead()
}

// unsignedRow is a checkpoint that was not signed yet when it was read.
type unsignedRow struct {
	size uint64
	body string
}

// signedLate is how far behind the head a checkpoint may be that is still being signed.
const signedLate = 4096

// signedSince takes the notes of checkpoints that have been signed since a step read their
// rows: one of them may be the first that covers the birth of a key.
func (v *verifier) signedSince(ctx context.Context, src SweepSource) error {
	all := v.unsigned
	wait := all
	if len(wait) == 0 {
		return nil
	}
	v.unsigned = nil
	err := src.CheckpointsBetween(ctx, wait[0].size, wait[len(wait)-1].size, func(size uint64, body, note string) error {
		for len(wait) > 0 && wait[0].size < size {
			wait = wait[1:]
		}
		if len(wait) == 0 || wait[0].size != size {
			return nil
		}
		was := wait[0]
		if note == "" {
			if v.head.Size-size < signedLate {
				v.unsigned = append(v.unsigned, was)
			}
			return nil
		}
		if body != was.body || !strings.HasPrefix(note, body) { // the tree was held against that body
			return violate(size, "the row of its checkpoint holds another one")
		}
		if _, err := v.signers.add(note); err != nil {
			return violate(size, "its checkpoint is not signed by the ledger's key: %v", err)
		}
		return nil
	})
	if err != nil {
		v.unsigned = all
	}
	return err
}

// signedSize is the size of the newest signed checkpoint, 0 if there is none.
func signedSize(ctx context.Context, src SweepSource) (uint64, error) {
	signed, err := src.LastCheckpoint(ctx)
	if errors.Is(err, ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	_, after, _ := strings.Cut(signed, "\n")
	line, _, _ := strings.Cut(after, "\n")
	return strconv.ParseUint(line, 10, 63)
}

// step lets a pass check the next entries, and does atHead at the head. A pass that was
// interrupted in the middle of either begins anew.
func (s *Sweeper) step(ctx context.Context, pass **verifier, limit uint64, atHead func(SweepSource) error) (reached bool) {
	v := *pass
	before := v.edge.size()
	err := s.src.Snapshot(ctx, func(src SweepSource) (err error) {
		if reached, err = v.feed(ctx, src, limit); err == nil && reached && atHead != nil {
			err = atHead(src)
		}
		return err
	})
	var bad *Violation
	switch {
	case errors.As(err, &bad):
		s.violated(bad)
		return false
	case err != nil:
		if v.edge.size() != before || reached {
			*pass = nil
		}
		if ctx.Err() == nil {
			s.unreadable(err)
		}
		return false
	}
	s.failed = time.Time{}
	s.clear("sweep")
	return reached
}

// closedAlready tells whether there is nothing left to find out about the entries.
func (s *Sweeper) closedAlready() bool { return s.ledger.Broken() != nil }

// follow lets the front go on to the head, or by one step if it has not been there yet.
func (s *Sweeper) follow(ctx context.Context) (reached bool) {
	for {
		if s.closedAlready() || ctx.Err() != nil {
			return false
		}
		s.lives()
		if s.front == nil {
			s.front, s.tally = newPass(), NewTally()
			s.front.tally = s.tally
			s.tally.keep = tallyKeep
			if s.surplus == nil { // what was found stays, though the front begins anew
				s.surplus = newSurplusWatch()
			}
			s.reached = false
		}
		before := s.front.edge.size()
		reached = s.step(ctx, &s.front, s.opt.Chunk, nil)
		if s.front == nil {
			return false
		}
		s.mu.Lock()
		s.state.Swept = s.front.edge.size()
		if reached {
			s.state.At = time.Now()
		}
		s.mu.Unlock()
		s.reached = s.reached || reached
		if reached || !s.reached || s.front.edge.size() == before {
			return reached
		}
	}
}

// again lets the round go on by one step.
func (s *Sweeper) again(ctx context.Context) {
	if s.closedAlready() {
		return
	}
	if s.round == nil {
		s.round = newPass()
		s.round.rows.crls = nil
	}
	ended := s.step(ctx, &s.round, s.opt.Chunk, func(src SweepSource) error {
		n, err := src.Beyond(ctx, s.round.head.Size)
		if err == nil && n > 0 {
			err = violate(s.round.head.Size, "%d entries or tiles lie behind the head", n)
		}
		if err != nil {
			return err
		}
		at, err := src.Recoveries(ctx)
		if err != nil {
			return err
		}
		if s.round.recovered, err = readRecovered(ctx, src, at); errors.Is(err, ErrTampered) {
			return violate(0, "%v", err)
		} else if err != nil {
			return err
		}
		return s.round.settle(ctx)
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.Reread = 0
	if s.round != nil {
		s.state.Reread = s.round.edge.size()
	}
	if ended {
		s.round, s.state.Whole = nil, time.Now()
	}
}

// look checks what is new, and what does not stand in entries.
func (s *Sweeper) look(ctx context.Context) {
	var counts CountsReading
	var countsErr error
	if s.opt.Counts != nil && s.tally != nil { // before the entries: what is counted has its intent by then
		counts, countsErr = s.opt.Counts(s.tally.Lost())
	}
	reached := s.follow(ctx)
	if s.closedAlready() || !reached {
		return
	}
	s.openIntents()
	renew := false
	err := s.src.Snapshot(ctx, func(src SweepSource) (err error) {
		if err = s.front.rows.approvals.held(ctx, src); err != nil {
			return err
		}
		if err = s.witnesses(ctx, src); err == nil {
			renew, err = s.revocations(ctx, src)
		}
		return err
	})
	var bad *Violation
	if errors.As(err, &bad) {
		s.violated(bad)
		return
	}
	if err != nil && ctx.Err() == nil {
		s.unreadable(err)
	}
	if renew && s.opt.CRLs != nil {
		if err := s.opt.CRLs.FreshCRLs(ctx); err != nil && ctx.Err() == nil {
			s.log.Error("a CRL that the sweeper found wrong could not be issued anew", "err", err)
		}
	}
	s.counts(counts, countsErr)
}

// What is tolerated before it is an alarm.
const (
	openFor    = 2 * time.Minute  // an intent of this node; the HSM store closes what is left open within 40 s
	openOther  = 15 * time.Minute // one of another node; others close what that leaves when it ends
	openMore   = time.Minute      // … and then has had time, after the database was away
	lateFor    = time.Minute      // the newest checkpoint
	revokedFor = 30 * time.Second // a revocation that is on no CRL
	unreadFor  = 5 * time.Minute  // the sweeper cannot read
	stuckFor   = 15 * time.Minute // a step of the sweeper
	countedFor = 135 * time.Minute
)

// openIntents: what this node began, it closes; what others began, they or we do (P1).
func (s *Sweeper) openIntents() {
	now := s.ledger.opt.Now()
	for i := range s.old {
		if _, open := s.front.open[i]; !open {
			delete(s.old, i)
		}
	}
	var bad []Alarm
	for i, in := range s.front.open {
		node, _ := in.leaf.Get(TagNode)
		patience := openFor
		if string(node) != Text(s.ledger.Node(), 1024) {
			patience = openOther
		}
		if now.Sub(in.leaf.Time) < patience {
			continue
		}
		if _, noticed := s.old[i]; !noticed {
			s.old[i] = now
		}
		if now.Sub(s.old[i]) >= openMore {
			bad = append(bad, Alarm{Promise: "P1", Index: i, What: "the intent is open and nothing closes it"})
		}
	}
	if last := s.front.counts; now.Sub(last) > countedFor && now.Sub(s.began) > countedFor {
		bad = append(bad, Alarm{Promise: "P1", Index: NoIndex, What: "no entry counts the checkpoints and probes since " + last.UTC().Format(time.RFC3339)})
	}
	slices.SortFunc(bad, func(a, b Alarm) int { return strings.Compare(a.String(), b.String()) })
	s.standing("P1", bad)
}

// keptFile is a file that only grows.
type keptFile struct {
	name, path string
	seen       os.FileInfo
	size       [2]int64 // at the last two looks: what a full disk cut off again was there at one of them at most
	gone       bool
}

// look tells whether the file is what it was. What is gone once stays so until a restart.
func (k *keptFile) look() (intact bool) {
	now, err := os.Stat(k.path)
	if err != nil && k.seen == nil {
		return true // not there yet
	}
	k.gone = k.gone || err != nil || k.seen != nil && !os.SameFile(now, k.seen) || now.Size() < min(k.size[0], k.size[1])
	if err == nil {
		k.seen, k.size = now, [2]int64{k.size[1], now.Size()}
	}
	return !k.gone
}

// witnesses: a signed checkpoint covers what is on the ledger, and the files outside the
// database are there (P9).
func (s *Sweeper) witnesses(ctx context.Context, src SweepSource) error {
	covered, err := signedSize(ctx, src)
	if err != nil {
		return err
	}
	var bad []Alarm
	for _, k := range s.kept {
		if !k.look() {
			bad = append(bad, Alarm{Promise: "P9", Index: NoIndex, What: k.name + " was removed, replaced or cut under the server"})
		}
	}
	if covered < s.front.edge.size() {
		err := src.Leaves(ctx, covered, covered+1, func(i uint64, b []byte) error {
			l, err := DecodeLeaf(b)
			if age := s.ledger.opt.Now().Sub(l.Time); err == nil && age > lateFor {
				bad = append(bad, Alarm{Promise: "P9", Index: i, What: "no signed checkpoint covers it and what follows, since " + l.Time.UTC().Format(time.RFC3339)})
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	s.standing("P9", bad)
	return nil
}

// revocations: each CRL that is served is in time and lists what it must (P4). One that
// does not is issued anew (see look); until then its issuer signs no certificates.
func (s *Sweeper) revocations(ctx context.Context, src SweepSource) (renew bool, err error) {
	var due []IssuerRow
	now, newest := s.ledger.opt.Now(), s.front.rows.newest
	err = src.IssuerRows(ctx, func(i IssuerRow) error {
		was := s.seen[i.SPKI]
		_, recorded := s.front.rows.crls[i.SPKI]
		if (i.CRL != nil || recorded) && (was.newest != newest || was.covers != i.CRLCovers || now.After(was.next) || was.hash != sha256.Sum256(i.CRL)) {
			due = append(due, i)
		}
		return nil
	})
	if err != nil || len(due) == 0 {
		return false, err
	}
	byIssuer := map[[32]byte][]RevocationRow{}
	err = src.RevocationRows(ctx, func(r RevocationRow) error {
		byIssuer[r.Issuer] = append(byIssuer[r.Issuer], r)
		return nil
	})
	if err != nil {
		return false, err
	}
	var bad []Alarm
	noticed := map[string]time.Time{}
	for _, i := range due {
		next, what, soon := crlLacks(i, s.front.rows.crls[i.SPKI], byIssuer[i.SPKI], now)
		if soon != "" { // the authority is about to make the next one
			if noticed[soon] = now; !s.unlisted[soon].IsZero() {
				noticed[soon] = s.unlisted[soon]
			}
			if now.Sub(noticed[soon]) >= revokedFor {
				what = soon
			}
		}
		if what != "" {
			bad = append(bad, Alarm{Promise: "P4", Index: NoIndex, What: what})
		} else if soon == "" {
			s.seen[i.SPKI] = crlSeen{sha256.Sum256(i.CRL), i.CRLCovers, newest, next}
		}
		if s.opt.CRLs != nil {
			s.opt.CRLs.Halt(i.SPKI, what)
		}
	}
	s.unlisted = noticed
	s.standing("P4", bad)
	return len(bad) > 0, nil
}

// crlLacks says what is wrong with a served CRL, or "": at once, or if it stays so.
func crlLacks(i IssuerRow, recorded recordedCRL, revocations []RevocationRow, now time.Time) (next time.Time, wrong, soon string) {
	l, err := x509.ParseRevocationList(i.CRL)
	switch {
	case err != nil:
		return next, fmt.Sprintf("the CRL of issuer %q is gone or cannot be read", i.Name), ""
	case l.Number == nil || !l.Number.IsUint64() || l.Number.Uint64() < recorded.number, l.Number.Uint64() == recorded.number && (sha256.Sum256(i.CRL) != recorded.hash || i.CRLCovers != recorded.covers):
		return next, fmt.Sprintf("the CRL of issuer %q is not number %d as it was recorded", i.Name, recorded.number), ""
	}
	if err := holdsAll(i, recordedCRL{covers: i.CRLCovers}, revocations); err != nil {
		return l.NextUpdate, err.What, ""
	}
	if now.After(l.NextUpdate) {
		return l.NextUpdate, "", fmt.Sprintf("the CRL of issuer %q ended at %s", i.Name, l.NextUpdate.UTC().Format(time.RFC3339))
	}
	listed := make(map[string]bool, len(l.RevokedCertificateEntries))
	for _, e := range l.RevokedCertificateEntries {
		listed[string(e.SerialNumber.Bytes())] = true
	}
	for _, r := range revocations {
		if r.Leaf >= i.CRLCovers && !r.Expires.Before(l.ThisUpdate) && !listed[string(r.Serial)] {
			return l.NextUpdate, "", fmt.Sprintf("serial %x was revoked at %s and is not on the CRL of issuer %q", r.Serial, r.At.UTC().Format(time.RFC3339), i.Name)
		}
	}
	if l.Number.Uint64() > recorded.number { // its entry comes with it: the front will have read it by the next look
		return l.NextUpdate, "", fmt.Sprintf("the CRL of issuer %q is number %d, which no entry records", i.Name, l.Number.Uint64())
	}
	return l.NextUpdate, "", ""
}

// counts holds what the HSMs say that they have signed against the ledger.
func (s *Sweeper) counts(r CountsReading, err error) {
	if err != nil { // what was found before stands
		if s.unread != err.Error() { // paths are for the log alone: alarms are public
			s.log.Error("the HSMs' counts cannot be read", "err", err)
		}
		s.unread = err.Error()
		s.standing("surplus", append(s.surplus.found(), Alarm{Promise: "surplus", Index: NoIndex, What: "the HSMs' counts cannot be read; the log says why"}))
		return
	}
	s.unread = ""
	s.standing("surplus", s.surplus.alarms(s.tally, r))
}

// violated closes the ledger: nothing is signed on top of entries that are not what they were.
func (s *Sweeper) violated(v *Violation) {
	a := Alarm{Promise: v.Promise, Index: v.Index, What: v.What, Closed: true}
	if a.Promise == "" {
		a.Promise = "P9"
	}
	s.raise(a)
	s.ledger.halt(fmt.Errorf("%w: %s", ErrTampered, a))
}

// unreadable: a sweeper that sees nothing for long is an alarm, too.
func (s *Sweeper) unreadable(err error) {
	now := time.Now()
	if s.failed.IsZero() {
		s.failed = now
	}
	if now.Sub(s.failed) < unreadFor {
		s.log.Warn("the sweeper could not read the ledger; it tries again", "err", err)
		return
	}
	s.standing("sweep", []Alarm{{Promise: "sweep", Index: NoIndex, What: "the promises have not been checked since " + s.failed.UTC().Format(time.RFC3339) + ": the ledger cannot be read"}})
}

// standing replaces the alarms of a promise that did not close the ledger by those that
// are found now.
func (s *Sweeper) standing(promise string, now []Alarm) {
	keep := map[string]bool{}
	for _, a := range now {
		keep[a.String()] = true
		s.raise(a)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.Alarms = slices.DeleteFunc(s.state.Alarms, func(a Alarm) bool {
		over := a.Promise == promise && !a.Closed && !keep[a.String()]
		if over {
			s.log.Info("an alarm is over, or says something else now", "promise", a.Promise, "what", a.String())
		}
		return over
	})
}

func (s *Sweeper) clear(promise string) { s.standing(promise, nil) }

// raise adds an alarm and logs it once.
func (s *Sweeper) raise(a Alarm) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.ContainsFunc(s.state.Alarms, func(b Alarm) bool { return a.String() == b.String() }) {
		return
	}
	a.Since = time.Now()
	s.state.Alarms = append(s.state.Alarms, a)
	s.log.Error("ALARM: "+a.String(), "promise", a.Promise, "closed", a.Closed)
}
