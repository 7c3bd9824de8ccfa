package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestSecondImplementation holds that chancery-verify shares no code with what it
// checks: nothing of this module outside its folder, and of others only what reads
// signed notes, Merkle trees and Unicode's normal form C (which the standard library lacks).
func TestSecondImplementation(t *testing.T) {
	allowed := map[string]string{
		"golang.org/x/mod/sumdb/note":          "signed notes",
		"golang.org/x/mod/sumdb/tlog":          "hashes and tiles",
		"golang.org/x/text/unicode/norm":       "normal form C of texts in leaves",
		"golang.org/x/text/transform":          "used by norm",
		"golang.org/x/mod/internal/lazyregexp": "",
	}
	cmd := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range strings.Fields(string(out)) {
		if _, ok := allowed[p]; !ok && p != "chancery/cmd/chancery-verify" && !strings.HasPrefix(p, "chancery/cmd/chancery-verify/") {
			t.Errorf("chancery-verify depends on %s", p)
		}
	}
	cmd = exec.Command("go", "list", "-deps", "-f", "{{.ImportPath}}", ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err = cmd.Output(); err != nil {
		t.Fatal(err)
	}
	for _, p := range strings.Fields(string(out)) {
		if p == "net" || p == "net/http" || p == "database/sql" || p == "os/exec" || p == "plugin" {
			if p == "net" {
				continue // crypto/x509 names IP addresses with it; nothing connects
			}
			t.Errorf("chancery-verify depends on %s", p)
		}
	}
}

func TestUsage(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		args []string
		code int
		says string
	}{
		{nil, exitError, "usage:"},
		{[]string{"--nothing"}, exitError, "usage:"},
		{[]string{"--help"}, exitOK, "usage:"},
		{[]string{"--version"}, exitOK, "chancery-verify"},
		{[]string{filepath.Join(dir, "none")}, exitError, "no such file"},
		{[]string{file}, exitError, "not a directory"},
		{[]string{dir}, exitError, "export.json"},
		{[]string{"--json", dir}, exitError, `"ok":false`},
		{[]string{dir, file}, exitError, "neither PEM nor DER"},
		{[]string{"--state", file, dir}, exitError, "state file"},
		{[]string{"--trusted-checkpoint", filepath.Join(dir, "none"), dir}, exitError, "no such file"},
	} {
		var out bytes.Buffer
		if code := run(x.args, &out, &out); code != x.code || !strings.Contains(out.String(), x.says) {
			t.Errorf("%q: exit code %d, want %d and %q\n%s", x.args, code, x.code, x.says, out.String())
		}
	}
	// A folder whose files are something else than files.
	for _, name := range []string{"chancery/export.json", "checkpoint"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	if code := run([]string{dir}, &out, &out); code != exitError || !strings.Contains(out.String(), "not a plain file") {
		t.Errorf("exit code %d: %s", code, out.String())
	}
}
