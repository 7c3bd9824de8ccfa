// Package folder reads an export of a ledger: a folder in the layout of C2SP tlog-tiles
// with what Chancery adds to it under chancery/. Nothing outside the folder is read,
// whatever links it holds, and nothing that it holds is believed here.
package folder

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
)

// Width is the number of entries of a full bundle and of hashes of a full tile.
const Width = 256

const hashSize = 32

// The most that a file may have, in octets.
const (
	maxNote    = 64 << 10
	maxJSON    = 1 << 20
	maxRosters = 64 << 20 // each holds all of its officers
	maxNotes   = 1 << 30
	maxBundle  = Width * (2 + 65535)
	maxRecord  = 256 << 20 // a CRL
)

// ErrMissing: a file is not there.
var ErrMissing = fs.ErrNotExist

// Folder is an export.
type Folder struct{ root *os.Root }

// Open opens the folder of an export.
func Open(path string) (*Folder, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	return &Folder{root}, nil
}

// Close ends the use of the folder.
func (f *Folder) Close() error { return f.root.Close() }

func (f *Folder) open(name string, most int64) (*os.File, error) {
	st, err := f.root.Stat(name)
	switch {
	case err != nil:
		return nil, err
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a plain file", name)
	case most > 0 && st.Size() > most:
		return nil, fmt.Errorf("%s has %d octets, at most %d are allowed", name, st.Size(), most)
	}
	return f.root.Open(name)
}

func (f *Folder) read(name string, most int64) ([]byte, error) {
	r, err := f.open(name, most)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("%s has more than %d octets", name, most)
	}
	return b, err
}

// About is chancery/export.json. Nobody signs it.
type About struct {
	Version  int      `json:"version"`
	Origin   string   `json:"origin"`
	Ledger   string   `json:"ledger"`
	Size     uint64   `json:"size"`
	Complete bool     `json:"complete"` // false while the export is being written
	LeftOut  []string `json:"left_out"`
}

// About reads chancery/export.json.
func (f *Folder) About() (a About, err error) {
	if err = f.json("chancery/export.json", &a); err != nil {
		return a, err
	}
	if a.Version != 1 {
		return a, fmt.Errorf("export.json: version %d is not known, only 1", a.Version)
	}
	if !a.Complete {
		return a, errors.New("the export was not finished: run chancery audit export again on this folder")
	}
	return a, nil
}

// Officer is one of those who decide, or do something else.
type Officer struct {
	Name     string    `json:"name"`
	SPKI     []byte    `json:"spki"` // of the CLI key; nil: none
	Passkeys []Passkey `json:"passkeys"`
	Roles    []Role    `json:"roles"`
}

// Passkey is a WebAuthn credential.
type Passkey struct {
	ID    []byte `json:"id"`
	SPKI  []byte `json:"spki"`
	Label string `json:"label"`
}

// Role is one that an officer has, with its limits.
type Role struct {
	Role    string `json:"role"`
	Issuer  string `json:"issuer"`
	Profile string `json:"profile"`
	Key     string `json:"key"`
}

// Group is some of those who decide.
type Group struct {
	Name    string   `json:"name"`
	Quorum  int      `json:"quorum"`
	Members []string `json:"members"`
}

// Roster is who the officers are, and how many must approve.
type Roster struct {
	Version  uint64    `json:"version"`
	Quorum   int       `json:"quorum"`
	Officers []Officer `json:"officers"`
	Groups   []Group   `json:"groups"`
	CLI      int       `json:"cli_votes"`
	RPID     string    `json:"rp_id"`
	Origins  []string  `json:"origins"`
}

// Warrant is the decision of officers, with their signatures.
type Warrant struct {
	Proposal []byte `json:"proposal"`
	Votes    []struct {
		SPKI      []byte `json:"spki"`
		Signature []byte `json:"signature"`
	} `json:"votes"`
}

// RosterChange is a roster that followed another one.
type RosterChange struct {
	Roster  Roster  `json:"roster"`
	Warrant Warrant `json:"warrant"`
	Leaf    uint64  `json:"leaf"` // the entry; 0: of a ledger before this one
}

// Rosters is chancery/roster.json: the first roster, and those that followed it. The digest
// of one of them stands in leaf 0.
type Rosters struct {
	Roster
	Changes []RosterChange `json:"changes"`
}

// Rosters reads chancery/roster.json.
func (f *Folder) Rosters() (r Rosters, err error) {
	return r, f.jsonUpTo("chancery/roster.json", maxRosters, &r)
}

func (f *Folder) json(name string, into any) error { return f.jsonUpTo(name, maxJSON, into) }

func (f *Folder) jsonUpTo(name string, limit int64, into any) error {
	b, err := f.read(name, limit)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// Checkpoint is the newest signed note.
func (f *Folder) Checkpoint() (string, error) {
	b, err := f.read("checkpoint", maxNote)
	return string(b), err
}

// Notes calls fn for each older signed note.
func (f *Folder) Notes(fn func(note string) error) error {
	r, err := f.open("chancery/checkpoints", maxNotes)
	if err != nil {
		return err
	}
	defer r.Close()
	var note strings.Builder
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		if line := sc.Text(); line != "--" {
			if note.Len() > maxNote {
				return errors.New("chancery/checkpoints: a note is too long")
			}
			note.WriteString(line)
			note.WriteByte('\n')
			continue
		}
		if err := fn(note.String()); err != nil {
			return err
		}
		note.Reset()
	}
	if sc.Err() == nil && note.Len() > 0 {
		return errors.New("chancery/checkpoints is cut short")
	}
	return sc.Err()
}

// path is the C2SP tlog-tiles path of a tile or bundle of width w.
func path(kind string, n, w uint64) string {
	s := fmt.Sprintf("%03d", n%1000)
	for n /= 1000; n > 0; n /= 1000 {
		s = fmt.Sprintf("x%03d/%s", n%1000, s)
	}
	if w < Width {
		s += fmt.Sprintf(".p/%d", w)
	}
	return "tile/" + kind + "/" + s
}

// Bundle is the n-th bundle of entries, w of them.
func (f *Folder) Bundle(n, w uint64) ([]byte, error) { return f.read(path("entries", n, w), maxBundle) }

// Next takes the first entry off a bundle.
func Next(b []byte) (entry, rest []byte, ok bool) {
	if len(b) < 2 || len(b)-2 < int(binary.BigEndian.Uint16(b)) {
		return nil, nil, false
	}
	n := 2 + int(binary.BigEndian.Uint16(b))
	return b[2:n:n], b[n:], true
}

// Tile is the n-th tile of a level, w hashes of 32 octets.
func (f *Folder) Tile(level int, n, w uint64) ([]byte, error) {
	name := path(fmt.Sprint(level), n, w)
	b, err := f.read(name, Width*hashSize)
	if err == nil && uint64(len(b)) != w*hashSize {
		err = fmt.Errorf("%s has %d octets, there must be %d", name, len(b), w*hashSize)
	}
	return b, err
}

// Records reads a file of records: u64 index, if it has one, then u32 length and value.
type Records struct {
	name    string
	indexed bool
	f       *os.File
	r       *bufio.Reader
	left    int64 // octets
	buf     []byte
}

// Certificates are those of chancery/certificates.bin, by the index of their done leaf.
func (f *Folder) Certificates() (*Records, error) {
	return f.records("chancery/certificates.bin", true)
}

// Orphans are, by the index of their intent, the ends of certificates that may exist:
// u64 seconds since 1970 each. Nothing but the word of the exporter stands behind them.
func (f *Folder) Orphans() (*Records, error) { return f.records("chancery/orphans.bin", true) }

// Evidence are the records of what intents rest on, by their index; ErrMissing in older exports.
func (f *Folder) Evidence() (*Records, error) { return f.records("chancery/evidence.bin", true) }

// Openings open commitments of entries, by their index; ErrMissing unless they were asked for.
func (f *Folder) Openings() (*Records, error) { return f.records("chancery/openings.bin", true) }

// CRLs are those of chancery/crls.bin, the newest of each issuer.
func (f *Folder) CRLs() (*Records, error) { return f.records("chancery/crls.bin", false) }

// Issuers are the certificates of chancery/issuers.bin.
func (f *Folder) Issuers() (*Records, error) { return f.records("chancery/issuers.bin", false) }

func (f *Folder) records(name string, indexed bool) (*Records, error) {
	r, err := f.open(name, 0)
	if err != nil {
		return nil, err
	}
	st, err := r.Stat()
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return &Records{name: name, indexed: indexed, f: r, r: bufio.NewReaderSize(r, 1<<18), left: st.Size()}, nil
}

// Next is the next record, io.EOF behind the last. The value lasts until the next call.
func (r *Records) Next() (index uint64, value []byte, err error) {
	if r.left == 0 {
		return 0, nil, io.EOF
	}
	var head [12]byte
	h := head[:]
	if !r.indexed {
		h = head[8:]
	}
	if _, err := io.ReadFull(r.r, h); err != nil {
		return 0, nil, fmt.Errorf("%s is cut short", r.name)
	}
	n := int64(binary.BigEndian.Uint32(head[8:]))
	if r.left -= int64(len(h)) + n; r.left < 0 || n > maxRecord {
		return 0, nil, fmt.Errorf("%s is cut short, or a record of %d octets is too long", r.name, n)
	}
	if int64(cap(r.buf)) < n {
		r.buf = make([]byte, n)
	}
	if _, err := io.ReadFull(r.r, r.buf[:n]); err != nil {
		return 0, nil, fmt.Errorf("%s is cut short", r.name)
	}
	return binary.BigEndian.Uint64(head[:8]), r.buf[:n], nil
}

// Close ends the reading.
func (r *Records) Close() error { return r.f.Close() }
