package dbstore

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"

	"chancery/audit"
	"chancery/hsmstore"
)

var _ hsmstore.ShareStore = (*Store)(nil)

func (t *tx) applyShares(p audit.Projection) (handled bool, err error) {
	put, ok := p.(hsmstore.PutShares)
	if !ok {
		return false, nil
	}
	data, err := json.Marshal(put.Set)
	if err != nil {
		return true, err
	}
	// The set that comes into force ends the one before; a next one replaces a next one
	// that never came into force.
	drop := "DELETE FROM hsm_share WHERE member = ? AND current = 0"
	if put.Current {
		drop = "DELETE FROM hsm_share WHERE member = ?"
	}
	if _, err := t.exec(drop, put.Set.Member); err != nil {
		return true, err
	}
	_, err = t.exec("INSERT INTO hsm_share (member, current, data) VALUES (?, ?, ?)", put.Set.Member, flag(put.Current), string(data))
	return true, err
}

// Shares implements [hsmstore.ShareStore].
func (s *Store) Shares(ctx context.Context, member string) (current, next *hsmstore.ShareSet, err error) {
	err = s.each(ctx, func(r *sql.Rows) error {
		var now int
		var data string
		if err := r.Scan(&now, &data); err != nil {
			return err
		}
		var set hsmstore.ShareSet
		if err := json.Unmarshal([]byte(data), &set); err != nil {
			return fmt.Errorf("row of the shares of member %s: %w", member, err)
		}
		if now == 1 {
			current = &set
		} else {
			next = &set
		}
		return nil
	}, "SELECT current, data FROM hsm_share WHERE member = ?", member)
	return current, next, err
}
