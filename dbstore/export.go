package dbstore

import (
	"context"
	"crypto/sha256"
	"database/sql"

	"chancery/audit"
)

// ExportCertificates calls fn for each certificate whose done leaf lies below size, in
// the order of their done leaves. fn must not ask the store anything.
func (s *Store) ExportCertificates(ctx context.Context, size uint64, fn func(done uint64, der []byte) error) error {
	return s.each(ctx, func(r *sql.Rows) error {
		var done int64
		var der []byte
		if err := r.Scan(&done, &der); err != nil {
			return err
		}
		return fn(uint64(done), der)
	}, "SELECT done, der FROM certificate WHERE done < ? ORDER BY done", int64(size))
}

// ExportOrphans calls fn for each intent to sign a certificate that was closed as an
// orphan below size, with the end of that certificate in seconds since 1970.
func (s *Store) ExportOrphans(ctx context.Context, size uint64, fn func(intent uint64, notAfter int64) error) error {
	return s.each(ctx, func(r *sql.Rows) error {
		var intent, notAfter int64
		if err := r.Scan(&intent, &notAfter); err != nil {
			return err
		}
		return fn(uint64(intent), notAfter)
	}, "SELECT s.intent, s.not_after FROM serial s JOIN ledger_leaf l ON l.closes = s.intent WHERE l.kind = ? AND l.idx < ? ORDER BY s.intent", int(audit.KindOrphan), int64(size))
}

// Evidence returns the record of what an intent to sign a certificate rests on, or an
// error that wraps audit.ErrNotFound if none was kept.
func (s *Store) Evidence(ctx context.Context, issuer [32]byte, serial []byte) (record []byte, err error) {
	err = s.rodb.QueryRowContext(ctx, "SELECT evidence FROM serial WHERE issuer = ? AND serial = ?", issuer[:], serial).Scan(&record)
	if err == nil && record == nil {
		return nil, audit.ErrNotFound
	}
	return record, mapError(err)
}

// ExportEvidence calls fn for the record of each intent below size, in their order.
func (s *Store) ExportEvidence(ctx context.Context, size uint64, fn func(intent uint64, record []byte) error) error {
	return s.each(ctx, func(r *sql.Rows) error {
		var intent int64
		var record []byte
		if err := r.Scan(&intent, &record); err != nil {
			return err
		}
		return fn(uint64(intent), record)
	}, "SELECT intent, evidence FROM serial WHERE intent < ? AND evidence IS NOT NULL ORDER BY intent", int64(size))
}

// OrderOfSerial returns the ACME order that led to a certificate, with the SHA-256 of its
// CSR, or an error that wraps audit.ErrNotFound. serial is hexadecimal, as the order has it.
func (s *Store) OrderOfSerial(ctx context.Context, serial string) (order string, csr [32]byte, err error) {
	err = audit.ErrNotFound
	qerr := s.each(ctx, func(r *sql.Rows) error {
		var der []byte
		if serr := r.Scan(&order, &der); serr != nil {
			return serr
		}
		csr, err = sha256.Sum256(der), nil
		return nil
	}, "SELECT id, csr FROM acme_order WHERE serial = ? AND status = 'valid' AND csr IS NOT NULL", serial)
	if qerr != nil {
		err = qerr
	}
	return order, csr, err
}
