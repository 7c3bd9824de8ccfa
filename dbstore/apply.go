package dbstore

import (
	"fmt"

	"chancery/audit"
)

// Apply implements [audit.Tx]: it finds the room that knows the projection.
func (t *tx) Apply(p audit.Projection, at *audit.StoredLeaf) error {
	if ok, err := t.applyCA(p, at); ok {
		return err
	}
	if ok, err := t.applyOpening(p, at); ok {
		return err
	}
	if ok, err := t.applyKeys(p, at); ok {
		return err
	}
	if ok, err := t.applyRestore(p, at); ok {
		return err
	}
	if ok, err := t.applyBackup(p, at); ok {
		return err
	}
	if ok, err := t.applyShares(p); ok {
		return err
	}
	if ok, err := t.applySigning(p, at); ok {
		return err
	}
	if ok, err := t.applyAdmin(p, at); ok {
		return err
	}
	if ok, err := t.applySessions(p); ok {
		return err
	}
	if ok, err := t.applyACME(p); ok {
		return err
	}
	return fmt.Errorf("dbstore: no way to store a %T", p)
}
