package dbstore

import (
	"errors"
	"fmt"

	"chancery/audit"
	"chancery/hsmstore"
)

// together is what the items of a batch have in common, on PostgreSQL, where a statement
// for each would be a round trip for each: it is stored at the end, for all at once. If one
// cannot be, audit.ErrTogether says so, and the batch comes again, one by one.
type together struct {
	fast     bool
	leaves   []audit.StoredLeaf
	closed   []int64 // intents
	nonces   []hsmstore.SeenNonce
	openings []openingRow
}

// Apart implements [audit.Tx].
func (t *tx) Apart() { t.fast = false }

// store writes what was kept back. Leaves are kept back in both ways: their place in the
// ledger is certain.
func (t *tx) store() error {
	if len(t.closed) > 0 {
		n, err := t.exec("DELETE FROM ledger_open WHERE idx = ANY(?::bigint[])", t.closed)
		if err != nil {
			return err
		}
		if n != int64(len(t.closed)) {
			return fmt.Errorf("%w: an intent is not open", audit.ErrTogether)
		}
	}
	if len(t.nonces) > 0 {
		if err := t.storeNonces(); err != nil {
			return err
		}
	}
	t.closed, t.nonces = nil, nil
	return t.storeLeaves()
}

// storeNonces notes the nonces of a batch; one that is there already, or of a key that is
// quarantined, is looked at apart.
func (t *tx) storeNonces() error {
	var key, cut, r, message [][]byte
	for _, n := range t.nonces {
		key, cut, r, message = append(key, n.Key[:]), append(cut, n.Key[:nonceOctets]), append(r, n.R[:nonceOctets]), append(message, n.Message[:nonceOctets])
	}
	n, err := t.exec(`INSERT INTO hsm_nonce (spki_hash, r, message) SELECT x.cut, x.r, x.message
		FROM unnest(?::bytea[], ?::bytea[], ?::bytea[], ?::bytea[]) AS x (key, cut, r, message)
		JOIN hsm_key k ON k.spki_hash = x.key WHERE k.state <> 'quarantined' ON CONFLICT DO NOTHING`, key, cut, r, message)
	if errors.Is(err, audit.ErrUnavailable) {
		return err
	}
	if err != nil || n != int64(len(t.nonces)) {
		return fmt.Errorf("%w: a nonce was seen before", audit.ErrTogether)
	}
	return nil
}

// storeLeaves adds the leaves of a transaction, and the open intents and openings among
// them, in a statement each.
func (t *tx) storeLeaves() error {
	if len(t.leaves) == 0 {
		return nil
	}
	var index, openIndex []int64
	var kind []int16
	var closes []*int64
	var leaf [][]byte
	var openNode []string
	for _, l := range t.leaves {
		index, kind, leaf = append(index, int64(l.Index)), append(kind, int16(l.Kind)), append(leaf, l.Bytes)
		var c *int64
		if l.Closes != audit.NoIndex {
			v := int64(l.Closes)
			c = &v
		}
		closes = append(closes, c)
		if l.Kind == audit.KindIntent {
			openIndex, openNode = append(openIndex, int64(l.Index)), append(openNode, l.Node)
		}
	}
	t.leaves = nil
	if _, err := t.exec("INSERT INTO ledger_leaf (idx, kind, closes, leaf) SELECT * FROM unnest(?::bigint[], ?::smallint[], ?::bigint[], ?::bytea[])", index, kind, closes, leaf); err != nil {
		if errors.Is(err, audit.ErrExists) {
			return fmt.Errorf("%w: a leaf from %d on is there already", audit.ErrTampered, index[0])
		}
		return err
	}
	if len(openIndex) > 0 {
		if _, err := t.exec("INSERT INTO ledger_open (idx, node) SELECT * FROM unnest(?::bigint[], ?::text[])", openIndex, openNode); err != nil {
			return err
		}
	}
	return t.storeOpenings()
}
