package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"chancery/audit"
	"chancery/dbstore"
)

// personal is what stands behind a commitment of an entry.
type personal struct {
	Name        string   `json:"name"`
	Value       []string `json:"value"`                  // a line each; null: it was erased
	RetainUntil string   `json:"retain_until,omitempty"` // day
}

func (p personal) text() string {
	if p.Value == nil {
		return "erased; the commitment stays"
	}
	shown := make([]string, len(p.Value))
	for i, v := range p.Value {
		if shown[i] = v; strings.ContainsAny(v, ",()\"") || v != visible(v) { // a client wrote it, perhaps to look like more of them
			shown[i] = strconv.QuoteToASCII(v)
		}
	}
	return fmt.Sprintf("%s (kept until %s)", strings.Join(shown, ", "), p.RetainUntil)
}

// openedAt opens the commitments of an entry as far as they can be.
func openedAt(ctx context.Context, st *dbstore.Store, index uint64, l audit.Leaf) (out []personal, err error) {
	stored := map[audit.Tag]personal{}
	err = st.Openings(ctx, audit.OpeningQuery{From: index, To: index + 1}, func(s audit.StoredOpenings) error {
		for _, o := range s.Openings {
			if !o.Opens(l) {
				return fmt.Errorf("%w: what is stored to open %s of entry %d does not", audit.ErrTampered, o.Tag, index)
			}
			stored[o.Tag] = personal{Name: o.Tag.String(), Value: strings.Split(string(o.Value), "\n"), RetainUntil: s.RetainUntil.Format("2006-01-02")}
		}
		return nil
	})
	for _, f := range l.Fields {
		if f.Tag.Committed() {
			p := stored[f.Tag]
			p.Name = f.Tag.String()
			out = append(out, p)
		}
	}
	return out, err
}

func auditOpenCommand() *cobra.Command {
	var at snapshotFlags
	var entry uint64
	var asJSON bool
	c := &cobra.Command{
		Use: "open --entry N", Short: "Show the personal values that an entry commits to",
		Long: "Reads the database, beside a running server too, and shows what stands behind the commitments of an\n" +
			"entry: addresses of clients, and what a certificate was asked for. Each is held against its commitment.",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if !c.Flags().Changed("entry") {
				return &exit{exitUsage, errors.New("--entry N is needed; see chancery audit open --help")}
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
			head, err := st.Head(c.Context())
			if err != nil {
				return err
			}
			if entry >= head.Size {
				return fmt.Errorf("the ledger has %d entries, the last is %d", head.Size, head.Size-1)
			}
			l, _, err := leafAt(c.Context(), st, entry)
			if err != nil {
				return err
			}
			values, err := openedAt(c.Context(), st, entry, l)
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(c.OutOrStdout()).Encode(values)
			}
			return printPersonal(c.OutOrStdout(), entry, l, values)
		},
	}
	at.flags(c)
	c.Flags().Uint64Var(&entry, "entry", 0, "index of the entry")
	c.Flags().BoolVar(&asJSON, "json", false, "print the values as JSON")
	return c
}

func printPersonal(w io.Writer, entry uint64, l audit.Leaf, values []personal) error {
	var b strings.Builder
	fmt.Fprintf(&b, "entry   %d, %s of %s, %s\n", entry, l.Kind, l.Op, l.Time.Format(lineTime))
	for _, p := range values {
		fmt.Fprintf(&b, "%-7s %s\n", p.Name, visible(p.text()))
	}
	if len(values) == 0 {
		b.WriteString("it commits to nothing personal\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func auditEraseCommand() *cobra.Command {
	var r remote
	var entry uint64
	var value, reason string
	c := &cobra.Command{
		Use: "erase (--entry N | --value TEXT) --reason TEXT", Short: "Erase personal values for good",
		Long: "Has the running server erase what opens the commitments of an entry, or of every entry that holds a value:\n" +
			"a client's address, a name, or an attribute of a subject, each whole, in upper or lower case. Entries, proofs and\n" +
			"certificates stay as they are. The erasure is an entry of its own, with the reason: do not repeat the value there.",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if c.Flags().Changed("entry") == (value != "") || reason == "" {
				return &exit{exitUsage, errors.New("give either --entry N or --value TEXT, and --reason; see chancery audit erase --help")}
			}
			if value == "-" {
				b, err := io.ReadAll(io.LimitReader(c.InOrStdin(), 4096))
				if err != nil {
					return err
				}
				value = strings.TrimRight(string(b), "\r\n")
			}
			body := map[string]any{"reason": reason, "value": value}
			if c.Flags().Changed("entry") {
				body = map[string]any{"reason": reason, "entry": entry}
			}
			r.slow = true
			var out struct{ Erased int }
			if err := r.post(c.Context(), "/api/v1/ledger/erase", body, &out); err != nil {
				return err
			}
			_, err := fmt.Fprintf(c.OutOrStdout(), "%d personal values erased\n", out.Erased)
			return err
		},
	}
	r.flags(c)
	c.Flags().Uint64Var(&entry, "entry", 0, "index of the entry")
	c.Flags().StringVar(&value, "value", "", "what is to be erased wherever it stands; -: read it from standard input")
	c.Flags().StringVar(&reason, "reason", "", "why; it stands in the ledger for ever")
	return c
}
