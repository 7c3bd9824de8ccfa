package hsmstore

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"time"

	"chancery/admin"
	"chancery/audit"
)

// ImportTerms is what the holder of a key must know to wrap it for an import.
type ImportTerms struct {
	Session     string    `json:"session"`
	Member      string    `json:"member"`
	WrappingKey []byte    `json:"wrapping_key"` // SPKI DER
	Hash        string    `json:"hash"`         // of OAEP and MGF1
	Mechanisms  []string  `json:"mechanisms"`
	Expires     time.Time `json:"expires"`
}

// openImport is the session that waits for its blob and for the officers.
type openImport struct {
	mu      sync.Mutex
	id      string
	session *ImportSession
}

// OpenImport is BeginImport for callers that come back by name: [Store.FinishImport].
func (s *Store) OpenImport(ctx context.Context, member string) (ImportTerms, error) {
	i, err := s.BeginImport(ctx, member)
	if err != nil {
		return ImportTerms{}, err
	}
	s.opened.mu.Lock()
	defer s.opened.mu.Unlock()
	s.opened.id, s.opened.session = rand.Text(), i
	return ImportTerms{Session: s.opened.id, Member: member, WrappingKey: i.WrappingKey(), Hash: i.Hash(), Mechanisms: i.Mechanisms(), Expires: i.Expires().UTC()}, nil
}

// CheckImport tells before the officers are asked what [Store.FinishImport] would refuse
// about a spec; whether the blob unwraps is known only then.
func (s *Store) CheckImport(id string, spec ImportSpec) error {
	s.opened.mu.Lock()
	i := s.opened.session
	if s.opened.id != id || i != nil && time.Now().After(i.Expires()) {
		i = nil
	}
	s.opened.mu.Unlock()
	if i == nil {
		return noImport(id)
	}
	_, err := i.mayImport(spec)
	return err
}

func noImport(id string) error {
	return fmt.Errorf("%w: there is no import session %q, or its time is over; begin a new one with chancery key import-session", ErrNoKey, audit.Text(id, 40))
}

// FinishImport takes the blob of a session, which ends with it, well or not. Errors are
// those of [ImportSession.Finish].
func (s *Store) FinishImport(ctx context.Context, grant *admin.Grant, id string, spec ImportSpec) (*Key, error) {
	s.opened.mu.Lock()
	i := s.opened.session
	if s.opened.id != id {
		i = nil
	} else {
		s.opened.session = nil
	}
	s.opened.mu.Unlock()
	if i == nil {
		return nil, noImport(id)
	}
	defer i.Close()
	return i.Finish(ctx, grant, spec)
}
