package test

import (
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
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

// completed is what the shell offers for a command line.
func completed(t *testing.T, args ...string) (offered []string) {
	t.Helper()
	c := exec.Command(chancery, append([]string{"__complete"}, args...)...)
	c.Dir = t.TempDir()
	out, err := c.Output() // standard error is cobra's own remark
	if err != nil {
		t.Fatalf("__complete %v: %v", args, err)
	}
	for line := range strings.Lines(string(out)) {
		if word, _, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t"); !strings.HasPrefix(word, ":") {
			offered = append(offered, word)
		}
	}
	return offered
}

// TestCompletionOfNames asks a running server for what stands behind commands and flags.
func TestCompletionOfNames(t *testing.T) {
	s := newSite(t)
	s.start()
	cli := commandLine{t, s}
	cli.run(0, "hsm", "drain", "beta", "--reason", "test")
	cli.run(0, "key", "disable", "document", "--reason", "test")
	var asked struct{ ID string }
	if err := json.Unmarshal([]byte(lastObject(cli.run(5, "key", "generate", "contracts", "--json"))), &asked); err != nil || asked.ID == "" {
		t.Fatal(err)
	}

	for _, tc := range []struct {
		typed string
		want  []string
		more  bool // others may be offered too
	}{
		{"hsm info ", []string{"alpha", "beta"}, false},
		{"hsm drain ", []string{"alpha"}, false},
		{"hsm admit ", []string{"beta"}, false},
		{"hsm remove b", []string{"beta"}, false},
		{"hsm remove a", nil, false},
		{"hsm drain alpha ", nil, false},
		{"hsm backup ", nil, false},
		{"hsm add ", nil, false},
		{"key show doc", []string{"document"}, false},
		{"key disable d", nil, false},
		{"key enable ", []string{"document"}, false},
		{"key destroy d", []string{"document"}, false},
		{"key repair document --member ", []string{"alpha", "beta"}, false},
		{"key generate new --members alpha,", []string{"alpha,alpha", "alpha,beta"}, false},
		{"key generate new --algorithm P-", []string{"P-256", "P-384", "P-521"}, false},
		{"key generate new --purpose ", []string{"document", "code", "ocsp", "timestamp"}, true},
		{"key generate ", nil, false},
		{"approve show ", []string{asked.ID}, false},
		{"approve sign ", []string{asked.ID}, false},
		{"approve reject x", nil, false},
		{"approve sign " + asked.ID + " --officer ", []string{"officer-1", "officer-2"}, false},
		{"approve list --state p", []string{"pending"}, false},
		{"sign f --key ", []string{"document"}, false},
		{"doctor --member ", []string{"alpha", "beta"}, false},
	} {
		words := strings.Split(tc.typed, " ")
		got := completed(t, append(append(words[:len(words)-1:len(words)-1], "--dir", s.dir), words[len(words)-1])...)
		if last := words[len(words)-2]; strings.HasPrefix(last, "--") { // the flag stands before its value
			got = completed(t, append([]string{words[0], words[1], "--dir", s.dir}, words[2:]...)...)
			if words[0] == "doctor" || words[0] == "sign" {
				got = completed(t, append([]string{words[0], "--dir", s.dir}, words[1:]...)...)
			}
		}
		for _, w := range tc.want {
			if !slices.Contains(got, w) {
				t.Errorf("%q does not offer %s: %q", tc.typed, w, got)
			}
		}
		if !tc.more && len(got) != len(tc.want) {
			t.Errorf("%q offers %q", tc.typed, got)
		}
	}
	// On a terminal a waiting command says for what, on a line that is gone at its end.
	if script, err := exec.LookPath("script"); err == nil {
		typescript := filepath.Join(t.TempDir(), "typescript")
		c := exec.Command(script, "-qec", chancery+" hsm verify --json --dir "+s.dir+" 2>"+filepath.Join(t.TempDir(), "piped"), typescript)
		out, err := c.CombinedOutput()
		if err != nil || strings.Contains(string(out), "is checked") {
			t.Errorf("hsm verify with standard error in a file: %v\n%q", err, out)
		}
		c = exec.Command(script, "-qec", chancery+" hsm verify --dir "+s.dir, typescript)
		c.Env = append(os.Environ(), "TERM=xterm")
		out, err = c.CombinedOutput()
		if text := string(out); err != nil || !strings.Contains(text, "\r\x1b[Kevery key is checked on every member … 0s") || !strings.Contains(text, "\r\x1b[Klooked at") {
			t.Errorf("hsm verify on a terminal: %v\n%q", err, out)
		}
	}
	text := s.read("chancery.yaml")
	if err := os.WriteFile(filepath.Join(s.dir, "chancery.yaml"), []byte(strings.Replace(text, "members:", "members:\n  - {name: gamma, module: /m.so, token: g, pin: 'file:/p'}", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := completed(t, "hsm", "add", "--dir", s.dir, ""); !slices.Equal(got, []string{"gamma"}) {
		t.Errorf("hsm add offers %q", got)
	}
	// Nobody answers: nothing is offered, at once or after two seconds.
	stuck, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer stuck.Close()
	for _, server := range []string{"https://127.0.0.1:1", "https://" + stuck.Addr().String()} {
		began := time.Now()
		if got := completed(t, "hsm", "drain", "--server", server, "--token-file", filepath.Join(s.dir, "admin.token"), "--roots", filepath.Join(s.dir, "root.pem"), ""); len(got) != 0 {
			t.Errorf("%s offers %q", server, got)
		}
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("%s took %v", server, took)
		}
	}
}

// TestCompletion has cobra write its scripts; no server is needed.
func TestCompletion(t *testing.T) {
	for shell, says := range map[string]string{"bash": "__start_chancery", "zsh": "#compdef chancery", "fish": "complete -c chancery"} {
		if out, code := run(t, nil, chancery, "completion", shell); code != 0 || !strings.Contains(out, says) {
			t.Errorf("completion %s: exit code %d", shell, code)
		}
	}
	out, code := run(t, nil, chancery, "__complete", "hsm", "")
	for _, word := range []string{"list", "info", "add", "drain", "remove", "fence", "admit", "verify", "split-so-pin", "share", "ceremonies"} {
		if code != 0 || !strings.Contains(out, "\n"+word+"\t") && !strings.HasPrefix(out, word+"\t") {
			t.Errorf("hsm has no %s: exit code %d\n%s", word, code, out)
		}
	}
}
