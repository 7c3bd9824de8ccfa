package test

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Yesterday's database is put back. Nothing starts on it before the officers decided; then
// the CA goes on, what was issued and revoked meanwhile is on its CRL, and everyone who
// verifies sees what happened (AUD-04).
func TestAttack_AUD_04_recovery(t *testing.T) {
	s := newSite(t)
	s.start()
	c := commandLine{t, s}
	c.approve(nil, "officer", "add", "officer-3", "--public", s.newOfficer("officer-3"), "--role", "crypto-officer") // who decides with officer-1 below
	client, token := s.client(), s.token()
	issue := func(name string) string {
		t.Helper()
		c, err := s.issue(client, token, name)
		if err != nil {
			t.Fatal(err)
		}
		return c.Serial
	}
	revoke := func(serial string) {
		t.Helper()
		if _, err := s.api(client, token, "POST", "/api/v1/certificates/"+serial+"/revoke", map[string]string{"reason": "keyCompromise"}, nil); err != nil {
			t.Fatal(err)
		}
		s.awaitRevoked(serial)
	}
	kept, compromised := issue("kept.example.lab"), issue("compromised.example.lab")
	s.stop()
	old := filepath.Join(t.TempDir(), "old.db")
	copyFile(t, filepath.Join(s.dir, "chancery.db"), old)
	c.run(1, "audit", "recover", "--request", filepath.Join(t.TempDir(), "nothing.json"), "--reason", "nothing is lost")

	s.start()
	lost, gone := issue("lost.example.lab"), issue("gone.example.lab")
	revoke(compromised)
	revoke(gone)
	number := s.crl("issuing").Number
	note := s.signedHead()
	s.stop()
	back := func() {
		t.Helper()
		for _, f := range []string{"chancery.db-wal", "chancery.db-shm"} {
			if err := os.Remove(filepath.Join(s.dir, f)); err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
		}
		copyFile(t, old, filepath.Join(s.dir, "chancery.db"))
	}
	back()
	s.fail(7, "it was rolled back", "chancery audit recover")

	// The officers decide.
	request := filepath.Join(t.TempDir(), "request.json")
	c.run(2, "audit", "recover")
	c.run(0, "audit", "recover", "--request", request, "--reason", "the disk died; the backup is of yesterday")
	c.run(4, "audit", "recover", "--warrant", request) // nobody has signed
	officer := func(name string) {
		t.Helper()
		if out, code := run(t, nil, chancery, append([]string{"approve", "sign", "--file", request}, c.officer(name)...)...); code != 0 {
			t.Fatalf("%d: %s", code, out)
		}
	}
	officer("officer-1")
	c.run(4, "audit", "recover", "--warrant", request) // one is not enough
	officer("officer-3")
	forged := filepath.Join(t.TempDir(), "forged.json")
	b, err := os.ReadFile(request)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Dir(forged), "forged.json", []byte(strings.Replace(string(b), "of yesterday", "of tomorrow", 1)))
	c.run(4, "audit", "recover", "--warrant", forged)
	for _, point := range []string{"recovery-begun:1", "recovery-recorded:1"} { // killed in between, it is called again
		if out, code := run(t, []string{"CHANCERY_FAILPOINT=" + point}, chancery, "audit", "recover", "--warrant", request, "--dir", s.dir); code == 0 {
			t.Fatalf("%s was not reached:\n%s", point, out)
		}
		s.fail(7, "recovery was begun and did not end")
	}
	t.Log(c.run(0, "audit", "recover", "--warrant", request))

	s.start()
	client = s.client()
	for _, serial := range []string{lost, gone, compromised} {
		s.awaitRevoked(serial)
	}
	if s.onCRL("issuing", kept) {
		t.Error("a certificate that was not lost is revoked")
	}
	if now := s.crl("issuing").Number; now.Cmp(number) <= 0 {
		t.Errorf("CRL number %v follows %v, which the lost entries had given", now, number)
	}
	issue("after.example.lab")
	rep := s.auditVerify()
	if rep.Recovered != 1 || rep.Open != 0 {
		t.Errorf("%+v", rep)
	}
	s.await(30*time.Second, func() bool { return s.signedHead() != note }) // the workers sign smaller trees again

	// Every later start holds journal and anchor against it.
	s.stop()
	s.start()
	out := filepath.Join(t.TempDir(), "export")
	c.run(0, "audit", "export", "--out", out)
	kp := filepath.Join(t.TempDir(), "kept.txt")
	write(t, filepath.Dir(kp), "kept.txt", []byte(note))
	v := verifyExport(t, 0, "--trusted-checkpoint", kp, out)
	if len(v.Recoveries) != 1 {
		t.Errorf("chancery-verify: %+v", v)
	}

	// The warrant is for that loss alone.
	s.stop()
	c.run(0, "audit", "recover", "--warrant", request)
	back()
	c.run(4, "audit", "recover", "--warrant", request)
	s.fail(7, "it was rolled back")
}

// signedHead is the newest checkpoint as the server publishes it.
func (s *site) signedHead() string {
	s.t.Helper()
	r, err := s.client().Get(s.url("/ledger/checkpoint"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		s.t.Fatalf("%d, %v", r.StatusCode, err)
	}
	return string(b)
}
