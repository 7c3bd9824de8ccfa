package hsmstore

import (
	"os"
	"path/filepath"
	"testing"

	"chancery/admin"
)

// A worker is told once of each recovery: that of before does not let it sign small
// checkpoints again behind a later one.
func TestAttack_AUD_04_RecoveryToldAgain(t *testing.T) {
	c := newChamber(t)
	journal := filepath.Join(t.TempDir(), "hsm-m1.journal")
	account := journal + ".mandates"
	tell := func(nonce byte, size uint64, records int64) regrow {
		t.Helper()
		check(t, os.WriteFile(journal, make([]byte, records*journalRecord), 0o600))
		act := admin.RecoverAct(size, [32]byte{}, size, size+10)
		ceremony := &ceremony{open: openCeremony{mandate: mandate{Acts: []string{act}, Account: account, Warrant: c.warrant(t, nonce, act)}}}
		_, err := ceremony.recover(recovery{Act: act, Size: size})
		check(t, err)
		a, err := readAccount(account)
		check(t, err)
		return a.regrow
	}
	if got := tell(1, 100, 51); got != (regrow{100, 50}) {
		t.Errorf("first recovery: %+v", got)
	}
	second := tell(2, 90, 71)
	if second != (regrow{90, 70}) {
		t.Errorf("second recovery: %+v", second)
	}
	if got := tell(1, 100, 81); got != second {
		t.Errorf("the first recovery again: %+v", got)
	}
}
