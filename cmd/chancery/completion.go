package main

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"chancery/admin"
	"chancery/audit"
	"chancery/hsmstore"
	"chancery/web"
)

// What a shell offers behind a command (chancery completion bash|zsh|fish). Names come
// from the running server, asked as the command itself would ask; when it does not
// answer soon, or refuses, nothing is offered and nothing is said.

// completionTime bounds the question: a person has pressed a key and waits.
const completionTime = 2 * time.Second

// words lists what may stand at one place.
type words func(ctx context.Context, c *cobra.Command) []string

// completions are the arguments of commands by their path below chancery, and flags
// by "--name", which mean the same everywhere, or by path and name.
var completions = map[string]words{
	"hsm info":         memberNames(),
	"hsm add":          candidates,
	"hsm drain":        memberNames(hsmstore.Starting, hsmstore.Up, hsmstore.Suspect, hsmstore.Down),
	"hsm fence":        memberNames(hsmstore.Starting, hsmstore.Up, hsmstore.Suspect, hsmstore.Down, hsmstore.Out),
	"hsm admit":        memberNames(hsmstore.Out, hsmstore.Fenced),
	"hsm remove":       memberNames(hsmstore.Out, hsmstore.Fenced, hsmstore.Absent),
	"hsm split-so-pin": memberNames(),
	"hsm share":        collecting,
	"hsm backup":       recipientNames,

	"key show":     keyNames(nil),
	"key disable":  keyNames(func(k keyView) bool { return k.State == string(hsmstore.KeyUsable) }),
	"key enable":   keyNames(func(k keyView) bool { return k.State == string(hsmstore.KeyDisabled) }),
	"key describe": keyNames(nil),
	"key destroy":  keyNames(func(k keyView) bool { return k.State != string(hsmstore.KeyDestroyed) }),
	"key repair":   keyNames(func(k keyView) bool { return k.State != string(hsmstore.KeyDestroyed) }),

	"approve show":   proposals("all"),
	"approve sign":   proposals(string(admin.Pending)),
	"approve reject": proposals(string(admin.Pending)),
	"approve cancel": proposals(string(admin.Pending)),

	"--member":                     memberNames(),
	"--members":                    memberNames(),
	"doctor --member":              configured,
	"--officer":                    officers,
	"init --officer":               nil, // NAME=FILE
	"--algorithm":                  fixed(keyAlgorithms...),
	"--purpose":                    fixed(append(purposeNames(), audit.PurposeIssuer.String())...),
	"key generate --purpose":       fixed(purposeNames()...),
	"key import --mechanism":       fixed(hsmstore.ImportRSAAES, hsmstore.ImportRSAOAEP),
	"key adopt --accept":           fixed("MODIFIABLE=true", "DECRYPT=true", "UNWRAP=true", "DERIVE=true"),
	"sign --key":                   keyNames(func(k keyView) bool { return k.Purpose == audit.PurposeDocument.String() }),
	"approve list --state":         fixed(string(admin.Pending), string(admin.Approved), string(admin.Done), string(admin.Failed), string(admin.Rejected), string(admin.Expired), string(admin.Cancelled), "all"),
	"audit export --format":        fixed(formatTiles, formatJSONL, formatSyslog),
	"--log":                        fixed("debug", "info", "warn", "error"),
	"hsm qualify --so-pin":         fixed("file:", "env:", "credential:", devicePIN),
	"hsm qualify --pin":            fixed("file:", "env:", "credential:"),
	"hsm split-so-pin --threshold": fixed("2", "3"),
	"key generate":                 none,
	"key adopt":                    none,
	"key import":                   none,
	"officer new":                  none,
	"key import --session":         none,
}

// complete gives a tree of commands its completions.
func complete(c *cobra.Command) {
	path := strings.TrimPrefix(c.CommandPath(), "chancery ")
	if list := completions[path]; list != nil {
		c.ValidArgsFunction = func(c *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 { // all of them take one
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return offer(c, list, typed)
		}
	}
	for name := range completions {
		of, flag, ok := strings.Cut(name, "--")
		if of = strings.TrimSpace(of); !ok || of != "" && of != path || c.Flags().Lookup(flag) == nil {
			continue
		}
		list, special := completions[path+" --"+flag]
		if !special {
			list = completions["--"+flag]
		}
		if list == nil {
			continue
		}
		several := strings.HasSuffix(c.Flags().Lookup(flag).Value.Type(), "Slice")
		// Both ways to name a flag lead here; the second registration is refused, and is the same.
		_ = c.RegisterFlagCompletionFunc(flag, func(c *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
			if !several {
				return offer(c, list, typed)
			}
			return offerMore(c, list, typed)
		})
	}
	for _, sub := range c.Commands() {
		complete(sub)
	}
}

// offer lists the words that begin as typed.
func offer(c *cobra.Command, list words, typed string) ([]string, cobra.ShellCompDirective) {
	parent := c.Context()
	if parent == nil { // cobra asks without one when the command line is not whole
		parent = context.Background()
	}
	ctx, cancel := context.WithTimeout(parent, completionTime)
	defer cancel()
	found := slices.DeleteFunc(list(ctx, c), func(s string) bool {
		word, _, _ := strings.Cut(s, "\t")
		return word == "" || !strings.HasPrefix(word, typed)
	})
	directive := cobra.ShellCompDirectiveNoFileComp
	if slices.ContainsFunc(found, func(s string) bool { return strings.HasSuffix(s, ":") }) {
		directive |= cobra.ShellCompDirectiveNoSpace
	}
	return found, directive
}

// offerMore completes the last word of a list with commas.
func offerMore(c *cobra.Command, list words, typed string) ([]string, cobra.ShellCompDirective) {
	done := typed[:strings.LastIndex(typed, ",")+1]
	found, directive := offer(c, list, typed[len(done):])
	for i := range found {
		found[i] = done + found[i]
	}
	return found, directive
}

// none: the word is a new one, and no file.
func none(context.Context, *cobra.Command) []string { return nil }

func fixed(list ...string) words {
	return func(context.Context, *cobra.Command) []string { return slices.Clone(list) }
}

func purposeNames() (out []string) {
	for _, p := range keyPurposes {
		out = append(out, p.String())
	}
	return out
}

// described is a word with what a shell shows beside it. What others wrote stays out
// of the shell unless it is plain.
func described(word string, about ...string) string {
	if word != visible(word) || strings.ContainsAny(word, " \t") {
		return ""
	}
	return word + "\t" + visible(strings.Join(about, ", "))
}

// asked is what the server says to the flags of a command; "" for everything if nothing.
func asked(ctx context.Context, c *cobra.Command, path string, into any) bool {
	flag := func(name string) string {
		if f := c.Flags().Lookup(name); f != nil {
			return f.Value.String()
		}
		return ""
	}
	r := remote{dir: flag("dir"), server: flag("server"), tokenFile: flag("token-file"), roots: flag("roots")}
	return r.get(ctx, path, into) == nil
}

// memberNames are the members in one of some states; none given: all.
func memberNames(states ...hsmstore.State) words {
	return func(ctx context.Context, c *cobra.Command) (out []string) {
		var list struct{ Members []memberView }
		if !asked(ctx, c, "/api/v1/hsm/members", &list) {
			return nil
		}
		for _, m := range list.Members {
			if len(states) == 0 || slices.Contains(states, hsmstore.State(m.State)) {
				out = append(out, described(m.Name, m.State, m.Label))
			}
		}
		return out
	}
}

// keyNames are the keys that some condition takes; nil: all.
func keyNames(which func(keyView) bool) words {
	return func(ctx context.Context, c *cobra.Command) (out []string) {
		var list struct{ Keys []keyView }
		if !asked(ctx, c, "/api/v1/keys", &list) {
			return nil
		}
		for _, k := range list.Keys {
			if which == nil || which(k) {
				out = append(out, described(k.Name, k.Purpose, k.Algorithm, k.State))
			}
		}
		return out
	}
}

// proposals are the ids of proposals in a state; "all": of every one.
func proposals(state string) words {
	return func(ctx context.Context, c *cobra.Command) (out []string) {
		path := "/api/v1/approvals"
		if state != "all" {
			path += "?state=" + state
		}
		var list approvals
		if !asked(ctx, c, path, &list) {
			return nil
		}
		for _, a := range list.Approvals {
			out = append(out, described(a.ID, string(a.State), strings.Join(a.Acts, "; ")))
		}
		return out
	}
}

func officers(ctx context.Context, c *cobra.Command) (out []string) {
	var list approvals
	if !asked(ctx, c, "/api/v1/approvals?state=pending", &list) {
		return nil
	}
	for _, o := range list.Terms.Roster.Officers {
		out = append(out, described(o.Name, "officer"))
	}
	return out
}

// collecting are the members whose ceremonies wait for shares.
func collecting(ctx context.Context, c *cobra.Command) (out []string) {
	var list struct{ Ceremonies []hsmstore.Collection }
	if !asked(ctx, c, "/api/v1/hsm/ceremonies", &list) {
		return nil
	}
	for _, one := range list.Ceremonies {
		if !one.Device {
			out = append(out, described(one.Member, waitsFor(one)))
		}
	}
	return out
}

// recipientNames are the designated recipients and, with --designate, what the
// configuration of this machine names besides.
func recipientNames(ctx context.Context, c *cobra.Command) (out []string) {
	var list struct {
		Recipients []web.BackupRecipient `json:"recipients"`
	}
	if !asked(ctx, c, "/api/v1/hsm/backups", &list) {
		return nil
	}
	var known []string
	for _, r := range list.Recipients {
		if !r.Removed {
			known = append(known, r.Name)
			out = append(out, described(r.Name, "token "+r.Serial))
		}
	}
	if designate, err := c.Flags().GetBool("designate"); err == nil && designate {
		out = nil
		for _, m := range localConfig(c).HSM.Backups {
			if !slices.Contains(known, m.Name) {
				out = append(out, described(m.Name, "not designated yet"))
			}
		}
	}
	return out
}

// candidates are members that the configuration of this machine names and the server
// does not have.
func candidates(ctx context.Context, c *cobra.Command) (out []string) {
	var list struct{ Members []memberView }
	if !asked(ctx, c, "/api/v1/hsm/members", &list) {
		return nil
	}
	for _, m := range localConfig(c).HSM.Members {
		if !slices.ContainsFunc(list.Members, func(v memberView) bool { return v.Name == m.Name }) {
			out = append(out, described(m.Name, "not a member yet"))
		}
	}
	return out
}

// configured are the members that the configuration of this machine names.
func configured(_ context.Context, c *cobra.Command) (out []string) {
	for _, m := range localConfig(c).HSM.Members {
		out = append(out, described(m.Name, "member"))
	}
	return out
}

// localConfig is the server's configuration, if this is the server's machine.
func localConfig(c *cobra.Command) *Config {
	for _, flag := range []string{"config", "dir"} {
		f := c.Flags().Lookup(flag)
		if f == nil || f.Value.String() == "" {
			continue
		}
		path := f.Value.String()
		if flag == "dir" {
			path = filepath.Join(path, "chancery.yaml")
		}
		if cfg, err := loadConfig(path, ""); err == nil {
			return cfg
		}
	}
	if cfg, err := loadConfig("/etc/chancery/chancery.yaml", ""); err == nil {
		return cfg
	}
	return &Config{}
}
