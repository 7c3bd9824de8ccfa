package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"chancery/admin"
)

func officerCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "officer", Short: "Officers: who they are, what each may do, how many must approve",
		Long: "Who the officers are, their keys, roles and quorum are the roster. It changes only by the decision of the officers\n" +
			"of the roster before: each command that changes it makes a proposal (chancery approve).",
	}
	c.AddCommand(officerNew(), officerList(), officerInvite(), officerWithdraw(), officerAccept(), officerAdd(), officerRemove(), officerRoles(), officerQuorum(), officerChange())
	return c
}

// enrolmentView is an enrolment as the API shows it (web/openapi.yaml, Enrolment).
type enrolmentView struct {
	ID         string          `json:"id"`
	Name       string          `json:"name"`
	Roles      []string        `json:"roles"`
	By         string          `json:"by"`
	Expires    time.Time       `json:"expires"`
	Passkeys   int             `json:"passkeys"`
	State      string          `json:"state"`
	Link       string          `json:"link"`
	Parameters json.RawMessage `json:"parameters"`
}

// officersView is the answer of GET /api/v1/officers.
type officersView struct {
	Version      uint64          `json:"version"`
	Entry        uint64          `json:"entry"`
	RosterDigest string          `json:"roster_digest"`
	Roster       admin.Roster    `json:"roster"`
	Enrolments   []enrolmentView `json:"enrolments"`
}

func officerList() *cobra.Command {
	var r remote
	var asJSON bool
	c := &cobra.Command{
		Use: "list", Short: "The roster in force, and open enrolment links", Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var raw json.RawMessage
			if err := r.get(c.Context(), "/api/v1/officers", &raw); err != nil {
				return err
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), raw)
			}
			var v officersView
			if err := json.Unmarshal(raw, &v); err != nil {
				return fmt.Errorf("reading the answer of the server: %w", err)
			}
			return v.print(c.OutOrStdout())
		},
	}
	r.flags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print the server's answer")
	return c
}

func (v *officersView) print(out io.Writer) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "roster version %d, ledger entry %d, quorum %d\n", v.Version, v.Entry, v.Roster.Quorum)
	if v.Roster.CLI > 0 {
		fmt.Fprintf(&b, "by CLI keys  %d of the approvals\n", v.Roster.CLI)
	}
	for _, g := range v.Roster.Groups {
		fmt.Fprintf(&b, "group        %s: %d of %s\n", visible(g.Name), g.Quorum, visible(strings.Join(g.Members, ", ")))
	}
	w := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tVOTES\tCLI KEY\tPASSKEYS\tROLES")
	for _, o := range v.Roster.Officers {
		roles := []string{}
		for _, a := range o.Roles {
			roles = append(roles, a.String())
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\n", visible(o.Name), yesNo(v.Roster.Votes(o)), yesNo(o.SPKI != nil), len(o.Passkeys), visible(strings.Join(roles, " ")))
	}
	w.Flush()
	for _, e := range v.Enrolments {
		if e.State == admin.EnrolmentOpen && e.Expires.After(time.Now()) {
			fmt.Fprintf(&b, "enrolment    %s for %s, open until %s\n", visible(e.ID), visible(e.Name), e.Expires.UTC().Format(time.RFC3339))
		}
	}
	_, err := out.Write(b.Bytes())
	return err
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func officerInvite() *cobra.Command {
	var r remote
	var roles []string
	var lifetime time.Duration
	var asJSON bool
	c := &cobra.Command{
		Use: "invite NAME --role ROLE", Short: "Make a link by which an officer makes passkeys",
		Long: "The link is used once. The passkeys come into force with a roster that the officers approve. NAME may be on the\n" +
			"roster already: for another passkey, or when all were lost; then no role is needed.",
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) != 1 {
				return &exit{exitUsage, errors.New("give one NAME; see chancery officer invite --help")}
			}
			if _, err := assignments(roles); err != nil {
				return err
			}
			var raw json.RawMessage
			if err := r.post(c.Context(), "/api/v1/enrolments", map[string]any{"name": args[0], "roles": roles, "lifetime": int64(lifetime / time.Second)}, &raw); err != nil {
				return err
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), raw)
			}
			var e enrolmentView
			if err := json.Unmarshal(raw, &e); err != nil {
				return fmt.Errorf("reading the answer of the server: %w", err)
			}
			_, err := fmt.Fprintf(c.OutOrStdout(), "Give this link to %s; it works once, until %s:\n\n  %s\n\nWithdraw it with: %s officer withdraw %s\n", visible(e.Name), e.Expires.UTC().Format(time.RFC3339), visible(e.Link), self(), visible(e.ID))
			return err
		},
	}
	r.flags(c)
	roleFlags(c, &roles)
	c.Flags().DurationVar(&lifetime, "lifetime", admin.DefaultEnrolment, "how long the link works, at most 168h")
	c.Flags().BoolVar(&asJSON, "json", false, "print the server's answer")
	return c
}

func roleFlags(c *cobra.Command, roles *[]string) {
	c.Flags().StringArrayVar(roles, "role", nil, "role, again for each: administrator, crypto-officer, registration-officer, signer, auditor; limited as in signer,key=release")
}

func assignments(texts []string) (out []admin.Assignment, err error) {
	for _, t := range texts {
		a, err := admin.ParseAssignment(t)
		if err != nil {
			return nil, &exit{exitUsage, fmt.Errorf("--role: %w", err)}
		}
		out = append(out, a)
	}
	return out, nil
}

func officerWithdraw() *cobra.Command {
	var r remote
	c := &cobra.Command{
		Use: "withdraw ID", Short: "End an enrolment link that was not used",
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) != 1 {
				return &exit{exitUsage, errors.New("give one ID; chancery officer list shows them")}
			}
			var e enrolmentView
			if err := r.post(c.Context(), "/api/v1/enrolments/"+url.PathEscape(args[0])+"/withdraw", struct{}{}, &e); err != nil {
				return err
			}
			_, err := fmt.Fprintf(c.OutOrStdout(), "%s: %s\n", visible(e.ID), visible(e.State))
			return err
		},
	}
	r.flags(c)
	return c
}

func officerAccept() *cobra.Command {
	var g request
	c := &cobra.Command{
		Use: "accept ID", Short: "Ask the officers for the roster with the passkeys of an enrolment",
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) != 1 {
				return &exit{exitUsage, errors.New("give one ID; chancery officer list --json shows them")}
			}
			var e enrolmentView
			if err := g.r.get(c.Context(), "/api/v1/enrolments/"+url.PathEscape(args[0]), &e); err != nil {
				return err
			}
			if e.State != admin.EnrolmentDone {
				return fmt.Errorf("enrolment %s is %s: its passkeys are not made yet", visible(args[0]), visible(e.State))
			}
			if len(e.Parameters) == 0 {
				return fmt.Errorf("enrolment %s is used: its passkeys are on the roster, or were taken off it; make a new link", visible(args[0]))
			}
			return g.run(c, admin.ChangeRoster, e.Parameters)
		},
	}
	g.flags(c)
	return c
}

// change asks the officers for a roster that edit makes of the one in force.
func (g *request) change(c *cobra.Command, edit func(next *admin.Roster) error) error {
	var v officersView
	if err := g.r.get(c.Context(), "/api/v1/officers", &v); err != nil {
		return err
	}
	next := v.Roster.Successor()
	if err := edit(&next); err != nil {
		return err
	}
	parameters, err := admin.ChangeParameters(v.Roster, next)
	if err != nil {
		return err
	}
	return g.run(c, admin.ChangeRoster, json.RawMessage(parameters))
}

// officerIn finds an officer by name.
func officerIn(r *admin.Roster, name string) (int, error) {
	i := slices.IndexFunc(r.Officers, func(o admin.Officer) bool { return o.Name == name })
	if i < 0 {
		return i, &exit{exitUsage, fmt.Errorf("%s is not on the roster; chancery officer list shows who is", visible(name))}
	}
	return i, nil
}

func officerAdd() *cobra.Command {
	var g request
	var public string
	var roles []string
	c := &cobra.Command{
		Use: "add NAME --public FILE --role ROLE", Short: "Ask the officers for an officer with a CLI key, or for another CLI key of one",
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) != 1 || public == "" {
				return &exit{exitUsage, errors.New("give one NAME and --public FILE, the .pub file of chancery officer new")}
			}
			spki, err := publicKeyFile(public)
			if err != nil {
				return err
			}
			as, err := assignments(roles)
			if err != nil {
				return err
			}
			return g.change(c, func(next *admin.Roster) error {
				i, err := officerIn(next, args[0])
				if err != nil {
					if len(as) == 0 {
						return &exit{exitUsage, fmt.Errorf("%s is not on the roster: give at least one --role", visible(args[0]))}
					}
					i, next.Officers = len(next.Officers), append(next.Officers, admin.Officer{Name: args[0]})
				}
				next.Officers[i].SPKI = spki
				if len(as) > 0 {
					next.Officers[i].Roles = as
				}
				return nil
			})
		},
	}
	g.flags(c)
	c.Flags().StringVar(&public, "public", "", "PEM file of the public key (FILE.pub of chancery officer new)")
	roleFlags(c, &roles)
	return c
}

// publicKeyFile reads what officer new wrote beside the private key.
func publicKeyFile(file string) ([]byte, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, fmt.Errorf("%s holds no PEM PUBLIC KEY; chancery officer new makes one", file)
	}
	return block.Bytes, nil
}

func officerRemove() *cobra.Command {
	var g request
	c := &cobra.Command{
		Use: "remove NAME", Short: "Ask the officers to take somebody off the roster",
		Long: "Sessions, machines and pending votes of the officer end at the moment when the new roster comes into force.",
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) != 1 {
				return &exit{exitUsage, errors.New("give one NAME")}
			}
			return g.change(c, func(next *admin.Roster) error {
				i, err := officerIn(next, args[0])
				if err != nil {
					return err
				}
				next.Officers = slices.Delete(next.Officers, i, i+1)
				for i := range next.Groups {
					g := &next.Groups[i]
					g.Members = slices.DeleteFunc(g.Members, func(m string) bool { return m == args[0] })
				}
				return nil
			})
		},
	}
	g.flags(c)
	return c
}

func officerRoles() *cobra.Command {
	var g request
	var roles []string
	c := &cobra.Command{
		Use: "roles NAME --role ROLE", Short: "Ask the officers to give somebody these roles, in place of those they have",
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) != 1 || len(roles) == 0 {
				return &exit{exitUsage, errors.New("give one NAME and at least one --role")}
			}
			as, err := assignments(roles)
			if err != nil {
				return err
			}
			return g.change(c, func(next *admin.Roster) error {
				i, err := officerIn(next, args[0])
				if err == nil {
					next.Officers[i].Roles = as
				}
				return err
			})
		},
	}
	g.flags(c)
	roleFlags(c, &roles)
	return c
}

func officerQuorum() *cobra.Command {
	var g request
	var m, cli int
	var groups []string
	c := &cobra.Command{
		Use: "quorum --approvals M", Short: "Ask the officers for another quorum, and for groups that must all agree",
		Long: "M of all officers who vote must approve, and of each group as many as it says. The groups that are given replace\n" +
			"those there are; --group none takes them away.",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			changed := c.Flags().Changed
			if !changed("approvals") && !changed("group") && !changed("cli-votes") {
				return &exit{exitUsage, errors.New("give --approvals, --group or --cli-votes")}
			}
			var made []admin.Group
			for _, text := range groups {
				if text == "none" && len(groups) == 1 {
					break
				}
				g, err := parseGroup(text)
				if err != nil {
					return err
				}
				made = append(made, g)
			}
			return g.change(c, func(next *admin.Roster) error {
				if changed("approvals") {
					next.Quorum = m
				}
				if changed("cli-votes") {
					next.CLI = cli
				}
				if changed("group") {
					next.Groups = made
				}
				return nil
			})
		},
	}
	g.flags(c)
	c.Flags().IntVar(&m, "approvals", 0, "how many officers must approve, 2 to 20")
	c.Flags().IntVar(&cli, "cli-votes", 0, "how many of the approvals must be by a CLI key")
	c.Flags().StringArrayVar(&groups, "group", nil, "NAME=M:OFFICER,OFFICER…, again for each group")
	return c
}

// parseGroup reads NAME=M:OFFICER,OFFICER….
func parseGroup(text string) (g admin.Group, err error) {
	name, rest, _ := strings.Cut(text, "=")
	m, members, ok := strings.Cut(rest, ":")
	g.Name, g.Members = name, strings.Split(members, ",")
	if _, err := fmt.Sscanf(m, "%d", &g.Quorum); err != nil || !ok || name == "" {
		return g, &exit{exitUsage, fmt.Errorf("--group %q must be NAME=M:OFFICER,OFFICER", text)}
	}
	return g, nil
}

func officerChange() *cobra.Command {
	var g request
	var file string
	c := &cobra.Command{
		Use: "change --file ROSTER.json", Short: "Ask the officers for a roster that was written by hand",
		Long: "The file holds the roster as chancery officer list --json shows it under \"roster\", changed; its version is set by\n" +
			"this command.",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if file == "" {
				return &exit{exitUsage, errors.New("--file ROSTER.json is needed")}
			}
			b, err := os.ReadFile(file)
			if err != nil {
				return fmt.Errorf("the roster: %w", err)
			}
			d := json.NewDecoder(bytes.NewReader(b))
			d.DisallowUnknownFields()
			var wanted admin.Roster
			if err := d.Decode(&wanted); err != nil {
				return &exit{exitUsage, fmt.Errorf("%s is no roster: %w", file, err)}
			}
			return g.change(c, func(next *admin.Roster) error {
				wanted.Version = next.Version
				*next = wanted
				return nil
			})
		},
	}
	g.flags(c)
	c.Flags().StringVar(&file, "file", "", "JSON file of the roster")
	return c
}

// invited opens an enrolment without a server, for init and dev, and returns its link.
func (s *server) invited(ctx context.Context, name string, roles []admin.Assignment, base string) (string, error) {
	board, err := s.newBoard(ctx)
	if err != nil {
		return "", err
	}
	secret, _, err := s.enrolments(board).Open(ctx, name, roles, admin.AdminToken, 0)
	if err != nil {
		return "", err
	}
	return base + "/console/enrol#" + secret, nil
}

func officerNew() *cobra.Command {
	var out string
	n := &cobra.Command{
		Use: "new NAME --out FILE", Short: "Make an officer's key on the officer's own machine",
		Long: "Writes the private key to FILE (0600) and the public key, which chancery init wants, to FILE.pub.",
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) != 1 || out == "" {
				return &exit{exitUsage, errors.New("give one name and --out FILE")}
			}
			k, err := admin.NewOfficerKey(args[0])
			if err != nil {
				return &exit{exitUsage, err}
			}
			o, err := k.Officer()
			if err != nil {
				return err
			}
			if err := k.Save(out); err != nil {
				return err
			}
			if err := writeFile(out+".pub", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: o.SPKI}), 0o644); err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "private key %s (keep it), public key %s.pub\n", out, out)
			return err
		},
	}
	n.Flags().StringVar(&out, "out", "", "file of the private key")
	return n
}
