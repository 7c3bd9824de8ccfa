package admin

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json/jsontext"
	"errors"
	"fmt"
	"math"
	"time"

	"chancery/audit"
)

// Proposal is the request for a sensitive act, exactly as officers sign it. The
// zero value is not valid.
type Proposal struct {
	Ledger     audit.LedgerID
	Action     string   // what is to be done, one word: "generate-key"
	Parameters [32]byte // digest of all parameters, see [ParametersDigest]
	Acts       []string // the targets: what the grant will allow, each once per line
	Policy     [32]byte // digest of the policy in force, see [Policy]
	Roster     [32]byte // digest of the roster in force, see [RosterDigest]
	Requester  string   // [AdminToken] or [OfficerRequester]
	Nonce      [32]byte
	NotBefore  time.Time // whole seconds
	Expires    time.Time // whole seconds; at this moment it is over
}

// AdminToken is the requester that holds the admin token and is no officer.
const AdminToken = "admin-token"

// OfficerRequester is how the officer of a name stands in Proposal.Requester.
func OfficerRequester(name string) string { return "officer:" + name }

// The tags of a proposal (ENCODINGS, proposal): u16 tag ‖ u32 length ‖ value, all
// of them, in this order. They never change.
const (
	pLedger     = 1  // 32 octets
	pAction     = 2  // text
	pParameters = 3  // 32 octets
	pTargets    = 4  // list of text, each behind its u16 length
	pPolicy     = 5  // 32 octets
	pRoster     = 6  // 32 octets
	pRequester  = 7  // text
	pNonce      = 8  // 32 octets
	pNotBefore  = 9  // u64: seconds since 1970
	pExpires    = 10 // u64: seconds since 1970
	pEnd        = 11
)

// Limits of a proposal.
const (
	maxProposal   = 16 << 10 // octets; it stands in a leaf
	maxActs       = 64
	maxAct        = 1024 // octets
	maxText       = 128  // octets of action and requester
	maxParameters = 32 << 10
)

// ErrProposal is wrapped by every refusal of a proposal's bytes.
var ErrProposal = errors.New("invalid proposal")

// Encode gives the one encoding of p, or an error that wraps [ErrProposal].
func (p Proposal) Encode() ([]byte, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	var targets audit.Fields
	items := make([][]byte, len(p.Acts))
	for i, a := range p.Acts {
		items[i] = []byte(a)
	}
	targets.List(audit.TagActs, items...)
	seconds := func(t time.Time) []byte { return binary.BigEndian.AppendUint64(nil, uint64(t.Unix())) }
	var b []byte
	for i, v := range [][]byte{p.Ledger[:], []byte(p.Action), p.Parameters[:], targets[0].Value, p.Policy[:], p.Roster[:],
		[]byte(p.Requester), p.Nonce[:], seconds(p.NotBefore), seconds(p.Expires)} {
		b = binary.BigEndian.AppendUint16(b, uint16(pLedger+i))
		b = binary.BigEndian.AppendUint32(b, uint32(len(v)))
		b = append(b, v...)
	}
	if len(b) > maxProposal {
		return nil, fmt.Errorf("%w: %d octets, at most %d allowed; ask for fewer acts at once", ErrProposal, len(b), maxProposal)
	}
	return b, nil
}

// DecodeProposal reads the bytes of a proposal. Exactly the output of
// [Proposal.Encode] is accepted; anything else gives an error that wraps [ErrProposal].
func DecodeProposal(b []byte) (Proposal, error) {
	var p Proposal
	values, err := splitProposal(b)
	if err != nil {
		return p, err
	}
	for tag, into := range map[int]*[32]byte{pLedger: (*[32]byte)(&p.Ledger), pParameters: &p.Parameters, pPolicy: &p.Policy, pRoster: &p.Roster, pNonce: &p.Nonce} {
		if len(values[tag]) != 32 {
			return p, fmt.Errorf("%w: tag %d has %d octets, must have 32", ErrProposal, tag, len(values[tag]))
		}
		copy(into[:], values[tag])
	}
	for tag, into := range map[int]*time.Time{pNotBefore: &p.NotBefore, pExpires: &p.Expires} {
		v := values[tag]
		if len(v) != 8 || binary.BigEndian.Uint64(v) > math.MaxInt32*1000 { // some 68,000 years
			return p, fmt.Errorf("%w: tag %d is no time in seconds since 1970", ErrProposal, tag)
		}
		*into = time.Unix(int64(binary.BigEndian.Uint64(v)), 0).UTC()
	}
	p.Action, p.Requester = string(values[pAction]), string(values[pRequester])
	acts, err := audit.ParseList(values[pTargets])
	if err != nil {
		return p, fmt.Errorf("%w: targets: %v", ErrProposal, err)
	}
	for _, a := range acts {
		p.Acts = append(p.Acts, string(a))
	}
	again, err := p.Encode()
	if err != nil {
		return p, err
	}
	if !bytes.Equal(again, b) {
		return p, fmt.Errorf("%w: not in the one encoding that is allowed", ErrProposal)
	}
	return p, nil
}

// splitProposal takes the TLV apart: every tag once, in order, nothing behind.
func splitProposal(b []byte) (values [pEnd][]byte, err error) {
	if len(b) > maxProposal {
		return values, fmt.Errorf("%w: %d octets, at most %d allowed", ErrProposal, len(b), maxProposal)
	}
	for tag := pLedger; tag < pEnd; tag++ {
		if len(b) < 6 {
			return values, fmt.Errorf("%w: it ends before tag %d", ErrProposal, tag)
		}
		got, n := int(binary.BigEndian.Uint16(b)), binary.BigEndian.Uint32(b[2:])
		b = b[6:]
		if got != tag {
			return values, fmt.Errorf("%w: tag %d stands where tag %d must be", ErrProposal, got, tag)
		}
		if uint64(n) > uint64(len(b)) {
			return values, fmt.Errorf("%w: tag %d claims %d octets, %d are left", ErrProposal, tag, n, len(b))
		}
		values[tag], b = b[:n], b[n:]
	}
	if len(b) > 0 {
		return values, fmt.Errorf("%w: %d trailing octets", ErrProposal, len(b))
	}
	return values, nil
}

// check holds the rules that the byte layout alone does not.
func (p Proposal) check() error {
	for name, s := range map[string]string{"action": p.Action, "requester": p.Requester} {
		if s == "" || audit.Text(s, maxText) != s {
			return fmt.Errorf("%w: %s %q is no plain text of 1 to %d octets", ErrProposal, name, s, maxText)
		}
	}
	if len(p.Acts) == 0 || len(p.Acts) > maxActs {
		return fmt.Errorf("%w: %d acts, must be 1 to %d", ErrProposal, len(p.Acts), maxActs)
	}
	for _, a := range p.Acts {
		if a == "" || audit.Text(a, maxAct) != a {
			return fmt.Errorf("%w: act %q is no plain text of 1 to %d octets", ErrProposal, a, maxAct)
		}
	}
	if p.NotBefore.Unix() <= 0 || p.Expires.Unix() > math.MaxInt32*1000 || p.NotBefore.Nanosecond() != 0 || p.Expires.Nanosecond() != 0 {
		return fmt.Errorf("%w: its times must be whole seconds after 1970", ErrProposal)
	}
	if life := p.Expires.Sub(p.NotBefore); life <= 0 || life > MaxLifetime {
		return fmt.Errorf("%w: it lives %s, must be more than nothing and at most %s", ErrProposal, life, MaxLifetime)
	}
	return nil
}

// ProposalHash names a proposal: H("proposal", bytes).
func ProposalHash(proposal []byte) [32]byte { return audit.Digest("proposal", proposal) }

// ProposalID is the short name of a proposal in URLs: the first 16 hex digits of its hash.
func ProposalID(hash [32]byte) string { return hex.EncodeToString(hash[:8]) }

// CanonicalParameters writes JSON in the one form that is hashed and stored
// (RFC 8785). A member that stands there twice is refused.
func CanonicalParameters(j []byte) ([]byte, error) {
	if len(j) > maxParameters {
		return nil, fmt.Errorf("parameters: %d octets, at most %d allowed", len(j), maxParameters)
	}
	v := jsontext.Value(bytes.Clone(j))
	if err := v.Canonicalize(); err != nil {
		return nil, fmt.Errorf("parameters: no proper JSON: %w", err)
	}
	return v, nil
}

// ParametersDigest is H("parameters", canonical JSON), see [CanonicalParameters].
func ParametersDigest(canonical []byte) [32]byte { return audit.Digest("parameters", canonical) }
