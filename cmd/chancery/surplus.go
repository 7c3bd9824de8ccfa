package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"chancery/audit"
	"chancery/dbstore"
	"chancery/hsmstore"
)

func auditSurplusCommand() *cobra.Command {
	var at snapshotFlags
	var files []string
	var skew time.Duration
	c := &cobra.Command{
		Use: "surplus --counts FILE.csv [--counts LATER.csv] [--dir DIR | --config FILE]", Short: "Compare the HSMs' own counts of signatures with the ledger",
		Long: `Holds what an HSM, or its vendor's audit log, says about the use of keys against what the ledger
records. More signatures than the ledger accounts for were made behind the server: exit code 7, and the
key is named. Fewer are a note: the counter began later or was set back.

FILE.csv has a header and one line for each key on each token:

  token_serial,key_spki_sha256,count,from,to
  bb93e6a1a6d2a91f,4c1d…64 hex digits,1024,,2026-07-01T12:00:00Z

from and to are times (RFC 3339) between which the HSM made count signatures; an empty from means since
the key came to the token. With two files, an earlier and a later reading of the same counters, what was
counted between the two is compared. Signatures in flight when a counter was read are allowed for.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if len(files) == 0 || len(files) > 2 {
				return &exit{exitUsage, errors.New("name one file of counts with --counts, or two: an earlier and a later one")}
			}
			cfg, err := at.config(c)
			if err != nil {
				return err
			}
			var read [][]audit.SignatureCount
			for _, f := range files {
				counts, err := readCounts(f)
				if err != nil {
					return err
				}
				read = append(read, counts)
			}
			counts := read[len(read)-1]
			if len(read) == 2 {
				var reset []audit.SignatureCount
				counts, reset = audit.CountsBetween(read[0], read[1])
				for _, r := range reset {
					fmt.Fprintf(c.OutOrStdout(), "note: %s line %d: the counter began anew since %s, or is not the same; not compared\n", files[1], r.Line, files[0])
				}
			}
			st, err := dbstore.OpenSnapshot(c.Context(), cfg.Database)
			if err != nil {
				return err
			}
			defer st.Close()
			head, err := st.Head(c.Context())
			if err != nil {
				return err
			}
			tally, err := audit.ReadTally(c.Context(), st, head.Size)
			if err != nil {
				return err
			}
			journals := newJournals(cfg)
			if err := journals.read(); err != nil {
				return err
			}
			return showSurplus(c.OutOrStdout(), tally, counts, journals.exempt, skew)
		},
	}
	at.flags(c)
	c.Flags().StringArrayVar(&files, "counts", nil, "file of counts; twice: an earlier and a later one")
	c.Flags().DurationVar(&skew, "skew", 5*time.Second, "how far the HSM's clock may be off")
	return c
}

func showSurplus(out io.Writer, tally *audit.Tally, counts []audit.SignatureCount, exempt audit.Exempt, skew time.Duration) error {
	surplus := 0
	for _, count := range counts {
		found := tally.Compare(count, exempt, skew)
		word := "ok"
		switch {
		case found.Surplus:
			surplus++
			word = "ALARM"
		case found.Note != "":
			word = "note"
		}
		fmt.Fprintf(out, "%s: %s\n", word, found)
	}
	for _, missing := range tally.Uncounted(counts) {
		fmt.Fprintf(out, "note: key %s (%x) on token %s has no count; the ledger has it used\n", missing.Name, missing.Key, missing.Token)
	}
	if surplus > 0 {
		return &exit{exitVerify, fmt.Errorf("%d of %d counts show signatures that were made behind the ledger", surplus, len(counts))}
	}
	return nil
}

// readCounts reads a file of counts.
func readCounts(path string) ([]audit.SignatureCount, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("counts: %w", err)
	}
	defer f.Close()
	counts, err := audit.ReadCounts(f)
	if err != nil {
		return nil, fmt.Errorf("counts: %s: %w", path, err)
	}
	return counts, nil
}

// journals are the workers' own accounts, for uses of keys that have no intent.
type journals []*hsmstore.JournalUses

func newJournals(cfg *Config) (out journals) {
	for _, m := range cfg.HSM.Members {
		out = append(out, hsmstore.NewJournalUses(cfg.workerJournal(m.Name)))
	}
	return out
}

func (j journals) read() error {
	for _, one := range j {
		if err := one.Read(); err != nil {
			return err
		}
	}
	return nil
}

// exempt is an [audit.Exempt].
func (j journals) exempt(token string, key [32]byte) (uint64, bool) {
	for _, one := range j {
		if n, ok := one.Exempt(token, key); ok {
			return n, true
		}
	}
	return 0, false
}

// countsEvery is how often the files of counts are read.
const countsEvery = time.Minute

// countsReader reads the files that hsm.members[].counts names, nil if none does. What it
// gives within countsEvery is what it gave before.
func (s *server) countsReader() func(context.Context) (audit.CountsReading, error) {
	var files []string
	for _, m := range s.cfg.HSM.Members {
		if m.Counts != "" {
			files = append(files, m.Counts)
		}
	}
	if len(files) == 0 {
		return nil
	}
	all := newJournals(s.cfg)
	var last audit.CountsReading
	var lastErr error
	var at time.Time
	return func(context.Context) (audit.CountsReading, error) {
		if time.Since(at) < min(countsEvery, 6*s.cfg.sweep()) {
			return last, lastErr
		}
		at = time.Now()
		last = audit.CountsReading{Exempt: all.exempt}
		for _, f := range files {
			counts, err := readCounts(f)
			if err != nil {
				lastErr = err
				return last, err
			}
			last.Counts = append(last.Counts, counts...)
		}
		lastErr = all.read() // after the counts: what was signed before is in the journals
		return last, lastErr
	}
}
