package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"chancery/hsmstore"
)

// commandLine is chancery against one site.
type commandLine struct {
	t *testing.T
	s *site
}

// run runs chancery with the site's folder and wants an exit code.
func (c commandLine) run(want int, args ...string) string {
	c.t.Helper()
	out, code := run(c.t, nil, chancery, append(args, "--dir", c.s.dir)...)
	if code != want {
		c.t.Fatalf("chancery %s: exit code %d, want %d\n%s", strings.Join(args, " "), code, want, out)
	}
	return out
}

// officer are the flags of an officer.
func (c commandLine) officer(name string) []string {
	return []string{"--officer", name, "--key", filepath.Join(c.s.dir, "officers", name+".pem")}
}

// approve has both officers sign the proposal that a command makes, does meanwhile, and
// wants it carried out.
func (c commandLine) approve(meanwhile func(), args ...string) (result string) {
	c.t.Helper()
	var asked struct{ ID string }
	if err := json.Unmarshal([]byte(lastObject(c.run(5, append(args, "--json")...))), &asked); err != nil || asked.ID == "" {
		c.t.Fatalf("%s: no proposal: %v", strings.Join(args, " "), err)
	}
	for _, name := range []string{"officer-1", "officer-2"} {
		c.run(0, append([]string{"approve", "sign", asked.ID}, c.officer(name)...)...)
	}
	if meanwhile != nil {
		meanwhile()
	}
	var shown struct {
		State, Reason string
		Result        json.RawMessage
	}
	client, token := c.s.client(), c.s.token()
	eventually(c.t, func() bool {
		if _, err := c.s.api(client, token, "GET", "/api/v1/approvals/"+asked.ID, nil, &shown); err != nil {
			c.t.Fatal(err)
		}
		return shown.State == "done" || shown.State == "failed"
	})
	if shown.State != "done" {
		c.t.Fatalf("%s: %s: %s", strings.Join(args, " "), shown.State, shown.Reason)
	}
	return string(shown.Result)
}

// lastObject cuts the JSON object out of what a command printed to both outputs.
func lastObject(out string) string {
	i, j := strings.Index(out, "{"), strings.LastIndex(out, "}")
	if i < 0 || j < i {
		return out
	}
	return out[i : j+1]
}

// TestHSMLife takes HSM members and keys through their lives from the command line,
// while certificates are issued.
func TestHSMLife(t *testing.T) {
	s := newSite(t)
	monitor := freeAddr(t)
	s.overlay("listen:\n  metrics: " + monitor + "\n")
	s.start()
	cli := commandLine{t, s}
	client, token := s.client(), s.token()
	n := 0
	issue := func() {
		t.Helper()
		n++
		if _, err := s.issue(client, token, fmt.Sprintf("n%d.example.org", n)); err != nil {
			t.Fatal(err)
		}
	}
	issue()
	if out := cli.run(0, "hsm", "list"); !strings.Contains(out, "alpha") || !strings.Contains(out, "beta") {
		t.Errorf("hsm list:\n%s", out)
	}

	// A third member: into the configuration, then the officers.
	if out := cli.run(1, "hsm", "add", "gamma"); !strings.Contains(out, "hsm.members") {
		t.Errorf("a member that is not configured:\n%s", out)
	}
	m, err := hsmstore.WriteSoftHSMConf(s.dir, "gamma")
	if err != nil {
		t.Fatal(err)
	}
	home := filepath.Join(s.dir, "hsm", "gamma")
	pin, so := strings.TrimSpace(s.read("hsm", "gamma", "pin")), strings.TrimSpace(s.read("hsm", "gamma", "so-pin"))
	init := exec.Command("softhsm2-util", "--init-token", "--free", "--label", m.TokenLabel, "--pin", pin, "--so-pin", so)
	init.Env = append(os.Environ(), m.Env...)
	if out, err := init.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	config := filepath.Join(s.dir, "chancery.yaml")
	text := s.read("chancery.yaml")
	member := fmt.Sprintf("  - name: gamma\n    module: %s\n    token: %s\n    pin: file:%s/pin\n    so_pin: file:%s/so-pin\n    env:\n      SOFTHSM2_CONF: %s/softhsm2.conf\nacme:", m.Module, m.TokenLabel, home, home, home)
	if err := os.WriteFile(config, []byte(strings.Replace(text, "acme:", member, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := cli.approve(issue, "hsm", "add", "gamma"); !strings.Contains(out, "proved itself") {
		t.Errorf("result of adding: %s", out)
	}
	if out := cli.run(0, "hsm", "info", "gamma"); !strings.Contains(out, "up") || !strings.Contains(out, m.TokenLabel) {
		t.Errorf("hsm info:\n%s", out)
	}
	cli.run(1, "hsm", "add", "gamma") // it is there

	// Drain, fence, admit, remove.
	cli.run(0, "hsm", "drain", "alpha", "--reason", "maintenance")
	issue()
	cli.run(0, "hsm", "admit", "alpha", "--reason", "back")
	cli.run(0, "hsm", "fence", "beta", "--reason", "looks odd")
	cli.run(1, "hsm", "admit", "nobody")
	issue()
	cli.run(0, "hsm", "verify")
	cli.run(0, "hsm", "admit", "beta")
	cli.run(2, "hsm", "remove", "gamma", "extra")
	if out := cli.run(1, "hsm", "remove", "gamma"); !strings.Contains(out, "drain or fence it first") {
		t.Errorf("removing a member that is up:\n%s", out)
	}
	cli.run(0, "hsm", "drain", "gamma")
	cli.approve(issue, "hsm", "remove", "gamma")
	if out := cli.run(0, "hsm", "list"); strings.Contains(out, "gamma") {
		t.Errorf("a member that left:\n%s", out)
	}

	// A key that another tool made is adopted where it is, used, and destroyed.
	alpha := filepath.Join(s.dir, "hsm", "alpha")
	gen := exec.Command("pkcs11-tool", "--module", m.Module, "--token-label", "chancery-dev-alpha", "--login", "--pin", strings.TrimSpace(s.read("hsm", "alpha", "pin")),
		"--keypairgen", "--key-type", "EC:prime256v1", "--label", "old key", "--id", "0badc0de", "--usage-sign")
	gen.Env = append(os.Environ(), "SOFTHSM2_CONF="+filepath.Join(alpha, "softhsm2.conf"))
	if out, err := gen.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	adopt := []string{"key", "adopt", "old", "--member", "alpha", "--cka-id", "0badc0de", "--purpose", "document", "--algorithm", "P-256"}
	var report struct{ Weak []string }
	if err := json.Unmarshal([]byte(cli.run(0, append(adopt, "--dry-run")...)), &report); err != nil || len(report.Weak) == 0 {
		t.Fatalf("dry run: %+v %v", report, err)
	}
	cli.run(1, adopt...) // its weaknesses are not accepted
	cli.approve(nil, append(adopt, "--accept", strings.Join(report.Weak, ","))...)
	doc := filepath.Join(t.TempDir(), "contract.txt")
	if err := os.WriteFile(doc, []byte("a contract"), 0o600); err != nil {
		t.Fatal(err)
	}
	cli.run(0, "sign", doc, "--key", "old", "--out", doc+".p7s")
	cli.run(0, "key", "disable", "old", "--reason", "to be replaced")
	cli.run(1, "sign", doc, "--key", "old", "--out", doc+".2")
	if out := cli.run(0, "key", "show", "old"); !strings.Contains(out, "disabled") || !strings.Contains(out, "MODIFIABLE=true") {
		t.Errorf("key show:\n%s", out)
	}
	cli.run(0, "key", "describe", "old", "--reason", "from the old CA")
	cli.run(1, "key", "destroy", "issuing")
	cli.approve(nil, "key", "destroy", "old")
	if out := cli.run(0, "key", "list"); !strings.Contains(out, "destroyed") {
		t.Errorf("key list:\n%s", out)
	}

	// A key that was made outside comes in, wrapped by openssl.
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	session := cli.run(0, "key", "import-session", "--member", "alpha", "--out", in("wrap.pem"))
	id, _, _ := strings.Cut(strings.TrimPrefix(session, "session "), " ")
	openssl := func(args ...string) {
		t.Helper()
		if out, code := run(t, nil, "openssl", args...); code != 0 {
			t.Fatalf("openssl %s:\n%s", strings.Join(args, " "), out)
		}
	}
	openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", in("key.pem"))
	openssl("pkey", "-in", in("key.pem"), "-pubout", "-out", in("public.pem"))
	openssl("pkcs8", "-topk8", "-nocrypt", "-in", in("key.pem"), "-outform", "DER", "-out", in("key.der"))
	openssl("rand", "-out", in("aes"), "32")
	aes, err := os.ReadFile(in("aes"))
	if err != nil {
		t.Fatal(err)
	}
	openssl("pkeyutl", "-encrypt", "-pubin", "-inkey", in("wrap.pem"), "-in", in("aes"), "-out", in("first"), "-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:sha1", "-pkeyopt", "rsa_mgf1_md:sha1")
	openssl("enc", "-id-aes256-wrap-pad", "-K", fmt.Sprintf("%x", aes), "-iv", "A65959A6", "-in", in("key.der"), "-out", in("second"))
	first, err1 := os.ReadFile(in("first"))
	second, err2 := os.ReadFile(in("second"))
	if err := errors.Join(err1, err2, os.WriteFile(in("blob"), append(first, second...), 0o600)); err != nil {
		t.Fatal(err)
	}
	importing := func(name, mechanism string) string { // refused before the officers are asked; the session stays
		return cli.run(1, "key", "import", name, "--session", id, "--blob", in("blob"), "--public-key", in("public.pem"), "--mechanism", mechanism)
	}
	if out := importing("issuing", "RSA-AES"); !strings.Contains(out, "is in the cluster") {
		t.Errorf("import under a name that is taken:\n%s", out)
	}
	if out := importing("from-outside", "RSA-OAEP"); !strings.Contains(out, "octets") {
		t.Errorf("import by the wrong mechanism:\n%s", out)
	}
	cli.approve(nil, "key", "import", "from-outside", "--session", id, "--blob", in("blob"), "--public-key", in("public.pem"))
	cli.run(0, "sign", doc, "--key", "from-outside", "--out", doc+".4")

	// The SO PINs in shares; a key is then born with them.
	for _, name := range []string{"alpha", "beta"} {
		cli.approve(nil, "hsm", "split-so-pin", name)
		if err := os.Remove(filepath.Join(s.dir, "hsm", name, "so-pin")); err != nil {
			t.Fatal(err)
		}
	}
	text = s.read("chancery.yaml")
	for _, name := range []string{"alpha", "beta"} {
		text = strings.Replace(text, "so_pin: file:"+filepath.Join(s.dir, "hsm", name, "so-pin"), `so_pin: "shares:"`, 1)
	}
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.stop()
	s.start()
	cli.approve(func() {
		for _, name := range []string{"alpha", "beta"} {
			eventually(t, func() bool {
				var list struct{ Ceremonies []struct{ Member string } }
				if _, err := s.api(client, token, "GET", "/api/v1/hsm/ceremonies", nil, &list); err != nil {
					t.Fatal(err)
				}
				for _, one := range list.Ceremonies {
					if one.Member == name {
						return true
					}
				}
				return false
			})
			for _, officer := range []string{"officer-1", "officer-2"} {
				cli.run(0, append([]string{"hsm", "share", name}, cli.officer(officer)...)...)
			}
		}
	}, "key", "generate", "shared")
	cli.run(0, "sign", doc, "--key", "shared", "--out", doc+".3")

	// Every token gone: 503 with Retry-After before any intent, and back without a restart.
	for _, name := range []string{"alpha", "beta"} {
		if err := os.Rename(filepath.Join(s.dir, "hsm", name, "tokens"), filepath.Join(s.dir, "hsm", name, "pocket")); err != nil {
			t.Fatal(err)
		}
	}
	var p struct{ Status int }
	csr, err := newCSR("away.example.org")
	if err != nil {
		t.Fatal(err)
	}
	body := map[string]string{"csr": csr, "profile": "tls-server"}
	eventually(t, func() bool {
		resp := s.raw(client, token, "/api/v1/certificates", body)
		defer resp.Body.Close()
		if resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") == "" {
			t.Error("503 without Retry-After")
		}
		return resp.StatusCode == http.StatusServiceUnavailable && json.NewDecoder(resp.Body).Decode(&p) == nil && p.Status == 503
	})
	head := func() uint64 {
		h, err := s.database().Head(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return h.Size
	}
	var down struct{ Members []struct{ State string } }
	eventually(t, func() bool {
		if _, err := s.api(client, token, "GET", "/api/v1/hsm/members", nil, &down); err != nil {
			t.Fatal(err)
		}
		return down.Members[0].State != "up" && down.Members[1].State != "up"
	})
	before := head()
	for range 20 {
		resp := s.raw(client, token, "/api/v1/certificates", body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("status %d without an HSM", resp.StatusCode)
		}
	}
	if after := head(); after != before {
		t.Errorf("%d entries were written for requests that could not be served", after-before)
	}
	for _, name := range []string{"alpha", "beta"} {
		if err := os.Rename(filepath.Join(s.dir, "hsm", name, "pocket"), filepath.Join(s.dir, "hsm", name, "tokens")); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, func() bool {
		n++
		_, err := s.issue(client, token, fmt.Sprintf("n%d.example.org", n))
		return err == nil
	})
	eventually(t, func() bool { // the first that is back serves; the other follows
		return scrape(t, monitor).total("chancery_hsm_member_state", "state", "up") == 2
	})
	s.auditVerify()

	m1 := scrape(t, monitor)
	before2, up := m1.total("chancery_hsm_signatures_total", "purpose", "issuer"), m1.total("chancery_hsm_member_state", "state", "up")
	issue()
	m2 := scrape(t, monitor)
	if after := m2.total("chancery_hsm_signatures_total", "purpose", "issuer"); after <= before2 || up != 2 {
		t.Errorf("issuer signatures %v, then %v; %v members up", before2, after, up)
	}
	if m2.total("chancery_hsm_worker_starts_total", "", "") < 4 || m2.count("chancery_hsm_sign_seconds") == 0 || m2["chancery_hsm_queue_waiting"] == nil || m2["chancery_hsm_failovers_total"] == nil {
		t.Errorf("metrics: %v", m2)
	}
}

// metrics is one scrape.
type metrics map[string]*dto.MetricFamily

func scrape(t *testing.T, addr string) metrics {
	t.Helper()
	resp, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	m, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// total sums a family over the series with that label; "" is any.
func (m metrics) total(name, label, value string) (sum float64) {
	f := m[name]
	if f == nil {
		return 0
	}
	for _, one := range f.Metric {
		match := label == ""
		for _, l := range one.Label {
			match = match || l.GetName() == label && l.GetValue() == value
		}
		if match {
			sum += one.GetCounter().GetValue() + one.GetGauge().GetValue()
		}
	}
	return sum
}

func (m metrics) count(name string) (n uint64) {
	if f := m[name]; f != nil {
		for _, one := range f.Metric {
			n += one.GetHistogram().GetSampleCount()
		}
	}
	return n
}

// raw posts JSON and gives the answer as it is.
func (s *site) raw(c *http.Client, token, path string, body any) *http.Response {
	s.t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		s.t.Fatal(err)
	}
	req, err := http.NewRequest("POST", s.url(path), bytes.NewReader(b))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp
}
