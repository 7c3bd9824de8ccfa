package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"chancery/admin"
	"chancery/audit"
	"chancery/ca"
	"chancery/dbstore"
	"chancery/hsmstore"
)

func auditRecoverCommand() *cobra.Command {
	var at snapshotFlags
	var r recovering
	c := &cobra.Command{
		Use: "recover [--dir DIR | --config FILE] (--request FILE --reason TEXT | --warrant FILE)", Short: "Go on from a database that lost its newest entries",
		Long: "No server starts on a database that is older than what intent journal and anchors know. Put the newer one\n" +
			"back if there is any. If there is none, the officers can decide to go on from what is left, and that is on\n" +
			"the ledger for ever. With the server stopped, first --request FILE writes what they are to sign; each of a\n" +
			"quorum signs it: chancery approve sign --file FILE --officer NAME --key FILE. Then --warrant FILE records it,\n" +
			"revokes every serial that the journal knows and the database does not, and lets CRLs and checkpoints go on.\n" +
			"Where several nodes run, call it with the same warrant on each before its server starts.",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			r.out = c.OutOrStdout()
			if (r.request == "") == (r.warrant == "") || (r.request != "") != (r.reason != "") {
				return &exit{exitUsage, errors.New("give either --request FILE and --reason TEXT, or --warrant FILE")}
			}
			log, err := newLog(r.level)
			if err != nil {
				return err
			}
			r.log = log
			if r.cfg, err = at.config(c); err != nil {
				return err
			}
			if at.file == "" || c.Flags().Changed("dir") {
				unlock, err := lock(at.dir)
				if err != nil {
					return err
				}
				defer unlock()
			}
			return r.run(c.Context())
		},
	}
	at.flags(c)
	c.Flags().StringVar(&r.request, "request", "", "write what the officers are to sign to this file")
	c.Flags().StringVar(&r.reason, "reason", "", "what happened; the officers sign it and it stands in the ledger")
	c.Flags().DurationVar(&r.lifetime, "lifetime", admin.DefaultLifetime, "how long the request may be signed and used, at most 168h")
	c.Flags().StringVar(&r.warrant, "warrant", "", "the request with the officers' signatures")
	c.Flags().StringVar(&r.level, "log", "warn", "what is logged to standard error: debug, info, warn, error")
	return c
}

type recovering struct {
	request, reason, warrant, level string

	lifetime time.Duration
	out      io.Writer
	log      *slog.Logger
	cfg      *Config

	db      *dbstore.Store
	journal *audit.Journal
	anchor  string
	rosters admin.History
}

func (r *recovering) run(ctx context.Context) (err error) {
	if err := r.cfg.check(); err != nil {
		return err
	}
	if r.anchor, _, err = r.cfg.anchors(); err != nil {
		return err
	}
	if r.db, err = dbstore.Open(ctx, r.cfg.Database); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.db.Close()) }()
	if err := r.db.LockNode(ctx, r.cfg.NodeID); err != nil {
		return err
	}
	if r.journal, err = audit.OpenJournal(r.cfg.Ledger.Journal); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.journal.Close()) }()
	if r.rosters, err = r.db.Rosters(ctx); err != nil {
		return fmt.Errorf("reading the officers: %w", err)
	}
	if r.request != "" {
		return r.ask(ctx)
	}
	return r.recover(ctx)
}

// loss is what the database lacks; at as in [audit.FindLoss].
func (r *recovering) loss(ctx context.Context, at uint64) (audit.Loss, error) {
	keys, err := r.db.Keys(ctx)
	if err != nil {
		return audit.Loss{}, fmt.Errorf("reading keys: %w", err)
	}
	return audit.FindLoss(ctx, r.db, r.journal, r.anchor, at, checkpointBirths(keys))
}

// ask writes the request.
func (r *recovering) ask(ctx context.Context) error {
	if r.lifetime < time.Second || r.lifetime > admin.MaxLifetime {
		return &exit{exitUsage, fmt.Errorf("--lifetime %s must be 1s to %s", r.lifetime, admin.MaxLifetime)}
	}
	loss, err := r.loss(ctx, 0)
	if err != nil {
		return err
	}
	if loss.Known <= loss.Size && loss.Common == loss.Size && !loss.Begun {
		return &exit{exitError, fmt.Errorf("nothing is lost: the database holds the %d entries that intent journal and anchor know; start the server", loss.Size)}
	}
	if err := r.officersInForce(ctx, loss); err != nil {
		return err
	}
	roster := r.rosters.Current()
	j, err := json.Marshal(admin.RecoverParameters{Size: loss.Size, Root: hex.EncodeToString(loss.Root[:]), Common: loss.Common, Known: loss.Known, Serials: len(loss.Serials), Reason: audit.Text(r.reason, 500)})
	if err != nil {
		return err
	}
	parameters, err := admin.CanonicalParameters(j)
	if err != nil {
		return err
	}
	acts, err := actsOf(admin.RecoverLedger, parameters)
	if err != nil {
		return err
	}
	t := admin.Terms{Ledger: loss.Ledger, Roster: roster, RosterDigest: roster.Digest(), PolicyDigest: roster.PolicyDigest()}
	proposal, err := t.Draft(admin.RecoverLedger, acts, parameters, admin.AdminToken, time.Now(), r.lifetime).Encode()
	if err != nil {
		return err
	}
	w := warrantFile{Parameters: parameters, Warrant: admin.Warrant{Proposal: proposal, Votes: []admin.VoteRecord{}, Roster: roster}}
	if err := w.save(r.request); err != nil {
		return err
	}
	_, err = fmt.Fprintf(r.out, "The database holds %d entries. From entry %d on, up to %d, intent journal and anchor know others, which would be given up; %d serials of them would be revoked.\nRequest %s waits for %d officers. Each of them:\n\n  %s approve sign --file %s --officer NAME --key FILE\n",
		loss.Size, loss.Common, loss.Known, len(loss.Serials), r.request, roster.Quorum, self(), shellQuote(r.request))
	return err
}

// recover carries the officers' decision out. Cut short, it is called again.
func (r *recovering) recover(ctx context.Context) error {
	w, err := readWarrantFile(r.warrant)
	if err != nil {
		return err
	}
	p, err := admin.DecodeProposal(w.Warrant.Proposal)
	if err != nil {
		return &exit{exitVerify, err}
	}
	parameters, err := admin.CanonicalParameters(w.Parameters)
	if err != nil {
		return &exit{exitVerify, err}
	}
	decided, err := parametersOf[admin.RecoverParameters](parameters)
	if err != nil {
		return &exit{exitVerify, err}
	}
	loss, err := r.loss(ctx, decided.Size)
	if err != nil {
		return err
	}
	act := admin.RecoverAct(decided.Size, loss.Root, decided.Common, decided.Known)
	if err := r.officersInForce(ctx, loss); err != nil {
		return err
	}
	first, _ := loss.Genesis.Hash(audit.TagRoster)
	acts, _, err := w.Warrant.Check(loss.Ledger, r.rosters.Current().Digest(), time.Now())
	for i, v := range w.Warrant.Votes { // the grant is made of their places
		if err == nil && v.Leaf != uint64(i) {
			err = fmt.Errorf("%w: vote %d stands in place %d", admin.ErrNotGranted, v.Leaf, i)
		}
	}
	if err == nil && !loss.Recovered[w.Warrant.Grant()] && (loss.Common < decided.Common || loss.Known > decided.Known) {
		err = fmt.Errorf("%w: the officers signed that entries %d to %d are given up; here it would be %d to %d. Ask them again: --request", admin.ErrNotGranted, decided.Common, decided.Known, loss.Common, loss.Known)
	}
	if err == nil && (p.Action != admin.RecoverLedger || !slices.Equal(acts, []string{act}) || p.Parameters != admin.ParametersDigest(parameters) || loss.Size != decided.Size) {
		err = fmt.Errorf("%w: the officers signed %q; what is left here is %q", admin.ErrNotGranted, acts, act)
	}
	if err != nil {
		return &exit{exitAuth, fmt.Errorf("warrant %s: %w", r.warrant, err)}
	}
	grant := w.Warrant.Grant()
	tell := func() error {
		members, err := r.members(ctx)
		if err != nil {
			return err
		}
		stderr.show("the HSM members learn that checkpoints go on")
		err = hsmstore.RecoverMembers(ctx, members, hsmstore.Recovery{Ledger: loss.Ledger, First: first, Rosters: r.rosters, Size: loss.Size, Act: act, Warrant: &w.Warrant})
		stderr.end()
		if err != nil { // no reason not to go on: the ledger grows
			r.log.Warn("a member signs no checkpoint before the ledger has grown past what was lost; call this again within two hours when it can be reached", "err", err)
		}
		return nil
	}
	if loss.Recovered[grant] { // once is enough: another loss needs another decision
		if err := r.isRecovery(ctx, loss.Size, grant); err != nil {
			return err
		}
		if err := tell(); err != nil {
			return err
		}
		_, err = fmt.Fprintln(r.out, "This recovery was carried out here before; the HSM members were told again.")
		return err
	}
	if err := r.journal.BeginRecovery(decided.Common, grant); err != nil {
		return err
	}
	audit.Failpoint("recovery-begun")
	size, revoked, strange, err := r.record(ctx, &w.Warrant, loss, decided, grant)
	if err != nil {
		return err
	}
	audit.Failpoint("recovery-recorded")
	if err := tell(); err != nil {
		return err
	}
	if err := r.journal.EndRecovery(size, grant); err != nil {
		return err
	}
	_, err = fmt.Fprintf(r.out, "The ledger goes on behind entry %d: that is on record, with the officers' signatures. %d serials were revoked.\n", loss.Size-1, revoked)
	if err == nil && strange > 0 {
		_, err = fmt.Fprintf(r.out, "%d serials are of issuers that were lost too: they cannot be revoked here.\n", strange)
	}
	if err == nil {
		_, err = fmt.Fprintln(r.out, "On other nodes call it with the same warrant, then start the servers. Tell your auditors: checkpoints of what was lost are no prefix any more.")
	}
	return err
}

// officersInForce refuses a recovery that would lose a change of the officers: the HSM members
// know the later ones and follow no others, so that checkpoints and ceremonies would end.
func (r *recovering) officersInForce(ctx context.Context, loss audit.Loss) error {
	members, err := r.members(ctx)
	if err != nil {
		return err
	}
	first, _ := loss.Genesis.Hash(audit.TagRoster)
	err = hsmstore.CheckRosters(members, loss.Ledger, first, r.rosters)
	if errors.Is(err, admin.ErrNotGranted) {
		return &exit{exitVerify, fmt.Errorf("the officers changed among the entries that are lost, and the HSM members follow only the later ones: %w. Nothing was changed. If there is none, the keys go on in a new ledger: chancery hsm restore", err)}
	}
	return err
}

// isRecovery wants the entry at an index to be the recovery under a grant.
func (r *recovering) isRecovery(ctx context.Context, index uint64, grant [32]byte) error {
	is := false
	err := r.db.Leaves(ctx, index, index+1, func(_ uint64, b []byte) error {
		leaf, err := audit.DecodeLeaf(b)
		g, _ := leaf.Hash(audit.TagGrant)
		is = leaf.Op == audit.OpRecovery && g == grant
		return err
	})
	if err == nil && is {
		return nil
	}
	return &exit{exitAuth, fmt.Errorf("%w: this warrant was used, or the ledger has gone on otherwise: entry %d is no recovery under it. Ask the officers again: --request", admin.ErrNotGranted, index)}
}

// record writes the recovery and what the CA owes after it to the ledger.
func (r *recovering) record(ctx context.Context, w *admin.Warrant, loss audit.Loss, decided admin.RecoverParameters, grant [32]byte) (size, revoked, strange uint64, err error) {
	head, err := r.db.Head(ctx)
	if err != nil {
		return 0, 0, 0, fmt.Errorf("reading the head: %w", err)
	}
	begun := head.Size > loss.Size // on another node, perhaps, whose server runs again; else nobody may write before the first entry
	l, err := audit.Open(ctx, r.db, audit.Options{Node: r.cfg.NodeID, Build: build(), Journal: r.journal, Recover: true, Shared: begun && r.db.Shared(), Log: r.log})
	if err != nil {
		return 0, 0, 0, err
	}
	stop, done := background(l.Run)
	defer func() {
		stop()
		err = errors.Join(err, <-done)
		size = l.Head().Size
	}()
	if !begun {
		var f audit.Fields
		f.List(audit.TagWarrant, w.Evidence()...)
		f.Hash(audit.TagGrant, grant)
		f.Uint64(audit.TagCommon, decided.Common)
		f.Uint64(audit.TagKnown, decided.Known)
		f.Bytes(audit.TagCheckpoint, []byte(loss.Checkpoint))
		f.Text(audit.TagReason, decided.Reason)
		if _, err := l.Append(ctx, audit.Event(audit.OpRecovery, f), audit.PutRecovery{}); err != nil {
			return 0, 0, 0, fmt.Errorf("recording the recovery: %w", err)
		}
	} else if err := r.isRecovery(ctx, loss.Size, grant); err != nil {
		return 0, 0, 0, err
	}
	revoked, strange, err = ca.Recover(ctx, l, r.db, grant, loss.Serials)
	return 0, revoked, strange, err
}

// members are those of the configuration that are enrolled.
func (r *recovering) members(ctx context.Context) (out []hsmstore.MemberConfig, err error) {
	configured, err := r.cfg.members()
	if err != nil {
		return nil, err
	}
	rows, err := r.db.Members(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range configured {
		for _, row := range rows {
			if row.Name == m.Name && row.Standing != hsmstore.StandingRemoved {
				m.TokenSerial, m.Replication = row.Serial, row.Replication
				out = append(out, m)
			}
		}
	}
	return out, nil
}
