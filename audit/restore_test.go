package audit_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"math/big"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/admin"
	"chancery/audit"
	"chancery/ca"
	"chancery/hsmstore"
)

// predecessor is a ledger of two officers of three, with what its successors quote.
type predecessor struct {
	*bench
	officers []*admin.OfficerKey
	roster   admin.Roster
	leaf0    []byte
	last     string // checkpoint
}

func newPredecessor(t *testing.T) *predecessor {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	p := &predecessor{bench: &bench{TB: t, dir: t.TempDir(), signer: softSigner{key}, spki: must(x509.MarshalPKIXPublicKey(key.Public())), url: database(t)}, roster: admin.Roster{Quorum: 2}}
	for _, name := range []string{"ada", "bob", "cyd"} {
		k := must(admin.NewOfficerKey(name))
		p.officers = append(p.officers, k)
		p.roster.Officers = append(p.roster.Officers, must(k.Officer()))
	}
	must(0, p.open())
	t.Cleanup(func() { p.stop() })
	g := p.genesis()
	g.Domain, g.Roster = "old.example", p.roster.Digest()
	must(0, p.ledger.Genesis(t.Context(), g))
	must(0, p.db.Leaves(t.Context(), 0, 1, func(_ uint64, b []byte) error { p.leaf0 = append(p.leaf0, b...); return nil }))
	p.last = p.checkpoint()
	return p
}

// successor is a ledger that was restored from a predecessor. A test changes what stands
// in it before it is made.
type successor struct {
	*bench
	from     *predecessor
	manifest [32]byte
	leaf0    []byte // of the predecessor, as the warrant leaf has it
	last     string // its checkpoint, as leaf 0 has it
	action   string
	acts     []string
	asked    time.Time // when the officers were asked
	voters   []*admin.OfficerKey
	roster   admin.Roster // that of leaf 0
	history  admin.History
	signed   admin.Roster // that of the proposal
	count    uint64       // revocations, as the end says
	order    string       // of the leaves: warrant, issuer, end
	spki     [32]byte     // of the issuer
}

func newSuccessor(t *testing.T, from *predecessor) *successor {
	s := &successor{from: from, manifest: [32]byte{7}, leaf0: from.leaf0, last: from.last, action: admin.Restore, asked: time.Now(),
		voters: from.officers[:2], roster: from.roster, history: admin.History{Base: from.roster}, signed: from.roster, count: 2, order: "warrant issuer end"}
	s.acts = []string{admin.RestoreAct(s.manifest)}
	s.bench = &bench{TB: t, dir: t.TempDir(), signer: from.signer, spki: from.bench.spki, url: database(t)}
	return s
}

// make writes the ledger.
func (s *successor) make() {
	s.Helper()
	ctx := context.Background()
	if path, ok := strings.CutPrefix(s.url, "sqlite:"); ok {
		s.dir = filepath.Dir(path)
	}
	must(0, s.open())
	s.Cleanup(func() { s.stop() })
	g := s.genesis()
	g.Previous, g.Roster = s.last, s.roster.Digest()
	must(0, s.ledger.Genesis(ctx, g))
	must(0, s.ledger.Write(ctx, admin.PutRoster{History: s.history}))
	for _, step := range strings.Fields(s.order) {
		switch step {
		case "warrant":
			s.append(audit.OpRestore, func(f *audit.Fields) {
				f.List(audit.TagWarrant, s.warrant()...)
				f.Bytes(audit.TagPredecessor, s.leaf0)
			})
		case "issuer":
			s.issuer()
		case "other": // an issuer's leaf, from another manifest
			s.append(audit.OpRestore, func(f *audit.Fields) {
				(*f)[0].Value = make([]byte, 32)
				f.Hash(audit.TagArtefact, [32]byte{1})
			})
		case "late":
			s.append(audit.OpRevoke, s.revocation(8001, false), ca.CarryRevocation{Issuer: s.spki, Serial: big.NewInt(8001).Bytes(), Reason: ca.Superseded, At: notAfter, NotAfter: notAfter})
		case "early", "asked":
			s.append(audit.OpRevoke, s.revocation(8002, true), ca.CarryRevocation{Issuer: s.spki, Serial: big.NewInt(8002).Bytes(), Reason: ca.Superseded, At: notAfter, NotAfter: notAfter})
		case "end":
			s.append(audit.OpRestore, func(f *audit.Fields) {
				f.Text(audit.TagState, "complete")
				f.Uint64(audit.TagCount, s.count)
			})
		}
	}
	s.checkpoint()
}

func (s *successor) origin() string { o, _, _ := strings.Cut(s.from.last, "\n"); return o }

func (s *successor) append(op audit.Op, set func(*audit.Fields), p ...audit.Projection) {
	s.Helper()
	var f audit.Fields
	f.Hash(audit.TagManifest, s.manifest)
	f.Text(audit.TagSource, s.origin())
	f.Hash(audit.TagGrant, genesisGrant())
	set(&f)
	must(s.ledger.Append(context.Background(), audit.Event(op, f), p...))
}

// revocation is of what the predecessor issued; asked: with the certificate.
func (s *successor) revocation(serial int64, asked bool) func(*audit.Fields) {
	return func(f *audit.Fields) {
		f.Hash(audit.TagIssuer, s.spki)
		f.Bytes(audit.TagSerial, big.NewInt(serial).Bytes())
		f.Text(audit.TagReason, ca.Superseded.String())
		f.Uint64(audit.TagRevokedAt, uint64(notAfter.Unix()))
		if asked {
			f.Uint64(audit.TagNotAfter, uint64(notAfter.Unix()))
		}
	}
}

func (s *successor) warrant() [][]byte {
	terms := admin.Terms{Ledger: s.from.ledger.ID(), Roster: s.signed, RosterDigest: s.signed.Digest(), PolicyDigest: s.signed.PolicyDigest()}
	proposal := must(terms.Draft(s.action, s.acts, []byte("{}"), admin.AdminToken, s.asked, time.Hour).Encode())
	items := [][]byte{proposal}
	for _, k := range s.voters {
		officer := sha256.Sum256(must(k.Officer()).SPKI)
		items = append(items, append(officer[:], must(k.SignVote(admin.Approve, proposal))...))
	}
	return items
}

// issuer takes over a root with two revocations.
func (s *successor) issuer() {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	now := time.Now().UTC().Truncate(time.Second)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Root"}, NotBefore: now, NotAfter: notAfter, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte{1}}
	root := must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key))))
	list := &x509.RevocationList{Number: big.NewInt(4), ThisUpdate: now, NextUpdate: notAfter}
	for _, serial := range []int64{7001, 7002} {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(serial), RevocationTime: now})
	}
	crl := must(x509.CreateRevocationList(rand.Reader, list, root, key))
	s.spki = sha256.Sum256(root.RawSubjectPublicKeyInfo)
	must(ca.RestoreIssuers(context.Background(), s.ledger, ca.Predecessor{Origin: s.origin(), Manifest: s.manifest, Grant: genesisGrant()},
		[]ca.RestoredIssuer{{Name: "root", KeyName: "root", Parent: "root", DER: root.Raw, CRL: crl, CRLNumber: 4}}))
}

// change is a roster without cyd, decided by ada and bob in a ledger.
func (p *predecessor) change(in audit.LedgerID) admin.RosterChange {
	next := p.roster.Successor()
	next.Officers = next.Officers[:2]
	t := admin.Terms{Ledger: in, Roster: p.roster, RosterDigest: p.roster.Digest(), PolicyDigest: p.roster.PolicyDigest()}
	raw := must(t.Draft(admin.ChangeRoster, []string{admin.ChangeRosterAct(next.Version, p.roster.Digest(), next.Digest())}, []byte("{}"), admin.AdminToken, time.Now(), time.Hour).Encode())
	c := admin.RosterChange{Roster: next, Warrant: admin.Warrant{Proposal: raw, Roster: p.roster}, Leaf: 7}
	for i, k := range p.officers[:2] {
		c.Warrant.Votes = append(c.Warrant.Votes, admin.VoteRecord{Officer: k.Name, SPKI: must(k.Officer()).SPKI, Decision: admin.Approve, Signature: must(k.SignVote(admin.Approve, raw)), Leaf: uint64(i + 1)})
	}
	return c
}

// follow has a ledger begin with the officers who followed those of its predecessor.
func (s *successor) follow(c admin.RosterChange) {
	s.roster, s.signed, s.history.Changes = c.Roster, c.Roster, []admin.RosterChange{c}
}

// The officers of a restored ledger followed those of its predecessor's leaf 0.
func TestVerifyRestoredWithLaterOfficers(t *testing.T) {
	s := newSuccessor(t, newPredecessor(t))
	s.follow(s.from.change(s.from.ledger.ID()))
	s.make()
	id := s.from.ledger.ID()
	if rep, err := s.verify(); err != nil || rep.Succeeds != hex.EncodeToString(id[:]) {
		t.Errorf("%+v %v", rep, err)
	}
}

// A restored ledger rests on the id of its predecessor, which the report names.
func TestVerifyRestored(t *testing.T) {
	s := newSuccessor(t, newPredecessor(t))
	s.order += " asked"
	s.make()
	// An orphan whose certificate somebody had and revoked is closed nevertheless.
	serial := big.NewInt(8003)
	o := must(s.ledger.Begin(t.Context(), audit.Intent{Op: audit.OpCertificate, Key: s.spki, Purpose: audit.PurposeIssuer, Issuer: s.spki, Serial: serial.Bytes(), Requester: "test"},
		ca.ReserveSerial{Issuer: s.spki, Serial: serial.Bytes(), NotAfter: notAfter}))
	s.append(audit.OpRevoke, s.revocation(serial.Int64(), true), ca.CarryRevocation{Issuer: s.spki, Serial: serial.Bytes(), Reason: ca.Superseded, At: notAfter, NotAfter: notAfter})
	if _, err := s.ledger.Orphan(t.Context(), o, "test", nil, hsmstore.Orphaned{Intent: o.Index, Issuer: s.spki, Serial: serial.Bytes(), At: time.Now()}); err != nil {
		t.Fatalf("the orphan cannot be closed: %v", err)
	}
	s.checkpoint()
	rep, err := s.verify()
	id := s.from.ledger.ID()
	if err != nil || rep.Revocations != 4 || rep.Succeeds != hex.EncodeToString(id[:]) {
		t.Errorf("%+v %v", rep, err)
	}
}

// TestAttackRestored changes what a restored ledger says of its restore, as somebody would
// who has all files of a backup, or ends a restore too early.
func TestAttackRestored(t *testing.T) {
	onlySQLite(t)
	from, other := newPredecessor(t), newPredecessor(t)
	for what, c := range map[string]struct {
		change func(*successor)
		says   string
	}{
		"leaf 0 of another ledger":     {func(s *successor) { s.leaf0 = other.leaf0 }, "checkpoint of the predecessor"},
		"no leaf 0 of the predecessor": {func(s *successor) { s.leaf0 = []byte{1} }, "leaf 0 of the predecessor"},
		"a ledger id of its own":       {func(s *successor) { s.from = other; s.last = from.last; s.leaf0 = other.leaf0 }, "leaf 0 names"},
		"officers of its own": {func(s *successor) {
			s.roster, s.history.Base, s.signed, s.voters = other.roster, other.roster, other.roster, other.officers[:2]
		}, "of other officers"},
		"a proposal of other officers": {func(s *successor) { s.signed, s.voters = other.roster, other.officers[:2] }, "of other officers"},
		"officers of before a change": {func(s *successor) {
			s.follow(from.change(from.ledger.ID()))
			s.signed = from.roster
		}, "of other officers"},
		"officers who followed elsewhere": {func(s *successor) { s.follow(from.change(other.ledger.ID())) }, "of other officers"},
		"officers whom nobody decided on": {func(s *successor) {
			c := from.change(from.ledger.ID())
			c.Warrant.Votes = c.Warrant.Votes[:1]
			s.follow(c)
		}, "did not decide"},
		"an officer who left before": {func(s *successor) {
			s.follow(from.change(from.ledger.ID()))
			s.voters = from.officers[1:]
		}, "not that of an officer"},
		"one officer":                     {func(s *successor) { s.voters = s.voters[:1] }, "1 approvals, 2 needed"},
		"one officer twice":               {func(s *successor) { s.voters = []*admin.OfficerKey{s.voters[0], s.voters[0]} }, "there twice"},
		"a stranger's vote":               {func(s *successor) { s.voters = other.officers[:2] }, "not that of an officer"},
		"a warrant for another act":       {func(s *successor) { s.action = admin.GenerateKey }, "for something else"},
		"a warrant for another manifest":  {func(s *successor) { s.acts = []string{admin.RestoreAct([32]byte{8})} }, "for something else"},
		"a warrant that had ended":        {func(s *successor) { s.asked = time.Now().Add(-3 * time.Hour) }, "not in force"},
		"a warrant of tomorrow":           {func(s *successor) { s.asked = time.Now().Add(24 * time.Hour) }, "not in force"},
		"no warrant":                      {func(s *successor) { s.order = "issuer end" }, "its one warrant"},
		"a second warrant":                {func(s *successor) { s.order = "warrant issuer warrant end" }, "its one warrant"},
		"a warrant afterwards":            {func(s *successor) { s.order = "issuer warrant end" }, "its one warrant"},
		"another manifest":                {func(s *successor) { s.order = "warrant issuer other end" }, "another manifest"},
		"no end":                          {func(s *successor) { s.order = "warrant issuer" }, "never finished"},
		"neither warrant nor end":         {func(s *successor) { s.order = "" }, "never finished"},
		"an end before the issuers":       {func(s *successor) { s.order, s.count = "warrant end issuer", 0 }, "after the restore had ended"},
		"a second end":                    {func(s *successor) { s.order = "warrant issuer end end" }, "after the restore had ended"},
		"fewer revocations than it says":  {func(s *successor) { s.count = 3 }, "carried over"},
		"more revocations than it says":   {func(s *successor) { s.order = "warrant issuer late end" }, "carried over"},
		"a revocation carried over late":  {func(s *successor) { s.order += " late" }, "has ended"},
		"a certificate revoked too early": {func(s *successor) { s.order = "warrant issuer early end" }, "not yet ended"},
		"a restore without a predecessor": {func(s *successor) { s.last = "" }, "names no predecessor"},
	} {
		t.Run(what, func(t *testing.T) {
			s := newSuccessor(t, from)
			c.change(s)
			s.make()
			var v *audit.Violation
			if _, err := s.verify(); !errors.As(err, &v) || !strings.Contains(v.What, c.says) {
				t.Errorf("verify: %v; want a violation: %s", err, c.says)
			}
		})
	}
}
