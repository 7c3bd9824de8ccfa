package check

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json/v2"
	"errors"
	"fmt"
	"slices"
	"strings"

	"chancery/cmd/chancery-verify/internal/folder"
	"chancery/cmd/chancery-verify/internal/leaf"
)

// The decisions of an officer.
const (
	asks     = 0
	approves = 1
	rejects  = 2
)

// rosters are all that were ever in force, by their digests.
type rosters struct {
	by  map[leaf.Hash]*roster
	all []*roster // oldest first
	why string    // they cannot be used because; "" if they can
}

// roster is who may decide, and how many must.
type roster struct {
	folder.Roster
	digest leaf.Hash
	keys   map[leaf.Hash]key // by SPKI

	warrant folder.Warrant // of the officers before; of all but the first
	entry   uint64         // that put it into force; 0: none of this ledger
}

// key is one of an officer's.
type key struct {
	officer string
	votes   bool
	cli     bool
	spki    []byte
}

// readRosters takes the officers of the export if the digest of one roster stands in leaf
// 0. Otherwise it is only an error once a decision is to be checked.
func readRosters(f *folder.Folder, g leaf.Leaf) (r rosters, err error) {
	file, err := f.Rosters()
	if errors.Is(err, folder.ErrMissing) {
		return rosters{why: "the export does not say who the officers are"}, nil
	} else if err != nil {
		return r, err
	}
	r.by = map[leaf.Hash]*roster{}
	r.add(&roster{Roster: file.Roster})
	for _, c := range file.Changes {
		r.add(&roster{Roster: c.Roster, warrant: c.Warrant, entry: c.Leaf})
	}
	if want, _ := g.Hash(leaf.TagRoster); r.by[want] == nil {
		r.why = "the officers or the quorum in the export are not those that it names"
	}
	return r, nil
}

func (r *rosters) add(one *roster) {
	one.digest, one.keys = digestOf(one.Roster), map[leaf.Hash]key{}
	names := map[string]bool{}
	put := func(k key) {
		h := leaf.Sum(k.spki)
		if _, twice := one.keys[h]; twice { // whose vote would it be?
			r.why = fmt.Sprintf("roster %d has a key of officer %.64q twice", one.Version, k.officer)
		}
		one.keys[h] = k
	}
	for _, o := range one.Officers {
		if names[o.Name] {
			r.why = fmt.Sprintf("roster %d has officer %.64q twice", one.Version, o.Name)
		}
		names[o.Name] = true
		// Crypto officers vote; those of the first roster all are.
		votes := one.Version == 0 || slices.Contains(o.Roles, folder.Role{Role: "crypto-officer"})
		if o.SPKI != nil {
			put(key{o.Name, votes, true, o.SPKI})
		}
		for _, k := range o.Passkeys {
			put(key{o.Name, votes, false, k.SPKI})
		}
	}
	if why := flaw(one.Roster); why != "" {
		r.why = fmt.Sprintf("roster %d %s", one.Version, why)
	}
	r.by[one.digest] = one
	r.all = append(r.all, one)
}

// maxQuorum bounds every quorum, in [2, 20] of all and [1, 20] of a group.
const maxQuorum = 20

// flaw tells why a roster decides nothing, whatever its digest is: that one has only names,
// keys and the quorum of the first roster, and only 16 bits of a number.
func flaw(r folder.Roster) string {
	more := len(r.Groups) > 0 || r.CLI != 0 || r.RPID != "" || len(r.Origins) > 0
	for _, o := range r.Officers {
		more = more || len(o.Passkeys) > 0 || len(o.Roles) > 0
	}
	switch {
	case r.Version == 0 && more:
		return "has more than its digest says"
	case r.Quorum < 2 || r.Quorum > maxQuorum:
		return fmt.Sprintf("lets %d officers decide", r.Quorum)
	case r.CLI < 0 || r.CLI > maxQuorum:
		return fmt.Sprintf("wants %d approvals by CLI keys", r.CLI)
	}
	for _, g := range r.Groups {
		members := slices.Compact(slices.Sorted(slices.Values(g.Members)))
		if g.Quorum < 1 || g.Quorum > maxQuorum || len(members) != len(g.Members) {
			return fmt.Sprintf("has a group %.64q of %d, or with a member twice", g.Name, g.Quorum)
		}
	}
	return ""
}

// digestOf is, for the first roster, H("roster", quorum u16 ‖ (name, SPKI)*) in the order of
// the SPKIs; for others H("people", version u64 ‖ quorum u16 ‖ cli u16 ‖ rp_id ‖ origins ‖
// officers ‖ groups), these in the order of their names. Texts stand behind u32 lengths,
// lists behind u16 counts.
func digestOf(r folder.Roster) leaf.Hash {
	var b []byte
	n := func(n int) { b = binary.BigEndian.AppendUint16(b, uint16(n)) }
	put := func(v ...[]byte) {
		for _, t := range v {
			b = append(binary.BigEndian.AppendUint32(b, uint32(len(t))), t...)
		}
	}
	officers, groups := slices.Clone(r.Officers), slices.Clone(r.Groups)
	if r.Version == 0 {
		slices.SortFunc(officers, func(a, b folder.Officer) int { return bytes.Compare(a.SPKI, b.SPKI) })
		n(r.Quorum)
		for _, o := range officers {
			put([]byte(o.Name), o.SPKI)
		}
		return leaf.Digest("roster", b)
	}
	slices.SortFunc(officers, func(a, b folder.Officer) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(groups, func(a, b folder.Group) int { return strings.Compare(a.Name, b.Name) })
	b = binary.BigEndian.AppendUint64(b, r.Version)
	n(r.Quorum)
	n(r.CLI)
	put([]byte(r.RPID))
	n(len(r.Origins))
	for _, o := range r.Origins {
		put([]byte(o))
	}
	n(len(officers))
	for _, o := range officers {
		put([]byte(o.Name), o.SPKI)
		n(len(o.Passkeys))
		for _, k := range o.Passkeys {
			put(k.ID, k.SPKI, []byte(k.Label))
		}
		n(len(o.Roles))
		for _, a := range o.Roles {
			put([]byte(a.Role), []byte(a.Issuer), []byte(a.Profile), []byte(a.Key))
		}
	}
	n(len(groups))
	for _, g := range groups {
		put([]byte(g.Name))
		n(g.Quorum)
		n(len(g.Members))
		for _, m := range g.Members {
			put([]byte(m))
		}
	}
	return leaf.Digest("people", b)
}

// signed tells whether the officer with this key signed a decision over a proposal
// (ENCODINGS, D), and may do so.
func (r *roster) signed(by leaf.Hash, decision byte, proposal, signature []byte) bool {
	k, ok := r.keys[by]
	if !ok || decision != asks && !k.votes {
		return false
	}
	d := leaf.Digest("approval", []byte{decision}, proposal)
	if !k.cli {
		return r.asserted(k.spki, d, signature) == nil
	}
	pub, err := x509.ParsePKIXPublicKey(k.spki)
	ec, ok := pub.(*ecdsa.PublicKey)
	sum := sha256.Sum256([]byte("chancery/approval/v1\n" + hex.EncodeToString(d[:]) + "\n"))
	return err == nil && ok && ecdsa.VerifyASN1(ec, sum[:], signature)
}

// maxAssertion is the most octets that the vote of a passkey has.
const maxAssertion = 8 << 10

// asserted verifies what a passkey signed (W3C WebAuthn Level 3 §7.2): a list of
// authenticator data, client data and signature.
func (r *roster) asserted(spki []byte, challenge leaf.Hash, signature []byte) error {
	parts, err := leaf.List(signature)
	if err != nil || len(parts) != 3 || len(signature) > maxAssertion {
		return errors.New("it is no assertion")
	}
	data, client, sig := parts[0], parts[1], parts[2]
	var says struct {
		Type        string `json:"type"`
		Challenge   string `json:"challenge"`
		Origin      string `json:"origin"`
		CrossOrigin bool   `json:"crossOrigin"`
	}
	if err := json.Unmarshal(client, &says); err != nil { // a member that stands there twice is refused
		return err
	}
	rp := sha256.Sum256([]byte(r.RPID))
	const present, verified = 0x01, 0x04
	switch {
	case says.Type != "webauthn.get", says.CrossOrigin, says.Challenge != base64.RawURLEncoding.EncodeToString(challenge[:]):
		return errors.New("it is about something else")
	case r.RPID == "", !slices.Contains(r.Origins, says.Origin), len(data) < 37, !bytes.Equal(data[:32], rp[:]):
		return errors.New("it was made elsewhere")
	case data[32]&present == 0, data[32]&verified == 0:
		return errors.New("nobody was verified")
	}
	pub, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return err
	}
	inner := sha256.Sum256(client)
	message := slices.Concat(data, inner[:])
	sum := sha256.Sum256(message)
	good := false
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		good = k.Curve == elliptic.P256() && ecdsa.VerifyASN1(k, sum[:], sig)
	case ed25519.PublicKey:
		good = ed25519.Verify(k, message, sig)
	case *rsa.PublicKey:
		good = k.N.BitLen() >= 2048 && k.N.BitLen() <= 4096 && rsa.VerifyPKCS1v15(k, crypto.SHA256, sum[:], sig) == nil
	}
	if !good {
		return errors.New("the signature is wrong")
	}
	return nil
}

// asked tells whether a requester is this officer, or a machine of theirs: who asks does
// not decide.
func asked(requester, officer string) bool {
	if machine, ok := strings.CutPrefix(requester, "machine:"); ok {
		_, requester, _ = strings.Cut(machine, "/")
	}
	return requester == "officer:"+officer
}

// enough tells why approvals with these keys do not decide; "": they do.
func (r *roster) enough(keys []leaf.Hash) string {
	names, cli := map[string]bool{}, map[string]bool{}
	for _, h := range keys {
		k := r.keys[h]
		names[k.officer] = true
		if k.cli {
			cli[k.officer] = true
		}
	}
	if len(names) < r.Quorum || len(names) == 0 {
		return fmt.Sprintf("%d approvals of %d", len(names), r.Quorum)
	}
	if len(cli) < r.CLI {
		return fmt.Sprintf("%d approvals by CLI keys of %d", len(cli), r.CLI)
	}
	for _, g := range r.Groups {
		n := 0
		for _, m := range g.Members {
			if names[m] {
				n++
			}
		}
		if n < g.Quorum {
			return fmt.Sprintf("%d approvals of %d in group %.64q", n, g.Quorum, g.Name)
		}
	}
	return ""
}

// leads tells whether the officers of each roster decided on the next, from one digest to
// another: in a predecessor's ledger, which is not at hand.
func (r rosters) leads(from, to, ledger leaf.Hash) error {
	at := slices.IndexFunc(r.all, func(x *roster) bool { return x.digest == from })
	if at < 0 {
		return errors.New("the export does not hold the officers of the predecessor")
	}
	for ; r.all[at].digest != to; at++ {
		if at+1 == len(r.all) {
			return errors.New("the officers of the predecessor did not decide on these")
		}
		next := r.all[at+1]
		if err := next.follows(r.all[at], ledger); err != nil {
			return err
		}
		if next.entry != 0 {
			return fmt.Errorf("roster %d came into force in this ledger, not before it", next.Version)
		}
	}
	return nil
}

// follows tells whether the officers of one roster decided on this one, in a ledger.
func (r *roster) follows(before *roster, ledger leaf.Hash) error {
	q, err := readRequest(r.warrant.Proposal)
	act := changeRoster(r.Version, before.digest, r.digest)
	if err != nil || q.ledger != ledger || q.roster != before.digest || q.action != "change-roster" || len(q.targets) != 1 || string(q.targets[0]) != act || r.Version != before.Version+1 {
		return fmt.Errorf("roster %d was not decided after roster %d", r.Version, before.Version)
	}
	var keys []leaf.Hash
	seen := map[string]bool{}
	for _, v := range r.warrant.Votes {
		by := leaf.Sum(v.SPKI)
		name := before.keys[by].officer
		if seen[name] || asked(q.requester, name) || !before.signed(by, approves, r.warrant.Proposal, v.Signature) {
			return fmt.Errorf("roster %d rests on a vote that is none", r.Version)
		}
		seen[name] = true
		keys = append(keys, by)
	}
	if why := before.enough(keys); why != "" {
		return fmt.Errorf("roster %d rests on %s", r.Version, why)
	}
	return nil
}

func changeRoster(version uint64, before, after leaf.Hash) string {
	return fmt.Sprintf("change-roster %d %s %s", version, before, after)
}

// rosterChange: the officers in force allowed just this roster to follow (P7).
func (v *verifier) rosterChange(index uint64, l *leaf.Leaf) error {
	g, named := l.Hash(leaf.TagGrant)
	digest, says := l.Hash(leaf.TagRoster)
	version, counts := l.Uint(leaf.TagVersion)
	m := v.s.Grants[g]
	switch {
	case !named || !says || !counts:
		return bad(index, "it changes the roster without a grant, or without saying to what")
	case m == nil || m.Ended || !m.use(act{words: strings.Fields(changeRoster(version, v.s.Roster, digest)), once: true, whole: true}):
		return bad(index, "no officers allowed this roster to follow the one in force")
	}
	if v.rosters.why == "" {
		r := v.rosters.by[digest]
		if r == nil || r.entry != index || r.Version != version {
			return bad(index, "the export does not hold the roster that it put into force")
		}
		if before := v.rosters.by[v.s.Roster]; before == nil || version != before.Version+1 {
			return bad(index, "roster %d follows none of version %d", version, version-1)
		}
	}
	v.s.Roster = digest
	return nil
}
