package hsmstore

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// softHSMPaths are where distributions put SoftHSM's module.
var softHSMPaths = []string{"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so", "/usr/local/lib/softhsm/libsofthsm2.so"}

// WriteSoftHSMConf lays out DIR/hsm/<member> for a software HSM of dev or of a
// test: softhsm2.conf, tokens/, and random PINs in pin and so-pin (files 0600,
// directories 0700). What is there is kept, so it can be called at every start.
// The token itself is made by [InitToken] with the label of the result.
func WriteSoftHSMConf(dir, member string) (MemberConfig, error) {
	if err := checkName("member", member); err != nil {
		return MemberConfig{}, err
	}
	home, err := filepath.Abs(filepath.Join(dir, "hsm", member))
	if err != nil {
		return MemberConfig{}, err
	}
	c := MemberConfig{Name: member, TokenLabel: "chancery-dev-" + member, PIN: FileSecret(filepath.Join(home, "pin")), SOPIN: FileSecret(filepath.Join(home, "so-pin")),
		Env: []string{"SOFTHSM2_CONF=" + filepath.Join(home, "softhsm2.conf")}, JournalPath: filepath.Join(home, "worker.journal")}
	for _, p := range softHSMPaths {
		if _, err := os.Stat(p); err == nil {
			c.Module = p
			break
		}
	}
	if c.Module == "" {
		return MemberConfig{}, fmt.Errorf("%w: SoftHSM is not installed (looked for %v); apt install softhsm2", ErrModule, softHSMPaths)
	}
	tokens := filepath.Join(home, "tokens")
	if err := os.MkdirAll(tokens, 0o700); err != nil {
		return MemberConfig{}, fmt.Errorf("making the token directory: %w", err)
	}
	files := map[string]string{"softhsm2.conf": "directories.tokendir = " + tokens + "\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n",
		"pin": rand.Text() + "\n", "so-pin": rand.Text() + "\n"}
	for name, text := range files {
		if err := writeNew(filepath.Join(home, name), text); err != nil {
			return MemberConfig{}, fmt.Errorf("laying out member %s: %w", member, err)
		}
	}
	return c, nil
}

// writeNew writes a file unless it is there; nothing ever sees half of it.
func writeNew(path, text string) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
