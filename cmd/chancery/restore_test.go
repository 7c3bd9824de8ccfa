package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"chancery/admin"
	"chancery/audit"
	"chancery/hsmstore"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// rootOf is a manifest's issuer and its key.
func rootOf() (manifestKey, manifestIssuer) {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	now := time.Now().UTC().Truncate(time.Second)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Root"}, NotBefore: now, NotAfter: now.Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte{1}}
	cert := must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key))))
	list := &x509.RevocationList{Number: big.NewInt(4), ThisUpdate: now, NextUpdate: now.Add(time.Hour), RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: big.NewInt(7), RevocationTime: now}}}
	return manifestKey{ID: strings.Repeat("0a", 16), Name: "root", Purpose: "issuer", Algorithm: "P-256", SPKI: cert.RawSubjectPublicKeyInfo, Subject: cert.RawSubject, State: hsmstore.KeyUsable,
			KEK: hsmstore.BackupKEK{CKAID: []byte{1}}, Blob: []byte{1}},
		manifestIssuer{Name: "root", Key: "root", Parent: "root", Certificate: cert.Raw, CRL: must(x509.CreateRevocationList(rand.Reader, list, cert, key)), CRLNumber: 4}
}

// An issuer of a manifest has the key that its certificate says, which is an issuer's.
func TestTypedManifest(t *testing.T) {
	key, issuer := rootOf()
	otherKey, other := rootOf()
	open := func(k manifestKey, i manifestIssuer) (*openedManifest, error) {
		m := &openedManifest{}
		m.manifest.Keys, m.manifest.Issuers = []manifestKey{k}, []manifestIssuer{i}
		return m, m.typed()
	}
	m, err := open(key, issuer)
	if err != nil || m.revoked != 1 || len(m.lacking()) != 0 {
		t.Fatalf("%+v %v", m, err)
	}
	for what, change := range map[string]func(*manifestKey, *manifestIssuer){
		"a key for documents":         func(k *manifestKey, _ *manifestIssuer) { k.Purpose = "document" },
		"a key for another subject":   func(k *manifestKey, _ *manifestIssuer) { k.Subject = []byte{0x30, 0} },
		"a key for no subject":        func(k *manifestKey, _ *manifestIssuer) { k.Subject = nil },
		"another key":                 func(k *manifestKey, _ *manifestIssuer) { k.SPKI = otherKey.SPKI },
		"another certificate":         func(_ *manifestKey, i *manifestIssuer) { i.Certificate, i.CRL = other.Certificate, nil },
		"another's CRL":               func(_ *manifestKey, i *manifestIssuer) { i.CRL = other.CRL },
		"a checkpoint key":            func(k *manifestKey, _ *manifestIssuer) { k.Purpose = "checkpoint" },
		"a CRL beyond the last given": func(_ *manifestKey, i *manifestIssuer) { i.CRLNumber = 3 },
	} {
		k, i := key, issuer
		change(&k, &i)
		if _, err := open(k, i); err == nil {
			t.Errorf("taken with %s", what)
		}
	}
}

// A manifest vouches for itself: only the id that people have kept tells whose it is.
func TestManifestIsOf(t *testing.T) {
	m := &openedManifest{ledger: audit.LedgerID{1, 2, 3}}
	if err := m.isOf(hex.EncodeToString(m.ledger[:])); err != nil {
		t.Error(err)
	}
	for ledger, want := range map[string]int{"": exitUsage, "010203": exitUsage, "no hex": exitUsage, strings.Repeat("01", 32): exitVerify} {
		if err := m.isOf(ledger); code(err) != want {
			t.Errorf("--ledger %q: %v", ledger, err)
		}
	}
}

func TestOldManifest(t *testing.T) {
	m := &openedManifest{}
	m.Made = time.Now().Add(-49 * time.Hour)
	if err := (&restore{}).young(m, time.Now()); code(err) != exitUsage || !strings.Contains(err.Error(), "49h0m0s old") {
		t.Error(err)
	}
	if err := (&restore{oldOK: true}).young(m, time.Now()); err != nil {
		t.Error(err)
	}
	m.Made = time.Now().Add(-47 * time.Hour)
	if err := (&restore{}).young(m, time.Now()); err != nil {
		t.Error(err)
	}
}

// init and serve finish no restore that was cut short: revocations would be missing.
func TestNotRestored(t *testing.T) {
	var f audit.Fields
	if err := notRestored(audit.Leaf{Fields: f}); err != nil {
		t.Error(err)
	}
	f.Bytes(audit.TagPrevious, []byte("old.example/ledger/00\n1\n\n"))
	if err := notRestored(audit.Leaf{Fields: f}); code(err) != exitConfig || !strings.Contains(err.Error(), "hsm restore") {
		t.Error(err)
	}
}

// Officers sign a restore from a file, after they have seen what it is of; nothing else.
func TestSignFile(t *testing.T) {
	dir := t.TempDir()
	roster := admin.Roster{Quorum: 2}
	for _, name := range []string{"ada", "bob"} {
		k := must(admin.NewOfficerKey(name))
		if err := k.Save(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		roster.Officers = append(roster.Officers, must(k.Officer()))
	}
	m := &openedManifest{hash: [32]byte{5}, ledger: audit.LedgerID{0xab, 0xcd}, size: 4711, revoked: 17}
	m.manifest.Ledger, m.Rosters.Base, m.Made = hex.EncodeToString(m.ledger[:]), roster, time.Date(2026, 11, 25, 9, 0, 0, 0, time.UTC)
	m.Recipient = manifestRecipient{Name: "far", Serial: "5e71a1"}
	file := filepath.Join(dir, "request.json")
	var out bytes.Buffer
	sign := func(officer string) error {
		out.Reset()
		c := &cobra.Command{}
		c.SetOut(&out)
		c.SetErr(&out)
		return signFile(c, nil, file, officer, filepath.Join(dir, officer), true)
	}
	if err := (&restore{request: file, lifetime: time.Hour, out: &out}).ask(m); err != nil {
		t.Fatal(err)
	}
	if err := sign("ada"); err != nil {
		t.Fatal(err)
	}
	for _, shown := range []string{"action     restore", hex.EncodeToString(m.ledger[:]), hex.EncodeToString(m.hash[:]), "2026-11-25T09:00:00Z", "4711", "far", "5e71a1", "17"} {
		if !strings.Contains(out.String(), shown) {
			t.Errorf("officers do not see %s:\n%s", shown, out.String())
		}
	}
	if w := must(readWarrantFile(file)); len(w.Warrant.Votes) != 1 {
		t.Errorf("%d votes", len(w.Warrant.Votes))
	}
	// What the file says beside the proposal is not believed.
	whole := must(os.ReadFile(file))
	if err := os.WriteFile(file, bytes.Replace(whole, []byte(`"revocations": 17`), []byte(`"revocations": 18`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := sign("bob"); code(err) != exitVerify {
		t.Errorf("signed other parameters: %v", err)
	}
	// Another action, perfect in its form.
	parameters := must(admin.CanonicalParameters([]byte(`{"algorithm":"P-256","name":"k1","purpose":"document"}`)))
	terms := admin.Terms{Ledger: m.ledger, Roster: roster, RosterDigest: roster.Digest(), PolicyDigest: roster.PolicyDigest()}
	proposal := must(terms.Draft(admin.GenerateKey, must(actsOf(admin.GenerateKey, parameters)), parameters, admin.AdminToken, time.Now(), time.Hour).Encode())
	w := warrantFile{Parameters: json.RawMessage(parameters), Warrant: admin.Warrant{Proposal: proposal, Votes: []admin.VoteRecord{}, Roster: roster}}
	if err := w.save(file); err != nil {
		t.Fatal(err)
	}
	if err := sign("ada"); code(err) != exitVerify || !strings.Contains(err.Error(), "only a restore") {
		t.Errorf("signed a %s: %v", admin.GenerateKey, err)
	}
}

// A file is put in place as a whole, with its mode, and through no link.
func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path, victim := filepath.Join(dir, "f"), filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("precious"), 0o644); err != nil {
		t.Fatal(err)
	}
	for what, prepare := range map[string]func() error{
		"beside a link of a known name": func() error { return os.Symlink(victim, path+".new") },
		"in place of a link":            func() error { return os.Symlink(victim, path) },
		"in place of an open file":      func() error { return os.WriteFile(path, []byte("old"), 0o666) },
	} {
		if err := prepare(); err != nil {
			t.Fatal(err)
		}
		if err := writeFile(path, []byte("secret"), 0o600); err != nil {
			t.Fatal(err)
		}
		st := must(os.Lstat(path))
		if b := must(os.ReadFile(path)); string(b) != "secret" || st.Mode() != 0o600 {
			t.Errorf("%s: %q with mode %s", what, b, st.Mode())
		}
		if b := must(os.ReadFile(victim)); string(b) != "precious" {
			t.Errorf("%s: wrote through it", what)
		}
		if left := must(os.ReadDir(dir)); len(left) > 2 {
			t.Errorf("%s: %v", what, left)
		}
		os.Remove(path)
		os.Remove(path + ".new")
	}
	if err := writeFile(filepath.Join(dir, "none", "f"), nil, 0o600); err == nil {
		t.Error("wrote into a folder that does not exist")
	}
}

// A manifest with big CRLs comes through; an answer that is too long is told as such.
func TestLongAnswers(t *testing.T) {
	long := append(append([]byte(`"`), bytes.Repeat([]byte("x"), maxAnswer)...), '"')
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(long) }))
	defer s.Close()
	dir := t.TempDir()
	r := &remote{server: s.URL, tokenFile: filepath.Join(dir, "token"), roots: filepath.Join(dir, "roots.pem")}
	for file, text := range map[string][]byte{r.tokenFile: []byte("t"), r.roots: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})} {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var answer string
	if err := r.get(t.Context(), "/", &answer); err == nil || !strings.Contains(err.Error(), "longer than 4 MiB") {
		t.Errorf("%v", err)
	}
	r.slow = true
	if err := r.post(t.Context(), "/", nil, &answer); err != nil || len(answer) != maxAnswer {
		t.Errorf("%d octets: %v", len(answer), err)
	}
}
