package check

import (
	"encoding/binary"
	"fmt"
	"time"

	"chancery/cmd/chancery-verify/internal/leaf"
)

// Recovery is a place where the officers let the ledger go on from an older database.
// Checkpoints of more than Kept and up to Known entries may be of what they gave up.
type Recovery struct {
	Entry uint64 `json:"entry"` // the ledger went on from this size
	Kept  uint64 `json:"kept"`  // entries below this one were not given up
	Known uint64 `json:"known"` // entries that were known before
	Why   string `json:"why,omitempty"`
}

// isRecovery tells, of the octets of an entry, whether it is one of a recovery.
func isRecovery(entry []byte) bool {
	return len(entry) > 7 && leaf.Op(binary.BigEndian.Uint16(entry[5:])) == leaf.OpRecovery
}

// recovery: a quorum of the officers signed for going on from just the entries before this.
func (v *verifier) recovery(index uint64, l *leaf.Leaf) error {
	items, err := leaf.List(l.Get(leaf.TagWarrant))
	if err != nil || len(items) < 2 {
		return bad(index, "its warrant cannot be read")
	}
	q, err := readRequest(items[0])
	known, _ := l.Uint(leaf.TagKnown)
	kept, _ := l.Uint(leaf.TagCommon)
	act := fmt.Sprintf("recover-ledger %d %s %d %d", index, v.before, kept, known)
	places := []byte{}
	for i := range items[1:] {
		places = binary.BigEndian.AppendUint64(places, uint64(i))
	}
	hash, grant := leaf.Digest("proposal", items[0]), leaf.Hash{}
	grant, _ = l.Hash(leaf.TagGrant)
	switch {
	case err != nil:
		return bad(index, "its warrant: %v", err)
	case kept > index:
		return bad(index, "it gives up nothing")
	case q.action != "recover-ledger" || len(q.targets) != 1 || string(q.targets[0]) != act:
		return bad(index, "its warrant is for something else than to go on from the entries before it")
	case q.ledger != v.s.Ledger || q.roster != v.s.Roster:
		return bad(index, "its warrant is of another ledger or other officers")
	case v.rosters.why != "":
		return bad(0, "%s", v.rosters.why)
	case l.Time/1_000_000 < q.notBefore || l.Time/1_000_000 > q.expires+int64(warrantSlack/time.Second):
		return bad(index, "its warrant was not in force")
	case leaf.Digest("grant", hash[:], places) != grant:
		return bad(index, "its grant is not that of its warrant")
	}
	if err := v.warrantVotes(index, items, q); err != nil {
		return err
	}
	v.s.Grants[grant] = newMandate(q.targets)
	v.s.Recoveries = append(v.s.Recoveries, Recovery{Entry: index, Kept: kept, Known: known, Why: l.Text(leaf.TagReason)})
	return nil
}

// raised: CRLs of an issuer go on above a number and after a time.
func (s *State) raised(index uint64, l *leaf.Leaf) error {
	number, ok := l.Uint(leaf.TagCRLNumber)
	if !ok {
		return nil
	}
	issuer, _ := l.Hash(leaf.TagIssuer)
	this, _ := l.Uint(leaf.TagThisUpdate)
	last := s.Scopes[issuer]
	if number <= last.Number || this < last.This {
		return bad(index, "CRL numbers go back behind %d", last.Number)
	}
	s.Scopes[issuer] = scope{Number: number, This: this, Covers: last.Covers}
	return nil
}

// gaveUp tells whether a checkpoint of a size may be of entries that a recovery gave up.
func (s *State) gaveUp(size uint64) bool {
	for _, r := range s.Recoveries {
		if size > r.Kept && size <= r.Known {
			return true
		}
	}
	return false
}
