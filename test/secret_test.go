package test

import (
	"net/http"
	"strings"
	"testing"

	"chancery/audit"
)

// The key of ACME nonces comes from an AES-256 key in the HSMs: each start derives it, on
// the ledger, and a node that has none in its configuration goes on as before.
func TestNonceSecret(t *testing.T) {
	s := newSite(t)
	s.start()
	cli := commandLine{t, s}
	cli.approve(nil, "key", "generate", "server-secrets", "--purpose", "secret", "--algorithm", "AES-256")
	if out := cli.run(0, "key", "show", "server-secrets"); !strings.Contains(out, "AES-256") || !strings.Contains(out, "secret") {
		t.Errorf("key show:\n%s", out)
	}
	s.stop()
	s.overlay("acme:\n  nonce_secret: server-secrets\n")
	nonce := func() string {
		resp, err := s.client().Head(s.url("/acme/new-nonce"))
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%v %v", resp, err)
		}
		resp.Body.Close()
		return resp.Header.Get("Replay-Nonce")
	}
	for range 2 {
		s.start()
		if nonce() == "" {
			t.Error("no nonce")
		}
		s.stop()
	}
	db := s.database()
	head, err := db.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	secrets := map[audit.Kind]int{}
	err = db.Leaves(t.Context(), 0, head.Size, func(_ uint64, b []byte) error {
		l, err := audit.DecodeLeaf(b)
		if err == nil && l.Op == audit.OpSecret {
			secrets[l.Kind]++
		}
		return err
	})
	if err != nil || secrets[audit.KindIntent] != 4 || secrets[audit.KindDone] != 4 {
		t.Errorf("leaves %v %v", secrets, err)
	}
	s.start()
	s.auditVerify()
	if out := cli.run(1, "key", "destroy", "server-secrets"); !strings.Contains(out, "nonce_secret") {
		t.Errorf("destroying a key that is in use:\n%s", out)
	}
	s.stop()
	s.overlay("acme:\n  nonce_secret: nobody\n")
	s.fail(3, "acme.nonce_secret", "key generate")
}
