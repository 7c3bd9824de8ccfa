package hsmstore_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"testing"

	"chancery/audit"
	"chancery/hsmstore"

	"golang.org/x/crypto/ocsp"
)

func checkpoint(origin string, size uint64, root byte) []byte {
	return fmt.Appendf(nil, "%s\n%d\n%s\n", origin, size, base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{root}, 32)))
}

// csr is a CertificationRequestInfo of the issuing CA's name.
func csr(t *testing.T) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{RawSubject: name("Issuing CA")}, lintKey())
	if err != nil {
		t.Fatal(err)
	}
	r, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	return r.RawTBSCertificateRequest
}

func otherAlgorithm(t *testing.T) []byte {
	t.Helper()
	parent := &x509.Certificate{RawSubject: name("Issuing CA"), Subject: pkix.Name{CommonName: "Issuing CA"}}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"a.example"}}, parent, lint384().Public(), lint384())
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c.RawTBSCertificate
}

// The worker signs what the key's purpose allows and nothing else. The messages go
// straight to it, past the same checks in Begin.
func TestAttack_HSM_07_08_WorkerPolicy(t *testing.T) {
	c := newCluster(t)
	ctx := t.Context()
	origin, serial := c.ledger.Origin(), c.store.Members()[0].Serial
	cert := tbs(t, "Issuing CA", newSerial())
	proof := func(key string, ledger audit.LedgerID, serial string) []byte {
		return hsmstore.ProofText(ledger, c.key(t, key).SPKIHash(), serial, [32]byte{7})
	}
	digest := sha256.Sum256(cert)
	random := make([]byte, 300)
	rand.Read(random)
	for _, tc := range []struct {
		what, key string
		message   []byte
		ok        bool
	}{
		{"TBSCertificate", "issuing", cert, true},
		{"TBSCertificate of the root", "root", rootTBS(t), true},
		{"TBSCertList", "issuing", crl(t, "Issuing CA"), true},
		{"ResponseData good", "ocsp", responseData(t, ocsp.Good), true},
		{"ResponseData revoked", "ocsp", responseData(t, ocsp.Revoked), true},
		{"ResponseData unknown", "ocsp", responseData(t, ocsp.Unknown), true},
		{"signed attributes", "document", attributes(oidData, 32), true},
		{"signed attributes of a TSTInfo", "tsa", attributes(oidTSTInfo, 32), true},
		{"key proof", "issuing", proof("issuing", c.ledger.ID(), serial), true},

		{"bare digest", "issuing", digest[:], false},
		{"empty", "issuing", nil, false},
		{"random bytes", "issuing", random, false},
		{"random bytes", "document", random, false},
		{"random bytes", "ocsp", random, false},
		{"CSR", "issuing", csr(t), false},
		{"TBSCertificate of another issuer", "issuing", tbs(t, "Root CA", newSerial()), false},
		{"TBSCertList of another issuer", "issuing", crl(t, "Root CA"), false},
		{"TBSCertificate with another algorithm inside", "issuing", otherAlgorithm(t), false},
		{"TBSCertificate with trailing octets", "issuing", append(bytes.Clone(cert), 0), false},
		{"TBSCertificate cut short", "issuing", cert[:len(cert)-1], false},
		{"document under a CA key", "issuing", attributes(oidData, 32), false},
		{"TBSCertificate under a document key", "document", cert, false},
		{"TBSCertificate under an OCSP key", "ocsp", cert, false},
		{"ResponseData under a CA key", "issuing", responseData(t, ocsp.Good), false},
		{"TSTInfo under a document key", "document", attributes(oidTSTInfo, 32), false},
		{"document under a time-stamp key", "tsa", attributes(oidData, 32), false},
		{"attributes without contentType", "document", set(messageDigest(32)), false},
		{"attributes without messageDigest", "document", set(contentType(oidData)), false},
		{"attributes with a SHA-1 digest", "document", attributes(oidData, 20), false},
		{"attributes twice", "document", unsorted(contentType(oidData), contentType(oidData), messageDigest(32)), false},
		{"two content types", "document", set(contentType(oidData), contentType(oidTSTInfo), messageDigest(32)), false},
		{"attributes out of order", "document", reversed(contentType(oidData), messageDigest(32)), false},
		{"key proof of another ledger", "issuing", proof("issuing", audit.LedgerID{9}, serial), false},
		{"key proof of another key", "issuing", proof("root", c.ledger.ID(), serial), false},
		{"key proof of another token", "issuing", proof("issuing", c.ledger.ID(), "0000000000000000"), false},
		{"checkpoint under a CA key", "issuing", checkpoint(origin, 1, 1), false},
		{"TBSCertificate under the checkpoint key", "checkpoint-m1", cert, false},
	} {
		t.Run(tc.key+"/"+tc.what, func(t *testing.T) {
			_, err := c.store.SignOn(ctx, c.key(t, tc.key), "m1", 3, tc.message)
			if tc.ok && err != nil || !tc.ok && !errors.Is(err, hsmstore.ErrRefused) {
				t.Errorf("ok=%t: %v", tc.ok, err)
			}
		})
	}
	for _, m := range c.store.Members() {
		if m.State != hsmstore.Up || m.Starts != 1 {
			t.Errorf("a refusal harmed member %s: %+v", m.Name, m)
		}
	}
}

func reversed(a, b []byte) []byte {
	if bytes.Compare(a, b) < 0 {
		a, b = b, a
	}
	return unsorted(a, b)
}

// Everything but checkpoints and probes needs an intent.
func TestWorkerDemandsIntent(t *testing.T) {
	c := newCluster(t)
	_, err := c.store.SignExempt(t.Context(), c.key(t, "issuing"), tbs(t, "Issuing CA", newSerial()))
	if !errors.Is(err, hsmstore.ErrRefused) {
		t.Errorf("certificate without an intent: %v", err)
	}
	_, err = c.store.SignOn(t.Context(), c.key(t, "checkpoint-m1"), "m1", 3, checkpoint(c.ledger.Origin(), 5, 1))
	if !errors.Is(err, hsmstore.ErrRefused) {
		t.Errorf("checkpoint with an intent: %v", err)
	}
}

// Sizes of checkpoints only grow, one size has one body, and a restart of the
// worker does not make it forget.
func TestCheckpointsGrow(t *testing.T) {
	c := newCluster(t, func(cfg *hsmstore.Config) { cfg.Members = cfg.Members[:1] })
	k, origin := c.key(t, "checkpoint-m1"), c.ledger.Origin()
	sign := func(body []byte, ok bool) {
		t.Helper()
		if _, err := c.store.SignExempt(t.Context(), k, body); ok && err != nil || !ok && !errors.Is(err, hsmstore.ErrRefused) {
			t.Errorf("%q: ok=%t: %v", body, ok, err)
		}
	}
	sign(checkpoint(origin, 10, 1), true)
	sign(checkpoint(origin, 10, 1), true)
	sign(checkpoint(origin, 10, 2), false)
	sign(checkpoint(origin, 9, 1), false)
	sign(checkpoint("other.example/ledger/00", 20, 1), false)
	sign(append(checkpoint(origin, 20, 1), "extension\n"...), false)
	sign([]byte(origin+"\n020\n"+base64.StdEncoding.EncodeToString(make([]byte, 32))+"\n"), false)
	for range 5000 { // further back than one look into the journal
		sign(checkpoint(origin, 12, 1), true)
	}
	if err := once(t.Context(), c.key(t, "issuing"), issue(t, nil)); err != nil {
		t.Fatal(err)
	}
	c.kill(t, "m1")
	sign(checkpoint(origin, 11, 1), false)
	sign(checkpoint(origin, 12, 2), false)
	sign(checkpoint(origin, 13, 1), true)
	counts := c.store.TakeCounts()
	if n := counts[0].Checkpoints; n < 5000 {
		t.Errorf("%d checkpoints counted", n)
	}
	if again := c.store.TakeCounts(); again[0].Checkpoints != 0 {
		t.Errorf("counts were not taken: %+v", again)
	}
}

func TestProbe(t *testing.T) {
	c := newCluster(t)
	c.store.TakeCounts() // the probe that each start begins with
	c.store.ProbeNow(t.Context())
	for _, n := range c.store.TakeCounts() {
		if n.Probes != 1 {
			t.Errorf("member %s: %d probes", n.Member, n.Probes)
		}
	}
	k := c.store.AnyKey(hsmstore.ProbeKeyName("m1"))
	for what, text := range map[string][]byte{"other token": hsmstore.ProbeText("1"), "certificate": tbs(t, "Issuing CA", newSerial())} {
		if _, err := c.store.SignExempt(t.Context(), k, text); !errors.Is(err, hsmstore.ErrRefused) {
			t.Errorf("%s: %v", what, err)
		}
	}
	c.store.HourlyCounts(t.Context())
	last := c.db.leaf(c.db.size() - 1)
	list, _ := last.Get(audit.TagCounts)
	items, err := audit.ParseList(list)
	if err != nil || last.Op != audit.OpCounts || len(items) != 8 || string(items[0]) != "m1" || len(items[3]) != 32 {
		t.Errorf("hourly leaf: %v %v %q", err, last.Op, items)
	}
}

// The worker's journal tells what was signed, also what the store hid.
func TestJournal(t *testing.T) {
	c := newCluster(t, func(cfg *hsmstore.Config) { cfg.Members = cfg.Members[:1] })
	path := c.members[0].JournalPath
	before, err := hsmstore.ReadJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	k, cert := c.key(t, "issuing"), tbs(t, "Issuing CA", newSerial())
	if _, err := c.store.SignRaw(t.Context(), k, 4711, cert); err != nil {
		t.Fatal(err)
	}
	_, _ = c.store.SignRaw(t.Context(), k, 4712, []byte("refused"))
	after, err := hsmstore.ReadJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(after) != len(before)+1 {
		t.Fatalf("%d records more", len(after)-len(before))
	}
	r := after[len(after)-1]
	if r.Kind != hsmstore.JournalIntent || r.Number != 4711 || r.Key != k.SPKIHash() || r.SHA256 != sha256.Sum256(cert) {
		t.Errorf("%+v", r)
	}
}
