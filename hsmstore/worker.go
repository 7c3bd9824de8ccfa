package hsmstore

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"chancery/audit"

	"github.com/ThalesGroup/crypto11"
	"github.com/miekg/pkcs11"
)

// loadRequest is the first frame that a signing worker gets, and comes again when
// there are new keys or the ledger has got its genesis.
type loadRequest struct {
	Module   string `json:"module,omitempty"`
	Label    string `json:"label,omitempty"`
	Serial   string `json:"serial,omitempty"` // enrolled serial; "" before enrolment
	Sessions int    `json:"sessions,omitempty"`
	Journal  string `json:"journal,omitempty"`
	Ledger   string `json:"ledger,omitempty"` // hex; pinned by the first load that has it
	Origin   string `json:"origin,omitempty"`
	Keys     []pin  `json:"keys,omitempty"`
}

// pin names a key and its public half, as the database has it.
type pin struct {
	ID   KeyID  `json:"id"`
	SPKI []byte `json:"spki"`
}

// loadReply answers with the keys that cannot be used, by hex id.
type loadReply struct {
	Status workerStatus      `json:"status"`
	Bad    map[string]string `json:"bad,omitempty"`
}

// workerStatus is where the worker and its journal stand.
type workerStatus struct {
	Serial      string `json:"serial"`
	Label       string `json:"label"`
	JournalSeq  uint64 `json:"journal_seq"`
	JournalHead []byte `json:"journal_head"`
}

// worker is the process that signs with the keys of one token.
type worker struct {
	child  *child
	ctx    *crypto11.Context
	serial string
	label  string
	out    chan []byte // frames to the store
	jobs   chan frame
	failed chan *fault // the first fault ends the process

	mu     sync.RWMutex
	ledger audit.LedgerID
	origin string
	keys   map[KeyID]*workerKey

	jmu     sync.Mutex
	journal *journal
}

// workerMain is the life of a signing worker: open the token, then serve until
// the socket ends or something fails.
func workerMain(c *child) error {
	first, err := readFrame(c.r)
	if err != nil {
		return err
	}
	var load loadRequest
	if err := json.Unmarshal(first.payload, &load); err != nil || first.op != opLoad {
		return faultf(exitProtocol, "first frame is no load request")
	}
	if len(c.secrets) != 1 {
		return faultf(exitProtocol, "one secret expected, %d came", len(c.secrets))
	}
	w := &worker{child: c, out: make(chan []byte, 256), jobs: make(chan frame, 256), failed: make(chan *fault, 1), keys: map[KeyID]*workerKey{}}
	if err := w.open(load, c.secrets[0]); err != nil {
		return err
	}
	c.secrets = nil
	go func() {
		if err := writeLoop(c.conn, w.out, nil); err != nil {
			w.fail(&fault{exitOK, err})
		}
	}()
	for range load.Sessions {
		go func() {
			for f := range w.jobs {
				w.handle(f)
			}
		}()
	}
	go w.handle(first) // loads the first keys; the token is open
	go func() {
		for {
			f, err := readFrame(c.r)
			if err != nil {
				w.fail(&fault{exitOK, err}) // the store has gone, or does not want us any more
				return
			}
			w.jobs <- f
		}
	}()
	return <-w.failed
}

// fail ends the process. Calls into the module that still run are left behind.
func (w *worker) fail(f *fault) {
	select {
	case w.failed <- f:
	default:
	}
}

// open opens module, token and journal, in this order: nothing is asked of a
// module that is not trusted, and the PIN is given only to the enrolled token.
func (w *worker) open(load loadRequest, userPIN string) error {
	info, err := findToken(load.Module, load.Label, load.Serial)
	if err != nil {
		return err
	}
	w.serial, w.label = info.SerialNumber, info.Label
	w.ctx, err = crypto11.Configure(&crypto11.Config{Path: load.Module, TokenSerial: info.SerialNumber, Pin: userPIN,
		MaxSessions: load.Sessions + 2, PoolWaitTimeout: 10 * time.Second})
	if err != nil {
		return classify("opening the token", err)
	}
	if w.journal, err = openJournal(load.Journal, w.serial); err != nil {
		return &fault{exitJournal, err}
	}
	return nil
}

// findToken looks at the token before the PIN is used: crypto11 neither checks a
// second property of a token nor tells its serial number.
func findToken(module, label, serial string) (pkcs11.TokenInfo, error) {
	if err := checkModule(module); err != nil {
		return pkcs11.TokenInfo{}, &fault{exitModule, err}
	}
	m := pkcs11.New(module)
	if m == nil {
		return pkcs11.TokenInfo{}, faultf(exitModule, "%w: %s does not load; is it a PKCS#11 library with all its dependencies?", ErrModule, module)
	}
	defer m.Destroy()
	if err := m.Initialize(); err != nil {
		return pkcs11.TokenInfo{}, faultf(exitModule, "%w: C_Initialize of %s: %v", ErrModule, module, err)
	}
	defer m.Finalize()
	_, info, err := slotOf(m, label, serial)
	return info, err
}

// slotOf finds the one token with that label and serial; "" matches any.
func slotOf(m *pkcs11.Ctx, label, serial string) (uint, pkcs11.TokenInfo, error) {
	slots, err := m.GetSlotList(true)
	if err != nil {
		return 0, pkcs11.TokenInfo{}, classify("listing slots", err)
	}
	var found []uint
	var info pkcs11.TokenInfo
	foreign := ""
	for _, s := range slots {
		ti, err := m.GetTokenInfo(s)
		if err != nil || ti.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 {
			continue
		}
		if label != "" && ti.Label != label {
			continue
		}
		if serial != "" && ti.SerialNumber != serial {
			foreign = ti.SerialNumber
			continue
		}
		found, info = append(found, s), ti
	}
	switch {
	case len(found) == 1:
		return found[0], info, nil
	case len(found) > 1:
		return 0, info, faultf(exitToken, "%w: %d tokens have the label %q; name one by its serial number", ErrToken, len(found), label)
	case foreign != "" && label != "":
		return 0, info, faultf(exitForeign, "%w: token %q has serial number %s, %s is enrolled; if the HSM was replaced on purpose, add it as a new member", ErrToken, label, foreign, serial)
	}
	return 0, info, faultf(exitToken, "%w: no token with label %q, serial number %q in %d slots", ErrToken, label, serial, len(slots))
}

// classify turns an error of a module into the fault that it means for the
// process (PKCS#11 §5.1). PIN errors are their own kind, because they must never
// be met by another try.
func classify(doing string, err error) *fault {
	var f *fault
	if errors.As(err, &f) {
		return f
	}
	var rv pkcs11.Error
	if errors.As(err, &rv) {
		switch rv {
		case pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_INVALID, pkcs11.CKR_PIN_LEN_RANGE, pkcs11.CKR_PIN_EXPIRED, pkcs11.CKR_PIN_LOCKED, pkcs11.CKR_USER_PIN_NOT_INITIALIZED:
			return faultf(exitPIN, "%w: %s: %v; it was tried once and will not be tried again until a restart", ErrPIN, doing, rv)
		case pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_TOKEN_NOT_RECOGNIZED, pkcs11.CKR_SLOT_ID_INVALID:
			return faultf(exitToken, "%w: %s: %v", ErrToken, doing, rv)
		}
	}
	return faultf(exitDevice, "%s: %w", doing, err)
}

// handle does one request. Signing is the hot path; see worker_sign.go.
func (w *worker) handle(f frame) {
	switch f.op {
	case opSign:
		w.sign(f)
	case opLoad:
		var load loadRequest
		if err := json.Unmarshal(f.payload, &load); err != nil {
			w.fail(faultf(exitProtocol, "load request: %v", err))
			return
		}
		w.load(f.id, load)
	case opStatus:
		w.replyJSON(f.id, w.status())
	default:
		w.fail(faultf(exitProtocol, "unknown operation %d", f.op))
	}
}

func (w *worker) reply(id uint64, status byte, payload []byte) {
	b := newFrame(id, status, len(payload))
	w.out <- finishFrame(append(b, payload...))
}

func (w *worker) replyJSON(id uint64, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		w.fail(faultf(exitProtocol, "encoding a reply: %v", err))
		return
	}
	w.reply(id, statusOK, b)
}

func (w *worker) status() workerStatus {
	w.jmu.Lock()
	defer w.jmu.Unlock()
	last := w.journal.last
	return workerStatus{Serial: w.serial, Label: w.label, JournalSeq: last.Seq, JournalHead: last.Chain[:]}
}

// load makes keys known and pins the ledger.
func (w *worker) load(id uint64, req loadRequest) {
	if err := w.pinLedger(req); err != nil {
		w.fail(&fault{exitProtocol, err})
		return
	}
	bad := map[string]string{}
	for _, p := range req.Keys {
		k, err := w.findKey(p)
		var f *fault
		if errors.As(err, &f) {
			w.fail(f)
			return
		}
		if err != nil {
			bad[hex.EncodeToString(p.ID[:])] = err.Error()
			continue
		}
		w.mu.Lock()
		w.keys[p.ID] = k
		w.mu.Unlock()
	}
	w.replyJSON(id, loadReply{Status: w.status(), Bad: bad})
}

// pinLedger takes ledger id and origin once; they never change in a process.
func (w *worker) pinLedger(req loadRequest) error {
	if req.Ledger == "" {
		return nil
	}
	id, err := hex.DecodeString(req.Ledger)
	if err != nil || len(id) != 32 || req.Origin == "" {
		return fmt.Errorf("load request: ledger id or origin is malformed")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ledger != (audit.LedgerID{}) && (w.ledger != audit.LedgerID(id) || w.origin != req.Origin) {
		return fmt.Errorf("load request: this worker serves ledger %x", w.ledger[:8])
	}
	w.ledger, w.origin = audit.LedgerID(id), req.Origin
	return nil
}

func splitSign(payload []byte) (id KeyID, intent uint64, message []byte, ok bool) {
	if len(payload) < signHeader {
		return id, 0, nil, false
	}
	return KeyID(payload[:16]), binary.BigEndian.Uint64(payload[16:]), payload[signHeader:], true
}
