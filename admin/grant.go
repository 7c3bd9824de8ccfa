package admin

import (
	"errors"
	"fmt"
	"sync"

	"chancery/audit"
)

// ErrNotGranted is wrapped by every refusal of an act.
var ErrNotGranted = errors.New("act is not granted")

// Grant allows a list of acts, each once. Only the functions of this package make
// one; the zero value and nil allow nothing. It is safe for concurrent use.
type Grant struct {
	hash    [32]byte
	warrant *Warrant // nil at genesis

	mu   sync.Mutex
	left map[string]int // how often an act may still be spent
}

// Genesis makes the one grant without officers. It fails unless the ledger of
// that head is empty. acts go into leaf 0 (audit.Genesis.Acts) unchanged.
func Genesis(head audit.Head, acts []string) (*Grant, error) {
	if head.Size != 0 {
		return nil, fmt.Errorf("%w: the ledger has %d leaves; the genesis grant exists only while it is empty, ask the officers", ErrNotGranted, head.Size)
	}
	return genesis(acts, nil)
}

// ResumeGenesis makes the grant of an unfinished genesis again. leaf0 is the
// genesis leaf of the ledger; done tells whether the ledger shows that an act was
// carried out. What is done is not granted a second time.
func ResumeGenesis(leaf0 audit.Leaf, done func(act string) bool) (*Grant, error) {
	if leaf0.Kind != audit.KindGenesis {
		return nil, fmt.Errorf("%w: a %s leaf is no genesis", ErrNotGranted, leaf0.Kind)
	}
	list, ok := leaf0.Get(audit.TagActs)
	if !ok {
		return nil, fmt.Errorf("%w: the genesis leaf lists no acts", ErrNotGranted)
	}
	items, err := audit.ParseList(list)
	if err != nil {
		return nil, fmt.Errorf("reading the acts of genesis: %w", err)
	}
	acts := make([]string, len(items))
	for i, it := range items {
		acts[i] = string(it)
	}
	return genesis(acts, done)
}

func genesis(acts []string, done func(string) bool) (*Grant, error) {
	if len(acts) == 0 {
		return nil, fmt.Errorf("%w: a grant needs at least one act", ErrNotGranted)
	}
	g := &Grant{left: make(map[string]int), hash: genesisHash(acts)}
	for _, a := range acts {
		if a == "" || audit.Text(a, 1024) != a {
			return nil, fmt.Errorf("%w: act %q is no plain text of at most 1,024 octets", ErrNotGranted, a)
		}
		if done == nil || !done(a) {
			g.left[a]++
		}
	}
	return g, nil
}

// genesisHash is H("grant", H("proposal", acts)): a grant with no votes, whose
// proposal is the list of acts exactly as leaf 0 encodes it (ENCODINGS, grant).
func genesisHash(acts []string) [32]byte {
	items := make([][]byte, len(acts))
	for i, a := range acts {
		items[i] = []byte(a)
	}
	var f audit.Fields
	f.List(audit.TagActs, items...)
	proposal := audit.Digest("proposal", f[0].Value)
	return audit.Digest("grant", proposal[:])
}

// Spend uses up one act. An act that was not granted, or was spent before, gives
// an error that wraps [ErrNotGranted].
func (g *Grant) Spend(act string) error {
	if g == nil {
		return fmt.Errorf("%w: %q: there is no grant", ErrNotGranted, act)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	n, listed := g.left[act]
	switch {
	case !listed:
		return fmt.Errorf("%w: %q is not on the grant", ErrNotGranted, act)
	case n == 0:
		return fmt.Errorf("%w: %q was spent already", ErrNotGranted, act)
	}
	g.left[act] = n - 1
	return nil
}

// Warrant is the officers' evidence for the grant; a grant of genesis has none.
func (g *Grant) Warrant() (*Warrant, bool) {
	if g == nil || g.warrant == nil {
		return nil, false
	}
	return g.warrant, true
}

// Hash names the grant in the leaves of its acts (TagGrant). It is zero for nil.
func (g *Grant) Hash() [32]byte {
	if g == nil {
		return [32]byte{}
	}
	return g.hash
}
