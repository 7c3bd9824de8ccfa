package check

import (
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"time"

	"chancery/cmd/chancery-verify/internal/leaf"
)

// restore is what the entries say of the restore that began a ledger.
type restore struct {
	Previous  string    `json:"previous"` // last checkpoint of the predecessor; "": there is none
	Manifest  leaf.Hash `json:"manifest"` // of the backup
	Warranted bool      `json:"warranted"`
	Carried   uint64    `json:"carried"` // revocations
	Ended     bool      `json:"ended"`
	Succeeds  string    `json:"succeeds"` // id of the predecessor, once its officers' warrant is verified
}

func (r *restore) origin() string { origin, _, _ := strings.Cut(r.Previous, "\n"); return origin }

// restored follows the entries of a restore: first the warrant of the predecessor's
// officers, then keys and issuers from the one manifest, then the end.
func (v *verifier) restored(index uint64, l *leaf.Leaf) error {
	r := &v.s.Restore
	manifest, _ := l.Hash(leaf.TagManifest)
	warrant := l.Get(leaf.TagWarrant)
	switch {
	case r.Previous == "":
		return bad(index, "it restores something, but leaf 0 names no predecessor")
	case l.Text(leaf.TagSource) != r.origin():
		return bad(index, "it restores from %.100q, leaf 0 names %.100q", l.Text(leaf.TagSource), r.origin())
	case r.Ended:
		return bad(index, "it restores something after the restore had ended")
	case (warrant != nil) == r.Warranted:
		return bad(index, "a restore begins with its one warrant")
	case warrant != nil:
		r.Manifest, r.Warranted = manifest, true
		return v.warrant(index, l)
	case manifest != r.Manifest:
		return bad(index, "it restores from another manifest than the officers allowed")
	}
	key, named := l.Hash(leaf.TagKey)
	if named {
		purpose, _ := l.Uint(leaf.TagPurpose)
		v.s.KeyStates[key] = l.Text(leaf.TagState) // as it was in the predecessor
		if v.s.KeyStates[key] == "destroyed" {
			v.s.Destroyed[key] = index
		}
		return v.s.key(index, key, purpose)
	}
	if artefact, ok := l.Hash(leaf.TagArtefact); ok { // an issuer
		issuer, _ := l.Hash(leaf.TagIssuer)
		number, _ := l.Uint(leaf.TagCRLNumber)
		this, _ := l.Uint(leaf.TagThisUpdate)
		v.s.Scopes[issuer] = scope{Number: number, This: this}
		v.s.issuer(artefact)
		return nil
	}
	if l.Text(leaf.TagState) == "complete" {
		if count, _ := l.Uint(leaf.TagCount); count != r.Carried {
			return bad(index, "it says that %d revocations were carried over, %d were", count, r.Carried)
		}
		r.Ended = true
	}
	return nil
}

// warrantSlack is how long after its last moment a warrant may still be written down.
const warrantSlack = time.Hour

// warrant: a quorum of the predecessor's officers, who are those of this ledger, signed
// for exactly this manifest; leaf 0 of the predecessor shows whose officers they were.
func (v *verifier) warrant(index uint64, l *leaf.Leaf) error {
	r := &v.s.Restore
	zero, origin, keys, err := leaf.GenesisOf(l.Get(leaf.TagPredecessor))
	if err != nil {
		return bad(index, "leaf 0 of the predecessor: %v", err)
	}
	n, err := newNotary(origin, keys)
	if err == nil {
		var c checkpoint
		if c, err = n.open(r.Previous, ""); err == nil && len(c.by) == 0 {
			err = errors.New("none of them has signed it")
		}
	}
	if err != nil {
		return bad(0, "the checkpoint of the predecessor that it names is not signed by that ledger's keys: %v", err)
	}
	items, err := leaf.List(l.Get(leaf.TagWarrant))
	if err != nil || len(items) == 0 {
		return bad(index, "its warrant cannot be read")
	}
	q, err := readRequest(items[0])
	rosterOfZero, _ := zero.Hash(leaf.TagRoster)
	act := "restore " + hex.EncodeToString(r.Manifest[:])
	allows := slices.ContainsFunc(q.targets, func(t []byte) bool { return string(t) == act })
	switch {
	case err != nil:
		return bad(index, "its warrant: %v", err)
	case origin != r.origin() || q.ledger != zero.Ledger || q.action != "restore" || !allows:
		return bad(index, "its warrant is for something else")
	case v.rosters.why != "":
		return bad(0, "%s", v.rosters.why)
	case q.roster != v.s.Roster || v.rosters.leads(rosterOfZero, v.s.Roster, zero.Ledger) != nil:
		return bad(index, "its warrant is of other officers than the predecessor's")
	case l.Time/1_000_000 < q.notBefore || l.Time/1_000_000 > q.expires+int64(warrantSlack/time.Second):
		return bad(index, "its warrant was not in force")
	}
	if err := v.warrantVotes(index, items, q); err != nil {
		return err
	}
	r.Succeeds = zero.Ledger.String()
	return nil
}

// warrantVotes: a quorum of distinct officers, none of them who asked, approved exactly
// the proposal that is the first of items; the others are SHA-256 of SPKI ‖ signature.
func (v *verifier) warrantVotes(index uint64, items [][]byte, q request) error {
	r := v.rosters.by[q.roster]
	if r == nil { // an earlier run knew them, this export does not
		return bad(index, "the export does not hold the officers of its warrant")
	}
	seen := map[string]bool{}
	var keys []leaf.Hash
	for _, vote := range items[1:] {
		if len(vote) <= 32 {
			return bad(index, "a vote of its warrant cannot be read")
		}
		by := leaf.Hash(vote[:32])
		name := r.keys[by].officer
		if seen[name] || asked(q.requester, name) || !r.signed(by, approves, items[0], vote[32:]) {
			return bad(index, "a vote of its warrant is not that of an officer, or there twice")
		}
		seen[name] = true
		keys = append(keys, by)
	}
	if why := r.enough(keys); why != "" {
		return bad(index, "its warrant rests on %s", why)
	}
	return nil
}

func (r *restore) finish() error {
	if r.Previous != "" && (!r.Warranted || !r.Ended) {
		return bad(0, "it names a predecessor, but the restore was never finished")
	}
	return nil
}
