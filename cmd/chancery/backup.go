package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"chancery/admin"
	"chancery/audit"
	"chancery/hsmstore"
	"chancery/web"
)

// backupToken is where the token of a recipient is now: the configuration is read anew,
// so that a running server finds it.
func (s *server) backupToken(name string) (hsmstore.MemberConfig, error) {
	cfg := s.cfg
	if s.reload != nil {
		fresh, err := s.reload()
		if err != nil {
			return hsmstore.MemberConfig{}, fmt.Errorf("%w: %w", hsmstore.ErrStanding, err)
		}
		cfg = fresh
	}
	list, err := cfg.backups()
	if err != nil {
		return hsmstore.MemberConfig{}, fmt.Errorf("%w: %w", hsmstore.ErrStanding, err)
	}
	for _, m := range list {
		if m.Name == name {
			return m, nil
		}
	}
	return hsmstore.MemberConfig{}, fmt.Errorf("%w: hsm.backups of the server's configuration has no %q; add it there (name, module, token, pin, so_pin), no restart is needed", hsmstore.ErrNoRecipient, audit.Text(name, 64))
}

// backups gives the typed form of the backup recipients.
func (c *Config) backups() ([]hsmstore.MemberConfig, error) {
	for i, m := range c.HSM.Backups {
		at := fmt.Sprintf("config: hsm.backups[%d] (%s)", i, m.Name)
		switch {
		case m.SOPIN == sharesPIN:
			return nil, &exit{exitConfig, fmt.Errorf("%s: so_pin: the SO PIN of a backup token cannot be held in shares; allowed: file:PATH, env:NAME, credential:NAME, for the time of a ceremony", at)}
		case m.Replication != "" || m.Role != "" || m.WeakUnwrap || m.Sessions != 0:
			return nil, &exit{exitConfig, fmt.Errorf("%s: replication, role, sessions and weak_unwrap are for members; a backup token needs a module that keeps unwrap templates", at)}
		case slices.ContainsFunc(c.HSM.Backups[:i], func(o MemberConfig) bool { return o.Name == m.Name }):
			return nil, &exit{exitConfig, fmt.Errorf("%s: the name is there twice", at)}
		}
	}
	return tokens("backups", c.HSM.Backups, func(name string) string { return c.workerJournal("backup-" + name) })
}

// backupHolders names who has a key in a backup.
func (s *server) backupHolders(key hsmstore.KeyID) []string {
	ctx, cancel := context.WithTimeout(context.Background(), inspectTime)
	defer cancel()
	names, err := s.db.BackupHolders(ctx, key)
	if err != nil {
		s.log.Error("backups of a key could not be read", "err", err)
		return []string{"unknown: " + audit.Text(err.Error(), 100)}
	}
	return names
}

// backups is what the HTTP edge asks about them.
type backups struct{ s *server }

func (b backups) Recipients(ctx context.Context) ([]web.BackupRecipient, error) {
	all, err := b.s.hsm.Recipients(ctx)
	if err != nil {
		return nil, err
	}
	out := []web.BackupRecipient{}
	for _, r := range all {
		v := web.BackupRecipient{Name: r.Name, Serial: r.Serial, Label: r.Label, Removed: r.Removed, Missing: []string{}, LeftOut: b.s.hsm.LeftOut()}
		if !r.Removed {
			missing, err := b.s.hsm.MissingBackups(ctx, r.Name)
			if err != nil {
				return nil, err
			}
			keys, err := b.s.hsm.BackupKeys(ctx, r.Name)
			if err != nil {
				return nil, err
			}
			v.Keys, v.Missing = len(keys), append(v.Missing, missing...)
		}
		out = append(out, v)
	}
	return out, nil
}

func (b backups) Candidate(ctx context.Context, name string) (admin.RecipientParameters, error) {
	_, p, err := b.s.recipientCandidate(ctx, name)
	return p, err
}

func (b backups) Manifest(ctx context.Context, name string) (web.BackupManifest, error) {
	m, err := b.s.makeManifest(ctx, name)
	return web.BackupManifest(m), err
}

func (b backups) Verify(ctx context.Context, name string) ([]hsmstore.BackupCheck, error) {
	return b.s.hsm.VerifyBackup(ctx, name)
}

// recipientCandidate looks at the token that hsm.backups names.
func (s *server) recipientCandidate(ctx context.Context, name string) (cfg hsmstore.MemberConfig, p admin.RecipientParameters, err error) {
	if cfg, err = s.backupToken(name); err != nil {
		return cfg, p, err
	}
	cand, err := s.hsm.InspectRecipient(ctx, cfg)
	if err == nil && !s.dev && strings.Contains(cand.Label, devTokenLabel) {
		err = fmt.Errorf("%w: the token of backup recipient %s was made by chancery dev, whose PINs lie beside it; make one for production", hsmstore.ErrToken, name)
	}
	return cfg, admin.RecipientParameters{Name: name, Serial: cand.Serial}, err
}

// backupActsOf derives the acts of actions about backups; nil for others.
func backupActsOf(action string, parameters []byte) ([]string, error) {
	switch action {
	case admin.BackupRecipient, admin.RemoveRecipient:
		p, err := parametersOf[admin.RecipientParameters](parameters)
		if action == admin.RemoveRecipient {
			return []string{admin.RemoveRecipientAct(p.Name, p.Serial)}, err
		}
		return []string{admin.BackupRecipientAct(p.Name, p.Serial)}, err
	case admin.Backup:
		p, err := parametersOf[admin.BackupParameters](parameters)
		return []string{admin.BackupAct(p.Recipient, p.Serial)}, err
	case admin.RetireCluster:
		_, err := parametersOf[admin.RetireParameters](parameters)
		return []string{admin.RetireAct()}, err
	case admin.Restore:
		p, err := parametersOf[admin.RestoreParameters](parameters)
		if err != nil {
			return nil, err
		}
		b, err := hex.DecodeString(p.Manifest)
		if err != nil || len(b) != 32 {
			return nil, fmt.Errorf("manifest_sha256 %q must be the 64 hex digits of the SHA-256 of the manifest", audit.Text(p.Manifest, 80))
		}
		return []string{admin.RestoreAct([32]byte(b))}, nil
	}
	return nil, nil
}

func (s *server) designateActs(parameters []byte) ([]string, error) {
	p, err := parametersOf[admin.RecipientParameters](parameters)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), inspectTime)
	defer cancel()
	_, now, err := s.recipientCandidate(ctx, p.Name)
	if err != nil {
		return nil, err
	}
	if now != p {
		return nil, fmt.Errorf("serial: the token of backup recipient %s is %s now, the proposal says %s; ask for it again", p.Name, now.Serial, audit.Text(p.Serial, 64))
	}
	return backupActsOf(admin.BackupRecipient, parameters)
}

func (s *server) designate(ctx context.Context, g *admin.Grant, parameters []byte) (any, error) {
	p, err := parametersOf[admin.RecipientParameters](parameters)
	if err != nil {
		return nil, err
	}
	cfg, now, err := s.recipientCandidate(ctx, p.Name)
	if err == nil && now != p {
		err = fmt.Errorf("%w: the officers approved token %s, %s is there", hsmstore.ErrToken, p.Serial, now.Serial)
	}
	if err != nil {
		return nil, err
	}
	rec, err := s.hsm.Designate(ctx, g, cfg)
	if err != nil {
		return nil, err
	}
	return map[string]any{"recipient": rec.Name, "serial": rec.Serial, "next": "chancery hsm backup " + rec.Name}, nil
}

func (s *server) removeRecipientActs(parameters []byte) ([]string, error) {
	p, err := parametersOf[admin.RecipientParameters](parameters)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), inspectTime)
	defer cancel()
	all, err := s.hsm.Recipients(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range all {
		if r.Name == p.Name && r.Serial == p.Serial && !r.Removed {
			return backupActsOf(admin.RemoveRecipient, parameters)
		}
	}
	return nil, fmt.Errorf("name: there is no backup recipient %q with token %q", audit.Text(p.Name, 64), audit.Text(p.Serial, 64))
}

func (s *server) removeRecipient(ctx context.Context, g *admin.Grant, parameters []byte) (any, error) {
	p, err := parametersOf[admin.RecipientParameters](parameters)
	if err != nil {
		return nil, err
	}
	return map[string]string{"removed": p.Name}, s.hsm.RemoveRecipient(ctx, g, p.Name)
}

func (s *server) backupActs(parameters []byte) ([]string, error) {
	p, err := parametersOf[admin.BackupParameters](parameters)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), inspectTime)
	defer cancel()
	missing, err := s.hsm.MissingBackups(ctx, p.Recipient)
	if err != nil {
		return nil, err
	}
	all, err := s.hsm.Recipients(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range all {
		if r.Name == p.Recipient && r.Serial != p.Serial {
			return nil, fmt.Errorf("serial: backup recipient %s is token %s, the proposal says %s", r.Name, r.Serial, audit.Text(p.Serial, 64))
		}
	}
	if len(missing) == 0 {
		return nil, fmt.Errorf("recipient: %s has every key already; its manifest needs no officers", p.Recipient)
	}
	return backupActsOf(admin.Backup, parameters)
}

func (s *server) backup(ctx context.Context, g *admin.Grant, parameters []byte) (any, error) {
	p, err := parametersOf[admin.BackupParameters](parameters)
	if err != nil {
		return nil, err
	}
	keys, err := s.hsm.Backup(ctx, g, p.Recipient)
	if err != nil {
		return nil, err
	}
	return map[string]any{"recipient": p.Recipient, "keys": keys}, nil
}

func (s *server) retireActs(parameters []byte) ([]string, error) {
	return backupActsOf(admin.RetireCluster, parameters)
}

func (s *server) retire(ctx context.Context, g *admin.Grant, parameters []byte) (any, error) {
	p, err := parametersOf[admin.RetireParameters](parameters)
	if err != nil {
		return nil, err
	}
	if err := s.hsm.Retire(ctx, g, p.Reason, s.checkpoint.Sign); err != nil {
		return nil, err
	}
	return map[string]string{"retired": s.ledger.Origin()}, nil
}

// save writes manifest and proof: a manifest that is there has its proof beside it.
func (b backedUp) save(dir string) (path string, err error) {
	if b.Name != filepath.Base(b.Name) || strings.HasPrefix(b.Name, ".") {
		return "", &exit{exitVerify, fmt.Errorf("the manifest has the name %q", b.Name)}
	}
	path = filepath.Join(dir, b.Name+manifestEnding)
	if err := writeFile(filepath.Join(dir, b.Name+proofEnding), b.Proof, 0o600); err != nil {
		return "", fmt.Errorf("writing the proof of a manifest: %w", err)
	}
	if err := writeFile(path, b.Manifest, 0o600); err != nil {
		return "", fmt.Errorf("writing a manifest: %w", err)
	}
	return path, nil
}

// manifestsOf are a recipient's manifests in a folder, oldest first.
func manifestsOf(dir, name string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("hsm.backup_dir: %w", err)
	}
	var out []string
	for _, e := range entries { // sorted by name, which holds the time
		rest, ok := strings.CutPrefix(e.Name(), name+"-")
		at, _, cut := strings.Cut(rest, "-")
		_, err := time.Parse("20060102T150405Z", at)
		if ok && cut && err == nil && strings.HasSuffix(rest, manifestEnding) {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	return out, nil
}
