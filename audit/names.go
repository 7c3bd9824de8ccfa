package audit

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
)

// tagNames are what fields are called where people and log systems read them. They
// do not change: dashboards rest on them.
var tagNames = map[Tag]string{
	TagRandom: "random", TagMode: "mode", TagDomain: "domain", TagPrevious: "previous", TagCheckpointKeys: "checkpoint_keys",
	TagRoster: "roster", TagActs: "acts", TagKey: "key", TagPurpose: "purpose", TagAlgorithm: "algorithm", TagTBSHash: "tbs_hash",
	TagTBSLength: "tbs_length", TagIssuer: "issuer", TagSerial: "serial", TagProfile: "profile", TagEvidence: "evidence",
	TagRequester: "requester", TagGrant: "grant", TagMaxAttempts: "max_attempts", TagNode: "node", TagBuild: "build",
	TagCRLNumber: "crl_number", TagThisUpdate: "this_update", TagCovers: "covers", TagIntentHash: "intent_hash", TagSignature: "signature",
	TagArtefact: "artefact", TagAttempts: "attempts", TagReason: "reason", TagKeyName: "key_name", TagMember: "member",
	TagSerialNumber: "serial_number", TagSPKI: "spki", TagSource: "source", TagMechanism: "mechanism", TagCounts: "counts",
	TagRevokedAt: "revoked_at", TagAttributes: "attributes", TagSubject: "subject", TagProposal: "proposal", TagProposalHash: "proposal_hash",
	TagOfficer: "officer", TagDecision: "decision", TagVote: "vote", TagVotes: "votes", TagOutcome: "outcome", TagState: "state",
	TagAttestation: "attestation", TagManifest: "manifest", TagRecipient: "recipient", TagWeak: "weak", TagCopies: "copies",
	TagAddress: "address", TagAsked: "asked", TagErased: "erased", TagSince: "since", TagRefusal: "refusal",
	TagFindings: "findings", TagWarrant: "warrant", TagPredecessor: "predecessor", TagCount: "count", TagNotAfter: "not_after", TagRole: "role",
	TagVersion: "version", TagRoles: "roles", TagExpires: "expires",
}

func (t Tag) String() string {
	if s, ok := tagNames[t]; ok {
		return s
	}
	return fmt.Sprintf("tag_%d", uint16(t))
}

// textLists are the fields that hold a list of texts.
var textLists = map[Tag]bool{TagActs: true, TagAttributes: true, TagWeak: true, TagCopies: true, TagFindings: true, TagRoles: true}

// Show gives the value of a field as its shape says: a number, a text, a list of texts,
// the indexes of votes, or hexadecimal.
func (f Field) Show() any {
	sh, known := tagShapes[f.Tag]
	switch {
	case known && (sh == shapeU8 || sh == shapeU64):
		var n uint64
		for _, c := range f.Value {
			n = n<<8 | uint64(c)
		}
		return n
	case known && sh == shapeText:
		return string(f.Value)
	case f.Tag == TagPrevious: // a signed note
		return strings.ToValidUTF8(string(f.Value), "\uFFFD")
	case f.Tag == TagVotes && len(f.Value)%8 == 0:
		var out []uint64
		for b := f.Value; len(b) > 0; b = b[8:] {
			out = append(out, binary.BigEndian.Uint64(b))
		}
		return out
	case f.Tag == TagErased:
		if refs, err := erasedRefs(f.Value); err == nil {
			out := make([]string, len(refs))
			for i, r := range refs {
				out[i] = fmt.Sprintf("%d %s", r.Index, r.Tag)
			}
			return out
		}
	case textLists[f.Tag]:
		if items, err := ParseList(f.Value); err == nil {
			out := make([]string, len(items))
			for i, it := range items {
				out[i] = Text(string(it), MaxLeaf)
			}
			return out
		}
	}
	return hex.EncodeToString(f.Value)
}
