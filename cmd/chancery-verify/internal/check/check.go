// Package check holds an export of a ledger to what the ledger promises: order, hashes,
// tree and checkpoints (P9), every intent closed once (P1), certificates and done entries
// one to one and byte for byte (P2, P3), serials and CRLs (P4), officers' signatures
// under every sensitive act (P7), and one purpose for each key (P8).
//
// It goes through the entries once, in order, and keeps of each certificate 32 octets.
package check

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"chancery/cmd/chancery-verify/internal/folder"
	"chancery/cmd/chancery-verify/internal/leaf"
)

// Violation is a promise that the export breaks.
type Violation struct {
	Index uint64 `json:"index"` // the first bad entry
	What  string `json:"what"`
	File  string `json:"file,omitempty"` // of a file that no entry records; Index is the ledger's size then
}

func (v *Violation) Error() string {
	if v.File != "" {
		return v.File + ": " + v.What
	}
	return fmt.Sprintf("entry %d: %s", v.Index, v.What)
}

func bad(index uint64, format string, args ...any) error {
	return &Violation{Index: index, What: fmt.Sprintf(format, args...)}
}

// File is a certificate, CRL or signature that must be on the ledger.
type File struct {
	Name  string    `json:"file"`
	Hash  leaf.Hash `json:"sha256"` // of its DER
	Index uint64    `json:"index"`  // of its done entry
	found bool
}

// Trusted is a checkpoint that the auditor has kept.
type Trusted struct{ Name, Note string }

// Options of a verification.
type Options struct {
	Ledger     string    // its id in hex that is expected, or ""
	Trusted    []Trusted // each must be a prefix of this ledger
	Files      []File
	State      *State // of an earlier verification, or nil
	Signatures bool   // verify that of each certificate too, which takes ten times as long
}

// Report is what a verification has seen.
type Report struct {
	Origin       string     `json:"origin"`
	Ledger       string     `json:"ledger"`
	Size         uint64     `json:"size"`
	Root         leaf.Hash  `json:"root"`
	From         uint64     `json:"from"` // entries below were verified before
	Checkpoints  uint64     `json:"checkpoints"`
	Intents      uint64     `json:"intents"`
	Done         uint64     `json:"done"`
	Failed       uint64     `json:"failed"`
	Orphans      uint64     `json:"orphans"`
	Open         int        `json:"open"`
	Certificates uint64     `json:"certificates"`
	Revocations  int        `json:"revocations"`
	CRLs         int        `json:"crls"`
	Grants       uint64     `json:"grants"`
	Evidence     uint64     `json:"evidence"` // intents whose evidence is in the export
	Openings     uint64     `json:"openings"` // commitments that the export opens
	Backward     uint64     `json:"backward"` // entries more than 2 s before their predecessor
	Last         time.Time  `json:"last"`
	Succeeds     string     `json:"succeeds,omitempty"`
	Recoveries   []Recovery `json:"recoveries,omitempty"`
	Files        []File     `json:"files,omitempty"`
	Notes        []string   `json:"notes,omitempty"` // what could not be checked
}

// closeWithin is how old an open intent may be, against the newest entry.
const closeWithin = time.Minute

// backward is how far the clock may go back without a word.
const backward = 2 * time.Second

type verifier struct {
	f       *folder.Folder
	opt     Options
	about   folder.About
	notary  notary
	newest  checkpoint
	marks   []checkpoint // to be reached, the smallest first
	notes   []checkpoint // signed ones, to be judged when all keys are known
	proved  uint64       // size at which tree and a checkpoint last agreed
	s       *State
	report  Report
	issuers map[leaf.Hash]issuer // by SPKI
	byHash  map[leaf.Hash]*issuer
	files   map[leaf.Hash][]*File
	certs   *folder.Records
	cert    struct { // the next of certs
		index uint64
		der   []byte
		any   bool
	}
	rosters      rosters
	before       leaf.Hash    // root of the entries before the one at hand; of a recovery
	beyond       []checkpoint // larger than the ledger: only a recovery explains them
	genesisGrant leaf.Hash

	evidence, openings beside
	entitled           int               // names that the evidence of the present entry entitles to
	erased             map[erased]uint64 // by which entry; only if the export opens anything
}

// Run verifies the export in f. A broken promise is a [*Violation]; any other error says
// that the export cannot be read. State returns what the next verification goes on from.
func Run(f *folder.Folder, opt Options) (Report, *State, error) {
	v := &verifier{f: f, opt: opt, files: map[leaf.Hash][]*File{}, erased: map[erased]uint64{}}
	for i := range opt.Files {
		file := &v.opt.Files[i]
		v.files[file.Hash] = append(v.files[file.Hash], file)
	}
	err := v.run()
	v.report.Files = v.opt.Files
	return v.report, v.s, err
}

func (v *verifier) run() (err error) {
	if v.about, err = v.f.About(); err != nil {
		return err
	}
	if err := v.begin(); err != nil {
		return err
	}
	if err := v.witnesses(); err != nil {
		return err
	}
	if err := v.readIssuers(); err != nil {
		return err
	}
	v.s.wanted = map[leaf.Hash]bool{}
	for hash := range v.byHash {
		v.s.wanted[hash] = true
	}
	if v.certs, err = v.f.Certificates(); err != nil {
		return err
	}
	defer v.certs.Close()
	if err := v.nextCertificate(0); err != nil {
		return err
	}
	defer v.evidence.close()
	defer v.openings.close()
	if err := v.openBeside(); err != nil {
		return err
	}
	for n := v.s.Edge.Size / folder.Width; n*folder.Width < v.newest.size; n++ {
		if err := v.bundle(n, min(folder.Width, v.newest.size-n*folder.Width)); err != nil {
			return err
		}
	}
	return v.finish()
}

// begin reads leaf 0, the checkpoint, the roster, and where an earlier run had come to.
func (v *verifier) begin() error {
	text, err := v.f.Checkpoint()
	if err != nil {
		return err
	}
	claims := sizeOf(text)
	if claims == 0 {
		return errors.New("checkpoint: it is none of a ledger with entries")
	}
	first, err := v.f.Bundle(0, min(claims, folder.Width))
	if errors.Is(err, folder.ErrMissing) {
		return bad(0, "it is missing")
	} else if err != nil {
		return err
	}
	zero, _, ok := folder.Next(first)
	if !ok {
		return bad(0, "it is missing or cut short")
	}
	g, origin, keys, err := leaf.GenesisOf(zero)
	if err != nil {
		return bad(0, "%v", err)
	}
	v.report.Origin, v.report.Ledger = origin, g.Ledger.String()
	if v.opt.Ledger != "" && v.opt.Ledger != g.Ledger.String() {
		return bad(0, "it begins ledger %s, another than expected", g.Ledger)
	}
	v.genesisGrant = genesisGrant(&g)
	if v.notary, err = newNotary(origin, keys); err != nil {
		return bad(0, "%v", err)
	}
	if v.newest, err = v.notary.open(text, "the checkpoint"); err != nil {
		return bad(claims, "its checkpoint is not signed by the ledger's key: %v", err)
	}
	v.notes = append(v.notes, v.newest)
	if v.rosters, err = readRosters(v.f, g); err != nil {
		return err
	}
	whole, err := v.whole()
	if err != nil {
		return err
	}
	v.s = v.opt.State
	switch {
	case v.s == nil:
		v.s = newState(origin, g.Ledger)
	case v.s.Origin != origin || v.s.Ledger != g.Ledger:
		return bad(0, "it begins ledger %s, the state is of %s", g.Ledger, v.s.Ledger)
	case v.s.Edge.Size > v.newest.size:
		return bad(v.newest.size, "%d entries were verified before, now the ledger ends here: entries were cut off", v.s.Edge.Size)
	case whole: // what was verified before must be a prefix all the same
		if v.s.Edge.Size > 0 {
			v.marks = append(v.marks, checkpoint{origin: origin, size: v.s.Edge.Size, root: v.s.Edge.root(), from: "the earlier run", kept: true})
		}
		v.s = newState(origin, g.Ledger)
	}
	for _, k := range keys {
		if !slices.ContainsFunc(v.s.Signers, func(s signer) bool { return bytes.Equal(s.SPKI, k) }) {
			v.s.Signers = append(v.s.Signers, signer{SPKI: k})
		}
	}
	v.report.From, v.proved = v.s.Edge.Size, v.s.Edge.Size
	return nil
}

// whole tells whether all is to be read, whatever an earlier run has: files may be recorded
// anywhere, and openings anywhere may have been erased anywhere.
func (v *verifier) whole() (bool, error) {
	r, err := v.f.Openings()
	if errors.Is(err, folder.ErrMissing) {
		return len(v.files) > 0, nil
	}
	if err != nil {
		return true, err
	}
	return true, r.Close()
}

// witnesses are the checkpoints that must be prefixes: the older ones of the export and
// those that the auditor trusts.
func (v *verifier) witnesses() error {
	for _, t := range v.opt.Trusted {
		if origin, _, _ := strings.Cut(t.Note, "\n"); origin != v.notary.origin {
			return bad(0, "it begins ledger %s, but %s is a checkpoint of %.100q", v.notary.origin, t.Name, origin)
		}
		if err := v.mark(t.Note, t.Name); err != nil {
			return err
		}
	}
	var older []string // those below an earlier run were held against the tree by it
	err := v.f.Notes(func(text string) error {
		if sizeOf(text) > v.s.Edge.Size {
			older = append(older, text)
		}
		return nil
	})
	if err != nil {
		return err
	}
	opened := v.notary.openAll(older, "an older checkpoint")
	for i, text := range older {
		if err := v.marked(text, opened[i].checkpoint, opened[i].err); err != nil {
			return err
		}
	}
	slices.SortStableFunc(v.marks, func(a, b checkpoint) int { return cmp.Compare(a.size, b.size) })
	v.marks = append(v.marks, v.newest)
	for len(v.marks) > 0 && v.marks[0].size <= v.s.Edge.Size {
		if err := v.markBehind(v.marks[0]); err != nil {
			return err
		}
		v.marks = v.marks[1:]
	}
	return nil
}

// mark takes a checkpoint that the auditor has kept.
func (v *verifier) mark(text, from string) error {
	c, err := v.notary.open(text, from)
	c.kept = true
	return v.marked(text, c, err)
}

// marked takes a checkpoint that was opened, or not.
func (v *verifier) marked(text string, c checkpoint, err error) error {
	if err != nil {
		return bad(min(sizeOf(text), v.newest.size), "%s is not signed by the ledger's key: %v", c.from, err)
	}
	v.report.Checkpoints++
	v.notes = append(v.notes, c)
	if c.size > v.newest.size && !c.kept {
		return bad(v.newest.size, "%s has %d entries, but the ledger ends here: entries were cut off", c.from, c.size)
	}
	if c.size > v.newest.size {
		v.beyond = append(v.beyond, c)
	} else if c.size > 0 {
		v.marks = append(v.marks, c)
	}
	return nil
}

// forget takes a note out that is of entries that a recovery gave up: it says nothing of
// the keys of these.
func (v *verifier) forget(c checkpoint) {
	v.notes = slices.DeleteFunc(v.notes, func(n checkpoint) bool { return n.kept && n.size == c.size && n.root == c.root })
}

// markBehind holds a checkpoint below what was verified before against the tree of now.
func (v *verifier) markBehind(c checkpoint) error {
	root, err := rootAt(v.f, c.size, v.newest.size, v.newest.root)
	if err != nil {
		return bad(v.s.Edge.Size, "the hash tiles do not lead from %s of %d entries to the newest: %v", c.from, c.size, err)
	}
	if root == c.root {
		return nil
	}
	if !c.kept || !v.s.gaveUp(c.size) {
		return bad(0, "the first %d entries are not those of %s", c.size, c.from)
	}
	v.forget(c)
	return nil
}

// bundle goes through the n-th bundle, w entries, beside its tile of hashes.
func (v *verifier) bundle(n, w uint64) error {
	first := max(n*folder.Width, v.s.Edge.Size)
	b, err := v.f.Bundle(n, w)
	if errors.Is(err, folder.ErrMissing) {
		return bad(first, "it is missing, with its bundle")
	} else if err != nil {
		return err
	}
	hashes, err := v.f.Tile(0, n, w)
	if err != nil {
		return bad(first, "its hash tile: %v", err)
	}
	for i := range w {
		index := n*folder.Width + i
		entry, rest, ok := folder.Next(b)
		if index < v.s.Edge.Size {
			b = rest
			continue
		}
		if !ok {
			return bad(index, "it is missing or cut short")
		}
		h := leaf.Hash(tlog.RecordHash(entry))
		if h != leaf.Hash(hashes[32*i:32*i+32]) {
			return bad(index, "it does not have the hash that tile 0/%d gives it", n)
		}
		if isRecovery(entry) {
			v.before = v.s.Edge.root()
		}
		for _, t := range v.s.Edge.add(h) {
			if err := v.tile(t.level, t.n, t.hashes); err != nil {
				return err
			}
		}
		if err := v.entry(index, h, entry); err != nil {
			return err
		}
		if err := v.reach(index + 1); err != nil {
			return err
		}
		b = rest
	}
	if len(b) > 0 {
		return bad(n*folder.Width+w, "%d octets stand behind the entry before it, which is the last of its bundle", len(b))
	}
	return nil
}

// reach holds the tree against the checkpoints of a size.
func (v *verifier) reach(size uint64) error {
	for len(v.marks) > 0 && v.marks[0].size == size {
		if m := v.marks[0]; v.s.Edge.root() != m.root {
			if !m.kept || !v.s.gaveUp(size) {
				return bad(v.proved, "the entries from here to %d are not those of %s", size-1, m.from)
			}
			v.forget(m)
		}
		v.marks, v.proved = v.marks[1:], size
	}
	return nil
}

func (v *verifier) tile(level int, n uint64, hashes []leaf.Hash) error {
	stored, err := v.f.Tile(level, n, uint64(len(hashes)))
	if err != nil {
		return bad(v.proved, "the hash tile above it: %v", err)
	}
	for i, h := range hashes {
		if leaf.Hash(stored[32*i:32*i+32]) != h {
			return bad((n*folder.Width+uint64(i))<<(8*level), "the entries from here on do not have the hash that tile %d/%d gives them", level, n)
		}
	}
	return nil
}

// finish checks what only the whole shows.
func (v *verifier) finish() error {
	for level, t := range v.s.Edge.Tiles {
		if len(t) > 0 {
			if err := v.tile(level, v.s.Edge.Size>>(8*(level+1)), t); err != nil {
				return err
			}
		}
	}
	for _, c := range v.beyond {
		if v.s.gaveUp(c.size) {
			v.forget(c)
		}
	}
	if err := v.judgeNotes(); err != nil {
		return err
	}
	if v.cert.any {
		return bad(v.cert.index, "a certificate of the export names it as its done entry, which it is not")
	}
	if _, _, err := v.certs.Next(); err != io.EOF {
		return err
	}
	if err := v.besidesEnd(); err != nil {
		return err
	}
	var first *Violation
	for index, in := range v.s.Open {
		if time.Duration(v.s.Last-in.Time)*time.Microsecond > closeWithin && (first == nil || index < first.Index) {
			first = &Violation{Index: index, What: "the intent was never closed"}
		}
	}
	if first != nil {
		return first
	}
	for _, c := range v.beyond {
		if !v.s.gaveUp(c.size) {
			return bad(v.newest.size, "%s has %d entries, but the ledger ends here: entries were cut off", c.from, c.size)
		}
	}
	if err := v.s.Restore.finish(); err != nil {
		return err
	}
	if err := v.serialsAndCRLs(); err != nil {
		return err
	}
	for i := range v.opt.Files {
		if f := &v.opt.Files[i]; !f.found {
			return &Violation{Index: v.newest.size, File: f.Name, What: "no done entry of this ledger records it"}
		}
	}
	r, s := &v.report, v.s
	r.Size, r.Root, r.Open, r.Last = v.newest.size, v.newest.root, len(s.Open), time.UnixMicro(s.Last).UTC()
	r.Intents, r.Done, r.Failed, r.Orphans, r.Certificates, r.Grants, r.Backward = s.Counts.Intents, s.Counts.Done, s.Counts.Failed, s.Counts.Orphans, s.Counts.Certificates, s.Counts.Grants, s.Counts.Backward
	r.Succeeds, r.Recoveries = s.Restore.Succeeds, s.Recoveries
	if v.about.Size != v.newest.size || v.about.Origin != v.notary.origin || v.about.Ledger != r.Ledger {
		return bad(v.newest.size, "export.json is of %.100q with %d entries, the checkpoint of another export", v.about.Origin, v.about.Size)
	}
	return nil
}
