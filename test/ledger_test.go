package test

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"chancery/admin"
	"chancery/audit"
)

// made is a ledger that a test makes itself, with its own checkpoint key, and exports as
// it goes: what a CA would have to write to cheat, sealed as only it can.
type made struct {
	t        testing.TB
	dir      string
	key      *ecdsa.PrivateKey // of checkpoints
	officers []*ecdsa.PrivateKey
	roster   admin.Roster // in force
	base     admin.Roster // of leaf 0
	changes  []admin.RosterChange
	id       audit.LedgerID
	origin   string
	now      time.Time
	zero     []byte // leaf 0

	size   uint64
	rng    []tlog.Hash
	bundle []byte
	tiles  [][]tlog.Hash // by level: not yet in a full tile
	hashes map[uint64]tlog.Hash
	leaves map[uint64]audit.Leaf // intents
	notes  []string
	certs  *bufio.Writer
	file   *os.File

	issuerKey *ecdsa.PrivateKey
	issuer    *x509.Certificate
	issuers   [][]byte
	crls      [][]byte
	orphans   []byte
	number    uint64
}

func newECDSA(t testing.TB) *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func spkiOf(t testing.TB, k *ecdsa.PrivateKey) []byte {
	b, err := x509.MarshalPKIXPublicKey(&k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// restored is the manifest of [TestVerifyRestored].
var restored = [32]byte{4, 2}

// destroyed names the key of documents of [TestVerifyCheats].
var destroyed = sha256.Sum256([]byte("key of documents"))

// newMade begins a ledger; after, if it is not nil, is the ledger that it restores.
func newMade(t testing.TB, after *made) *made {
	t.Helper()
	l := &made{t: t, dir: t.TempDir(), key: newECDSA(t), now: time.Unix(1790000000, 0), hashes: map[uint64]tlog.Hash{}, leaves: map[uint64]audit.Leaf{}}
	l.roster.Quorum = 2
	for i := range 3 {
		k := newECDSA(t)
		l.officers = append(l.officers, k)
		l.roster.Officers = append(l.roster.Officers, admin.Officer{Name: fmt.Sprintf("officer-%d", i+1), SPKI: spkiOf(t, k)})
	}
	l.base = l.roster
	previous := ""
	if after != nil {
		l.officers, l.roster, l.base, l.changes, previous = after.officers, after.roster, after.base, slices.Clone(after.changes), after.note()
		for i := range l.changes {
			l.changes[i].Leaf = 0
		}
		l.now = after.now.Add(time.Hour)
	}
	g, err := audit.Genesis{Random: [32]byte{1}, Domain: "ca.example", Roster: l.roster.Digest(), Acts: genesisActs, CheckpointKeys: [][]byte{spkiOf(t, l.key)}, Previous: previous}.Leaf(l.now)
	if err != nil {
		t.Fatal(err)
	}
	l.id, l.origin = g.Ledger, audit.Origin("ca.example", g.Ledger)
	if l.file, err = os.Create(filepath.Join(l.dir, "certificates")); err != nil {
		t.Fatal(err)
	}
	l.certs = bufio.NewWriterSize(l.file, 1<<20)
	l.dir = filepath.Join(l.dir, "export")
	l.zero, err = g.Encode()
	if err != nil {
		t.Fatal(err)
	}
	l.raw(l.zero)
	l.issuerKey = newECDSA(t)
	return l
}

// raw appends octets as an entry.
func (l *made) raw(b []byte) uint64 {
	h := tlog.RecordHash(b)
	index := l.size
	l.hashes[index] = h
	l.bundle = append(binary.BigEndian.AppendUint16(l.bundle, uint16(len(b))), b...)
	n := l.size
	for r := h; ; n >>= 1 { // the compact range
		if n&1 == 0 {
			l.rng = append(l.rng, r)
			break
		}
		r = tlog.NodeHash(l.rng[len(l.rng)-1], r)
		l.rng = l.rng[:len(l.rng)-1]
	}
	l.size++
	if l.size%256 == 0 {
		write(l.t, l.dir, tilePath("entries", l.size/256-1, 256), l.bundle)
		l.bundle = l.bundle[:0]
	}
	for level := 0; ; level++ {
		if level == len(l.tiles) {
			l.tiles = append(l.tiles, nil)
		}
		l.tiles[level] = append(l.tiles[level], h)
		if len(l.tiles[level]) < 256 {
			return index
		}
		write(l.t, l.dir, tilePath(fmt.Sprint(level), l.size>>(8*(level+1))-1, 256), flat(l.tiles[level]))
		hs := append([]tlog.Hash(nil), l.tiles[level]...)
		for len(hs) > 1 {
			for i := range len(hs) / 2 {
				hs[i] = tlog.NodeHash(hs[2*i], hs[2*i+1])
			}
			hs = hs[:len(hs)/2]
		}
		h, l.tiles[level] = hs[0], l.tiles[level][:0]
	}
}

func flat(hs []tlog.Hash) (b []byte) {
	for _, h := range hs {
		b = append(b, h[:]...)
	}
	return b
}

// tilePath is the path of a tile or bundle (C2SP tlog-tiles).
func tilePath(kind string, n, w uint64) string {
	s := fmt.Sprintf("%03d", n%1000)
	if n >= 1000 {
		s = fmt.Sprintf("x%03d/%s", n/1000, s)
	}
	if w < 256 {
		s += fmt.Sprintf(".p/%d", w)
	}
	return "tile/" + kind + "/" + s
}

func (l *made) add(kind audit.Kind, op audit.Op, id audit.OpID, closes uint64, f audit.Fields) uint64 {
	l.t.Helper()
	l.now = l.now.Add(time.Millisecond)
	leaf := audit.Leaf{Kind: kind, Op: op, Ledger: l.id, ID: id, Time: l.now, Closes: closes, Fields: f}
	sort.Slice(leaf.Fields, func(i, j int) bool { return leaf.Fields[i].Tag < leaf.Fields[j].Tag })
	b, err := leaf.Encode()
	if err != nil {
		l.t.Fatal(err)
	}
	index := l.raw(b)
	if kind == audit.KindIntent {
		l.leaves[index] = leaf
	} else {
		delete(l.hashes, index)
	}
	return index
}

func (l *made) event(op audit.Op, fill func(f *audit.Fields)) uint64 {
	l.t.Helper()
	var f audit.Fields
	fill(&f)
	return l.add(audit.KindEvent, op, audit.NewOpID(), audit.NoIndex, f)
}

// intent is one to use a key; fill adds to it.
func (l *made) intent(op audit.Op, purpose audit.Purpose, key []byte, tbs []byte, fill func(f *audit.Fields)) uint64 {
	l.t.Helper()
	var f audit.Fields
	f.Hash(audit.TagKey, sha256.Sum256(key))
	f.Uint8(audit.TagPurpose, uint8(purpose))
	f.Bytes(audit.TagAlgorithm, []byte("\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02"))
	f.Hash(audit.TagTBSHash, sha256.Sum256(tbs))
	f.Uint64(audit.TagTBSLength, uint64(len(tbs)))
	f.Hash(audit.TagProfile, [32]byte{7})
	f.Hash(audit.TagEvidence, [32]byte{8})
	f.Text(audit.TagRequester, "acme:0123456789abcdef")
	f.Uint8(audit.TagMaxAttempts, 3)
	f.Text(audit.TagNode, "node-1")
	f.Text(audit.TagBuild, "test")
	if fill != nil {
		fill(&f)
	}
	return l.add(audit.KindIntent, op, audit.NewOpID(), audit.NoIndex, f)
}

// closing closes an intent; edit changes what the entry says.
func (l *made) closing(kind audit.Kind, intent uint64, signature, artefact []byte, edit func(leaf *audit.Leaf, f *audit.Fields)) uint64 {
	l.t.Helper()
	in := l.leaves[intent]
	var f audit.Fields
	h := l.hashes[intent]
	if kind == audit.KindDone {
		f.Hash(audit.TagSignature, sha256.Sum256(signature))
		f.Hash(audit.TagArtefact, sha256.Sum256(artefact))
		f.List(audit.TagAttempts, []byte("alpha"), []byte{0, 0, 0, 1})
	}
	if edit != nil {
		edit(&in, &f)
	}
	f.Hash(audit.TagIntentHash, h)
	return l.add(kind, in.Op, in.ID, intent, f)
}

// doc signs a document, all of it.
func (l *made) doc(key []byte) (intent, done uint64) {
	l.t.Helper()
	intent = l.intent(audit.OpCMS, audit.PurposeDocument, key, []byte("attributes"), nil)
	return intent, l.closing(audit.KindDone, intent, []byte("sig"), fmt.Append(nil, "cms ", l.size), nil)
}

// root makes the one issuer.
func (l *made) root() {
	l.t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Root"}, NotBefore: l.now, NotAfter: l.now.AddDate(10, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte{1}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &l.issuerKey.PublicKey, l.issuerKey)
	if err != nil {
		l.t.Fatal(err)
	}
	if l.issuer, err = x509.ParseCertificate(der); err != nil {
		l.t.Fatal(err)
	}
	l.issuers = append(l.issuers, der)
	l.record(l.issuer, func(f *audit.Fields) { f.Hash(audit.TagGrant, genesisGrant()) }, nil)
}

// genesisActs are what leaf 0 allows.
var genesisActs = []string{"sign-root root", "generate-key checkpoint-gamma checkpoint Ed25519 on gamma", "restore " + hex.EncodeToString(restored[:])}

func genesisGrant() [32]byte {
	var f audit.Fields
	items := make([][]byte, len(genesisActs))
	for i, a := range genesisActs {
		items[i] = []byte(a)
	}
	f.List(audit.TagActs, items...)
	hash := audit.Digest("proposal", f[0].Value)
	return audit.Digest("grant", hash[:])
}

// certificate makes one; nothing is recorded.
func (l *made) certificate(serial int64, ends time.Time) *x509.Certificate {
	l.t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "host"}, DNSNames: []string{"host.example"}, NotBefore: l.now, NotAfter: ends}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, l.issuer, &l.issuerKey.PublicKey, l.issuerKey)
	if err != nil {
		l.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		l.t.Fatal(err)
	}
	return c
}

// record writes the entries of a certificate and the certificate; change changes what the
// intent says of it, stored what the export holds.
func (l *made) record(c *x509.Certificate, change func(f *audit.Fields), stored []byte) (intent, done uint64) {
	l.t.Helper()
	spki := spkiOf(l.t, l.issuerKey)
	intent = l.intent(audit.OpCertificate, audit.PurposeIssuer, spki, c.RawTBSCertificate, func(f *audit.Fields) {
		f.Hash(audit.TagIssuer, sha256.Sum256(spki))
		f.Bytes(audit.TagSerial, c.SerialNumber.Bytes())
		if change != nil {
			change(f)
		}
	})
	done = l.closing(audit.KindDone, intent, c.Signature, c.Raw, nil)
	if stored == nil {
		stored = c.Raw
	}
	l.stored(done, stored)
	return intent, done
}

func (l *made) stored(done uint64, der []byte) {
	head := binary.BigEndian.AppendUint64(nil, done)
	l.certs.Write(append(binary.BigEndian.AppendUint32(head, uint32(len(der))), der...))
}

func (l *made) issue(serial int64) (intent, done uint64) {
	l.t.Helper()
	return l.record(l.certificate(serial, l.now.AddDate(0, 3, 0)), nil, nil)
}

// proved issues a certificate that rests on a record of evidence, which the export has.
func (l *made) proved(serial int64, requester, lines string) (done uint64) {
	l.t.Helper()
	record := []byte("chancery/evidence/v1\n" + lines)
	digest := audit.EvidenceDigest(record)
	intent, done := l.record(l.certificate(serial, l.now.AddDate(0, 3, 0)), func(f *audit.Fields) {
		for i := range *f {
			switch (*f)[i].Tag {
			case audit.TagEvidence:
				(*f)[i].Value = digest[:]
			case audit.TagRequester:
				(*f)[i].Value = []byte(requester)
			}
		}
	}, nil)
	b := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(nil, intent), uint32(len(record)))
	write(l.t, l.dir, "chancery/evidence.bin", append(b, record...))
	return done
}

func (l *made) revoke(serial int64) uint64 {
	l.t.Helper()
	return l.event(audit.OpRevoke, func(f *audit.Fields) {
		f.Hash(audit.TagIssuer, sha256.Sum256(spkiOf(l.t, l.issuerKey)))
		f.Bytes(audit.TagSerial, big.NewInt(serial).Bytes())
		f.Text(audit.TagReason, "superseded")
		f.Uint64(audit.TagRevokedAt, uint64(l.now.Unix()))
	})
}

// crl makes the next CRL, with the serials given; change changes number and coverage.
func (l *made) crl(change func(s *audit.CRLScope), serials ...int64) (intent, done uint64) {
	l.t.Helper()
	l.number++
	l.now = l.now.Add(2 * time.Second)
	s := audit.CRLScope{Number: l.number, ThisUpdate: l.now.UTC().Truncate(time.Second), Covers: l.size}
	if change != nil {
		change(&s)
	}
	tmpl := &x509.RevocationList{Number: new(big.Int).SetUint64(s.Number), ThisUpdate: s.ThisUpdate, NextUpdate: s.ThisUpdate.Add(time.Hour)}
	for _, n := range serials {
		tmpl.RevokedCertificateEntries = append(tmpl.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(n), RevocationTime: s.ThisUpdate})
	}
	der, err := x509.CreateRevocationList(rand.Reader, tmpl, l.issuer, l.issuerKey)
	if err != nil {
		l.t.Fatal(err)
	}
	c, err := x509.ParseRevocationList(der)
	if err != nil {
		l.t.Fatal(err)
	}
	spki := spkiOf(l.t, l.issuerKey)
	intent = l.intent(audit.OpCRL, audit.PurposeIssuer, spki, c.RawTBSRevocationList, func(f *audit.Fields) {
		f.Hash(audit.TagIssuer, sha256.Sum256(spki))
		f.Uint64(audit.TagCRLNumber, s.Number)
		f.Uint64(audit.TagThisUpdate, uint64(s.ThisUpdate.Unix()))
		f.Uint64(audit.TagCovers, s.Covers)
	})
	l.crls = [][]byte{der}
	return intent, l.closing(audit.KindDone, intent, c.Signature, der, nil)
}

// proposal is one as the server drafts it.
func (l *made) proposal(edit func(p *admin.Proposal)) []byte {
	l.t.Helper()
	p := admin.Proposal{Ledger: l.id, Action: "generate-key", Parameters: audit.Digest("parameters", madeParameters), Acts: []string{"generate-key docs document P-256", "generate-key docs code P-256", "retire-cluster", "destroy-key docs " + hex.EncodeToString(destroyed[:])}, Policy: l.roster.PolicyDigest(),
		Roster: l.roster.Digest(), Requester: admin.AdminToken, NotBefore: l.now.Truncate(time.Second), Expires: l.now.Truncate(time.Second).Add(time.Hour)}
	rand.Read(p.Nonce[:])
	if edit != nil {
		edit(&p)
	}
	raw, err := p.Encode()
	if err != nil {
		l.t.Fatal(err)
	}
	return raw
}

func (l *made) propose(raw []byte) uint64 {
	l.t.Helper()
	return l.event(audit.OpProposal, func(f *audit.Fields) {
		f.Bytes(audit.TagProposal, raw)
		f.Hash(audit.TagProposalHash, audit.Digest("proposal", raw))
	})
}

// sign is an officer's vote over a proposal (ENCODINGS, D).
func (l *made) sign(k *ecdsa.PrivateKey, decision byte, raw []byte) []byte {
	l.t.Helper()
	d := audit.Digest("approval", append([]byte{decision}, raw...))
	sum := sha256.Sum256([]byte("chancery/approval/v1\n" + hex.EncodeToString(d[:]) + "\n"))
	sig, err := ecdsa.SignASN1(rand.Reader, k, sum[:])
	if err != nil {
		l.t.Fatal(err)
	}
	return sig
}

// vote is that of an officer, signed with a key, which should be the same one's.
func (l *made) vote(raw []byte, officer int, key *ecdsa.PrivateKey, decision byte) uint64 {
	l.t.Helper()
	return l.event(audit.OpVote, func(f *audit.Fields) {
		f.Hash(audit.TagProposalHash, audit.Digest("proposal", raw))
		f.Hash(audit.TagOfficer, sha256.Sum256(l.roster.Officers[officer].SPKI))
		f.Uint8(audit.TagDecision, decision)
		f.Bytes(audit.TagVote, l.sign(key, decision, raw))
	})
}

func (l *made) approve(raw []byte, officer int) uint64 {
	l.t.Helper()
	return l.vote(raw, officer, l.officers[officer], 1)
}

func (l *made) grant(raw []byte, votes ...uint64) (index uint64, grant [32]byte) {
	l.t.Helper()
	hash := audit.Digest("proposal", raw)
	var list []byte
	for _, v := range votes {
		list = binary.BigEndian.AppendUint64(list, v)
	}
	grant = audit.Digest("grant", append(hash[:], list...))
	return l.event(audit.OpGrant, func(f *audit.Fields) {
		f.Hash(audit.TagProposalHash, hash)
		f.Bytes(audit.TagVotes, list)
		f.Hash(audit.TagGrant, grant)
	}), grant
}

// granted goes the whole way to a grant.
func (l *made) granted() [32]byte {
	l.t.Helper()
	raw := l.proposal(nil)
	l.propose(raw)
	_, g := l.grant(raw, l.approve(raw, 0), l.approve(raw, 2))
	return g
}

func (l *made) born(grant [32]byte, key []byte, purpose audit.Purpose) uint64 {
	l.t.Helper()
	return l.event(audit.OpKeyGenerate, func(f *audit.Fields) {
		f.Hash(audit.TagKey, sha256.Sum256(key))
		f.Uint8(audit.TagPurpose, uint8(purpose))
		f.Text(audit.TagKeyName, "docs")
		f.Hash(audit.TagGrant, grant)
	})
}

// note signs a checkpoint of now.
func (l *made) note() string {
	body := string(audit.Head{Size: l.size, Range: l.rng}.Body(l.origin))
	return l.signNote(body)
}

func (l *made) signNote(body string) string {
	sum := sha256.Sum256([]byte(body))
	sig, err := ecdsa.SignASN1(rand.Reader, l.key, sum[:])
	if err != nil {
		l.t.Fatal(err)
	}
	id := sha256.Sum256(spkiOf(l.t, l.key))
	return body + "\n— " + l.origin + " " + base64.StdEncoding.EncodeToString(append(id[:4:4], sig...)) + "\n"
}

// mark keeps a checkpoint of now as an older one.
func (l *made) mark() { l.notes = append(l.notes, l.note()) }

// finish writes what is left of the export.
func (l *made) finish() string {
	l.t.Helper()
	if len(l.bundle) > 0 {
		write(l.t, l.dir, tilePath("entries", l.size/256, l.size%256), l.bundle)
	}
	for level, t := range l.tiles {
		if len(t) > 0 {
			write(l.t, l.dir, tilePath(fmt.Sprint(level), l.size>>(8*(level+1)), uint64(len(t))), flat(t))
		}
	}
	write(l.t, l.dir, "checkpoint", []byte(l.note()))
	var notes strings.Builder
	for _, n := range l.notes {
		notes.WriteString(n + "--\n")
	}
	write(l.t, l.dir, "chancery/checkpoints", []byte(notes.String()))
	if err := l.certs.Flush(); err != nil {
		l.t.Fatal(err)
	}
	if err := os.Rename(l.file.Name(), filepath.Join(l.dir, "chancery", "certificates.bin")); err != nil {
		l.t.Fatal(err)
	}
	l.file.Close()
	records := func(all [][]byte) (b []byte) {
		for _, r := range all {
			b = append(binary.BigEndian.AppendUint32(b, uint32(len(r))), r...)
		}
		return b
	}
	write(l.t, l.dir, "chancery/crls.bin", records(l.crls))
	write(l.t, l.dir, "chancery/issuers.bin", records(l.issuers))
	write(l.t, l.dir, "chancery/orphans.bin", l.orphans)
	for name, v := range map[string]any{
		"roster": l.rosterFile(),
		"export": map[string]any{"version": 1, "origin": l.origin, "ledger": hex.EncodeToString(l.id[:]), "size": l.size, "complete": true},
	} {
		b, err := json.Marshal(v)
		if err != nil {
			l.t.Fatal(err)
		}
		write(l.t, l.dir, "chancery/"+name+".json", b)
	}
	return l.dir
}

// TestVerifyCheats has a CA write what its promises forbid, in an export that is sealed
// as it must be: chancery-verify names the entry all the same.
func TestVerifyCheats(t *testing.T) {
	docs, other := []byte("key of documents"), []byte("another key")
	// Each story goes on from a ledger where all is well and returns the entry that must be named.
	none := ^uint64(0)
	for name, story := range map[string]struct {
		says string
		do   func(l *made) uint64
	}{
		"all is well": {"", func(l *made) uint64 { return none }},
		"evidence for each name": {"", func(l *made) uint64 {
			l.proved(20, "acme:a", "order x\nauthorization name 1 a\n")
			return none
		}},
		"evidence of the API": {"", func(l *made) uint64 {
			l.proved(20, "api:admin-token", "request by the API\n")
			return none
		}},
		"another number of names than was proved": {"has 1 names, the evidence of the intent entitles to 2", func(l *made) uint64 {
			return l.proved(20, "acme:a", "authorization name 1 a\nauthorization name 2 b\n")
		}},
		"a name that nobody proved": {"has no authorization", func(l *made) uint64 {
			return l.proved(20, "acme:a", "order x\n") - 1
		}},
		"one name proved twice": {"not that of name 2", func(l *made) uint64 {
			return l.proved(20, "acme:a", "authorization name 1 a\nauthorization name 1 b\n") - 1
		}},
		"something personal erased": {"", func(l *made) uint64 {
			i := l.event(audit.OpSession, func(f *audit.Fields) { f.Hash(audit.TagAddress, [32]byte{1}) })
			l.event(audit.OpErase, erased(1, i, audit.TagAddress))
			return none
		}},
		"what is no commitment is erased": {"holds nothing that could be erased", func(l *made) uint64 {
			return l.event(audit.OpErase, erased(1, 1, audit.TagRequester))
		}},
		"an erasure of what comes later": {"holds nothing that could be erased", func(l *made) uint64 {
			return l.event(audit.OpErase, erased(1, 4711, audit.TagAddress))
		}},
		"an erasure that counts wrongly": {"not one of 2", func(l *made) uint64 {
			return l.event(audit.OpErase, erased(2, 1, audit.TagAddress))
		}},
		"an erasure of nothing": {"list of erased openings", func(l *made) uint64 {
			return l.event(audit.OpErase, func(f *audit.Fields) { f.Uint64(audit.TagCount, 0) })
		}},
		"an intent never closed": {"never closed", func(l *made) uint64 {
			i := l.intent(audit.OpCMS, audit.PurposeDocument, docs, []byte("x"), nil)
			l.now = l.now.Add(2 * time.Minute)
			l.doc(docs)
			return i
		}},
		"an intent in flight": {"", func(l *made) uint64 {
			l.intent(audit.OpCMS, audit.PurposeDocument, docs, []byte("x"), nil)
			l.now = l.now.Add(time.Second)
			l.doc(docs)
			return none
		}},
		"closed twice": {"no open intent", func(l *made) uint64 {
			i, _ := l.doc(docs)
			return l.closing(audit.KindFailed, i, nil, nil, nil)
		}},
		"closed by what names another": {"names another", func(l *made) uint64 {
			i := l.intent(audit.OpCMS, audit.PurposeDocument, docs, []byte("x"), nil)
			l.hashes[i] = tlog.Hash{1}
			l.closing(audit.KindFailed, i, nil, nil, nil)
			return i
		}},
		"closed as another operation": {"names another", func(l *made) uint64 {
			i := l.intent(audit.OpCMS, audit.PurposeDocument, docs, []byte("x"), nil)
			l.closing(audit.KindFailed, i, nil, nil, func(leaf *audit.Leaf, _ *audit.Fields) { leaf.Op = audit.OpCode })
			return i
		}},
		"done without a signature": {"no artefact or no signature", func(l *made) uint64 {
			i := l.intent(audit.OpCMS, audit.PurposeDocument, docs, []byte("x"), nil)
			return l.closing(audit.KindDone, i, nil, nil, func(_ *audit.Leaf, f *audit.Fields) { *f = nil })
		}},
		"an intent that is no signature": {"is no intent", func(l *made) uint64 {
			return l.intent(audit.OpRevoke, audit.PurposeDocument, docs, []byte("x"), nil)
		}},
		"a signature without an intent": {"is no event", func(l *made) uint64 {
			return l.event(audit.OpCMS, func(f *audit.Fields) { f.Hash(audit.TagKey, [32]byte{1}) })
		}},
		"an unknown operation": {"unknown", func(l *made) uint64 { return l.event(999, func(*audit.Fields) {}) }},
		"an entry of another ledger": {"belongs to ledger", func(l *made) uint64 {
			l.id[0]++
			return l.event(audit.OpConfig, func(*audit.Fields) {})
		}},
		"a second genesis":  {"", func(l *made) uint64 { return l.raw(l.zero) }},
		"no leaf at all":    {"does not begin", func(l *made) uint64 { return l.raw([]byte("a line of text")) }},
		"an octet too much": {"left over", func(l *made) uint64 { return l.raw(append(bytes.Clone(l.zero), 0)) }},
		"an empty entry":    {"does not begin", func(l *made) uint64 { return l.raw(nil) }},
		"a line end in text": {"control", func(l *made) uint64 {
			return l.raw(bytes.Replace(l.zero, []byte("ca.example"), []byte("ca\nexample"), 1))
		}},

		"another serial": {"serial", func(l *made) uint64 {
			_, done := l.record(l.certificate(100, l.now.AddDate(0, 1, 0)), func(f *audit.Fields) {
				for i := range *f {
					if (*f)[i].Tag == audit.TagSerial {
						(*f)[i].Value = []byte{101}
					}
				}
			}, nil)
			return done
		}},
		"another certificate than intended": {"not what the intent said", func(l *made) uint64 {
			a, b := l.certificate(100, l.now.AddDate(0, 1, 0)), l.certificate(100, l.now.AddDate(0, 2, 0))
			a.Raw, a.Signature = b.Raw, b.Signature
			_, done := l.record(a, nil, nil)
			return done
		}},
		"another certificate than recorded": {"not the one that was recorded", func(l *made) uint64 {
			_, done := l.record(l.certificate(100, l.now.AddDate(0, 1, 0)), nil, l.certificate(100, l.now.AddDate(0, 2, 0)).Raw)
			return done
		}},
		"another issuer": {"issuer", func(l *made) uint64 {
			l.issuer.RawSubject = append([]byte(nil), l.issuer.RawIssuer...)
			l.issuer.RawSubject[len(l.issuer.RawSubject)-1] ^= 1
			_, done := l.record(l.certificate(100, l.now.AddDate(0, 1, 0)), nil, nil)
			return done
		}},
		"a certificate that its issuer did not sign": {"not signed by its issuer", func(l *made) uint64 {
			c := l.certificate(100, l.now.AddDate(0, 1, 0))
			c.Raw = bytes.Clone(c.Raw)
			c.Raw[len(c.Raw)-1] ^= 1
			c.Signature = bytes.Clone(c.Signature)
			c.Signature[len(c.Signature)-1] ^= 1
			_, done := l.record(c, nil, nil)
			return done
		}},
		"a certificate of no entry": {"names it as its done", func(l *made) uint64 {
			_, at := l.doc(docs)
			l.stored(at, l.issuer.Raw)
			return at
		}},
		"a certificate that is no DER": {"not DER", func(l *made) uint64 {
			_, done := l.record(l.certificate(100, l.now.AddDate(0, 1, 0)), nil, []byte("0\x80"))
			return done
		}},
		"a serial twice": {"serial already", func(l *made) uint64 {
			intent, _ := l.issue(11)
			l.issue(200)
			return intent
		}},
		"a serial twice, once failed": {"serial already", func(l *made) uint64 {
			spki := spkiOf(l.t, l.issuerKey)
			i := l.intent(audit.OpCertificate, audit.PurposeIssuer, spki, []byte("x"), func(f *audit.Fields) {
				f.Hash(audit.TagIssuer, sha256.Sum256(spki))
				f.Bytes(audit.TagSerial, []byte{77})
			})
			l.closing(audit.KindFailed, i, nil, nil, nil)
			intent, _ := l.issue(77)
			return intent
		}},

		"a CRL number again": {"goes back", func(l *made) uint64 {
			i, _ := l.crl(func(s *audit.CRLScope) { s.Number-- }, 11)
			return i
		}},
		"a CRL of the future": {"goes back", func(l *made) uint64 {
			i, _ := l.crl(func(s *audit.CRLScope) { s.Covers = 1 << 40 }, 11)
			return i
		}},
		"a CRL that lacks an entry": {"does not list", func(l *made) uint64 {
			l.issue(12)
			l.revoke(12)
			_, done := l.crl(nil, 11)
			return done
		}},
		"a CRL that lacks what came later": {"", func(l *made) uint64 {
			l.issue(12)
			l.crl(nil, 11)
			l.revoke(12)
			return none
		}},
		"a CRL without one that has ended": {"", func(l *made) uint64 {
			l.record(l.certificate(12, l.now.Add(time.Hour)), nil, nil)
			l.revoke(12)
			l.now = l.now.Add(2 * time.Hour)
			l.crl(nil, 11)
			return none
		}},
		"a CRL that lists what nobody revoked": {"no entry revokes", func(l *made) uint64 {
			l.issue(12)
			_, done := l.crl(nil, 11, 12)
			return done
		}},
		"a CRL signed by another": {"not signed by its issuer", func(l *made) uint64 {
			mine := l.issuerKey
			l.issuerKey = newECDSA(l.t)
			issuer := *l.issuer
			issuer.PublicKey = &l.issuerKey.PublicKey
			was := l.issuer
			l.issuer = &issuer
			tmpl := &x509.RevocationList{Number: big.NewInt(int64(l.number + 1)), ThisUpdate: l.now.Add(3 * time.Second).Truncate(time.Second), NextUpdate: l.now.Add(time.Hour),
				RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: big.NewInt(11), RevocationTime: l.now}}}
			der, err := x509.CreateRevocationList(rand.Reader, tmpl, l.issuer, l.issuerKey)
			if err != nil {
				l.t.Fatal(err)
			}
			c, err := x509.ParseRevocationList(der)
			if err != nil {
				l.t.Fatal(err)
			}
			l.issuerKey, l.issuer = mine, was
			spki := spkiOf(l.t, l.issuerKey)
			i := l.intent(audit.OpCRL, audit.PurposeIssuer, spki, c.RawTBSRevocationList, func(f *audit.Fields) {
				f.Hash(audit.TagIssuer, sha256.Sum256(spki))
				f.Uint64(audit.TagCRLNumber, l.number+1)
				f.Uint64(audit.TagThisUpdate, uint64(tmpl.ThisUpdate.Unix()))
				f.Uint64(audit.TagCovers, l.size)
			})
			l.crls = [][]byte{der}
			return l.closing(audit.KindDone, i, c.Signature, der, nil)
		}},
		"a revocation of nothing": {"never issued", func(l *made) uint64 { return l.revoke(99) }},
		"an orphan that is not on the CRL": {"does not list", func(l *made) uint64 {
			l.orphan(99)
			_, done := l.crl(nil, 11)
			return done
		}},
		"an orphan on the CRL": {"", func(l *made) uint64 { l.orphan(99); l.crl(nil, 11, 99); return none }},
		"an orphan that has ended": {"", func(l *made) uint64 {
			i := l.orphan(99)
			l.orphans = binary.BigEndian.AppendUint64(nil, i)
			l.orphans = append(l.orphans, 0, 0, 0, 8)
			l.orphans = binary.BigEndian.AppendUint64(l.orphans, uint64(l.now.Unix()))
			l.now = l.now.Add(time.Minute)
			l.crl(nil, 11)
			return none
		}},
		"a carried revocation without a restore": {"no restore is under way", func(l *made) uint64 {
			return l.event(audit.OpRevoke, func(f *audit.Fields) {
				f.Hash(audit.TagIssuer, [32]byte{1})
				f.Bytes(audit.TagSerial, []byte{1})
				f.Text(audit.TagSource, "elsewhere")
			})
		}},

		"a vote that nobody signed": {"no officer signed", func(l *made) uint64 {
			raw := l.proposal(nil)
			l.propose(raw)
			return l.vote(raw, 0, newECDSA(l.t), 1)
		}},
		"a vote signed by another officer": {"no officer signed", func(l *made) uint64 {
			raw := l.proposal(nil)
			l.propose(raw)
			return l.vote(raw, 0, l.officers[1], 1)
		}},
		"a grant by one": {"1 approvals of 2", func(l *made) uint64 {
			raw := l.proposal(nil)
			l.propose(raw)
			i, _ := l.grant(raw, l.approve(raw, 0))
			return i
		}},
		"a grant by nobody": {"0 approvals of 2", func(l *made) uint64 {
			raw := l.proposal(nil)
			l.propose(raw)
			i, _ := l.grant(raw)
			return i
		}},
		"an officer votes twice": {"votes again", func(l *made) uint64 {
			raw := l.proposal(nil)
			l.propose(raw)
			l.approve(raw, 0)
			return l.approve(raw, 0)
		}},
		"a vote counted twice": {"approves nothing", func(l *made) uint64 {
			raw := l.proposal(nil)
			l.propose(raw)
			v := l.approve(raw, 0)
			i, _ := l.grant(raw, v, v)
			return i
		}},
		"a rejection counted": {"approves nothing", func(l *made) uint64 {
			raw := l.proposal(nil)
			l.propose(raw)
			v := l.approve(raw, 0)
			i, _ := l.grant(raw, v, l.vote(raw, 1, l.officers[1], 2))
			return i
		}},
		"votes of another proposal": {"approves nothing", func(l *made) uint64 {
			raw, next := l.proposal(nil), l.proposal(nil)
			l.propose(raw)
			l.propose(next)
			v := l.approve(raw, 0)
			i, _ := l.grant(next, v, l.approve(next, 1))
			return i
		}},
		"a proposal of another ledger": {"another ledger", func(l *made) uint64 {
			return l.propose(l.proposal(func(p *admin.Proposal) { p.Ledger[3]++ }))
		}},
		"a proposal for other officers": {"other officers", func(l *made) uint64 {
			return l.propose(l.proposal(func(p *admin.Proposal) { p.Roster[3]++ }))
		}},
		"a proposal that is none": {"not encoded", func(l *made) uint64 { return l.propose([]byte("\x00\x01\x00\x00\x00\x05abcde")) }},
		"a proposal twice": {"known already", func(l *made) uint64 {
			raw := l.proposal(nil)
			l.propose(raw)
			return l.propose(raw)
		}},
		"a grant after the end": {"not in force", func(l *made) uint64 {
			raw := l.proposal(nil)
			l.propose(raw)
			a, b := l.approve(raw, 0), l.approve(raw, 1)
			l.now = l.now.Add(2 * time.Hour)
			i, _ := l.grant(raw, a, b)
			return i
		}},
		"a grant twice": {"approved", func(l *made) uint64 {
			raw := l.proposal(nil)
			l.propose(raw)
			a, b := l.approve(raw, 0), l.approve(raw, 1)
			l.grant(raw, a, b)
			i, _ := l.grant(raw, a, b)
			return i
		}},
		"an officer approves the own request": {"has no vote", func(l *made) uint64 {
			raw := l.proposal(func(p *admin.Proposal) { p.Requester = "officer:officer-1" })
			l.event(audit.OpProposal, func(f *audit.Fields) {
				f.Bytes(audit.TagProposal, raw)
				f.Hash(audit.TagProposalHash, audit.Digest("proposal", raw))
				f.Hash(audit.TagOfficer, sha256.Sum256(l.roster.Officers[0].SPKI))
				f.Bytes(audit.TagVote, l.sign(l.officers[0], 0, raw))
			})
			return l.approve(raw, 0)
		}},
		"a key born with a grant":    {"", func(l *made) uint64 { l.born(l.granted(), other, audit.PurposeCode); return none }},
		"a key born without a grant": {"without a grant", func(l *made) uint64 { return l.born([32]byte{}, other, audit.PurposeCode) }},
		"a grant that was never made": {"never made", func(l *made) uint64 {
			return l.born([32]byte{5}, other, audit.PurposeCode)
		}},
		"a grant for another key": {"something else", func(l *made) uint64 {
			g := l.granted()
			return l.event(audit.OpKeyGenerate, func(f *audit.Fields) {
				f.Hash(audit.TagKey, sha256.Sum256(other))
				f.Uint8(audit.TagPurpose, uint8(audit.PurposeCode))
				f.Text(audit.TagKeyName, "mine")
				f.Hash(audit.TagGrant, g)
			})
		}},
		"a grant for another purpose": {"something else", func(l *made) uint64 { return l.born(l.granted(), other, audit.PurposeTimestamp) }},
		"a grant for two keys": {"used up", func(l *made) uint64 {
			g := l.granted()
			l.born(g, other, audit.PurposeCode)
			return l.born(g, []byte("a third key"), audit.PurposeCode)
		}},
		"a grant that has ended": {"used up", func(l *made) uint64 {
			raw := l.proposal(nil)
			l.propose(raw)
			_, g := l.grant(raw, l.approve(raw, 0), l.approve(raw, 1))
			l.event(audit.OpGrantResult, func(f *audit.Fields) {
				f.Hash(audit.TagProposalHash, audit.Digest("proposal", raw))
				f.Hash(audit.TagGrant, g)
				f.Text(audit.TagOutcome, "failed")
			})
			return l.born(g, other, audit.PurposeCode)
		}},
		"a destroyed key is enabled": {"becomes", func(l *made) uint64 {
			state := func(s string) uint64 {
				return l.event(audit.OpKeyState, func(f *audit.Fields) { f.Hash(audit.TagKey, sha256.Sum256(docs)); f.Text(audit.TagState, s) })
			}
			state("disabled")
			state("usable")
			state("quarantined")
			return state("usable")
		}},
		"a grant of later": {"never made", func(l *made) uint64 {
			raw := l.proposal(nil)
			l.propose(raw)
			a, b := l.approve(raw, 0), l.approve(raw, 1)
			hash := audit.Digest("proposal", raw)
			g := audit.Digest("grant", binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(hash[:], a), b))
			i := l.born(g, other, audit.PurposeCode)
			l.grant(raw, a, b)
			return i
		}},
		"a CA without officers": {"did not grant", func(l *made) uint64 {
			tmpl := &x509.Certificate{SerialNumber: big.NewInt(100), Subject: pkix.Name{CommonName: "Mine"}, NotBefore: l.now, NotAfter: l.now.AddDate(1, 0, 0), IsCA: true, BasicConstraintsValid: true}
			der, err := x509.CreateCertificate(rand.Reader, tmpl, l.issuer, &newECDSA(l.t).PublicKey, l.issuerKey)
			if err != nil {
				l.t.Fatal(err)
			}
			c, err := x509.ParseCertificate(der)
			if err != nil {
				l.t.Fatal(err)
			}
			_, done := l.record(c, nil, nil)
			return done
		}},
		"a root without officers": {"never made", func(l *made) uint64 {
			i, _ := l.record(l.certificate(100, l.now.AddDate(0, 1, 0)), func(f *audit.Fields) { f.Hash(audit.TagGrant, [32]byte{6}) }, nil)
			return i
		}},
		"a member joins":   {"without a grant", sensitive(audit.OpMemberAdd, "")},
		"a key copied":     {"without a grant", sensitive(audit.OpKeyReplicate, "")},
		"a key adopted":    {"without a grant", sensitive(audit.OpKeyAdopt, "")},
		"a key imported":   {"without a grant", sensitive(audit.OpKeyImport, "")},
		"a key destroyed":  {"without a grant", sensitive(audit.OpKeyDestroy, "")},
		"a member removed": {"without a grant", sensitive(audit.OpMemberState, "removed")},
		"a retirement":     {"without a grant", sensitive(audit.OpMemberState, "retired")},
		"a recipient":      {"without a grant", sensitive(audit.OpBackup, "designated")},
		"a restore":        {"names no predecessor", sensitive(audit.OpRestore, "")},
		"a member fenced":  {"", func(l *made) uint64 { sensitive(audit.OpMemberState, "fenced")(l); return none }},

		"a retired member signs on": {"again", func(l *made) uint64 {
			g := l.granted()
			l.event(audit.OpMemberState, func(f *audit.Fields) {
				f.Text(audit.TagMember, "alpha")
				f.Text(audit.TagState, "retired")
				f.Hash(audit.TagGrant, g)
			})
			return sensitive(audit.OpMemberState, "active")(l)
		}},
		"signed after the retirement": {"retired", func(l *made) uint64 {
			g := l.granted()
			l.event(audit.OpMemberState, func(f *audit.Fields) {
				f.Text(audit.TagMember, "alpha")
				f.Text(audit.TagState, "retired")
				f.Hash(audit.TagGrant, g)
			})
			i, _ := l.doc(docs)
			return i
		}},
		"signed with a destroyed key": {"ended", func(l *made) uint64 {
			g := l.granted()
			l.event(audit.OpKeyDestroy, func(f *audit.Fields) {
				f.Hash(audit.TagKey, sha256.Sum256(docs))
				f.Text(audit.TagKeyName, "docs")
				f.Hash(audit.TagGrant, g)
			})
			i, _ := l.doc(docs)
			return i
		}},
		"a key with two purposes": {"purpose", func(l *made) uint64 {
			return l.intent(audit.OpTimestamp, audit.PurposeTimestamp, docs, []byte("x"), nil)
		}},
		"a purpose that may not": {"not for", func(l *made) uint64 {
			return l.intent(audit.OpCertificate, audit.PurposeDocument, other, []byte("x"), nil)
		}},
		"two ledgers under one key": {"not those of", func(l *made) uint64 {
			l.mark()
			at := l.size
			l.doc(docs)
			body := audit.Head{Size: l.size, Range: append([]tlog.Hash{{9}}, l.rng[1:]...)}.Body(l.origin)
			l.notes = append(l.notes, l.signNote(string(body)))
			l.doc(docs)
			return at
		}},
		"a checkpoint of a larger ledger": {"cut off", func(l *made) uint64 {
			at := l.size
			l.doc(docs)
			l.notes = append(l.notes, l.signNote(string(audit.Head{Size: 1 << 20, Range: []tlog.Hash{{1}}}.Body(l.origin))))
			return at + 2
		}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newMade(t, nil)
			l.root()
			l.born(l.granted(), docs, audit.PurposeDocument)
			l.doc(docs)
			l.issue(10)
			l.issue(11)
			l.revoke(11)
			l.crl(nil, 11)
			l.mark()
			index := story.do(l)
			dir := l.finish()
			if index == none {
				verifyExport(t, 0, "--signatures", dir)
				return
			}
			broken(t, index, story.says, "--signatures", dir)
		})
	}
}

// erased fills an entry about the erasure of one opening.
func erased(count, index uint64, tag audit.Tag) func(*audit.Fields) {
	return func(f *audit.Fields) {
		f.Uint64(audit.TagCount, count)
		f.Bytes(audit.TagErased, binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint64(nil, index), uint16(tag)))
	}
}

// sensitive does something that needs officers, without them.
func sensitive(op audit.Op, state string) func(l *made) uint64 {
	return func(l *made) uint64 {
		return l.event(op, func(f *audit.Fields) {
			f.Text(audit.TagMember, "alpha")
			f.Text(audit.TagState, state)
		})
	}
}

// orphan leaves it open whether a certificate was signed.
func (l *made) orphan(serial int64) (intent uint64) {
	l.t.Helper()
	spki := spkiOf(l.t, l.issuerKey)
	intent = l.intent(audit.OpCertificate, audit.PurposeIssuer, spki, []byte("x"), func(f *audit.Fields) {
		f.Hash(audit.TagIssuer, sha256.Sum256(spki))
		f.Bytes(audit.TagSerial, big.NewInt(serial).Bytes())
	})
	l.closing(audit.KindOrphan, intent, nil, nil, nil)
	return intent
}

// follow has two officers decide on a roster with a group, by a proposal that edit changes.
func follow(edit func(p *admin.Proposal)) func(old *made) {
	return func(old *made) {
		next := old.roster.Successor()
		next.Groups = []admin.Group{{Name: "first", Quorum: 1, Members: []string{old.roster.Officers[0].Name}}}
		raw := old.proposal(func(p *admin.Proposal) {
			p.Action, p.Acts = admin.ChangeRoster, []string{admin.ChangeRosterAct(next.Version, old.roster.Digest(), next.Digest())}
			if edit != nil {
				edit(p)
			}
		})
		w, grant, _, _ := old.decide(raw, old.cliVoter(0), old.cliVoter(1))
		old.changes = append(old.changes, admin.RosterChange{Roster: next, Warrant: w, Leaf: old.follows(next, grant)})
		old.roster = next
	}
}

// TestVerifyRestored has a ledger go on from a predecessor, by a warrant of its officers.
func TestVerifyRestored(t *testing.T) {
	manifest := restored
	act := "restore " + hex.EncodeToString(manifest[:])
	type change struct {
		proposal func(p *admin.Proposal)
		votes    []int // officers
		key      *ecdsa.PrivateKey
		count    uint64
		unended  bool
		manifest [32]byte // of the issuer
		rosters  func(old *made)
	}
	for name, x := range map[string]struct {
		change
		index uint64
		says  string
	}{
		"all is well":                     {change{}, 0, ""},
		"one officer":                     {change{votes: []int{1}}, 1, "1 approvals of 2"},
		"one officer twice":               {change{votes: []int{1, 1}}, 1, "there twice"},
		"a stranger":                      {change{key: newECDSA(t)}, 1, "not that of an officer"},
		"another manifest allowed":        {change{proposal: func(p *admin.Proposal) { p.Acts = []string{act[:len(act)-1] + "f"} }}, 1, "something else"},
		"another ledger's warrant":        {change{proposal: func(p *admin.Proposal) { p.Ledger[0]++ }}, 1, "something else"},
		"a warrant that is over":          {change{proposal: func(p *admin.Proposal) { p.NotBefore, p.Expires = time.Unix(1, 0), time.Unix(2, 0) }}, 1, "not in force"},
		"another manifest used":           {change{manifest: [32]byte{9}}, 2, "another manifest"},
		"a revocation is missing":         {change{count: 5}, 4, "carried over"},
		"never ended":                     {change{unended: true}, 0, "never finished"},
		"officers who followed":           {change{rosters: follow(nil)}, 0, ""},
		"officers of before":              {change{rosters: follow(nil), proposal: func(p *admin.Proposal) { p.Roster[0]++ }}, 1, "other officers"},
		"officers who followed elsewhere": {change{rosters: follow(func(p *admin.Proposal) { p.Ledger[0]++ })}, 1, "other officers"},
		"officers who followed others":    {change{rosters: follow(func(p *admin.Proposal) { p.Roster[0]++ })}, 1, "other officers"},
		"officers whom nobody decided on": {change{rosters: func(old *made) {
			follow(nil)(old)
			old.changes[0].Warrant.Votes = old.changes[0].Warrant.Votes[:1]
		}}, 1, "other officers"},
	} {
		t.Run(name, func(t *testing.T) {
			old := newMade(t, nil)
			old.root()
			if x.rosters != nil {
				x.rosters(old)
			}
			l := newMade(t, old)
			l.issuerKey, l.issuer, l.issuers = old.issuerKey, old.issuer, old.issuers
			l.number = 1 << 40
			spki := sha256.Sum256(spkiOf(t, l.issuerKey))
			raw := l.proposal(func(p *admin.Proposal) {
				p.Ledger, p.Action, p.Acts = old.id, "restore", []string{act}
				if x.proposal != nil {
					x.proposal(p)
				}
			})
			votes := x.votes
			if votes == nil {
				votes = []int{0, 2}
			}
			items := [][]byte{raw}
			for _, v := range votes {
				key := l.officers[v]
				if x.key != nil {
					key = x.key
				}
				officer := sha256.Sum256(l.roster.Officers[v].SPKI)
				items = append(items, append(officer[:], l.sign(key, 1, raw)...))
			}
			of := func(m [32]byte, more func(f *audit.Fields)) func(f *audit.Fields) {
				return func(f *audit.Fields) {
					f.Hash(audit.TagGrant, genesisGrant())
					f.Text(audit.TagSource, old.origin)
					f.Hash(audit.TagManifest, m)
					more(f)
				}
			}
			l.event(audit.OpRestore, of(manifest, func(f *audit.Fields) { f.List(audit.TagWarrant, items...); f.Bytes(audit.TagPredecessor, old.zero) }))
			m := manifest
			if x.manifest != m && x.manifest != ([32]byte{}) {
				m = x.manifest
			}
			l.event(audit.OpRestore, of(m, func(f *audit.Fields) {
				f.Hash(audit.TagIssuer, spki)
				f.Hash(audit.TagArtefact, sha256.Sum256(l.issuer.Raw))
				f.Uint64(audit.TagCRLNumber, l.number)
				f.Uint64(audit.TagThisUpdate, 0)
			}))
			l.event(audit.OpRevoke, func(f *audit.Fields) {
				f.Hash(audit.TagIssuer, spki)
				f.Bytes(audit.TagSerial, []byte{42})
				f.Text(audit.TagSource, old.origin)
				f.Hash(audit.TagManifest, manifest)
			})
			if !x.unended {
				count := uint64(1)
				if x.count > 0 {
					count = x.count
				}
				l.event(audit.OpRestore, of(manifest, func(f *audit.Fields) { f.Text(audit.TagState, "complete"); f.Uint64(audit.TagCount, count) }))
			}
			l.crl(nil, 42)
			dir := l.finish()
			if x.says != "" {
				broken(t, x.index, x.says, dir)
				return
			}
			if v := verifyExport(t, 0, dir); v.Succeeds != hex.EncodeToString(old.id[:]) {
				t.Errorf("it succeeds %q, want %x", v.Succeeds, old.id)
			}
		})
	}
}

// TestVerifyMillion measures chancery-verify on CHANCERY_ENTRIES entries, 1,000,000 for
// instance: half of them intents, half done, each with its certificate, some revoked.
func TestVerifyMillion(t *testing.T) {
	var entries int64
	if _, err := fmt.Sscan(os.Getenv("CHANCERY_ENTRIES"), &entries); err != nil || testing.Short() {
		t.Skip("set CHANCERY_ENTRIES to a number of entries")
	}
	l := newMade(t, nil)
	l.root()
	// One certificate is signed; the others differ in their serial, and their signature is
	// that of the first: chancery-verify rests on the entries, not on issuers' signatures.
	first := new(big.Int).Lsh(big.NewInt(1), 126)
	tmpl := &x509.Certificate{SerialNumber: first, Subject: pkix.Name{CommonName: "host"}, DNSNames: []string{"host.example"}, NotBefore: l.now, NotAfter: l.now.AddDate(0, 3, 0)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, l.issuer, &l.issuerKey.PublicKey, l.issuerKey)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(der, first.Bytes())
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	tbs := bytes.Index(der, cert.RawTBSCertificate)
	spki := spkiOf(t, l.issuerKey)
	began := time.Now()
	var revoked []int64
	for i := int64(0); int64(l.size) < entries-4; i++ {
		binary.BigEndian.PutUint64(der[at+8:], uint64(i))
		intent := l.intent(audit.OpCertificate, audit.PurposeIssuer, spki, der[tbs:tbs+len(cert.RawTBSCertificate)], func(f *audit.Fields) {
			f.Hash(audit.TagIssuer, sha256.Sum256(spki))
			f.Bytes(audit.TagSerial, der[at:at+16])
		})
		done := l.closing(audit.KindDone, intent, cert.Signature, der, nil)
		delete(l.leaves, intent)
		delete(l.hashes, intent)
		l.stored(done, der)
		if i%1000 == 7 {
			serial := bytes.Clone(der[at : at+16])
			l.event(audit.OpRevoke, func(f *audit.Fields) { f.Hash(audit.TagIssuer, sha256.Sum256(spki)); f.Bytes(audit.TagSerial, serial) })
			revoked = append(revoked, i)
		}
		if i%1000 == 999 {
			l.mark()
		}
	}
	dir := l.finish()
	t.Logf("%d entries, %d revocations, %d checkpoints made in %s", l.size, len(revoked), len(l.notes)+1, time.Since(began).Round(time.Millisecond))
	bin, err := verifier()
	if err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(t.TempDir(), "state")
	for _, args := range [][]string{{dir}, {"--state", state, dir}, {"--state", state, dir}} {
		cmd := exec.Command(bin, args...)
		began := time.Now()
		out, err := cmd.CombinedOutput()
		took := time.Since(began)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		usage := cmd.ProcessState.SysUsage().(*syscall.Rusage)
		t.Logf("chancery-verify %s: %s wall, %s CPU, %d MB peak RSS", strings.Join(args[:len(args)-1], " "), took.Round(time.Millisecond),
			(cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Round(time.Millisecond), usage.Maxrss>>10)
	}
}
