package hsmstore

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"time"
	"unsafe"

	"chancery/audit"

	"github.com/miekg/pkcs11"
)

// loadRequest is the first frame that a signing worker gets, and comes again when
// there are new keys or the ledger has got its genesis.
type loadRequest struct {
	Module   string   `json:"module,omitempty"`
	Reserved string   `json:"reserved,omitempty"`
	Label    string   `json:"label,omitempty"`
	Serial   string   `json:"serial,omitempty"` // enrolled serial; "" before enrolment
	Others   []string `json:"others,omitempty"` // serials of the other members, which one module may show too
	Sessions int      `json:"sessions,omitempty"`
	Native   bool     `json:"native,omitempty"`   // a vendor's cluster is behind the module: throttling and nodes that lag are no faults
	Patience int      `json:"patience,omitempty"` // milliseconds that such refusals are met by another try
	Weak     bool     `json:"weak,omitempty"`     // [MemberConfig].WeakUnwrap: attributes are as the module has them
	Role     Role     `json:"role,omitempty"`     // pinned by the first load
	Journal  string   `json:"journal,omitempty"`
	Ledger   string   `json:"ledger,omitempty"` // hex; pinned by the first load that has it
	Origin   string   `json:"origin,omitempty"`
	Keys     []pin    `json:"keys,omitempty"`
	Probe    KeyID    `json:"probe,omitempty"` // the member's probe key: a token without it is another token
}

// pin names a key and its public half, as the database has it. Purpose and subject
// count only where the token cannot keep them (bind).
type pin struct {
	ID        KeyID         `json:"id"`
	SPKI      []byte        `json:"spki"`
	Algorithm string        `json:"algorithm"`
	Adopted   *Adopted      `json:"adopted,omitempty"`
	Purpose   audit.Purpose `json:"purpose,omitempty"`
	Subject   []byte        `json:"subject,omitempty"`
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
	Sessions    int    `json:"sessions"` // open sessions that sign
	Edwards     bool   `json:"edwards"`  // the module makes Ed25519 keys and signs with them
}

// worker is the process that signs with the keys of one token.
type worker struct {
	child    *child
	token    *token // its session is for control; signatures have their own
	serial   string
	label    string
	native   bool
	weak     bool
	role     Role
	edwards  bool
	patience time.Duration
	out      chan []byte // frames to the store
	jobs     chan job    // signing requests
	failed   chan *fault // the first fault ends the process
	pool     pool

	mu     sync.RWMutex
	ledger audit.LedgerID
	origin string
	keys   map[KeyID]*workerKey

	account string // of ceremonies, see mandate.go
	jmu     sync.Mutex
	journal *journal
}

// job is a signing request with the time of its arrival.
type job struct {
	frame
	came time.Time
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
	debug.SetGCPercent(50) // a worker is small and stays so
	// The work is in C. One thread for Go is enough beside it and saves waking others;
	// with many sessions on a far HSM there will be more (see grow).
	runtime.GOMAXPROCS(1)
	w := &worker{child: c, native: load.Native, weak: load.Weak, patience: time.Duration(load.Patience) * time.Millisecond, out: make(chan []byte, 256), jobs: make(chan job, 1024), failed: make(chan *fault, 1), keys: map[KeyID]*workerKey{}}
	if err := w.open(load, c.secrets[0]); err != nil {
		return err
	}
	c.secrets = nil
	go func() {
		if err := writeLoop(c.conn, w.out, nil); err != nil {
			w.fail(&fault{exitOK, err})
		}
	}()
	control := make(chan frame, 16)
	go func() {
		w.control(first) // loads the first keys; the token is open
		for f := range control {
			w.control(f)
		}
	}()
	go func() {
		for {
			f, err := readFrame(c.r)
			if err != nil {
				w.fail(&fault{exitOK, err}) // the store has gone, or does not want us any more
				return
			}
			if f.op != opSign {
				control <- f
				continue
			}
			w.jobs <- job{f, time.Now()}
			w.grow()
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

// open opens module, token, random source, journal and the first sessions, in this
// order: nothing is asked of a module that is not trusted, and the PIN is given
// only to the enrolled token.
func (w *worker) open(load loadRequest, userPIN string) error {
	t, info, err := openToken(load.Module, load.Reserved, load.Label, load.Serial, load.Others...)
	if err != nil {
		return err
	}
	w.token, w.serial, w.label = t, info.SerialNumber, info.Label
	if err := t.login(pkcs11.CKU_USER, userPIN); err != nil {
		return err
	}
	w.account = load.Journal + ".mandates"
	a, err := readAccount(w.account)
	if err != nil {
		return &fault{exitJournal, err}
	}
	if a.retired {
		return &fault{exitGrant, errRetired}
	}
	if w.journal, err = openJournal(load.Journal, w.serial); err != nil {
		return &fault{exitJournal, err}
	}
	if err := w.takeRole(a, load.Role); err != nil {
		return err
	}
	mechanisms, err := t.m.GetMechanismList(t.slot)
	if err != nil {
		return classify("C_GetMechanismList", err)
	}
	w.edwards = hasEdwards(mechanismNumbers(mechanisms))
	if err := w.testRandom(); err != nil {
		return err
	}
	return w.startSessions(load.Sessions, info)
}

// openToken loads a module, finds one token and opens a session on it.
func openToken(module, reserved, label, serial string, others ...string) (*token, pkcs11.TokenInfo, error) {
	m, err := loadModule(module, reserved)
	if err != nil {
		return nil, pkcs11.TokenInfo{}, err
	}
	slot, info, err := slotOf(m, label, serial, others...)
	if err != nil {
		return nil, info, err
	}
	s, err := m.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return nil, info, classify("C_OpenSession", err)
	}
	return &token{m: m, session: s, slot: slot, user: noUser}, info, nil
}

// reservedPins is never collected: the collector panics at a Pinner that still pins.
var reservedPins runtime.Pinner

// loadModule loads and initializes a library that is to be trusted.
func loadModule(module, reserved string) (*pkcs11.Ctx, error) {
	if err := checkModule(module); err != nil {
		return nil, &fault{exitModule, err}
	}
	m := pkcs11.New(module)
	if m == nil {
		return nil, faultf(exitModule, "%w: %s does not load; is it a PKCS#11 library with all its dependencies?", ErrModule, module)
	}
	var options []pkcs11.InitializeOption
	if reserved != "" {
		b := append([]byte(reserved), 0)
		reservedPins.Pin(&b[0]) // for ever: a library may keep the pointer
		options = append(options, pkcs11.InitializeWithReserved(unsafe.Pointer(&b[0])))
	}
	if err := m.Initialize(options...); err != nil {
		return nil, faultf(exitModule, "%w: C_Initialize of %s: %w", ErrModule, module, err)
	}
	return m, nil
}

// slotOf finds the one token with that label and serial; "" matches any. An enrolled
// token is known by its serial number alone: who initializes it anew can give it any
// label. When it is not there, a token that is none of the others is in its place if
// it has its label or is the only one to be seen.
func slotOf(m *pkcs11.Ctx, label, serial string, others ...string) (uint, pkcs11.TokenInfo, error) {
	slots, err := m.GetSlotList(true)
	if err != nil {
		return 0, pkcs11.TokenInfo{}, classify("listing slots", err)
	}
	type candidate struct {
		slot uint
		info pkcs11.TokenInfo
	}
	var found []candidate
	var strangers []pkcs11.TokenInfo
	seen := 0
	for _, s := range slots {
		ti, err := m.GetTokenInfo(s)
		if err != nil || ti.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 {
			continue
		}
		seen++
		if serial != "" && ti.SerialNumber != serial {
			if !slices.Contains(others, ti.SerialNumber) {
				strangers = append(strangers, ti)
			}
			continue
		}
		if serial == "" && label != "" && ti.Label != label {
			continue
		}
		found = append(found, candidate{s, ti})
	}
	if len(found) > 1 && label != "" { // NSS gives one serial number to all its tokens
		found = slices.DeleteFunc(found, func(c candidate) bool { return c.info.Label != label })
	}
	none := pkcs11.TokenInfo{}
	instead := slices.IndexFunc(strangers, func(ti pkcs11.TokenInfo) bool { return label != "" && ti.Label == label || seen == 1 })
	switch {
	case len(found) == 1:
		return found[0].slot, found[0].info, nil
	case len(found) > 1:
		return 0, none, faultf(exitToken, "%w: %d tokens have the label %q; name one by its serial number", ErrToken, len(found), label)
	case instead >= 0:
		ti := strangers[instead]
		return 0, none, faultf(exitForeign, "%w: token %q has serial number %s, %s is enrolled; if the HSM was replaced on purpose, add it as a new member", ErrToken, ti.Label, ti.SerialNumber, serial)
	}
	return 0, none, faultf(exitToken, "%w: no token with label %q, serial number %q in %d slots", ErrToken, label, serial, len(slots))
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

// control does one request that is no signature.
func (w *worker) control(f frame) {
	switch f.op {
	case opLoad:
		var load loadRequest
		if err := json.Unmarshal(f.payload, &load); err != nil {
			w.fail(faultf(exitProtocol, "load request: %v", err))
			return
		}
		w.load(f.id, load)
	case opStatus:
		w.replyJSON(f.id, w.status())
	case opSeal:
		if err := w.seal(); err != nil {
			w.fail(&fault{exitJournal, err})
			return
		}
		w.replyJSON(f.id, struct{}{})
	case opRosters:
		w.learnRosters(f)
	case opRetire:
		a, err := readAccount(w.account)
		if err == nil && !a.retired {
			err = a.add("retired")
		}
		if err != nil {
			w.fail(&fault{exitJournal, err})
			return
		}
		w.replyJSON(f.id, struct{}{})
		w.fail(&fault{exitGrant, errRetired})
	case opObjects:
		w.objects(f)
	default:
		w.fail(faultf(exitProtocol, "unknown operation %d", f.op))
	}
}

// seal writes into the ceremonies' account that genesis is over.
func (w *worker) seal() error {
	a, err := readAccount(w.account)
	if err != nil || a.sealed {
		return err
	}
	return a.add("sealed")
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
	return workerStatus{Serial: w.serial, Label: w.label, JournalSeq: last.Seq, JournalHead: last.Chain[:], Sessions: w.pool.size(), Edwards: w.edwards}
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
		if err != nil && p.ID == req.Probe && errors.Is(err, errAbsent) {
			w.fail(faultf(exitForeign, "%w: token %s does not hold the member's probe key: it was initialized anew, or is another one with that number; if on purpose, remove the member and add it again", ErrToken, w.serial))
			return
		}
		if err == nil { // one key, one memory of what it signed
			w.mu.RLock()
			for id, other := range w.keys {
				if id != p.ID && other.binding.spkiHash == k.binding.spkiHash {
					err = fmt.Errorf("the worker has this key as %x already", id)
				}
			}
			w.mu.RUnlock()
		}
		if err != nil {
			bad[hex.EncodeToString(p.ID[:])] = err.Error()
			w.mu.Lock()
			delete(w.keys, p.ID)
			w.mu.Unlock()
			continue
		}
		w.mu.Lock()
		if old := w.keys[p.ID]; old == nil || !old.same(k) { // one checkpoint key has one memory of sizes
			w.keys[p.ID] = k
		}
		w.mu.Unlock()
	}
	w.replyJSON(id, loadReply{Status: w.status(), Bad: bad})
}

// takeRole binds the token to a role, for good: the account of ceremonies keeps it. A
// token whose role is checkpoint is one of its own: it has no other keys.
func (w *worker) takeRole(a *account, role Role) error {
	if a.role != "" && Role(a.role) != role {
		return faultf(exitForeign, "%w: token %s was bound to role %s, now it is to have %s; correct hsm.members", ErrToken, w.serial, a.role, roleText(role))
	}
	if w.role = role; role == RoleAll {
		return nil
	}
	for _, class := range []uint{pkcs11.CKO_PRIVATE_KEY, pkcs11.CKO_SECRET_KEY} {
		hs, err := w.token.findEvery([]*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, class), attr(pkcs11.CKA_TOKEN, true)})
		if err != nil {
			return err
		}
		for _, h := range hs {
			v, err := w.token.attributes(h, pkcs11.CKA_LABEL)
			if err != nil {
				return err
			}
			if p, err := labelPurpose(string(v[pkcs11.CKA_LABEL])); err != nil || !role.holds(p) {
				return faultf(exitForeign, "%w: token %s holds a key with label %.100q; role %s wants a token of its own", ErrToken, w.serial, v[pkcs11.CKA_LABEL], role)
			}
		}
	}
	if a.role != "" {
		return nil
	}
	if err := a.add("role %s", role); err != nil {
		return &fault{exitJournal, err}
	}
	return nil
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
