package admin

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"fmt"

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

// VerifyVote tells whether signature is o's over a decision about a proposal. ECDSA
// signatures can be rewritten by anyone (s to n-s), so that a signature counts for
// nothing but its officer's one vote.
func (o Officer) VerifyVote(d Decision, proposal, signature []byte) error {
	pub, err := x509.ParsePKIXPublicKey(o.SPKI)
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
