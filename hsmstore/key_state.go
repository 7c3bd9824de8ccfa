package hsmstore

import (
	"context"
	"encoding/hex"
	"fmt"
	"strings"

	"chancery/audit"
)

// Disable takes a key out of use until [Store.Enable]: operations that have begun may
// end, no other begins. It is on the ledger before it holds. The key of the ledger's
// checkpoints and the probe keys cannot be disabled: the server lives by them.
//
// Errors: ErrNoKey (also if the key is not usable now), those of the ledger.
func (s *Store) Disable(ctx context.Context, name, reason string) error {
	k, err := s.anyKey(name)
	if err != nil {
		return err
	}
	if k.purpose == audit.PurposeProbe || k.purpose == audit.PurposeCheckpoint {
		return fmt.Errorf("key %q is for %s: without it nothing else is signed; to stop a member drain it instead", name, k.purpose)
	}
	return s.changeState(ctx, k, KeyUsable, KeyDisabled, reason)
}

// Enable puts a key that was disabled into use again. Errors are those of
// [Store.Disable]; a key with copies that were destroyed stays disabled.
func (s *Store) Enable(ctx context.Context, name, reason string) error {
	k, err := s.anyKey(name)
	if err != nil {
		return err
	}
	if len(k.Members()) == 0 {
		return fmt.Errorf("%w: no member holds key %q any more", ErrNoKey, name)
	}
	return s.changeState(ctx, k, KeyDisabled, KeyUsable, reason)
}

// changeState moves a key from one state to another: first on the ledger, then here.
// A quarantine that comes between stays.
func (s *Store) changeState(ctx context.Context, k *Key, from, to KeyState, reason string, p ...audit.Projection) error {
	old := k.state.Load()
	if *old != from {
		return fmt.Errorf("%w: key %q is %s; only a key that is %s becomes %s", ErrNoKey, k.name, *old, from, to)
	}
	p = append([]audit.Projection{SetKeyState{ID: k.id, From: []KeyState{from}, To: to}}, p...)
	if _, err := s.ledger.Append(context.WithoutCancel(ctx), audit.Event(audit.OpKeyState, k.stateFields(to, reason)), p...); err != nil {
		return fmt.Errorf("recording that key %q is %s: %w", k.name, to, err)
	}
	k.state.CompareAndSwap(old, &to)
	s.lookAgain() // another node may have decided behind it
	s.log.Warn("state of a key changed", "key", k.name, "from", from, "to", to, "reason", reason)
	return nil
}

// stateFields are those of a leaf about a key's state.
func (k *Key) stateFields(to KeyState, reason string) audit.Fields {
	var f audit.Fields
	f.Hash(audit.TagKey, k.spkiHash)
	f.Text(audit.TagKeyName, k.name)
	f.Text(audit.TagState, string(to))
	f.Text(audit.TagReason, audit.Text(reason, 500))
	return f
}

// maxDescription bounds a description, in octets.
const maxDescription = 500

// Describe gives a key a text for people. It binds nothing and has no leaf: what a
// key is for stands in its CKA_LABEL, which never changes.
func (s *Store) Describe(ctx context.Context, name, text string) error {
	k, err := s.anyKey(name)
	if err != nil {
		return err
	}
	text = audit.Text(text, maxDescription)
	if err := s.ledger.Write(ctx, KeyDescribed{ID: k.id, Description: text}); err != nil {
		return fmt.Errorf("describing key %q: %w", name, err)
	}
	k.description.Store(&text)
	return nil
}

// Find lists the keys that a text may mean: a name, the beginning of the hex SHA-256
// of the SPKI (four digits or more), or a CKA_ID in hex. No match is no error.
func (s *Store) Find(query string) (out []KeyInfo) {
	q := strings.ToLower(strings.TrimSpace(query))
	for _, info := range s.Keys() {
		k, err := s.anyKey(info.Name)
		if err != nil {
			continue
		}
		ckaID := hex.EncodeToString(k.objectsRequest().CKAID)
		if q == k.name || len(q) >= 4 && strings.HasPrefix(hex.EncodeToString(k.spkiHash[:]), q) || q != "" && q == ckaID {
			out = append(out, info)
		}
	}
	return out
}
