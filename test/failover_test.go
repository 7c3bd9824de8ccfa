package test

import (
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"chancery/test/pgcluster"
)

// The primary of a synchronous pair dies under load and the standby is promoted: nothing
// that was acknowledged is lost, and the server signs again by itself.
func TestFailover(t *testing.T) {
	primary := pgcluster.New(t)
	url := primary.Database()
	standby := primary.Standby(t, true)
	s := newSiteOn(t, primary.On(url, standby))
	s.start()
	l := s.load(16)
	<-l.started
	s.await(30*time.Second, func() bool { return len(l.snapshot()) > 200 })
	primary.Stop(syscall.SIGKILL)
	standby.Promote()
	answers := time.Now()
	before := len(l.snapshot())
	s.await(30*time.Second, func() bool { return len(l.snapshot()) > before })
	again := time.Since(answers)
	if again > 10*time.Second {
		t.Errorf("the server signs %s after the new primary answers; want 10 s", again)
	}
	s.await(30*time.Second, func() bool { return len(l.snapshot()) > before+100 })
	l.end()
	client, token := s.client(), s.token()
	for _, serial := range l.issued {
		if status, err := s.api(client, token, "GET", "/api/v1/certificates/"+serial, nil, nil); status != http.StatusOK {
			t.Errorf("acknowledged certificate %s is lost: %v", serial, err)
		}
	}
	for _, serial := range l.revoked {
		s.awaitRevoked(serial)
	}
	s.await(60*time.Second, func() bool { return s.auditVerify().Open == 0 })
	s.witness()
	t.Logf("%d certificates before and %d after; signing %s after the new primary answered", before, len(l.issued)-before, again)
}

// A standby that was behind is promoted: the running server notices that entries are lost
// and signs nothing more, and no start goes on from there.
func TestFailoverLosesEntries(t *testing.T) {
	primary := pgcluster.New(t)
	url := primary.Database()
	standby := primary.Standby(t, false)
	s := newSiteOn(t, primary.On(url, standby))
	s.start()
	if _, err := s.issue(s.client(), s.token(), "kept.example.lab"); err != nil {
		t.Fatal(err)
	}
	primary.SQL("postgres", "SELECT pg_switch_wal()")
	standby.Stop(syscall.SIGINT)
	c, err := s.issue(s.client(), s.token(), "lost.example.lab")
	if err != nil {
		t.Fatal(err)
	}
	primary.Stop(syscall.SIGKILL)
	standby.Start()
	standby.Promote()
	select {
	case <-s.exited: // without a request: it looks by itself
		s.cmd = nil
	case <-time.After(60 * time.Second):
		t.Fatal("the server goes on although the database lost entries")
	}
	if log := s.log.String(); !strings.Contains(log, "the database lost entries that it had committed") {
		t.Errorf("the log does not say what happened:\n%s", tail(log, 3000))
	}
	s.fail(7, "it was rolled back", "chancery audit recover")

	// The officers decide to go on: it is revoked, and the CA issues again.
	line := commandLine{t, s}
	request := filepath.Join(t.TempDir(), "request.json")
	line.run(0, "audit", "recover", "--config", s.overlayFile, "--request", request, "--reason", "failover to a standby that was behind")
	for _, name := range []string{"officer-1", "officer-2"} {
		if out, code := run(t, nil, chancery, append([]string{"approve", "sign", "--file", request}, line.officer(name)...)...); code != 0 {
			t.Fatalf("%d: %s", code, out)
		}
	}
	line.run(0, "audit", "recover", "--config", s.overlayFile, "--warrant", request)
	s.start()
	s.awaitRevoked(c.Serial)
	if _, err := s.issue(s.client(), s.token(), "after.example.lab"); err != nil {
		t.Error(err)
	}
	if rep := s.auditVerify(); rep.Recovered != 1 {
		t.Errorf("%+v", rep)
	}
}
