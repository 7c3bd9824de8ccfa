package hsmstore

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"chancery/admin"
	"chancery/audit"
)

// cerRecover: recovery -> nothing; the worker may sign checkpoints from a size on again.
const cerRecover byte = 80

// recovery is what the officers allow a worker.
type recovery struct {
	Act  string `json:"act"`
	Size uint64 `json:"size"`
}

// Recovery is a decision of the officers that a ledger goes on from an older database.
type Recovery struct {
	Ledger  audit.LedgerID
	First   [32]byte // digest of the roster in leaf 0
	Rosters admin.History
	Size    uint64 // entries that are left
	Act     string // admin.RecoverAct
	Warrant *admin.Warrant
}

// RecoverMembers writes a recovery into the account of each member: a worker refuses
// checkpoints of a size that it has signed before, unless its own account says that the
// officers gave those entries up. No worker may run. It may be called again within two
// hours. A member that cannot be reached signs no checkpoint before the ledger has grown
// past what was lost; the error names it.
func RecoverMembers(ctx context.Context, members []MemberConfig, r Recovery) error {
	p, err := admin.DecodeProposal(r.Warrant.Proposal)
	if err != nil {
		return err
	}
	changes, err := r.Rosters.CheckChain(r.First)
	if err != nil {
		return err
	}
	// One warrant is one use, however often this is called.
	under := context.WithValue(ctx, mandateKey{}, mandate{Warrant: r.Warrant, Session: "recover-" + hex.EncodeToString(p.Nonce[:]), rosterChain: chainOf(r.Ledger, r.First, changes)})
	var errs []error
	for _, m := range members {
		c, err := startCeremony(under, m, m.TokenSerial, []string{r.Act}, false)
		if err == nil {
			err = c.do(under, cerRecover, recovery{Act: r.Act, Size: r.Size}, &json.RawMessage{})
			c.end()
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("member %s: %w", m.Name, err))
		}
	}
	return errors.Join(errs...)
}

// recover notes where the worker's journal stands: what it has signed until now is of
// entries that were given up.
func (c *ceremony) recover(r recovery) (struct{}, error) {
	if want := fmt.Sprintf("recover-ledger %d ", r.Size); !slices.Contains(c.open.Acts, r.Act) || !strings.HasPrefix(r.Act, want) || c.open.Warrant == nil {
		return struct{}{}, &fault{exitGrant, fmt.Errorf("%w: %q", admin.ErrNotGranted, r.Act)}
	}
	a, err := readAccount(c.open.Account)
	if err != nil {
		return struct{}{}, &fault{exitJournal, err}
	}
	p, err := admin.DecodeProposal(c.open.Warrant.Proposal)
	if err != nil {
		return struct{}{}, &fault{exitGrant, err}
	}
	nonce := hex.EncodeToString(p.Nonce[:])
	if a.regrown[nonce] { // told already: what was signed since stays signed
		return struct{}{}, nil
	}
	st, err := os.Stat(strings.TrimSuffix(c.open.Account, ".mandates"))
	if err != nil {
		return struct{}{}, &fault{exitJournal, fmt.Errorf("looking at the worker's journal: %w", err)}
	}
	seq := max(st.Size()/journalRecord-1, 0)
	return struct{}{}, a.add("recovered %d %d %s", r.Size, seq, nonce)
}
