package hsmstore

/*
#cgo LDFLAGS: -ldl
#include <dlfcn.h>
#include <stdlib.h>
*/
import "C"

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"github.com/miekg/pkcs11"
)

// examiner is the doctor's child process.
type examiner struct {
	child *child
	req   examineRequest
	pin   string
	now   announcement
	m     *pkcs11.Ctx
	slot  uint
	info  pkcs11.TokenInfo
	tok   *token // once there is a session
	mechs []uint
	err   error // the parent has gone
}

// doctorMain is the life of the child: one request, then steps until the end.
func doctorMain(c *child) error {
	f, err := readFrame(c.r)
	if err != nil {
		return err
	}
	e := &examiner{child: c}
	if err := json.Unmarshal(f.payload, &e.req); err != nil || f.op != opExamine || len(c.secrets) != 1 {
		return faultf(exitProtocol, "first frame is no request for an examination")
	}
	e.pin, c.secrets = c.secrets[0], nil
	go func() { // a module that hangs must not outlive the parent
		_, _ = io.Copy(io.Discard, c.r)
		os.Exit(exitOK)
	}()
	e.examine()
	e.send(opEnd, struct{}{})
	return e.err
}

func (e *examiner) send(op byte, v any) {
	if err := writeJSON(e.child.conn, 0, op, v); err != nil && e.err == nil {
		e.err = err
	}
}

// begin announces a call into the module. The next one may be of the same step.
func (e *examiner) begin(step, call string, slow ...bool) {
	e.now = announcement{step, call, len(slow) > 0}
	e.send(opBegin, e.now)
}

func (e *examiner) ok(format string, args ...any) {
	e.send(opStep, Step{Name: e.now.Step, Call: e.now.Call, OK: true, Detail: fmt.Sprintf(format, args...)})
}

// fail reports what is not a return code of the module.
func (e *examiner) fail(code, cause, next, format string, args ...any) {
	e.send(opStep, Step{Name: e.now.Step, Call: e.now.Call, Code: code, Detail: fmt.Sprintf(format, args...), Cause: cause, Next: next})
}

func (e *examiner) skip(step, why string) {
	e.send(opStep, Step{Name: step, Skipped: true, Detail: why})
}

// check reports an error of the call that was announced; true if there is none.
func (e *examiner) check(err error) bool {
	if err == nil {
		return true
	}
	s := Step{Name: e.now.Step, Call: e.now.Call, Detail: err.Error(), Cause: "the module gave what cannot be right", Next: nextReport}
	if rv, is := returnCode(err); is {
		x := explain(rv)
		s.Code, s.Detail, s.Cause, s.Next = x.name, fmt.Sprintf("%s (%#x)", x.meaning, uint(rv)), x.cause, x.next
		if hint := e.hint(); hint != "" && (rv == pkcs11.CKR_GENERAL_ERROR || rv == pkcs11.CKR_TOKEN_NOT_PRESENT) {
			s.Cause = hint
		}
	}
	e.send(opStep, s)
	return false
}

// examine goes from the file of the module to a signature. What needs a step that
// failed is skipped.
func (e *examiner) examine() {
	if !e.library() || !e.token() {
		for _, step := range []string{"session", "login", "mechanisms", "random source", "keys", "signature"} {
			e.skip(step, "there is no token to look at")
		}
		return
	}
	mayLogin := e.flags()
	open := e.session()
	in := open && e.login(mayLogin)
	e.mechanisms()
	if !open {
		e.skip("random source", "there is no session")
	} else {
		e.random()
	}
	if !in {
		e.skip("keys", "nobody is logged in")
		e.skip("signature", "nobody is logged in")
		return
	}
	e.keys()
	e.signature()
	if e.req.Qualify {
		(&qualifier{examiner: e}).run()
	}
}

// library trusts, loads and initializes the module.
func (e *examiner) library() bool {
	path := e.req.Module
	e.begin("module file", "open")
	if err := checkModule(path); err != nil {
		s := Step{Name: e.now.Step, Call: e.now.Call, Code: "UNTRUSTED", Detail: strings.TrimPrefix(err.Error(), ErrModule.Error()+": "), Cause: "somebody else could have put another library there, which would get the PIN", Next: "ls -lL MODULE; ls -ld $(dirname MODULE)"}
		if errors.Is(err, ErrModule) && missing(path) {
			s.Code, s.Cause, s.Next = "ENOENT", "the vendor's client is not installed, or the settings of the member name another path", "find / -xdev -name '*pkcs11*.so*' -o -xdev -name 'libsofthsm2.so' 2>/dev/null"
		}
		e.send(opStep, s)
		return false
	}
	e.ok("%s", moduleOwner(path))

	e.begin("library", "dlopen")
	if why := dlopen(path); why != "" {
		e.fail("DLOPEN", "it is no library for this computer, or a library that it needs is not installed", "ldd MODULE; file -L MODULE", "%s", why)
		return false
	}
	e.ok("it and all that it needs is there")

	e.begin("initialize", "C_Initialize")
	m, err := loadModule(path, e.req.Reserved)
	if !e.check(err) {
		return false
	}
	e.m = m
	e.ok("")
	e.begin("library info", "C_GetInfo")
	info, err := m.GetInfo()
	if !e.check(err) {
		return false
	}
	e.ok("%s, %s, version %d.%d, Cryptoki %d.%d", strings.TrimSpace(info.ManufacturerID), strings.TrimSpace(info.LibraryDescription),
		info.LibraryVersion.Major, info.LibraryVersion.Minor, info.CryptokiVersion.Major, info.CryptokiVersion.Minor)
	return true
}

func missing(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, os.ErrNotExist)
}

// dlopen loads a library and tells why it does not load, in the words of the linker
// (dlerror(3)); "" if it does and is a PKCS#11 module. It stays loaded.
func dlopen(path string) string {
	p, f := C.CString(path), C.CString("C_GetFunctionList")
	defer C.free(unsafe.Pointer(p))
	defer C.free(unsafe.Pointer(f))
	h := C.dlopen(p, C.RTLD_LAZY)
	if h == nil {
		return C.GoString(C.dlerror())
	}
	if C.dlsym(h, f) == nil {
		return path + " is a library, but no PKCS#11 module: it has no C_GetFunctionList"
	}
	return ""
}

// hint is what an operator easily forgets about the module at hand.
func (e *examiner) hint() string {
	conf, set := os.LookupEnv("SOFTHSM2_CONF")
	switch {
	case !set && strings.Contains(filepath.Base(e.req.Module), "softhsm"):
		return "SOFTHSM2_CONF is not in env: of the member (the environment of a shell does not reach the HSM's process), so SoftHSM reads another configuration with other tokens"
	case !set:
		return ""
	}
	b, err := os.ReadFile(conf)
	if err != nil {
		return fmt.Sprintf("SOFTHSM2_CONF names a file that cannot be read: %v", err)
	}
	for line := range strings.Lines(string(b)) {
		k, dir, ok := strings.Cut(line, "=")
		if dir = strings.TrimSpace(dir); !ok || strings.TrimSpace(k) != "directories.tokendir" {
			continue
		}
		if _, err := os.ReadDir(dir); err != nil {
			return fmt.Sprintf("the token folder that %s names cannot be read: %v", conf, err)
		}
		if st, err := os.Stat(dir); err == nil {
			if sys, ok := st.Sys().(*syscall.Stat_t); ok && int(sys.Uid) != os.Getuid() {
				return fmt.Sprintf("the token folder %s belongs to user %d, this is user %d", dir, sys.Uid, os.Getuid())
			}
		}
	}
	return ""
}

// token finds the slot of the token.
func (e *examiner) token() bool {
	e.begin("slots", "C_GetSlotList")
	slots, err := e.m.GetSlotList(true)
	if !e.check(err) {
		return false
	}
	e.ok("%d slots with something in them", len(slots))
	e.begin("token", "C_GetTokenInfo")
	var there []string
	for _, s := range slots {
		ti, err := e.m.GetTokenInfo(s)
		if err != nil {
			there = append(there, fmt.Sprintf("slot %d: %v", s, err))
			continue
		}
		if ti.Flags&pkcs11.CKF_TOKEN_INITIALIZED != 0 {
			there = append(there, fmt.Sprintf("%q (serial %s)", ti.Label, ti.SerialNumber))
		}
	}
	e.slot, e.info, err = slotOf(e.m, e.req.Label, e.req.Serial, e.req.Others...)
	if err == nil {
		e.ok("%q, serial %s, %s %s, firmware %d.%d", e.info.Label, e.info.SerialNumber, strings.TrimSpace(e.info.ManufacturerID), strings.TrimSpace(e.info.Model), e.info.FirmwareVersion.Major, e.info.FirmwareVersion.Minor)
		return true
	}
	what := "there are no initialized tokens"
	if len(there) > 0 {
		what = "there are: " + strings.Join(there, ", ")
	}
	cause := "the HSM or its partition is not there, or the label in the settings is another"
	var f *fault
	foreign := errors.As(err, &f) && f.code == exitForeign
	if foreign {
		cause = "the HSM was replaced, restored from another, or initialized anew; its keys are not those that are enrolled"
	} else if hint := e.hint(); hint != "" {
		cause = hint
	}
	code := "CKR_TOKEN_NOT_PRESENT"
	if foreign {
		code = "CKR_TOKEN_NOT_RECOGNIZED"
	}
	e.fail(code, cause, nextSlots, "%s; %s", strings.TrimPrefix(err.Error(), ErrToken.Error()+": "), what)
	return false
}

// tokenFlags are those that people should know of (PKCS#11 v2.40 §3.2, CK_TOKEN_INFO).
var tokenFlags = []struct {
	flag uint
	name string
}{
	{pkcs11.CKF_RNG, "RNG"}, {pkcs11.CKF_WRITE_PROTECTED, "WRITE_PROTECTED"}, {pkcs11.CKF_LOGIN_REQUIRED, "LOGIN_REQUIRED"},
	{pkcs11.CKF_PROTECTED_AUTHENTICATION_PATH, "PROTECTED_AUTHENTICATION_PATH"}, {pkcs11.CKF_TOKEN_INITIALIZED, "TOKEN_INITIALIZED"}, {pkcs11.CKF_USER_PIN_INITIALIZED, "USER_PIN_INITIALIZED"},
	{pkcs11.CKF_USER_PIN_COUNT_LOW, "USER_PIN_COUNT_LOW"}, {pkcs11.CKF_USER_PIN_FINAL_TRY, "USER_PIN_FINAL_TRY"}, {pkcs11.CKF_USER_PIN_LOCKED, "USER_PIN_LOCKED"}, {pkcs11.CKF_USER_PIN_TO_BE_CHANGED, "USER_PIN_TO_BE_CHANGED"},
	{pkcs11.CKF_SO_PIN_COUNT_LOW, "SO_PIN_COUNT_LOW"}, {pkcs11.CKF_SO_PIN_FINAL_TRY, "SO_PIN_FINAL_TRY"}, {pkcs11.CKF_SO_PIN_LOCKED, "SO_PIN_LOCKED"}, {pkcs11.CKF_ERROR_STATE, "ERROR_STATE"},
}

func flagNames(flags uint) string {
	var out []string
	for _, f := range tokenFlags {
		if flags&f.flag != 0 {
			out = append(out, f.name)
		}
	}
	return strings.Join(out, " ")
}

// flagTrouble is what the flags of a token say against a login.
func flagTrouble(flags uint) (code, detail string, login bool) {
	switch {
	case flags&pkcs11.CKF_USER_PIN_LOCKED != 0:
		return "CKF_USER_PIN_LOCKED", "the user PIN is locked", false
	case flags&pkcs11.CKF_ERROR_STATE != 0:
		return "CKF_ERROR_STATE", "the token failed its self-test", false
	case flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0:
		return "CKF_USER_PIN_FINAL_TRY", "one more wrong PIN locks the token; the PIN is not tried without --force-login", false
	}
	return "", "", true
}

// flags reads the token's flags before the PIN is used. It tells whether it may be.
func (e *examiner) flags() bool {
	e.begin("token flags", "C_GetTokenInfo")
	code, detail, login := flagTrouble(e.info.Flags)
	switch code {
	case "":
		if e.req.Device && e.info.Flags&pkcs11.CKF_PROTECTED_AUTHENTICATION_PATH == 0 {
			e.fail("CKF_PROTECTED_AUTHENTICATION_PATH", "so_pin says device, but the token has no login at the device: ceremonies will fail", "write so_pin: file:PATH or \"shares:\" for member MEMBER", "the flag is not set")
			return login
		}
		detail = flagNames(e.info.Flags)
		if e.info.Flags&pkcs11.CKF_USER_PIN_COUNT_LOW != 0 {
			detail += "; a wrong PIN was tried since the last login"
		}
		e.ok("%s", detail)
	case "CKF_USER_PIN_LOCKED":
		x := explanations[pkcs11.CKR_PIN_LOCKED]
		e.fail(code, x.cause, x.next, "%s", detail)
	case "CKF_ERROR_STATE":
		e.fail(code, "the HSM is broken or was tampered with", nextVendor, "%s", detail)
	default:
		e.fail(code, explanations[pkcs11.CKR_PIN_LOCKED].cause, "make sure that pin: of member MEMBER names the right PIN, then chancery doctor --member MEMBER --force-login", "%s", detail)
		login = e.req.Force
	}
	return login
}

func (e *examiner) session() bool {
	e.begin("session", "C_OpenSession")
	s, err := e.m.OpenSession(e.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if !e.check(err) {
		return false
	}
	e.tok = &token{m: e.m, session: s, slot: e.slot, user: noUser}
	limit := "no limit"
	if n := e.info.MaxRwSessionCount; n > 0 && n < 1<<16 {
		limit = fmt.Sprintf("at most %d", n)
	}
	e.ok("the token names %s", limit)
	return true
}

// login tries the PIN, once.
func (e *examiner) login(may bool) bool {
	switch {
	case !e.req.Login:
		e.skip("login", "--no-login")
		return false
	case !may:
		e.skip("login", "the flags of the token speak against it; the PIN was not tried")
		return false
	}
	e.begin("login", "C_Login")
	if e.req.NoPIN != "" {
		e.fail("NO_PIN", "the file or variable that pin: names is not there or not ours to read", "give the user of the server what pin: of member MEMBER names (a file of mode 0600), and as that user: "+nextDoctor, "the PIN was not tried: %s", e.req.NoPIN)
		return false
	}
	before := e.info.Flags
	err := e.m.Login(e.tok.session, pkcs11.CKU_USER, e.pin)
	e.pin = ""
	if err == nil {
		e.tok.user = pkcs11.CKU_USER
		e.ok("the PIN is right")
		return true
	}
	rv, is := returnCode(err)
	if !is {
		return e.check(err)
	}
	x := explain(rv)
	detail := fmt.Sprintf("%s (%#x); this was the only try", x.meaning, uint(rv))
	if rv == pkcs11.CKR_PIN_INCORRECT {
		detail = fmt.Sprintf("%s (%#x); this used one try%s, and it is not tried again", x.meaning, uint(rv), e.tries(before))
	}
	e.fail(x.name, x.cause, x.next, "%s", detail)
	return false
}

// tries says what the token tells about wrong PINs, before and after one.
func (e *examiner) tries(before uint) string {
	say := func(flags uint) string {
		switch {
		case flags&pkcs11.CKF_USER_PIN_LOCKED != 0:
			return "the PIN is locked"
		case flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0:
			return "one more wrong PIN locks it"
		case flags&pkcs11.CKF_USER_PIN_COUNT_LOW != 0:
			return "wrong PINs were tried since the last login"
		}
		return "no wrong PIN was tried"
	}
	after := "unknown"
	if ti, err := e.m.GetTokenInfo(e.slot); err == nil {
		after = say(ti.Flags)
	}
	return fmt.Sprintf(" (the token said before: %s; now: %s)", say(before), after)
}

// needed are the mechanisms that we use, and what it means if one is missing.
var needed = []struct {
	mech  uint
	name  string
	means string
	must  bool // every member needs it
}{
	{pkcs11.CKM_EC_KEY_PAIR_GEN, "CKM_EC_KEY_PAIR_GEN", "no EC keys are born here, not even the member's probe key", true},
	{pkcs11.CKM_ECDSA, "CKM_ECDSA", "no EC key signs here, not even the member's probe key", true},
	{pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, "CKM_RSA_PKCS_KEY_PAIR_GEN", "no RSA keys and no transport keys are born here", false},
	{pkcs11.CKM_RSA_PKCS, "CKM_RSA_PKCS", "no RSA PKCS #1 signatures", false},
	{pkcs11.CKM_RSA_PKCS_PSS, "CKM_RSA_PKCS_PSS", "no RSA-PSS signatures", false},
	{ckmEdwardsKeyPairGen, "CKM_EC_EDWARDS_KEY_PAIR_GEN", "no Ed25519 keys", false},
	{ckmEdDSA, "CKM_EDDSA", "no Ed25519 signatures", false},
	{pkcs11.CKM_AES_KEY_GEN, "CKM_AES_KEY_GEN", "no copies by wrapping: replication: native", false},
	{pkcs11.CKM_RSA_PKCS_OAEP, "CKM_RSA_PKCS_OAEP", "no copies by wrapping: replication: native", false},
}

// wrappers are the mechanisms by which an AES key wraps a private key.
var wrappers = []struct {
	mech uint
	name string
}{{ckmAESKeyWrap, "CKM_AES_KEY_WRAP (0x2109)"}, {ckmAESKeyWrapPad, "CKM_AES_KEY_WRAP_PAD (0x210A)"}, {ckmAESKeyWrapKWP, "CKM_AES_KEY_WRAP_KWP (0x210B)"}}

func (e *examiner) mechanisms() {
	e.begin("mechanisms", "C_GetMechanismList")
	list, err := e.m.GetMechanismList(e.slot)
	if !e.check(err) {
		return
	}
	for _, m := range list {
		e.mechs = append(e.mechs, m.Mechanism)
	}
	var lacks []string
	must := false
	for _, n := range needed {
		if !slices.Contains(e.mechs, n.mech) {
			lacks = append(lacks, fmt.Sprintf("%s (%s)", n.name, n.means))
			must = must || n.must
		}
	}
	if len(waysBetween(e.mechs, e.mechs)) == 0 {
		lacks = append(lacks, "AES key wrap 0x2109, 0x210A, 0x210B and RSA_AES_KEY_WRAP (no copies by wrapping: replication: native)")
	}
	what := fmt.Sprintf("%d; all that we use are there", len(list))
	if len(lacks) > 0 {
		what = fmt.Sprintf("%d; missing: %s", len(list), strings.Join(lacks, "; "))
	}
	if must {
		x := explanations[pkcs11.CKR_MECHANISM_INVALID]
		e.fail(x.name, x.cause, x.next, "%s", what)
		return
	}
	e.ok("%s", what)
}

// random looks for what no working source gives (see testRandom).
func (e *examiner) random() {
	e.begin("random source", "C_GenerateRandom")
	const n = 32
	var last []byte
	for range 3 {
		b, err := e.m.GenerateRandom(e.tok.session, n)
		if rv, is := returnCode(err); is && (rv == pkcs11.CKR_RANDOM_NO_RNG || rv == pkcs11.CKR_FUNCTION_NOT_SUPPORTED) {
			e.ok("the token keeps it to itself")
			return
		}
		if !e.check(err) {
			return
		}
		if len(b) != n || bytes.Count(b, b[:1]) > n/4 || bytes.Equal(b, last) {
			e.fail("RANDOM_REPEATS", "the random source of the HSM is broken; keys born on it are not secret", "take the HSM out of service: chancery hsm fence MEMBER; then ask the vendor, and replace the keys that were born on it", "C_GenerateRandom repeats itself")
			return
		}
		last = b
	}
	e.ok("no repetition")
}

// keys looks for the enrolled keys as a worker would, or lists what has our labels.
func (e *examiner) keys() {
	if !e.req.Enrolled {
		e.ours()
		return
	}
	if len(e.req.Keys) == 0 {
		e.skip("keys", "the database has no keys on this member")
	}
	for _, k := range e.req.Keys {
		e.begin("key "+k.Name, "C_FindObjects")
		e.key(k)
	}
}

func (e *examiner) key(k named) {
	repair := "chancery key repair " + shellWord(k.Name) + " --member MEMBER"
	pub, alg, err := parseSPKI(k.Pin.SPKI, k.Pin.Algorithm)
	if err != nil {
		e.fail("DATABASE", "the database was changed by hand", "chancery audit verify", "the database holds no key: %v", err)
		return
	}
	h, err := e.tok.findPrivate(k.Pin)
	if errors.Is(err, errAbsent) {
		e.fail("KEY_ABSENT", "it was deleted on the token, or the token was restored from before its birth", repair, "%v", err)
		return
	}
	if _, is := returnCode(err); is && !e.check(err) {
		return
	}
	if err != nil {
		e.fail("KEY_AMBIGUOUS", "somebody made another key with its identifier", "pkcs11-tool --module MODULE --token-label TOKEN --login --list-objects", "%v", err)
		return
	}
	e.begin(e.now.Step, "C_GetAttributeValue")
	if err := e.tok.hasPublic(h, k.Pin, pub); err != nil {
		if _, is := returnCode(err); is {
			e.check(err)
			return
		}
		e.fail("KEY_FOREIGN", "another key has its identifier on this token", repair, "%v", err)
		return
	}
	if err := e.tok.permits(h, alg); err != nil {
		e.fail("KEY_ATTRIBUTES", "the key was changed on the token, or made by another tool", repair, "%v", err)
		return
	}
	lines, err := e.tok.snapshot(h)
	if !e.check(err) {
		return
	}
	var accepted []string
	switch {
	case k.Pin.Adopted != nil:
		accepted = k.Pin.Adopted.Weak
	case e.req.Weak:
		accepted = acceptable
	}
	if weak := weaknesses(lines, accepted); len(weak) > 0 {
		e.fail("KEY_ATTRIBUTES", "the key was changed on the token, or made by another tool", repair, "attributes are too weak: %s", strings.Join(weak, ", "))
		return
	}
	e.ok("%s for %s, public key and attributes as enrolled", alg.name, k.Purpose)
}

// ours lists the keys with our labels.
func (e *examiner) ours() {
	e.begin("keys", "C_FindObjects")
	var hs []pkcs11.ObjectHandle
	for _, class := range []uint{pkcs11.CKO_PRIVATE_KEY, pkcs11.CKO_SECRET_KEY} {
		of, err := e.tok.findEvery([]*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, class)})
		if !e.check(err) {
			return
		}
		hs = append(hs, of...)
	}
	var labels []string
	for _, h := range hs {
		v, err := e.tok.attributes(h, pkcs11.CKA_LABEL)
		if !e.check(err) {
			return
		}
		if label := string(v[pkcs11.CKA_LABEL]); strings.HasPrefix(label, "chancery:") {
			labels = append(labels, label)
		}
	}
	slices.Sort(labels)
	e.ok("%d private and secret keys, %d of them ours: %s", len(hs), len(labels), strings.Join(labels, ", "))
}

// signature lets a key sign that is thrown away again: keys of the cluster sign only
// where it is counted (P1), and nobody counts here.
func (e *examiner) signature() {
	e.begin("signature", "C_GenerateKeyPair", true)
	alg, err := algorithmByName(ProbeAlgorithm)
	if !e.check(err) {
		return
	}
	p, err := e.tok.throwAway(alg, simplePrivate())
	if !e.check(err) {
		return
	}
	defer p.destroy(e.tok)
	text := make([]byte, 32)
	rand.Read(text)
	e.begin("signature", "C_Sign")
	right, err := e.tok.signsWith(p.private, alg, p.key, text)
	if !e.check(err) {
		return
	}
	if !right {
		x := explanations[pkcs11.CKR_SIGNATURE_INVALID]
		e.fail(x.name, x.cause, x.next, "the signature does not verify with the public key")
		return
	}
	e.ok("by a key that was thrown away again, verified outside the HSM")
}

// signsWith makes one signature and verifies it here.
func (t *token) signsWith(h pkcs11.ObjectHandle, alg *algorithm, pub any, text []byte) (bool, error) {
	digest := alg.digest(text)
	raw, err := t.sign(t.session, &workerKey{handle: h, alg: alg, mech: alg.mechanism()}, digest)
	if err != nil {
		return false, err
	}
	sig, err := alg.output(raw)
	return err == nil && alg.verify(pub, digest, sig), nil
}
