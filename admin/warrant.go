package admin

import (
	"crypto/sha256"
	"fmt"
	"time"

	"chancery/audit"
)

// Warrant is the evidence behind a grant of the officers. It proves itself: whoever
// knows the ledger and the roster digest can check it without the server. Its JSON
// has base64 for octets.
type Warrant struct {
	Proposal []byte       `json:"proposal"`
	Votes    []VoteRecord `json:"votes"` // the approvals that make the grant, by leaf index
	Roster   Roster       `json:"roster"`
}

// VoteRecord is one vote as the ledger has it.
type VoteRecord struct {
	Officer   string   `json:"officer"`
	SPKI      []byte   `json:"spki"` // of the key that signed, DER
	Decision  Decision `json:"decision"`
	Signature []byte   `json:"signature"` // ECDSA, DER, of a CLI key; an encoded [Assertion] of a passkey
	Leaf      uint64   `json:"leaf"`      // index of its OpVote leaf
}

// Check verifies everything from the bytes alone: the proposal belongs to ledger and
// is in its time at now; the roster is the one of rosterDigest and decided by the
// policy that was signed; at least a quorum of its officers, distinct by name and by
// key, none of them the requester, signed approval of exactly these bytes. It
// returns the acts that are granted and the proposal's nonce. Errors wrap
// [ErrNotGranted]. It does not know whether the warrant was used before: nonces that
// were seen are the caller's to refuse.
func (w *Warrant) Check(ledger audit.LedgerID, rosterDigest [32]byte, now time.Time) (acts []string, nonce [32]byte, err error) {
	if w == nil {
		return nil, nonce, fmt.Errorf("%w: there is no warrant", ErrNotGranted)
	}
	p, err := DecodeProposal(w.Proposal)
	if err != nil {
		return nil, nonce, fmt.Errorf("%w: %w", ErrNotGranted, err)
	}
	roster := w.Roster
	if err := roster.Check(); err != nil {
		return nil, nonce, fmt.Errorf("%w: %w", ErrNotGranted, err)
	}
	digest := roster.Digest()
	switch {
	case p.Ledger != ledger:
		err = fmt.Errorf("the proposal belongs to ledger %x, this is ledger %x", p.Ledger[:8], ledger[:8])
	case digest != rosterDigest || p.Roster != rosterDigest:
		err = fmt.Errorf("the officers or the quorum are not those in force")
	case p.Policy != roster.PolicyDigest():
		err = fmt.Errorf("the proposal was made under another policy")
	case now.Before(p.NotBefore) || !now.Before(p.Expires):
		err = fmt.Errorf("it is %s; the proposal holds from %s until before %s", now.UTC().Format(time.RFC3339), p.NotBefore.Format(time.RFC3339), p.Expires.Format(time.RFC3339))
	default:
		err = w.checkVotes(p, roster)
	}
	if err != nil {
		return nil, nonce, fmt.Errorf("%w: %w", ErrNotGranted, err)
	}
	return p.Acts, p.Nonce, nil
}

// checkVotes wants every vote to be good, not only a quorum of them.
func (w *Warrant) checkVotes(p Proposal, roster Roster) error {
	voted := map[string]bool{}
	for i, v := range w.Votes {
		o, ok := roster.Officer(v.Officer)
		switch {
		case !ok || !roster.Votes(o) || !o.Holds(v.SPKI):
			return fmt.Errorf("vote %d: no officer %q who votes has this key on the roster", i, v.Officer)
		case asksAs(p.Requester, o.Name):
			return fmt.Errorf("vote %d: officer %s asked for it and cannot approve it", i, o.Name)
		case voted[o.Name]:
			return fmt.Errorf("vote %d: officer %s approved twice", i, o.Name)
		case v.Decision != Approve:
			return fmt.Errorf("vote %d: officer %s did not approve", i, o.Name)
		case i > 0 && v.Leaf <= w.Votes[i-1].Leaf:
			return fmt.Errorf("vote %d: leaf indexes must rise", i)
		}
		if err := roster.VerifyVote(o, v.SPKI, Approve, w.Proposal, v.Signature); err != nil {
			return fmt.Errorf("vote %d: %w", i, err)
		}
		voted[o.Name] = true
	}
	return roster.reachedBy(w.Votes)
}

// Grant is the hash of the grant that the warrant stands behind, see [GrantHash].
func (w *Warrant) Grant() [32]byte {
	var leaves []uint64
	for _, v := range w.Votes {
		leaves = append(leaves, v.Leaf)
	}
	return GrantHash(ProposalHash(w.Proposal), leaves)
}

// Evidence is the warrant as TagWarrant has it: the proposal, then for each vote the
// SHA-256 of the officer's SPKI DER ‖ signature.
func (w *Warrant) Evidence() [][]byte {
	items := [][]byte{w.Proposal}
	for _, v := range w.Votes {
		officer := sha256.Sum256(v.SPKI)
		items = append(items, append(officer[:], v.Signature...))
	}
	return items
}
