package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/hsmstore"
)

// backupFaults stands for a cluster whose backups fail in ways that tokens cannot be
// brought to in a test.
type backupFaults struct {
	recipients []hsmstore.RecipientRecord
	missing    []string
	err        error
	tries      int
}

func (f *backupFaults) Recipients(context.Context) ([]hsmstore.RecipientRecord, error) {
	return f.recipients, nil
}
func (f *backupFaults) MissingBackups(context.Context, string) ([]string, error) {
	return f.missing, nil
}
func (f *backupFaults) VerifyBackup(context.Context, string) ([]hsmstore.BackupCheck, error) {
	f.tries++
	return nil, f.err
}

func newBackupJob(t *testing.T, f *backupFaults, pin *string) *backupJob {
	made := 0
	return &backupJob{dir: t.TempDir(), keys: f, log: slog.New(slog.DiscardHandler), proved: map[string]time.Time{}, refused: map[string][32]byte{},
		token: func(string) (hsmstore.MemberConfig, error) {
			return hsmstore.MemberConfig{PIN: func() (string, error) { return *pin, nil }}, nil
		},
		manifest: func(context.Context, string) (backedUp, error) {
			made++
			return backedUp{Name: fmt.Sprintf("far-20260101T0000%02dZ-%08x", made%60, made), Manifest: []byte("{}"), Proof: []byte("p")}, nil
		}}
}

// A PIN that the token refused is not tried again before it is another one: tokens lock.
func TestBackupJobWrongPIN(t *testing.T) {
	f := &backupFaults{recipients: []hsmstore.RecipientRecord{{Name: "far"}}, err: fmt.Errorf("login: %w", hsmstore.ErrPIN)}
	pin := "wrong"
	j := newBackupJob(t, f, &pin)
	for range 5 {
		if err := j.run(t.Context(), time.Now()); !errors.Is(err, hsmstore.ErrPIN) {
			t.Errorf("no alarm: %v", err)
		}
	}
	if f.tries != 1 {
		t.Errorf("a wrong PIN was tried %d times", f.tries)
	}
	pin, f.err = "right", nil
	if err := j.run(t.Context(), time.Now()); err != nil || f.tries != 2 {
		t.Errorf("with another PIN: %v, %d tries", err, f.tries)
	}
}

// Without a recipient, and with a file that a wrong clock or a crash left, there is an
// alarm or a manifest, never silence; while something is wrong no manifest goes.
func TestBackupJobIsNotSilent(t *testing.T) {
	f := &backupFaults{}
	pin := "1234"
	j := newBackupJob(t, f, &pin)
	if err := j.run(t.Context(), time.Now()); err == nil || !strings.Contains(err.Error(), "--designate") {
		t.Errorf("nobody is designated: %v", err)
	}
	f.recipients = []hsmstore.RecipientRecord{{Name: "far"}}
	future := filepath.Join(j.dir, "far-20990101T000000Z-00000000"+manifestEnding)
	if err := os.WriteFile(future, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f.missing = []string{"late"}
	for range backupsKept + 5 {
		if err := j.run(t.Context(), time.Now()); err == nil || !strings.Contains(err.Error(), "late") {
			t.Errorf("a key without a backup: %v", err)
		}
	}
	if all, err := manifestsOf(j.dir, "far"); err != nil || len(all) != backupsKept+6 {
		t.Errorf("%d manifests: %v", len(all), err)
	}
	f.missing = nil
	if err := j.run(t.Context(), time.Now()); err != nil {
		t.Error(err)
	}
	if all, err := manifestsOf(j.dir, "far"); err != nil || len(all) != backupsKept {
		t.Errorf("%d manifests are kept: %v", len(all), err)
	}
}

// The manifests of one recipient are not those of another whose name begins alike.
func TestManifestsOf(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"far-20261125T000000Z-00000001", "far-abcdefghijklmnop-20261125T000000Z-00000002", "far-20261124T000000Z-00000003"} {
		if _, err := (backedUp{Name: name, Manifest: []byte("m"), Proof: []byte("p")}).save(dir); err != nil {
			t.Fatal(err)
		}
	}
	got, err := manifestsOf(dir, "far")
	if err != nil || len(got) != 2 || !strings.Contains(got[0], "20261124") {
		t.Errorf("%v %v", got, err)
	}
}
