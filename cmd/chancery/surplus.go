package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"chancery/audit"
	"chancery/dbstore"
	"chancery/hsmstore"
)

func auditSurplusCommand() *cobra.Command {
	var at snapshotFlags
	var files, others []string
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
			witness := newJournals(cfg, others...)
			if err := witness.read(tally.Lost()); err != nil {
				return err
			}
			return showSurplus(c.OutOrStdout(), tally, counts, witness, skew)
		},
	}
	at.flags(c)
	c.Flags().StringArrayVar(&files, "counts", nil, "file of counts; twice: an earlier and a later one")
	c.Flags().StringArrayVar(&others, "journal", nil, "journal of a worker of another node (hsm-MEMBER.journal); once for each")
	c.Flags().DurationVar(&skew, "skew", 5*time.Second, "how far the HSM's clock may be off")
	return c
}

func showSurplus(out io.Writer, tally *audit.Tally, counts []audit.SignatureCount, witness audit.Witness, skew time.Duration) error {
	surplus := 0
	for _, count := range counts {
		found := tally.Compare(count, witness, skew)
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
	return parseCounts(path, f)
}

// mostCounts is how large a file of counts may be that a running server reads.
const mostCounts = 4 << 20

// readCountsServing is readCounts for a running server, which others may write for: it
// neither waits for a pipe nor reads without end.
func readCountsServing(path string) ([]audit.SignatureCount, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("counts: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("counts: %w", err)
	}
	if !st.Mode().IsRegular() || st.Size() > mostCounts {
		return nil, fmt.Errorf("counts: %s is no file, or has more than %d octets", path, mostCounts)
	}
	return parseCounts(path, io.LimitReader(f, mostCounts))
}

func parseCounts(path string, f io.Reader) ([]audit.SignatureCount, error) {
	counts, err := audit.ReadCounts(f)
	if err != nil {
		return nil, fmt.Errorf("counts: %s: %w", path, err)
	}
	return counts, nil
}

// journals are the workers' own accounts: an [audit.Witness].
type journals struct {
	workers []*hsmstore.JournalUses
	lost    map[uint64]bool // intents whose uses they count
}

func newJournals(cfg *Config, others ...string) *journals {
	j := &journals{}
	for _, path := range others {
		j.workers = append(j.workers, hsmstore.NewJournalUses(path))
	}
	for _, m := range cfg.HSM.Members {
		j.workers = append(j.workers, hsmstore.NewJournalUses(cfg.workerJournal(m.Name)))
	}
	return j
}

// read reads what is new. Which intents a crash left open counts at the first time: what
// is left open later has perhaps been passed by.
func (j *journals) read(lost map[uint64]bool) error {
	if j.lost == nil {
		j.lost = lost
	}
	for _, one := range j.workers {
		if err := one.Read(j.lost); err != nil {
			return err
		}
	}
	return nil
}

// Exempt implements [audit.Witness].
func (j *journals) Exempt(token string, key [32]byte) (sum uint64, count int) {
	for _, one := range j.workers {
		if n, ok := one.Exempt(token, key); ok {
			sum, count = sum+n, count+1
		}
	}
	return sum, count
}

// Under implements [audit.Witness].
func (j *journals) Under(token string, key [32]byte, intent uint64) (sum uint64, known bool) {
	for _, one := range j.workers {
		sum += one.Under(token, key, intent)
	}
	return sum, j.lost[intent]
}

// countsEvery is how often the files of counts are read.
const countsEvery = time.Minute

// countsReader reads the files that hsm.members[].counts names, nil if none does. What it
// gives within countsEvery is what it gave before.
func (s *server) countsReader() func(lost map[uint64]bool) (audit.CountsReading, error) {
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
	return func(lost map[uint64]bool) (audit.CountsReading, error) {
		if time.Since(at) < min(countsEvery, 6*s.cfg.sweep()) {
			return last, lastErr
		}
		at = time.Now()
		last = audit.CountsReading{Witness: all}
		for _, f := range files {
			counts, err := readCountsServing(f)
			if err != nil {
				lastErr = err
				return last, err
			}
			last.Counts = append(last.Counts, counts...)
		}
		lastErr = all.read(lost) // after the counts: what was signed before is in the journals
		return last, lastErr
	}
}
