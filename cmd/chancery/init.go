package main

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"chancery/admin"
)

func initCommand() *cobra.Command {
	var in initCA
	c := &cobra.Command{
		Use: "init --config FILE --officer NAME=FILE.pem --officer NAME=FILE.pem", Short: "Make a CA for production: genesis",
		Long: "The ceremony that begins a ledger. The tokens must be initialized with user PIN and SO PIN; so_pin must be\n" +
			"readable now and taken away afterwards. The officers' public keys become the roster: later sensitive acts\n" +
			"need M of them. Interrupted, it can be run again and goes on where it stood.",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			in.out = c.OutOrStdout()
			return in.run(c.Context())
		},
	}
	c.Flags().StringVar(&in.file, "config", "/etc/chancery/chancery.yaml", "configuration file")
	c.Flags().StringArrayVar(&in.officers, "officer", nil, "officer's name and public key (PEM), at least two")
	c.Flags().IntVar(&in.quorum, "quorum", 2, "how many officers a sensitive act needs, 2 to 20")
	c.Flags().StringArrayVar(&in.administrators, "administrator", nil, "name of an administrator, again for each: a link to make a passkey is printed")
	c.Flags().StringVar(&in.tokenFile, "admin-token", "admin.token", "file for the admin token (0600); made unless it is there")
	c.Flags().StringVar(&in.level, "log", "warn", "what is logged to standard error: debug, info, warn, error")
	return c
}

type initCA struct {
	file, tokenFile, level string
	officers               []string
	administrators         []string
	links                  []string // for them, in that order
	quorum                 int
	out                    io.Writer
}

func (in *initCA) run(ctx context.Context) error {
	log, err := newLog(in.level)
	if err != nil {
		return err
	}
	roster, err := in.roster()
	if err != nil {
		return err
	}
	cfg, err := loadChecked(in.file)
	if err != nil {
		return err
	}
	for i, m := range cfg.HSM.Members {
		if m.SOPIN == "" && m.Role == "" { // nothing is copied there
			return &exit{exitConfig, fmt.Errorf("config: hsm.members[%d] (%s): so_pin is missing; the ceremony needs it, serve refuses it", i, m.Name)}
		}
		if strings.Contains(m.Token, devTokenLabel) {
			return &exit{exitConfig, fmt.Errorf("config: hsm.members[%d] (%s): the token was made by chancery dev; make one for production", i, m.Name)}
		}
	}
	token, err := adminToken(in.tokenFile)
	if err != nil {
		return err
	}
	s := &server{cfg: cfg, log: log}
	stderr.show("the ceremony: keys are born, copied to every member and proved")
	defer stderr.end()
	err = in.ceremony(ctx, s, roster, sha256.Sum256([]byte(token)))
	var root []byte
	if err == nil {
		root = s.authority.Roots()[0]
	}
	if err := errors.Join(err, s.close()); err != nil {
		return err
	}
	stderr.end()
	fmt.Fprintf(in.out, "The CA is made.\n\n  Root SHA-256  %s\n  Admin token   %s\n\nTake the SO PINs away from this machine, then run: chancery serve --config %s\n\n%s",
		fingerprint(root), in.tokenFile, in.file, pemCertificates(root))
	for i, link := range in.links {
		fmt.Fprintf(in.out, "\n%s makes passkeys with this link; it works once, within a day, while the server runs:\n\n  %s\n", visible(in.administrators[i]), link)
	}
	return nil
}

func (in *initCA) ceremony(ctx context.Context, s *server, roster admin.Roster, tokenHash [32]byte) error {
	if err := s.begin(ctx); err != nil {
		return err
	}
	whole, err := s.complete(ctx)
	if err != nil {
		return err
	}
	if whole {
		return &exit{exitConfig, errors.New("the database holds a finished CA; run chancery serve, or name another database")}
	}
	if err := s.genesis(ctx, roster, tokenHash); err != nil {
		return err
	}
	for _, name := range in.administrators {
		link, err := s.invited(ctx, name, []admin.Assignment{{Role: admin.Administrator}}, s.cfg.PublicURL)
		if err != nil {
			return err
		}
		in.links = append(in.links, link)
	}
	return s.authority.FreshCRLs(ctx)
}

// roster reads the officers' public keys.
func (in *initCA) roster() (r admin.Roster, err error) {
	r.Quorum = in.quorum
	for _, o := range in.officers {
		name, file, ok := strings.Cut(o, "=")
		if !ok || name == "" {
			return r, &exit{exitUsage, fmt.Errorf("--officer %q must be NAME=FILE.pem", o)}
		}
		b, err := os.ReadFile(file)
		if err != nil {
			return r, fmt.Errorf("officer %s: %w", name, err)
		}
		block, _ := pem.Decode(b)
		if block == nil || block.Type != "PUBLIC KEY" {
			return r, fmt.Errorf("officer %s: %s holds no PEM PUBLIC KEY; chancery officer new makes one", name, file)
		}
		off, err := admin.ParseOfficer(name, block.Bytes)
		if err != nil {
			return r, err
		}
		r.Officers = append(r.Officers, off)
	}
	if err := r.Check(); err != nil {
		return r, &exit{exitUsage, fmt.Errorf("--officer NAME=FILE.pem, --quorum M: %w", err)}
	}
	return r, nil
}

// adminToken reads the token, or makes it.
func adminToken(path string) (string, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		token := base64.RawURLEncoding.EncodeToString(random(32))
		if err := writeFile(path, []byte(token+"\n"), 0o600); err != nil {
			return "", fmt.Errorf("admin token: %w", err)
		}
		return token, nil
	}
	if err != nil {
		return "", fmt.Errorf("admin token: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// notifyReady tells systemd that the server is ready (sd_notify(3)); without systemd it does nothing.
func notifyReady() {
	addr := os.Getenv("NOTIFY_SOCKET")
	if addr == "" {
		return
	}
	if c, err := net.Dial("unixgram", filepath.Clean(addr)); err == nil {
		c.Write([]byte("READY=1"))
		c.Close()
	}
}
