package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"chancery/audit"
	"chancery/dbstore"
)

func auditCommand() *cobra.Command {
	c := &cobra.Command{Use: "audit", Short: "Check the ledger"}
	c.AddCommand(auditVerifyCommand())
	return c
}

func auditVerifyCommand() *cobra.Command {
	var dir, file string
	var asJSON bool
	c := &cobra.Command{
		Use: "verify [--dir DIR | --config FILE]", Short: "Recompute the ledger's tree and hold it against everything signed",
		Long: "Reads one moment of the database, beside a running server too, and recomputes the Merkle tree\n" +
			"from its entries; checks tiles, head and every checkpoint's signature; that each intent is closed\n" +
			"once; and that certificates and done entries match one to one. Exit code 7 and the first bad\n" +
			"entry if a promise is broken.",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if file == "" {
				file = filepath.Join(dir, "chancery.yaml")
			}
			cfg, err := loadConfig(file, "")
			if err != nil {
				return err
			}
			st, err := dbstore.OpenSnapshot(c.Context(), cfg.Database)
			if err != nil {
				return err
			}
			defer st.Close()
			var journal io.ReadSeeker
			f, err := os.Open(cfg.Ledger.Journal)
			switch {
			case err == nil:
				defer f.Close()
				journal = f
			case !errors.Is(err, fs.ErrNotExist):
				return err
			}
			rep, err := audit.Verify(c.Context(), st, journal)
			if err != nil {
				return fmt.Errorf("ledger of %s: %w", file, err)
			}
			if asJSON {
				return json.NewEncoder(c.OutOrStdout()).Encode(rep)
			}
			fmt.Fprintf(c.OutOrStdout(), "ledger      %s\nentries     %d, root %s\nintents     %d: %d done, %d failed, %d orphaned, %d in flight\ncertificates %d, each with its own done entry\ncheckpoints %d, newest covers %d entries\nOK\n",
				rep.Origin, rep.Size, rep.Root, rep.Intents, rep.Done, rep.Failed, rep.Orphans, rep.Open, rep.Certificates, rep.Checkpoints, rep.Signed)
			return nil
		},
	}
	c.Flags().StringVar(&dir, "dir", "./data", "folder of chancery dev")
	c.Flags().StringVar(&file, "config", "", "configuration of a server in production; instead of --dir")
	c.Flags().BoolVar(&asJSON, "json", false, "print the report as JSON")
	return c
}
