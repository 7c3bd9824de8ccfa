package dbstore

import (
	"chancery/audit"
	"chancery/ca"
)

// applyRestore carries out what a new ledger takes over from a predecessor.
func (t *tx) applyRestore(p audit.Projection, at *audit.StoredLeaf) (handled bool, err error) {
	switch p := p.(type) {
	case ca.PutRestoredIssuer:
		_, err = t.exec("INSERT INTO issuer (name, spki_hash, key_name, parent, der, crl_number, crl_this, crl_next, crl_cover) VALUES (?, ?, ?, ?, ?, ?, ?, 0, 0)",
			p.Name, p.SPKI[:], p.KeyName, p.Parent, p.DER, int64(p.CRLNumber), p.CRLThis.Unix())
	case ca.CarryRevocation:
		err = t.putRevocation(ca.RevokeSerial{Issuer: p.Issuer, Serial: p.Serial, Reason: p.Reason, At: p.At}, p.NotAfter.Unix(), at)
	default:
		return false, nil
	}
	return true, err
}
