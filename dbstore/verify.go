package dbstore

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"slices"
	"time"

	"gorm.io/gorm"

	"chancery/audit"
	"chancery/ca"
)

var _ audit.VerifySource = (*Store)(nil)

// each calls fn for every row of a query; fn scans it.
func (s *Store) each(ctx context.Context, fn func(*sql.Rows) error, query string, args ...any) error {
	rows, err := s.rodb.QueryContext(ctx, query, args...)
	if err != nil {
		return mapError(err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := fn(rows); err != nil {
			return mapError(err)
		}
	}
	return mapError(rows.Err())
}

// StoredLeaves implements [audit.VerifySource].
func (s *Store) StoredLeaves(ctx context.Context, from, to uint64, fn func(audit.StoredLeaf) error) error {
	return s.each(ctx, func(r *sql.Rows) error {
		var l audit.StoredLeaf
		var closes sql.NullInt64
		if err := r.Scan(&l.Index, &l.Kind, &closes, &l.Bytes); err != nil {
			return err
		}
		l.Closes = audit.NoIndex
		if closes.Valid {
			l.Closes = uint64(closes.Int64)
		}
		return fn(l)
	}, "SELECT idx, kind, closes, leaf FROM ledger_leaf WHERE idx >= ? AND idx < ? ORDER BY idx", int64(from), int64(to))
}

// OpenRows implements [audit.VerifySource].
func (s *Store) OpenRows(ctx context.Context, fn func(uint64, string) error) error {
	return s.each(ctx, func(r *sql.Rows) error {
		var index int64
		var node string
		if err := r.Scan(&index, &node); err != nil {
			return err
		}
		return fn(uint64(index), node)
	}, "SELECT idx, node FROM ledger_open ORDER BY idx")
}

// Checkpoints implements [audit.VerifySource].
func (s *Store) Checkpoints(ctx context.Context, fn func(size uint64, body, note string) error) error {
	return s.checkpoints(ctx, fn, "SELECT size, body, note FROM ledger_checkpoint ORDER BY size")
}

func (s *Store) checkpoints(ctx context.Context, fn func(size uint64, body, note string) error, query string, args ...any) error {
	return s.each(ctx, func(r *sql.Rows) error {
		var size int64
		var body, note string
		if err := r.Scan(&size, &body, &note); err != nil {
			return err
		}
		return fn(uint64(size), body, note)
	}, query, args...)
}

// Artefacts implements [audit.VerifySource].
func (s *Store) Artefacts(ctx context.Context, from, to uint64, fn func(audit.Artefact) error) error {
	return s.each(ctx, func(rows *sql.Rows) error {
		var r certificateRow
		if err := rows.Scan(&r.Done, &r.Intent, &r.Issuer, &r.Serial, &r.Requester, &r.Names, &r.NotBefore, &r.NotAfter, &r.SpkiHash, &r.Der); err != nil {
			return err
		}
		a := audit.Artefact{Done: uint64(r.Done), Intent: uint64(r.Intent), Serial: r.Serial, Requester: r.Requester, Hash: hashOf(r.Der), Odd: "der"}
		copy(a.Issuer[:], r.Issuer)
		if c, err := x509.ParseCertificate(r.Der); err == nil {
			a.TBS, a.CA, a.Odd = hashOf(c.RawTBSCertificate), c.IsCA, oddColumn(r, c)
		}
		return fn(a)
	}, "SELECT done, intent, issuer, serial, requester, names, not_before, not_after, spki_hash, der FROM certificate WHERE done >= ? AND done < ? ORDER BY done", int64(from), int64(to))
}

// oddColumn names a column that does not say what the certificate says, or "".
func oddColumn(r certificateRow, c *x509.Certificate) string {
	spki := hashOf(c.RawSubjectPublicKeyInfo)
	switch {
	case r.NotBefore != c.NotBefore.Unix():
		return "not_before"
	case r.NotAfter != c.NotAfter.Unix():
		return "not_after"
	case string(r.SpkiHash) != string(spki[:]):
		return "spki_hash"
	}
	var have, want []string
	for _, n := range splitNames(r.Names) {
		if n.Kind == ca.DNS || n.Kind == ca.IP {
			have = append(have, n.String())
		}
	}
	for _, n := range c.DNSNames {
		want = append(want, ca.Name{Kind: ca.DNS, Value: n}.String())
	}
	for _, ip := range c.IPAddresses {
		want = append(want, ca.Name{Kind: ca.IP, Value: ip.String()}.String())
	}
	slices.Sort(have)
	slices.Sort(want)
	if !slices.Equal(have, want) {
		return "names"
	}
	return ""
}

// SerialRows implements [audit.VerifySource].
func (s *Store) SerialRows(ctx context.Context, fn func(audit.SerialRow) error) error {
	return s.each(ctx, func(r *sql.Rows) error {
		var row audit.SerialRow
		var issuer []byte
		if err := r.Scan(&issuer, &row.Serial, &row.Intent, &row.Evidence); err != nil {
			return err
		}
		row.Issuer = hash32(issuer)
		return fn(row)
	}, "SELECT issuer, serial, intent, evidence FROM serial")
}

// RevocationRows implements [audit.VerifySource].
func (s *Store) RevocationRows(ctx context.Context, fn func(audit.RevocationRow) error) error {
	return s.each(ctx, func(r *sql.Rows) error {
		var row audit.RevocationRow
		var issuer []byte
		var reason ca.Reason
		var leaf, at, notAfter int64
		var expires sql.NullInt64
		if err := r.Scan(&issuer, &row.Serial, &leaf, &reason, &at, &notAfter, &expires); err != nil {
			return err
		}
		row.Issuer, row.Leaf, row.Reason, row.At = hash32(issuer), uint64(leaf), reason.String(), time.Unix(at, 0)
		row.NotAfter, row.Expires = time.Unix(notAfter, 0), time.Unix(expires.Int64, 0)
		return fn(row)
	}, `SELECT r.issuer, r.serial, r.leaf, r.reason, r.revoked_at, r.not_after, COALESCE(c.not_after, s.not_after) FROM revocation r
		LEFT JOIN certificate c ON c.issuer = r.issuer AND c.serial = r.serial
		LEFT JOIN serial s ON s.issuer = r.issuer AND s.serial = r.serial`)
}

// IssuerRows implements [audit.VerifySource].
func (s *Store) IssuerRows(ctx context.Context, fn func(audit.IssuerRow) error) error {
	recs, err := s.Issuers(ctx)
	for _, r := range recs {
		if err := fn(audit.IssuerRow{Name: r.Name, SPKI: r.SPKI, DER: r.DER, CRLNumber: r.CRLNumber, CRLThis: r.CRLThis, CRLCovers: r.CRLCovers, CRL: r.CRL}); err != nil {
			return err
		}
	}
	return err
}

// KeyRows implements [audit.VerifySource].
func (s *Store) KeyRows(ctx context.Context, fn func(audit.KeyRow) error) error {
	keys, err := s.Keys(ctx)
	for _, k := range keys {
		if err := fn(audit.KeyRow{Name: k.Name, Purpose: k.Purpose, SPKI: k.SPKI, State: string(k.State)}); err != nil {
			return err
		}
	}
	return err
}

// MemberRows implements [audit.VerifySource].
func (s *Store) MemberRows(ctx context.Context, fn func(audit.MemberRow) error) error {
	members, err := s.Members(ctx)
	for _, m := range members {
		if err := fn(audit.MemberRow{Name: m.Name, Serial: m.Serial, Role: string(m.Role), Standing: string(m.Standing)}); err != nil {
			return err
		}
	}
	return err
}

// RecipientRows implements [audit.VerifySource].
func (s *Store) RecipientRows(ctx context.Context, fn func(audit.RecipientRow) error) error {
	all, err := s.Recipients(ctx)
	for _, r := range all {
		if err := fn(audit.RecipientRow{Name: r.Name, Serial: r.Serial, Leaf: r.Leaf, Removed: r.Removed}); err != nil {
			return err
		}
	}
	return err
}

// BackupRows implements [audit.VerifySource].
func (s *Store) BackupRows(ctx context.Context, fn func(audit.BackupRow) error) error {
	return s.each(ctx, func(rows *sql.Rows) error {
		var b audit.BackupRow
		var hash, blob []byte
		if err := rows.Scan(&hash, &b.Recipient, &blob, &b.Leaf); err != nil {
			return err
		}
		b.Key, b.Blob = hash32(hash), sha256.Sum256(blob)
		return fn(b)
	}, "SELECT k.spki_hash, b.recipient, b.blob, b.leaf FROM hsm_backup b LEFT JOIN hsm_key k ON k.id = b.key_id ORDER BY b.leaf")
}

// Beyond implements [audit.VerifySource].
func (s *Store) Beyond(ctx context.Context, size uint64) (n int, err error) {
	err = s.rodb.QueryRowContext(ctx, `SELECT (SELECT count(*) FROM ledger_leaf WHERE idx >= ? OR idx < 0)
		+ (SELECT count(*) FROM ledger_tile WHERE n < 0 OR level < 0 OR level > 6 OR ((n + 1) << (8 * (level + 1))) > ?)`, int64(size), int64(size)).Scan(&n)
	return n, mapError(err)
}

func hash32(b []byte) (h [32]byte) {
	copy(h[:], b)
	return h
}

var _ audit.SweepSource = (*Store)(nil)

// Snapshot implements [audit.SweepSource].
func (s *Store) Snapshot(ctx context.Context, fn func(audit.SweepSource) error) error {
	return s.rodb.snapshot(ctx, func(snap reads) error {
		ro := s.ro.Session(&gorm.Session{NewDB: true, Context: ctx})
		ro.Statement.ConnPool = snap
		return fn(&Store{dialect: s.dialect, ro: ro, rodb: snap})
	})
}

// CheckpointsBetween implements [audit.SweepSource].
func (s *Store) CheckpointsBetween(ctx context.Context, from, to uint64, fn func(size uint64, body, note string) error) error {
	return s.checkpoints(ctx, fn, "SELECT size, body, note FROM ledger_checkpoint WHERE size >= ? AND size <= ? ORDER BY size", int64(from), int64(to))
}

// Unreserved implements [audit.SweepSource].
func (s *Store) Unreserved(ctx context.Context, from, to uint64, fn func(done uint64, serial []byte) error) error {
	return s.each(ctx, func(r *sql.Rows) error {
		var done int64
		var serial []byte
		if err := r.Scan(&done, &serial); err != nil {
			return err
		}
		return fn(uint64(done), serial)
	}, `SELECT c.done, c.serial FROM certificate c LEFT JOIN serial s ON s.issuer = c.issuer AND s.serial = c.serial
		WHERE c.done >= ? AND c.done < ? AND (s.intent IS NULL OR s.intent <> c.intent) ORDER BY c.done`, int64(from), int64(to))
}
