package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json/jsontext"
	"encoding/json/v2"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"chancery/admin"
	"chancery/audit"
	"chancery/ca"
	"chancery/hsmstore"
)

// manifestVersion is that of the manifests that this program writes and reads.
const manifestVersion = 1

// manifest is all that a restore needs besides the recipient's token and the officers:
// a JSON file, octets in base64. It is public but for names: its blobs open nowhere but in
// the recipient's token. Its SHA-256 stands in the ledger (OpBackup), and the proof of
// that leaf, signed by the ledger's checkpoint key, lies beside it.
type manifest struct {
	Version    int               `json:"version"`
	Made       time.Time         `json:"made"`
	Ledger     string            `json:"ledger"` // hex of the ledger id
	Origin     string            `json:"origin"`
	Genesis    []byte            `json:"genesis"`    // leaf 0
	Checkpoint string            `json:"checkpoint"` // the newest signed one
	Rosters    admin.History     `json:"rosters"`
	Roster     *admin.Roster     `json:"roster,omitempty"` // of a manifest from before rosters could change
	Recipient  manifestRecipient `json:"recipient"`
	Keys       []manifestKey     `json:"keys"`
	LeftOut    map[string]string `json:"left_out"` // keys that no backup holds, and why
	Issuers    []manifestIssuer  `json:"issuers"`  // those above first
}

type manifestRecipient struct {
	Name   string `json:"name"`
	Serial string `json:"serial"`
	Label  string `json:"label"`
}

type manifestKey struct {
	ID          string             `json:"id"` // hex, CKA_ID
	Name        string             `json:"name"`
	Purpose     string             `json:"purpose"`
	Algorithm   string             `json:"algorithm"`
	SPKI        []byte             `json:"spki"` // DER
	Subject     []byte             `json:"subject,omitempty"`
	State       hsmstore.KeyState  `json:"state"`
	Birth       uint64             `json:"birth"` // ledger entry
	Description string             `json:"description,omitempty"`
	Way         int                `json:"way"`
	Mechanism   string             `json:"mechanism"` // of the way, for people
	KEK         hsmstore.BackupKEK `json:"kek"`       // on the token
	Blob        []byte             `json:"blob"`
}

type manifestIssuer struct {
	Name        string `json:"name"`
	Key         string `json:"key"`
	Parent      string `json:"parent"` // its own name for a root
	Certificate []byte `json:"certificate"`
	CRL         []byte `json:"crl,omitempty"` // the newest
	CRLNumber   uint64 `json:"crl_number"`    // the last that was given
}

// backedUp is a manifest with its proof, as they lie in two files.
type backedUp struct {
	Name     string `json:"name"` // of the file, without ending
	Manifest []byte `json:"manifest"`
	Proof    []byte `json:"proof"`
}

const (
	manifestEnding = ".manifest.json"
	proofEnding    = ".proof"
)

// makeManifest writes a manifest's hash into the ledger and gives it with its proof.
func (s *server) makeManifest(ctx context.Context, name string) (out backedUp, err error) {
	if err := s.authority.FreshCRLs(ctx); err != nil { // what is revoked by now is on the CRLs
		return out, fmt.Errorf("renewing CRLs for the manifest: %w", err)
	}
	m := manifest{Version: manifestVersion, Made: time.Now().UTC().Truncate(time.Second), Origin: s.ledger.Origin(), LeftOut: s.hsm.LeftOut()}
	id := s.ledger.ID()
	m.Ledger = hex.EncodeToString(id[:])
	if err := s.db.Leaves(ctx, 0, 1, func(_ uint64, b []byte) error { m.Genesis = bytes.Clone(b); return nil }); err != nil {
		return out, err
	}
	if err := s.checkpoint.Sign(ctx); err != nil {
		return out, err
	}
	if m.Checkpoint, err = s.checkpoint.Latest(ctx); err != nil {
		return out, err
	}
	if m.Rosters, err = s.db.Rosters(ctx); err != nil {
		return out, err
	}
	all, err := s.hsm.Recipients(ctx)
	if err != nil {
		return out, err
	}
	keys, err := s.hsm.BackupKeys(ctx, name)
	if err != nil {
		return out, err
	}
	for _, r := range all {
		if r.Name == name {
			m.Recipient = manifestRecipient{r.Name, r.Serial, r.Label}
		}
	}
	for _, k := range keys {
		m.Keys = append(m.Keys, manifestKey{ID: hex.EncodeToString(k.ID[:]), Name: k.Name, Purpose: k.Purpose.String(), Algorithm: k.Algorithm, SPKI: k.SPKI, Subject: k.Subject, State: k.State, Birth: k.Birth,
			Description: k.Description, Way: k.Way, Mechanism: hsmstore.WayName(k.Way), KEK: k.KEK, Blob: k.Blob})
	}
	if m.Issuers, err = s.manifestIssuers(ctx); err != nil {
		return out, err
	}
	if out.Manifest, err = json.Marshal(m, json.Deterministic(true), jsontext.WithIndent("  ")); err != nil {
		return out, err
	}
	sum := sha256.Sum256(out.Manifest)
	var f audit.Fields
	f.Hash(audit.TagManifest, sum)
	f.Text(audit.TagRecipient, name)
	leaf, err := s.ledger.Append(ctx, audit.Event(audit.OpBackup, f))
	if err != nil {
		return out, fmt.Errorf("recording the manifest: %w", err)
	}
	if err := s.checkpoint.Sign(ctx); err != nil {
		return out, err
	}
	if out.Proof, err = s.checkpoint.ProofText(ctx, leaf.Index); err != nil {
		return out, fmt.Errorf("proving the manifest: %w", err)
	}
	out.Name = fmt.Sprintf("%s-%s-%x", name, m.Made.Format("20060102T150405Z"), sum[:4])
	// What is written today must be readable on the day when it is needed.
	var unsigned *note.UnverifiedNoteError
	if _, err := openManifest(out.Manifest, out.Proof); errors.As(err, &unsigned) {
		return out, fmt.Errorf("%w: a manifest needs a checkpoint that a key of leaf 0 has signed, and no member with one is up (chancery audit keys)", hsmstore.ErrUnavailable)
	} else if err != nil {
		return out, fmt.Errorf("reading the manifest back: %w", err)
	}
	return out, nil
}

func (s *server) manifestIssuers(ctx context.Context) ([]manifestIssuer, error) {
	recs, err := s.db.Issuers(ctx)
	if err != nil {
		return nil, err
	}
	var out []manifestIssuer
	listed := map[string]bool{}
	for len(out) < len(recs) {
		n := len(out)
		for _, r := range recs {
			if !listed[r.Name] && (r.Parent == r.Name || listed[r.Parent]) {
				listed[r.Name] = true
				out = append(out, manifestIssuer{Name: r.Name, Key: r.KeyName, Parent: r.Parent, Certificate: r.DER, CRL: r.CRL, CRLNumber: r.CRLNumber})
			}
		}
		if len(out) == n {
			return nil, fmt.Errorf("%w: an issuer's parent is missing", audit.ErrTampered)
		}
	}
	return out, nil
}

// openedManifest is a manifest that was verified.
type openedManifest struct {
	manifest
	hash    [32]byte
	leaf0   audit.Leaf
	ledger  audit.LedgerID
	last    string // newest checkpoint of the ledger, from the proof
	size    uint64 // of that
	revoked int    // certificates on the CRLs
	keys    []hsmstore.BackupKey
	issuers []ca.RestoredIssuer
}

// readManifest reads a manifest and the proof beside it. What does not verify ends with
// exit code 7.
func readManifest(path string) (*openedManifest, error) {
	base, ok := strings.CutSuffix(path, manifestEnding)
	if !ok {
		return nil, &exit{exitUsage, fmt.Errorf("--manifest %s: a manifest's name ends in %s, its proof's in %s", path, manifestEnding, proofEnding)}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	proof, err := os.ReadFile(base + proofEnding)
	if err != nil {
		return nil, fmt.Errorf("proof of the manifest: %w; it belongs beside it", err)
	}
	m, err := openManifest(text, proof)
	if err != nil {
		return nil, &exit{exitVerify, fmt.Errorf("manifest %s: %w", path, err)}
	}
	return m, nil
}

// openManifest holds a manifest against its proof and against itself.
func openManifest(text, proof []byte) (*openedManifest, error) {
	m := &openedManifest{hash: sha256.Sum256(text)}
	if err := json.Unmarshal(text, &m.manifest, json.RejectUnknownMembers(true)); err != nil {
		return nil, fmt.Errorf("it is no manifest of version %d: %w", manifestVersion, err)
	}
	if m.Version != manifestVersion {
		return nil, fmt.Errorf("its version is %d, this program reads %d; use the program that wrote it", m.Version, manifestVersion)
	}
	// 1. Leaf 0 proves itself, and names checkpoint keys and officers.
	leaf0, origin, spkis, err := audit.OpenGenesis(m.Genesis)
	if err != nil {
		return nil, fmt.Errorf("leaf 0: %w", err)
	}
	m.leaf0, m.ledger = leaf0, leaf0.Ledger
	if m.Ledger != hex.EncodeToString(leaf0.Ledger[:]) || m.Origin != origin {
		return nil, fmt.Errorf("it names ledger %s, leaf 0 is of %s", audit.Text(m.Origin, 100), origin)
	}
	if m.Roster != nil && len(m.Rosters.Base.Officers) == 0 {
		m.Rosters.Base = *m.Roster
	}
	first, _ := leaf0.Hash(audit.TagRoster)
	if _, err := m.Rosters.CheckChain(first); err != nil {
		return nil, err
	}
	// 2. The ledger holds the manifest's hash, says the ledger's key.
	p, err := audit.OpenProof(proof, origin, spkis)
	if err != nil {
		return nil, err
	}
	recorded, _ := p.Leaf.Hash(audit.TagManifest)
	recipient, _ := p.Leaf.Get(audit.TagRecipient)
	switch {
	case p.Leaf.Ledger != leaf0.Ledger || p.Leaf.Kind != audit.KindEvent || p.Leaf.Op != audit.OpBackup:
		return nil, errors.New("the proof is not of a backup of this ledger")
	case recorded != m.hash:
		return nil, fmt.Errorf("its SHA-256 is %x, the ledger recorded %x: it was changed, or the proof is another's", m.hash, recorded)
	case string(recipient) != m.Recipient.Name:
		return nil, errors.New("the proof is for another recipient")
	}
	if _, err := audit.OpenCheckpoint(m.Checkpoint, origin, spkis); err != nil {
		return nil, err
	}
	m.last, m.size = p.Checkpoint.Note, p.Checkpoint.Size
	return m, m.typed()
}

// typed gives keys and issuers in the form in which they are restored.
func (m *openedManifest) typed() error {
	seen := map[string]bool{}
	spkis := map[string][]byte{}
	for _, k := range m.manifest.Keys {
		purpose, err := audit.ParsePurpose(k.Purpose)
		if err != nil {
			return fmt.Errorf("key %s: %w", audit.Text(k.Name, 64), err)
		}
		id, err := hex.DecodeString(k.ID)
		if err != nil || len(id) != len(hsmstore.KeyID{}) || seen[k.ID] || spkis[k.Name] != nil {
			return fmt.Errorf("key %s: its id is not 32 hex digits, or id or name is there twice", audit.Text(k.Name, 64))
		}
		seen[k.ID], spkis[k.Name] = true, k.SPKI
		b := hsmstore.BackupKey{KeyRecord: hsmstore.KeyRecord{ID: hsmstore.KeyID(id), Name: k.Name, Purpose: purpose, Algorithm: k.Algorithm, SPKI: k.SPKI, Subject: k.Subject, State: k.State, Birth: k.Birth, Description: k.Description}, Way: k.Way, KEK: k.KEK, Blob: k.Blob}
		if err := hsmstore.CheckBackupKey(b); err != nil {
			return err
		}
		m.keys = append(m.keys, b)
	}
	certs := map[string]*x509.Certificate{}
	for _, i := range m.manifest.Issuers {
		cert, err := x509.ParseCertificate(i.Certificate)
		if err != nil {
			return fmt.Errorf("issuer %s: %w", audit.Text(i.Name, 64), err)
		}
		certs[i.Name] = cert
		r := ca.RestoredIssuer{Name: i.Name, KeyName: i.Key, Parent: i.Parent, DER: i.Certificate, CRL: i.CRL, CRLNumber: i.CRLNumber}
		switch {
		case certs[i.Parent] == nil:
			return fmt.Errorf("issuer %s: its parent %q does not stand before it", audit.Text(i.Name, 64), audit.Text(i.Parent, 64))
		case spkis[i.Key] != nil && !bytes.Equal(spkis[i.Key], cert.RawSubjectPublicKeyInfo):
			return fmt.Errorf("issuer %s: its certificate is for another key than %s", i.Name, i.Key)
		case slices.ContainsFunc(m.keys, func(k hsmstore.BackupKey) bool {
			return k.Name == i.Key && (k.Purpose != audit.PurposeIssuer || !bytes.Equal(k.Subject, cert.RawSubject))
		}):
			return fmt.Errorf("issuer %s: key %s is no issuer key of its name", i.Name, audit.Text(i.Key, 64))
		}
		crl, err := r.Check(certs[i.Parent])
		if err != nil {
			return err
		}
		if crl != nil {
			m.revoked += len(crl.RevokedCertificateEntries)
		}
		m.issuers = append(m.issuers, r)
	}
	return nil
}

const ledgerUsage = "id of the ledger that the backup is of, 64 hex digits, as you have kept it: hsm backup and audit verify show it"

// isOf holds a manifest against the id of a ledger that people have kept: whoever has the
// files could have made another ledger with officers of his own around the keys.
func (m *openedManifest) isOf(ledger string) error {
	id, err := hex.DecodeString(ledger)
	if err != nil || len(id) != len(m.ledger) {
		return &exit{exitUsage, errors.New("--ledger ID is needed: the 64 hex digits of the ledger's id, from where you keep it, not from the manifest; chancery hsm backup and chancery audit verify show it")}
	}
	if !bytes.Equal(id, m.ledger[:]) {
		return &exit{exitVerify, fmt.Errorf("the manifest is of ledger %x, not of %x", m.ledger, id)}
	}
	return nil
}

// recipient is the token that opens the backup.
func (m *openedManifest) recipient() hsmstore.RecipientRecord {
	return hsmstore.RecipientRecord{Name: m.Recipient.Name, Serial: m.Recipient.Serial, Label: m.Recipient.Label}
}

// lacking names the issuers' keys that the backup does not hold.
func (m *openedManifest) lacking() (out []string) {
	for _, i := range m.issuers {
		if !slices.ContainsFunc(m.keys, func(k hsmstore.BackupKey) bool { return k.Name == i.KeyName }) {
			out = append(out, i.KeyName)
		}
	}
	return out
}
