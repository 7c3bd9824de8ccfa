package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"chancery/admin"
	"chancery/hsmstore"
)

func hsmCommand() *cobra.Command {
	c := &cobra.Command{Use: "hsm", Short: "HSM members of the cluster"}
	drain := actCommand("drain NAME", "Take a member out for maintenance; what is under way ends first", "member", "/api/v1/hsm/members/", "drain")
	drain.Flags().Bool("force", false, "also the last member that can sign with some key")
	c.AddCommand(hsmListCommand(), hsmInfoCommand(), hsmAddCommand(), drain, hsmRemoveCommand(),
		actCommand("fence NAME", "Take a member out at once, because it is not to be trusted", "member", "/api/v1/hsm/members/", "fence"),
		actCommand("admit NAME", "Let a drained or fenced member back; each of its keys proves itself first", "member", "/api/v1/hsm/members/", "admit"),
		hsmVerifyCommand(), hsmQualifyCommand(), hsmSplitCommand(), hsmShareCommand(), hsmCeremoniesCommand())
	c.AddCommand(hsmBackupCommand(), hsmRehearseCommand(), hsmRestoreCommand(), hsmRetireCommand())
	return c
}

// oneName wants exactly one NAME.
func oneName(c *cobra.Command, args []string) (string, error) {
	if len(args) != 1 || args[0] == "" {
		return "", &exit{exitUsage, fmt.Errorf("give one NAME; see %s --help", c.CommandPath())}
	}
	return args[0], nil
}

// view is a command that shows what the server says.
type view struct {
	r    remote
	json bool
}

func (v *view) flags(c *cobra.Command) {
	v.r.flags(c)
	c.Flags().BoolVar(&v.json, "json", false, "print the server's answer")
}

// show gets an answer into a value and prints it, as JSON or as a table.
func (v *view) show(c *cobra.Command, path string, into any, table func(*tabwriter.Writer)) error {
	var raw json.RawMessage
	if err := v.r.get(c.Context(), path, &raw); err != nil {
		return err
	}
	return v.print(c, raw, into, table)
}

func (v *view) print(c *cobra.Command, raw json.RawMessage, into any, table func(*tabwriter.Writer)) error {
	if v.json {
		return printJSON(c.OutOrStdout(), raw)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("reading the answer of the server: %w", err)
	}
	w := tabwriter.NewWriter(c.OutOrStdout(), 0, 8, 2, ' ', 0)
	table(w)
	return w.Flush()
}

// actCommand is an act that needs no officers: the admin token does it, the ledger
// records it with its reason.
func actCommand(use, short, what, base, act string) *cobra.Command {
	var r remote
	var reason string
	c := &cobra.Command{Use: use, Short: short, RunE: func(c *cobra.Command, args []string) error {
		name, err := oneName(c, args)
		if err != nil {
			return err
		}
		body := map[string]any{"reason": reason}
		if force, err := c.Flags().GetBool("force"); err == nil && force {
			body["force"] = true
		}
		var none struct{}
		if err := r.post(c.Context(), base+url.PathEscape(name)+"/"+act, body, &none); err != nil {
			return err
		}
		_, err = fmt.Fprintf(c.OutOrStdout(), "%s %s: %s done\n", what, name, act)
		return err
	}}
	r.flags(c)
	c.Flags().StringVar(&reason, "reason", "", "why; it stands in the ledger")
	return c
}

// memberView is a member as the server shows it.
type memberView struct {
	Name, State, Why, Serial, Label, Replication, Role string

	Since      time.Time
	Sessions   int
	InFlight   int `json:"in_flight"`
	Signatures uint64
	Starts     uint64
	Keys       int
	Ready      int
	Bad        []string
}

func memberPath(name string) string { return "/api/v1/hsm/members/" + url.PathEscape(name) }

func hsmListCommand() *cobra.Command {
	var v view
	c := &cobra.Command{Use: "list", Short: "The HSM members and what they are doing", Args: noArgs, RunE: func(c *cobra.Command, _ []string) error {
		var list struct{ Members []memberView }
		return v.show(c, "/api/v1/hsm/members", &list, func(w *tabwriter.Writer) {
			fmt.Fprintln(w, "NAME\tSTATE\tSESSIONS\tIN FLIGHT\tSIGNATURES\tKEYS\tSINCE\tWHY")
			for _, m := range list.Members {
				fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%d of %d\t%s\t%s\n", visible(m.Name), visible(m.State), m.Sessions, m.InFlight, m.Signatures, m.Ready, m.Keys, m.Since.Format(time.RFC3339), visible(m.Why))
			}
		})
	}}
	v.flags(c)
	return c
}

func hsmInfoCommand() *cobra.Command {
	var v view
	c := &cobra.Command{Use: "info NAME", Short: "One member: its token, its worker, its keys", RunE: func(c *cobra.Command, args []string) error {
		name, err := oneName(c, args)
		if err != nil {
			return err
		}
		var m memberView
		return v.show(c, memberPath(name), &m, func(w *tabwriter.Writer) {
			for _, line := range [][2]string{{"name", m.Name}, {"state", m.State}, {"since", m.Since.Format(time.RFC3339)}, {"why", m.Why}, {"token", m.Label}, {"serial number", m.Serial}, {"replication", m.Replication}, {"role", cmp.Or(m.Role, "keys of all purposes")},
				{"sessions", fmt.Sprint(m.Sessions)}, {"worker starts", fmt.Sprint(m.Starts)}, {"signatures", fmt.Sprint(m.Signatures)}, {"keys", fmt.Sprintf("%d held, %d ready", m.Keys, m.Ready)}, {"not usable", strings.Join(m.Bad, "; ")}} {
				fmt.Fprintf(w, "%s\t%s\n", line[0], visible(line[1]))
			}
		})
	}}
	v.flags(c)
	return c
}

func hsmAddCommand() *cobra.Command {
	var g request
	c := &cobra.Command{
		Use: "add NAME", Short: "Ask the officers to let a token join the cluster",
		Long: "Write the member into hsm.members of the server's configuration first; no restart is needed. The server looks at\n" +
			"its token, and its serial number stands in what the officers sign. When enough have approved, the member\n" +
			"joins while the others go on signing.",
		RunE: func(c *cobra.Command, args []string) error {
			name, err := oneName(c, args)
			if err != nil {
				return err
			}
			var p admin.MemberParameters
			if err := g.r.get(c.Context(), "/api/v1/hsm/candidates/"+url.PathEscape(name), &p); err != nil {
				return err
			}
			fmt.Fprintf(c.ErrOrStderr(), "token %s, %s %s, firmware %s, label %q\n", visible(p.Serial), visible(p.Manufacturer), visible(p.Model), visible(p.Firmware), visible(p.Label))
			return g.run(c, admin.AddMember, p)
		},
	}
	g.flags(c)
	return c
}

func hsmRemoveCommand() *cobra.Command {
	var g request
	c := &cobra.Command{Use: "remove NAME", Short: "Ask the officers to let a drained or fenced member leave for good", RunE: func(c *cobra.Command, args []string) error {
		name, err := oneName(c, args)
		if err != nil {
			return err
		}
		var m memberView
		if err := g.r.get(c.Context(), memberPath(name), &m); err != nil {
			return err
		}
		return g.run(c, admin.RemoveMember, admin.RemoveParameters{Name: name, Serial: m.Serial})
	}}
	g.flags(c)
	return c
}

func hsmVerifyCommand() *cobra.Command {
	var v view
	c := &cobra.Command{Use: "verify", Short: "Check every key on every member now; exit code 7 if one differs", Args: noArgs, RunE: func(c *cobra.Command, _ []string) error {
		var raw json.RawMessage
		p := follow(c)
		p.show("every key is checked on every member")
		err := v.r.post(c.Context(), "/api/v1/hsm/verify", struct{}{}, &raw)
		p.end()
		if err != nil {
			return err
		}
		var d hsmstore.Drift
		if err := json.Unmarshal(raw, &d); err != nil {
			return fmt.Errorf("reading the answer of the server: %w", err)
		}
		err = v.print(c, raw, &d, func(w *tabwriter.Writer) {
			fmt.Fprintf(w, "looked at\t%s\n", visible(strings.Join(d.Asked, ", ")))
			if len(d.Unasked) > 0 {
				fmt.Fprintf(w, "not up\t%s\n", visible(strings.Join(d.Unasked, ", ")))
			}
			for _, f := range d.Findings {
				fmt.Fprintf(w, "%s\t%s on %s: %s; %s\n", visible(string(f.Kind)), visible(f.Key), visible(f.Member), visible(f.Detail), visible(f.Cure))
			}
		})
		if err == nil && len(d.Findings) > 0 {
			err = &exit{exitVerify, fmt.Errorf("%d findings", len(d.Findings))}
		}
		return err
	}}
	v.flags(c)
	return c
}

func hsmSplitCommand() *cobra.Command {
	var g request
	var threshold int
	c := &cobra.Command{
		Use: "split-so-pin NAME --threshold M", Short: "Ask the officers to hold a member's SO PIN in shares, M of them needed",
		Long: "The ceremony draws a new SO PIN that nobody sees and splits it among the officers. Afterwards write\n" +
			"so_pin: \"shares:\" for the member and remove its SO PIN file.",
		RunE: func(c *cobra.Command, args []string) error {
			name, err := oneName(c, args)
			if err != nil {
				return err
			}
			return g.run(c, admin.SplitSOPIN, admin.SplitParameters{Member: name, Threshold: threshold})
		},
	}
	g.flags(c)
	c.Flags().IntVar(&threshold, "threshold", 2, "how many officers a ceremony needs, 2 to 20")
	return c
}

func hsmCeremoniesCommand() *cobra.Command {
	var v view
	c := &cobra.Command{Use: "ceremonies", Short: "Ceremonies that wait for persons: for shares of a SO PIN, or at the device", Args: noArgs, RunE: func(c *cobra.Command, _ []string) error {
		var list struct{ Ceremonies []hsmstore.Collection }
		return v.show(c, "/api/v1/hsm/ceremonies", &list, func(w *tabwriter.Writer) {
			fmt.Fprintln(w, "MEMBER\tUNTIL\tWAITS FOR")
			for _, one := range list.Ceremonies {
				fmt.Fprintf(w, "%s\t%s\t%s\n", visible(one.Member), one.Expires.UTC().Format(time.RFC3339), visible(waitsFor(one)))
			}
		})
	}}
	v.flags(c)
	return c
}

// waitsFor says whom a ceremony waits for.
func waitsFor(one hsmstore.Collection) string {
	if one.Device {
		return "the vendor's quorum at the device, token " + one.Token
	}
	needed := 0
	for _, set := range one.Sets {
		needed = max(needed, set.Threshold)
	}
	return fmt.Sprintf("shares of the SO PIN, %d of %d are there: chancery hsm share %s", len(one.Have), needed, one.Member)
}

func hsmShareCommand() *cobra.Command {
	var r remote
	var officer, key string
	c := &cobra.Command{
		Use: "share NAME --officer NAME --key FILE", Short: "Give an officer's share of a SO PIN to the ceremony that waits for it",
		Long: "Opens the share on this machine with the officer's key, seals it to the ceremony, and sends it. The server\n" +
			"never has the officer's key.",
		RunE: func(c *cobra.Command, args []string) error {
			name, err := oneName(c, args)
			if err != nil {
				return err
			}
			if officer == "" || key == "" {
				return &exit{exitUsage, errors.New("give --officer NAME and --key FILE")}
			}
			k, err := admin.LoadOfficerKey(officer, key)
			if err != nil {
				return &exit{exitAuth, err}
			}
			var list struct{ Ceremonies []hsmstore.Collection }
			if err := r.get(c.Context(), "/api/v1/hsm/ceremonies", &list); err != nil {
				return err
			}
			given := 0
			for _, one := range list.Ceremonies {
				if one.Member != name || one.Device {
					continue
				}
				for _, set := range one.Sets {
					box, err := set.OpenFor(k, one.Key)
					if err != nil {
						return err
					}
					var none struct{}
					if err := r.post(c.Context(), "/api/v1/hsm/ceremonies/"+url.PathEscape(one.ID)+"/shares", map[string]any{"officer": officer, "set": set.ID, "box": box}, &none); err != nil {
						return err
					}
				}
				given++
			}
			if given == 0 {
				return fmt.Errorf("no ceremony of member %q waits for shares", name)
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "share of officer %s given to %d ceremonies of member %s\n", officer, given, name)
			return err
		},
	}
	r.flags(c)
	officerFlags(c, &officer, &key)
	r.officer, r.officerKey = &officer, &key
	return c
}
