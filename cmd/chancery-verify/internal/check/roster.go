package check

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"chancery/cmd/chancery-verify/internal/folder"
	"chancery/cmd/chancery-verify/internal/leaf"
)

// roster is who may decide, and how many must.
type roster struct {
	digest  leaf.Hash
	version uint64
	quorum  int
	cli     int // how many of the approvals must be by a CLI key
	rpID    string
	origins []string
	groups  []folder.Group
	keys    map[leaf.Hash]holder // by SHA-256 of SPKI
	leaf    uint64               // of the change that put it into force; 0: it was so before this ledger
	ledger  leaf.Hash            // in which it was decided; zero for the first
}

// holder is whose a key is.
type holder struct {
	name  string
	key   any
	cli   bool // it signs the text of a vote; else it is a passkey
	votes bool
}

// rosters are all rosters of an export, each decided by the officers of the one before.
type rosters struct {
	list []roster
	zero int    // that of leaf 0
	why  string // they cannot be used because; "" if they can
}

// readRosters takes the officers of the export if a digest of theirs stands in leaf 0 and
// every later roster was decided by the officers of the one before. Otherwise it is only an
// error once a decision is to be checked.
func readRosters(f *folder.Folder, g leaf.Leaf) (r rosters, err error) {
	file, err := f.Rosters()
	if errors.Is(err, folder.ErrMissing) {
		return rosters{why: "the export does not say who the officers are"}, nil
	} else if err != nil {
		return r, err
	}
	first, err := newRoster(file.Roster)
	if err != nil {
		return rosters{why: err.Error()}, nil
	}
	r.list = append(r.list, first)
	for _, c := range file.Changes {
		next, err := newRoster(c.Roster)
		if err == nil {
			next.ledger, err = follows(r.list[len(r.list)-1], next, c.Warrant)
		}
		if err != nil {
			return rosters{why: fmt.Sprintf("roster %d of the export: %v", c.Roster.Version, err)}, nil
		}
		next.leaf = c.Leaf
		r.list = append(r.list, next)
	}
	want, _ := g.Hash(leaf.TagRoster)
	if r.zero = slices.IndexFunc(r.list, func(x roster) bool { return x.digest == want }); r.zero < 0 {
		return rosters{why: "the officers or the quorum in the export are not those that it names"}, nil
	}
	return r, nil
}

// by finds a roster by its digest; nil if the export has none such.
func (r rosters) by(digest leaf.Hash) *roster {
	for i := range r.list {
		if r.list[i].digest == digest {
			return &r.list[i]
		}
	}
	return nil
}

// newRoster takes a roster apart and makes its digest.
func newRoster(in folder.Roster) (r roster, err error) {
	if in.Quorum < 1 || in.Quorum > 0xffff || in.CLI < 0 || in.CLI > 0xffff {
		return r, errors.New("the quorum is none")
	}
	r = roster{version: in.Version, quorum: in.Quorum, cli: in.CLI, rpID: in.RPID, origins: in.Origins, groups: in.Groups, keys: map[leaf.Hash]holder{}}
	names := map[string]bool{}
	for _, o := range in.Officers {
		if names[o.Name] {
			return r, fmt.Errorf("officer %.100q is there twice", o.Name)
		}
		names[o.Name] = true
		votes := in.Version == 0 || slices.Contains(o.Roles, folder.Role{Role: "crypto-officer"})
		if o.SPKI != nil {
			if err := r.add(o.SPKI, holder{name: o.Name, cli: true, votes: votes}); err != nil {
				return r, err
			}
		}
		for _, k := range o.Passkeys {
			if err := r.add(k.SPKI, holder{name: o.Name, votes: votes}); err != nil {
				return r, err
			}
		}
	}
	r.digest = digestOf(in)
	return r, nil
}

func (r *roster) add(spki []byte, h holder) (err error) {
	if h.key, err = x509.ParsePKIXPublicKey(spki); err != nil {
		return fmt.Errorf("a key of officer %.100q is none", h.name)
	}
	if _, ok := h.key.(*ecdsa.PublicKey); h.cli && !ok {
		return fmt.Errorf("the key of officer %.100q is none", h.name)
	}
	at := leaf.Sum(spki)
	if _, twice := r.keys[at]; twice {
		return fmt.Errorf("a key of officer %.100q is there twice", h.name)
	}
	r.keys[at] = h
	return nil
}

// digestOf is, of version 0, H("roster", quorum u16 ‖ (name, SPKI)*), the officers by SPKI.
// Of others it is H("people", version u64 ‖ quorum u16 ‖ cli u16 ‖ rp_id ‖ origins ‖
// officers ‖ groups), officers and groups by name. A text stands behind its u32 length, a
// list behind the u16 number of its items.
func digestOf(r folder.Roster) leaf.Hash {
	var b []byte
	number := func(n int) { b = binary.BigEndian.AppendUint16(b, uint16(n)) }
	text := func(s string) { b = append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...) }
	officers := slices.Clone(r.Officers)
	if r.Version == 0 {
		slices.SortFunc(officers, func(a, b folder.Officer) int { return bytes.Compare(a.SPKI, b.SPKI) })
		number(r.Quorum)
		for _, o := range officers {
			text(o.Name)
			text(string(o.SPKI))
		}
		return leaf.Digest("roster", b)
	}
	b = binary.BigEndian.AppendUint64(b, r.Version)
	number(r.Quorum)
	number(r.CLI)
	text(r.RPID)
	number(len(r.Origins))
	for _, o := range r.Origins {
		text(o)
	}
	slices.SortFunc(officers, func(a, b folder.Officer) int { return strings.Compare(a.Name, b.Name) })
	number(len(officers))
	for _, o := range officers {
		text(o.Name)
		text(string(o.SPKI))
		number(len(o.Passkeys))
		for _, k := range o.Passkeys {
			text(string(k.ID))
			text(string(k.SPKI))
			text(k.Label)
		}
		number(len(o.Roles))
		for _, a := range o.Roles {
			text(a.Role)
			text(a.Issuer)
			text(a.Profile)
			text(a.Key)
		}
	}
	groups := slices.Clone(r.Groups)
	slices.SortFunc(groups, func(a, b folder.Group) int { return strings.Compare(a.Name, b.Name) })
	number(len(groups))
	for _, g := range groups {
		text(g.Name)
		number(g.Quorum)
		number(len(g.Members))
		for _, m := range g.Members {
			text(m)
		}
	}
	return leaf.Digest("people", b)
}

// approval is D of ENCODINGS: what a decision about a proposal is signed by.
func approval(decision byte, proposal []byte) leaf.Hash {
	return leaf.Digest("approval", []byte{decision}, proposal)
}

// signed names the officer whose key signed a decision about a proposal.
func (r *roster) signed(by leaf.Hash, decision byte, proposal, signature []byte) (holder, error) {
	h, ok := r.keys[by]
	switch {
	case !ok:
		return h, errors.New("the key is of no officer")
	case decision != asks && !h.votes:
		return h, fmt.Errorf("officer %.100q does not vote", h.name)
	}
	d := approval(decision, proposal)
	if !h.cli {
		return h, r.asserted(h.key, d, signature)
	}
	sum := sha256.Sum256([]byte("chancery/approval/v1\n" + hex.EncodeToString(d[:]) + "\n"))
	if !ecdsa.VerifyASN1(h.key.(*ecdsa.PublicKey), sum[:], signature) {
		return h, errors.New("the signature does not verify")
	}
	return h, nil
}

// asked tells whether a requester is an officer: by name, or through a machine of that
// officer, "machine:X/officer:NAME".
func asked(requester, officer string) bool {
	if rest, ok := strings.CutPrefix(requester, "machine:"); ok {
		_, requester, _ = strings.Cut(rest, "/")
	}
	return requester == "officer:"+officer
}

// enough tells whether approvals by these keys decide: as many officers as the quorum and
// each group want, and as many CLI keys.
func (r *roster) enough(keys []leaf.Hash) error {
	names := map[string]bool{}
	cli := 0
	for _, k := range keys {
		h := r.keys[k]
		if names[h.name] {
			return fmt.Errorf("officer %.100q stands there twice", h.name)
		}
		names[h.name] = true
		if h.cli {
			cli++
		}
	}
	if len(names) < r.quorum || len(names) == 0 {
		return fmt.Errorf("%d approvals of %d", len(names), r.quorum)
	}
	if cli < r.cli {
		return fmt.Errorf("%d approvals by a CLI key of %d", cli, r.cli)
	}
	for _, g := range r.groups {
		n := 0
		for _, m := range g.Members {
			if names[m] {
				n++
			}
		}
		if n < g.Quorum {
			return fmt.Errorf("%d approvals of group %.100q of %d", n, g.Name, g.Quorum)
		}
	}
	return nil
}

// warranted holds the votes of a warrant, which stand as SHA-256 of SPKI ‖ signature behind
// the proposal: distinct officers, none of them who asked, approved exactly that.
func (r *roster) warranted(items [][]byte, q request) error {
	var keys []leaf.Hash
	for _, vote := range items[1:] {
		if len(vote) <= 32 {
			return errors.New("a vote of its warrant cannot be read")
		}
		by := leaf.Hash(vote[:32])
		h, err := r.signed(by, approves, items[0], vote[32:])
		twice := slices.ContainsFunc(keys, func(k leaf.Hash) bool { return r.keys[k].name == h.name })
		if err != nil || twice || asked(q.requester, h.name) {
			return errors.New("a vote of its warrant is not that of an officer, or there twice")
		}
		keys = append(keys, by)
	}
	if err := r.enough(keys); err != nil {
		return fmt.Errorf("its warrant rests on %w", err)
	}
	return nil
}

// changeAct is the act of a change, as officers sign it.
func changeAct(version uint64, before, after leaf.Hash) string {
	return fmt.Sprintf("change-roster %d %s %s", version, before, after)
}

// follows holds a roster against the warrant of the officers before it, and returns the
// ledger in which they decided it.
func follows(before, next roster, warrant [][]byte) (ledger leaf.Hash, err error) {
	if len(warrant) < 2 {
		return ledger, errors.New("nobody decided it")
	}
	q, err := readRequest(warrant[0])
	switch {
	case err != nil:
		return ledger, err
	case next.version != before.version+1:
		return ledger, fmt.Errorf("it cannot follow roster %d", before.version)
	case q.action != "change-roster" || q.roster != before.digest || len(q.targets) != 1 || string(q.targets[0]) != changeAct(next.version, before.digest, next.digest):
		return ledger, errors.New("its warrant is for something else")
	}
	return q.ledger, before.warranted(warrant, q)
}

// change follows an entry that puts another roster into force: the officers of the one in
// force allowed exactly that one, once.
func (v *verifier) change(index uint64, l *leaf.Leaf) error {
	s := v.s
	g, granted := l.Hash(leaf.TagGrant)
	digest, named := l.Hash(leaf.TagRoster)
	version, counted := l.Uint(leaf.TagVersion)
	m := s.Grants[g]
	switch {
	case v.rosters.why != "":
		return bad(0, "%s", v.rosters.why)
	case !granted || !named || !counted:
		return bad(index, "it changes the roster without a grant, or does not say to what")
	case m == nil || m.Ended || !m.use(act{words: strings.Fields(changeAct(version, s.InForce, digest)), once: true, whole: true}):
		return bad(index, "the officers did not grant that this roster follows the one in force")
	}
	if next := v.rosters.by(digest); next == nil || next.version != version || next.leaf != index {
		return bad(index, "the export does not hold the roster that it puts into force")
	}
	s.InForce = digest
	return nil
}

// restored tells whether the officers of leaf 0 followed from those of leaf 0 of the
// predecessor, by decisions in that ledger.
func (r rosters) restored(digest, predecessor leaf.Hash) bool {
	at := slices.IndexFunc(r.list[:r.zero+1], func(x roster) bool { return x.digest == digest })
	return at >= 0 && !slices.ContainsFunc(r.list[at+1:r.zero+1], func(x roster) bool { return x.leaf != 0 || x.ledger != predecessor })
}
