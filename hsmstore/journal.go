package hsmstore

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"
)

// The worker's journal is its own account of every use of a key, written before
// the HSM is called. Records have one size and form a hash chain:
//
//	record = seq u64 ‖ kind u64 ‖ key 32 ‖ sha256 32 ‖ number u64 ‖ chain 32
//	chain  = SHA-256(chain of the record before ‖ the first 88 octets)
//
// Record 0 is the head: seq 0, kind 0, key = the text "chancery/worker-journal/v1\n",
// sha256 = SHA-256(token serial), and a chain that starts from 32 zeros. A record
// costs one write(2) and no fsync: the journal is evidence beside the ledger, and
// after a power failure the ledger is the authority.

const (
	journalRecord = 8 + 8 + 32 + 32 + 8 + 32
	journalMagic  = "chancery/worker-journal/v1\n"
	// journalTail is how many records are verified when a journal is opened.
	journalTail = 4096
)

// JournalKind says what a record's number means.
type JournalKind uint8

// The kinds of journal records.
const (
	JournalIntent     JournalKind = 1 // number is the index of the intent
	JournalCheckpoint JournalKind = 2 // number is the tree size signed
	JournalProbe      JournalKind = 3 // number is audit.NoIndex
	JournalRandom     JournalKind = 4 // sha256 is that of random octets of the token, seen at a start
	JournalBinding    JournalKind = 5 // sha256 is the digest of what an adopted key is bound to
)

// JournalRecord is one use of a key.
type JournalRecord struct {
	Seq    uint64 // 1, 2, 3 …
	Kind   JournalKind
	Key    [32]byte // SHA-256 of the key's SPKI
	SHA256 [32]byte // of the message, whatever hash the signature uses
	Number uint64
	Chain  [32]byte
}

// ErrJournal is wrapped when a journal contradicts itself.
var ErrJournal = errors.New("worker journal is damaged")

func (r JournalRecord) encode(prev [32]byte) (b [journalRecord]byte) {
	binary.BigEndian.PutUint64(b[0:], r.Seq)
	binary.BigEndian.PutUint64(b[8:], uint64(r.Kind))
	copy(b[16:], r.Key[:])
	copy(b[48:], r.SHA256[:])
	binary.BigEndian.PutUint64(b[80:], r.Number)
	chain := journalChain(prev, b[:88])
	copy(b[88:], chain[:])
	return b
}

func journalChain(prev [32]byte, body []byte) [32]byte {
	var in [32 + 88]byte
	copy(in[:], prev[:])
	copy(in[32:], body)
	return sha256.Sum256(in[:])
}

func decodeRecord(b []byte) JournalRecord {
	return JournalRecord{Seq: binary.BigEndian.Uint64(b), Kind: JournalKind(binary.BigEndian.Uint64(b[8:])),
		Key: [32]byte(b[16:48]), SHA256: [32]byte(b[48:80]), Number: binary.BigEndian.Uint64(b[80:]), Chain: [32]byte(b[88:120])}
}

func journalHead(serial string) (r JournalRecord) {
	copy(r.Key[:], journalMagic)
	r.SHA256 = sha256.Sum256([]byte(serial))
	b := r.encode([32]byte{})
	return decodeRecord(b[:])
}

// ReadJournal reads a journal whole and verifies its chain from the head on. A
// last record that was cut short is left out. Errors wrap [ErrJournal] or are
// those of the file.
func ReadJournal(path string) ([]JournalRecord, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading worker journal: %w", err)
	}
	n := len(b) / journalRecord
	if n == 0 || !strings.HasPrefix(string(b[16:48]), journalMagic) {
		return nil, fmt.Errorf("%w: %s has no head", ErrJournal, path)
	}
	var prev [32]byte
	out := make([]JournalRecord, 0, n-1)
	for i := range n {
		raw := b[i*journalRecord : (i+1)*journalRecord]
		r := decodeRecord(raw)
		if r.Seq != uint64(i) || r.Chain != journalChain(prev, raw[:88]) {
			return nil, fmt.Errorf("%w: %s breaks at record %d", ErrJournal, path, i)
		}
		if prev = r.Chain; i > 0 {
			out = append(out, r)
		}
	}
	return out, nil
}

// journal is the open journal of a worker. Its methods are for one caller at a time.
type journal struct {
	f    *os.File
	last JournalRecord
}

// openJournal opens or makes the journal of one token and takes its lock, so that
// two workers never write one journal. The file belongs to the token: with
// another serial it is refused.
func openJournal(path, serial string) (*journal, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening worker journal: %w", err)
	}
	j := &journal{f: f}
	if err := j.open(path, serial); err != nil {
		f.Close()
		return nil, err
	}
	return j, nil
}

func (j *journal) open(path, serial string) error {
	// The worker before this one may be dying still.
	for i := 0; ; i++ {
		err := syscall.Flock(int(j.f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			break
		}
		if i == 500 {
			return fmt.Errorf("locking worker journal %s: another worker holds it: %w", path, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	st, err := j.f.Stat()
	if err != nil {
		return err
	}
	n := st.Size() / journalRecord
	if st.Size()%journalRecord != 0 {
		if err := j.f.Truncate(n * journalRecord); err != nil {
			return fmt.Errorf("cutting the unfinished record of worker journal %s: %w", path, err)
		}
	}
	head := journalHead(serial)
	if n == 0 {
		b := head.encode([32]byte{})
		if _, err := j.f.WriteAt(b[:], 0); err != nil {
			return fmt.Errorf("starting worker journal %s: %w", path, err)
		}
		j.last = head
		_, err := j.f.Seek(0, io.SeekEnd)
		return err
	}
	first, err := j.read(0, 1)
	if err != nil {
		return err
	}
	if first[0] != head {
		return fmt.Errorf("%w: %s belongs to another token than %s; move it away if the token was replaced on purpose", ErrJournal, path, serial)
	}
	if err := j.checkTail(path, n); err != nil {
		return err
	}
	_, err = j.f.Seek(0, io.SeekEnd)
	return err
}

// checkTail verifies the chain of the newest records.
func (j *journal) checkTail(path string, n int64) error {
	from := max(0, n-journalTail)
	recs, err := j.read(from, n-from)
	if err != nil {
		return err
	}
	for i, r := range recs {
		var prev [32]byte
		switch {
		case i > 0:
			prev = recs[i-1].Chain
		case from > 0:
			continue // the record before it is outside the tail
		}
		if want := decodeRecordBytes(r.encode(prev)); r != want || r.Seq != uint64(from)+uint64(i) {
			return fmt.Errorf("%w: %s breaks at record %d", ErrJournal, path, from+int64(i))
		}
	}
	j.last = recs[len(recs)-1]
	return nil
}

func decodeRecordBytes(b [journalRecord]byte) JournalRecord { return decodeRecord(b[:]) }

func (j *journal) read(from, n int64) ([]JournalRecord, error) {
	b := make([]byte, n*journalRecord)
	if _, err := j.f.ReadAt(b, from*journalRecord); err != nil {
		return nil, fmt.Errorf("reading worker journal: %w", err)
	}
	out := make([]JournalRecord, n)
	for i := range out {
		out[i] = decodeRecord(b[i*journalRecord:])
	}
	return out, nil
}

// append writes one record; its Seq and Chain are set here.
func (j *journal) append(r JournalRecord) error {
	r.Seq = j.last.Seq + 1
	b := r.encode(j.last.Chain)
	if _, err := j.f.Write(b[:]); err != nil {
		return fmt.Errorf("writing worker journal: %w", err)
	}
	r.Chain = [32]byte(b[88:])
	j.last = r
	return nil
}

// addRandom notes random octets of the token and tells whether they were seen at one
// of the last starts.
func (j *journal) addRandom(b []byte) (seen bool, err error) {
	r := JournalRecord{Kind: JournalRandom, SHA256: sha256.Sum256(b)}
	n := int64(j.last.Seq) + 1
	from := max(1, n-journalTail)
	recs, err := j.read(from, n-from)
	if err != nil {
		return false, err
	}
	for _, old := range recs {
		if old.Kind == JournalRandom && old.SHA256 == r.SHA256 {
			return true, nil
		}
	}
	return false, j.append(r)
}

// bind notes what an adopted key is bound to, and tells whether that agrees with what
// was noted first.
func (j *journal) bind(key, binding [32]byte) (agrees bool, err error) {
	old, ok, err := j.newest(JournalBinding, key)
	if err != nil {
		return false, err
	}
	if ok {
		return old.SHA256 == binding, nil
	}
	return true, j.append(JournalRecord{Kind: JournalBinding, Key: key, SHA256: binding})
}

// lastCheckpoint finds the newest checkpoint record of a key.
func (j *journal) lastCheckpoint(key [32]byte) (JournalRecord, bool, error) {
	return j.newest(JournalCheckpoint, key)
}

// newest finds the newest record of a kind and key, reading backwards.
func (j *journal) newest(kind JournalKind, key [32]byte) (JournalRecord, bool, error) {
	for end := int64(j.last.Seq) + 1; end > 1; {
		from := max(1, end-journalTail)
		recs, err := j.read(from, end-from)
		if err != nil {
			return JournalRecord{}, false, err
		}
		for i := len(recs) - 1; i >= 0; i-- {
			if recs[i].Kind == kind && recs[i].Key == key {
				return recs[i], true, nil
			}
		}
		end = from
	}
	return JournalRecord{}, false, nil
}
