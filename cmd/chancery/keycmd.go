package main

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"chancery/admin"
	"chancery/audit"
	"chancery/hsmstore"
)

func keyCommand() *cobra.Command {
	c := &cobra.Command{Use: "key", Short: "Keys in the HSM cluster"}
	c.AddCommand(keyListCommand(), keyShowCommand(), keyGenerateCommand(), keyAdoptCommand(), keyImportSessionCommand(), keyImportCommand(), keyDestroyCommand(), keyRepairCommand(),
		actCommand("disable NAME", "Stop the use of a key; it can be enabled again", "key", "/api/v1/keys/", "disable"),
		actCommand("enable NAME", "Allow the use of a disabled key again", "key", "/api/v1/keys/", "enable"),
		actCommand("describe NAME --reason TEXT", "Keep a text for people beside a key", "key", "/api/v1/keys/", "describe"))
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
			return g.run(c, admin.GenerateKey, p)
		},
	}
	g.flags(c)
	c.Flags().StringVar(&p.Purpose, "purpose", "document", "what it is for, for ever: document, code, ocsp, timestamp")
	c.Flags().StringVar(&p.Algorithm, "algorithm", "P-256", strings.Join(keyAlgorithms, ", "))
	c.Flags().StringSliceVar(&p.Members, "members", nil, "HSM members that shall hold it; default all")
	return c
}

// request has the officers decide about an act.
type request struct {
	r            remote
	officer, key string
	lifetime     time.Duration
	wait, json   bool
	reason       string // what it is for

	ledger audit.LedgerID // of the proposal that run has made
}

func (g *request) flags(c *cobra.Command) {
	g.r.flags(c)
	officerFlags(c, &g.officer, &g.key)
	g.r.officer, g.r.officerKey = &g.officer, &g.key
	c.Flags().DurationVar(&g.lifetime, "lifetime", admin.DefaultLifetime, "how long the request may wait, at most 168h")
	c.Flags().StringVar(&g.reason, "reason", "", "what it is for; the officers read and sign it")
	c.Flags().BoolVar(&g.wait, "wait", false, "wait for the officers and for the act")
	c.Flags().BoolVar(&g.json, "json", false, "print the server's answer")
}

// run sends the request and tells what became of it.
func (g *request) run(c *cobra.Command, action string, parameters any) error {
	j, err := json.Marshal(parameters)
	if err != nil {
		return err
	}
	canonical, err := admin.WithReason(j, g.reason)
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
	body := map[string]any{"action": action, "parameters": json.RawMessage(canonical)}
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
	if err := g.r.post(c.Context(), "/api/v1/approvals", body, &raw); err != nil {
		return err
	}
	var a approvalView
	if err := json.Unmarshal(raw, &a); err != nil {
		return fmt.Errorf("reading the answer of the server: %w", err)
	}
	p, err := a.check(a.ID)
	if err != nil {
		return err
	}
	if !slices.Equal(p.Acts, acts) || p.Parameters != admin.ParametersDigest(canonical) {
		return &exit{exitVerify, fmt.Errorf("the server made the proposal %s of something else; cancel it", visible(a.ID))}
	}
	g.ledger = p.Ledger
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
	roster := list.Terms.Roster
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
	p := follow(c)
	defer p.end()
	for a.State == admin.Pending || a.State == admin.Approved {
		if p.live {
			p.show("%s %s", id, g.stage(c.Context(), a))
		}
		select {
		case <-c.Context().Done():
			return &exit{exitWaits, fmt.Errorf("%s waits for approval", id)}
		case <-time.After(pollEvery):
		}
		if a, raw, err = g.r.approval(c.Context(), id); err != nil {
			return err
		}
	}
	p.end()
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

// stage says what a proposal waits for, as far as the server tells.
func (g *request) stage(ctx context.Context, a *approvalView) string {
	if a.State == admin.Pending {
		return fmt.Sprintf("waits for %d more approvals", max(0, a.Quorum-a.approvals()))
	}
	var list struct{ Ceremonies []hsmstore.Collection }
	if err := g.r.get(ctx, "/api/v1/hsm/ceremonies", &list); err == nil && len(list.Ceremonies) > 0 {
		return "member " + list.Ceremonies[0].Member + " waits for " + waitsFor(list.Ceremonies[0])
	}
	return "runs"
}

// keyView is a key as the server shows it.
type keyView struct {
	Name, ID, Purpose, Algorithm, State, Origin, Description string

	SPKI       string `json:"spki_sha256"`
	Members    []string
	Ready      []string
	Birth      uint64
	Adopted    bool
	PublicKey  []byte `json:"public_key"`
	Attributes []struct {
		Member  string
		Error   string
		Objects []struct {
			Label      string
			Attributes []string
		}
	}
}

func keyListCommand() *cobra.Command {
	var v view
	c := &cobra.Command{Use: "list", Short: "The keys of the cluster", Args: noArgs, RunE: func(c *cobra.Command, _ []string) error {
		var list struct{ Keys []keyView }
		return v.show(c, "/api/v1/keys", &list, func(w *tabwriter.Writer) {
			fmt.Fprintln(w, "NAME\tPURPOSE\tALGORITHM\tSTATE\tREADY\tMEMBERS\tSPKI SHA-256")
			for _, k := range list.Keys {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d of %d\t%s\t%.16s\n", visible(k.Name), visible(k.Purpose), visible(k.Algorithm), visible(k.State), len(k.Ready), len(k.Members), visible(strings.Join(k.Members, ",")), visible(k.SPKI))
			}
		})
	}}
	v.flags(c)
	return c
}

func keyShowCommand() *cobra.Command {
	var v view
	c := &cobra.Command{Use: "show NAME", Short: "One key, with what the tokens show of it now", RunE: func(c *cobra.Command, args []string) error {
		name, err := oneName(c, args)
		if err != nil {
			return err
		}
		var k keyView
		return v.show(c, "/api/v1/keys/"+url.PathEscape(name), &k, func(w *tabwriter.Writer) {
			for _, line := range [][2]string{{"name", k.Name}, {"purpose", k.Purpose}, {"algorithm", k.Algorithm}, {"state", k.State}, {"SPKI SHA-256", k.SPKI}, {"CKA_ID", k.ID}, {"born on", k.Origin},
				{"birth", fmt.Sprintf("ledger entry %d", k.Birth)}, {"adopted", fmt.Sprint(k.Adopted)}, {"description", k.Description}} {
				fmt.Fprintf(w, "%s\t%s\n", line[0], visible(line[1]))
			}
			for _, a := range k.Attributes {
				for _, o := range a.Objects {
					fmt.Fprintf(w, "on %s\t%s: %s\n", visible(a.Member), visible(o.Label), visible(strings.Join(o.Attributes, " ")))
				}
				if a.Error != "" {
					fmt.Fprintf(w, "on %s\t%s\n", visible(a.Member), visible(a.Error))
				}
			}
			fmt.Fprintf(w, "public key\t%s\n", base64.StdEncoding.EncodeToString(k.PublicKey))
		})
	}}
	v.flags(c)
	return c
}

func keyDestroyCommand() *cobra.Command {
	var g request
	c := &cobra.Command{Use: "destroy NAME", Short: "Ask the officers to destroy every copy of a key", RunE: func(c *cobra.Command, args []string) error {
		name, err := oneName(c, args)
		if err != nil {
			return err
		}
		var k keyView
		if err := g.r.get(c.Context(), "/api/v1/keys/"+url.PathEscape(name), &k); err != nil {
			return err
		}
		return g.run(c, admin.DestroyKey, admin.DestroyParameters{Name: name, SPKI: k.SPKI})
	}}
	g.flags(c)
	return c
}

func keyRepairCommand() *cobra.Command {
	var g request
	var member string
	c := &cobra.Command{Use: "repair NAME --member MEMBER", Short: "Ask the officers to copy a key again to a member that lost it", RunE: func(c *cobra.Command, args []string) error {
		name, err := oneName(c, args)
		if err != nil {
			return err
		}
		return g.run(c, admin.RepairKey, admin.RepairParameters{Name: name, Member: member})
	}}
	g.flags(c)
	c.Flags().StringVar(&member, "member", "", "member whose copy is to be made anew")
	return c
}

func keyAdoptCommand() *cobra.Command {
	var g request
	var p admin.AdoptParameters
	var subject, attestation string
	var dry bool
	c := &cobra.Command{
		Use: "adopt NAME --member M (--cka-id HEX | --label TEXT) --purpose P --algorithm A", Short: "Ask the officers to take a key that others made, where it is",
		Long: "First look: --dry-run shows the key and what of it is weaker than our own keys. Each weakness must be accepted\n" +
			"by name (--accept DECRYPT=true) and stands in what the officers sign. What would give the key away is\n" +
			"never accepted.",
		RunE: func(c *cobra.Command, args []string) error {
			name, err := oneName(c, args)
			if err != nil {
				return err
			}
			var raw json.RawMessage
			if err := g.r.post(c.Context(), "/api/v1/keys/inspect", map[string]string{"member": p.Member, "cka_id": p.CKAID, "label": p.Label}, &raw); err != nil {
				return err
			}
			if dry {
				return printJSON(c.OutOrStdout(), raw)
			}
			var report struct {
				Object struct{ SPKI []byte }
				Weak   []string
			}
			if err := json.Unmarshal(raw, &report); err != nil {
				return fmt.Errorf("reading the answer of the server: %w", err)
			}
			if p.Subject, err = subjectOf(subject); err != nil {
				return err
			}
			if attestation != "" {
				if p.Attestation, err = os.ReadFile(attestation); err != nil {
					return &exit{exitUsage, fmt.Errorf("--attestation: %w", err)}
				}
			}
			hash := sha256.Sum256(report.Object.SPKI)
			p.Name, p.SPKI = name, hex.EncodeToString(hash[:])
			return g.run(c, admin.AdoptKey, p)
		},
	}
	g.flags(c)
	f := c.Flags()
	f.StringVar(&p.Member, "member", "", "member whose token holds the key")
	f.StringVar(&p.CKAID, "cka-id", "", "CKA_ID of the key, hex")
	f.StringVar(&p.Label, "label", "", "CKA_LABEL of the key")
	f.StringVar(&p.Purpose, "purpose", "document", "what it is for from now on, for ever: issuer, document, code, ocsp, timestamp")
	f.StringVar(&p.Algorithm, "algorithm", "P-256", strings.Join(keyAlgorithms, ", "))
	f.StringSliceVar(&p.AcceptWeak, "accept", nil, "weak attributes that are accepted, e.g. MODIFIABLE=true")
	f.StringVar(&subject, "certificate", "", "PEM file of the CA's certificate, whose subject an issuer key is bound to")
	f.StringVar(&attestation, "attestation", "", "file with the vendor's evidence for the key; it is kept in the ledger")
	f.BoolVar(&dry, "dry-run", false, "only look")
	return c
}

// subjectOf is the subject Name, DER, of a certificate in a PEM file; "" has none.
func subjectOf(path string) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, &exit{exitUsage, fmt.Errorf("--certificate: %w", err)}
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, &exit{exitUsage, fmt.Errorf("--certificate: %s holds no PEM CERTIFICATE", path)}
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, &exit{exitUsage, fmt.Errorf("--certificate: %s: %w", path, err)}
	}
	return cert.RawSubject, nil
}

func keyImportSessionCommand() *cobra.Command {
	var r remote
	var member, out string
	c := &cobra.Command{
		Use: "import-session --member M --out FILE.pem", Short: "Begin an import: get the one-time key to wrap a private key to",
		Long: "The private key, as PKCS #8 DER, is wrapped where it is: RSA-AES is RSA_AES_KEY_WRAP of PKCS#11 (an AES-256 key\n" +
			"under RSA-OAEP, followed by the private key under that AES key by RFC 5649). The session ends after 15 minutes.",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if out == "" {
				return &exit{exitUsage, errors.New("give --out FILE.pem for the wrapping key")}
			}
			var t hsmstore.ImportTerms
			if err := r.post(c.Context(), "/api/v1/keys/import-sessions", map[string]string{"member": member}, &t); err != nil {
				return err
			}
			if err := writeFile(out, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: t.WrappingKey}), 0o644); err != nil {
				return err
			}
			_, err := fmt.Fprintf(c.OutOrStdout(), "session %s until %s\nwrap to %s with %s, OAEP and MGF1 with %s, empty label; then:\n\n  %s key import NAME --session %s --blob FILE --public-key FILE.pem …\n",
				visible(t.Session), t.Expires.Format(time.RFC3339), out, visible(strings.Join(t.Mechanisms, " or ")), visible(t.Hash), self(), visible(t.Session))
			return err
		},
	}
	r.flags(c)
	c.Flags().StringVar(&member, "member", "", "member whose token unwraps the key")
	c.Flags().StringVar(&out, "out", "", "file for the wrapping key, PEM")
	return c
}

// publicHalf reads the public key of a PEM file, or the check value of an AES key.
func publicHalf(path, check string) ([]byte, error) {
	if check != "" {
		v, err := hex.DecodeString(check)
		if err != nil || len(v) != 16 || path != "" {
			return nil, &exit{exitUsage, errors.New("--check-value: 32 hex digits, please, and no --public-key beside it")}
		}
		return hsmstore.CheckInfo([16]byte(v)), nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, &exit{exitUsage, fmt.Errorf("--public-key: %w", err)}
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, &exit{exitUsage, fmt.Errorf("--public-key: %s holds no PEM PUBLIC KEY", path)}
	}
	return block.Bytes, nil
}

func keyImportCommand() *cobra.Command {
	var g request
	var p admin.ImportParameters
	var blob, public, check, certificate string
	c := &cobra.Command{
		Use: "import NAME --session ID --blob FILE --public-key FILE.pem", Short: "Ask the officers to take a key that was wrapped for an import session",
		RunE: func(c *cobra.Command, args []string) error {
			name, err := oneName(c, args)
			if err != nil {
				return err
			}
			if p.Blob, err = os.ReadFile(blob); err != nil {
				return &exit{exitUsage, fmt.Errorf("--blob: %w", err)}
			}
			if p.SPKI, err = publicHalf(public, check); err != nil {
				return err
			}
			if p.Subject, err = subjectOf(certificate); err != nil {
				return err
			}
			p.Name = name
			return g.run(c, admin.ImportKey, p)
		},
	}
	g.flags(c)
	f := c.Flags()
	f.StringVar(&p.Session, "session", "", "import session")
	f.StringVar(&blob, "blob", "", "file of the wrapped private key")
	f.StringVar(&public, "public-key", "", "PEM file of the public half")
	f.StringVar(&check, "check-value", "", "of an AES-256 key instead: hex of its AES-CMAC over \"chancery/key-check/v1\\n\"")
	f.StringVar(&p.Mechanism, "mechanism", hsmstore.ImportRSAAES, hsmstore.ImportRSAAES+" or "+hsmstore.ImportRSAOAEP)
	f.StringVar(&p.Purpose, "purpose", "document", "what it is for, for ever: issuer, document, code, ocsp, timestamp")
	f.StringVar(&p.Algorithm, "algorithm", "P-256", strings.Join(keyAlgorithms, ", "))
	f.StringSliceVar(&p.Members, "members", nil, "HSM members that shall hold it; default all")
	f.StringVar(&certificate, "certificate", "", "PEM file of the CA's certificate, whose subject an issuer key is bound to")
	return c
}
