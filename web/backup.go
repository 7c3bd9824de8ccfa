package web

import (
	"context"
	"net/http"

	"github.com/labstack/echo/v4"

	"chancery/admin"
	"chancery/hsmstore"
)

// Backup is what the edge asks about backups. Errors are those of hsmstore.
type Backup interface {
	// Recipients lists them by name.
	Recipients(ctx context.Context) ([]BackupRecipient, error)
	// Candidate looks at a token that hsm.backups names.
	Candidate(ctx context.Context, name string) (admin.RecipientParameters, error)
	// Manifest records a manifest on the ledger and returns it with its proof.
	Manifest(ctx context.Context, name string) (BackupManifest, error)
	// Verify has every key of a recipient prove itself there.
	Verify(ctx context.Context, name string) ([]hsmstore.BackupCheck, error)
}

// BackupRecipient is a recipient in answers.
type BackupRecipient struct {
	Name    string            `json:"name"`
	Serial  string            `json:"serial"`
	Label   string            `json:"label"`
	Removed bool              `json:"removed"`  // it gets no more keys
	Keys    int               `json:"keys"`     // that it has
	Missing []string          `json:"missing"`  // keys that it shall have and has not
	LeftOut map[string]string `json:"left_out"` // keys that no backup holds, and why
}

// BackupManifest is a manifest with its proof.
type BackupManifest struct {
	Name     string `json:"name"`     // of the file, without ending
	Manifest []byte `json:"manifest"` // JSON
	Proof    []byte `json:"proof"`    // C2SP tlog-proof of the leaf that holds its SHA-256
}

type backupRecipients struct {
	Recipients []BackupRecipient `json:"recipients"`
}

type backupChecks struct {
	Keys []hsmstore.BackupCheck `json:"keys"`
}

// listBackups is GET /api/v1/hsm/backups.
func (s *Server) listBackups(c echo.Context) error {
	list, err := s.cfg.Backup.Recipients(c.Request().Context())
	if err != nil {
		return hsmProblem(err)
	}
	return writeJSON(c, http.StatusOK, backupRecipients{list})
}

// backupCandidate is GET /api/v1/hsm/backup-candidates/{name}: a configured token, as the
// parameters of a backup-recipient proposal.
func (s *Server) backupCandidate(c echo.Context) error {
	p, err := s.cfg.Backup.Candidate(c.Request().Context(), param(c, "name", ""))
	if err != nil {
		return hsmProblem(err)
	}
	return writeJSON(c, http.StatusOK, p)
}

// makeManifest is POST /api/v1/hsm/backups/{name}/manifest.
func (s *Server) makeManifest(c echo.Context) error {
	var body struct{}
	if err := readJSON(c, &body); err != nil {
		return err
	}
	ctx, cancel := unhurried(c)
	defer cancel()
	m, err := s.cfg.Backup.Manifest(ctx, param(c, "name", ""))
	if err != nil {
		return hsmProblem(err)
	}
	return writeJSON(c, http.StatusOK, m)
}

// verifyBackup is POST /api/v1/hsm/backups/{name}/verify.
func (s *Server) verifyBackup(c echo.Context) error {
	var body struct{}
	if err := readJSON(c, &body); err != nil {
		return err
	}
	ctx, cancel := unhurried(c)
	defer cancel()
	checks, err := s.cfg.Backup.Verify(ctx, param(c, "name", ""))
	if err != nil {
		return hsmProblem(err)
	}
	return writeJSON(c, http.StatusOK, backupChecks{checks})
}
