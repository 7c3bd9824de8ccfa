package dbstore

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"chancery/audit"
	"chancery/hsmstore"
)

func (t *tx) applyKeys(p audit.Projection, at *audit.StoredLeaf) (handled bool, err error) {
	switch p := p.(type) {
	case hsmstore.PutKey:
		err = t.putKey(p, at)
	case hsmstore.KeyCopied:
		err = t.keyMembers(p.ID, func(list []string) ([]string, error) {
			if slices.Contains(list, p.Member) {
				return nil, fmt.Errorf("key %x on member %s: %w", p.ID, p.Member, audit.ErrExists)
			}
			return append(list, p.Member), nil
		})
	case hsmstore.KeyGone:
		err = t.keyMembers(p.ID, func(list []string) ([]string, error) {
			return slices.DeleteFunc(list, func(m string) bool { return m == p.Member }), nil
		})
	case hsmstore.SetKeyState:
		from := make([]any, len(p.From))
		for i, s := range p.From {
			from[i] = string(s)
		}
		err = t.cas("UPDATE hsm_key SET state = ? WHERE id = ? AND state IN (?"+strings.Repeat(", ?", len(from)-1)+")", append([]any{string(p.To), p.ID[:]}, from...)...)
	case hsmstore.KeyDescribed:
		err = t.cas("UPDATE hsm_key SET description = ? WHERE id = ?", p.Description, p.ID[:])
	case hsmstore.PutMember:
		// A member that left may come back by its old name.
		if _, err = t.exec("DELETE FROM hsm_member WHERE (name = ? OR serial = ?) AND standing = ?", p.Name, p.Serial, string(hsmstore.StandingRemoved)); err == nil {
			_, err = t.exec("INSERT INTO hsm_member (name, serial, label, replication, role, standing, leaf) VALUES (?, ?, ?, ?, ?, ?, ?)",
				p.Name, p.Serial, p.Label, string(p.Replication), string(p.Role), string(p.Standing), int64(at.Index))
		}
	case hsmstore.SetStanding:
		err = t.cas("UPDATE hsm_member SET standing = ? WHERE name = ?", string(p.To), p.Member)
	case hsmstore.SeenNonce:
		if t.fast {
			t.nonces = append(t.nonces, p)
		} else {
			err = t.seenNonce(p)
		}
	default:
		return false, nil
	}
	return true, err
}

func (t *tx) putKey(p hsmstore.PutKey, at *audit.StoredLeaf) error {
	adopted := ""
	if p.Adopted != nil {
		b, err := json.Marshal(p.Adopted)
		if err != nil {
			return err
		}
		adopted = string(b)
	}
	hash := hashOf(p.SPKI)
	_, err := t.exec("INSERT INTO hsm_key (id, name, purpose, algorithm, spki, spki_hash, subject, origin, members, birth, state, adopted, description, confined) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
		p.ID[:], p.Name, int(p.Purpose), p.Algorithm, p.SPKI, hash[:], p.Subject, p.Origin, strings.Join(p.Members, ","), int64(at.Index), string(p.State), adopted, p.Description, flag(p.Confined))
	return err
}

// flag is a truth in a column that both databases have.
func flag(b bool) int {
	if b {
		return 1
	}
	return 0
}

// nonceOctets is how much of each hash is kept: chance collisions stay out of reach.
const nonceOctets = 16

// seenNonce notes an r, unless it is there for the same message. A key that another
// node has quarantined meanwhile releases nothing any more. It is one statement for
// all that is well; COALESCE tells PostgreSQL the type of a parameter.
func (t *tx) seenNonce(p hsmstore.SeenNonce) error {
	n, err := t.exec(`INSERT INTO hsm_nonce (spki_hash, r, message) SELECT COALESCE(?, spki_hash), COALESCE(?, spki_hash), COALESCE(?, spki_hash)
		FROM hsm_key WHERE spki_hash = ? AND state <> 'quarantined' ON CONFLICT DO NOTHING`, p.Key[:nonceOctets], p.R[:nonceOctets], p.Message[:nonceOctets], p.Key[:])
	if err != nil || n == 1 {
		return err
	}
	var state string
	var old []byte
	err = t.row([]any{&state, &old}, `SELECT k.state, COALESCE(n.message, k.id) FROM hsm_key k LEFT JOIN hsm_nonce n ON n.spki_hash = ? AND n.r = ? WHERE k.spki_hash = ?`,
		p.Key[:nonceOctets], p.R[:nonceOctets], p.Key[:])
	if err != nil {
		return fmt.Errorf("noting a nonce of key %x: %w", p.Key[:8], err)
	}
	if state == string(hsmstore.KeyQuarantined) || !bytes.Equal(old, p.Message[:nonceOctets]) {
		return fmt.Errorf("%w: %w", audit.ErrConflict, hsmstore.ErrNonceReused)
	}
	return nil
}

// keyMembers changes the list of members that hold a key.
func (t *tx) keyMembers(id hsmstore.KeyID, change func([]string) ([]string, error)) error {
	var members string
	if err := t.row([]any{&members}, "SELECT members FROM hsm_key WHERE id = ?", id[:]); err != nil {
		return err
	}
	list, err := change(splitList(members))
	if err != nil {
		return err
	}
	return t.cas("UPDATE hsm_key SET members = ? WHERE id = ?", strings.Join(list, ","), id[:])
}

func splitList(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

// Keys returns the keys of the cluster in the order of their birth.
func (s *Store) Keys(ctx context.Context) ([]hsmstore.KeyRecord, error) {
	rows, err := s.rodb.QueryContext(ctx, "SELECT id, name, purpose, algorithm, spki, subject, origin, members, birth, state, adopted, description, confined FROM hsm_key ORDER BY birth")
	if err != nil {
		return nil, mapError(err)
	}
	defer rows.Close()
	var out []hsmstore.KeyRecord
	for rows.Next() {
		var k hsmstore.KeyRecord
		var id []byte
		var members, adopted string
		if err := rows.Scan(&id, &k.Name, &k.Purpose, &k.Algorithm, &k.SPKI, &k.Subject, &k.Origin, &members, &k.Birth, &k.State, &adopted, &k.Description, &k.Confined); err != nil {
			return nil, mapError(err)
		}
		copy(k.ID[:], id)
		k.Members = splitList(members)
		if adopted != "" {
			k.Adopted = &hsmstore.Adopted{}
			if err := json.Unmarshal([]byte(adopted), k.Adopted); err != nil {
				return nil, fmt.Errorf("row of key %s: %w", k.Name, err)
			}
		}
		out = append(out, k)
	}
	return out, mapError(rows.Err())
}

// Members returns the enrolled HSM members.
func (s *Store) Members(ctx context.Context) ([]hsmstore.MemberRecord, error) {
	rows, err := s.rodb.QueryContext(ctx, "SELECT name, serial, label, replication, role, standing FROM hsm_member ORDER BY leaf")
	if err != nil {
		return nil, mapError(err)
	}
	defer rows.Close()
	var out []hsmstore.MemberRecord
	for rows.Next() {
		var m hsmstore.MemberRecord
		if err := rows.Scan(&m.Name, &m.Serial, &m.Label, &m.Replication, &m.Role, &m.Standing); err != nil {
			return nil, mapError(err)
		}
		out = append(out, m)
	}
	return out, mapError(rows.Err())
}
