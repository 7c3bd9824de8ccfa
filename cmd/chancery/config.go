package main

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"go.step.sm/crypto/kms/uri"

	"chancery/admin"
	"chancery/audit"
	"chancery/hsmstore"
	"chancery/web/console/oidc"
)

// Config is the configuration file. Unknown keys are errors.
type Config struct {
	Listen struct {
		HTTPS string `yaml:"https"` // ACME, API, console: host:port
		HTTP  string `yaml:"http"`  // CRLs, issuer certificates: host:port
		// Prometheus metrics: host:port; empty: off. For those who monitor only.
		Metrics string `yaml:"metrics,omitempty"`
		Admin   string `yaml:"admin,omitempty"` // the API for client certificates; "": none
	} `yaml:"listen"`
	PublicURL     string       `yaml:"public_url"`      // base of all ACME and API URLs
	PublicHTTPURL string       `yaml:"public_http_url"` // base of the URLs in certificates (AIA, CDP)
	NodeID        string       `yaml:"node_id"`
	Database      string       `yaml:"database"` // sqlite:PATH or postgres://…
	Ledger        LedgerConfig `yaml:"ledger"`
	HSM           struct {
		Members []MemberConfig `yaml:"members"`
		// Tokens outside the cluster that keys are wrapped to: designate each, hsm backup --designate.
		Backups []MemberConfig `yaml:"backups,omitempty"`
		// Folder for the daily manifest of each recipient; empty: off.
		BackupDir string `yaml:"backup_dir,omitempty"`
	} `yaml:"hsm"`
	ACME struct {
		Validation ValidationConfig `yaml:"validation"`
		Names      NamesConfig      `yaml:"names"`
		// Key of purpose secret that the key of nonces comes from; empty: it is in the database.
		NonceSecret string `yaml:"nonce_secret,omitempty"`
	} `yaml:"acme"`
	OIDC *OIDCConfig `yaml:"oidc,omitempty"` // nil: nobody signs in that way
}

// OIDCConfig is an OpenID provider with which people sign in at the console.
type OIDCConfig struct {
	Issuer       string              `yaml:"issuer"` // as the provider names itself
	ClientID     string              `yaml:"client_id"`
	ClientSecret string              `yaml:"client_secret"` // file:PATH, env:NAME, credential:NAME
	GroupsClaim  string              `yaml:"groups_claim,omitempty"`
	Scopes       []string            `yaml:"scopes,omitempty"`
	Roles        map[string][]string `yaml:"roles"` // by group
}

// provider is the typed form; nil if there is none. In dev it may be on this machine.
func (c *Config) provider(dev bool) (*oidc.Provider, error) {
	o := c.OIDC
	if o == nil {
		return nil, nil
	}
	read, err := secret(o.ClientSecret)
	if err != nil {
		return nil, fmt.Errorf("oidc.client_secret: %w", err)
	}
	text, err := read()
	if err != nil {
		return nil, fmt.Errorf("oidc.client_secret: %w", err)
	}
	roles := map[string][]admin.Assignment{}
	for group, texts := range o.Roles {
		for _, t := range texts {
			a, err := admin.ParseAssignment(t)
			if err != nil {
				return nil, fmt.Errorf("oidc.roles.%s: %w", group, err)
			}
			roles[group] = append(roles[group], a)
		}
	}
	return oidc.New(oidc.Config{Issuer: o.Issuer, ClientID: o.ClientID, ClientSecret: text, GroupsClaim: o.GroupsClaim, Scopes: o.Scopes, Roles: roles,
		RedirectURL: strings.TrimSuffix(c.PublicURL, "/") + "/console/oidc/callback", Loopback: dev})
}

// LedgerConfig is where the ledger leaves traces outside the database.
type LedgerConfig struct {
	Domain  string   `yaml:"domain"`          // operator domain; default: host of public_url
	Journal string   `yaml:"journal"`         // intent journal, on another disk than the database
	Sweep   string   `yaml:"sweep,omitempty"` // how often the promises are looked at: 10s (default); 100ms to 1m
	Anchors []string `yaml:"anchors"`         // file:PATH, append-only; syslog:unix:/dev/log, syslog:udp:HOST:PORT, syslog:tcp:HOST:PORT
	// How long clients' addresses and what they asked for can be read: 7y (default), 90d, 36h.
	RetainPersonal string `yaml:"retain_personal,omitempty"`
}

// retain is the typed form of retain_personal.
func (c *LedgerConfig) retain() (time.Duration, error) {
	text := c.RetainPersonal
	if text == "" {
		return audit.DefaultRetain, nil
	}
	units := map[byte]time.Duration{'h': time.Hour, 'd': 24 * time.Hour, 'y': 365 * 24 * time.Hour}
	unit, known := units[text[len(text)-1]]
	n, err := strconv.ParseUint(text[:len(text)-1], 10, 32)
	const most = 100 * 365 * 24 * time.Hour
	if !known || err != nil || n == 0 || n > uint64(most/unit) {
		return 0, fmt.Errorf("ledger.retain_personal: %q is no time from 1h to 100y; write a whole number with h, d or y, e.g. 7y or 90d", text)
	}
	return time.Duration(n) * unit, nil
}

// MemberConfig is one HSM member.
type MemberConfig struct {
	Name   string            `yaml:"name"`
	URI    string            `yaml:"uri"`    // RFC 7512: pkcs11:module-path=…;token=… or …;serial=…
	Module string            `yaml:"module"` // instead of uri, together with token
	Token  string            `yaml:"token"`  // token label
	PIN    string            `yaml:"pin"`    // file:PATH, env:NAME, credential:NAME
	SOPIN  string            `yaml:"so_pin"` // file:PATH; shares: held by officers, M of N; device: the vendor's quorum
	Env    map[string]string `yaml:"env"`
	// How keys get there: wrap (default), or native for a vendor's cluster behind one module.
	Replication string `yaml:"replication,omitempty"`
	// What the member is for: nothing said, keys of all purposes; checkpoint: its own
	// checkpoint key alone, in a token and a PIN apart.
	Role string `yaml:"role,omitempty"`
	// File with what the HSM says that it has signed (chancery audit surplus --help), read every minute.
	Counts     string `yaml:"counts,omitempty"`
	Sessions   int    `yaml:"sessions,omitempty"`    // most sessions that sign at the same time; 0: 64
	Reserved   string `yaml:"reserved,omitempty"`    // pReserved of C_Initialize (NSS)
	WeakUnwrap bool   `yaml:"weak_unwrap,omitempty"` // accept a module without CKA_UNWRAP_TEMPLATE (NSS)
}

// sharesPIN says that a SO PIN is nowhere: officers hold it in shares.
const sharesPIN = "shares:"

// devicePIN says that there is no SO PIN: the vendor's own quorum, given at the device,
// opens the SO role.
const devicePIN = "device"

// ValidationConfig says how ACME challenges are checked.
type ValidationConfig struct {
	HTTPPort      int      `yaml:"http_port"`
	Resolvers     []string `yaml:"resolvers"`      // host:port; default: the system's
	AllowNetworks []string `yaml:"allow_networks"` // CIDRs that may be reached besides public and private ones
	DenyNetworks  []string `yaml:"deny_networks"`  // CIDRs that may not: those of HSMs and databases
}

// NamesConfig says which names may be ordered. A domain stands for itself and all
// below it, a CIDR for its addresses.
type NamesConfig struct {
	Permit []string `yaml:"permit"` // empty: all
	Deny   []string `yaml:"deny"`
}

// loadConfig reads the file at path, with the maps of overlay merged in, lists and
// scalars replaced. Mistakes name file, line and column.
func loadConfig(path, overlay string) (*Config, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, &exit{exitConfig, fmt.Errorf("config: %w", err)}
	}
	c, err := parseConfig(path, raw)
	if err != nil || overlay == "" {
		return c, err
	}
	over, err := os.ReadFile(overlay)
	if err != nil {
		return nil, &exit{exitConfig, fmt.Errorf("config: %w", err)}
	}
	if _, err := parseConfig(overlay, over); err != nil {
		return nil, err
	}
	var base, top map[string]any
	if err := errors.Join(yaml.Unmarshal(raw, &base), yaml.Unmarshal(over, &top)); err != nil {
		return nil, &exit{exitConfig, fmt.Errorf("config %s: %w", overlay, err)}
	}
	merged, err := yaml.Marshal(merge(base, top))
	if err != nil {
		return nil, &exit{exitConfig, fmt.Errorf("config %s: %w", overlay, err)}
	}
	return parseConfig(overlay, merged)
}

func merge(base, top map[string]any) map[string]any {
	out := maps.Clone(base)
	if out == nil {
		out = map[string]any{}
	}
	for k, v := range top {
		b, bok := out[k].(map[string]any)
		t, tok := v.(map[string]any)
		if bok && tok {
			v = merge(b, t)
		}
		out[k] = v
	}
	return out
}

func parseConfig(path string, raw []byte) (*Config, error) {
	var c Config
	if len(bytes.TrimSpace(raw)) == 0 {
		return &c, nil
	}
	d := yaml.NewDecoder(bytes.NewReader(raw), yaml.Strict(), yaml.DisallowUnknownField())
	if err := d.Decode(&c); err != nil {
		return nil, &exit{exitConfig, fmt.Errorf("config %s: %s", path, yamlMistake(err))}
	}
	return &c, nil
}

// yamlMistake is the first line of the decoder's message, "[line:column] what", in
// words; the lines after it show the file's text, which may hold secrets.
func yamlMistake(err error) string {
	first, _, _ := strings.Cut(yaml.FormatError(err, false, false), "\n")
	var line, col int
	if n, _ := fmt.Sscanf(first, "[%d:%d]", &line, &col); n == 2 {
		_, what, _ := strings.Cut(first, "] ")
		return fmt.Sprintf("line %d, column %d: %s; allowed keys stand in docs/OPERATIONS.md", line, col, what)
	}
	return first
}

// members gives the typed form of the HSM members.
func (c *Config) members() ([]hsmstore.MemberConfig, error) {
	if len(c.HSM.Members) == 0 {
		return nil, &exit{exitConfig, errors.New("config: hsm.members is empty; name at least one HSM member")}
	}
	return tokens("members", c.HSM.Members, c.workerJournal)
}

// tokens gives the typed form of a list of tokens.
func tokens(key string, list []MemberConfig, journal func(name string) string) ([]hsmstore.MemberConfig, error) {
	var out []hsmstore.MemberConfig
	for i, m := range list {
		at := fmt.Sprintf("config: hsm.%s[%d] (%s)", key, i, m.Name)
		h := hsmstore.MemberConfig{Name: m.Name, Module: m.Module, TokenLabel: m.Token, JournalPath: journal(m.Name),
			Replication: hsmstore.Replication(m.Replication), Role: hsmstore.Role(m.Role), Sessions: m.Sessions, Reserved: m.Reserved, WeakUnwrap: m.WeakUnwrap, SplitSO: m.SOPIN == sharesPIN, DeviceSO: m.SOPIN == devicePIN}
		if m.URI != "" {
			u, err := uri.ParseWithScheme("pkcs11", m.URI)
			if err != nil {
				return nil, &exit{exitConfig, fmt.Errorf("%s: uri is no PKCS#11 URI (RFC 7512), e.g. pkcs11:module-path=/usr/lib/softhsm/libsofthsm2.so;token=alpha", at)}
			}
			if u.Get("pin-value") != "" {
				return nil, &exit{exitConfig, fmt.Errorf("%s: uri holds a pin-value; PINs are named by pin: file:PATH, never written down", at)}
			}
			h.Module, h.TokenLabel, h.TokenSerial = u.Get("module-path"), u.Get("token"), u.Get("serial")
		}
		if r := hsmstore.Role(m.Role); r != hsmstore.RoleAll && r != hsmstore.RoleCheckpoint {
			return nil, &exit{exitConfig, fmt.Errorf("%s: role %q is not known; write checkpoint for a token that holds its checkpoint key alone, or leave it out", at, m.Role)}
		}
		pin, err := secret(m.PIN)
		if err != nil {
			return nil, &exit{exitConfig, fmt.Errorf("%s: pin: %w", at, err)}
		}
		h.PIN = pin
		if m.SOPIN != "" && !h.SplitSO && !h.DeviceSO {
			if h.SOPIN, err = secret(m.SOPIN); err != nil {
				return nil, &exit{exitConfig, fmt.Errorf("%s: so_pin: %w; or \"shares:\", held by officers, or device, opened by the vendor's own quorum", at, err)}
			}
		}
		for _, k := range slices.Sorted(maps.Keys(m.Env)) {
			h.Env = append(h.Env, k+"="+m.Env[k])
		}
		out = append(out, h)
	}
	return out, nil
}

// secret names where a PIN is read from; the PIN itself never stands in a file of settings.
func secret(s string) (hsmstore.Secret, error) {
	kind, rest, _ := strings.Cut(s, ":")
	if rest == "" {
		return nil, errors.New("it is missing; allowed: file:PATH, env:NAME, credential:NAME")
	}
	switch kind {
	case "file":
		return hsmstore.FileSecret(rest), nil
	case "credential": // systemd LoadCredential=
		return hsmstore.FileSecret(credentialPath(rest)), nil
	case "env":
		return func() (string, error) {
			if v := os.Getenv(rest); v != "" {
				return v, nil
			}
			return "", fmt.Errorf("environment variable %s is empty", rest)
		}, nil
	}
	return nil, fmt.Errorf("kind %q is not known; allowed: file:PATH, env:NAME, credential:NAME", kind)
}

// credentialPath is where systemd puts a credential for this process.
func credentialPath(name string) string { return os.Getenv("CREDENTIALS_DIRECTORY") + "/" + name }

// networks gives the typed form of a list of networks.
func networks(key string, list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for i, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, &exit{exitConfig, fmt.Errorf("config: acme.validation.%s[%d]: %q is no network; write e.g. 10.0.0.0/8", key, i, s)}
		}
		out = append(out, p)
	}
	return out, nil
}

// check holds what the shape of the file does not.
func (c *Config) check() error {
	bad := func(format string, args ...any) error {
		return &exit{exitConfig, fmt.Errorf("config: "+format, args...)}
	}
	for name, v := range map[string]string{"listen.https": c.Listen.HTTPS, "listen.http": c.Listen.HTTP, "listen.metrics": c.Listen.Metrics, "listen.admin": c.Listen.Admin} {
		if (name == "listen.metrics" || name == "listen.admin") && v == "" {
			continue
		}
		if _, _, err := net.SplitHostPort(v); err != nil {
			return bad("%s: %q is no address; write host:port, e.g. 127.0.0.1:8443", name, v)
		}
	}
	for name, v := range map[string]string{"public_url": c.PublicURL, "public_http_url": c.PublicHTTPURL} {
		u, err := url.Parse(v)
		want := map[string]string{"public_url": "https", "public_http_url": "http"}[name]
		if err != nil || u.Scheme != want || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
			return bad("%s: %q must be %s://host[:port] without a path", name, v, want)
		}
	}
	switch kind, rest, _ := strings.Cut(c.Database, ":"); {
	case kind != "sqlite" && kind != "postgres" && kind != "postgresql":
		return bad("database: kind %q is not known; allowed: sqlite:/path/to/file.db, postgres://user@host/database", kind)
	case rest == "":
		return bad("database: what follows %q is missing", kind+":")
	}
	if c.NodeID == "" || len(c.NodeID) > 64 {
		return bad("node_id is missing or longer than 64 characters; give each server a short name of its own")
	}
	if c.Ledger.Journal == "" {
		return bad("ledger.journal is missing; name a file on another disk than the database")
	}
	if p := c.ACME.Validation.HTTPPort; p < 1 || p > 65535 {
		return bad("acme.validation.http_port: %d is no port; the RFC's is 80", p)
	}
	for key, list := range map[string][]string{"allow_networks": c.ACME.Validation.AllowNetworks, "deny_networks": c.ACME.Validation.DenyNetworks} {
		if _, err := networks(key, list); err != nil {
			return err
		}
	}
	if _, err := c.backups(); err != nil {
		return err
	}
	if c.sweep() == 0 {
		return bad("ledger.sweep: %q is no time between 100ms and 1m; write e.g. 10s", c.Ledger.Sweep)
	}
	if _, _, err := c.anchors(); err != nil {
		return bad("%v", err)
	}
	if _, err := c.Ledger.retain(); err != nil {
		return bad("%v", err)
	}
	return nil
}

// anchors are the file of anchored checkpoints, or "", and the log systems that get each.
func (c *Config) anchors() (file string, logs []*audit.Syslog, err error) {
	for i, a := range c.Ledger.Anchors {
		kind, where, _ := strings.Cut(a, ":")
		switch {
		case kind == "file" && where != "" && file == "":
			file = where
		case kind == "file" && where != "":
			return "", nil, fmt.Errorf("ledger.anchors[%d]: one file is supported; keep one", i)
		case kind == "syslog":
			l, err := audit.NewSyslog(where)
			if err != nil {
				return "", nil, fmt.Errorf("ledger.anchors[%d]: %w", i, err)
			}
			logs = append(logs, l)
		default:
			return "", nil, fmt.Errorf("ledger.anchors[%d]: %q is not known; allowed: file:PATH, syslog:unix:/dev/log, syslog:udp:HOST:PORT, syslog:tcp:HOST:PORT", i, a)
		}
	}
	return file, logs, nil
}

// sweep is the time between two looks of the sweeper, 0 if it is no good one.
func (c *Config) sweep() time.Duration {
	if c.Ledger.Sweep == "" {
		return 10 * time.Second
	}
	d, err := time.ParseDuration(c.Ledger.Sweep)
	if err != nil || d < 100*time.Millisecond || d > time.Minute {
		return 0
	}
	return d
}

// host is the host of public_url.
func (c *Config) host() string {
	u, err := url.Parse(c.PublicURL)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

// domain is the operator domain in the ledger's origin.
func (c *Config) domain() string {
	if c.Ledger.Domain != "" {
		return c.Ledger.Domain
	}
	return c.host()
}

// workerJournal is the file that an HSM worker writes its uses of keys to: beside
// the intent journal, away from the database.
func (c *Config) workerJournal(member string) string {
	return filepath.Join(filepath.Dir(c.Ledger.Journal), "hsm-"+filepath.Base(member)+".journal")
}
