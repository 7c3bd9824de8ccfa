package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"chancery/admin"
)

// exitWaits: what was asked for waits for the officers.
const exitWaits = 5

// approvalView is a proposal as the API shows it (web/openapi.yaml, Approval).
type approvalView struct {
	ID         string          `json:"id"`
	State      admin.State     `json:"state"`
	Action     string          `json:"action"`
	Acts       []string        `json:"acts"`
	Requester  string          `json:"requester"`
	Parameters json.RawMessage `json:"parameters"`
	Proposal   []byte          `json:"proposal"`
	Expires    time.Time       `json:"expires"`
	Quorum     int             `json:"quorum"`
	Votes      []struct {
		Officer  string `json:"officer"`
		Decision string `json:"decision"`
		Leaf     uint64 `json:"leaf"`
	} `json:"votes"`
	Leaf   uint64          `json:"leaf"`
	Grant  string          `json:"grant,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
	Reason string          `json:"reason,omitempty"`

	inForce *admin.Roster // as the server says; nil: it was not asked
}

// approvals is the answer of GET /api/v1/approvals.
type approvals struct {
	Approvals []approvalView `json:"approvals"`
	Terms     struct {
		Ledger       string       `json:"ledger"`
		Roster       admin.Roster `json:"roster"`
		RosterDigest string       `json:"roster_digest"`
		PolicyDigest string       `json:"policy_digest"`
	} `json:"terms"`
}

func approveCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "approve", Short: "Officers decide about sensitive acts",
		Long: "A new key, a new HSM member, a backup and the like wait until enough officers have signed exactly what will be\n" +
			"done. Each signs on a machine of their own with the key that chancery officer new made.",
	}
	c.AddCommand(approveList(), approveShow(), approveVote("sign", admin.Approve), approveVote("reject", admin.Reject), approveCancel())
	return c
}

func approveList() *cobra.Command {
	var r remote
	var state string
	var asJSON bool
	c := &cobra.Command{
		Use: "list", Short: "What waits for the officers", Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			path := "/api/v1/approvals"
			if state != "all" {
				path += "?state=" + url.QueryEscape(state)
			}
			var answer json.RawMessage
			if err := r.get(c.Context(), path, &answer); err != nil {
				return err
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), answer)
			}
			var list approvals
			if err := json.Unmarshal(answer, &list); err != nil {
				return fmt.Errorf("reading the answer of the server: %w", err)
			}
			w := tabwriter.NewWriter(c.OutOrStdout(), 0, 8, 2, ' ', 0)
			fmt.Fprintln(w, "ID\tSTATE\tAPPROVALS\tEXPIRES\tASKED BY\tACTS")
			for _, a := range list.Approvals {
				fmt.Fprintf(w, "%s\t%s\t%d of %d\t%s\t%s\t%s\n", visible(a.ID), visible(string(a.State)), a.approvals(), a.Quorum, a.Expires.UTC().Format(time.RFC3339), visible(a.Requester), visible(strings.Join(a.Acts, "; ")))
			}
			return w.Flush()
		},
	}
	r.flags(c)
	c.Flags().StringVar(&state, "state", string(admin.Pending), "pending, approved, done, failed, rejected, expired, cancelled or all")
	c.Flags().BoolVar(&asJSON, "json", false, "print the server's answer")
	return c
}

func (a *approvalView) approvals() (n int) {
	for _, v := range a.Votes {
		if v.Decision == admin.Approve.String() {
			n++
		}
	}
	return n
}

func approveShow() *cobra.Command {
	var r remote
	var asJSON bool
	c := &cobra.Command{
		Use: "show ID", Short: "Show one proposal, recomputed from its bytes",
		RunE: func(c *cobra.Command, args []string) error {
			id, err := oneID(c, args)
			if err != nil {
				return err
			}
			a, raw, err := r.approval(c.Context(), id)
			if err != nil {
				return err
			}
			p, err := a.check(id)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), raw)
			}
			return a.print(c.OutOrStdout(), p)
		},
	}
	r.flags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print the server's answer")
	return c
}

func approveVote(use string, d admin.Decision) *cobra.Command {
	var r remote
	var officer, key string
	var yes, asJSON bool
	var file string
	c := &cobra.Command{
		Use: use + " ID --officer NAME --key FILE", Short: map[admin.Decision]string{admin.Approve: "Approve a proposal", admin.Reject: "Reject a proposal"}[d],
		Long: "Shows what the proposal would do, recomputed from its bytes, asks on a terminal, and signs with the officer's\n" +
			"key. The private key stays on this machine. A vote is final.",
		RunE: func(c *cobra.Command, args []string) error {
			if file != "" && d == admin.Approve {
				return signFile(c, args, file, officer, key, yes)
			}
			id, err := oneID(c, args)
			if err != nil {
				return err
			}
			if officer == "" || key == "" {
				return &exit{exitUsage, errors.New("--officer NAME and --key FILE are needed: who votes, with which key")}
			}
			k, err := admin.LoadOfficerKey(officer, key)
			if err != nil {
				return &exit{exitAuth, err}
			}
			a, _, err := r.approval(c.Context(), id)
			if err != nil {
				return err
			}
			p, err := a.check(id)
			if err != nil {
				return err
			}
			if err := a.print(c.ErrOrStderr(), p); err != nil {
				return err
			}
			if !yes && !confirmed(c, d) {
				return errors.New("nothing was signed")
			}
			sig, err := k.SignVote(d, a.Proposal)
			if err != nil {
				return err
			}
			var answer json.RawMessage
			body := map[string]any{"officer": officer, "decision": d.String(), "signature": sig}
			if err := r.post(c.Context(), "/api/v1/approvals/"+url.PathEscape(id)+"/votes", body, &answer); err != nil {
				return err
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), answer)
			}
			var after approvalView
			if err := json.Unmarshal(answer, &after); err != nil {
				return fmt.Errorf("reading the answer of the server: %w", err)
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s: %s, %d of %d approvals\n", id, visible(string(after.State)), after.approvals(), after.Quorum)
			return err
		},
	}
	r.flags(c)
	officerFlags(c, &officer, &key)
	r.officer, r.officerKey = &officer, &key
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	if d == admin.Approve {
		c.Flags().StringVar(&file, "file", "", "instead of ID: a request for a restore (hsm restore --request), which is signed without a server")
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print the server's answer")
	return c
}

func approveCancel() *cobra.Command {
	var r remote
	c := &cobra.Command{
		Use: "cancel ID", Short: "Take back a proposal that waits",
		RunE: func(c *cobra.Command, args []string) error {
			id, err := oneID(c, args)
			if err != nil {
				return err
			}
			var after approvalView
			if err := r.post(c.Context(), "/api/v1/approvals/"+url.PathEscape(id)+"/cancel", struct{}{}, &after); err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s: %s\n", id, visible(string(after.State)))
			return err
		},
	}
	r.flags(c)
	return c
}

func officerFlags(c *cobra.Command, officer, key *string) {
	c.Flags().StringVar(officer, "officer", "", "name of the officer, as on the roster")
	c.Flags().StringVar(key, "key", "", "file of the officer's private key (0600)")
}

func oneID(c *cobra.Command, args []string) (string, error) {
	if len(args) != 1 {
		return "", &exit{exitUsage, fmt.Errorf("give one ID; chancery approve list shows them; see %s --help", c.CommandPath())}
	}
	return args[0], nil
}

// approval fetches one proposal.
func (r *remote) approval(ctx context.Context, id string) (a *approvalView, raw json.RawMessage, err error) {
	if err := r.get(ctx, "/api/v1/approvals/"+url.PathEscape(id), &raw); err != nil {
		return nil, nil, err
	}
	a = new(approvalView)
	if err := json.Unmarshal(raw, a); err != nil {
		return nil, nil, fmt.Errorf("reading the answer of the server: %w", err)
	}
	if a.Action == admin.ChangeRoster {
		var v officersView
		if err := r.get(ctx, "/api/v1/officers", &v); err != nil {
			return nil, nil, err
		}
		a.inForce = &v.Roster // its digest is compared with what the proposal says
	}
	return a, raw, nil
}

// check recomputes everything that the server says about a proposal from the bytes
// that would be signed: an officer need not believe the server.
func (a *approvalView) check(id string) (admin.Proposal, error) {
	p, err := admin.DecodeProposal(a.Proposal)
	if err != nil {
		return p, &exit{exitVerify, err}
	}
	parameters, err := admin.CanonicalParameters(a.Parameters)
	if err != nil {
		return p, &exit{exitVerify, err}
	}
	acts, err := actsOf(p.Action, parameters)
	switch {
	case admin.ProposalID(admin.ProposalHash(a.Proposal)) != id:
		err = errors.New("the server sent another proposal")
	case admin.ParametersDigest(parameters) != p.Parameters:
		err = errors.New("the parameters are not those of the proposal")
	case err != nil:
	case !slices.Equal(acts, p.Acts):
		err = fmt.Errorf("the proposal would allow %q, but its parameters mean %q", p.Acts, acts)
	case a.Action != p.Action || a.Requester != p.Requester || !slices.Equal(a.Acts, p.Acts):
		err = errors.New("what the server says about the proposal is not what stands in it")
	}
	if err != nil {
		return p, &exit{exitVerify, fmt.Errorf("proposal %s: %w; do not sign it, and tell the other officers", id, err)}
	}
	return p, nil
}

// print shows a checked proposal to a person.
func (a *approvalView) print(w io.Writer, p admin.Proposal) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "proposal   %s, %s\naction     %s\nasked by   %s\nvalid      %s to %s\nledger     %x\n", a.ID, visible(string(a.State)), visible(p.Action), visible(p.Requester),
		p.NotBefore.Format(time.RFC3339), p.Expires.Format(time.RFC3339), p.Ledger)
	for _, act := range p.Acts {
		fmt.Fprintf(&b, "would      %s\n", visible(act))
	}
	var parameters map[string]any
	if p.Action == admin.ChangeRoster {
		if err := a.printRoster(&b); err != nil {
			return err
		}
	} else if json.Unmarshal(a.Parameters, &parameters) == nil {
		for _, k := range slices.Sorted(maps.Keys(parameters)) {
			fmt.Fprintf(&b, "  %-10s %s\n", visible(k), visible(fmt.Sprint(parameters[k])))
		}
	}
	for _, v := range a.Votes {
		fmt.Fprintf(&b, "vote       %s by %s, ledger entry %d\n", visible(v.Decision), visible(v.Officer), v.Leaf)
	}
	fmt.Fprintf(&b, "approvals  %d of %d\n", a.approvals(), a.Quorum)
	if a.Grant != "" {
		fmt.Fprintf(&b, "grant      %s\n", visible(a.Grant))
	}
	if len(a.Result) > 0 {
		fmt.Fprintf(&b, "result     %s\n", visible(string(a.Result)))
	}
	if a.Reason != "" {
		fmt.Fprintf(&b, "reason     %s\n", visible(a.Reason))
	}
	fmt.Fprintf(&b, "fingerprint %s\n", admin.Fingerprint(a.Proposal))
	_, err := w.Write(b.Bytes())
	return err
}

// printRoster shows in what a roster differs from the one in force, whose digest it names.
func (a *approvalView) printRoster(b *bytes.Buffer) error {
	next, err := parametersOf[admin.RosterParameters](a.Parameters)
	if err != nil {
		return &exit{exitVerify, err}
	}
	if next.Reason != "" {
		fmt.Fprintf(b, "  reason     %s\n", visible(next.Reason))
	}
	if a.inForce == nil {
		fmt.Fprintf(b, "  the whole roster: %s\n", visible(string(a.Parameters)))
		return nil
	}
	if err := a.inForce.Check(); err != nil { // its digest does not have all that the server could add
		return &exit{exitVerify, fmt.Errorf("the roster in force, as the server says: %w; do not sign, and tell the other officers", err)}
	}
	digest := a.inForce.Digest()
	if hex.EncodeToString(digest[:]) != next.Before {
		fmt.Fprintf(b, "  it follows another roster than the one in force: it is dead, or was carried out\n  the whole roster: %s\n", visible(string(a.Parameters))) // the server may lie about the one in force
		return nil
	}
	for _, d := range a.inForce.Differences(next.Roster) {
		fmt.Fprintf(b, "  %s: %s → %s\n", visible(d.What), orNone(d.Before), orNone(d.After))
	}
	return nil
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return visible(s)
}

// visible shows text that others wrote: unless it is plain ASCII it stands in quotes,
// with escapes for what would move the cursor, change direction or look like another letter.
func visible(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
		return strconv.QuoteToASCII(s)
	}
	return s
}

// confirmed asks on a terminal; without one, starting the command was the answer.
func confirmed(c *cobra.Command, d admin.Decision) bool {
	in, ok := c.InOrStdin().(*os.File)
	if !ok {
		return true
	}
	if _, err := unix.IoctlGetTermios(int(in.Fd()), unix.TCGETS); err != nil {
		return true
	}
	fmt.Fprintf(c.ErrOrStderr(), "Sign to %s this? Type yes: ", d)
	var answer string
	_, err := fmt.Fscanln(in, &answer)
	return err == nil && answer == "yes"
}

func printJSON(w io.Writer, raw json.RawMessage) error {
	var b bytes.Buffer
	if err := json.Indent(&b, raw, "", "  "); err != nil {
		return fmt.Errorf("reading the answer of the server: %w", err)
	}
	b.WriteByte('\n')
	_, err := w.Write(b.Bytes())
	return err
}
