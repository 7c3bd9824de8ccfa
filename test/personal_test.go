package test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"database/sql"
	"encoding/asn1"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/webauthn"
	"github.com/chromedp/chromedp"
	"golang.org/x/crypto/acme"

	"chancery/audit"
	"chancery/test/pgcluster"
)

// asking is a request for a name whose subject is a person.
func asking(name, mail string) *x509.CertificateRequest {
	return &x509.CertificateRequest{DNSNames: []string{name}, Subject: pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{
		{Type: asn1.ObjectIdentifier{2, 5, 4, 10}, Value: "Roe Farms"}, {Type: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}, Value: mail}}}}
}

// issueTo gets a certificate through the API for such a request, and writes it to a file.
func (s *site) issueTo(name, mail string) (got issued, file string) {
	s.t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, asking(name, mail), k)
	if err != nil {
		s.t.Fatal(err)
	}
	csr := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	if _, err := s.api(s.client(), s.token(), "POST", "/api/v1/certificates", map[string]string{"csr": csr, "profile": "tls-server"}, &got); err != nil {
		s.t.Fatal(err)
	}
	return got, s.file(got.Serial+".pem", got.Certificate)
}

func (s *site) file(name, text string) string {
	s.t.Helper()
	path := filepath.Join(s.t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// acmeClient is a client with an account.
func (s *site) acmeClient(contact ...string) *acme.Client {
	s.t.Helper()
	c := &acme.Client{Key: newECDSA(s.t), DirectoryURL: s.url("/acme/directory"), HTTPClient: s.client(), RetryBackoff: func(int, *http.Request, *http.Response) time.Duration { return 5 * time.Millisecond }}
	if _, err := c.Register(context.Background(), &acme.Account{Contact: contact}, acme.AcceptTOS); err != nil {
		s.t.Fatal(err)
	}
	return c
}

// holds tells whether a value is in the database: in its files, or in a dump.
func (s *site) holds(value string) bool {
	s.t.Helper()
	if !strings.HasPrefix(s.dbURL, "sqlite:") {
		found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/pg_dump")
		if len(found) == 0 {
			s.t.Fatal("pg_dump is missing")
		}
		dump := must(s.t, nil, found[len(found)-1], "--dbname="+s.dbURL)
		return strings.Contains(dump, value) || strings.Contains(dump, hex.EncodeToString([]byte(value)))
	}
	for _, end := range []string{"", "-wal"} {
		b, err := os.ReadFile(strings.TrimPrefix(s.dbURL, "sqlite:") + end)
		if err != nil {
			s.t.Fatal(err)
		}
		if bytes.Contains(b, []byte(value)) {
			return true
		}
	}
	return false
}

// TestAttack_AUD_18 has persons' values erased from a real server: they are gone from the
// database, and every proof and check stays as it was.
func TestAttack_AUD_18(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) { erasing(t, newSite(t)) })
	t.Run("postgres", func(t *testing.T) {
		if testing.Short() {
			t.Skip("once is enough")
		}
		erasing(t, newSiteOn(t, pgcluster.New(t).Database()))
	})
}

func erasing(t *testing.T, s *site) {
	const jane, john, june = "jane.roe@persons.example", "john.doe@persons.example", "june.poe@persons.example"
	s.start()
	at := []string{"--dir", s.dir, "--config", s.overlayFile}
	cmd := func(args ...string) string { t.Helper(); return must(t, nil, chancery, append(args, at...)...) }
	janes, janesFile := s.issueTo("farm.example.com", jane)
	johns, johnsFile := s.issueTo("doe.example.com", john)
	chain, err := newResponder(t, s.challenge).certificate(s.acmeClient(), "june.localhost", asking("june.localhost", june))
	if err != nil {
		t.Fatal(err)
	}
	junesFile := s.file("june.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: chain[0]})))
	for _, mail := range []string{jane, john, june} {
		if !s.holds(mail) {
			t.Fatalf("%s is not in the database: this test would see nothing", mail)
		}
	}

	proof := func(serial string) string {
		t.Helper()
		var out string
		s.await(5*time.Second, func() bool {
			resp, err := s.client().Get(s.url("/api/v1/certificates/" + serial + "/proof"))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			var b bytes.Buffer
			b.ReadFrom(resp.Body)
			out = b.String()
			return resp.StatusCode == http.StatusOK
		})
		return out
	}

	// Why they exist.
	proof(janes.Serial)
	account := cmd("audit", "why", janesFile)
	for _, want := range []string{"api:admin-token", "127.0.0.1", "emailAddress=" + jane, "O=Roe Farms", "dns:farm.example.com", "POST /api/v1/certificates", "CSR SHA-256", "tls-server",
		"of what is shown here", "zlint v3.", "RFC5280", "0 errors, 0 warnings", "member", "checked"} {
		if !strings.Contains(account, want) {
			t.Errorf("audit why lacks %q:\n%s", want, account)
		}
	}
	acmes := cmd("audit", "why", junesFile)
	for _, want := range []string{"acme:", "ACME order", "CSR SHA-256", "authorization name 1", "proof name 1 http-01", "token", "dns:june.localhost", "127.0.0.1"} {
		if !strings.Contains(acmes, want) {
			t.Errorf("audit why of ACME's lacks %q:\n%s", want, acmes)
		}
	}
	intent := regexp.MustCompile(`(?m)^intent +entry (\d+)`).FindStringSubmatch(account)[1]
	if out := cmd("audit", "open", "--entry", intent); !strings.Contains(out, jane) || !strings.Contains(out, "127.0.0.1") {
		t.Errorf("audit open:\n%s", out)
	}

	// Exports: without personal values, unless they are asked for.
	plain, opened := filepath.Join(t.TempDir(), "plain"), filepath.Join(t.TempDir(), "opened")
	cmd("audit", "export", "--out", plain)
	cmd("audit", "export", "--out", opened, "--with-openings")
	for dir, want := range map[string]bool{plain: false, opened: true} {
		v := verifyExport(t, 0, dir)
		if (v.Openings > 0) != want || v.Evidence < 3 || inFolder(t, dir, jane) != want || inFolder(t, dir, june) != want {
			t.Errorf("%s: %d openings, %d of evidence, it holds %s: %v", dir, v.Openings, v.Evidence, jane, inFolder(t, dir, jane))
		}
	}
	if st, err := os.Stat(filepath.Join(opened, "chancery", "openings.bin")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("openings.bin: %v %v", st.Mode(), err)
	}
	tamperBeside(t, opened, mustUint(t, intent))

	// Erasing: by value, and by entry.
	var stranger struct{ Type string }
	if code, err := s.api(s.client(), "wrong", "POST", "/api/v1/ledger/erase", map[string]any{"value": jane, "reason": "x"}, &stranger); code != 401 {
		t.Errorf("erasing without the token: %d %v", code, err)
	}
	if out, code := run(t, nil, chancery, "audit", "erase", "--dir", s.dir, "--value", jane, "--reason", jane+" wrote to us"); code != 1 || !strings.Contains(out, "repeats") {
		t.Errorf("a reason that repeats the value: %d %s", code, out)
	}
	if out, code := run(t, nil, chancery, "audit", "erase", "--dir", s.dir, "--value", "nobody@persons.example", "--reason", "x"); code != 1 || !strings.Contains(out, "no entry holds") {
		t.Errorf("a value that is nowhere: %d %s", code, out)
	}
	erase := exec.Command(chancery, "audit", "erase", "--dir", s.dir, "--value", "-", "--reason", "asked for by the subject")
	erase.Stdin = strings.NewReader(jane + "\n") // not on the command line, which others see
	if out, err := erase.CombinedOutput(); err != nil || !strings.Contains(string(out), "1 personal values erased") {
		t.Errorf("%v %s", err, out)
	}
	if out, code := run(t, nil, chancery, "audit", "erase", "--dir", s.dir, "--value", "-", "--reason", "x"); code != 1 || !strings.Contains(out, "either entry") {
		t.Errorf("a value of nothing: %d %s", code, out)
	}
	junes := regexp.MustCompile(`(?m)^intent +entry (\d+)`).FindStringSubmatch(acmes)[1]
	if out := must(t, nil, chancery, "audit", "erase", "--dir", s.dir, "--entry", junes, "--reason", "asked for by the subject"); !strings.Contains(out, "2 personal values erased") {
		t.Error(out)
	}
	s.await(10*time.Second, func() bool { return !s.holds(jane) && !s.holds(june) })
	if !s.holds(john) {
		t.Error("another subject's value is gone")
	}
	if strings.Contains(s.log.String(), "persons.example") {
		t.Error("the log of the server has a personal value")
	}
	if out := cmd("audit", "why", janesFile); !strings.Contains(out, "erased; the commitment stays") || strings.Contains(out, jane) || !strings.Contains(out, "127.0.0.1") {
		t.Errorf("audit why after the erasure:\n%s", out)
	}
	if out := cmd("audit", "why", johnsFile); !strings.Contains(out, john) {
		t.Errorf("audit why of another:\n%s", out)
	}
	for _, i := range []issued{janes, johns} {
		if text := proof(i.Serial); !strings.HasPrefix(text, "c2sp.org/tlog-proof@v1\n") || !strings.Contains(text, fmt.Sprintf("\nindex %d\n", i.Receipt.Index)) {
			t.Errorf("proof of %s:\n%s", i.Serial, text)
		}
	}
	s.auditVerify()
	stale := filepath.Join(opened, "chancery", "openings.bin")
	before, err := os.ReadFile(stale)
	if err != nil {
		t.Fatal(err)
	}
	cmd("audit", "export", "--out", opened, "--with-openings")
	verifyExport(t, 0, opened, janesFile, johnsFile, junesFile)
	state := filepath.Join(t.TempDir(), "state")
	verifyExport(t, 0, "--state", state, opened)
	if inFolder(t, opened, jane) || inFolder(t, opened, june) || !inFolder(t, opened, john) {
		t.Error("the export does not hold what is left, and only that")
	}
	if err := os.WriteFile(stale, before, 0o600); err != nil {
		t.Fatal(err)
	}
	if v := verifyExport(t, 7, opened); v.Violation == nil || !strings.Contains(v.Violation.What, "was erased, and the export opens it") {
		t.Errorf("openings from before the erasure: %+v", v)
	}
	if v := verifyExport(t, 7, "--state", state, opened); v.Violation == nil || !strings.Contains(v.Violation.What, "was erased, and the export opens it") {
		t.Errorf("openings from before the erasure, after an earlier run: %+v", v)
	}
	cmd("audit", "export", "--out", opened)
	if _, err := os.Stat(stale); err == nil {
		t.Error("an export without openings leaves those of an older one")
	}
	verifyExport(t, 0, opened)

	// Nothing comes back with a restart.
	s.stop()
	s.start()
	s.auditVerify()
	if s.holds(jane) || s.holds(june) {
		t.Error("it is back after a restart")
	}
	path, sqlite := strings.CutPrefix(s.dbURL, "sqlite:")
	if !sqlite {
		return
	}

	// What is past its retention goes by itself; here it is made so, as nobody waits for years.
	s.stop()
	db, err := sql.Open("sqlite3", path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.Exec("UPDATE opening SET retain_until = 1")
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	s.start()
	s.await(10*time.Second, func() bool { return !s.holds(john) })
	if rep := s.auditVerify(); rep.Erased < 8 {
		t.Errorf("%d values are erased", rep.Erased)
	}
}

func mustUint(t testing.TB, text string) (n uint64) {
	t.Helper()
	if _, err := fmt.Sscan(text, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// inFolder tells whether a value stands in a file of a folder.
func inFolder(t testing.TB, dir, value string) (found bool) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		found = found || bytes.Contains(b, []byte(value))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// tamperBeside changes what an export has beside its entries.
func tamperBeside(t *testing.T, dir string, intent uint64) {
	// change rewrites the record of an entry; nil takes it away.
	change := func(index uint64, fn func(value []byte) []byte) func([]byte) []byte {
		return func(b []byte) (out []byte) {
			for len(b) > 0 {
				n := 12 + int(binary.BigEndian.Uint32(b[8:]))
				rec := b[:n:n]
				if binary.BigEndian.Uint64(b) == index {
					if value := fn(bytes.Clone(rec[12:])); value != nil {
						out = append(binary.BigEndian.AppendUint32(append(out, rec[:8]...), uint32(len(value))), value...)
					}
				} else {
					out = append(out, rec...)
				}
				b = b[n:]
			}
			return out
		}
	}
	flip := func(v []byte) []byte { v[len(v)-1] ^= 1; return v }
	for name, x := range map[string]struct {
		file, says string
		index      uint64
		do         func([]byte) []byte
	}{
		"evidence changed":      {"evidence.bin", "not what it rests on", intent, change(intent, flip)},
		"evidence emptied":      {"evidence.bin", "not what it rests on", intent, change(intent, func([]byte) []byte { return []byte{} })},
		"evidence taken away":   {"evidence.bin", "does not have what it rests on", intent, change(intent, func([]byte) []byte { return nil })},
		"evidence of nothing":   {"evidence.bin", "the ledger ends before", 1 << 40, func(b []byte) []byte { return append(b, binary.BigEndian.AppendUint64(nil, 1<<40)[0:]...) }},
		"evidence of a genesis": {"evidence.bin", "not what it rests on", 0, func(b []byte) []byte { return append(make([]byte, 12), b...) }},
		"opening changed":       {"openings.bin", "does not", intent, change(intent, flip)},
		"opening cut":           {"openings.bin", "cut short", intent, change(intent, func(v []byte) []byte { return v[:len(v)-1] })},
		"opening of a tag":      {"openings.bin", "does not", intent, change(intent, func(v []byte) []byte { v[1]++; return v })},
		"opening twice":         {"openings.bin", "two records", intent, func(b []byte) []byte { return twice(b, intent) }},
	} {
		t.Run(name, func(t *testing.T) {
			d := filepath.Join(t.TempDir(), "x")
			copyTree(t, dir, d)
			do := x.do
			if name == "evidence of nothing" {
				do = func(b []byte) []byte { return append(x.do(b), 0, 0, 0, 0) }
			}
			edit(t, d, "chancery/"+x.file, do)
			broken(t, x.index, x.says, d)
		})
	}
}

// twice repeats the record of an entry.
func twice(b []byte, index uint64) (out []byte) {
	for len(b) > 0 {
		n := 12 + int(binary.BigEndian.Uint32(b[8:]))
		out = append(out, b[:n]...)
		if binary.BigEndian.Uint64(b) == index {
			out = append(out, b[:n]...)
		}
		b = b[n:]
	}
	return out
}

// TestAttack_AUD_17 looks for secrets in everything that is meant to be read: entries, logs,
// witnesses and exports.
func TestAttack_AUD_17(t *testing.T) {
	s := newSite(t)
	s.args = append(s.args, "--log", "debug")
	s.start()
	token := s.token()
	secrets := map[string]string{"admin token": token}
	for _, file := range []string{"alpha/pin", "alpha/so-pin", "beta/pin", "beta/so-pin"} {
		secrets[file] = strings.TrimSpace(s.read("hsm", file))
	}

	// The console: a session cookie, a form token, the secret of an enrolment link, and an
	// answer that is no passkey's.
	base := consoleOf(s)
	const typed = "canary-typed-as-passkey"
	secrets["typed"] = typed
	resp, err := http.PostForm(base+"sign-in", url.Values{"assertion": {typed}, "to": {""}})
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	b := newBrowser(t)
	b.authenticator(webauthn.AuthenticatorTransportInternal)
	link := linkIn(t, s.banner)
	_, secrets["link"], _ = strings.Cut(link, "#")
	b.admitted(commandLine{t, s}, link)
	b.signIn(base)
	got, err := chromedp.Call(b.ctx, network.GetCookies, network.GetCookiesParams{URLs: []string{base}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range got.Cookies {
		if c.Name == "__Host-chancery" {
			secrets["session cookie"] = c.Value
		}
	}
	token2, err := chromedp.Run(b.ctx, chromedp.Evaluate[string](`document.querySelector('input[name=form_token]').value`))
	if secrets["form token"] = token2; err != nil || len(token2) != 64 || len(secrets["session cookie"]) != 64 {
		t.Fatalf("no session: %v", err)
	}

	// The API: a wrong token, and bodies that are refused.
	const guess = "canary-wrong-bearer"
	secrets["wrong bearer token"] = guess
	s.api(s.client(), guess, "GET", "/api/v1/certificates", nil, nil)
	const body = "canary-api-body"
	secrets["body"] = body
	for _, b := range []any{map[string]string{"csr": body, "profile": body}, map[string]string{body: body}, map[string]string{"csr": "-----BEGIN PRIVATE KEY-----\n" + body + "\n-----END PRIVATE KEY-----", "profile": "tls-server"}} {
		s.api(s.client(), token, "POST", "/api/v1/certificates", b, nil)
	}

	// ACME: the contact, the body and the signature of requests, well and badly signed.
	const contact = "canary-contact@persons.example"
	secrets["contact"], secrets["contact in base64url"] = contact, strings.TrimRight(base64.RawURLEncoding.EncodeToString([]byte(contact)), "=")[4:20]
	sent := &wire{t: t, next: s.client().Transport}
	c := &acme.Client{Key: newECDSA(t), DirectoryURL: s.url("/acme/directory"), HTTPClient: &http.Client{Transport: sent}}
	if _, err := c.Register(t.Context(), &acme.Account{Contact: []string{"mailto:" + contact}}, acme.AcceptTOS); err != nil {
		t.Fatal(err)
	}
	if _, err := newResponder(t, s.challenge).certificate(c, "canary.localhost", asking("canary.localhost", contact)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.AuthorizeOrder(t.Context(), acme.DomainIDs("canary_not_a_name")); err == nil {
		t.Fatal("an odd name was accepted")
	}
	if len(sent.parts) < 8 {
		t.Fatalf("%d parts of JWS", len(sent.parts))
	}
	for i, part := range sent.parts {
		secrets[fmt.Sprintf("JWS part %d", i)] = part
	}
	s.auditVerify()
	s.stop() // what was refused is on the ledger, too

	// Where they must not be.
	db := s.database()
	head, err := db.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	places := map[string][]byte{"server log": []byte(s.log.String() + strings.ReplaceAll(s.banner, link, ""))}
	kinds := map[string]uint64{}
	err = db.Leaves(t.Context(), 0, head.Size, func(i uint64, b []byte) error {
		places["leaves"] = append(append(places["leaves"], b...), '\n')
		l, err := audit.DecodeLeaf(b)
		if kind, ok := l.Get(audit.TagRefusal); ok && err == nil {
			n, _ := l.Uint(audit.TagCount)
			kinds[string(kind)] += n
		}
		if outcome, ok := l.Get(audit.TagOutcome); ok && l.Op == audit.OpSession {
			kinds[string(outcome)]++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for kind, n := range map[string]uint64{"signed in": 1, "console:sign-in": 1, "api:unauthorized": 1, "acme:rejectedIdentifier": 1} {
		if kinds[kind] != n {
			t.Errorf("%d entries of %s, want %d: %v", kinds[kind], kind, n, kinds)
		}
	}
	out := filepath.Join(t.TempDir(), "export")
	must(t, nil, chancery, "audit", "export", "--dir", s.dir, "--config", s.overlayFile, "--out", out, "--with-openings")
	for _, dir := range []string{filepath.Join(s.dir, "journal"), out} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				places[path], err = os.ReadFile(path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	places["lines"] = []byte(must(t, nil, chancery, "audit", "export", "--dir", s.dir, "--config", s.overlayFile, "--format", "jsonl"))
	if len(places) < 8 || len(places["leaves"]) < 10_000 || len(places["server log"]) < 1000 {
		t.Fatalf("%d places", len(places))
	}
	for what, secret := range secrets {
		if len(secret) < 4 {
			t.Fatalf("%s is %q", what, secret)
		}
		sum := sha256.Sum256([]byte(secret)) // nor an unsalted hash, which can be guessed
		for where, b := range places {
			openings := strings.HasSuffix(where, "openings.bin") && strings.HasPrefix(what, "contact") // as the subject of the CSR
			if !openings && (bytes.Contains(b, []byte(secret)) || bytes.Contains(b, sum[:]) || bytes.Contains(b, []byte(hex.EncodeToString(sum[:])))) {
				t.Errorf("%s is in %s", what, where)
			}
		}
	}
}

// wire keeps what a client sends: payloads and signatures of its JWS.
type wire struct {
	t     testing.TB
	next  http.RoundTripper
	parts []string
}

func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		var b bytes.Buffer
		if _, err := b.ReadFrom(r.Body); err != nil {
			return nil, err
		}
		for _, m := range regexp.MustCompile(`"(payload|signature)":"([^"]{24,})"`).FindAllStringSubmatch(b.String(), -1) {
			w.parts = append(w.parts, m[2])
		}
		r.Body = http.NoBody
		r = r.Clone(r.Context())
		r.Body = readCloser{&b}
	}
	return w.next.RoundTrip(r)
}

type readCloser struct{ *bytes.Buffer }

func (readCloser) Close() error { return nil }
