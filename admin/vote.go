package admin

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"chancery/audit"
)

// Decision is what an officer's signature says about a proposal.
type Decision uint8

// The decisions. They stand in what is signed and never change.
const (
	Request Decision = 0 // an officer asks; it only authenticates the requester
	Approve Decision = 1
	Reject  Decision = 2
)

var decisionNames = [...]string{"request", "approve", "reject"}

func (d Decision) String() string {
	if int(d) < len(decisionNames) {
		return decisionNames[d]
	}
	return fmt.Sprintf("decision(%d)", uint8(d))
}

// ParseVote reads the word of a vote, "approve" or "reject".
func ParseVote(s string) (Decision, error) {
	switch s {
	case Approve.String():
		return Approve, nil
	case Reject.String():
		return Reject, nil
	}
	return 0, fmt.Errorf("unknown decision; allowed: approve, reject")
}

// ApprovalDigest is D = H("approval", decision u8 ‖ proposal) (ENCODINGS, D).
func ApprovalDigest(d Decision, proposal []byte) [32]byte {
	return audit.Digest("approval", append([]byte{byte(d)}, proposal...))
}

// VoteText is the text that an officer's CLI key signs (ENCODINGS, CLI vote).
func VoteText(d Decision, proposal []byte) []byte {
	digest := ApprovalDigest(d, proposal)
	return []byte("chancery/approval/v1\n" + hex.EncodeToString(digest[:]) + "\n")
}

// SignVote signs a decision about a proposal: ECDSA P-256 with SHA-256, DER.
func (k *OfficerKey) SignVote(d Decision, proposal []byte) ([]byte, error) {
	sum := sha256.Sum256(VoteText(d, proposal))
	sig, err := ecdsa.SignASN1(rand.Reader, k.key, sum[:])
	if err != nil {
		return nil, fmt.Errorf("signing with the key of officer %s: %w", k.Name, err)
	}
	return sig, nil
}

// VerifyVote tells whether signature is by the officer's key of this SPKI, over a decision
// about a proposal: by a CLI key over [VoteText], or an [Assertion] of a passkey whose
// challenge is [ApprovalDigest]. Signatures can be rewritten by anyone (ECDSA: s to n-s), so
// that one counts for nothing but its officer's one vote.
func (r Roster) VerifyVote(o Officer, spki []byte, d Decision, proposal, signature []byte) error {
	if !o.Holds(spki) {
		return fmt.Errorf("the key is none of officer %s", o.Name)
	}
	if !bytes.Equal(spki, o.SPKI) {
		a, err := DecodeAssertion(signature)
		if err == nil {
			err = a.Verify(spki, r.RPID, r.Origins, ApprovalDigest(d, proposal))
		}
		if err != nil {
			return fmt.Errorf("the passkey of officer %s did not sign %q of exactly this proposal: %w", o.Name, d, err)
		}
		return nil
	}
	pub, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return fmt.Errorf("officer %s: %w", o.Name, err)
	}
	key, ok := pub.(*ecdsa.PublicKey)
	sum := sha256.Sum256(VoteText(d, proposal))
	if !ok || !ecdsa.VerifyASN1(key, sum[:], signature) {
		return fmt.Errorf("the signature is not by officer %s over %q of exactly this proposal", o.Name, d)
	}
	return nil
}

// signed is VerifyVote with the key that signed: the passkey of this ID, or, without one,
// the CLI key.
func (r Roster) signed(o Officer, passkey []byte, d Decision, proposal, signature []byte) (spki []byte, err error) {
	spki = o.SPKI
	if passkey != nil {
		of, k, ok := r.ByPasskey(passkey)
		if !ok || of.Name != o.Name {
			return nil, fmt.Errorf("the passkey is none of officer %s", o.Name)
		}
		spki = k.SPKI
	}
	if spki == nil {
		return nil, fmt.Errorf("officer %s has no CLI key", o.Name)
	}
	return spki, r.VerifyVote(o, spki, d, proposal, signature)
}

// enough are the first approvals that are enough together, if there are any.
func (r Roster) enough(approvals []VoteRecord) ([]VoteRecord, bool) {
	for n := range len(approvals) {
		if r.reachedBy(approvals[:n+1]) == nil {
			return approvals[:n+1], true
		}
	}
	return nil, false
}

// reachedBy tells whether these approvals are enough; if not, why. It does not verify them.
func (r Roster) reachedBy(approvals []VoteRecord) error {
	var names []string
	cli := 0
	for _, v := range approvals {
		if slices.Contains(names, v.Officer) {
			continue
		}
		names = append(names, v.Officer)
		if o, ok := r.Officer(v.Officer); ok && bytes.Equal(o.SPKI, v.SPKI) {
			cli++
		}
	}
	return r.reached(names, cli)
}

// Fingerprint is how people compare what they sign: all of [ApprovalDigest] for an
// approval, in eight groups of eight hex digits. Console and command line show the same.
func Fingerprint(proposal []byte) string {
	d := ApprovalDigest(Approve, proposal)
	groups := make([]string, 8)
	for i := range groups {
		groups[i] = hex.EncodeToString(d[i*4 : i*4+4])
	}
	return strings.Join(groups, " ")
}

// GrantHash is H("grant", H("proposal", proposal) ‖ vote leaf indexes u64, ascending)
// (ENCODINGS, grant).
func GrantHash(proposal [32]byte, votes []uint64) [32]byte {
	return audit.Digest("grant", append(proposal[:], voteIndexes(votes)...))
}

// voteIndexes is the value of TagVotes.
func voteIndexes(votes []uint64) []byte {
	var b []byte
	for _, v := range votes {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	return b
}
