package check

import (
	"bytes"
	"cmp"
	"errors"
	"slices"

	"chancery/cmd/chancery-verify/internal/leaf"
)

// signer is a key that may sign checkpoints: of leaf 0, or of a member that joined later.
// The latter counts from the first checkpoint on that covers its birth and that a key
// which counted before has signed: a grant says that some key was born, not which.
type signer struct {
	SPKI    []byte `json:"spki"`
	Birth   uint64 `json:"birth"`   // its entry; 0: leaf 0 names it
	Vouched uint64 `json:"vouched"` // size of that checkpoint; 0: none yet
	End     uint64 `json:"end"`     // entry that ended it; 0: none
}

func (s signer) counts(size uint64) bool {
	return (s.Birth == 0 || s.Vouched > 0 && s.Vouched <= size) && (s.End == 0 || s.End >= size)
}

// signerEvent follows births and ends of checkpoint keys.
func (v *verifier) signerEvent(index uint64, l *leaf.Leaf) error {
	key, _ := l.Hash(leaf.TagKey)
	purpose, _ := l.Uint(leaf.TagPurpose)
	state := l.Text(leaf.TagState)
	switch {
	case l.Op == leaf.OpKeyDestroy, l.Op == leaf.OpKeyState && (state == "destroyed" || state == "quarantined"):
		for i := range v.s.Signers {
			if k := &v.s.Signers[i]; k.End == 0 && leaf.Sum(k.SPKI) == key {
				k.End = index
			}
		}
	case l.Op == leaf.OpKeyGenerate && purpose == purposeCheckpoint:
		spki := l.Get(leaf.TagSPKI)
		if slices.ContainsFunc(v.s.Signers, func(k signer) bool { return bytes.Equal(k.SPKI, spki) }) {
			return nil
		}
		if grant, _ := l.Hash(leaf.TagGrant); grant == v.genesisGrant {
			return bad(index, "genesis bore a checkpoint key that leaf 0 does not name")
		}
		if _, err := newNoteKey(v.report.Origin, spki); err != nil || leaf.Sum(spki) != key {
			return bad(index, "it is the birth of a checkpoint key, but its public key is none")
		}
		v.s.Signers = append(v.s.Signers, signer{SPKI: bytes.Clone(spki), Birth: index})
	}
	return nil
}

// known returns who knows the keys that a tree of a size names.
func (v *verifier) known() (at func(size uint64) notary, err error) {
	var births []uint64 // ascending
	var spkis [][]byte
	for _, k := range v.s.Signers {
		births, spkis = append(births, k.Birth), append(spkis, k.SPKI)
	}
	notaries := make([]notary, len(births)+1)
	for n := range notaries {
		if notaries[n], err = newNotary(v.report.Origin, spkis[:n]); err != nil {
			return nil, err
		}
	}
	return func(size uint64) notary {
		n := 0
		for n < len(births) && (births[n] == 0 || births[n] < size) {
			n++
		}
		return notaries[n]
	}, nil
}

// judgeNotes wants of every signed checkpoint a line of a key that counts at its size, and
// no wrong line of a known one. Only now all keys are known.
func (v *verifier) judgeNotes() error {
	byID := map[uint32]*signer{}
	for i := range v.s.Signers {
		k, err := newNoteKey(v.report.Origin, v.s.Signers[i].SPKI)
		if err != nil {
			return bad(v.s.Signers[i].Birth, "%v", err)
		}
		byID[k.id] = &v.s.Signers[i]
	}
	slices.SortStableFunc(v.notes, func(a, b checkpoint) int { return cmp.Compare(a.size, b.size) })
	counts := func(c checkpoint) bool {
		return slices.ContainsFunc(c.by, func(id uint32) bool { return byID[id] != nil && byID[id].counts(c.size) })
	}
	known, err := v.known()
	if err != nil {
		return bad(0, "%v", err)
	}
	errs := make([]error, len(v.notes))
	onAll(len(v.notes), func(i int) {
		c := &v.notes[i]
		if c.text == "" {
			return
		}
		size := c.size
		if *c, errs[i] = known(size).open(c.text, c.from); errs[i] == nil && len(c.by) == 0 {
			errs[i] = errors.New("no line is by a key that its entries name")
		}
		c.size = size
	})
	for i, err := range errs {
		if c := v.notes[i]; err != nil {
			return bad(min(c.size, v.newest.size), "%s is not signed by the ledger's key: %v", c.from, err)
		}
	}
	for rest := v.notes; len(rest) > 0; {
		size, n := rest[0].size, 1
		for n < len(rest) && rest[n].size == size {
			n++
		}
		if slices.ContainsFunc(rest[:n], counts) { // the tree of that size is one
			for _, k := range byID {
				if k.Birth > 0 && k.Birth < size && k.Vouched == 0 {
					k.Vouched = size
				}
			}
		}
		for _, c := range rest[:n] {
			if !counts(c) {
				return bad(size, "%s is signed only by keys that had ended, or whose birth no checkpoint before it covers", c.from)
			}
		}
		rest = rest[n:]
	}
	return nil
}

// The purposes that a member of role checkpoint holds keys for.
const (
	purposeCheckpoint = 3
	purposeProbe      = 7
)

// role holds what a member is for: a token of role checkpoint has no other keys, before it
// joins and after.
func (s *State) role(index uint64, l *leaf.Leaf) error {
	token, role := l.Text(leaf.TagSerialNumber), l.Text(leaf.TagRole)
	switch l.Op {
	case leaf.OpMemberAdd:
		if role != "" && (role != "checkpoint" || s.Others[token]) {
			return bad(index, "a member joins with role %.20q, which is not known or not for a token that has other keys", role)
		}
		s.Roles[token] = role
	case leaf.OpKeyGenerate, leaf.OpKeyAdopt, leaf.OpKeyImport, leaf.OpRestore, leaf.OpKeyReplicate:
		key, named := l.Hash(leaf.TagKey)
		purpose, told := l.Uint(leaf.TagPurpose)
		if !told {
			purpose = s.Keys[key]
		}
		if !named || purpose == purposeCheckpoint || purpose == purposeProbe {
			return nil
		}
		if s.Others[token] = true; s.Roles[token] != "" {
			return bad(index, "token %.50q has the role %.20s and gets another key", token, s.Roles[token])
		}
	}
	return nil
}

// genesisGrant is the grant of leaf 0: its list of acts as a proposal without votes.
func genesisGrant(l *leaf.Leaf) leaf.Hash {
	p := leaf.Digest("proposal", l.Get(leaf.TagActs))
	return leaf.Digest("grant", p[:])
}
