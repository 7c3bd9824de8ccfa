package dbstore

import (
	"chancery/audit"
	"chancery/signing"
)

func (t *tx) applySigning(p audit.Projection, at *audit.StoredLeaf) (handled bool, err error) {
	s, ok := p.(signing.PutSignature)
	if !ok {
		return false, nil
	}
	_, err = t.exec("INSERT INTO document_signature (done, key_name, digest, signed_at, cms) VALUES (?, ?, ?, ?, ?)",
		int64(at.Index), s.Key, s.Digest[:], s.At.Unix(), s.CMS)
	return true, err
}
