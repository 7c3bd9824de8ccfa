package test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fail starts chancery dev, which must end with one line that says what is wrong
// and how to mend it.
func (s *site) fail(code int, says ...string) {
	s.t.Helper()
	out, got := run(s.t, nil, chancery, append([]string{"dev", "--dir", s.dir, "--https", s.https, "--http", s.http}, s.args...)...)
	var lines []string
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "chancery: ") {
			lines = append(lines, line)
		} else if !strings.HasPrefix(line, "time=") { // log lines may stand before it
			s.t.Errorf("besides the error it prints: %s", line)
		}
	}
	if got != code || len(lines) != 1 {
		s.t.Errorf("exit code %d, want %d; %d error lines, want 1:\n%s", got, code, len(lines), out)
	}
	for _, want := range says {
		if !strings.Contains(strings.Join(lines, ""), want) {
			s.t.Errorf("the error does not say %q: %s", want, lines)
		}
	}
	if strings.Contains(out, "goroutine ") || strings.Contains(out, "panic") {
		s.t.Errorf("stack trace:\n%s", out)
	}
}

func (s *site) overlay(text string) {
	s.t.Helper()
	p := filepath.Join(s.t.TempDir(), "bad.yaml")
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.args = []string{"--config", p}
}

func TestBadConfig(t *testing.T) {
	for name, c := range map[string]struct {
		yaml string
		says []string
	}{
		"unknown key":       {"acme:\n  validaton:\n    http_port: 80\n", []string{"bad.yaml", "line 2", "column 3", "validaton"}},
		"duplicate key":     {"node_id: a\nnode_id: b\n", []string{"bad.yaml", "line 2", "node_id"}},
		"wrong type":        {"acme:\n  validation:\n    http_port: eighty\n", []string{"bad.yaml", "line 3"}},
		"no YAML":           {"listen: [\n", []string{"bad.yaml", "line 1"}},
		"bad sweep":         {"ledger:\n  sweep: 2h\n", []string{"ledger.sweep", "100ms", "1m"}},
		"bad port":          {"acme:\n  validation:\n    http_port: 70000\n", []string{"http_port", "70000"}},
		"bad network":       {"acme:\n  validation:\n    allow_networks: [ten]\n", []string{"allow_networks[0]", "10.0.0.0/8"}},
		"bad URL":           {"public_url: http://localhost\n", []string{"public_url", "https://"}},
		"database unknown":  {"database: oracle:scott/tiger\n", []string{"database", "sqlite:"}},
		"pin in the URI":    {"hsm:\n  members:\n    - name: a\n      uri: pkcs11:token=x?pin-value=1234\n      pin: file:/x\n", []string{"pin-value", "file:PATH"}},
		"pin source":        {"hsm:\n  members:\n    - name: a\n      module: /x.so\n      token: x\n      pin: \"1234\"\n", []string{"pin", "file:PATH"}},
		"members are empty": {"hsm:\n  members: []\n", []string{"hsm.members"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.overlay(c.yaml)
			s.fail(3, c.says...)
			out, _ := run(t, nil, chancery, append([]string{"dev", "--dir", s.dir}, s.args...)...)
			for _, secret := range []string{"tiger", "1234"} {
				if strings.Contains(out, secret) {
					t.Errorf("the error shows the secret %q: %s", secret, out)
				}
			}
		})
	}
}

func TestBadSurroundings(t *testing.T) {
	t.Run("usage", func(t *testing.T) {
		for _, args := range [][]string{{"dev", "--nonsense"}, {"dev", "word"}, {"nonsense"}, {"dev", "--log", "loud"}, {"dev", "--https", "here", "--dir", t.TempDir()}} {
			if out, code := run(t, nil, chancery, args...); code != 2 || strings.Count(out, "\n") != 1 {
				t.Errorf("%v: exit code %d, want 2, and one line: %s", args, code, out)
			}
		}
	})
	t.Run("port in use", func(t *testing.T) {
		s := newSite(t)
		l, err := net.Listen("tcp", s.https)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		s.fail(1, "listen.https", s.https, "in use")
	})
	t.Run("folder is a file", func(t *testing.T) {
		s := newSite(t)
		if err := os.WriteFile(s.dir, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		s.fail(1, s.dir, "--dir")
	})
	t.Run("unwritable folder", func(t *testing.T) {
		s := newSite(t)
		s.dir = "/proc/chancery" // not even root can write there
		s.fail(1, s.dir, "--dir")
	})
	t.Run("missing module", func(t *testing.T) {
		s := newSite(t)
		s.overlay("hsm:\n  members:\n    - name: alpha\n      module: /usr/lib/nowhere.so\n      token: x\n      pin: file:/dev/null\n")
		s.fail(6, "/usr/lib/nowhere.so")
	})
	t.Run("second server on the same folder", func(t *testing.T) {
		s := newSite(t)
		s.start()
		o := *s
		o.cmd, o.https, o.http = nil, freeAddr(t), freeAddr(t)
		o.fail(1, "another chancery")
	})
	t.Run("older database", func(t *testing.T) {
		s := newSite(t)
		s.start()
		s.stop()
		for _, f := range []string{"chancery.db", "chancery.db-wal", "chancery.db-shm"} {
			if err := os.RemoveAll(filepath.Join(s.dir, f)); err != nil {
				t.Fatal(err)
			}
		}
		s.fail(1, "intent journal", "--dir")
		if _, err := os.Stat(filepath.Join(s.dir, "hsm", "alpha", "pin")); err != nil {
			t.Errorf("the tokens were touched: %v", err)
		}
	})
}

// TestWrongPIN: one try, exit code 6, and the token does not count a second failure.
func TestWrongPIN(t *testing.T) {
	s := newSite(t)
	s.start()
	s.stop()
	pin := filepath.Join(s.dir, "hsm", "alpha", "pin")
	good := s.read("hsm", "alpha", "pin")
	if err := os.WriteFile(pin, []byte("wrong-pin-000000\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.fail(6, "alpha", "PIN")
	if err := os.WriteFile(pin, []byte(good), 0o600); err != nil {
		t.Fatal(err)
	}
	s.start()
}
