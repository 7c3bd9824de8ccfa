package test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestHSMRepair loses one copy of a key: verify finds it, the officers have it made
// anew, and the other member signs all the while.
func TestHSMRepair(t *testing.T) {
	s := newSite(t)
	s.start()
	cli := commandLine{t, s}
	cli.run(0, "hsm", "verify")
	var k struct{ ID string }
	if err := json.Unmarshal([]byte(cli.run(0, "key", "show", "document", "--json")), &k); err != nil || k.ID == "" {
		t.Fatalf("key show: %+v %v", k, err)
	}
	home := filepath.Join(s.dir, "hsm", "beta")
	remove := exec.Command("pkcs11-tool", "--module", "/usr/lib/softhsm/libsofthsm2.so", "--token-label", "chancery-dev-beta", "--login", "--pin", strings.TrimSpace(s.read("hsm", "beta", "pin")),
		"--delete-object", "--type", "privkey", "--id", k.ID)
	remove.Env = append(os.Environ(), "SOFTHSM2_CONF="+filepath.Join(home, "softhsm2.conf"))
	if out, err := remove.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out := cli.run(7, "hsm", "verify"); !strings.Contains(out, "document on beta") || !strings.Contains(out, "repair") {
		t.Errorf("verify:\n%s", out)
	}
	doc := filepath.Join(t.TempDir(), "contract.txt")
	if err := os.WriteFile(doc, []byte("a contract"), 0o600); err != nil {
		t.Fatal(err)
	}
	sign := func() {
		t.Helper()
		cli.run(0, "sign", doc, "--key", "document", "--out", doc+".p7s")
	}
	sign()
	cli.run(1, "key", "repair", "nothing", "--member", "beta")
	cli.approve(sign, "key", "repair", "document", "--member", "beta")
	cli.run(0, "hsm", "verify")
	cli.run(0, "hsm", "drain", "alpha", "--reason", "so that beta signs")
	sign()
	s.auditVerify()
}

// TestCompletion has cobra write its scripts; no server is needed.
func TestCompletion(t *testing.T) {
	for shell, says := range map[string]string{"bash": "__start_chancery", "zsh": "#compdef chancery", "fish": "complete -c chancery"} {
		if out, code := run(t, nil, chancery, "completion", shell); code != 0 || !strings.Contains(out, says) {
			t.Errorf("completion %s: exit code %d", shell, code)
		}
	}
	out, code := run(t, nil, chancery, "__complete", "hsm", "")
	for _, word := range []string{"list", "info", "add", "drain", "remove", "fence", "admit", "verify", "split-so-pin", "share"} {
		if code != 0 || !strings.Contains(out, "\n"+word+"\t") && !strings.HasPrefix(out, word+"\t") {
			t.Errorf("hsm has no %s: exit code %d\n%s", word, code, out)
		}
	}
}
