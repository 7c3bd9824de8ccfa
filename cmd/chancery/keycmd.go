package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"chancery/admin"
	"chancery/audit"
)

func keyCommand() *cobra.Command {
	c := &cobra.Command{Use: "key", Short: "Keys in the HSM cluster"}
	c.AddCommand(keyGenerateCommand())
	return c
}

func keyGenerateCommand() *cobra.Command {
	var g request
	var p admin.KeyParameters
	c := &cobra.Command{
		Use: "generate NAME --purpose P --algorithm A", Short: "Ask the officers for a new key",
		Long: "The key is born when enough officers have approved (chancery approve); until then the command ends with exit\n" +
			"code 5. With --officer and --key an officer asks, who then cannot approve; else the admin token asks.",
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) != 1 {
				return &exit{exitUsage, errors.New("give one NAME; see chancery key generate --help")}
			}
			p.Name = args[0]
			return g.run(c, admin.GenerateKey, "/api/v1/keys", p)
		},
	}
	g.flags(c)
	c.Flags().StringVar(&p.Purpose, "purpose", "document", "what it is for, for ever: document, code, ocsp, timestamp")
	c.Flags().StringVar(&p.Algorithm, "algorithm", "P-256", "P-256, P-384, P-521, RSA-2048, RSA-3072 or RSA-4096")
	c.Flags().StringSliceVar(&p.Members, "members", nil, "HSM members that shall hold it; default all")
	return c
}

// request has the officers decide about an act.
type request struct {
	r            remote
	officer, key string
	lifetime     time.Duration
	wait, json   bool
}

func (g *request) flags(c *cobra.Command) {
	g.r.flags(c)
	officerFlags(c, &g.officer, &g.key)
	c.Flags().DurationVar(&g.lifetime, "lifetime", admin.DefaultLifetime, "how long the request may wait, at most 168h")
	c.Flags().BoolVar(&g.wait, "wait", false, "wait for the officers and for the act")
	c.Flags().BoolVar(&g.json, "json", false, "print the server's answer")
}

// run sends the request and tells what became of it.
func (g *request) run(c *cobra.Command, action, path string, parameters any) error {
	j, err := json.Marshal(parameters)
	if err != nil {
		return err
	}
	canonical, err := admin.CanonicalParameters(j)
	if err != nil {
		return &exit{exitUsage, err}
	}
	acts, err := actsOf(action, canonical)
	if err != nil {
		return &exit{exitUsage, err}
	}
	if g.lifetime < time.Second || g.lifetime > admin.MaxLifetime {
		return &exit{exitUsage, fmt.Errorf("--lifetime %s must be 1s to %s", g.lifetime, admin.MaxLifetime)}
	}
	var body map[string]any
	if err := json.Unmarshal(canonical, &body); err != nil {
		return err
	}
	if g.officer != "" || g.key != "" {
		proposal, sig, err := g.sign(c.Context(), action, acts, canonical)
		if err != nil {
			return err
		}
		body["officer"], body["proposal"], body["signature"] = g.officer, proposal, sig
	} else {
		body["lifetime"] = int64(g.lifetime / time.Second)
	}
	var raw json.RawMessage
	if err := g.r.post(c.Context(), path, body, &raw); err != nil {
		return err
	}
	var a approvalView
	if err := json.Unmarshal(raw, &a); err != nil {
		return fmt.Errorf("reading the answer of the server: %w", err)
	}
	if p, err := a.check(a.ID); err != nil {
		return err
	} else if !slices.Equal(p.Acts, acts) || p.Parameters != admin.ParametersDigest(canonical) {
		return &exit{exitVerify, fmt.Errorf("the server made the proposal %s of something else; cancel it", visible(a.ID))}
	}
	hint := fmt.Sprintf("%s waits for %d officers, until %s. Each of them:\n\n  %s approve sign %s --officer NAME --key FILE\n\n", a.ID, a.Quorum, a.Expires.UTC().Format(time.RFC3339), self(), a.ID)
	switch {
	case g.wait:
		fmt.Fprint(c.ErrOrStderr(), hint)
		return g.await(c, &a)
	case g.json:
		if err := printJSON(c.OutOrStdout(), raw); err != nil {
			return err
		}
	default:
		fmt.Fprint(c.OutOrStdout(), hint)
	}
	return &exit{exitWaits, fmt.Errorf("%s waits for approval", a.ID)}
}

// sign makes the proposal of an officer who asks.
func (g *request) sign(ctx context.Context, action string, acts []string, canonical []byte) (proposal, sig []byte, err error) {
	if g.officer == "" || g.key == "" {
		return nil, nil, &exit{exitUsage, errors.New("--officer NAME and --key FILE belong together")}
	}
	k, err := admin.LoadOfficerKey(g.officer, g.key)
	if err != nil {
		return nil, nil, &exit{exitAuth, err}
	}
	var list approvals
	if err := g.r.get(ctx, "/api/v1/approvals?state=pending", &list); err != nil {
		return nil, nil, err
	}
	ledger, err := hex.DecodeString(list.Terms.Ledger)
	roster := admin.Roster{Officers: list.Terms.Officers, Quorum: list.Terms.Quorum}
	if err != nil || len(ledger) != len(audit.LedgerID{}) {
		return nil, nil, &exit{exitVerify, errors.New("the server sent no ledger id")}
	}
	t := admin.Terms{Ledger: audit.LedgerID(ledger), Roster: roster, RosterDigest: roster.Digest(), PolicyDigest: roster.PolicyDigest()}
	if proposal, err = t.Draft(action, acts, canonical, admin.OfficerRequester(g.officer), time.Now(), g.lifetime).Encode(); err != nil {
		return nil, nil, err
	}
	sig, err = k.SignVote(admin.Request, proposal)
	return proposal, sig, err
}

// pollEvery is how often a waiting command asks.
const pollEvery = 500 * time.Millisecond

// await follows a proposal to its end.
func (g *request) await(c *cobra.Command, a *approvalView) error {
	id := a.ID
	var raw json.RawMessage
	var err error
	for a.State == admin.Pending || a.State == admin.Approved {
		select {
		case <-c.Context().Done():
			return &exit{exitWaits, fmt.Errorf("%s waits for approval", id)}
		case <-time.After(pollEvery):
		}
		if a, raw, err = g.r.approval(c.Context(), id); err != nil {
			return err
		}
	}
	if g.json {
		if err := printJSON(c.OutOrStdout(), raw); err != nil {
			return err
		}
	}
	if a.State != admin.Done {
		return fmt.Errorf("%s is %s: %s", id, visible(string(a.State)), visible(a.Reason))
	}
	if !g.json {
		fmt.Fprintf(c.OutOrStdout(), "%s: done, %s\n", id, visible(string(a.Result)))
	}
	return nil
}
