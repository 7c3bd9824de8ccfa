package hsmstore_test

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"chancery/audit"
	"chancery/hsmstore"
)

// memory is an audit.Storage that forgets at exit and fails on command: the tests
// of this package look at what the store hands to the ledger and at what happens
// when the ledger fails. TestOnDatabase runs the same journey on the real one.
type memory struct {
	mu         sync.Mutex
	head       audit.Head
	leaves     [][]byte
	open       map[uint64]audit.StoredLeaf
	closed     map[uint64]audit.Kind
	applied    []audit.Projection
	tiles      []audit.Tile
	nonces     map[[2][32]byte][32]byte
	fail       error                      // returned by every Update
	recipients []hsmstore.RecipientRecord // if not nil: what the database was made to say
	lose       bool                       // the next Update is committed and reported as failed
}

func newMemory() *memory {
	return &memory{open: map[uint64]audit.StoredLeaf{}, closed: map[uint64]audit.Kind{}, nonces: map[[2][32]byte][32]byte{}}
}

func (m *memory) Head(context.Context) (audit.Head, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.head, nil
}

func (m *memory) Leaves(_ context.Context, from, to uint64, fn func(uint64, []byte) error) error {
	m.mu.Lock()
	part := slices.Clone(m.leaves[from:min(to, uint64(len(m.leaves)))])
	m.mu.Unlock()
	for i, b := range part {
		if err := fn(from+uint64(i), b); err != nil {
			return err
		}
	}
	return nil
}

func (m *memory) Tile(_ context.Context, level int, n uint64) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range m.tiles {
		if t.Level == level && t.N == n {
			return t.Data, nil
		}
	}
	return nil, audit.ErrNotFound
}
func (m *memory) PutCheckpoint(context.Context, uint64, string, string) error { return nil }
func (m *memory) LastCheckpoint(context.Context) (string, error)              { return "", audit.ErrNotFound }

func (m *memory) RosterRows(context.Context) ([]audit.RosterRow, error) { return nil, nil }
func (m *memory) Recoveries(context.Context) ([]uint64, error)          { return nil, nil }

func (m *memory) OpenNodes(context.Context) ([]string, error) { return nil, nil }

func (m *memory) LockDead(context.Context, string) (func(), bool, error) { return nil, false, nil }

// Nothing personal is kept here.
func (m *memory) Openings(context.Context, audit.OpeningQuery, func(audit.StoredOpenings) error) error {
	return nil
}
func (m *memory) Scrub(context.Context) error { return nil }

func (m *memory) OpenIntents(_ context.Context, node string) (out []audit.StoredLeaf, _ error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range m.open {
		if l.Node == node {
			out = append(out, l)
		}
	}
	slices.SortFunc(out, func(a, b audit.StoredLeaf) int { return int(a.Index) - int(b.Index) })
	return out, nil
}

func (m *memory) Update(_ context.Context, fn func(audit.Tx) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return m.fail
	}
	tx := &memoryTx{m: m, head: m.head}
	if err := fn(tx); err != nil {
		return err
	}
	for _, l := range tx.leaves {
		m.leaves = append(m.leaves, l.Bytes)
		if l.Kind == audit.KindIntent {
			m.open[l.Index] = l
		}
		if l.Closes != audit.NoIndex {
			delete(m.open, l.Closes)
			m.closed[l.Closes] = l.Kind
		}
	}
	m.head, m.applied = tx.head, append(m.applied, tx.applied...)
	if m.lose {
		m.lose = false
		return fmt.Errorf("%w: connection lost after commit", audit.ErrUncertain)
	}
	return nil
}

type memoryTx struct {
	m       *memory
	head    audit.Head
	leaves  []audit.StoredLeaf
	applied []audit.Projection
}

func (t *memoryTx) Head() (audit.Head, error) { return t.head, nil }

func (t *memoryTx) Apart() {}

func (t *memoryTx) Item(fn func() error) error {
	l, a := len(t.leaves), len(t.applied)
	err := fn()
	if err != nil {
		t.leaves, t.applied = t.leaves[:l], t.applied[:a]
	}
	return err
}

// members are the member records as a database would hold them.
func (m *memory) members() (out []hsmstore.MemberRecord) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.applied {
		switch p := p.(type) {
		case hsmstore.PutMember:
			out = slices.DeleteFunc(out, func(r hsmstore.MemberRecord) bool { return r.Name == p.Name })
			out = append(out, p.MemberRecord)
		case hsmstore.SetStanding:
			for i := range out {
				if out[i].Name == p.Member {
					out[i].Standing = p.To
				}
			}
		}
	}
	return out
}

// conflict is a projection that never fits.
type conflict struct{}

func (conflict) Projection() {}

// note is a projection of a caller.
type note struct{ text string }

func (note) Projection() {}

func (t *memoryTx) Apply(p audit.Projection, at *audit.StoredLeaf) error {
	if k, ok := p.(hsmstore.PutKey); ok {
		k.Birth = at.Index
		p = k
	}
	if r, ok := p.(hsmstore.PutRecipient); ok {
		r.Leaf = at.Index
		p = r
	}
	if _, bad := p.(conflict); bad {
		return audit.ErrConflict
	}
	if n, ok := p.(hsmstore.SeenNonce); ok {
		at := [2][32]byte{n.Key, n.R}
		if old, ok := t.m.nonces[at]; ok && old != n.Message {
			return fmt.Errorf("%w: %w", audit.ErrConflict, hsmstore.ErrNonceReused)
		}
		t.m.nonces[at] = n.Message // also if the transaction fails: it never does here
	}
	t.applied = append(t.applied, p)
	return nil
}

func (t *memoryTx) Append(l audit.StoredLeaf) error {
	if l.Closes != audit.NoIndex {
		_, open := t.m.open[l.Closes]
		for _, x := range t.leaves {
			open = open || x.Kind == audit.KindIntent && x.Index == l.Closes
			open = open && x.Closes != l.Closes
		}
		if !open {
			return audit.ErrConflict
		}
	}
	t.leaves = append(t.leaves, l)
	return nil
}

func (t *memoryTx) PutTiles(tiles []audit.Tile) error {
	t.m.tiles = append(t.m.tiles, tiles...)
	return nil
}

func (t *memoryTx) SetHead(h audit.Head) error { t.head = h; return nil }

// leaf decodes one leaf.
func (m *memory) leaf(i uint64) audit.Leaf {
	m.mu.Lock()
	defer m.mu.Unlock()
	l, err := audit.DecodeLeaf(m.leaves[i])
	if err != nil {
		panic(err)
	}
	return l
}

func (m *memory) size() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return uint64(len(m.leaves))
}

func (m *memory) closing(intent uint64) audit.Kind {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.closed[intent]
}

// keys are the key records as a database would hold them.
func (m *memory) keys() (out []hsmstore.KeyRecord) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.applied {
		switch p := p.(type) {
		case hsmstore.PutKey:
			out = append(out, p.KeyRecord)
		case hsmstore.KeyCopied:
			for i := range out {
				if out[i].ID == p.ID {
					out[i].Members = append(slices.Clone(out[i].Members), p.Member)
				}
			}
		case hsmstore.KeyGone:
			for i := range out {
				if out[i].ID == p.ID {
					out[i].Members = slices.DeleteFunc(slices.Clone(out[i].Members), func(m string) bool { return m == p.Member })
				}
			}
		case hsmstore.KeyDescribed:
			for i := range out {
				if out[i].ID == p.ID {
					out[i].Description = p.Description
				}
			}
		case hsmstore.SetKeyState:
			for i := range out {
				if out[i].ID == p.ID {
					out[i].State = p.To
				}
			}
		}
	}
	return out
}

func (m *memory) set(fail error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = fail
}

// orphans are the Orphaned projections so far.
func (m *memory) orphans() (out []hsmstore.Orphaned) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.applied {
		if o, ok := p.(hsmstore.Orphaned); ok {
			out = append(out, o)
		}
	}
	return out
}
