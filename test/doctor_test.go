package test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chancery/hsmstore"
)

// TestDoctor looks at the HSMs of a dev folder: beside the running server, without it,
// and with one thing after another broken.
func TestDoctor(t *testing.T) {
	s := newSite(t)
	s.start()
	pins := map[string]string{}
	all, err := filepath.Glob(filepath.Join(s.dir, "hsm", "*", "*pin"))
	if err != nil || len(all) < 4 {
		t.Fatalf("%d PIN files, %v", len(all), err)
	}
	for _, p := range all {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		pins[p] = strings.TrimSpace(string(b))
	}
	const wrong = "4711-wrong"
	doctor := func(want int, args ...string) string {
		t.Helper()
		out, code := run(t, nil, chancery, append([]string{"doctor"}, args...)...)
		if code != want {
			t.Errorf("chancery doctor %v: exit code %d, %d expected\n%s", args, code, want, out)
		}
		for p, pin := range pins {
			if strings.Contains(out, pin) {
				t.Errorf("the PIN of %s is in the output", p)
			}
		}
		if strings.Contains(out, wrong) {
			t.Error("the wrong PIN is in the output")
		}
		return out
	}
	if out := doctor(0, "--dir", s.dir); !strings.Contains(out, "✓ key root") || !strings.Contains(out, "HSM member beta") || strings.Contains(out, "✗") {
		t.Errorf("beside the server:\n%s", out)
	}
	s.stop()

	var got struct {
		OK      bool                 `json:"ok"`
		Members []hsmstore.Diagnosis `json:"members"`
	}
	if err := json.Unmarshal([]byte(doctor(0, "--dir", s.dir, "--json", "--member", "beta")), &got); err != nil || !got.OK || len(got.Members) != 1 || got.Members[0].Member != "beta" || len(got.Members[0].Steps) < 15 {
		t.Errorf("%v: %+v", err, got)
	}
	if out := doctor(0, "--dir", s.dir, "--no-login"); !strings.Contains(out, "--no-login") {
		t.Errorf("without login:\n%s", out)
	}

	alpha := filepath.Join(s.dir, "hsm", "alpha", "pin")
	if err := os.WriteFile(alpha, []byte(wrong+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out := doctor(6, "--dir", s.dir)
	for _, want := range []string{"✗ login", "C_Login: CKR_PIN_INCORRECT", "used one try", "cause:", "next:", "HSM member beta", "✓ signature"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing:\n%s", want, out)
		}
	}
	t.Logf("%s", out)
	if err := os.WriteFile(alpha, []byte(pins[alpha]+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(alpha, 0o644); err != nil {
		t.Fatal(err)
	}
	if out := doctor(6, "--dir", s.dir, "--member", "alpha"); !strings.Contains(out, "0600") {
		t.Errorf("PIN file for all to read:\n%s", out)
	}
	if err := os.Chmod(alpha, 0o600); err != nil {
		t.Fatal(err)
	}

	// Its tokens are gone.
	tokens := filepath.Join(s.dir, "hsm", "alpha", "tokens")
	if err := os.Rename(tokens, tokens+".away"); err != nil {
		t.Fatal(err)
	}
	if out := doctor(6, "--dir", s.dir, "--member", "alpha"); !strings.Contains(out, "token folder") {
		t.Errorf("token folder gone:\n%s", out)
	}
	if err := os.Rename(tokens+".away", tokens); err != nil {
		t.Fatal(err)
	}

	doctor(2, "--dir", s.dir, "--member", "gamma")
	doctor(2, "--dir", s.dir, "--timeout", "0s")
	doctor(2, "--unknown")
	doctor(3, "--dir", filepath.Join(s.dir, "nothing"))
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte("hsm: {members: [{name: x, colour: red}]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	doctor(3, "--config", bad)
	// No database yet: what has our labels is listed.
	if err := os.Rename(filepath.Join(s.dir, "chancery.db"), filepath.Join(s.dir, "away.db")); err != nil {
		t.Fatal(err)
	}
	if out := doctor(0, "--dir", s.dir, "--member", "alpha"); !strings.Contains(out, "the database cannot be read") || !strings.Contains(out, "chancery:issuer:root") {
		t.Errorf("without the database:\n%s", out)
	}
	if _, err := os.Stat(filepath.Join(s.dir, "chancery.db")); err == nil {
		t.Error("the doctor made a database")
	}
}

// TestQualify finds out about a token of a dev folder as if nobody knew it.
func TestQualify(t *testing.T) {
	s := newSite(t)
	s.start()
	s.stop()
	home := filepath.Join(s.dir, "hsm", "alpha")
	m, err := hsmstore.WriteSoftHSMConf(s.dir, "alpha")
	if err != nil {
		t.Fatal(err)
	}
	report := filepath.Join(t.TempDir(), "report.md")
	args := []string{"hsm", "qualify", "--module", m.Module, "--token", m.TokenLabel, "--pin", "file:" + filepath.Join(home, "pin"), "--env", m.Env[0]}
	out := must(t, nil, chancery, append(args, "--so-pin", "file:"+filepath.Join(home, "so-pin"), "--out", report, "--json")...)
	var q hsmstore.Qualification
	if err := json.Unmarshal([]byte(out), &q); err != nil || q.Verdict != hsmstore.VerdictWrap || len(q.Facts.Algorithms) != len(hsmstore.Algorithms()) {
		t.Errorf("%v: %s", err, out)
	}
	b, err := os.ReadFile(report)
	if err != nil || !strings.Contains(string(b), "**"+string(hsmstore.VerdictWrap)+"**") || !strings.Contains(string(b), "| RSA-4096 |") {
		t.Errorf("%v: %s", err, b)
	}
	t.Logf("%s", b)
	for _, name := range []string{"pin", "so-pin"} {
		pin, err := m.PIN()
		if name == "so-pin" {
			pin, err = m.SOPIN()
		}
		if err != nil || strings.Contains(out+string(b), pin) {
			t.Errorf("%s is in the output (%v)", name, err)
		}
	}
	for _, tc := range []struct {
		args []string
		want int
		says string
	}{
		{append(args, "--out", report), 2, "exists"}, // a report is never lost
		{args, 2, "--out"},
		{append(args, "--json", "--env", "nothing"), 2, "KEY=VALUE"},
		{[]string{"hsm", "qualify", "--module", m.Module, "--token", m.TokenLabel, "--pin", "4711", "--json"}, 2, "file:PATH"},
		{append(args, "--json", "--token", "nobody"), 6, "nobody"},
		{append(args, "--json", "--module", "/nowhere.so"), 6, "ENOENT"},
	} {
		if out, code := run(t, nil, chancery, tc.args...); code != tc.want || !strings.Contains(out, tc.says) {
			t.Errorf("%v: exit code %d, %d expected:\n%s", tc.args, code, tc.want, out)
		}
	}
}
