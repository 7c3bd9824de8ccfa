package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"syscall"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"chancery/admin"
	"chancery/audit"
	"chancery/dbstore"
	"chancery/hsmstore"
	"chancery/web"
)

// softHSM is where Debian and Ubuntu install the module.
const softHSM = "/usr/lib/softhsm/libsofthsm2.so"

// devTokenLabel begins the label of every token that chancery dev makes; serve refuses them.
const devTokenLabel = "chancery-dev-"

// devMembers are the HSM members that chancery dev makes, on SoftHSM.
var devMembers = []string{"alpha", "beta"}

// devQuorum is M of the two officers that chancery dev makes.
const devQuorum = 2

func devCommand() *cobra.Command {
	var d dev
	c := &cobra.Command{
		Use: "dev --dir DIR", Short: "Make a whole CA on SoftHSM and SQLite in one folder, and run it",
		Long: "On the first start everything is made under DIR: two SoftHSM members, keys, root and issuing CA,\n" +
			"ledger, database. Later starts use it again. For trying out and for tests: PINs lie in DIR and\n" +
			"ACME validation may reach this machine.",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			d.out = c.OutOrStdout()
			return d.run(c.Context())
		},
	}
	c.Flags().StringVar(&d.dir, "dir", "./data", "folder that holds everything")
	c.Flags().StringVar(&d.https, "https", "127.0.0.1:8443", "address of ACME and API (first start only)")
	c.Flags().StringVar(&d.http, "http", "127.0.0.1:8080", "address of CRLs and issuer certificates (first start only)")
	c.Flags().StringVar(&d.overlay, "config", "", "YAML file that is laid over DIR/chancery.yaml")
	c.Flags().StringVar(&d.profile, "cpuprofile", "", "write a CPU profile of the serving time to this file (make bench)")
	c.Flags().StringVar(&d.logLevel, "log", "warn", "what is logged to standard error: debug, info, warn, error")
	return c
}

type dev struct {
	dir, https, http, overlay, logLevel, profile string

	out io.Writer
}

func (d *dev) run(ctx context.Context) error {
	log, err := newLog(d.logLevel)
	if err != nil {
		return err
	}
	dir, err := filepath.Abs(d.dir)
	if err != nil {
		return err
	}
	d.dir = dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cannot make folder %s: %w; name one that this user may write with --dir", dir, unwrapAll(err))
	}
	unlock, err := lock(dir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := d.writeConfig(); err != nil {
		return err
	}
	cfg, err := loadConfig(d.path("chancery.yaml"), d.overlay)
	if err != nil {
		return err
	}
	if err := cfg.check(); err != nil {
		return err
	}
	l, err := listen(cfg)
	if err != nil {
		return err
	}
	defer l.close()
	s := &server{cfg: cfg, dev: true, log: log, reload: func() (*Config, error) { return loadConfig(d.path("chancery.yaml"), d.overlay) }}
	if err := d.start(ctx, s); err != nil {
		return errors.Join(err, s.close())
	}
	landing := web.Landing{RootFingerprint: fingerprint(s.authority.Roots()[0]), CertbotLine: d.certbot(cfg), Issuers: []string{rootName, issuingName}}
	if d.profile != "" {
		f, err := os.Create(d.profile)
		if err != nil {
			return errors.Join(err, s.close())
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return errors.Join(err, s.close())
		}
		defer pprof.StopCPUProfile()
	}
	link, err := s.firstLink(ctx)
	if err != nil {
		return errors.Join(err, s.close())
	}
	err = s.serve(ctx, l, landing, func() { d.banner(cfg, landing, link) })
	return errors.Join(err, s.close())
}

func (d *dev) path(elem ...string) string { return filepath.Join(append([]string{d.dir}, elem...)...) }

// lock lets one server at a time use a folder.
func lock(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("folder %s is not writable: %w; make it writable for this user or name another with --dir", dir, unwrapAll(err))
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another chancery uses %s; stop it first or name another folder with --dir", dir)
	}
	return func() { f.Close() }, nil
}

// writeConfig writes DIR/chancery.yaml on the first start.
func (d *dev) writeConfig() error {
	if _, err := os.Stat(d.path("chancery.yaml")); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var c Config
	c.Listen.HTTPS, c.Listen.HTTP = d.https, d.http
	for name, addr := range map[string]string{"--https": d.https, "--http": d.http} {
		if _, port, err := net.SplitHostPort(addr); err != nil || port == "0" {
			return &exit{exitUsage, fmt.Errorf("%s %q is no address; write host:port, e.g. 127.0.0.1:8443", name, addr)}
		}
	}
	c.PublicURL = "https://" + devHost(d.https)
	c.PublicHTTPURL = "http://" + devHost(d.http)
	c.NodeID = "dev"
	c.Database = "sqlite:" + d.path("chancery.db")
	c.Ledger.Journal = d.path("journal", "intents")
	c.Ledger.Anchors = []string{"file:" + d.path("journal", "checkpoints")}
	for _, name := range devMembers {
		base := d.path("hsm", name)
		c.HSM.Members = append(c.HSM.Members, MemberConfig{Name: name, Module: softHSM, Token: devTokenLabel + name, PIN: "file:" + filepath.Join(base, "pin"),
			SOPIN: "file:" + filepath.Join(base, "so-pin"), Env: map[string]string{"SOFTHSM2_CONF": filepath.Join(base, "softhsm2.conf")}})
	}
	c.ACME.Validation = ValidationConfig{HTTPPort: 5002, AllowNetworks: []string{"127.0.0.0/8", "::1/128"}}
	b, err := yaml.Marshal(c)
	if err != nil {
		return err
	}
	head := "# Written once by chancery dev; edit as you like. Keys: docs/OPERATIONS.md.\n"
	return writeFile(d.path("chancery.yaml"), append([]byte(head), b...), 0o600)
}

// devHost is how a browser on this machine names an address: passkeys and
// certificates want a name, not 127.0.0.1.
func devHost(addr string) string {
	host, port, _ := net.SplitHostPort(addr)
	if host == "127.0.0.1" || host == "" || host == "0.0.0.0" {
		host = "localhost"
	}
	return net.JoinHostPort(host, port)
}

// start brings everything up to the point where the listeners may answer.
func (d *dev) start(ctx context.Context, s *server) error {
	if err := os.MkdirAll(filepath.Dir(s.cfg.Ledger.Journal), 0o700); err != nil {
		return err
	}
	if _, err := os.Stat(softHSM); err != nil {
		for _, m := range s.cfg.HSM.Members {
			if m.Module == softHSM {
				return &exit{exitHSM, fmt.Errorf("the SoftHSM module %s is missing; install it: apt-get install softhsm2", softHSM)}
			}
		}
	}
	token, err := adminToken(d.path("admin.token"))
	if err != nil {
		return err
	}
	if err := d.tokens(ctx, s); err != nil {
		return err
	}
	if err := s.begin(ctx); err != nil {
		return err
	}
	whole, err := s.complete(ctx)
	if err != nil {
		return err
	}
	if whole {
		if err := s.buildCA(ctx); err != nil {
			return err
		}
	} else if err := d.genesis(ctx, s, sha256.Sum256([]byte(token))); err != nil {
		return err
	}
	if err := s.authority.FreshCRLs(ctx); err != nil {
		s.log.Warn("CRL not renewed at start", "err", err)
	}
	return writeFile(d.path("root.pem"), pemCertificates(s.authority.Roots()...), 0o644)
}

// genesis makes the officers' keys and with them the CA. Later starts do not need the
// keys: officers may take them away.
func (d *dev) genesis(ctx context.Context, s *server, tokenHash [32]byte) error {
	roster, err := d.officers()
	if err != nil {
		return err
	}
	stderr.show("keys are born, copied to every member and proved")
	defer stderr.end()
	return s.genesis(ctx, roster, tokenHash)
}

// tokens makes the SoftHSM tokens. While the ledger is empty nothing in them is of
// use: what a crash during the very first start left is made anew. The intent
// journal and the ledger are checked first, so that a lost database is no empty one.
func (d *dev) tokens(ctx context.Context, s *server) error {
	empty, err := ledgerIsEmpty(ctx, s.cfg.Database)
	if err != nil || !empty {
		return err
	}
	j, err := audit.OpenJournal(s.cfg.Ledger.Journal)
	if err != nil {
		return err
	}
	if err := j.Close(); err != nil {
		return err
	}
	if j.Base() > 0 {
		return fmt.Errorf("the database %s is empty, but the intent journal knows %d entries: the database was lost. Put it back; or, to begin a new CA, name another folder with --dir", s.cfg.Database, j.Base())
	}
	members, err := s.cfg.members()
	if err != nil {
		return err
	}
	for i, m := range s.cfg.HSM.Members {
		if m.Env["SOFTHSM2_CONF"] != d.path("hsm", m.Name, "softhsm2.conf") {
			continue // a token of the user's own
		}
		if err := removeAll(ctx, d.path("hsm", m.Name)); err != nil {
			return fmt.Errorf("member %s: %w", m.Name, err)
		}
		if _, err := hsmstore.WriteSoftHSMConf(d.dir, m.Name); err != nil {
			return fmt.Errorf("member %s: %w", m.Name, err)
		}
		if err := os.Remove(members[i].JournalPath); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := hsmstore.InitToken(ctx, members[i], m.Token); err != nil {
			return fmt.Errorf("member %s: %w", m.Name, err)
		}
	}
	return nil
}

// removeAll removes a token's folder. A ceremony of a killed start may still write
// into it until its call into the module returns and it sees that its server is gone.
func removeAll(ctx context.Context, dir string) error {
	for end := time.Now().Add(15 * time.Second); ; {
		err := os.RemoveAll(dir)
		if !errors.Is(err, syscall.ENOTEMPTY) || time.Now().After(end) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func ledgerIsEmpty(ctx context.Context, database string) (bool, error) {
	db, err := dbstore.Open(ctx, database)
	if err != nil {
		return false, err
	}
	defer db.Close()
	head, err := db.Head(ctx)
	return head.Size == 0, err
}

// officers makes the two officers' keys on the first start and returns the roster.
// They vote on later sensitive acts.
func (d *dev) officers() (roster admin.Roster, err error) {
	roster.Quorum = devQuorum
	for _, name := range []string{"officer-1", "officer-2"} {
		path := d.path("officers", name+".pem")
		k, err := admin.LoadOfficerKey(name, path)
		if errors.Is(err, fs.ErrNotExist) {
			if k, err = admin.NewOfficerKey(name); err != nil {
				return roster, err
			}
			err = k.Save(path)
		}
		if err != nil {
			return roster, err
		}
		o, err := k.Officer()
		if err != nil {
			return roster, err
		}
		roster.Officers = append(roster.Officers, o)
	}
	return roster, nil
}

// certbot is one line that gets a certificate as it stands, without root.
func (d *dev) certbot(c *Config) string {
	at := func(elem ...string) string { return shellQuote(d.path(elem...)) }
	return "REQUESTS_CA_BUNDLE=" + at("root.pem") + " certbot certonly --non-interactive --agree-tos --register-unsafely-without-email --standalone" +
		fmt.Sprintf(" --http-01-port %d --server %s/acme/directory", c.ACME.Validation.HTTPPort, c.PublicURL) +
		" --config-dir " + at("certbot", "config") + " --work-dir " + at("certbot", "work") + " --logs-dir " + at("certbot", "logs") + " -d demo.localhost"
}

func shellQuote(s string) string {
	if strings.IndexFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-", r))
	}) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	parts := make([]string, len(sum))
	for i, b := range sum {
		parts[i] = fmt.Sprintf("%02X", b)
	}
	return strings.Join(parts, ":")
}

func (d *dev) banner(c *Config, l web.Landing, link string) {
	install := ""
	if _, err := exec.LookPath("certbot"); err != nil {
		install = "   (certbot is not installed yet)"
	}
	fmt.Fprintf(d.out, `Chancery is ready.

  ACME directory    %s/acme/directory
  Root certificate  %s
  Root SHA-256      %s
  Start page        %s/
  Console           %s/console/
  Admin token       %s
  Data              %s

The first certificate, as this user:%s

  sudo apt-get install -y certbot
  %s
%s
Check the ledger at any time:

  %s audit verify --dir %s
`, c.PublicURL, d.path("root.pem"), l.RootFingerprint, c.PublicHTTPURL, c.PublicHTTPURL, d.path("admin.token"), d.dir, install, l.CertbotLine, d.invitation(link), self(), shellQuote(d.dir))
}

// invitation tells the first person how to come to the console.
func (d *dev) invitation(link string) string {
	if link == "" {
		return ""
	}
	at := func(name string) string { return shellQuote(d.path("officers", name+".pem")) }
	return fmt.Sprintf(`
The console is entered with a passkey. Make the first one with this link, which works once, within a day:

  %s

Then both officers put it on the roster; here they are you:

  %s approve sign ID --dir %s --officer officer-1 --key %s
  %s approve sign ID --dir %s --officer officer-2 --key %s
`, link, self(), shellQuote(d.dir), at("officer-1"), self(), shellQuote(d.dir), at("officer-2"))
}

// firstLink is a link for the first person at the console, while nobody has a passkey; ""
// when somebody has. Of an earlier start nobody knows the secret any more: its link ends.
func (s *server) firstLink(ctx context.Context) (string, error) {
	board, err := s.newBoard(ctx)
	if err != nil {
		return "", err
	}
	rosters, err := board.Rosters(ctx)
	if err != nil || rosters.Current().Enrolled() {
		return "", err
	}
	e := s.enrolments(board)
	before, err := e.List(ctx)
	if err != nil {
		return "", err
	}
	for _, old := range before {
		if old.Name == firstPerson && old.State == admin.EnrolmentOpen {
			if err := e.Withdraw(ctx, old.ID, admin.AdminToken); err != nil {
				return "", err
			}
		}
	}
	var roles []admin.Assignment
	for _, r := range admin.Roles {
		if r != admin.Auditor { // who audits changes nothing
			roles = append(roles, admin.Assignment{Role: r})
		}
	}
	secret, _, err := e.Open(ctx, firstPerson, roles, admin.AdminToken, 0)
	if err != nil {
		return "", err
	}
	return s.cfg.PublicHTTPURL + "/console/enrol#" + secret, nil
}

// firstPerson is how the first person at the console of dev is called.
const firstPerson = "admin"

// self is how the user called this program.
func self() string {
	if strings.Contains(os.Args[0], "/") {
		return shellQuote(os.Args[0])
	}
	return "chancery"
}
