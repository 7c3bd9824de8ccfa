package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"chancery/dbstore"
	"chancery/hsmstore"
)

func doctorCommand() *cobra.Command {
	var d doctor
	c := &cobra.Command{
		Use: "doctor [--config FILE | --dir DIR]", Short: "Look for what is wrong with the HSMs, call by call",
		Long: "For each HSM member of the configuration: the file of its module, slots, token, PIN, mechanisms, the\n" +
			"enrolled keys and one signature. It works without the server and beside a running one, and writes\n" +
			"nothing. A PIN is tried once; if the token says that one more wrong PIN locks it, only with\n" +
			"--force-login. Each failure comes with the PKCS#11 function, its return code in words, the likely\n" +
			"cause and the next command. Run it as the user of the server. Exit code 6 if an HSM has trouble.",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error { return d.run(c) },
	}
	c.Flags().StringVar(&d.dir, "dir", "./data", "folder of chancery dev")
	c.Flags().StringVar(&d.file, "config", "", "configuration file of a server in production; together with --dir: laid over DIR/chancery.yaml")
	c.Flags().StringVar(&d.member, "member", "", "this member only")
	c.Flags().BoolVar(&d.options.NoLogin, "no-login", false, "do not use the PIN")
	c.Flags().BoolVar(&d.options.ForceLogin, "force-login", false, "try the PIN even if one more wrong one locks the token")
	c.Flags().DurationVar(&d.options.Timeout, "timeout", 10*time.Second, "how long one call may take")
	c.Flags().BoolVar(&d.json, "json", false, "print the result as JSON")
	return c
}

type doctor struct {
	dir, file, member string
	options           hsmstore.DoctorOptions
	json              bool
}

// diagnoses is what the command finds out.
type diagnoses struct {
	OK      bool                 `json:"ok"`
	Notes   []string             `json:"notes,omitempty"`
	Members []hsmstore.Diagnosis `json:"members"`
}

func (d *doctor) run(c *cobra.Command) error {
	if d.options.Timeout <= 0 {
		return &exit{exitUsage, fmt.Errorf("--timeout %s must be longer than nothing", d.options.Timeout)}
	}
	file, overlay := d.file, ""
	if file == "" || c.Flags().Changed("dir") {
		file, overlay = filepath.Join(d.dir, "chancery.yaml"), file
	}
	cfg, err := loadConfig(file, overlay)
	if err != nil {
		return err
	}
	members, err := cfg.members()
	if err != nil {
		return err
	}
	out := diagnoses{OK: true}
	keys, enrolled, err := enrolment(c.Context(), cfg)
	if err != nil {
		out.Notes = append(out.Notes, fmt.Sprintf("the database cannot be read, so enrolled keys and serial numbers are not compared: %v", err))
	}
	if d.member != "" && !slices.ContainsFunc(members, func(m hsmstore.MemberConfig) bool { return m.Name == d.member }) {
		return &exit{exitUsage, fmt.Errorf("--member %q: hsm.members of %s names no such member", d.member, file)}
	}
	p := follow(c)
	defer p.end()
	for _, m := range members {
		if d.member != "" && m.Name != d.member {
			continue
		}
		if c.Context().Err() != nil {
			return c.Context().Err()
		}
		o := d.options
		o.Keys = keys
		for _, e := range enrolled {
			switch {
			case e.Standing == hsmstore.StandingRemoved:
			case e.Name == m.Name:
				m.TokenSerial = e.Serial
			default:
				o.Others = append(o.Others, e.Serial)
			}
		}
		o.Progress = func(what string) { p.show("HSM member %s: %s", m.Name, what) }
		diagnosis := hsmstore.Doctor(c.Context(), m, o)
		out.OK = out.OK && diagnosis.OK
		out.Members = append(out.Members, diagnosis)
	}
	p.end()
	if !d.json {
		printDiagnoses(c.OutOrStdout(), out)
	} else if err := printValue(c.OutOrStdout(), out); err != nil {
		return err
	}
	return out.err()
}

// err is the first trouble, as the end of the command.
func (d diagnoses) err() error {
	for _, m := range d.Members {
		if s, bad := m.Trouble(); bad {
			return &exit{exitHSM, fmt.Errorf("HSM member %s: %s", m.Member, strings.Join(strings.Fields(s.Name+": "+s.Call+" "+s.Code), " "))}
		}
	}
	return nil
}

// enrolment reads what the database knows of keys and members, beside a running server.
func enrolment(ctx context.Context, cfg *Config) ([]hsmstore.KeyRecord, []hsmstore.MemberRecord, error) {
	if cfg.Database == "" {
		return nil, nil, errors.New("the configuration names none")
	}
	db, err := dbstore.OpenSnapshot(ctx, cfg.Database)
	if err != nil {
		return nil, nil, err
	}
	defer db.Close()
	keys, err := db.Keys(ctx)
	if err != nil {
		return nil, nil, err
	}
	members, err := db.Members(ctx)
	if err != nil {
		return nil, nil, err
	}
	return append([]hsmstore.KeyRecord{}, keys...), members, nil
}

// printDiagnoses writes a result for people.
func printDiagnoses(w io.Writer, d diagnoses) {
	for _, n := range d.Notes {
		fmt.Fprintf(w, "note: %s\n", visible(n))
	}
	for _, m := range d.Members {
		fmt.Fprintf(w, "HSM member %s\n", m.Member)
		printSteps(w, m.Steps)
	}
}

func printSteps(w io.Writer, steps []hsmstore.Step) {
	for _, s := range steps {
		if s.OK && s.Detail == "" {
			s.Detail = s.Call
		}
		switch {
		case s.Skipped:
			fmt.Fprintf(w, "  - %-16s skipped: %s\n", visible(s.Name), visible(s.Detail))
		case s.OK:
			fmt.Fprintf(w, "  ✓ %-16s %s\n", visible(s.Name), visible(s.Detail))
		default:
			fmt.Fprintf(w, "  ✗ %-16s %s\n", visible(s.Name), visible(strings.Join(strings.Fields(s.Call+" "+s.Code), ": ")+": "+s.Detail))
			fmt.Fprintf(w, "      cause:         %s\n      next:          %s\n", visible(s.Cause), visible(s.Next))
		}
	}
}

// printValue prints a result of our own as JSON.
func printValue(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
