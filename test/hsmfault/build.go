package hsmfault

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

//go:embed module.c
var source []byte

// headers is the Go module that ships the PKCS#11 headers.
const headers = "github.com/miekg/pkcs11"

// The module is never unloaded: a hung call may still be inside when its user closes it.
var flags = []string{"-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-fvisibility=hidden", "-Wl,-z,nodelete,-z,defs"}

// Build compiles the module once for each version of its source and returns the path
// of the library. It lies in the user's cache folder, which nobody else can write.
// Tests are skipped where there is no gcc.
func Build(t testing.TB) string {
	t.Helper()
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("gcc is missing, which compiles the fault-injecting PKCS#11 module; apt install gcc libc6-dev")
	}
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", headers).Output()
	include := strings.TrimSpace(string(out))
	if err != nil || include == "" {
		t.Skipf("the PKCS#11 headers of %s are not to be found (%v)", headers, err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatalf("finding the cache folder: %v", err)
	}
	key := sha256.New()
	for _, s := range append([]string{gcc, include, string(source)}, flags...) {
		key.Write([]byte(s + "\x00"))
	}
	dir := filepath.Join(cache, "chancery-hsmfault", hex.EncodeToString(key.Sum(nil)))
	lib := filepath.Join(dir, "hsmfault.so")
	if _, err := os.Stat(lib); err == nil {
		return lib
	}
	if err := compile(gcc, include, dir, lib); err != nil {
		t.Fatalf("compiling the fault-injecting PKCS#11 module: %v", err)
	}
	return lib
}

type compileError struct {
	err    error
	output []byte
}

func (e *compileError) Error() string { return e.err.Error() + "\n" + string(e.output) }

// compile makes lib in a folder of its own and renames it, so that tests that run at
// the same time never load half a library.
func compile(gcc, include, dir, lib string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(dir, "build-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	src, obj := filepath.Join(tmp, "module.c"), filepath.Join(tmp, "hsmfault.so")
	if err := os.WriteFile(src, source, 0o600); err != nil {
		return err
	}
	args := append([]string{"-I", include, "-o", obj, src}, flags...)
	if out, err := exec.Command(gcc, append(args, "-ldl", "-lpthread")...).CombinedOutput(); err != nil {
		return &compileError{err, out}
	}
	if err := os.Chmod(obj, 0o755); err != nil {
		return err
	}
	return os.Rename(obj, lib)
}
