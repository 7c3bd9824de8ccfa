package test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/admin"
	"chancery/audit"
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
	designated := cli.run(5, "hsm", "backup", "far", "--designate", "--lifetime", "1s")
	cli.approve(nil, "hsm", "backup", "far", "--designate")
	if result := cli.approve(nil, "hsm", "backup", "far"); !strings.Contains(result, "issuing") || !strings.Contains(result, "document") {
		t.Fatalf("backup: %s", result)
	}
	cli.approve(nil, "key", "generate", "late", "--purpose", "document", "--algorithm", "RSA-3072") // wrapped at birth
	cli.run(0, "key", "disable", "late", "--reason", "not now")
	// A third officer joins: the new ledger begins with a roster that followed leaf 0's.
	cli.approve(nil, "officer", "add", "officer-3", "--public", s.newOfficer("officer-3"), "--role", "crypto-officer")
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
	for what, text := range map[string]string{"the designation": designated, "the manifest": printed} {
		if !strings.Contains(text, "ledger   "+before.Ledger+"\n") {
			t.Errorf("%s does not show the ledger's id:\n%s", what, text)
		}
	}
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
	id := []string{"--ledger", before.Ledger}
	bare(2, "hsm", "rehearse", "--manifest", manifest, "--config", config)
	bare(0, append([]string{"hsm", "rehearse", "--manifest", manifest, "--config", config, "--out", report}, id...)...)
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
	if text := bare(0, append([]string{"hsm", "rehearse", "--manifest", manifest, "--config", config}, id...)...); !strings.Contains(text, "would come back as a whole") {
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
		for _, args := range [][]string{append([]string{"rehearse", "--config", config}, id...), append([]string{"restore", "--request", filepath.Join(out, "no")}, id...)} {
			if text := bare(7, append([]string{"hsm", args[0], "--manifest", bad}, args[1:]...)...); !strings.Contains(text, "manifest") {
				t.Errorf("%s: %s", what, text)
			}
		}
	}

	forgedManifest(t, manifest, config, before.Ledger, false)
	forgedManifest(t, manifest, config, before.Ledger, true)

	// The officers decide without a server.
	request := filepath.Join(out, "request.json")
	adminFile := filepath.Join(n.dir, "admin.token")
	bare(0, append([]string{"hsm", "restore", "--manifest", manifest, "--request", request}, id...)...)
	restore := append([]string{"hsm", "restore", "--manifest", manifest, "--config", config, "--warrant", request, "--admin-token", adminFile}, id...)
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
	// Killed between an issuer and its revocations: nobody finishes that, it begins again.
	killed := exec.Command(chancery, restore...)
	killed.Env = append(os.Environ(), "CHANCERY_FAILPOINT=restored-issuer:2")
	if text, err := killed.CombinedOutput(); err == nil || killed.ProcessState.Exited() {
		t.Fatalf("the restore was not killed: %s", text)
	}
	n.fail(3, "restore", "empty")
	if out, code := run(t, nil, chancery, "audit", "verify", "--dir", n.dir); code != 7 || !strings.Contains(out, "never finished") {
		t.Errorf("audit verify accepts half a restore: %s", out)
	}
	for _, gone := range []string{"chancery.db", "chancery.db-wal", "chancery.db-shm", "journal", "officers"} {
		if err := os.RemoveAll(filepath.Join(n.dir, gone)); err != nil {
			t.Fatal(err)
		}
	}
	if text := bare(0, restore...); !strings.Contains(text, before.Origin) {
		t.Errorf("restore: %s", text)
	}
	bare(3, restore...) // the database is not empty any more
	// Nor does the warrant restore another ledger from this token.
	elsewhere := filepath.Join(t.TempDir(), "chancery.yaml")
	again := strings.ReplaceAll(n.read("chancery.yaml"), n.dir, filepath.Dir(elsewhere))
	again = strings.ReplaceAll(again, filepath.Join(filepath.Dir(elsewhere), "journal"), filepath.Join(filepath.Dir(elsewhere), "j"))
	if err := os.WriteFile(elsewhere, []byte(again), 0o600); err != nil {
		t.Fatal(err)
	}
	twice := slices.Clone(restore)
	twice[slices.Index(twice, config)] = elsewhere
	if text := bare(4, twice...); !strings.Contains(text, "has restored ledger") {
		t.Errorf("ATTACK WORKED: a warrant restored twice: %s", text)
	}

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
	if l.Number.Uint64() < uint64(l.ThisUpdate.Add(-time.Hour).Unix())<<24 || old.Number.Uint64() >= 1<<40 || !l.ThisUpdate.After(old.ThisUpdate) {
		t.Errorf("CRL numbers %v and %v are not disjoint, or %v is not after %v", old.Number, l.Number, l.ThisUpdate, old.ThisUpdate)
	}
	// What the old ledger issued can be revoked here.
	revoke := func(serial, reason, certificate string) int {
		t.Helper()
		code, _ := n.api(client, adminToken, "POST", "/api/v1/certificates/"+serial+"/revoke", map[string]any{"reason": reason, "certificate": certificate}, nil)
		return code
	}
	for what, code := range map[string]int{
		"by its serial alone":            revoke(kept.Serial, "superseded", ""),
		"an invented serial":             revoke("1234567890abcdef", "superseded", kept.Certificate),
		"the issuing CA":                 revoke(serialOf(t, kept.Chain), "superseded", kept.Chain),
		"a certificate of somebody else": revoke(serialOf(t, foreignCertificate(t, kept.Serial)), "superseded", foreignCertificate(t, kept.Serial)),
	} {
		if code < 400 || code >= 500 {
			t.Errorf("%s: status %d", what, code)
		}
	}
	if _, err := n.api(client, adminToken, "POST", "/api/v1/certificates/"+kept.Serial+"/revoke", map[string]any{"reason": "superseded"}, nil); err == nil || !strings.Contains(err.Error(), "sending the certificate itself") {
		t.Errorf("by its serial alone: %v", err)
	}
	der, _ := pem.Decode([]byte(kept.Certificate))
	for _, c := range []struct{ serial, reason, certificate string }{
		{revoked.Serial, "keyCompromise", revoked.Certificate}, // the worse reason replaces the other, also of what was carried over
		{kept.Serial, "superseded", kept.Certificate},
		{kept.Serial, "keyCompromise", base64.StdEncoding.EncodeToString(der.Bytes)},
	} {
		if code := revoke(c.serial, c.reason, c.certificate); code != 202 {
			t.Fatalf("revoking what the old ledger issued: status %d", code)
		}
	}
	eventually(t, func() bool {
		c := n.crl("issuing")
		return reasonOf(c, kept.Serial) == 1 && reasonOf(c, revoked.Serial) == 1
	})
	if c := n.crl("issuing"); len(c.RevokedCertificateEntries) != 2 {
		t.Errorf("%d entries on the CRL", len(c.RevokedCertificateEntries))
	}
	ncli := commandLine{t, n}
	leftovers(t, ncli.run(7, "hsm", "verify"))
	doc := filepath.Join(out, "contract.txt")
	if err := os.WriteFile(doc, []byte("a contract"), 0o600); err != nil {
		t.Fatal(err)
	}
	// A key that was disabled never became usable here.
	ncli.run(1, "sign", doc, "--key", "late", "--out", doc+".no")
	if changed := leavesOf(t, n, audit.OpKeyState); changed != 0 {
		t.Errorf("%d leaves change the state of a key", changed)
	}
	ncli.run(0, "key", "enable", "late", "--reason", "now")
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
	leftovers(t, ncli.run(7, "hsm", "verify"))
	if rep := n.auditVerify(); rep.Origin == before.Origin || rep.Revocations != 2 || rep.Succeeds != before.Ledger {
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

// leavesOf counts the leaves of an operation.
func leavesOf(t *testing.T, s *site, op audit.Op) (count int) {
	t.Helper()
	db, err := dbstore.OpenSnapshot(t.Context(), "sqlite:"+filepath.Join(s.dir, "chancery.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	head, err := db.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = db.Leaves(t.Context(), 0, head.Size, func(_ uint64, b []byte) error {
		l, err := audit.DecodeLeaf(b)
		if l.Op == op {
			count++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return count
}

func must2(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

func serialOf(t *testing.T, text string) string {
	t.Helper()
	block, _ := pem.Decode([]byte(text))
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(c.SerialNumber.Bytes())
}

// foreignCertificate bears the issuing CA's name and a serial of its, and another's
// signature.
func foreignCertificate(t *testing.T, serial string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	n, _ := new(big.Int).SetString(serial, 16)
	tmpl := &x509.Certificate{SerialNumber: n, Subject: pkix.Name{Organization: []string{"Chancery at localhost"}, CommonName: "Chancery Issuing CA"}, NotAfter: time.Now().Add(time.Hour)}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: must2(x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key))}))
}

// reasonOf is the reason for which a CRL lists a serial; -1: it does not.
func reasonOf(l *x509.RevocationList, serial string) int {
	for _, e := range l.RevokedCertificateEntries {
		if hex.EncodeToString(e.SerialNumber.Bytes()) == serial {
			return e.ReasonCode
		}
	}
	return -1
}

// leftovers wants no findings but the keys that cut restores made for their own ledgers:
// the token has them until somebody destroys them.
func leftovers(t *testing.T, out string) {
	t.Helper()
	n := 0
	for line := range strings.Lines(out) {
		if strings.Contains(line, " on ") && strings.Contains(line, "label") {
			n++
			if !strings.HasPrefix(line, "unknown") || !strings.Contains(line, "chancery:checkpoint:") && !strings.Contains(line, "chancery:probe:") {
				t.Errorf("finding: %s", line)
			}
		}
	}
	if n != 4 {
		t.Errorf("%d findings:\n%s", n, out)
	}
}

// softKey signs checkpoints of a ledger that nobody should believe.
type softKey struct{ *ecdsa.PrivateKey }

func (k softKey) SignCheckpoint(_ context.Context, body []byte) ([]audit.CheckpointLine, error) {
	h := sha256.Sum256(body)
	sig, err := ecdsa.SignASN1(rand.Reader, k.PrivateKey, h[:])
	spki, err2 := x509.MarshalPKIXPublicKey(k.PrivateKey.Public())
	return []audit.CheckpointLine{{Key: "soft", SPKI: spki, Signature: sig}}, errors.Join(err, err2)
}

// forgedManifest is what somebody makes who has the files of a backup: a ledger with
// officers of his own around the keys of another. It is perfect but for the ledger's id.
// With older it has the form from before rosters could change.
func forgedManifest(t *testing.T, manifest, config, ledgerID string, older bool) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	dir := t.TempDir()
	roster := admin.Roster{Quorum: 2}
	for _, name := range []string{"mallory-1", "mallory-2"} {
		k, err := admin.NewOfficerKey(name)
		if err != nil {
			t.Fatal(err)
		}
		o, err := k.Officer()
		if err != nil {
			t.Fatal(err)
		}
		roster.Officers = append(roster.Officers, o)
	}
	db, err := dbstore.Open(ctx, "sqlite:"+filepath.Join(dir, "forged.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	ledger, err := audit.Open(ctx, db, audit.Options{Node: "forger", Build: "x"})
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() { ledger.Run(ctx) })
	defer running.Wait()
	defer cancel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	if err := ledger.Genesis(ctx, audit.Genesis{Random: [32]byte{9}, Dev: true, Domain: "localhost", Roster: roster.Digest(), CheckpointKeys: [][]byte{spki}, Acts: []string{"x"}}); err != nil {
		t.Fatal(err)
	}
	cp := audit.NewCheckpointer(ledger, softKey{key}, "")
	if err := cp.Sign(ctx); err != nil {
		t.Fatal(err)
	}
	var m map[string]json.RawMessage
	if err := json.Unmarshal(must2(os.ReadFile(manifest)), &m); err != nil {
		t.Fatal(err)
	}
	put := func(name string, v any) { m[name] = must2(json.Marshal(v)) }
	id := ledger.ID()
	put("ledger", hex.EncodeToString(id[:]))
	put("origin", ledger.Origin())
	put("rosters", admin.History{Base: roster})
	if older {
		put("roster", roster)
		delete(m, "rosters")
	}
	if err := db.Leaves(ctx, 0, 1, func(_ uint64, b []byte) error { put("genesis", b); return nil }); err != nil {
		t.Fatal(err)
	}
	note, err := cp.Latest(ctx)
	if err != nil {
		t.Fatal(err)
	}
	put("checkpoint", note)
	text := must2(json.Marshal(m))
	var f audit.Fields
	f.Hash(audit.TagManifest, sha256.Sum256(text))
	f.Text(audit.TagRecipient, "far")
	leaf, err := ledger.Append(ctx, audit.Event(audit.OpBackup, f))
	if err != nil {
		t.Fatal(err)
	}
	if err := cp.Sign(ctx); err != nil {
		t.Fatal(err)
	}
	proof, err := cp.ProofText(ctx, leaf.Index)
	if err != nil {
		t.Fatal(err)
	}
	forged := filepath.Join(dir, "forged.manifest.json")
	if err := os.WriteFile(forged, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "forged.proof"), proof, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"rehearse", "--config", config}, {"restore", "--request", filepath.Join(dir, "request.json")}} {
		out, code := run(t, nil, chancery, append([]string{"hsm", args[0], "--manifest", forged, "--ledger", ledgerID}, args[1:]...)...)
		if code != 7 || !strings.Contains(out, "is of ledger "+hex.EncodeToString(id[:])) {
			t.Errorf("ATTACK WORKED: %s takes a ledger of somebody else: %d %s", args[0], code, out)
		}
	}
}
