package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"chancery/hsmstore"
)

const (
	backupEvery = 24 * time.Hour
	backupLook  = 10 * time.Minute
	backupsKept = 30 // manifests of each recipient
)

// backupJob makes the daily backups.
type backupJob struct {
	dir      string // hsm.backup_dir
	keys     backupKeys
	token    func(name string) (hsmstore.MemberConfig, error) // of a recipient
	manifest func(ctx context.Context, name string) (backedUp, error)
	log      *slog.Logger

	proved  map[string]time.Time // when all keys of a recipient last proved themselves
	refused map[string][32]byte  // SHA-256 of the PIN that a recipient's token did not take
}

// backupKeys is what the job asks of an hsmstore.Store.
type backupKeys interface {
	Recipients(ctx context.Context) ([]hsmstore.RecipientRecord, error)
	MissingBackups(ctx context.Context, name string) ([]string, error)
	VerifyBackup(ctx context.Context, name string) ([]hsmstore.BackupCheck, error)
}

// runBackups writes, once a day, a manifest for each recipient into hsm.backup_dir and
// has every key prove itself there, until ctx is done. What fails is logged as an alarm
// and tried again; a PIN that was refused is not, before it is another one: tokens lock.
func (s *server) runBackups(ctx context.Context) error {
	if s.cfg.HSM.BackupDir == "" {
		return nil
	}
	job := &backupJob{dir: s.cfg.HSM.BackupDir, keys: s.hsm, token: s.backupToken, manifest: s.makeManifest, log: s.log, proved: map[string]time.Time{}, refused: map[string][32]byte{}}
	for {
		if err := job.run(ctx, time.Now()); err != nil && ctx.Err() == nil {
			s.log.Error("ALARM: backup failed", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(backupLook):
		}
	}
}

// run does what is due.
func (j *backupJob) run(ctx context.Context, now time.Time) error {
	all, err := j.keys.Recipients(ctx)
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(r hsmstore.RecipientRecord) bool { return r.Removed })
	if len(all) == 0 {
		return errors.New("hsm.backup_dir is set, but no backup recipient is designated: chancery hsm backup NAME --designate")
	}
	if err := os.MkdirAll(j.dir, 0o700); err != nil {
		return fmt.Errorf("hsm.backup_dir: %w", err)
	}
	var errs []error
	for _, r := range all {
		fresh, err := j.write(ctx, r.Name, now)
		if err == nil && now.Sub(j.proved[r.Name]) >= backupEvery {
			if err = j.prove(ctx, r.Name); err == nil {
				j.proved[r.Name] = now
			}
		}
		if err == nil && fresh { // while anything is wrong the old ones stay
			err = j.prune(r.Name)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("recipient %s: %w", r.Name, err))
		}
	}
	return errors.Join(errs...)
}

// write makes a manifest unless there is a good one of this day.
func (j *backupJob) write(ctx context.Context, name string, now time.Time) (fresh bool, err error) {
	old, err := manifestsOf(j.dir, name)
	if err != nil {
		return false, err
	}
	for _, path := range slices.Backward(old) {
		m, err := readManifest(path)
		if err != nil || m.Made.After(now) {
			continue // damaged, or the clock was wrong: it counts for nothing
		}
		if now.Sub(m.Made) < backupEvery {
			return false, nil
		}
		break // the ones before it are older
	}
	m, err := j.manifest(ctx, name)
	if err != nil {
		return false, err
	}
	_, err = m.save(j.dir)
	return err == nil, err
}

// prune keeps the last ones.
func (j *backupJob) prune(name string) error {
	old, err := manifestsOf(j.dir, name)
	if err != nil {
		return err
	}
	for _, path := range old[:max(0, len(old)-backupsKept)] {
		// The proof goes last: a manifest that is there has one.
		if err := errors.Join(os.Remove(path), os.Remove(strings.TrimSuffix(path, manifestEnding)+proofEnding)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing old manifests: %w", err)
		}
	}
	return nil
}

// prove wants that a recipient has every key that it shall have, and that each
// would come back.
func (j *backupJob) prove(ctx context.Context, name string) error {
	missing, err := j.keys.MissingBackups(ctx, name)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		return fmt.Errorf("keys %s have no backup there; ask the officers: chancery hsm backup %s", strings.Join(missing, ", "), name)
	}
	cfg, err := j.token(name)
	if err != nil {
		return err
	}
	pin, err := cfg.PIN()
	if err != nil {
		return err
	}
	tried := sha256.Sum256([]byte(pin))
	if j.refused[name] == tried {
		return fmt.Errorf("%w: its token refused the PIN, which is not tried again before it is another one; correct hsm.backups", hsmstore.ErrPIN)
	}
	checks, err := j.keys.VerifyBackup(ctx, name)
	if errors.Is(err, hsmstore.ErrPIN) {
		j.refused[name] = tried
	}
	if err != nil {
		return fmt.Errorf("the keys could not be proved: %w", err)
	}
	if bad := failedChecks(checks); len(bad) > 0 {
		return fmt.Errorf("keys would not come back: %s", strings.Join(bad, "; "))
	}
	j.log.Info("every key of a backup has proved itself", "recipient", name, "keys", len(checks))
	return nil
}
