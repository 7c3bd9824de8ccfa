package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"chancery/audit"
	"chancery/web"
)

func serveCommand() *cobra.Command {
	var file, level string
	c := &cobra.Command{
		Use: "serve --config FILE", Short: "Run the CA that chancery init made",
		Long: "Serves ACME, the API, CRLs and issuer certificates. It refuses a database without a ledger, a ledger or\n" +
			"token that chancery dev made, and any SO PIN that it could read: outside a ceremony nobody holds both PINs.",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			log, err := newLog(level)
			if err != nil {
				return err
			}
			cfg, err := loadChecked(file)
			if err != nil {
				return err
			}
			if err := cfg.production(); err != nil {
				return err
			}
			l, err := listen(cfg)
			if err != nil {
				return err
			}
			defer l.close()
			s := &server{cfg: cfg, log: log, reload: func() (*Config, error) { return loadChecked(file) }}
			if err := s.startServing(c.Context()); err != nil {
				return errors.Join(err, s.close())
			}
			landing := web.Landing{RootFingerprint: fingerprint(s.authority.Roots()[0]), CertbotLine: "certbot certonly --standalone --server " + cfg.PublicURL + "/acme/directory -d NAME", Issuers: []string{rootName, issuingName}}
			err = s.serve(c.Context(), l, landing, func() {
				log.Info("serving", "acme", cfg.PublicURL+"/acme/directory", "root_sha256", landing.RootFingerprint)
				notifyReady()
			})
			return errors.Join(err, s.close())
		},
	}
	c.Flags().StringVar(&file, "config", "/etc/chancery/chancery.yaml", "configuration file")
	c.Flags().StringVar(&level, "log", "info", "what is logged to standard error: debug, info, warn, error")
	return c
}

func loadChecked(file string) (*Config, error) {
	cfg, err := loadConfig(file, "")
	if err != nil {
		return nil, err
	}
	return cfg, cfg.check()
}

// production refuses what only dev may have (P5).
func (c *Config) production() error {
	for i, m := range slices.Concat(c.HSM.Members, c.HSM.Backups) {
		at := fmt.Sprintf("config: hsm.members[%d] (%s)", i, m.Name)
		if n := i - len(c.HSM.Members); n >= 0 {
			at = fmt.Sprintf("config: hsm.backups[%d] (%s)", n, m.Name)
		}
		if readable(m.SOPIN) {
			return &exit{exitConfig, fmt.Errorf("%s: the SO PIN %s can be read by the server; take it away: it is for ceremonies only", at, m.SOPIN)}
		}
		if strings.Contains(m.Token, devTokenLabel) || strings.Contains(m.URI, devTokenLabel) {
			return &exit{exitConfig, fmt.Errorf("%s: the token was made by chancery dev, whose PINs lie beside it; make one for production", at)}
		}
	}
	return nil
}

// readable tells whether a PIN's source gives anything to this process, in whatever mode.
func readable(source string) bool {
	kind, path, _ := strings.Cut(source, ":")
	switch kind {
	case "env":
		return os.Getenv(path) != ""
	case "credential":
		path = credentialPath(path)
	case "file":
	default:
		return false
	}
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// startServing brings everything up to the point where the listeners may answer.
func (s *server) startServing(ctx context.Context) error {
	empty, err := ledgerIsEmpty(ctx, s.cfg.Database)
	if err != nil {
		return err
	}
	if empty {
		return &exit{exitConfig, errors.New("the database holds no ledger yet; make the CA first: chancery init --config FILE")}
	}
	if err := s.begin(ctx); err != nil {
		return err
	}
	leaf, err := s.ledger.Leaf(ctx, 0)
	if err != nil {
		return err
	}
	if mode, _ := leaf.Uint(audit.TagMode); mode != 2 {
		return &exit{exitConfig, errors.New("the ledger was begun by chancery dev and is marked so for ever; use another database")}
	}
	whole, err := s.complete(ctx)
	if err != nil {
		return err
	}
	if !whole {
		if err := notRestored(leaf); err != nil {
			return err
		}
		return &exit{exitConfig, errors.New("chancery init was interrupted, or an older version made this CA; run chancery init once more with the same configuration, officers and quorum")}
	}
	return s.buildCA(ctx)
}
