package admin

import (
	"fmt"
	"time"

	"chancery/audit"
)

// Roster is who may vote and how many must approve.
type Roster struct {
	Officers []Officer `json:"officers"`
	Quorum   int       `json:"quorum"` // M of the N officers
}

// The bounds of a quorum: fewer than two is no shared decision.
const (
	MinQuorum = 2
	MaxQuorum = 20
)

// Check tells whether r can decide anything: M of N possible, P-256 keys, distinct
// names and keys.
func (r Roster) Check() error {
	if r.Quorum < MinQuorum || r.Quorum > MaxQuorum || r.Quorum > len(r.Officers) {
		return fmt.Errorf("a quorum of %d of %d officers is not possible; M is %d to %d and at most the number of officers", r.Quorum, len(r.Officers), MinQuorum, MaxQuorum)
	}
	seen := map[string]bool{}
	for _, o := range r.Officers {
		if _, err := ParseOfficer(o.Name, o.SPKI); err != nil {
			return err
		}
		if seen["name "+o.Name] || seen["key "+string(o.SPKI)] {
			return fmt.Errorf("officer %s: the same name or key twice; officers are distinct people", o.Name)
		}
		seen["name "+o.Name], seen["key "+string(o.SPKI)] = true, true
	}
	return nil
}

// Digest is the roster digest of leaf 0 and of proposals, see [RosterDigest].
func (r Roster) Digest() [32]byte { return RosterDigest(r.Officers, r.Quorum) }

// Officer finds an officer by name.
func (r Roster) Officer(name string) (Officer, bool) {
	for _, o := range r.Officers {
		if o.Name == name {
			return o, true
		}
	}
	return Officer{}, false
}

// voters counts the officers who may vote on a proposal: all but its requester.
func (r Roster) voters(requester string) int {
	n := 0
	for _, o := range r.Officers {
		if OfficerRequester(o.Name) != requester {
			n++
		}
	}
	return n
}

// Lifetimes of a proposal.
const (
	DefaultLifetime = 24 * time.Hour
	MaxLifetime     = 7 * 24 * time.Hour
)

// Policy is the rule by which a roster decides. Its text is hashed into every
// proposal: what officers signed under one rule never counts under another.
func (r Roster) Policy() string {
	return fmt.Sprintf("chancery/policy/v1\napprove %d of %d\nrequester no\nvote final\nlifetime %d\n", r.Quorum, len(r.Officers), int(MaxLifetime/time.Second))
}

// PolicyDigest is H("policy", text of the policy).
func (r Roster) PolicyDigest() [32]byte { return audit.Digest("policy", []byte(r.Policy())) }

// CheckRoster holds a stored roster against the digest in leaf 0: with other officers
// or another quorum than the ledger knows, nothing may be decided. The error wraps
// audit.ErrTampered.
func CheckRoster(r Roster, leaf0 audit.Leaf) error {
	want, ok := leaf0.Hash(audit.TagRoster)
	if !ok || r.Digest() != want {
		return fmt.Errorf("%w: the officers or the quorum in the database are not those that leaf 0 names; put the database back from a backup", audit.ErrTampered)
	}
	return r.Check()
}
