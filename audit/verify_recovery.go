package audit

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
)

// stateLost is the TagState of the OpRevoke leaf of a serial whose entry was lost.
const stateLost = "lost"

// isRecovery tells, of the bytes of a leaf, whether it is one of a recovery.
func isRecovery(leaf []byte) bool {
	return len(leaf) > 7 && Op(binary.BigEndian.Uint16(leaf[5:])) == OpRecovery
}

// recovery holds the leaf that begins a recovery: the officers signed for going on from
// just these entries. Their signatures are verified at the end, when the roster is known.
func (a *approvals) recovery(index uint64, l Leaf, list []byte) error {
	items, err := ParseList(list)
	if err != nil || len(items) < 2 {
		return violate(index, "its warrant cannot be read")
	}
	w := &warrantSeen{leaf: index, at: l.Time, proposal: items[0], votes: items[1:]}
	acts, err := ParseList(proposalField(w.proposal, 4))
	known, _ := l.Uint(TagKnown)
	common, _ := l.Uint(TagCommon)
	want := fmt.Sprintf("recover-ledger %d %x %d %d", index, a.root, common, known)
	hash := Digest("proposal", w.proposal)
	places := hash[:]
	for i := range w.votes {
		places = binary.BigEndian.AppendUint64(places, uint64(i))
	}
	grant, _ := l.Hash(TagGrant)
	switch {
	case common > index:
		return violate(index, "it gives up nothing")
	case err != nil || string(proposalField(w.proposal, 2)) != "recover-ledger" || !slices.ContainsFunc(acts, func(act []byte) bool { return string(act) == want }):
		return violate(index, "its warrant is for something else than to go on from the entries before it")
	case !bytes.Equal(proposalField(w.proposal, 1), a.ledger[:]) || !bytes.Equal(proposalField(w.proposal, 6), a.inForce[:]):
		return violate(index, "its warrant is of another ledger or other officers")
	case !w.inForce():
		return violate(index, "its warrant was not in force")
	case Digest("grant", places) != grant:
		return violate(index, "its grant is not that of its warrant")
	}
	a.recoveries[index] = w
	a.grants[grant] = newMandate(proposalField(w.proposal, 4))
	return nil
}
