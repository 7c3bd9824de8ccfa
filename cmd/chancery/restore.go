package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"chancery/admin"
	"chancery/audit"
	"chancery/ca"
	"chancery/hsmstore"
)

func hsmRestoreCommand() *cobra.Command {
	var r restore
	c := &cobra.Command{
		Use: "restore --manifest FILE --ledger ID (--request FILE | --config NEW.yaml --warrant FILE)", Short: "Go on with the keys of a backup, as a new ledger",
		Long: "First --request FILE writes what the officers of the old CA are to sign; each of a quorum signs it without a\n" +
			"server: chancery approve sign --file FILE --officer NAME --key FILE. Then --warrant FILE restores: the\n" +
			"configuration names an empty database and, as the one member, the recipient's token. A new ledger begins whose\n" +
			"leaf 0 names the last checkpoint of the old one; the keys come out of the backup and prove themselves; the CAs\n" +
			"keep their certificates; their CRLs go on in a number range of their own with all that the old CRLs revoked.\n" +
			"Retire the old cluster first if it still runs: chancery hsm retire. Interrupted, begin again with an empty\n" +
			"database and journal.",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			r.out = c.OutOrStdout()
			if r.manifest == "" || (r.request == "") == (r.warrant == "") || r.warrant != "" && r.file == "" {
				return &exit{exitUsage, errors.New("give --manifest FILE and either --request FILE, or --config FILE and --warrant FILE")}
			}
			m, err := readManifest(r.manifest)
			if err != nil {
				return err
			}
			if err := m.isOf(r.ledger); err != nil {
				return err
			}
			if err := r.young(m, time.Now()); err != nil {
				return err
			}
			if r.request != "" {
				return r.ask(m)
			}
			return r.run(c.Context(), m)
		},
	}
	c.Flags().StringVar(&r.manifest, "manifest", "", "the manifest; its proof lies beside it")
	c.Flags().StringVar(&r.ledger, "ledger", "", ledgerUsage)
	c.Flags().BoolVar(&r.oldOK, "old-manifest-ok", false, "also take a manifest that is older than two days")
	c.Flags().StringVar(&r.request, "request", "", "write what the officers are to sign to this file")
	c.Flags().DurationVar(&r.lifetime, "lifetime", admin.DefaultLifetime, "how long the request may be signed and used, at most 168h")
	c.Flags().StringVar(&r.file, "config", "", "configuration of the new CA")
	c.Flags().StringVar(&r.warrant, "warrant", "", "the request with the officers' signatures")
	c.Flags().StringVar(&r.tokenFile, "admin-token", "admin.token", "file for the new admin token (0600); made unless it is there")
	c.Flags().StringVar(&r.level, "log", "warn", "what is logged to standard error: debug, info, warn, error")
	return c
}

// oldManifest is how old a manifest may be without a word.
const oldManifest = 48 * time.Hour

// young refuses an old manifest that nobody said is meant.
func (r *restore) young(m *openedManifest, now time.Time) error {
	if age := now.Sub(m.Made); age > oldManifest && !r.oldOK {
		return &exit{exitUsage, fmt.Errorf("the manifest is %s old: what was revoked since is not in it. Take a newer one, or say --old-manifest-ok", age.Round(time.Hour))}
	}
	return nil
}

type restore struct {
	manifest, ledger, request, file, warrant, tokenFile, level string

	oldOK bool

	lifetime time.Duration
	out      io.Writer
}

// restoreParameters are what the officers decide about.
func restoreParameters(m *openedManifest) (parameters []byte, acts []string, err error) {
	j, err := json.Marshal(admin.RestoreParameters{Manifest: hex.EncodeToString(m.hash[:]), Ledger: m.manifest.Ledger, Made: m.Made.UTC().Format(time.RFC3339), Size: m.size,
		Recipient: m.Recipient.Name, Serial: m.Recipient.Serial, Keys: len(m.keys), Issuers: len(m.issuers), Revocations: m.revoked})
	if err != nil {
		return nil, nil, err
	}
	if parameters, err = admin.CanonicalParameters(j); err != nil {
		return nil, nil, err
	}
	acts, err = actsOf(admin.Restore, parameters)
	return parameters, acts, err
}

// ask writes the request.
func (r *restore) ask(m *openedManifest) error {
	if r.lifetime < time.Second || r.lifetime > admin.MaxLifetime {
		return &exit{exitUsage, fmt.Errorf("--lifetime %s must be 1s to %s", r.lifetime, admin.MaxLifetime)}
	}
	parameters, acts, err := restoreParameters(m)
	if err != nil {
		return err
	}
	roster := m.Rosters.Current()
	t := admin.Terms{Ledger: m.ledger, Roster: roster, RosterDigest: roster.Digest(), PolicyDigest: roster.PolicyDigest()}
	proposal, err := t.Draft(admin.Restore, acts, parameters, admin.AdminToken, time.Now(), r.lifetime).Encode()
	if err != nil {
		return err
	}
	w := warrantFile{Parameters: parameters, Warrant: admin.Warrant{Proposal: proposal, Votes: []admin.VoteRecord{}, Roster: roster}}
	if err := w.save(r.request); err != nil {
		return err
	}
	_, err = fmt.Fprintf(r.out, "request %s waits for %d officers. Each of them:\n\n  %s approve sign --file %s --officer NAME --key FILE\n", r.request, roster.Quorum, self(), shellQuote(r.request))
	return err
}

// signFile adds an officer's vote to a request of hsm restore or audit recover. There is no ledger that
// would count the votes: their place in the file stands for the leaf index.
func signFile(c *cobra.Command, args []string, file, officer, key string, yes bool) error {
	if len(args) > 0 || officer == "" || key == "" {
		return &exit{exitUsage, errors.New("with --file give --officer NAME and --key FILE, and no ID")}
	}
	k, err := admin.LoadOfficerKey(officer, key)
	if err != nil {
		return &exit{exitAuth, err}
	}
	w, err := readWarrantFile(file)
	if err != nil {
		return err
	}
	p, err := admin.DecodeProposal(w.Warrant.Proposal)
	if err != nil {
		return &exit{exitVerify, err}
	}
	if p.Action != admin.Restore && p.Action != admin.RecoverLedger {
		return &exit{exitVerify, fmt.Errorf("%s asks for %q; only a restore or a recovery is signed from a file", file, audit.Text(p.Action, 64))}
	}
	a := approvalView{ID: admin.ProposalID(admin.ProposalHash(w.Warrant.Proposal)), State: admin.Pending, Action: p.Action, Acts: p.Acts, Requester: p.Requester, Parameters: w.Parameters, Proposal: w.Warrant.Proposal,
		Expires: p.Expires, Quorum: w.Warrant.Roster.Quorum}
	if _, err := a.check(a.ID); err != nil {
		return err
	}
	roster := w.Warrant.Roster
	o, err := k.Officer()
	if err != nil {
		return err
	}
	on, known := roster.Officer(officer)
	switch {
	case !known || !bytes.Equal(on.SPKI, o.SPKI) || roster.Digest() != p.Roster:
		return &exit{exitAuth, fmt.Errorf("officer %s with this key is not on the roster of the CA", visible(officer))}
	case slices.ContainsFunc(w.Warrant.Votes, func(v admin.VoteRecord) bool { return v.Officer == officer }):
		return &exit{exitAuth, fmt.Errorf("officer %s has signed already", visible(officer))}
	}
	if err := a.print(c.ErrOrStderr(), p); err != nil {
		return err
	}
	if !yes && !confirmed(c, admin.Approve) {
		return errors.New("nothing was signed")
	}
	sig, err := k.SignVote(admin.Approve, w.Warrant.Proposal)
	if err != nil {
		return err
	}
	w.Warrant.Votes = append(w.Warrant.Votes, admin.VoteRecord{Officer: officer, SPKI: o.SPKI, Decision: admin.Approve, Signature: sig, Leaf: uint64(len(w.Warrant.Votes))})
	if err := w.save(file); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.OutOrStdout(), "%s: %d of %d approvals\n", file, len(w.Warrant.Votes), w.Warrant.Roster.Quorum)
	return err
}

// run restores.
func (r *restore) run(ctx context.Context, m *openedManifest) error {
	log, err := newLog(r.level)
	if err != nil {
		return err
	}
	w, err := readWarrantFile(r.warrant)
	if err != nil {
		return err
	}
	parameters, want, err := restoreParameters(m)
	if err != nil {
		return err
	}
	acts, _, err := w.Warrant.Check(m.ledger, m.Rosters.Current().Digest(), time.Now())
	if err == nil {
		var p admin.Proposal
		if p, err = admin.DecodeProposal(w.Warrant.Proposal); err == nil && (!slices.Equal(acts, want) || p.Action != admin.Restore || p.Parameters != admin.ParametersDigest(parameters)) {
			err = fmt.Errorf("%w: the officers signed %s %s, this restore is %s", admin.ErrNotGranted, audit.Text(p.Action, 64), audit.Text(string(w.Parameters), 1000), parameters)
		}
	}
	if err != nil {
		return &exit{exitAuth, fmt.Errorf("warrant %s: %w", r.warrant, err)}
	}
	if lacking := m.lacking(); len(lacking) > 0 {
		return &exit{exitVerify, fmt.Errorf("manifest %s: keys %v of its issuers are not in the backup; nothing was restored", r.manifest, lacking)}
	}
	cfg, err := loadConfig(r.file, "")
	if err != nil {
		return err
	}
	if err := cfg.check(); err != nil {
		return err
	}
	mode, _ := m.leaf0.Uint(audit.TagMode)
	if strings.Contains(m.Recipient.Label, devTokenLabel) && mode != 1 {
		return &exit{exitConfig, errors.New("the recipient's token was made by chancery dev, whose PINs lie beside it; a CA for production does not go on there")}
	}
	token, err := adminToken(r.tokenFile)
	if err != nil {
		return err
	}
	s := &server{cfg: cfg, log: log, dev: mode == 1}
	stderr.show("the keys of the backup come back, each with a proof")
	err = s.restore(ctx, m, &w.Warrant, sha256.Sum256([]byte(token)))
	stderr.end()
	var root []byte
	var origin string
	if err == nil {
		root, origin = s.authority.Roots()[0], s.ledger.Origin()
	}
	if errors.Is(err, admin.ErrNotGranted) {
		err = &exit{exitAuth, err}
	}
	if err := errors.Join(err, s.close()); err != nil {
		return err
	}
	_, err = fmt.Fprintf(r.out, "The CA goes on.\n\n  Ledger        %s\n  Predecessor   %s\n  Keys          %d\n  Root SHA-256  %s\n  Admin token   %s\n\nNow start it. Retire the old cluster if it can still run, and designate a new backup recipient.\n", origin, m.Origin, len(m.keys), fingerprint(root), r.tokenFile)
	return err
}

// restore begins a ledger with what a manifest and the recipient's token hold.
func (s *server) restore(ctx context.Context, m *openedManifest, w *admin.Warrant, tokenHash [32]byte) error {
	if empty, err := ledgerIsEmpty(ctx, s.cfg.Database); err != nil {
		return err
	} else if !empty {
		return &exit{exitConfig, fmt.Errorf("the database %s is not empty; a restore wants an empty one, and an empty journal", s.cfg.Database)}
	}
	if err := s.begin(ctx); err != nil {
		return err
	}
	acts := s.hsm.RestoreActs(m.hash)
	g, err := admin.Genesis(s.ledger.Head(), acts)
	if err != nil {
		return err
	}
	// 1. Leaf 0 and the keys.
	leaf := audit.Genesis{Random: [32]byte(random(32)), Dev: s.dev, Domain: s.cfg.domain(), Previous: m.last, Roster: m.Rosters.Current().Digest(), Acts: acts}
	err = s.hsm.Restore(ctx, g, leaf, hsmstore.Restoration{Manifest: m.hash, Ledger: m.ledger, Origin: m.Origin, Genesis: m.Genesis, Rosters: m.Rosters, Recipient: m.recipient(), Keys: m.keys, Warrant: w})
	if err != nil {
		return err
	}
	// 2. Who may decide and ask.
	if err := s.ledger.Write(ctx, ca.PutSetting{Name: adminTokenSetting, Value: tokenHash[:]}, admin.PutRoster{History: m.Rosters}); err != nil {
		return fmt.Errorf("storing officers and admin token: %w", err)
	}
	// 3. The issuers, what they revoked, and their CRLs.
	carried, err := ca.RestoreIssuers(ctx, s.ledger, ca.Predecessor{Origin: m.Origin, Manifest: m.hash, Grant: g.Hash()}, m.issuers)
	if err != nil {
		return err
	}
	if err := s.buildCA(ctx); err != nil {
		return err
	}
	if err := s.authority.FreshCRLs(ctx); err != nil {
		return err
	}
	// 4. Only now it is a CA that can be started.
	return s.hsm.FinishRestore(ctx, carried, ca.PutSetting{Name: genesisSetting, Value: []byte{1}})
}
