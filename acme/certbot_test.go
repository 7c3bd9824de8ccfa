package acme_test

import (
	"fmt"
	"os/exec"
	"testing"
)

// certbot as a person uses it: register, get, renew, revoke, leave.
func TestCertbot(t *testing.T) {
	certbot, err := exec.LookPath("certbot")
	if err != nil {
		t.Skip("certbot is not installed")
	}
	h := newHouse(t)
	h.web.stop() // certbot's own server takes the port
	dir, port := t.TempDir(), fmt.Sprint(h.web.port)
	for _, args := range [][]string{
		{"register", "--agree-tos", "-m", "a@example.org"},
		{"certonly", "--standalone", "--http-01-port", port, "-d", "a.localhost", "-d", "b.localhost"},
		{"update_account", "-m", "b@example.org"},
		{"renew", "--force-renewal", "--http-01-port", port, "--no-random-sleep-on-renew"},
		{"revoke", "--cert-name", "a.localhost", "--reason", "superseded", "--no-delete-after-revoke"},
		{"unregister"},
	} {
		args = append(args, "-n", "--config-dir", dir, "--work-dir", dir, "--logs-dir", dir, "--server", h.url+"/acme/directory")
		if out, err := exec.CommandContext(t.Context(), certbot, args...).CombinedOutput(); err != nil {
			t.Fatalf("certbot %s: %v\n%s", args[0], err, out)
		}
	}
	if n := h.ca.count(); n != 2 {
		t.Errorf("%d certificates", n)
	}
}
