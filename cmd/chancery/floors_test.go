package main

import (
	"os/exec"
	"strings"
	"testing"
)

// floors lists the house from the ground up. A package imports only from floors
// below its own, so that an arrow never points up and no circle can form.
var floors = [][]string{
	{"audit", "migrations", "templates"},
	{"admin"},
	{"hsmstore"},
	{"ca"},
	{"acme", "signing", "web/console/oidc", "web/console/passkey", "web/console/sessions"},
	{"web/console"},
	{"web", "dbstore"},
	{"cmd/chancery"},
}

// only names the one room that may import a dependency, and why.
var only = map[string]struct{ room, why string }{
	"github.com/ThalesGroup/crypto11":                {"hsmstore", "no other code may reach a key (P1, P5)"},
	"github.com/miekg/pkcs11":                        {"hsmstore", "no other code may reach a key (P1, P5)"},
	"gorm.io/gorm":                                   {"dbstore", "all SQL is in one room"},
	"gorm.io/driver/sqlite":                          {"dbstore", "all SQL is in one room"},
	"github.com/mattn/go-sqlite3":                    {"dbstore", "all SQL is in one room"},
	"database/sql":                                   {"dbstore", "all SQL is in one room"},
	"github.com/cloudflare/circl/secretsharing":      {"hsmstore", "shares of a SO PIN are joined in ceremony processes only"},
	"github.com/prometheus/client_golang/prometheus": {"cmd/chancery", "rooms count in plain values; how they are shown is the program's affair"},
	"github.com/go-webauthn/webauthn/webauthn":       {"web/console/passkey", "ceremonies of passkeys are in one room"},
	"github.com/coreos/go-oidc/v3/oidc":              {"web/console/oidc", "who signs in is decided in one room"},
	"github.com/labstack/echo/v4":                    {"web", "the HTTP framework can be changed in one room"},
}

// banned is imported by nobody.
var banned = map[string]string{
	"go.step.sm/crypto/kms/pkcs11": "it opens the HSM a second time, past the door",
}

func TestFloors(t *testing.T) {
	const mod = "chancery/"
	floor := map[string]int{}
	for i, f := range floors {
		for _, p := range f {
			floor[p] = i + 1
		}
	}
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, mod+"...").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		p := strings.TrimPrefix(f[0], mod)
		if p == "test" || strings.HasPrefix(p, "test/") {
			continue // tests on real parts see all floors
		}
		if strings.HasPrefix(p, "cmd/chancery-verify") { // a house of its own: the second implementation shares nothing with the first
			for _, imp := range f[1:] {
				if strings.HasPrefix(imp, mod) && !strings.HasPrefix(imp, mod+"cmd/chancery-verify/") {
					t.Errorf("%s imports %s: a verifier that shares code with what it verifies shares its faults", p, imp)
				}
			}
			continue
		}
		if floor[p] == 0 {
			t.Errorf("%s is on no floor", p)
		}
		for _, imp := range f[1:] {
			if q, ok := strings.CutPrefix(imp, mod); ok && floor[q] >= floor[p] {
				t.Errorf("%s (floor %d) imports %s (floor %d): imports point down only", p, floor[p], q, floor[q])
			}
			if o, ok := only[imp]; ok && o.room != p {
				t.Errorf("%s imports %s, which only %s may: %s", p, imp, o.room, o.why)
			}
			if why, ok := banned[imp]; ok {
				t.Errorf("%s imports %s: %s", p, imp, why)
			}
		}
	}
}
