package hsmstore_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"chancery/hsmstore"
	"chancery/test/hsmfault"

	"github.com/miekg/pkcs11"
)

// examination is a member of the template cluster that the doctor looks at.
type examination struct {
	*faulty
	m hsmstore.MemberConfig
	o hsmstore.DoctorOptions
}

func newExamination(t testing.TB) *examination {
	t.Helper()
	f := copyFaulty(t)
	x := &examination{faulty: f, m: f.members[1], o: hsmstore.DoctorOptions{Keys: f.db.keys(), Timeout: 2 * time.Second}}
	for _, r := range f.db.members() {
		if r.Name == x.m.Name {
			x.m.TokenSerial = r.Serial
		} else {
			x.o.Others = append(x.o.Others, r.Serial)
		}
	}
	return x
}

// Each broken setup is named by the call that shows it, the code, a cause and a command.
func TestDoctorBrokenSetups(t *testing.T) {
	copyModule := func(t *testing.T, mode os.FileMode) string {
		t.Helper()
		b, err := os.ReadFile(hsmfault.Build(t))
		must(err)
		p := filepath.Join(t.TempDir(), "module.so")
		must(os.WriteFile(p, b, 0o600))
		must(os.Chmod(p, mode))
		return p
	}
	const wrong = "wrong-pin-4711"
	for _, tc := range []struct {
		name       string
		change     func(*testing.T, *examination)
		call, code string
		says       string // in the detail or the cause
		logins     uint64 // that reach the token
	}{
		{"missing module", func(_ *testing.T, x *examination) { x.m.Module = "/nowhere/libvendor.so" }, "open", "ENOENT", "/nowhere/libvendor.so", 0},
		{"module writable by others", func(t *testing.T, x *examination) { x.m.Module = copyModule(t, 0o777) }, "open", "UNTRUSTED", "written by others", 0},
		{"not a library", func(t *testing.T, x *examination) {
			x.m.Module = filepath.Join(t.TempDir(), "text.so")
			must(os.WriteFile(x.m.Module, []byte("no library\n"), 0o644))
		}, "dlopen", "DLOPEN", "file too short", 0},
		{"another library", func(t *testing.T, x *examination) {
			x.m.Module = filepath.Join("/usr/lib", map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]+"-linux-gnu", "libz.so.1")
			if _, err := os.Stat(x.m.Module); err != nil {
				t.Skip(err)
			}
		}, "dlopen", "DLOPEN", "no C_GetFunctionList", 0},
		{"missing dependency", func(t *testing.T, x *examination) { x.m.Module = withoutDependency(t) }, "dlopen", "DLOPEN", "libchancerymissing.so", 0},
		{"C_Initialize fails", func(_ *testing.T, x *examination) {
			x.ctl["m2"].Fail(hsmfault.Initialize, pkcs11.CKR_CANT_LOCK, hsmfault.Always)
		}, "C_Initialize", "CKR_CANT_LOCK", "several threads", 0},
		{"no token", func(_ *testing.T, x *examination) { x.ctl["m2"].SetAbsent(true) }, "C_GetTokenInfo", "CKR_TOKEN_NOT_PRESENT", "no initialized tokens", 0},
		{"no configuration of SoftHSM", func(_ *testing.T, x *examination) {
			x.m.Module, x.m.Env, x.m.TokenSerial = x.softhsm(), []string{"HOME=" + x.dir}, ""
		}, "C_GetTokenInfo", "CKR_TOKEN_NOT_PRESENT", "SOFTHSM2_CONF is not in env", 0},
		{"folder of tokens gone", func(_ *testing.T, x *examination) {
			must(os.RemoveAll(filepath.Join(x.dir, "hsm", "m2", "tokens")))
		}, "C_Initialize", "CKR_GENERAL_ERROR", "token folder", 0},
		{"other label", func(_ *testing.T, x *examination) { x.m.TokenLabel, x.m.TokenSerial = "somebody", "" }, "C_GetTokenInfo", "CKR_TOKEN_NOT_PRESENT", `"chancery-dev-m2"`, 0},
		{"foreign serial", func(_ *testing.T, x *examination) { x.ctl["m2"].SetSerial("0123456789abcdef") }, "C_GetTokenInfo", "CKR_TOKEN_NOT_RECOGNIZED", "0123456789abcdef", 0},
		{"hang in C_OpenSession", func(_ *testing.T, x *examination) { x.ctl["m2"].Hang(hsmfault.OpenSession) }, "C_OpenSession", "HANG", "did not come back", 0},
		{"no more sessions", func(_ *testing.T, x *examination) {
			x.ctl["m2"].FailOpenSession(pkcs11.CKR_SESSION_COUNT, hsmfault.Always)
		}, "C_OpenSession", "CKR_SESSION_COUNT", "no more sessions", 0},
		{"wrong PIN", func(_ *testing.T, x *examination) { x.m.PIN = func() (string, error) { return wrong, nil } }, "C_Login", "CKR_PIN_INCORRECT", "used one try", 1},
		{"locked PIN", func(_ *testing.T, x *examination) { x.ctl["m2"].FailLogin(pkcs11.CKR_PIN_LOCKED, hsmfault.Always) }, "C_Login", "CKR_PIN_LOCKED", "locked", 1},
		{"PIN file missing", func(_ *testing.T, x *examination) { x.m.PIN = hsmstore.FileSecret("/nowhere/pin") }, "C_Login", "NO_PIN", "/nowhere/pin", 0},
		{"user PIN not initialized", func(t *testing.T, x *examination) {
			x.m.TokenLabel, x.m.TokenSerial = "fresh", ""
			x.withoutPIN(t, "fresh")
		}, "C_Login", "CKR_USER_PIN_NOT_INITIALIZED", "no user PIN", 1},
		{"SIGSEGV in C_Login", func(_ *testing.T, x *examination) { x.ctl["m2"].Crash(hsmfault.Login, hsmfault.Segfault, 1) }, "C_Login", "SIGSEGV", "crashed in C_Login", 1},
		{"abort in C_GetSlotList", func(_ *testing.T, x *examination) { x.ctl["m2"].Crash(hsmfault.GetSlotList, hsmfault.Abort, 1) }, "C_GetSlotList", "SIGABRT", "crashed in C_GetSlotList", 0},
		{"no EC", func(t *testing.T, x *examination) { x.ctl["m2"].HideMechanisms(t, pkcs11.CKM_ECDSA) }, "C_GetMechanismList", "CKR_MECHANISM_INVALID", "CKM_ECDSA", 1},
		{"constant random numbers", func(_ *testing.T, x *examination) { x.ctl["m2"].ConstantRandom(7) }, "C_GenerateRandom", "RANDOM_REPEATS", "not secret", 1},
		{"repeated random numbers", func(_ *testing.T, x *examination) { x.ctl["m2"].RepeatRandom(7) }, "C_GenerateRandom", "RANDOM_REPEATS", "not secret", 1},
		{"enrolled key missing", func(_ *testing.T, x *examination) {
			k := x.o.Keys[2] // 0 and 1 are the members' own
			for i := range k.ID {
				k.ID[i] ^= 1
			}
			x.o.Keys = append(x.o.Keys, k)
		}, "C_FindObjects", "KEY_ABSENT", "deleted", 1},
		{"another key in its place", func(_ *testing.T, x *examination) {
			x.o.Keys[2].SPKI, x.o.Keys[2].Algorithm = x.o.Keys[3].SPKI, x.o.Keys[3].Algorithm
		}, "C_GetAttributeValue", "KEY_FOREIGN", "pinned", 1},
		{"wrong signature", func(_ *testing.T, x *examination) {
			x.ctl["m2"].WrongSignatures(hsmfault.FlippedBit, hsmfault.Always)
		}, "C_Sign", "CKR_SIGNATURE_INVALID", "does not verify", 1},
		{"signature fails", func(_ *testing.T, x *examination) { x.ctl["m2"].FailSign(0x80000042, hsmfault.Always) }, "C_Sign", "CKR_VENDOR_DEFINED+0x42", "vendor", 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			x := newExamination(t)
			tc.change(t, x)
			x.ctl["m2"].ResetCounts()
			d := hsmstore.Doctor(t.Context(), x.m, x.o)
			s, bad := d.Trouble()
			if !bad || d.OK {
				t.Fatalf("no trouble: %+v", d)
			}
			if s.Call != tc.call || s.Code != tc.code || s.Cause == "" || s.Next == "" || !strings.Contains(s.Detail+s.Cause, tc.says) {
				t.Errorf("%+v", s)
			}
			if n := x.ctl["m2"].Count(hsmfault.Login); n != tc.logins {
				t.Errorf("C_Login was called %d times, %d expected", n, tc.logins)
			}
			j, err := json.Marshal(d)
			must(err)
			for _, secret := range x.pins(t) {
				if strings.Contains(string(j), secret) {
					t.Errorf("a PIN is in the result: %s", j)
				}
			}
			if strings.Contains(string(j), wrong) || strings.Contains(s.Next, "MEMBER") || strings.Contains(s.Next, "MODULE") {
				t.Errorf("%s", j)
			}
		})
	}
}

// A healthy member is healthy, with and without its keys and its PIN; nothing is changed.
func TestDoctorHealthy(t *testing.T) {
	x := newExamination(t)
	for name, o := range map[string]hsmstore.DoctorOptions{"enrolled keys": x.o, "labels": {}, "no login": {NoLogin: true}} {
		x.ctl["m2"].ResetCounts()
		before := x.files(t)
		d := hsmstore.Doctor(t.Context(), x.m, o)
		if !d.OK || d.Member != "m2" {
			t.Errorf("%s: %+v", name, d)
		}
		logins := uint64(1)
		if o.NoLogin {
			logins = 0
		}
		if n := x.ctl["m2"].Count(hsmfault.Login); n != logins {
			t.Errorf("%s: %d logins", name, n)
		}
		if after := x.files(t); after != before {
			t.Errorf("%s: files before %s, after %s", name, before, after)
		}
	}
}

// files lists what lies in the token folder of the member.
func (x *examination) files(t *testing.T) string {
	t.Helper()
	var out []string
	must(filepath.WalkDir(filepath.Join(x.dir, "hsm", "m2", "tokens"), func(p string, _ os.DirEntry, err error) error {
		out = append(out, p)
		return err
	}))
	return strings.Join(out, "\n")
}

func (x *examination) pins(t *testing.T) (out []string) {
	t.Helper()
	for _, m := range x.members {
		for _, s := range []hsmstore.Secret{m.PIN, m.SOPIN} {
			v, err := s()
			must(err)
			out = append(out, v)
		}
	}
	return out
}

// softhsm is the real module.
func (x *examination) softhsm() string {
	m, err := hsmstore.WriteSoftHSMConf(x.dir, "m2")
	must(err)
	return m.Module
}

// withoutPIN makes a token that has no user PIN yet.
func (x *examination) withoutPIN(t *testing.T, label string) {
	t.Helper()
	for _, kv := range x.m.Env {
		k, v, _ := strings.Cut(kv, "=")
		t.Setenv(k, v)
	}
	so, err := x.m.SOPIN()
	must(err)
	p := pkcs11.New(x.softhsm())
	must(p.Initialize())
	defer p.Destroy()
	defer p.Finalize()
	slots, err := p.GetSlotList(true)
	must(err)
	for _, s := range slots {
		if ti, err := p.GetTokenInfo(s); err == nil && ti.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 {
			must(p.InitToken(s, so, label))
			return
		}
	}
	t.Fatal("no empty slot")
}

// withoutDependency makes a library that needs another one that is not there.
func withoutDependency(t *testing.T) string {
	t.Helper()
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("gcc is missing")
	}
	dir := t.TempDir()
	src := filepath.Join(dir, "x.c")
	must(os.WriteFile(src, []byte("int f(void) { return 1; }\n"), 0o600))
	needed, lib := filepath.Join(dir, "libchancerymissing.so"), filepath.Join(dir, "module.so")
	for _, args := range [][]string{{"-shared", "-fPIC", "-Wl,-soname,libchancerymissing.so", "-o", needed, src}, {"-shared", "-fPIC", "-Wl,--no-as-needed", "-o", lib, src, needed}} {
		if out, err := exec.Command(gcc, args...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	must(os.Remove(needed))
	must(os.Chmod(lib, 0o755))
	return lib
}

// Who ends the doctor is not told of a crash, and no process stays behind.
func TestDoctorInterrupted(t *testing.T) {
	x := newExamination(t)
	x.ctl["m2"].Hang(hsmfault.GetSlotList)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	began := time.Now()
	d := hsmstore.Doctor(ctx, x.m, x.o)
	if s, bad := d.Trouble(); !bad || s.Code != "INTERRUPTED" || s.Call != "C_GetSlotList" {
		t.Errorf("%+v", d)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("it took %v", took)
	}
	if n := x.ctl["m2"].Sessions(); n != 0 {
		t.Errorf("%d sessions are open", n)
	}
}
