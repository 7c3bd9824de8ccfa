package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"chancery/audit"
	"chancery/dbstore"
)

func auditCommand() *cobra.Command {
	c := &cobra.Command{Use: "audit", Short: "Check, export and explain the ledger"}
	c.AddCommand(auditVerifyCommand(), auditExportCommand(), auditWhyCommand(), auditOpenCommand(), auditEraseCommand(), auditKeysCommand(), auditSurplusCommand(), auditRecoverCommand())
	return c
}

func auditVerifyCommand() *cobra.Command {
	var at snapshotFlags
	var asJSON bool
	c := &cobra.Command{
		Use: "verify [--dir DIR | --config FILE]", Short: "Recompute the ledger's tree and hold it against everything signed",
		Long: "Reads one moment of the database, beside a running server too, and recomputes the Merkle tree\n" +
			"from its entries; checks tiles, head and every checkpoint's signature; that each intent is closed\n" +
			"once; that certificates and done entries match one to one; and that officers signed what they\n" +
			"decided. Exit code 7 and the first bad entry if a promise is broken.",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := at.config(c)
			if err != nil {
				return err
			}
			// The witnesses outside the database, where they are; as long as they are before
			// the moment of the database that is looked at, for a running server goes on writing.
			var journal io.Reader
			if f, err := witness(cfg.Ledger.Journal); err != nil {
				return err
			} else if f != nil {
				defer f.Close()
				journal = f
			}
			var anchors []io.Reader
			anchor, _, err := cfg.anchors() // a log system's checkpoints are for chancery-verify --trusted-checkpoint
			if err != nil {
				return err
			}
			if f, err := witness(anchor); err != nil {
				return err
			} else if f != nil {
				defer f.Close()
				anchors = append(anchors, f)
			}
			st, err := dbstore.OpenSnapshot(c.Context(), cfg.Database)
			if err != nil {
				return err
			}
			defer st.Close()
			rep, err := audit.Verify(c.Context(), st, journal, anchors...)
			if err != nil {
				return fmt.Errorf("ledger of %s: %w", at.name(c), err)
			}
			if asJSON {
				return json.NewEncoder(c.OutOrStdout()).Encode(rep)
			}
			fmt.Fprintf(c.OutOrStdout(), `ledger       %s
id           %s
entries      %d, root %s
intents      %d: %d done, %d failed, %d orphaned, %d in flight
certificates %d, each with its own done entry; %d revocations, each with its entry
grants       %d by officers, each with their signatures
personal     %d values open their commitments, %d were erased
checkpoints  %d, the newest covers %d entries
witnesses    %d entries of the intent journal and %d anchored checkpoints agree
OK
`, rep.Origin, rep.Ledger, rep.Size, rep.Root, rep.Intents, rep.Done, rep.Failed, rep.Orphans, rep.Open, rep.Certificates, rep.Revocations, rep.Grants, rep.Opened, rep.Erased, rep.Checkpoints, rep.Signed, rep.Journaled, rep.Anchored)
			if rep.Succeeds != "" {
				fmt.Fprintf(c.OutOrStdout(), "succeeds     ledger %s: compare with what you know of it\n", rep.Succeeds)
			}
			if rep.Recovered > 0 {
				fmt.Fprintf(c.OutOrStdout(), "recovered    %d times the officers let the ledger go on from an older database\n", rep.Recovered)
			}
			if rep.Backward > 0 {
				fmt.Fprintf(c.OutOrStdout(), "note: the clock went back %d times; the order of entries is their index\n", rep.Backward)
			}
			return nil
		},
	}
	at.flags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print the report as JSON")
	return c
}

// file is a file as long as it was when it was opened.
type file struct {
	*io.SectionReader
	io.Closer
}

// witness opens a file outside the database; one that is not there is nil.
func witness(path string) (*file, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &file{io.NewSectionReader(f, 0, st.Size()), f}, nil
}
