package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"chancery/hsmstore"
)

func hsmQualifyCommand() *cobra.Command {
	var q qualify
	c := &cobra.Command{
		Use: "qualify --module PATH --token LABEL --pin file:PATH", Short: "Find out what an unknown HSM can do, and write a report",
		Long: "Goes from the file of the module to signatures of every algorithm, tries the protections of keys as an\n" +
			"attacker with the PIN would, and measures sessions and speed. With --so-pin, throw-away keys go the\n" +
			"whole way of copying by wrapping. Only session objects are made, and they are destroyed. The server\n" +
			"is not needed and not asked. Exit code 6 if the HSM is not usable.",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error { return q.run(c) },
	}
	f := c.Flags()
	f.StringVar(&q.m.Module, "module", "", "path of the vendor's PKCS#11 library")
	f.StringVar(&q.m.TokenLabel, "token", "", "label of the token")
	f.StringVar(&q.pin, "pin", "", "user PIN: file:PATH, env:NAME or credential:NAME")
	f.StringVar(&q.soPIN, "so-pin", "", "SO PIN, to try copies by wrapping: file:PATH, env:NAME or credential:NAME; device: the vendor's quorum opens the SO role, twice")
	f.StringArrayVar(&q.m.Env, "env", nil, "KEY=VALUE for the module, e.g. SOFTHSM2_CONF=…; may be repeated")
	f.StringVar(&q.m.Reserved, "reserved", "", "pReserved of C_Initialize (NSS)")
	f.StringVar(&q.out, "out", "", "file for the report in Markdown; it must not exist")
	f.DurationVar(&q.timeout, "timeout", 10*time.Second, "how long one call may take; key generation gets twelve times as long")
	f.BoolVar(&q.json, "json", false, "print all facts as JSON")
	return c
}

type qualify struct {
	m               hsmstore.MemberConfig
	pin, soPIN, out string
	timeout         time.Duration
	json            bool
}

func (q *qualify) run(c *cobra.Command) (err error) {
	usage := func(err error) error { return &exit{exitUsage, err} }
	if q.m.Module == "" || q.m.TokenLabel == "" || q.timeout <= 0 {
		return usage(errors.New("--module PATH, --token LABEL and a --timeout are needed; see chancery hsm qualify --help"))
	}
	if q.out == "" && !q.json {
		return usage(errors.New("--out FILE names where the report goes; or give --json"))
	}
	for _, kv := range q.m.Env {
		if !strings.Contains(kv, "=") {
			return usage(fmt.Errorf("--env %q: write KEY=VALUE", kv))
		}
	}
	q.m.Name = "candidate"
	if q.m.PIN, err = secret(q.pin); err != nil {
		return usage(fmt.Errorf("--pin: %w", err))
	}
	if q.m.DeviceSO = q.soPIN == devicePIN; q.soPIN != "" && !q.m.DeviceSO {
		if q.m.SOPIN, err = secret(q.soPIN); err != nil {
			return usage(fmt.Errorf("--so-pin: %w", err))
		}
	}
	var report *os.File
	if q.out != "" { // before minutes of work
		if report, err = os.OpenFile(q.out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644); err != nil {
			return usage(fmt.Errorf("--out: %w", err))
		}
		defer func() { err = errors.Join(err, report.Close()) }()
	}
	p := follow(c)
	r := hsmstore.Qualify(c.Context(), q.m, hsmstore.DoctorOptions{Timeout: q.timeout, Progress: func(what string) { p.show("%s", what) }})
	p.end()
	if report != nil {
		if _, err := report.WriteString(r.Markdown()); err != nil {
			return fmt.Errorf("writing the report: %w", err)
		}
	}
	if q.json {
		if err := printValue(c.OutOrStdout(), r); err != nil {
			return err
		}
	} else {
		printSteps(c.OutOrStdout(), r.Diagnosis.Steps)
		fmt.Fprintf(c.OutOrStdout(), "%s; %d weaknesses; report in %s\n", r.Verdict, len(r.Weaknesses), q.out)
	}
	if r.Verdict == hsmstore.VerdictNone {
		return &exit{exitHSM, fmt.Errorf("the HSM is not usable: %s", visible(strings.Join(r.Why, "; ")))}
	}
	return nil
}
