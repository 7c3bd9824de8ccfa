package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"chancery/admin"
)

func machineCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "machine", Short: "Access of programs: API tokens and client certificates",
		Long: "Each has roles, an end, and an owner: who made it. It can do no more than its owner may give, and its owner does\n" +
			"not approve what it asks the officers for. No machine makes machines.",
	}
	c.AddCommand(machineNewToken(), machineAddCertificate(), machineList(), machineRevoke())
	return c
}

// machineView is a machine as the API shows it (web/openapi.yaml, Machine).
type machineView struct {
	ID       string            `json:"id"`
	Name     string            `json:"name"`
	Kind     admin.MachineKind `json:"kind"`
	Roles    []string          `json:"roles"`
	Owner    string            `json:"owner"`
	Expires  time.Time         `json:"expires"`
	LastUsed *time.Time        `json:"last_used"`
	Revoked  *time.Time        `json:"revoked"`
	Token    string            `json:"token"`
}

// machineMaker is what both ways to let a machine in have in common.
type machineMaker struct {
	r        remote
	roles    []string
	lifetime time.Duration
	json     bool
}

func (m *machineMaker) flags(c *cobra.Command) {
	m.r.flags(c)
	roleFlags(c, &m.roles)
	c.Flags().DurationVar(&m.lifetime, "lifetime", 90*24*time.Hour, "how long, at most 8784h")
	c.Flags().BoolVar(&m.json, "json", false, "print the server's answer")
}

func (m *machineMaker) make(c *cobra.Command, name, certificate string) (one machineView, raw json.RawMessage, err error) {
	if _, err := assignments(m.roles); err != nil {
		return one, nil, err
	}
	if len(m.roles) == 0 {
		return one, nil, &exit{exitUsage, errors.New("give at least one --role")}
	}
	body := map[string]any{"name": name, "roles": m.roles, "lifetime": int64(m.lifetime / time.Second)}
	if certificate != "" {
		body["certificate"] = certificate
	}
	if err := m.r.post(c.Context(), "/api/v1/machines", body, &raw); err != nil {
		return one, nil, err
	}
	if err := json.Unmarshal(raw, &one); err != nil {
		return one, nil, fmt.Errorf("reading the answer of the server: %w", err)
	}
	return one, raw, nil
}

func machineNewToken() *cobra.Command {
	var m machineMaker
	var out string
	c := &cobra.Command{
		Use: "new-token NAME --role ROLE", Short: "Make an API token",
		Long: "The token is shown once, or written to a file (0600) with --out. Commands take it with --token-file.",
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) != 1 {
				return &exit{exitUsage, errors.New("give one NAME; see chancery machine new-token --help")}
			}
			if out != "" { // before the token exists
				f, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
				if err != nil {
					return fmt.Errorf("--out: %w", err)
				}
				f.Close()
			}
			one, raw, err := m.make(c, args[0], "")
			if err != nil {
				if out != "" {
					os.Remove(out)
				}
				return err
			}
			if out != "" {
				if err := os.WriteFile(out, []byte(one.Token+"\n"), 0o600); err != nil {
					return fmt.Errorf("the token was made, but cannot be written; revoke it (chancery machine revoke %s): %w", visible(one.ID), err)
				}
				_, err = fmt.Fprintf(c.OutOrStdout(), "%s: token of %s in %s, until %s\n", visible(one.ID), visible(one.Name), out, one.Expires.UTC().Format(time.RFC3339))
				return err
			}
			if m.json {
				return printJSON(c.OutOrStdout(), raw)
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s\n", visible(one.Token))
			if err == nil {
				_, err = fmt.Fprintf(c.ErrOrStderr(), "%s: token of %s, shown only now, until %s\n", visible(one.ID), visible(one.Name), one.Expires.UTC().Format(time.RFC3339))
			}
			return err
		},
	}
	m.flags(c)
	c.Flags().StringVar(&out, "out", "", "new file for the token")
	return c
}

func machineAddCertificate() *cobra.Command {
	var m machineMaker
	var file string
	c := &cobra.Command{
		Use: "add-certificate NAME --cert FILE --role ROLE", Short: "Let a client certificate of this CA in",
		Long: "The certificate, of profile tls-client, comes to the admin door (listen.admin) with --client-cert and --client-key.\n" +
			"It is known by its key and its issuer; a renewed certificate with the same key comes in too.",
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) != 1 || file == "" {
				return &exit{exitUsage, errors.New("give one NAME and --cert FILE")}
			}
			b, err := os.ReadFile(file)
			if err != nil {
				return fmt.Errorf("--cert: %w", err)
			}
			one, raw, err := m.make(c, args[0], string(b))
			if err != nil {
				return err
			}
			if m.json {
				return printJSON(c.OutOrStdout(), raw)
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s: certificate of %s, until %s\n", visible(one.ID), visible(one.Name), one.Expires.UTC().Format(time.RFC3339))
			return err
		},
	}
	m.flags(c)
	c.Flags().StringVar(&file, "cert", "", "the client certificate, PEM")
	return c
}

func machineList() *cobra.Command {
	var r remote
	var asJSON bool
	c := &cobra.Command{
		Use: "list", Short: "API tokens and client certificates", Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var raw json.RawMessage
			if err := r.get(c.Context(), "/api/v1/machines", &raw); err != nil {
				return err
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), raw)
			}
			var list struct {
				Machines []machineView `json:"machines"`
			}
			if err := json.Unmarshal(raw, &list); err != nil {
				return fmt.Errorf("reading the answer of the server: %w", err)
			}
			w := tabwriter.NewWriter(c.OutOrStdout(), 0, 8, 2, ' ', 0)
			fmt.Fprintln(w, "ID\tNAME\tKIND\tSTATE\tEXPIRES\tLAST USED\tOWNER\tROLES")
			for _, m := range list.Machines {
				state, used := "good", "never"
				if !m.Expires.After(time.Now()) {
					state = "expired"
				}
				if m.Revoked != nil {
					state = "revoked"
				}
				if m.LastUsed != nil {
					used = m.LastUsed.UTC().Format(time.RFC3339)
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", visible(m.ID), visible(m.Name), visible(string(m.Kind)), state, m.Expires.UTC().Format(time.RFC3339), used, visible(m.Owner), visible(strings.Join(m.Roles, " ")))
			}
			return w.Flush()
		},
	}
	r.flags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print the server's answer")
	return c
}

func machineRevoke() *cobra.Command {
	var r remote
	var reason string
	c := &cobra.Command{
		Use: "revoke ID --reason TEXT", Short: "End a machine's access at once",
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) != 1 || reason == "" {
				return &exit{exitUsage, errors.New("give one ID, as chancery machine list shows it, and --reason")}
			}
			if err := r.post(c.Context(), "/api/v1/machines/"+url.PathEscape(args[0])+"/revoke", map[string]string{"reason": reason}, &json.RawMessage{}); err != nil {
				return err
			}
			_, err := fmt.Fprintf(c.OutOrStdout(), "%s: revoked\n", visible(args[0]))
			return err
		},
	}
	r.flags(c)
	c.Flags().StringVar(&reason, "reason", "", "why; it stands in the ledger")
	return c
}

func whoamiCommand() *cobra.Command {
	var r remote
	var asJSON bool
	c := &cobra.Command{
		Use: "whoami", Short: "Who the server takes this command for, and what they may do", Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var raw json.RawMessage
			if err := r.get(c.Context(), "/api/v1/whoami", &raw); err != nil {
				return err
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), raw)
			}
			var who struct {
				Requester          string
				Roles, Permissions []string
			}
			if err := json.Unmarshal(raw, &who); err != nil {
				return fmt.Errorf("reading the answer of the server: %w", err)
			}
			_, err := fmt.Fprintf(c.OutOrStdout(), "%s\nroles        %s\npermissions  %s\n", visible(who.Requester), visible(strings.Join(who.Roles, " ")), visible(strings.Join(who.Permissions, " ")))
			return err
		},
	}
	r.flags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print the server's answer")
	return c
}
