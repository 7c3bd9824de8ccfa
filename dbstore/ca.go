package dbstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"time"

	"gorm.io/gorm"

	"chancery/audit"
	"chancery/ca"
	"chancery/hsmstore"
)

var _ ca.Storage = (*Store)(nil)

func (t *tx) applyCA(p audit.Projection, at *audit.StoredLeaf) (handled bool, err error) {
	switch p := p.(type) {
	case ca.ReserveSerial:
		_, err = t.exec("INSERT INTO serial (issuer, serial, intent, not_after, evidence) VALUES (?, ?, ?, ?, ?)", p.Issuer[:], p.Serial, int64(at.Index), p.NotAfter.Unix(), p.Evidence)
		if errors.Is(err, audit.ErrExists) {
			err = fmt.Errorf("%w: %w", ca.ErrSerialTaken, err)
		}
	case ca.PutCertificate:
		_, err = t.exec("INSERT INTO certificate (issuer, serial, done, intent, profile, requester, names, not_before, not_after, spki_hash, der) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
			p.Issuer[:], p.Serial, int64(at.Index), int64(p.Intent), p.Profile, p.Requester, joinNames(p.Names), p.NotBefore.Unix(), p.NotAfter.Unix(), p.SPKI[:], p.DER)
	case ca.PutIssuer:
		_, err = t.exec("INSERT INTO issuer (name, spki_hash, key_name, parent, der, crl_number, crl_this, crl_next, crl_cover) VALUES (?, ?, ?, ?, ?, 0, 0, 0, 0)",
			p.Name, p.SPKI[:], p.KeyName, p.Parent, p.DER)
	case ca.RevokeSerial:
		err = t.revoke(p, at)
	case hsmstore.Orphaned:
		err = t.revokeOrphan(p, at)
	case ca.BeginCRL:
		err = t.cas("UPDATE issuer SET crl_number = ?, crl_this = ? WHERE spki_hash = ? AND crl_number < ? AND crl_this < ?",
			int64(p.Scope.Number), p.Scope.ThisUpdate.Unix(), p.Issuer[:], int64(p.Scope.Number), p.Scope.ThisUpdate.Unix())
	case ca.PutCRL:
		err = t.cas("UPDATE issuer SET crl = ?, crl_cover = ?, crl_next = ? WHERE spki_hash = ? AND crl_number = ?",
			p.DER, int64(p.Covers), p.NextUpdate.Unix(), p.Issuer[:], int64(p.Number))
	case ca.PutSetting:
		_, err = t.exec("INSERT INTO setting (name, value) VALUES (?, ?)", p.Name, p.Value)
	default:
		return false, nil
	}
	return true, err
}

// cas runs an update that must change exactly one row.
func (t *tx) cas(query string, args ...any) error {
	n, err := t.exec(query, args...)
	if err == nil && n != 1 {
		err = audit.ErrConflict
	}
	return err
}

func (t *tx) revoke(p ca.RevokeSerial, at *audit.StoredLeaf) error {
	var notAfter int64
	if err := t.row([]any{&notAfter}, "SELECT not_after FROM certificate WHERE issuer = ? AND serial = ?", p.Issuer[:], p.Serial); err != nil {
		return err
	}
	return t.putRevocation(p, notAfter, at)
}

func (t *tx) putRevocation(p ca.RevokeSerial, notAfter int64, at *audit.StoredLeaf) error {
	if p.Reason == ca.KeyCompromise {
		n, err := t.exec("UPDATE revocation SET reason = ?, leaf = ? WHERE issuer = ? AND serial = ? AND reason <> ?",
			int(p.Reason), int64(at.Index), p.Issuer[:], p.Serial, int(p.Reason))
		if err != nil || n == 1 {
			return err
		}
	}
	_, err := t.exec("INSERT INTO revocation (issuer, serial, leaf, reason, revoked_at, not_after) VALUES (?, ?, ?, ?, ?, ?)",
		p.Issuer[:], p.Serial, int64(at.Index), int(p.Reason), p.At.Unix(), notAfter)
	return err
}

// revokeOrphan puts a serial on the CRL whose certificate may exist although nobody
// ever got it. Intents of issuers' own certificates reserve a serial as well. One that is
// revoked already stays as it is: else the intent could never be closed.
func (t *tx) revokeOrphan(p hsmstore.Orphaned, at *audit.StoredLeaf) error {
	var notAfter int64
	err := t.row([]any{&notAfter}, "SELECT not_after FROM serial WHERE issuer = ? AND serial = ? AND intent = ?", p.Issuer[:], p.Serial, int64(p.Intent))
	if errors.Is(err, audit.ErrNotFound) {
		return fmt.Errorf("orphaned intent %d has no reserved serial: %w", p.Intent, audit.ErrTampered)
	}
	if err != nil {
		return err
	}
	_, err = t.exec("INSERT INTO revocation (issuer, serial, leaf, reason, revoked_at, not_after) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (issuer, serial) DO NOTHING",
		p.Issuer[:], p.Serial, int64(at.Index), int(ca.Unspecified), p.At.Unix(), notAfter)
	return err
}

func hashOf(b []byte) [32]byte { return sha256.Sum256(b) }

func joinNames(ns []ca.Name) string {
	s := make([]string, len(ns))
	for i, n := range ns {
		s[i] = n.String()
	}
	return strings.Join(s, ",")
}

func splitNames(s string) []ca.Name {
	var out []ca.Name
	for part := range strings.SplitSeq(s, ",") {
		if kind, value, ok := strings.Cut(part, ":"); ok {
			out = append(out, ca.Name{Kind: ca.NameKind(kind), Value: value})
		}
	}
	return out
}

type issuerRow struct {
	Name      string `gorm:"primaryKey"`
	SpkiHash  []byte
	KeyName   string
	Parent    string
	Der       []byte
	CrlNumber int64
	CrlThis   int64
	CrlNext   int64
	CrlCover  int64
	Crl       []byte
}

func (issuerRow) TableName() string { return "issuer" }

// Issuers implements [ca.Storage].
func (s *Store) Issuers(ctx context.Context) ([]ca.IssuerRecord, error) {
	var rows []issuerRow
	if err := s.ro.WithContext(ctx).Order("name").Find(&rows).Error; err != nil {
		return nil, mapError(err)
	}
	out := make([]ca.IssuerRecord, len(rows))
	for i, r := range rows {
		out[i] = ca.IssuerRecord{Name: r.Name, KeyName: r.KeyName, Parent: r.Parent, DER: r.Der, CRLNumber: uint64(r.CrlNumber),
			CRLThis: time.Unix(r.CrlThis, 0).UTC(), CRLNext: time.Unix(r.CrlNext, 0).UTC(), CRLCovers: uint64(r.CrlCover), CRL: r.Crl}
		copy(out[i].SPKI[:], r.SpkiHash)
	}
	return out, nil
}

type certificateRow struct {
	Issuer    []byte `gorm:"primaryKey"`
	Serial    []byte `gorm:"primaryKey"`
	Done      int64
	Intent    int64
	Profile   string
	Requester string
	Names     string
	NotBefore int64
	NotAfter  int64
	SpkiHash  []byte
	Der       []byte
	// of the revocation, if there is one
	Reason    *int   `gorm:"->"`
	RevokedAt *int64 `gorm:"->"`
}

func (certificateRow) TableName() string { return "certificate" }

func (r certificateRow) stored() ca.StoredCertificate {
	c := ca.StoredCertificate{Done: uint64(r.Done), PutCertificate: ca.PutCertificate{Serial: r.Serial, Intent: uint64(r.Intent), Profile: r.Profile,
		Requester: r.Requester, Names: splitNames(r.Names), NotBefore: time.Unix(r.NotBefore, 0).UTC(), NotAfter: time.Unix(r.NotAfter, 0).UTC(), DER: r.Der}}
	copy(c.Issuer[:], r.Issuer)
	copy(c.SPKI[:], r.SpkiHash)
	if r.Reason != nil && r.RevokedAt != nil {
		c.Revoked = &ca.Revocation{Reason: ca.Reason(*r.Reason), At: time.Unix(*r.RevokedAt, 0).UTC()}
	}
	return c
}

func (s *Store) certificates(ctx context.Context) *gorm.DB {
	return s.ro.WithContext(ctx).Model(&certificateRow{}).Select("certificate.*, revocation.reason, revocation.revoked_at").
		Joins("LEFT JOIN revocation ON revocation.issuer = certificate.issuer AND revocation.serial = certificate.serial")
}

// Certificate implements [ca.Storage].
func (s *Store) Certificate(ctx context.Context, issuer [32]byte, serial []byte) (*ca.StoredCertificate, error) {
	var r certificateRow
	if err := s.certificates(ctx).Where("certificate.issuer = ? AND certificate.serial = ?", issuer[:], serial).Take(&r).Error; err != nil {
		return nil, mapError(err)
	}
	c := r.stored()
	return &c, nil
}

// CertificateOfKey implements [ca.Storage].
func (s *Store) CertificateOfKey(ctx context.Context, spki [32]byte, profile string) (*ca.StoredCertificate, error) {
	var r certificateRow
	err := s.certificates(ctx).Where("certificate.spki_hash = ? AND certificate.profile = ? AND revocation.serial IS NULL", spki[:], profile).
		Order("certificate.done DESC").Take(&r).Error
	if err != nil {
		return nil, mapError(err)
	}
	c := r.stored()
	return &c, nil
}

// Certificates implements [ca.Storage].
func (s *Store) Certificates(ctx context.Context, q ca.Query) ([]ca.StoredCertificate, error) {
	db := s.certificates(ctx).Order("certificate.done DESC").Limit(q.Limit)
	if q.Before > 0 {
		db = db.Where("certificate.done < ?", int64(q.Before))
	}
	if q.Name != "" {
		db = db.Where("certificate.names LIKE ? ESCAPE '\\'", "%"+strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`).Replace(q.Name)+"%")
	}
	var rows []certificateRow
	if err := db.Find(&rows).Error; err != nil {
		return nil, mapError(err)
	}
	out := make([]ca.StoredCertificate, len(rows))
	for i, r := range rows {
		out[i] = r.stored()
	}
	return out, nil
}

// Revocations implements [ca.Storage].
func (s *Store) Revocations(ctx context.Context, issuer [32]byte, at time.Time) (covers uint64, revoked []ca.RevokedSerial, err error) {
	err = s.rodb.snapshot(ctx, func(snap reads) error {
		if err := snap.QueryRowContext(ctx, "SELECT size FROM ledger_head WHERE id = 1").Scan(&covers); err != nil {
			return mapError(err)
		}
		rows, err := snap.QueryContext(ctx, "SELECT serial, reason, revoked_at FROM revocation WHERE issuer = ? AND not_after >= ? ORDER BY revoked_at, serial", issuer[:], at.Unix())
		if err != nil {
			return mapError(err)
		}
		defer rows.Close()
		for rows.Next() {
			var r ca.RevokedSerial
			var at int64
			if err := rows.Scan(&r.Serial, &r.Reason, &at); err != nil {
				return mapError(err)
			}
			r.At = time.Unix(at, 0).UTC()
			revoked = append(revoked, r)
		}
		return mapError(rows.Err())
	})
	return covers, revoked, err
}

// Setting implements [ca.Storage].
func (s *Store) Setting(ctx context.Context, name string) ([]byte, error) {
	var v []byte
	err := s.rodb.QueryRowContext(ctx, "SELECT value FROM setting WHERE name = ?", name).Scan(&v)
	return v, mapError(err)
}
