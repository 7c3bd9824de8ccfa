package test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/hsmstore"
	"chancery/test/hsmfault"
)

// counted is a CA whose tokens keep an account of their own.
type counted struct {
	*site
	members  []string
	controls map[string]*hsmfault.Control
}

// newCounted makes one with that text in its configuration besides.
func newCounted(t *testing.T, more string, perMember func(member string) string) *counted {
	t.Helper()
	c := &counted{site: newSite(t), members: []string{"alpha", "beta"}, controls: map[string]*hsmfault.Control{}}
	module, dir := hsmfault.Build(t), t.TempDir()
	text := more + "hsm:\n  members:\n"
	for _, m := range c.members {
		c.controls[m] = hsmfault.New(t, filepath.Join(dir, m+".control"))
		home := filepath.Join(c.dir, "hsm", m)
		text += fmt.Sprintf("    - name: %s\n      module: %s\n      token: chancery-dev-%s\n      pin: file:%s/pin\n      so_pin: file:%s/so-pin\n%s      env:\n        SOFTHSM2_CONF: %s/softhsm2.conf\n",
			m, module, m, home, home, perMember(m), home)
		for _, e := range c.controls[m].Env() {
			k, v, _ := strings.Cut(e, "=")
			text += "        " + k + ": " + v + "\n"
		}
	}
	c.overlay(text)
	return c
}

// counts writes what the tokens say of all keys that the database knows.
func (c *counted) counts(path string, from time.Time) string {
	c.t.Helper()
	db := c.database()
	defer db.Close()
	members, err := db.Members(context.Background())
	if err != nil {
		c.t.Fatal(err)
	}
	keys, err := db.Keys(context.Background())
	if err != nil {
		c.t.Fatal(err)
	}
	since := ""
	if !from.IsZero() {
		since = from.UTC().Format(time.RFC3339Nano)
	}
	text := "token_serial,key_spki_sha256,count,from,to\n"
	for _, m := range members {
		for _, k := range keys {
			text += fmt.Sprintf("%s,%x,%d,%s,%s\n", m.Serial, sha256.Sum256(k.SPKI), c.controls[m.Name].Signatures(k.ID[:]), since, time.Now().UTC().Format(time.RFC3339Nano))
		}
	}
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		c.t.Fatal(err)
	}
	return path
}

func (c *counted) key(name string) (k hsmstore.KeyRecord) {
	c.t.Helper()
	db := c.database()
	defer db.Close()
	keys, err := db.Keys(context.Background())
	if err != nil {
		c.t.Fatal(err)
	}
	for _, k := range keys {
		if k.Name == name {
			return k
		}
	}
	c.t.Fatalf("no key %s", name)
	return k
}

// behind makes a signature as an insider with PIN and module would, past the server.
func (c *counted) behind(member, key string) {
	c.t.Helper()
	id := c.key(key).ID
	data, sig := filepath.Join(c.t.TempDir(), "data"), filepath.Join(c.t.TempDir(), "sig")
	if err := os.WriteFile(data, make([]byte, 32), 0o600); err != nil {
		c.t.Fatal(err)
	}
	cmd := exec.Command("pkcs11-tool", "--module", hsmfault.Build(c.t), "--token-label", "chancery-dev-"+member, "--login", "--pin", strings.TrimSpace(c.read("hsm", member, "pin")),
		"--sign", "--mechanism", "ECDSA", "--id", fmt.Sprintf("%x", id[:]), "--input-file", data, "--output-file", sig)
	cmd.Env = append(os.Environ(), append(c.controls[member].Env(), "SOFTHSM2_CONF="+filepath.Join(c.dir, "hsm", member, "softhsm2.conf"))...)
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Fatalf("pkcs11-tool: %v\n%s", err, out)
	}
	if b, err := os.ReadFile(sig); err != nil || len(b) != 64 {
		c.t.Fatalf("no signature: %v", err)
	}
}

// AUD-22: a signature that an insider makes straight on the HSM is a surplus over what
// the ledger records.
func TestAttack_AUD_22(t *testing.T) {
	t.Parallel()
	c := newCounted(t, "", func(string) string { return "" })
	c.start()
	client, token := c.client(), c.token()
	issue := func(n int) {
		t.Helper()
		for i := range n {
			if _, err := c.issue(client, token, fmt.Sprintf("n%d.example.org", i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	issue(5)
	surplus := func(want int, files ...string) string {
		t.Helper()
		args := []string{"audit", "surplus", "--dir", c.dir, "--config", c.args[1]}
		for _, f := range files {
			if !strings.HasPrefix(f, "--") {
				f = "--counts=" + f
			}
			args = append(args, f)
		}
		out, code := run(t, nil, chancery, args...)
		if code != want {
			t.Fatalf("audit surplus: exit code %d, want %d\n%s", code, want, out)
		}
		return out
	}
	birth := func(name string) string { return c.counts(filepath.Join(c.dir, name), time.Time{}) }
	out := surplus(0, birth("all.csv"))
	if strings.Contains(out, "note: ") || strings.Count(out, "ok: ") < 8 {
		t.Errorf("not all compared:\n%s", out)
	}
	// A crash in between leaves an orphan, which may have signed or not, and loses the
	// server's own counts of checkpoints.
	c.stop()
	c.env = []string{"CHANCERY_FAILPOINT=after-signature:40"}
	c.start()
	c.env = nil
	l := c.load(4)
	select {
	case <-c.exited:
		c.cmd = nil
	case <-time.After(30 * time.Second):
		t.Fatal("the failpoint was not reached")
	}
	l.end()
	c.start()
	surplus(0, birth("all.csv"))

	// What is no file of counts, or none, is told.
	if out := surplus(2); !strings.Contains(out, "--counts") {
		t.Errorf("without a file: %s", out)
	}
	bad := filepath.Join(c.dir, "bad.csv")
	if err := os.WriteFile(bad, []byte("token_serial,key_spki_sha256,count,from,to\nT1,ab,1,,2026-07-01T00:00:00Z\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := surplus(1, bad); !strings.Contains(out, "bad.csv: line 2: key_spki_sha256") {
		t.Errorf("a bad file: %s", out)
	}

	// Between two times that hold no crash: what a crash left open counts as perhaps signed.
	began := time.Now()
	c.await(5*time.Second, func() bool { return time.Now().Unix() > began.Unix()+1 }) // the ledger's times are compared by the second
	earlier := c.counts(filepath.Join(c.dir, "earlier.csv"), began)
	client = c.client()
	issue(3)
	c.behind("beta", "issuing")
	later := c.counts(filepath.Join(c.dir, "later.csv"), began)
	key := fmt.Sprintf("%x", sha256.Sum256(c.key("issuing").SPKI))
	for _, out := range []string{surplus(7, birth("all.csv")), surplus(7, earlier, later, "--skew=0s")} {
		if !strings.Contains(out, "ALARM: key issuing ("+key+")") || strings.Count(out, "ALARM") != 1 {
			t.Errorf("which key it was:\n%s", out)
		}
	}
}

// The running server reads the counts itself: no alarm under load, one for a signature
// behind its back.
func TestSurplusWhileServing(t *testing.T) {
	t.Parallel()
	file, monitor := filepath.Join(t.TempDir(), "counts.csv"), freeAddr(t)
	if err := os.WriteFile(file, []byte("token_serial,key_spki_sha256,count,from,to\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := newCounted(t, "ledger:\n  sweep: 100ms\nlisten:\n  metrics: "+monitor+"\n", func(m string) string {
		if m == "alpha" {
			return "      counts: " + file + "\n" // of both tokens
		}
		return ""
	})
	c.alarms = true
	c.start()
	l := c.load(4)
	for range 30 {
		c.counts(file, time.Time{})
		before := len(l.snapshot())
		c.await(20*time.Second, func() bool { return len(l.snapshot()) > before+20 })
	}
	l.end()
	client := c.client()
	quiet := func() {
		t.Helper()
		if _, text := c.get(client, "/readyz"); text != "ready\n" || strings.Contains(c.log.String(), "ALARM") {
			t.Fatalf("an alarm without a cause: %s", text)
		}
	}
	quiet()
	c.counts(file, time.Time{})
	c.behind("alpha", "issuing")
	quiet()                               // nobody counted it yet
	c.await(20*time.Second, func() bool { // a CRL that is signed after a reading hides one until the next
		c.counts(file, time.Time{})
		status, text := c.get(client, "/readyz")
		return status == 200 && strings.Contains(text, "alarm: surplus: key issuing (") && strings.Contains(text, ": 1 were made behind it")
	})
	if n := scrape(t, monitor).total("chancery_ledger_violations", "promise", "surplus"); n != 1 || !strings.Contains(c.log.String(), `msg="ALARM: surplus: key issuing`) {
		t.Errorf("metric %v, or no alarm in the log", n)
	}
	if _, err := c.issue(client, c.token(), "goes-on.example.org"); err != nil {
		t.Error(err)
	}

	// A file that cannot be read is an alarm of its own, which ends with it.
	if err := os.WriteFile(file, []byte("token_serial,key_spki_sha256,count,from,to,extra\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.await(20*time.Second, func() bool {
		_, text := c.get(client, "/readyz")
		return strings.Contains(text, "cannot be read") && strings.Contains(text, "made behind it") // which stands
	})
	if !strings.Contains(c.log.String(), "counts.csv: line 1: column") {
		t.Error("the log does not say what is wrong with the file")
	}
	c.counts(file, time.Time{})
	c.await(20*time.Second, func() bool { _, text := c.get(client, "/readyz"); return !strings.Contains(text, "cannot be read") })
}
