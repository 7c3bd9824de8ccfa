package hsmstore

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"
)

// Every code of the standard's header that a module can give is explained, under its name.
func TestReturnCodesExplained(t *testing.T) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/miekg/pkcs11").Output()
	if err != nil {
		t.Fatal(err)
	}
	header, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "pkcs11t.h"))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, m := range regexp.MustCompile(`#define (CKR_\w+)\s+0x([0-9A-F]+)UL`).FindAllStringSubmatch(string(header), -1) {
		rv, err := strconv.ParseUint(m[2], 16, 32)
		if err != nil {
			t.Fatal(err)
		}
		if rv == pkcs11.CKR_OK || rv == pkcs11.CKR_VENDOR_DEFINED {
			continue
		}
		n++
		x, known := explanations[pkcs11.Error(rv)]
		if !known || x.name != m[1] {
			t.Errorf("%s (%#x) is explained as %q", m[1], rv, x.name)
		}
		if known && (x.meaning == "" || x.cause == "" || x.next == "") {
			t.Errorf("%s: %+v", m[1], x)
		}
	}
	if n < 45 {
		t.Errorf("only %d codes were found", n)
	}
	for rv, want := range map[pkcs11.Error]string{0x80000000: "CKR_VENDOR_DEFINED+0x0", 0x80000123: "CKR_VENDOR_DEFINED+0x123", 0xFFFF: "0xffff"} {
		if x := explain(rv); x.name != want || x.meaning == "" || x.cause == "" || x.next == "" {
			t.Errorf("%#x: %+v", uint(rv), x)
		}
	}
}

// Names with anything in them stay one word of the shell.
func TestHints(t *testing.T) {
	m := MemberConfig{Name: "alpha", Module: "/opt/a b/x.so", TokenLabel: "it's; rm -rf /"}
	got := m.hints().Replace("ldd MODULE --token TOKEN --member MEMBER")
	if want := `ldd '/opt/a b/x.so' --token 'it'\''s; rm -rf /' --member alpha`; got != want {
		t.Errorf("%s\n%s", got, want)
	}
}

// What the flags of a token say about its PIN decides whether the PIN is tried.
func TestFlagsBeforeLogin(t *testing.T) {
	for _, tc := range []struct {
		flags uint
		code  string
		login bool
	}{
		{pkcs11.CKF_TOKEN_INITIALIZED | pkcs11.CKF_USER_PIN_INITIALIZED, "", true},
		{pkcs11.CKF_USER_PIN_COUNT_LOW, "", true},
		{pkcs11.CKF_SO_PIN_LOCKED, "", true},
		{pkcs11.CKF_USER_PIN_COUNT_LOW | pkcs11.CKF_USER_PIN_FINAL_TRY, "CKF_USER_PIN_FINAL_TRY", false},
		{pkcs11.CKF_USER_PIN_LOCKED | pkcs11.CKF_USER_PIN_FINAL_TRY, "CKF_USER_PIN_LOCKED", false},
		{pkcs11.CKF_ERROR_STATE, "CKF_ERROR_STATE", false},
	} {
		if code, detail, login := flagTrouble(tc.flags); code != tc.code || login != tc.login || (detail == "") != login {
			t.Errorf("flags %#x: %s, %q, login %t", tc.flags, code, detail, login)
		}
	}
}
