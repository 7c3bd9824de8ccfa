package hsmstore_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/hsmstore"
	"chancery/test/hsmfault"

	"github.com/miekg/pkcs11"
)

func qualify(t *testing.T, m hsmstore.MemberConfig) hsmstore.Qualification {
	t.Helper()
	m.TokenSerial = ""
	q := hsmstore.Qualify(t.Context(), m, hsmstore.DoctorOptions{Timeout: 5 * time.Second})
	t.Logf("%s", q.Markdown())
	j, err := json.Marshal(q)
	must(err)
	for _, s := range []hsmstore.Secret{m.PIN, m.SOPIN} {
		if s == nil {
			continue
		}
		pin, err := s()
		must(err)
		if pin != "" && (strings.Contains(string(j), pin) || strings.Contains(q.Markdown(), pin)) {
			t.Error("a PIN is in the report")
		}
	}
	if !strings.Contains(q.Markdown(), string(q.Verdict)) || len(q.Why) == 0 {
		t.Error("no verdict, or no reason for it")
	}
	return q
}

func (x *examination) objects(t *testing.T) int {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(x.dir, "hsm", "m2", "tokens", "*", "*.object"))
	must(err)
	return len(all)
}

func weak(q hsmstore.Qualification, what string) bool {
	return slices.ContainsFunc(q.Weaknesses, func(w hsmstore.Weakness) bool { return strings.Contains(w.What, what) && w.Means != "" })
}

// SoftHSM copies by wrapping, and a refused weak unwrap proves it.
func TestQualifySoftHSM(t *testing.T) {
	x := newExamination(t)
	before := x.objects(t)
	q := qualify(t, x.m)
	if q.Verdict != hsmstore.VerdictWrap {
		t.Errorf("%s: %v", q.Verdict, q.Why)
	}
	if len(q.Facts.Algorithms) != len(hsmstore.Algorithms()) || slices.ContainsFunc(q.Facts.Algorithms, func(a hsmstore.AlgorithmFacts) bool { return !a.OK || a.Generate == 0 || a.Sign == 0 }) {
		t.Errorf("algorithms: %+v", q.Facts.Algorithms)
	}
	for _, c := range q.Facts.Checks {
		if !c.Known || !c.Honoured {
			t.Errorf("%+v", c)
		}
	}
	if len(q.Wrapping.Keys) != 3 || q.Wrapping.Keys[2].Weak || q.Wrapping.Keys[0].Weak || q.Wrapping.Keys[1].Weak {
		t.Errorf("wrapping: %+v", q.Wrapping)
	}
	if q.Facts.Sessions.Opened < 200 || q.Facts.Latency == 0 || len(q.Facts.Rates) != 3 || q.Facts.Rates[2].PerSecond == 0 {
		t.Errorf("%+v %+v", q.Facts.Sessions, q.Facts.Rates)
	}
	if after := x.objects(t); after != before {
		t.Errorf("%d objects on the token before, %d after", before, after)
	}
}

// Without the SO PIN nothing is claimed about copies by wrapping.
func TestQualifyWithoutSO(t *testing.T) {
	x := newExamination(t)
	x.m.SOPIN = nil
	x.ctl["m2"].SetSessionCap(20)
	q := qualify(t, x.m)
	if q.Verdict != hsmstore.VerdictNative || q.Wrapping.Tried || !slices.ContainsFunc(q.Why, func(s string) bool { return strings.Contains(s, "--so-pin") }) {
		t.Errorf("%s: %v", q.Verdict, q.Why)
	}
	if q.Facts.Sessions.Opened != 20 || !strings.Contains(q.Facts.Sessions.Limit, "CKR_SESSION_COUNT") {
		t.Errorf("%+v", q.Facts.Sessions)
	}
}

// An HSM whose keys cannot leave is a native member.
func TestQualifyNative(t *testing.T) {
	x := newExamination(t)
	x.ctl["m2"].SetNoExport(true)
	x.ctl["m2"].HideMechanisms(t, 0x2109, 0x210A, 0x210B)
	q := qualify(t, x.m)
	if q.Verdict != hsmstore.VerdictNative || !weak(q, hsmstore.CheckWrapTemplate) {
		t.Errorf("%s: %v", q.Verdict, q.Why)
	}
}

// An algorithm that the HSM does not have is a weakness, not the end.
func TestQualifyFewAlgorithms(t *testing.T) {
	x := newExamination(t)
	x.ctl["m2"].HideMechanisms(t, 0x1055, pkcs11.CKM_RSA_PKCS_PSS)
	q := qualify(t, x.m)
	if q.Verdict != hsmstore.VerdictWrap || !weak(q, "Ed25519") || !weak(q, "RSA-PSS-3072") {
		t.Errorf("%s: %v: %+v", q.Verdict, q.Why, q.Weaknesses)
	}
}

// NSS lets its user take out a key that may not leave, by itself or as a copy that may.
func TestQualifyNSS(t *testing.T) {
	m := newNSS(t, copyCluster(t), "nss")
	m.WeakUnwrap = false
	q := qualify(t, m)
	if q.Verdict != hsmstore.VerdictNone || !weak(q, hsmstore.CheckUnextractable) || !weak(q, hsmstore.CheckCopy) || !weak(q, "the private key leaves") || !weak(q, hsmstore.CheckTrusted) || !weak(q, hsmstore.CheckWrapTrusted) || !weak(q, hsmstore.CheckAllowed) || !weak(q, "Ed25519") {
		t.Errorf("%s: %v", q.Verdict, q.Why)
	}
}

// What crashes or hangs in the middle is not usable; what was found out before stands.
func TestQualifyCrashAndHang(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*hsmfault.Control)
		why    string
	}{
		"crash": {func(c *hsmfault.Control) { c.Crash(hsmfault.GenerateKey, hsmfault.Segfault, 1) }, "C_GenerateKey SIGSEGV"},
		"hang":  {func(c *hsmfault.Control) { c.Hang(hsmfault.GenerateKey) }, "C_GenerateKey HANG"},
		"wrong": {func(c *hsmfault.Control) { c.WrongSignatures(hsmfault.OtherData, hsmfault.Always) }, "CKR_SIGNATURE_INVALID"},
	} {
		t.Run(name, func(t *testing.T) {
			x := newExamination(t)
			tc.change(x.ctl["m2"])
			began := time.Now()
			q := qualify(t, x.m)
			if q.Verdict != hsmstore.VerdictNone || !strings.Contains(q.Why[0], tc.why) || !weak(q, tc.why) {
				t.Errorf("%s: %v", q.Verdict, q.Why)
			}
			if name != "wrong" && len(q.Facts.Algorithms) == 0 {
				t.Error("what was known before is lost")
			}
			if took := time.Since(began); took > 30*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
	if _, err := os.Stat("core"); err == nil {
		t.Error("a core dump is left")
	}
}

// A wrong SO PIN is tried once; nothing is claimed about copies then.
func TestQualifyWrongSOPIN(t *testing.T) {
	x := newExamination(t)
	x.m.SOPIN = func() (string, error) { return "wrong-so-4711", nil }
	q := qualify(t, x.m)
	if q.Verdict != hsmstore.VerdictNative || !strings.Contains(q.Wrapping.Error, "PIN") || !weak(q, "wrapping") {
		t.Errorf("%s: %v: %+v", q.Verdict, q.Why, q.Wrapping)
	}
	if n := x.ctl["m2"].Count(hsmfault.Login); n != 2 { // the user's, and this one
		t.Errorf("C_Login was called %d times", n)
	}
}
