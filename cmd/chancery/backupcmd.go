package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"chancery/admin"
	"chancery/audit"
	"chancery/hsmstore"
	"chancery/web"
)

func hsmBackupCommand() *cobra.Command {
	var g request
	var b backupRequest
	c := &cobra.Command{
		Use: "backup RECIPIENT", Short: "Wrap keys to a backup token and write the manifest",
		Long: "RECIPIENT is one of hsm.backups: a token outside the cluster. --designate asks the officers to make it a\n" +
			"recipient; from then on every new key is wrapped to it at birth, so that it must be reachable with both PINs\n" +
			"then. Without --designate the command asks the officers to wrap the keys that it does not have yet (exit code\n" +
			"5 while they decide), or, if it has them all, writes manifest and proof into --out: two files that only that\n" +
			"token can make use of. Copy them to where the token is.",
		RunE: func(c *cobra.Command, args []string) error {
			name, err := oneName(c, args)
			if err != nil {
				return err
			}
			if b.designate && b.remove || (b.designate || b.remove) && (b.verify || c.Flags().Changed("out")) {
				return &exit{exitUsage, errors.New("--designate and --remove stand alone")}
			}
			return b.run(c, &g, name)
		},
	}
	g.flags(c)
	c.Flags().BoolVar(&b.designate, "designate", false, "ask the officers to make it a recipient")
	c.Flags().BoolVar(&b.remove, "remove", false, "ask the officers to wrap no more keys to it; what it has stays")
	c.Flags().BoolVar(&b.verify, "verify", false, "also have every key prove itself there")
	c.Flags().StringVar(&b.out, "out", ".", "folder for manifest and proof")
	return c
}

type backupRequest struct {
	designate, remove, verify bool
	out                       string
}

func (b *backupRequest) run(c *cobra.Command, g *request, name string) error {
	ctx, base := c.Context(), "/api/v1/hsm/backups"
	if b.designate {
		var p admin.RecipientParameters
		if err := g.r.get(ctx, "/api/v1/hsm/backup-candidates/"+url.PathEscape(name), &p); err != nil {
			return err
		}
		err := g.run(c, admin.BackupRecipient, p)
		if g.ledger != (audit.LedgerID{}) {
			fmt.Fprintf(c.ErrOrStderr(), "ledger   %x\n\nKeep the ledger's id with the officers: a restore from this token asks for it.\n", g.ledger)
		}
		return err
	}
	var list struct {
		Recipients []web.BackupRecipient `json:"recipients"`
	}
	if err := g.r.get(ctx, base, &list); err != nil {
		return err
	}
	var rec *web.BackupRecipient
	for i := range list.Recipients {
		if r := &list.Recipients[i]; r.Name == name && !r.Removed {
			rec = r
		}
	}
	if rec == nil {
		return fmt.Errorf("there is no backup recipient %s; designate it first: %s hsm backup %s --designate", visible(name), self(), shellQuote(name))
	}
	if b.remove {
		return g.run(c, admin.RemoveRecipient, admin.RecipientParameters{Name: rec.Name, Serial: rec.Serial})
	}
	if len(rec.Missing) > 0 {
		fmt.Fprintf(c.ErrOrStderr(), "%s lacks %s\n", visible(name), visible(strings.Join(rec.Missing, ", ")))
		if err := g.run(c, admin.Backup, admin.BackupParameters{Recipient: name, Serial: rec.Serial}); err != nil {
			return err
		}
	}
	path := base + "/" + url.PathEscape(name)
	g.r.slow = true // many keys, big CRLs
	p := follow(c)
	defer p.end()
	if b.verify {
		var checks struct {
			Keys []hsmstore.BackupCheck `json:"keys"`
		}
		p.show("every key proves itself on %s", name)
		if err := g.r.post(ctx, path+"/verify", struct{}{}, &checks); err != nil {
			return err
		}
		if bad := failedChecks(checks.Keys); len(bad) > 0 {
			return &exit{exitVerify, fmt.Errorf("keys would not come back: %s", visible(strings.Join(bad, "; ")))}
		}
	}
	var m backedUp
	p.show("the manifest is made")
	if err := g.r.post(ctx, path+"/manifest", struct{}{}, &m); err != nil {
		return err
	}
	p.end()
	opened, err := openManifest(m.Manifest, m.Proof)
	if err != nil {
		return &exit{exitVerify, fmt.Errorf("the server's manifest: %w", err)}
	}
	file, err := m.save(b.out)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.OutOrStdout(), "manifest %s\nproof    %s\nkeys     %d, for token %s only\nsha256   %x\nledger   %x\n\nKeep the ledger's id apart from these files: a restore asks for it.\n", file, strings.TrimSuffix(file, manifestEnding)+proofEnding, len(opened.keys), visible(opened.Recipient.Serial), opened.hash, opened.ledger)
	return err
}

func failedChecks(checks []hsmstore.BackupCheck) (bad []string) {
	for _, k := range checks {
		if !k.OK {
			bad = append(bad, k.Key+": "+k.Why)
		}
	}
	return bad
}

func hsmRetireCommand() *cobra.Command {
	var g request
	c := &cobra.Command{
		Use: "retire --reason TEXT", Short: "Ask the officers to end this cluster, because another goes on with its keys",
		Long: "Every member is fenced for good: nothing is signed here any more, also after a restart. Do it before the CA\n" +
			"that was restored elsewhere goes into service. The keys stay on the tokens: wipe those with the vendor's tools.",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if g.reason == "" {
				return &exit{exitUsage, errors.New("--reason is needed: it stands in the ledger")}
			}
			return g.run(c, admin.RetireCluster, admin.RetireParameters{Reason: g.reason})
		},
	}
	g.flags(c)
	return c
}

// rehearsal is the report of a rehearsal.
type rehearsal struct {
	At        time.Time              `json:"at"`
	OK        bool                   `json:"ok"`
	Manifest  string                 `json:"manifest"` // file
	SHA256    string                 `json:"manifest_sha256"`
	Made      time.Time              `json:"made"`
	Origin    string                 `json:"origin"`
	Recipient string                 `json:"recipient"`
	Serial    string                 `json:"serial"`
	Millis    int64                  `json:"ms"`
	Keys      []hsmstore.BackupCheck `json:"keys"`
	Lacking   []string               `json:"lacking"` // keys of issuers that the backup does not hold
	LeftOut   map[string]string      `json:"left_out"`
	Issuers   []string               `json:"issuers"`
	Quorum    int                    `json:"quorum"` // officers that a restore needs
	Officers  []string               `json:"officers"`
}

func hsmRehearseCommand() *cobra.Command {
	var manifestFile, ledger, configFile, out string
	c := &cobra.Command{
		Use: "rehearse --manifest FILE --ledger ID --config BACKUP-SITE.yaml", Short: "Prove that a backup would come back, without a server",
		Long: "Verifies the manifest and its proof from their bytes alone, then has the recipient's token (hsm.backups or\n" +
			"hsm.members of the configuration) unwrap every key as a session object, sign a challenge and forget it again;\n" +
			"and makes sure that none comes out weaker than it was. Needs the token's user PIN only. Exit code 7 if a key\n" +
			"would not come back.",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if manifestFile == "" || configFile == "" {
				return &exit{exitUsage, errors.New("--manifest FILE and --config FILE are needed")}
			}
			m, err := readManifest(manifestFile)
			if err != nil {
				return err
			}
			if err := m.isOf(ledger); err != nil {
				return err
			}
			cfg, err := loadConfig(configFile, "")
			if err != nil {
				return err
			}
			p := follow(c)
			p.show("every key of the backup proves itself on the token")
			r, err := rehearse(c.Context(), cfg, m, manifestFile)
			p.end()
			if err != nil {
				return err
			}
			if err := r.write(c.OutOrStdout(), out); err != nil {
				return err
			}
			if !r.OK {
				return &exit{exitVerify, errors.New("the backup would not come back as a whole; the report says why")}
			}
			return nil
		},
	}
	c.Flags().StringVar(&manifestFile, "manifest", "", "the manifest; its proof lies beside it")
	c.Flags().StringVar(&ledger, "ledger", "", ledgerUsage)
	c.Flags().StringVar(&configFile, "config", "", "configuration that names the recipient's token")
	c.Flags().StringVar(&out, "out", "", "write the report there: .json, or text for any other name; default standard output")
	return c
}

// recipientToken finds the token of a backup among members and backups of a
// configuration: by the recipient's name, or the only one.
func recipientToken(cfg *Config, name string) (hsmstore.MemberConfig, error) {
	list, err := cfg.backups()
	if err != nil {
		return hsmstore.MemberConfig{}, err
	}
	if len(cfg.HSM.Members) > 0 {
		members, err := cfg.members()
		if err != nil {
			return hsmstore.MemberConfig{}, err
		}
		list = append(list, members...)
	}
	for _, m := range list {
		if m.Name == name || len(list) == 1 {
			return m, nil
		}
	}
	return hsmstore.MemberConfig{}, &exit{exitConfig, fmt.Errorf("config: neither hsm.backups nor hsm.members names %q, the recipient of the backup", name)}
}

func rehearse(ctx context.Context, cfg *Config, m *openedManifest, file string) (*rehearsal, error) {
	token, err := recipientToken(cfg, m.Recipient.Name)
	if err != nil {
		return nil, err
	}
	begun := time.Now()
	checks, err := hsmstore.Rehearse(ctx, token, m.recipient(), m.ledger, m.keys)
	if err != nil {
		return nil, err
	}
	r := &rehearsal{At: begun.UTC(), Manifest: file, SHA256: fmt.Sprintf("%x", m.hash), Made: m.Made, Origin: m.Origin, Recipient: m.Recipient.Name, Serial: m.Recipient.Serial, Millis: time.Since(begun).Milliseconds(),
		Keys: checks, Lacking: m.lacking(), LeftOut: m.LeftOut, Quorum: m.Rosters.Current().Quorum}
	for _, i := range m.issuers {
		r.Issuers = append(r.Issuers, i.Name)
	}
	for _, o := range m.Rosters.Current().Officers {
		r.Officers = append(r.Officers, o.Name)
	}
	r.OK = len(checks) > 0 && len(failedChecks(checks)) == 0 && len(r.Lacking) == 0
	return r, nil
}

// write writes the report, as JSON if the name asks for it.
func (r *rehearsal) write(stdout io.Writer, out string) error {
	var text []byte
	if filepath.Ext(out) == ".json" {
		b, err := json.MarshalIndent(r, "", "  ")
		if err != nil {
			return err
		}
		text = append(b, '\n')
	} else {
		text = r.text()
	}
	if out == "" {
		_, err := stdout.Write(text)
		return err
	}
	if err := writeFile(out, text, 0o600); err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	_, err := fmt.Fprintf(stdout, "report %s\n", out)
	return err
}

func (r *rehearsal) text() []byte {
	verdict := "the backup would come back as a whole"
	if !r.OK {
		verdict = "THE BACKUP WOULD NOT COME BACK AS A WHOLE"
	}
	b := fmt.Appendf(nil, "# Rehearsal of a restore\n\n%s\n\n- at %s, in %d ms\n- manifest %s, made %s\n- SHA-256 %s, recorded by ledger %s\n- recipient %s, token %s\n\n| key | came back | ms | why not |\n|---|---|---|---|\n",
		verdict, r.At.Format(time.RFC3339), r.Millis, visible(r.Manifest), r.Made.Format(time.RFC3339), r.SHA256, visible(r.Origin), visible(r.Recipient), visible(r.Serial))
	for _, k := range r.Keys {
		b = fmt.Appendf(b, "| %s | %t | %d | %s |\n", visible(k.Key), k.OK, k.Millis, visible(k.Why))
	}
	for _, k := range r.Lacking {
		b = fmt.Appendf(b, "| %s | false | 0 | an issuer's key that the backup does not hold |\n", visible(k))
	}
	b = fmt.Appendf(b, "\nKeys that no backup holds: %d\n\n", len(r.LeftOut))
	for k, why := range r.LeftOut {
		b = fmt.Appendf(b, "- %s: %s\n", visible(k), visible(why))
	}
	return fmt.Appendf(b, "\nA restore would need:\n\n- this token with its user PIN, manifest and proof\n- %d of the officers %s with their keys\n- an empty database, and the old cluster retired (chancery hsm retire) or lost\n- afterwards: issuers %s go on with their certificates\n",
		r.Quorum, visible(strings.Join(r.Officers, ", ")), visible(strings.Join(r.Issuers, ", ")))
}

// warrantFile is a request for a restore or a recovery with the officers' votes: they sign without a
// server, as there is none.
type warrantFile struct {
	Parameters json.RawMessage `json:"parameters"`
	Warrant    admin.Warrant   `json:"warrant"`
}

func readWarrantFile(path string) (*warrantFile, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var w warrantFile
	if err := json.Unmarshal(b, &w); err != nil {
		return nil, &exit{exitUsage, fmt.Errorf("%s is no request of chancery hsm restore --request or chancery audit recover --request", path)}
	}
	return &w, nil
}

func (w *warrantFile) save(path string) error {
	b, err := json.MarshalIndent(w, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(path, append(b, '\n'), 0o600)
}
