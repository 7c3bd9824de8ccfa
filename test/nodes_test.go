package test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/test/pgcluster"
)

// another prepares a second node of the same CA: the same database and tokens, a folder,
// a configuration and journals of its own.
func (s *site) another(name string) *site {
	s.t.Helper()
	n := newSiteOn(s.t, s.dbURL)
	config := s.read("chancery.yaml")
	for _, r := range [][2]string{{"node_id: dev", "node_id: " + name}, {s.https, n.https}, {s.http, n.http},
		{port(s.https), port(n.https)}, {port(s.http), port(n.http)}, {filepath.Join(s.dir, "journal"), filepath.Join(n.dir, "journal")}} {
		config = strings.ReplaceAll(config, r[0], r[1])
	}
	write(s.t, n.dir, "chancery.yaml", []byte(config))
	write(s.t, n.dir, "admin.token", []byte(s.read("admin.token")))
	if err := errors.Join(os.Symlink(filepath.Join(s.dir, "officers"), filepath.Join(n.dir, "officers")), os.Chmod(filepath.Join(n.dir, "admin.token"), 0o600)); err != nil {
		s.t.Fatal(err)
	}
	return n
}

func port(addr string) string { _, p, _ := strings.Cut(addr, ":"); return ":" + p }

// Two nodes on one PostgreSQL and the same tokens are one CA: both issue at once; what one
// decides about keys and members holds on the other at once; when one dies the other closes
// what it left open and revokes it.
func TestNodes(t *testing.T) {
	a := newSiteOn(t, pgcluster.New(t).Database())
	a.start()
	b := a.another("second")
	b.start()
	la, lb := a.load(8), b.load(8)
	<-la.started
	<-lb.started
	a.await(60*time.Second, func() bool { return len(la.snapshot()) > 100 && len(lb.snapshot()) > 100 })

	// One dies under load, and stays away.
	a.kill()
	la.end()
	// It may have died between two signatures: then it left nothing open.
	killed := time.Now()
	a.await(90*time.Second, func() bool {
		return strings.Contains(b.log.String(), "a node ended and left intents open") || time.Since(killed) > 40*time.Second
	})
	lb.end()
	for _, err := range lb.errors {
		t.Errorf("a request to the node that lived failed: %v", err)
	}
	// What is open must close: a CRL may be signed just now.
	b.await(30*time.Second, func() bool { return b.auditVerify().Open == 0 })
	client, token := b.client(), b.token()
	for _, serial := range la.issued {
		if status, err := b.api(client, token, "GET", "/api/v1/certificates/"+serial, nil, nil); status != http.StatusOK {
			t.Errorf("certificate %s, acknowledged by the node that died, is lost: %v", serial, err)
		}
	}
	for _, serial := range append(la.revoked, lb.revoked...) {
		b.awaitRevoked(serial)
	}
	b.witness()
	a.start()
	a.witness()

	// What one decides.
	ca, cb := commandLine{t, a}, commandLine{t, b}
	ca.run(0, "key", "disable", "issuing", "--reason", "test")
	if _, err := b.issue(client, token, "disabled.example.lab"); err == nil {
		t.Error("a key that one node disabled signs on the other")
	}
	cb.run(0, "key", "enable", "issuing", "--reason", "test")
	eventually(t, func() bool { _, err := a.issue(a.client(), token, "enabled.example.lab"); return err == nil })
	ca.run(0, "hsm", "drain", "alpha", "--reason", "test")
	eventually(t, func() bool { return strings.Contains(cb.run(0, "hsm", "list"), "drained") })
	cb.run(0, "hsm", "admit", "alpha", "--reason", "test")
	eventually(t, func() bool { return !strings.Contains(ca.run(0, "hsm", "list"), "drained") })
	ca.approve(nil, "key", "generate", "shared", "--purpose", "document")
	eventually(t, func() bool {
		return strings.Contains(cb.run(0, "key", "list"), "shared") && strings.Contains(cb.run(0, "key", "show", "shared"), "usable")
	})
	// The officers change on one node; the workers of the other are told, too.
	ca.approve(nil, "officer", "add", "officer-3", "--public", a.newOfficer("officer-3"), "--role", "crypto-officer")
	eventually(t, func() bool {
		for _, known := range append(a.rosters(), b.rosters()...) {
			if strings.Count(known, "\n") != 2 {
				return false
			}
		}
		return true
	})
	// An act on one node while the other is at one: they wait for each other.
	cb.approve(func() { ca.run(0, "hsm", "verify") }, "key", "destroy", "shared")
	eventually(t, func() bool { return strings.Contains(ca.run(0, "key", "list"), "destroyed") })

	for i, s := range []*site{a, b} {
		if _, err := s.issue(s.client(), token, fmt.Sprintf("after-%d.example.lab", i)); err != nil {
			t.Error(err)
		}
		s.stop()
	}
	b.start()
	b.await(30*time.Second, func() bool { return b.auditVerify().Open == 0 })
	t.Logf("%d and %d certificates", len(la.issued), len(lb.issued))
}
