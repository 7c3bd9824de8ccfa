package test

import (
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"chancery/dbstore"
)

const softHSMModule = "/usr/lib/softhsm/libsofthsm2.so"

// newBackupToken makes a SoftHSM token outside of any site and returns its lines of a
// configuration.
func newBackupToken(t *testing.T, name string) (yaml string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "tokens"), 0o700); err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string]string{"softhsm2.conf": "directories.tokendir = " + filepath.Join(dir, "tokens") + "\nobjectstore.backend = file\nlog.level = ERROR\n", "pin": "user-4711\n", "so-pin": "so-4711\n"} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("softhsm2-util", "--init-token", "--free", "--label", name, "--pin", "user-4711", "--so-pin", "so-4711")
	cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+filepath.Join(dir, "softhsm2.conf"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("softhsm2-util: %v\n%s", err, out)
	}
	return fmt.Sprintf("    - name: %s\n      module: %s\n      token: %s\n      pin: file:%s/pin\n      so_pin: file:%s/so-pin\n      env: {SOFTHSM2_CONF: %s/softhsm2.conf}\n", name, softHSMModule, name, dir, dir, dir)
}

func revokes(l *x509.RevocationList, serial string) bool {
	n, ok := new(big.Int).SetString(serial, 16)
	for _, e := range l.RevokedCertificateEntries {
		if ok && e.SerialNumber.Cmp(n) == 0 {
			return true
		}
	}
	return false
}

// TestBackupAndRestore loses a whole CA and goes on elsewhere from a backup token, the
// manifest and two officers: the same CAs, a new ledger, CRLs in a range of their own
// with all that was revoked. The old CA, found again, is retired.
func TestBackupAndRestore(t *testing.T) {
	token := newBackupToken(t, "far")
	s := newSite(t)
	backupDir := filepath.Join(t.TempDir(), "backups")
	text, err := os.ReadFile(s.overlayFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.overlayFile, fmt.Appendf(text, "hsm:\n  backup_dir: %s\n  backups:\n%s", backupDir, token), 0o600); err != nil {
		t.Fatal(err)
	}
	s.start()
	cli := commandLine{t, s}
	client, adminToken := s.client(), s.token()
	out := t.TempDir()

	// Designate, wrap, and get the manifest.
	cli.run(1, "hsm", "backup", "nowhere", "--designate")
	cli.run(1, "hsm", "backup", "far", "--out", out)
	cli.approve(nil, "hsm", "backup", "far", "--designate")
	if result := cli.approve(nil, "hsm", "backup", "far"); !strings.Contains(result, "issuing") || !strings.Contains(result, "document") {
		t.Fatalf("backup: %s", result)
	}
	cli.approve(nil, "key", "generate", "late", "--purpose", "document", "--algorithm", "RSA-3072") // wrapped at birth
	kept, err := s.issue(client, adminToken, "kept.example")
	if err != nil {
		t.Fatal(err)
	}
	revoked, err := s.issue(client, adminToken, "revoked.example")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.api(client, adminToken, "POST", "/api/v1/certificates/"+revoked.Serial+"/revoke", map[string]any{"reason": "superseded"}, nil); err != nil {
		t.Fatal(err)
	}
	printed := cli.run(0, "hsm", "backup", "far", "--out", out, "--verify")
	files, err := filepath.Glob(filepath.Join(out, "far-*.manifest.json"))
	if err != nil || len(files) != 1 {
		t.Fatalf("manifests %v %v\n%s", files, err, printed)
	}
	manifest := files[0]
	old := s.crl("issuing")
	if !revokes(old, revoked.Serial) {
		t.Fatal("the old CRL lacks the revocation")
	}
	oldRoot := filepath.Join(out, "root.pem")
	if err := os.WriteFile(oldRoot, []byte(s.read("root.pem")), 0o600); err != nil {
		t.Fatal(err)
	}
	s.stop()
	before := s.auditVerify()
	lost := s.dir + "-lost"
	if err := os.Rename(s.dir, lost); err != nil {
		t.Fatal(err)
	}

	officers := filepath.Join(lost, "officers") // they have their keys with them

	// The other site: a configuration whose one member is the backup token.
	n := newSite(t)
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	_, httpsPort, _ := strings.Cut(n.https, ":")
	_, httpPort, _ := strings.Cut(n.http, ":")
	config := filepath.Join(n.dir, "chancery.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "listen: {https: '%s', http: '%s'}\npublic_url: https://localhost:%s\npublic_http_url: http://localhost:%s\nnode_id: second\ndatabase: sqlite:%s\nledger:\n  journal: %s\nhsm:\n  members:\n%sacme: {validation: {http_port: %d}}\n",
		n.https, n.http, httpsPort, httpPort, filepath.Join(n.dir, "chancery.db"), filepath.Join(n.dir, "journal", "intents"), token, n.challenge), 0o600); err != nil {
		t.Fatal(err)
	}
	bare := func(want int, args ...string) string {
		t.Helper()
		out, code := run(t, nil, chancery, args...)
		if code != want {
			t.Fatalf("chancery %s: exit code %d, want %d\n%s", strings.Join(args, " "), code, want, out)
		}
		return out
	}

	// Rehearse, also with what was tampered with.
	report := filepath.Join(out, "report.json")
	bare(0, "hsm", "rehearse", "--manifest", manifest, "--config", config, "--out", report)
	var r struct {
		OK   bool
		Keys []struct {
			Key string
			OK  bool
		}
	}
	b, err := os.ReadFile(report)
	if err != nil || json.Unmarshal(b, &r) != nil || !r.OK || len(r.Keys) != 4 {
		t.Errorf("report: %v\n%s", err, b)
	}
	if text := bare(0, "hsm", "rehearse", "--manifest", manifest, "--config", config); !strings.Contains(text, "would come back as a whole") {
		t.Errorf("report:\n%s", text)
	}
	original, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	bad := filepath.Join(out, "bad.manifest.json")
	proof, err := os.ReadFile(strings.TrimSuffix(manifest, ".manifest.json") + ".proof")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(out, "bad.proof"), proof, 0o600); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]string{"a number": strings.Replace(string(original), `"crl_number": `, `"crl_number": 1`, 1), "a field": strings.Replace(string(original), `"version"`, `"extra": 1, "version"`, 1), "the end": string(original[:len(original)-40])} {
		if err := os.WriteFile(bad, []byte(change), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"rehearse", "--config", config}, {"restore", "--request", filepath.Join(out, "no")}} {
			if text := bare(7, append([]string{"hsm", args[0], "--manifest", bad}, args[1:]...)...); !strings.Contains(text, "manifest") {
				t.Errorf("%s: %s", what, text)
			}
		}
	}

	// The officers decide without a server.
	request := filepath.Join(out, "request.json")
	adminFile := filepath.Join(n.dir, "admin.token")
	bare(0, "hsm", "restore", "--manifest", manifest, "--request", request)
	restore := []string{"hsm", "restore", "--manifest", manifest, "--config", config, "--warrant", request, "--admin-token", adminFile}
	bare(4, restore...)
	sign := func(want int, name string) {
		t.Helper()
		bare(want, "approve", "sign", "--file", request, "--officer", name, "--key", filepath.Join(officers, name+".pem"))
	}
	sign(0, "officer-1")
	sign(4, "officer-1")
	if text := bare(4, restore...); !strings.Contains(text, "1 approvals, 2 needed") {
		t.Errorf("restored by one officer: %s", text)
	}
	sign(0, "officer-2")
	if text := bare(0, restore...); !strings.Contains(text, before.Origin) {
		t.Errorf("restore: %s", text)
	}
	bare(3, restore...) // the database is not empty any more

	// The CA goes on.
	n.start()
	if n.read("root.pem") != string(must2(os.ReadFile(oldRoot))) {
		t.Error("another root")
	}
	client, adminToken = n.client(), n.token()
	fresh, err := n.issue(client, adminToken, "fresh.example")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]issued{"fresh": fresh, "kept": kept} {
		cert, chain := filepath.Join(out, name+".pem"), filepath.Join(out, name+"-chain.pem")
		if err := os.WriteFile(cert, []byte(c.Certificate), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(chain, []byte(c.Chain), 0o600); err != nil {
			t.Fatal(err)
		}
		must(t, nil, "openssl", "verify", "-CAfile", oldRoot, "-untrusted", chain, cert)
	}
	l := n.crl("issuing")
	if !revokes(l, revoked.Serial) || revokes(l, kept.Serial) {
		t.Error("the new CRL does not hold what the old one did")
	}
	if l.Number.Uint64() <= 1<<40 || old.Number.Uint64() >= 1<<40 || !l.ThisUpdate.After(old.ThisUpdate) {
		t.Errorf("CRL numbers %v and %v are not disjoint, or %v is not after %v", old.Number, l.Number, l.ThisUpdate, old.ThisUpdate)
	}
	// What the old ledger issued can be revoked here.
	if _, err := n.api(client, adminToken, "POST", "/api/v1/certificates/"+kept.Serial+"/revoke", map[string]any{"reason": "keyCompromise"}, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return revokes(n.crl("issuing"), kept.Serial) })
	ncli := commandLine{t, n}
	ncli.run(0, "hsm", "verify")
	doc := filepath.Join(out, "contract.txt")
	if err := os.WriteFile(doc, []byte("a contract"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"document", "late"} {
		ncli.run(0, "sign", doc, "--key", key, "--out", doc+"."+key)
	}
	// The cluster grows again: the restored keys are copied like any others.
	if err := os.WriteFile(config, []byte(strings.Replace(n.read("chancery.yaml"), token, token+newBackupToken(t, "near"), 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(officers, filepath.Join(n.dir, "officers")); err != nil {
		t.Fatal(err)
	}
	ncli.approve(nil, "hsm", "add", "near")
	ncli.run(0, "hsm", "verify")
	if rep := n.auditVerify(); rep.Origin == before.Origin || rep.Revocations != 2 {
		t.Errorf("audit of the new ledger: %+v", rep)
	}
	var previous string
	db, err := dbstore.OpenSnapshot(t.Context(), "sqlite:"+filepath.Join(n.dir, "chancery.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Leaves(t.Context(), 0, 1, func(_ uint64, b []byte) error { previous = string(b); return nil }); err != nil || !strings.Contains(previous, before.Origin+"\n") {
		t.Errorf("leaf 0 does not name the predecessor: %v", err)
	}
	n.stop()
	n.start() // and once more
	n.stop()
	n.auditVerify()
	// What was carried over cannot be changed afterwards.
	for what, change := range map[string]string{
		"a carried revocation is gone":       "DELETE FROM revocation WHERE leaf = (SELECT min(leaf) FROM revocation)",
		"a carried revocation ends early":    "UPDATE revocation SET not_after = not_after - 1 WHERE leaf = (SELECT min(leaf) FROM revocation)",
		"another reason":                     "UPDATE revocation SET reason = 0 WHERE leaf = (SELECT min(leaf) FROM revocation)",
		"CRL numbers go back":                "UPDATE issuer SET crl_number = 3 WHERE name = 'issuing'",
		"a root whose CRL was never renewed": "UPDATE issuer SET crl_this = crl_this + 1 WHERE name = 'root'",
		"a restored key is another":          "UPDATE hsm_key SET name = 'other' WHERE name = 'late'",
		"one officer is enough":              "UPDATE roster SET quorum = 1",
	} {
		copied := filepath.Join(t.TempDir(), "chancery.db")
		must(t, nil, "cp", filepath.Join(n.dir, "chancery.db"), copied)
		db, err := sql.Open("sqlite3", copied)
		if err != nil {
			t.Fatal(err)
		}
		if res, err := db.Exec(change); err != nil {
			t.Fatal(err)
		} else if rows, _ := res.RowsAffected(); rows != 1 {
			t.Fatalf("%s: %d rows changed", what, rows)
		}
		db.Close()
		overlay := filepath.Join(t.TempDir(), "copied.yaml")
		if err := os.WriteFile(overlay, []byte("database: sqlite:"+copied+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, code := run(t, nil, chancery, "audit", "verify", "--dir", n.dir, "--config", overlay); code != 7 {
			t.Errorf("%s: audit verify ends with %d\n%s", what, code, out)
		}
	}

	// The old one comes back, and is retired.
	if err := os.Rename(lost, s.dir); err != nil {
		t.Fatal(err)
	}
	s.start()
	client, adminToken = s.client(), s.token()
	cli.approve(nil, "hsm", "retire", "--reason", "restored elsewhere")
	if _, err := s.issue(client, adminToken, "late.example"); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("a retired cluster signs: %v", err)
	}
	eventually(t, func() bool {
		code, _ := s.api(client, adminToken, "GET", "/readyz", nil, nil)
		return code == 503
	})
	cli.run(1, "hsm", "admit", "alpha", "--reason", "no")
	s.stop()
	s.auditVerify()
	s.fail(6, "retired")
	if daily, _ := filepath.Glob(filepath.Join(backupDir, "far-*.manifest.json")); len(daily) == 0 {
		t.Error("no daily manifest was written")
	}
}

func must2(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}
