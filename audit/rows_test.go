package audit_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"database/sql"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"chancery/admin"
	"chancery/audit"
	"chancery/ca"
	"chancery/hsmstore"
)

// house is a ledger with a small CA on it whose key is in software: a root,
// certificates, revocations, an orphan, CRLs, a key and a member.
type house struct {
	rootGrant [32]byte // of its root's certificate
	*bench
	key    *ecdsa.PrivateKey
	spki   [32]byte
	root   *x509.Certificate
	serial int64
	crls   int64
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func newHouse(b *bench) *house {
	h := &house{rootGrant: genesisGrant(), bench: b, key: must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), serial: 100}
	spki := must(x509.MarshalPKIXPublicKey(h.key.Public()))
	h.spki = sha256.Sum256(spki)
	h.birth("root", audit.PurposeIssuer, spki)
	h.certificate("root", func(der []byte) []audit.Projection {
		h.root = must(x509.ParseCertificate(der))
		return []audit.Projection{ca.PutIssuer{Name: "root", SPKI: h.spki, KeyName: "root", Parent: "root", DER: der}}
	})
	h.crl()
	h.backups()
	h.certificate("one.example", nil)
	h.certificate("two.example", nil)
	h.certificate("three.example", nil)
	h.revoke(102, ca.Superseded)
	h.revoke(103, ca.Superseded)
	h.crl()
	h.revoke(103, ca.KeyCompromise)
	h.orphan()
	h.crl()
	return h
}

func (h *house) birth(name string, p audit.Purpose, spki []byte) {
	var f audit.Fields
	f.Hash(audit.TagKey, sha256.Sum256(spki))
	f.Text(audit.TagKeyName, name)
	f.Uint8(audit.TagPurpose, uint8(p))
	f.Hash(audit.TagGrant, genesisGrant())
	must(h.ledger.Append(context.Background(), audit.Event(audit.OpKeyGenerate, f),
		hsmstore.PutKey{KeyRecord: hsmstore.KeyRecord{ID: hsmstore.KeyID{1}, Name: name, Purpose: p, Algorithm: "P-256", SPKI: spki, Origin: "m1", Members: []string{"m1"}, State: hsmstore.KeyUsable}}))
	var m audit.Fields
	m.Text(audit.TagMember, "m1")
	m.Text(audit.TagSerialNumber, "abc")
	m.Hash(audit.TagGrant, genesisGrant())
	must(h.ledger.Append(context.Background(), audit.Event(audit.OpMemberAdd, m), hsmstore.PutMember{MemberRecord: hsmstore.MemberRecord{Name: "m1", Serial: "abc", Standing: hsmstore.StandingActive}}))
}

// backups designates a recipient, wraps the key to it, and disables another.
func (h *house) backups() {
	event := func(op audit.Op, p audit.Projection, set func(f *audit.Fields)) {
		var f audit.Fields
		f.Hash(audit.TagGrant, genesisGrant())
		set(&f)
		must(h.ledger.Append(context.Background(), audit.Event(op, f), p))
	}
	event(audit.OpBackup, hsmstore.PutRecipient{RecipientRecord: hsmstore.RecipientRecord{Name: "far", Serial: "5e71"}}, func(f *audit.Fields) {
		f.Text(audit.TagRecipient, "far")
		f.Text(audit.TagSerialNumber, "5e71")
		f.Text(audit.TagState, "designated")
	})
	event(audit.OpBackup, hsmstore.PutBackup{BackupRecord: hsmstore.BackupRecord{Key: hsmstore.KeyID{1}, Recipient: "far", Blob: []byte("wrapped")}}, func(f *audit.Fields) {
		f.Hash(audit.TagKey, h.spki)
		f.Text(audit.TagRecipient, "far")
		f.Text(audit.TagSerialNumber, "5e71")
		f.Hash(audit.TagSubject, sha256.Sum256([]byte("wrapped")))
	})
	event(audit.OpMemberState, hsmstore.SetStanding{Member: "m1", To: hsmstore.StandingFenced}, func(f *audit.Fields) {
		f.Text(audit.TagMember, "m1")
		f.Text(audit.TagState, "fenced")
	})
	event(audit.OpKeyState, hsmstore.SetKeyState{ID: hsmstore.KeyID{1}, From: []hsmstore.KeyState{hsmstore.KeyUsable}, To: hsmstore.KeyDisabled}, func(f *audit.Fields) {
		f.Hash(audit.TagKey, h.spki)
		f.Text(audit.TagState, "disabled")
	})
}

// genesisActs are what leaf 0 allows in these tests.
var genesisActs = []string{"sign-root root", "generate-key root issuer P-256", "add-member m1 abc", "backup-recipient far 5e71", "backup far 5e71", "retire-cluster",
	admin.RestoreAct([32]byte{7}), admin.RestoreAct([32]byte{8})}

// genesisGrant is the grant of the genesis that [bench.genesis] makes.
func genesisGrant() [32]byte {
	items := make([][]byte, len(genesisActs))
	for i, a := range genesisActs {
		items[i] = []byte(a)
	}
	var acts audit.Fields
	acts.List(audit.TagActs, items...)
	proposal := audit.Digest("proposal", acts[0].Value)
	return audit.Digest("grant", proposal[:])
}

var notAfter = time.Now().Add(24 * time.Hour).Truncate(time.Second).UTC()

func (h *house) intent() audit.Intent {
	h.serial++
	return audit.Intent{Op: audit.OpCertificate, Key: h.spki, Purpose: audit.PurposeIssuer, Issuer: h.spki, Serial: big.NewInt(h.serial).Bytes(), Requester: "test"}
}

func (h *house) certificate(name string, more func(der []byte) []audit.Projection) {
	in := h.intent()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(h.serial), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().UTC().Truncate(time.Second), NotAfter: notAfter,
		DNSNames: []string{name}, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCRLSign, SubjectKeyId: []byte{1}}
	parent := h.root
	if parent == nil {
		tmpl.IsCA, parent = true, tmpl
		in.Grant = h.rootGrant
	}
	der := must(x509.CreateCertificate(rand.Reader, tmpl, parent, h.key.Public(), h.key))
	c := must(x509.ParseCertificate(der))
	in.TBSHash, in.TBSLength = sha256.Sum256(c.RawTBSCertificate), uint64(len(c.RawTBSCertificate))
	ctx := context.Background()
	o := must(h.ledger.Begin(ctx, in, ca.ReserveSerial{Issuer: h.spki, Serial: in.Serial, NotAfter: notAfter}))
	p := []audit.Projection{ca.PutCertificate{Issuer: h.spki, Serial: in.Serial, Intent: o.Index, Profile: "p", Requester: "test", Names: []ca.Name{{Kind: ca.DNS, Value: name}},
		NotBefore: c.NotBefore, NotAfter: c.NotAfter, SPKI: h.spki, DER: der}}
	if more != nil {
		p = append(p, more(der)...)
	}
	must(h.ledger.Done(ctx, o, audit.Done{Artefact: sha256.Sum256(der)}, p...))
}

func (h *house) orphan() {
	in := h.intent()
	ctx := context.Background()
	o := must(h.ledger.Begin(ctx, in, ca.ReserveSerial{Issuer: h.spki, Serial: in.Serial, NotAfter: notAfter}))
	must(h.ledger.Orphan(ctx, o, "test", nil, hsmstore.Orphaned{Intent: o.Index, Issuer: h.spki, Serial: in.Serial, At: time.Now()}))
}

func (h *house) revoke(serial int64, why ca.Reason) {
	at := time.Now().Truncate(time.Second)
	var f audit.Fields
	f.Hash(audit.TagIssuer, h.spki)
	f.Bytes(audit.TagSerial, big.NewInt(serial).Bytes())
	f.Text(audit.TagReason, why.String())
	f.Uint64(audit.TagRevokedAt, uint64(at.Unix()))
	must(h.ledger.Append(context.Background(), audit.Event(audit.OpRevoke, f), ca.RevokeSerial{Issuer: h.spki, Serial: big.NewInt(serial).Bytes(), Reason: why, At: at}))
}

func (h *house) crl() {
	h.crls++
	ctx := context.Background()
	this := time.Unix(time.Now().Unix()+h.crls, 0)
	covers, revoked, err := h.db.Revocations(ctx, h.spki, time.Unix(0, 0))
	must(0, err)
	tmpl := &x509.RevocationList{Number: big.NewInt(h.crls), ThisUpdate: this, NextUpdate: this.Add(time.Hour)}
	for _, r := range revoked {
		tmpl.RevokedCertificateEntries = append(tmpl.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: new(big.Int).SetBytes(r.Serial), RevocationTime: r.At, ReasonCode: int(r.Reason)})
	}
	der := must(x509.CreateRevocationList(rand.Reader, tmpl, h.root, crypto.Signer(h.key)))
	scope := audit.CRLScope{Number: uint64(h.crls), ThisUpdate: this, Covers: covers}
	o := must(h.ledger.Begin(ctx, audit.Intent{Op: audit.OpCRL, Key: h.spki, Purpose: audit.PurposeIssuer, Issuer: h.spki, CRL: &scope}, ca.BeginCRL{Issuer: h.spki, Scope: scope}))
	must(h.ledger.Done(ctx, o, audit.Done{Artefact: sha256.Sum256(der)}, ca.PutCRL{Issuer: h.spki, Number: scope.Number, Covers: covers, NextUpdate: this.Add(time.Hour), DER: der}))
}

// TestTamperRows changes rows that leaves brought about, and leaves alone, as
// somebody with full access to the database would: each change is noticed.
func TestTamperRows(t *testing.T) {
	onlySQLite(t)
	const drop = "DROP TRIGGER ledger_leaf_keep_u;"
	for what, change := range map[string]string{
		"revocation removed":               "DELETE FROM revocation WHERE serial = x'66'",
		"revocation of an orphan removed":  "DELETE FROM revocation WHERE serial = x'69'",
		"revocation added":                 "INSERT INTO revocation SELECT issuer, x'68', 5, 0, revoked_at, not_after FROM revocation WHERE serial = x'66'",
		"revocation moved":                 "UPDATE revocation SET serial = x'68' WHERE serial = x'66'",
		"key compromise played down":       "UPDATE revocation SET reason = 4 WHERE serial = x'67'",
		"revocation dated later":           "UPDATE revocation SET revoked_at = revoked_at + 60 WHERE serial = x'66'",
		"revocation falls off the CRL":     "UPDATE revocation SET not_after = 1 WHERE serial = x'66'",
		"both ends moved":                  "UPDATE revocation SET not_after = 1 WHERE serial = x'66'; UPDATE certificate SET not_after = 1 WHERE serial = x'66'",
		"serial can be given again":        "DELETE FROM serial WHERE serial = x'68'",
		"serial of another issuer":         "UPDATE serial SET issuer = zeroblob(32) WHERE serial = x'68'",
		"certificate removed":              "DELETE FROM certificate WHERE serial = x'68'",
		"certificate of another requester": "UPDATE certificate SET requester = 'acme:mallory' WHERE serial = x'68'",
		"certificate under another name":   "UPDATE certificate SET names = 'dns:evil.example' WHERE serial = x'68'",
		"certificate with another key":     "UPDATE certificate SET spki_hash = zeroblob(32) WHERE serial = x'68'",
		"certificate valid earlier":        "UPDATE certificate SET not_before = 0 WHERE serial = x'68'",
		"certificate replaced":             "UPDATE certificate SET der = (SELECT der FROM certificate WHERE serial = x'67') WHERE serial = x'68'",
		"older CRL served":                 "UPDATE issuer SET crl = substr(crl, 1, length(crl) - 1) || CASE WHEN substr(crl, length(crl)) = x'00' THEN x'01' ELSE x'00' END",
		"CRL withdrawn":                    "UPDATE issuer SET crl = NULL",
		"CRL said to cover more":           "UPDATE issuer SET crl_cover = crl_cover + 1",
		"CRL number goes back":             "UPDATE issuer SET crl_number = 1",
		"thisUpdate goes back":             "UPDATE issuer SET crl_this = 1",
		"issuer replaced":                  "UPDATE issuer SET der = substr(der, 1, length(der) - 1) || CASE WHEN substr(der, length(der)) = x'00' THEN x'01' ELSE x'00' END",
		"key without a birth":              "INSERT INTO hsm_key (id, name, purpose, algorithm, spki, spki_hash, subject, origin, members, birth, state) SELECT x'02', 'evil', purpose, algorithm, x'3000', x'00', subject, origin, members, birth, 'usable' FROM hsm_key",
		"key for another purpose":          "UPDATE hsm_key SET purpose = 5",
		"member that never joined":         "INSERT INTO hsm_member (name, serial, label, leaf) VALUES ('m2', 'def', '', 1)",
		"token swapped":                    "UPDATE hsm_member SET serial = 'def'",
		"key enabled by hand":              "UPDATE hsm_key SET state = 'usable'",
		"member let in by hand":            "UPDATE hsm_member SET standing = 'active'",
		"recipient removed by hand":        "UPDATE hsm_recipient SET removed = 1",
		"recipient on another token":       "UPDATE hsm_recipient SET serial = 'def'",
		"recipient that nobody designated": "INSERT INTO hsm_recipient (name, serial, label, removed, leaf) SELECT 'near', serial, label, removed, leaf FROM hsm_recipient",
		"backup lost":                      "DELETE FROM hsm_backup",
		"backup exchanged":                 "UPDATE hsm_backup SET blob = x'00'",
		"closed intent listed as open":     "INSERT INTO ledger_open VALUES (3, 'n')",
		"open intent not listed":           "DELETE FROM ledger_open",
		"open intent of another node":      "UPDATE ledger_open SET node = 'elsewhere'",
		"kind beside the leaf":             drop + "UPDATE ledger_leaf SET kind = 3 WHERE kind = 2",
		"closes beside the leaf":           drop + "UPDATE ledger_leaf SET closes = NULL WHERE kind = 2",
		"tile behind the head":             "INSERT INTO ledger_tile VALUES (0, 0, x'00')",
		"body of a checkpoint":             "UPDATE ledger_checkpoint SET body = replace(body, 'ledger', 'Ledger')",
		"size of a checkpoint":             "UPDATE ledger_checkpoint SET size = size - 1",
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			b := newLedger(t)
			newHouse(b)
			b.checkpoint()
			must(b.ledger.Begin(context.Background(), intent(1)))
			if rep, err := b.verify(); err != nil || rep.Certificates != 4 || rep.Revocations != 3 || rep.Open != 1 || rep.Anchored != 1 {
				t.Fatalf("before: %+v, %v", rep, err)
			}
			s := b.sweeping(audit.SweepOptions{Every: 20 * time.Millisecond})
			b.await("the sweeper has read all twice", func() bool { return !s.State().Whole.IsZero() })
			if alarms := s.State().Alarms; len(alarms) > 0 {
				t.Fatalf("alarms before: %v", alarms)
			}
			raw := must(sql.Open("sqlite3", b.path("x.db")+"?_busy_timeout=10000"))
			defer raw.Close()
			if _, err := raw.Exec(change); err != nil {
				t.Fatal(err)
			}
			_, err := b.verify()
			var v *audit.Violation
			if !errors.As(err, &v) {
				t.Errorf("verify: %v; want a violation", err)
			}
			b.await("the sweeper finds it, too", func() bool { return len(s.State().Alarms) > 0 })
			t.Log(err, s.State().Alarms)
		})
	}
}

// A CRL that leaves out what it claims to cover is noticed although all was signed
// and recorded in good order.
func TestCRLThatHidesARevocation(t *testing.T) {
	onlySQLite(t)
	b := newLedger(t)
	h := newHouse(b)
	h.revoke(104, ca.Superseded)
	hidden := must(sql.Open("sqlite3", b.path("x.db")))
	defer hidden.Close()
	must(hidden.Exec("CREATE TABLE pocket AS SELECT * FROM revocation WHERE serial = x'68'; DELETE FROM revocation WHERE serial = x'68'"))
	h.crl()
	must(hidden.Exec("INSERT INTO revocation SELECT * FROM pocket; DROP TABLE pocket"))
	var v *audit.Violation
	if _, err := b.verify(); !errors.As(err, &v) {
		t.Errorf("verify: %v; want a violation", err)
	}
}

// After the officers have ended a cluster nothing more is signed.
func TestVerifyRetired(t *testing.T) {
	b := newLedger(t)
	newHouse(b)
	var f audit.Fields
	f.Hash(audit.TagGrant, genesisGrant())
	f.Text(audit.TagMember, "m1")
	f.Text(audit.TagState, "retired")
	must(b.ledger.Append(context.Background(), audit.Event(audit.OpMemberState, f), hsmstore.SetStanding{Member: "m1", To: hsmstore.StandingRetired}))
	b.checkpoint()
	if _, err := b.verify(); err != nil {
		t.Fatal(err)
	}
	must(b.ledger.Begin(context.Background(), intent(1)))
	b.checkpoint()
	var v *audit.Violation
	if _, err := b.verify(); !errors.As(err, &v) {
		t.Errorf("verify: %v; want a violation", err)
	}
}

// The certificate of a CA needs the officers, or genesis.
func TestVerifyUngrantedCA(t *testing.T) {
	b := newLedger(t)
	h := &house{bench: b, key: must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), serial: 100}
	spki := must(x509.MarshalPKIXPublicKey(h.key.Public()))
	h.spki = sha256.Sum256(spki)
	h.birth("root", audit.PurposeIssuer, spki)
	h.certificate("root", func(der []byte) []audit.Projection {
		h.root = must(x509.ParseCertificate(der))
		return []audit.Projection{ca.PutIssuer{Name: "root", SPKI: h.spki, KeyName: "root", Parent: "root", DER: der}}
	})
	b.checkpoint()
	var v *audit.Violation
	if _, err := b.verify(); !errors.As(err, &v) || !strings.Contains(err.Error(), "CA without a grant") {
		t.Errorf("verify: %v; want a violation", err)
	}
}
