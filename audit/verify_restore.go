package audit

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strings"
	"time"
)

// restoring is what the leaves say of the restore that began a ledger: the predecessor,
// what its officers signed, and how much was carried over until the restore ended.
type restoring struct {
	previous string // last checkpoint of the predecessor, as leaf 0 has it; "": there is none
	origin   string // of the predecessor
	roster   [32]byte
	manifest [32]byte
	warrant  *warrantSeen
	carried  uint64 // revocations
	ended    bool
}

// warrantSeen is what the officers of a predecessor signed for a restore, or those of this
// ledger for a recovery.
type warrantSeen struct {
	leaf        uint64
	at          time.Time
	predecessor []byte // its leaf 0; of a restore
	proposal    []byte
	votes       [][]byte // officer ‖ signature
}

// stateComplete is the TagState of the OpRestore leaf that ends a restore.
const stateComplete = "complete"

func (r *restoring) genesis(l Leaf) {
	previous, _ := l.Get(TagPrevious)
	r.previous = string(previous)
	r.origin, _, _ = strings.Cut(r.previous, "\n")
	r.roster, _ = l.Hash(TagRoster)
}

// event follows a leaf of the restore: first the warrant, then keys and issuers, all from
// the one manifest, then the end.
func (r *restoring) event(index uint64, l Leaf) error {
	if r.previous == "" {
		return violate(index, "it restores something, but leaf 0 names no predecessor")
	}
	source, _ := l.Get(TagSource)
	manifest, _ := l.Hash(TagManifest)
	list, isWarrant := l.Get(TagWarrant)
	switch {
	case string(source) != r.origin:
		return violate(index, "it restores from %q, leaf 0 names %q", Text(string(source), 100), r.origin)
	case r.ended:
		return violate(index, "it restores something after the restore had ended")
	case isWarrant == (r.warrant != nil):
		return violate(index, "a restore begins with its one warrant")
	case !isWarrant && manifest != r.manifest:
		return violate(index, "it restores from another manifest than the officers allowed")
	}
	if isWarrant {
		items, err := ParseList(list)
		if err != nil || len(items) == 0 {
			return violate(index, "its warrant cannot be read")
		}
		predecessor, _ := l.Get(TagPredecessor)
		r.manifest, r.warrant = manifest, &warrantSeen{index, l.Time, bytes.Clone(predecessor), items[0], items[1:]}
		return nil
	}
	if state, _ := l.Get(TagState); string(state) == stateComplete {
		if _, key := l.Get(TagKey); !key {
			count, _ := l.Uint(TagCount)
			if count != r.carried {
				return violate(index, "it says that %d revocations were carried over, %d were", count, r.carried)
			}
			r.ended = true
		}
	}
	return nil
}

// revocation follows a revocation of what the predecessor issued: carried over from its
// CRLs while the restore is under way, or asked for with the certificate afterwards. ends
// is when the certificate ends, in seconds since 1970; 0: the leaf does not say.
func (r *restoring) revocation(index uint64, l Leaf) (ends uint64, err error) {
	source, _ := l.Get(TagSource)
	ends, asked := l.Uint(TagNotAfter)
	if r.warrant == nil || r.ended != asked {
		return 0, violate(index, "it revokes what a predecessor issued, but there is none, or its restore has ended or not yet ended")
	}
	if string(source) != r.origin {
		return 0, violate(index, "it revokes what %q issued, leaf 0 names %q", Text(string(source), 100), r.origin)
	}
	if asked {
		return ends, nil
	}
	if manifest, _ := l.Hash(TagManifest); manifest != r.manifest {
		return 0, violate(index, "it carries a revocation over from another manifest than the officers allowed")
	}
	r.carried++
	return 0, nil
}

// finish holds the signatures of the warrant: a quorum of distinct officers of the
// predecessor approved exactly this manifest. It returns the predecessor's id in hex, or "".
func (r *restoring) finish(e electorates) (succeeds string, err error) {
	if r.previous == "" {
		return "", nil
	}
	w := r.warrant
	if w == nil || !r.ended {
		return "", violate(0, "it names a predecessor, but the restore was never finished")
	}
	leaf0, origin, spkis, err := OpenGenesis(w.predecessor)
	if err != nil {
		return "", violate(w.leaf, "leaf 0 of the predecessor: %v", err)
	}
	if _, err := OpenCheckpoint(r.previous, origin, spkis); err != nil {
		return "", violate(0, "the checkpoint of the predecessor that it names is not signed by that ledger's keys: %v", err)
	}
	field := func(tag uint16) []byte { return proposalField(w.proposal, tag) }
	acts, err := ParseList(field(4))
	roster, _ := leaf0.Hash(TagRoster)
	switch {
	case err != nil, origin != r.origin, !bytes.Equal(field(1), leaf0.Ledger[:]), string(field(2)) != "restore",
		!slices.ContainsFunc(acts, func(act []byte) bool { return string(act) == "restore "+hex.EncodeToString(r.manifest[:]) }):
		return "", violate(w.leaf, "its warrant is for something else")
	case !e.restored(roster, leaf0.Ledger) || !bytes.Equal(field(6), r.roster[:]):
		return "", violate(w.leaf, "its warrant is of other officers than the predecessor's")
	case !w.inForce():
		return "", violate(w.leaf, "its warrant was not in force")
	}
	electorate, ok := e.by(r.roster[:])
	if !ok {
		return "", violate(w.leaf, "the database does not hold the officers of its warrant")
	}
	if err := w.signed(electorate); err != nil {
		return "", err
	}
	return hex.EncodeToString(leaf0.Ledger[:]), nil
}

// inForce: it was used in its time.
func (w *warrantSeen) inForce() bool {
	seconds := func(tag uint16) int64 {
		if b := proposalField(w.proposal, tag); len(b) == 8 {
			return int64(binary.BigEndian.Uint64(b))
		}
		return -1
	}
	return w.at.Unix() >= seconds(9) && w.at.Unix() <= seconds(10)+int64(warrantSlack/time.Second)
}

// signed: enough distinct officers approved exactly the proposal.
func (w *warrantSeen) signed(e Electorate) error {
	var approved []string
	n := 0
	for _, v := range w.votes {
		if len(v) <= 32 {
			return violate(w.leaf, "a vote of its warrant cannot be read")
		}
		officer, cli, err := e.Signer([32]byte(v[:32]), decisionApprove, w.proposal, v[32:])
		if err != nil || slices.Contains(approved, officer) || e.Asked(string(proposalField(w.proposal, 7)), officer) {
			return violate(w.leaf, "a vote of its warrant is not that of an officer, or there twice")
		}
		approved = append(approved, officer)
		if cli {
			n++
		}
	}
	if err := e.Enough(approved, n); err != nil {
		return violate(w.leaf, "its warrant rests on too little: %v", err)
	}
	return nil
}

// warrantSlack is how long after its last moment a warrant may still be written down: it
// is checked when the restore begins.
const warrantSlack = time.Hour
