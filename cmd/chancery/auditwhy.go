package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/tlog"

	"chancery/admin"
	"chancery/audit"
	"chancery/ca"
	"chancery/dbstore"
)

func auditWhyCommand() *cobra.Command {
	var at snapshotFlags
	var asJSON bool
	c := &cobra.Command{
		Use: "why CERT.pem", Short: "Say why a certificate exists: who asked, on what ground, who signed, and the proof",
		Long: "Finds the entries of a certificate (PEM or DER) in the ledger, beside a running server too, holds them\n" +
			"against the certificate, and proves that the newest signed checkpoint contains them. Exit code 7 if one of\n" +
			"our issuers signed it and no entry records it.",
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) != 1 {
				return &exit{exitUsage, errors.New("give one certificate; see chancery audit why --help")}
			}
			cert, err := readCertificate(args[0])
			if err != nil {
				return err
			}
			cfg, err := at.config(c)
			if err != nil {
				return err
			}
			st, err := dbstore.OpenSnapshot(c.Context(), cfg.Database)
			if err != nil {
				return err
			}
			defer st.Close()
			a, err := whyOf(c.Context(), st, cert)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			if asJSON {
				return json.NewEncoder(c.OutOrStdout()).Encode(a)
			}
			return a.print(c.OutOrStdout())
		},
	}
	at.flags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print the answer as JSON")
	return c
}

// readCertificate takes the first certificate of a file, PEM or DER.
func readCertificate(path string) (*x509.Certificate, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if block, _ := pem.Decode(b); block != nil {
		b = block.Bytes
	}
	cert, err := x509.ParseCertificate(b)
	if err != nil {
		return nil, fmt.Errorf("%s is no certificate: %w", path, err)
	}
	return cert, nil
}

// why is the account of one certificate, as far as ledger and database have it.
type why struct {
	Serial    string            `json:"serial"`
	SHA256    string            `json:"sha256"`
	Issuer    string            `json:"issuer"`
	Names     []string          `json:"names"`
	Requester string            `json:"requester"`
	Order     string            `json:"order,omitempty"`      // ACME
	CSR       string            `json:"csr_sha256,omitempty"` // of the order
	Evidence  string            `json:"evidence,omitempty"`   // digest, in the intent
	Rests     []string          `json:"rests_on,omitempty"`   // the record behind that digest, a line each
	Profile   string            `json:"profile"`
	Version   string            `json:"profile_digest,omitempty"`
	Linter    string            `json:"linter,omitempty"`
	Lint      string            `json:"lint"`
	Notices   []string          `json:"lint_notices,omitempty"`
	Personal  []personal        `json:"personal,omitempty"`
	Grant     string            `json:"grant,omitempty"`
	Approvals []string          `json:"approvals,omitempty"`
	Key       string            `json:"key"`
	KeySPKI   string            `json:"key_spki_sha256"`
	Members   map[string]uint64 `json:"members"` // tries for the signature
	Node      string            `json:"node"`
	Build     string            `json:"build"`
	Intent    uint64            `json:"intent"`
	Intended  string            `json:"intended"`
	Done      uint64            `json:"done"`
	Recorded  string            `json:"recorded"`
	Leaf      string            `json:"leaf_hash"` // of the done entry (RFC 6962 §2.1)
	Revoked   string            `json:"revoked,omitempty"`
	Origin    string            `json:"origin"`
	TreeSize  uint64            `json:"tree_size,omitempty"` // of the checkpoint that proves the done entry; 0: none does yet
	Proof     []string          `json:"proof,omitempty"`     // hashes of the inclusion proof (RFC 6962 §2.1.1)
}

// unrecorded is the finding that a certificate of ours has no entry.
func unrecorded(format string, args ...any) error {
	return &exit{exitVerify, fmt.Errorf(format, args...)}
}

// whyOf puts the account together and holds each entry against the certificate.
func whyOf(ctx context.Context, st *dbstore.Store, cert *x509.Certificate) (*why, error) {
	is, err := issuerOf(ctx, st, cert)
	if err != nil {
		return nil, err
	}
	serial := cert.SerialNumber.Bytes()
	row, err := st.Certificate(ctx, is.SPKI, serial)
	switch {
	case errors.Is(err, audit.ErrNotFound):
		return nil, unrecorded("issuer %s signed it, but no entry of this ledger records serial %x; one of a ledger before a restore may", is.Name, serial)
	case err != nil:
		return nil, err
	case !bytes.Equal(row.DER, cert.Raw):
		return nil, unrecorded("issuer %s signed it, but the ledger records another certificate of serial %x", is.Name, serial)
	}
	intent, ihash, err := leafAt(ctx, st, row.Intent)
	if err != nil {
		return nil, err
	}
	done, dhash, err := leafAt(ctx, st, row.Done)
	if err != nil {
		return nil, err
	}
	artefact, _ := done.Hash(audit.TagArtefact)
	tbs, _ := intent.Hash(audit.TagTBSHash)
	of, _ := done.Hash(audit.TagIntentHash)
	if artefact != sha256.Sum256(cert.Raw) || tbs != sha256.Sum256(cert.RawTBSCertificate) || of != ihash || done.Closes != row.Intent {
		return nil, fmt.Errorf("%w: entries %d and %d do not record the certificate that is stored for them", audit.ErrTampered, row.Intent, row.Done)
	}
	a := &why{Serial: hex.EncodeToString(serial), SHA256: hex.EncodeToString(artefact[:]), Issuer: is.Name, Profile: row.Profile, Key: is.KeyName,
		Lint:   "passed: nothing is signed that the linter refuses; no report was kept",
		Intent: row.Intent, Intended: intent.Time.Format(lineTime), Done: row.Done, Recorded: done.Time.Format(lineTime), Leaf: hex.EncodeToString(dhash[:])}
	for _, n := range row.Names {
		a.Names = append(a.Names, n.String())
	}
	if row.Revoked != nil {
		a.Revoked = fmt.Sprintf("%s, %s", row.Revoked.At.Format(lineTime), row.Revoked.Reason)
	}
	a.fromLeaves(intent, done)
	if err := a.evidence(ctx, st, row.Intent, intent.KeepsEvidence(), is.SPKI, serial); err != nil {
		return nil, err
	}
	if a.Personal, err = openedAt(ctx, st, row.Intent, intent); err != nil {
		return nil, err
	}
	if err := a.approvals(ctx, st, intent); err != nil {
		return nil, err
	}
	return a, a.prove(ctx, st, dhash)
}

// fromLeaves takes what only the entries say.
func (a *why) fromLeaves(intent, done audit.Leaf) {
	text := func(t audit.Tag) string { b, _ := intent.Get(t); return string(b) }
	hash := func(t audit.Tag) string { b, _ := intent.Get(t); return hex.EncodeToString(b) }
	a.Requester, a.Node, a.Build = text(audit.TagRequester), text(audit.TagNode), text(audit.TagBuild)
	a.Evidence, a.Version, a.KeySPKI, a.Grant = hash(audit.TagEvidence), hash(audit.TagProfile), hash(audit.TagKey), hash(audit.TagGrant)
	a.Members = map[string]uint64{}
	tries, _ := done.Get(audit.TagAttempts)
	items, err := audit.ParseList(tries)
	for ; err == nil && len(items) >= 2 && len(items[1]) == 4; items = items[2:] {
		a.Members[string(items[0])] += uint64(binary.BigEndian.Uint32(items[1]))
	}
}

// evidence shows what the decision rests on, if that was kept, and holds it against the intent.
func (a *why) evidence(ctx context.Context, st *dbstore.Store, intent uint64, kept bool, issuer [32]byte, serial []byte) error {
	record, err := st.Evidence(ctx, issuer, serial)
	if errors.Is(err, audit.ErrNotFound) && kept {
		return fmt.Errorf("%w: the evidence that entry %d rests on is gone", audit.ErrTampered, intent)
	}
	if errors.Is(err, audit.ErrNotFound) {
		return a.oldOrder(ctx, st)
	}
	if err != nil {
		return err
	}
	facts, err := audit.ParseEvidence(record)
	if err != nil {
		return fmt.Errorf("%w: the evidence of entry %d: %w", audit.ErrTampered, intent, err)
	}
	if d := audit.EvidenceDigest(record); a.Evidence != hex.EncodeToString(d[:]) {
		return fmt.Errorf("%w: the evidence that is stored for entry %d is not what it rests on", audit.ErrTampered, intent)
	}
	one := func(name string) string { return strings.Join(facts.All(name), "; ") }
	a.Order, a.CSR, a.Linter, a.Lint, a.Notices = one("order"), one("csr-sha256"), one("linter"), one("lint"), facts.All("lint-notice")
	for _, f := range facts {
		switch f.Name {
		case "request", "account", "authorization", "proof":
			a.Rests = append(a.Rests, f.Name+" "+f.Value)
		}
	}
	return nil
}

// oldOrder finds the ACME order of a certificate from the time before evidence was kept.
func (a *why) oldOrder(ctx context.Context, st *dbstore.Store) error {
	order, csr, err := st.OrderOfSerial(ctx, a.Serial)
	if errors.Is(err, audit.ErrNotFound) {
		return nil
	}
	a.Order, a.CSR = order, hex.EncodeToString(csr[:])
	return err
}

// issuerOf finds the issuer whose key signed the certificate.
func issuerOf(ctx context.Context, st *dbstore.Store, cert *x509.Certificate) (found ca.IssuerRecord, err error) {
	issuers, err := st.Issuers(ctx)
	if err != nil {
		return found, err
	}
	for _, i := range issuers {
		parent, err := x509.ParseCertificate(i.DER)
		if err == nil && bytes.Equal(parent.RawSubject, cert.RawIssuer) && parent.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature) == nil {
			return i, nil
		}
	}
	return found, errors.New("no issuer of this ledger signed it")
}

func leafAt(ctx context.Context, st *dbstore.Store, index uint64) (l audit.Leaf, h tlog.Hash, err error) {
	err = st.Leaves(ctx, index, index+1, func(_ uint64, b []byte) (err error) {
		h = audit.LeafHash(b)
		l, err = audit.DecodeLeaf(b)
		return err
	})
	return l, h, err
}

// approvals names the officers behind the grant of the intent, if there is one.
func (a *why) approvals(ctx context.Context, st *dbstore.Store, intent audit.Leaf) error {
	grant, ok := intent.Hash(audit.TagGrant)
	if !ok {
		return nil
	}
	a.Approvals = []string{"genesis, entry 0"}
	var found *audit.ProposalRow
	err := st.ProposalRows(ctx, func(p audit.ProposalRow) error {
		if p.Grant == grant {
			found = &p
		}
		return nil
	})
	if err != nil || found == nil {
		return err
	}
	a.Approvals = []string{fmt.Sprintf("proposal of entry %d, granted by entry %d", found.Leaf, found.GrantLeaf)}
	votes, err := st.Votes(ctx, found.Hash)
	for _, v := range votes {
		if v.Decision == admin.Approve {
			a.Approvals = append(a.Approvals, fmt.Sprintf("%s by entry %d", v.Officer, v.Leaf))
		}
	}
	return err
}

// prove computes the inclusion proof of the done entry and checks it against the newest
// checkpoint, whose signature is checked too.
func (a *why) prove(ctx context.Context, st *dbstore.Store, h tlog.Hash) error {
	_, origin, keys, err := checkpointKeys(ctx, st)
	if err != nil {
		return err
	}
	a.Origin = origin
	note, err := st.LastCheckpoint(ctx)
	if errors.Is(err, audit.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	c, err := audit.OpenCheckpoint(note, a.Origin, keys)
	if err != nil {
		return fmt.Errorf("%w: the newest checkpoint: %w", audit.ErrTampered, err)
	}
	if a.Done >= c.Size {
		return nil // it follows within two seconds
	}
	proof, err := audit.Proof(ctx, st, a.Done, c.Size)
	if err != nil {
		return err
	}
	if err := tlog.CheckRecord(proof, int64(c.Size), c.Root, int64(a.Done), h); err != nil {
		return fmt.Errorf("%w: the newest checkpoint does not contain entry %d", audit.ErrTampered, a.Done)
	}
	a.TreeSize = c.Size
	for _, h := range proof {
		a.Proof = append(a.Proof, hex.EncodeToString(h[:]))
	}
	return nil
}

func (a *why) print(w io.Writer) error {
	var b strings.Builder
	row := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-12s %s\n", name, visible(fmt.Sprintf(format, args...)))
	}
	row("certificate", "serial %s by issuer %s, SHA-256 %s", a.Serial, a.Issuer, a.SHA256)
	row("names", "%s", strings.Join(a.Names, " "))
	row("requester", "%s", a.Requester)
	for _, p := range a.Personal {
		row(p.Name, "%s", p.text())
	}
	switch {
	case a.Order != "":
		row("order", "ACME order %s, CSR SHA-256 %s", a.Order, a.CSR)
	case a.CSR != "":
		row("request", "CSR SHA-256 %s", a.CSR)
	}
	for _, fact := range a.Rests {
		row("evidence", "%s", fact)
	}
	if a.Evidence != "" {
		row("evidence", "digest %s%s", a.Evidence, map[bool]string{true: ", of what is shown here", false: "; what it is of was not kept"}[len(a.Rests) > 0])
	}
	row("profile", "%s, digest %s", a.Profile, a.Version)
	row("lint", "%s", a.Lint)
	for _, n := range a.Notices {
		row("lint", "notice %s", n)
	}
	if a.Linter != "" {
		row("linter", "%s", a.Linter)
	}
	if a.Grant != "" {
		row("grant", "%s: %s", a.Grant, strings.Join(a.Approvals, "; "))
	}
	row("key", "%s, SPKI SHA-256 %s", a.Key, a.KeySPKI)
	for _, m := range slices.Sorted(maps.Keys(a.Members)) {
		row("member", "%s, %d signature tries", m, a.Members[m])
	}
	row("program", "%s on node %s", a.Build, a.Node)
	row("intent", "entry %d, %s", a.Intent, a.Intended)
	row("done", "entry %d, %s, leaf hash %s", a.Done, a.Recorded, a.Leaf)
	if a.Revoked != "" {
		row("revoked", "%s", a.Revoked)
	}
	if a.TreeSize == 0 {
		row("proof", "none yet: no signed checkpoint covers the entry; one follows within two seconds of a running server")
	} else {
		row("proof", "%d hashes to the signed checkpoint of %d entries of %s, checked", len(a.Proof), a.TreeSize, a.Origin)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
