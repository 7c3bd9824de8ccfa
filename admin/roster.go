package admin

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"chancery/audit"
)

// Roster is the people of a CA, what each may do, and how many must approve what no
// single one may do. The one of leaf 0 has version 0: officers with a CLI key each, who
// all vote. Every later one is a decision of the officers of the one before it and has
// the next version, see [History].
type Roster struct {
	Officers []Officer `json:"officers"`
	Quorum   int       `json:"quorum"` // M of all who vote

	Version uint64   `json:"version,omitzero"`
	Groups  []Group  `json:"groups,omitempty"`   // each must reach its own quorum, too
	CLI     int      `json:"cli_votes,omitzero"` // how many of the approvals must be by a CLI key
	RPID    string   `json:"rp_id,omitempty"`    // of passkeys (W3C WebAuthn Level 3 §5.1.2): a host name
	Origins []string `json:"origins,omitempty"`  // from which passkeys sign: "https://ca.example"
}

// Group is some of the voters, of whom M must be among those who approve.
type Group struct {
	Name    string   `json:"name"`
	Quorum  int      `json:"quorum"`
	Members []string `json:"members"` // names of officers
}

// The bounds of a quorum: fewer than two is no shared decision.
const (
	MinQuorum = 2
	MaxQuorum = 20
)

// The bounds of a roster; the whole of it stands in the parameters of a proposal.
const (
	maxOfficers = 64
	maxGroups   = 16
	maxPasskeys = 8
	maxRoles    = 16
	maxOrigins  = 4
)

// Check tells whether r can decide anything, and whether all of it is as it must be.
func (r Roster) Check() error {
	if len(r.Officers) > maxOfficers || len(r.Groups) > maxGroups || len(r.Origins) > maxOrigins {
		return fmt.Errorf("a roster has at most %d officers, %d groups and %d origins", maxOfficers, maxGroups, maxOrigins)
	}
	if voters := len(r.voting()); r.Quorum < MinQuorum || r.Quorum > MaxQuorum || r.Quorum > voters {
		return fmt.Errorf("a quorum of %d of %d officers is not possible; M is %d to %d and at most the number of officers who vote", r.Quorum, voters, MinQuorum, MaxQuorum)
	}
	seen := map[string]bool{}
	twice := func(what string) bool { was := seen[what]; seen[what] = true; return was }
	for _, o := range r.Officers {
		if err := r.checkOfficer(o); err != nil {
			return err
		}
		again := twice("name " + o.Name)
		for _, k := range o.keys() {
			again = twice("key "+string(k)) || again
		}
		for _, k := range o.Passkeys {
			again = twice("id "+string(k.ID)) || again
		}
		if again {
			return fmt.Errorf("officer %s: the same name or key twice; officers are distinct people", o.Name)
		}
	}
	if r.Version == 0 {
		if len(r.Groups) > 0 || r.CLI != 0 || r.RPID != "" || len(r.Origins) > 0 {
			return fmt.Errorf("the roster of version 0 has neither groups nor passkeys")
		}
		return nil
	}
	if err := r.checkRP(); err != nil {
		return err
	}
	return r.checkGroups()
}

func (r Roster) checkOfficer(o Officer) error {
	if o.Name == "" || audit.Text(o.Name, 64) != o.Name {
		return fmt.Errorf("officer name %q: 1 to 64 octets of plain text, please", o.Name)
	}
	if r.Version == 0 {
		if len(o.Passkeys)+len(o.Roles) > 0 {
			return fmt.Errorf("officer %s: the roster of version 0 has CLI keys only", o.Name)
		}
		_, err := ParseOfficer(o.Name, o.SPKI)
		return err
	}
	if strings.ContainsAny(o.Name, "/\n") {
		return fmt.Errorf("officer name %q: no slash, please", o.Name)
	}
	if o.SPKI != nil {
		if _, err := ParseOfficer(o.Name, o.SPKI); err != nil {
			return err
		}
	}
	if len(o.Passkeys) > maxPasskeys || len(o.Roles) > maxRoles || len(o.Roles) == 0 {
		return fmt.Errorf("officer %s: at least one role, at most %d passkeys and %d roles", o.Name, maxPasskeys, maxRoles)
	}
	for _, k := range o.Passkeys {
		if err := k.Check(); err != nil {
			return fmt.Errorf("officer %s: %w", o.Name, err)
		}
	}
	if err := CheckAssignments(o.Roles); err != nil {
		return fmt.Errorf("officer %s: %w", o.Name, err)
	}
	if len(o.keys()) == 0 {
		return fmt.Errorf("officer %s: %w", o.Name, errNoKey)
	}
	return nil
}

var errNoKey = errors.New("at least one key, a CLI key or a passkey")

// checkRP wants a host name, and origins beneath it (WebAuthn Level 3 §5.1.3).
func (r Roster) checkRP() error {
	passkeys := slices.ContainsFunc(r.Officers, func(o Officer) bool { return len(o.Passkeys) > 0 })
	if r.RPID == "" && len(r.Origins) == 0 && !passkeys {
		return nil
	}
	if r.RPID == "" || len(r.Origins) == 0 || strings.ToLower(r.RPID) != r.RPID || net.ParseIP(r.RPID) != nil || strings.ContainsAny(r.RPID, ":/ \n") {
		return fmt.Errorf("passkeys need rp_id, a host name, and origins; rp_id is %q", audit.Text(r.RPID, 128))
	}
	for _, o := range r.Origins {
		u, err := url.Parse(o)
		if err != nil || u.Scheme+"://"+u.Host != o || u.Hostname() != r.RPID && !strings.HasSuffix(u.Hostname(), "."+r.RPID) ||
			u.Scheme != "https" && (u.Scheme != "http" || u.Hostname() != "localhost") {
			return fmt.Errorf("origin %q: https://HOST[:PORT] with the host %s or one beneath it; http://localhost in dev", audit.Text(o, 128), r.RPID)
		}
	}
	return nil
}

// checkGroups wants each group to be able to decide, and no single person to be enough.
func (r Roster) checkGroups() error {
	names, cli := map[string]bool{}, 0
	for _, o := range r.voting() {
		if o.SPKI != nil {
			cli++
		}
	}
	if r.CLI < 0 || r.CLI > cli || r.CLI > MaxQuorum {
		return fmt.Errorf("cli_votes is %d, but %d officers who vote have a CLI key", r.CLI, cli)
	}
	for _, g := range r.Groups {
		if g.Name == "" || audit.Text(g.Name, 64) != g.Name || strings.ContainsAny(g.Name, " \n") || names[g.Name] {
			return fmt.Errorf("group name %q: 1 to 64 octets without blanks, each once", audit.Text(g.Name, 64))
		}
		names[g.Name] = true
		for i, m := range g.Members {
			if o, ok := r.Officer(m); !ok || !o.votes(r.Version) || slices.Contains(g.Members[:i], m) {
				return fmt.Errorf("group %s: %q is no officer who votes, or stands there twice", g.Name, audit.Text(m, 64))
			}
		}
		if g.Quorum < 1 || g.Quorum > MaxQuorum || g.Quorum > len(g.Members) {
			return fmt.Errorf("group %s: %d of %d is not possible", g.Name, g.Quorum, len(g.Members))
		}
	}
	return nil
}

// keys are the SPKIs of all keys of an officer.
func (o Officer) keys() (out [][]byte) {
	if o.SPKI != nil {
		out = append(out, o.SPKI)
	}
	for _, k := range o.Passkeys {
		out = append(out, k.SPKI)
	}
	return out
}

// Holds tells whether one of the officer's keys has this SPKI.
func (o Officer) Holds(spki []byte) bool {
	return slices.ContainsFunc(o.keys(), func(k []byte) bool { return bytes.Equal(k, spki) })
}

// votes tells whether an officer of a roster of a version decides with the others.
func (o Officer) votes(version uint64) bool {
	return version == 0 || slices.ContainsFunc(o.Roles, func(a Assignment) bool { return a == Assignment{Role: CryptoOfficer} })
}

// Votes tells whether an officer of this roster decides with the others: crypto officers
// without a limit do.
func (r Roster) Votes(o Officer) bool { return o.votes(r.Version) }

func (r Roster) voting() (out []Officer) {
	for _, o := range r.Officers {
		if o.votes(r.Version) {
			out = append(out, o)
		}
	}
	return out
}

// ShareHolders are the officers who vote and have a CLI key, to which a share of a secret
// can be sealed.
func (r Roster) ShareHolders() []Officer {
	return slices.DeleteFunc(r.voting(), func(o Officer) bool { return o.SPKI == nil })
}

// Principal is an officer who signed in.
func (r Roster) Principal(o Officer) Principal {
	p := Principal{Kind: ByOfficer, Name: o.Name, Assignments: o.Roles}
	if r.Version == 0 {
		p.Assignments = []Assignment{{Role: CryptoOfficer}}
	}
	return p
}

// Successor is a copy of r with the next version, to be changed: nothing of r changes with
// it. Officers of version 0 become crypto officers by name.
func (r Roster) Successor() Roster {
	next := r
	next.Version++
	next.Officers = slices.Clone(r.Officers)
	for i := range next.Officers {
		o := &next.Officers[i]
		o.Passkeys, o.Roles = slices.Clone(o.Passkeys), slices.Clone(o.Roles)
		if r.Version == 0 {
			o.Roles = []Assignment{{Role: CryptoOfficer}}
		}
	}
	next.Groups = slices.Clone(r.Groups)
	for i := range next.Groups {
		next.Groups[i].Members = slices.Clone(next.Groups[i].Members)
	}
	next.Origins = slices.Clone(r.Origins)
	return next
}

// Officer finds an officer by name.
func (r Roster) Officer(name string) (Officer, bool) {
	for _, o := range r.Officers {
		if o.Name == name {
			return o, true
		}
	}
	return Officer{}, false
}

// ByPasskey finds an officer by the ID of a credential.
func (r Roster) ByPasskey(id []byte) (Officer, Passkey, bool) {
	for _, o := range r.Officers {
		for _, k := range o.Passkeys {
			if bytes.Equal(k.ID, id) {
				return o, k, true
			}
		}
	}
	return Officer{}, Passkey{}, false
}

// Enrolled tells whether somebody can sign in with a passkey.
func (r Roster) Enrolled() bool {
	return slices.ContainsFunc(r.Officers, func(o Officer) bool { return len(o.Passkeys) > 0 })
}

// Administered tells whether somebody can sign in with a passkey who lets others in: an
// administrator, or a crypto officer, whose machine hands in what others sign.
func (r Roster) Administered() bool {
	return slices.ContainsFunc(r.Officers, func(o Officer) bool {
		p := r.Principal(o)
		return len(o.Passkeys) > 0 && p.May(ManageMachines, Resource{})
	})
}

// reached tells whether these officers' approvals are enough, with cli of them by CLI
// keys; if not, why.
func (r Roster) reached(approved []string, cli int) error {
	if len(approved) < r.Quorum {
		return fmt.Errorf("%d approvals, %d needed", len(approved), r.Quorum)
	}
	if cli < r.CLI {
		return fmt.Errorf("%d approvals by a CLI key, %d needed", cli, r.CLI)
	}
	for _, g := range r.Groups {
		n := 0
		for _, name := range approved {
			if slices.Contains(g.Members, name) {
				n++
			}
		}
		if n < g.Quorum {
			return fmt.Errorf("%d approvals of group %s, %d needed", n, g.Name, g.Quorum)
		}
	}
	return nil
}

// Signer implements audit.Electorate.
func (r Roster) Signer(key [32]byte, decision uint8, proposal, signature []byte) (officer string, cli bool, err error) {
	for _, o := range r.Officers {
		for _, k := range o.keys() {
			if sha256.Sum256(k) != key {
				continue
			}
			if d := Decision(decision); d != Request && !r.Votes(o) {
				return "", false, fmt.Errorf("officer %s does not vote", o.Name)
			}
			return o.Name, bytes.Equal(k, o.SPKI), r.VerifyVote(o, k, Decision(decision), proposal, signature)
		}
	}
	return "", false, errors.New("the key is on no such roster")
}

// Enough implements audit.Electorate.
func (r Roster) Enough(officers []string, cli int) error { return r.reached(officers, cli) }

// Asked implements audit.Electorate.
func (r Roster) Asked(requester, officer string) bool { return asksAs(requester, officer) }

var _ audit.Electorate = Roster{}

// possible tells whether a proposal can still be approved when these officers do not:
// its requester and those who rejected it.
func (r Roster) possible(requester string, rejected []string) bool {
	var left []string
	cli := 0
	for _, o := range r.voting() {
		if asksAs(requester, o.Name) || slices.Contains(rejected, o.Name) {
			continue
		}
		left = append(left, o.Name)
		if o.SPKI != nil {
			cli++
		}
	}
	return r.reached(left, cli) == nil
}

// Digest is the roster digest of leaf 0 and of proposals. Version 0: see [RosterDigest].
// Others: H("people", version u64 ‖ quorum u16 ‖ cli u16 ‖ rp_id ‖ origins ‖ officers ‖
// groups), where a text stands behind its u32 length and a list behind the u16 number of
// its items; officers and groups are in the order of their names, all else as it is.
func (r Roster) Digest() [32]byte {
	if r.Version == 0 {
		return RosterDigest(r.Officers, r.Quorum)
	}
	b := binary.BigEndian.AppendUint64(nil, r.Version)
	count := func(n int) { b = binary.BigEndian.AppendUint16(b, uint16(n)) }
	text := func(texts ...string) {
		for _, t := range texts {
			b = append(binary.BigEndian.AppendUint32(b, uint32(len(t))), t...)
		}
	}
	count(r.Quorum)
	count(r.CLI)
	text(r.RPID)
	count(len(r.Origins))
	text(r.Origins...)
	officers := slices.SortedFunc(slices.Values(r.Officers), func(a, b Officer) int { return strings.Compare(a.Name, b.Name) })
	count(len(officers))
	for _, o := range officers {
		text(o.Name, string(o.SPKI))
		count(len(o.Passkeys))
		for _, k := range o.Passkeys {
			text(string(k.ID), string(k.SPKI), k.Label)
		}
		count(len(o.Roles))
		for _, a := range o.Roles {
			text(string(a.Role), a.Issuer, a.Profile, a.Key)
		}
	}
	groups := slices.SortedFunc(slices.Values(r.Groups), func(a, b Group) int { return strings.Compare(a.Name, b.Name) })
	count(len(groups))
	for _, g := range groups {
		text(g.Name)
		count(g.Quorum)
		count(len(g.Members))
		text(g.Members...)
	}
	return audit.Digest("people", b)
}

// Lifetimes of a proposal.
const (
	DefaultLifetime = 24 * time.Hour
	MaxLifetime     = 7 * 24 * time.Hour
)

// Policy is the rule by which a roster decides. Its text is hashed into every
// proposal: what officers signed under one rule never counts under another.
func (r Roster) Policy() string {
	var b strings.Builder
	fmt.Fprintf(&b, "chancery/policy/v1\napprove %d of %d\n", r.Quorum, len(r.voting()))
	if r.CLI > 0 {
		fmt.Fprintf(&b, "by CLI key %d\n", r.CLI)
	}
	for _, g := range slices.SortedFunc(slices.Values(r.Groups), func(a, b Group) int { return strings.Compare(a.Name, b.Name) }) {
		fmt.Fprintf(&b, "group %s %d of %d\n", g.Name, g.Quorum, len(g.Members))
	}
	fmt.Fprintf(&b, "requester no\nvote final\nlifetime %d\n", int(MaxLifetime/time.Second))
	return b.String()
}

// PolicyDigest is H("policy", text of the policy).
func (r Roster) PolicyDigest() [32]byte { return audit.Digest("policy", []byte(r.Policy())) }
