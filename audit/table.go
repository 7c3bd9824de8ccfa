package audit

import "fmt"

// Kind is the kind of a leaf.
type Kind uint8

// The kinds of leaves. Append-only: a number never changes its meaning.
const (
	KindGenesis Kind = 0 // index 0 only
	KindIntent  Kind = 1 // a key is about to be used
	KindDone    Kind = 2 // the signature was made, verified and recorded
	KindFailed  Kind = 3 // the HSM was never called, or gave no signature that verifies
	KindOrphan  Kind = 4 // it is not known whether a signature was made; nothing was released
	KindEvent   Kind = 5 // an act that uses no key
)

var kindNames = [...]string{"genesis", "intent", "done", "failed", "orphan", "event"}

func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Op says what a leaf is about.
type Op uint16

// The operations. Append-only.
const (
	OpGenesis      Op = 1  // leaf 0
	OpCertificate  Op = 2  // TBSCertificate, RFC 5280 §4.1.2
	OpCRL          Op = 3  // TBSCertList, RFC 5280 §5.1.2
	OpOCSP         Op = 4  // ResponseData, RFC 6960 §4.2.1
	OpCMS          Op = 5  // signed attributes, RFC 5652 §5.3
	OpTimestamp    Op = 6  // signed attributes over a TSTInfo, RFC 3161 §2.4.2
	OpCode         Op = 7  // a code-signing format's fixed frame
	OpKeyProof     Op = 8  // the key-proof text: a key shows that it is there
	OpKeyGenerate  Op = 9  // a key was born in one member
	OpKeyReplicate Op = 10 // a key was copied to another member, wrapped
	OpKeyDestroy   Op = 11 // every copy of a key was destroyed
	OpMemberAdd    Op = 12 // an HSM member joined the cluster
	OpRevoke       Op = 13 // a certificate was revoked, RFC 5280 §5.3.1
	OpCounts       Op = 14 // hourly counts of exempt signatures per member, with journal heads
	OpConfig       Op = 15 // an issuer, profile or policy came into force
	OpMemberState  Op = 32 // an HSM member was drained, fenced, admitted or removed
	OpKeyState     Op = 33 // a key was disabled, enabled or quarantined
	OpKeyAdopt     Op = 34 // a key that others made came into use where it is
	OpKeyImport    Op = 35 // a key came in from outside, wrapped
	OpKeyDrift     Op = 36 // a key on a member is not what its birth said, or is again
	OpBackup       Op = 37 // keys were wrapped for a backup recipient
	OpRestore      Op = 38 // keys of a predecessor came back from a backup
	OpSecret       Op = 39 // a secret of the server was derived from an AES key, NIST SP 800-108r1
	OpRecovery     Op = 40 // the ledger goes on from an older database, as the officers decided
	OpRoster       Op = 41 // the officers' roster changed, as those before decided: people, roles, keys, quorum
	OpMachine      Op = 42 // an API token or client certificate got access, or lost it
	OpEnrol        Op = 43 // a link to enrol a passkey was made, used or withdrawn
	OpErase        Op = 48 // personal values of entries were erased
	OpRefusals     Op = 49 // how often policy or authentication refused, per kind and minute
	OpSession      Op = 50 // somebody signed in at the console, or out
	OpProposal     Op = 16 // a sensitive act was asked for
	OpVote         Op = 17 // an officer approved or rejected a proposal
	OpGrant        Op = 18 // enough officers approved: the proposal is spent on a grant
	OpGrantResult  Op = 19 // what came of the acts of a grant
	OpProposalEnd  Op = 20 // a proposal ended without a grant: rejected, expired, cancelled
)

var opNames = map[Op]string{
	OpGenesis: "genesis", OpCertificate: "certificate", OpCRL: "crl", OpOCSP: "ocsp", OpCMS: "cms",
	OpTimestamp: "timestamp", OpCode: "code", OpKeyProof: "key-proof", OpKeyGenerate: "key-generate",
	OpKeyReplicate: "key-replicate", OpKeyDestroy: "key-destroy", OpMemberAdd: "member-add",
	OpRevoke: "revoke", OpCounts: "counts", OpConfig: "config",
	OpMemberState: "member-state", OpKeyState: "key-state", OpKeyAdopt: "key-adopt", OpKeyImport: "key-import", OpKeyDrift: "key-drift", OpBackup: "backup", OpRestore: "restore", OpSecret: "secret", OpRecovery: "recovery",
	OpRoster: "roster", OpMachine: "machine", OpEnrol: "enrol",
	OpErase: "erase", OpRefusals: "refusals", OpSession: "session",
	OpProposal: "proposal", OpVote: "vote", OpGrant: "grant", OpGrantResult: "grant-result", OpProposalEnd: "proposal-end",
}

func (o Op) String() string {
	if s, ok := opNames[o]; ok {
		return s
	}
	return fmt.Sprintf("op(%d)", uint16(o))
}

// Purpose is the one thing that a key is for. It is bound at the key's birth and
// enforced in the worker process that alone can reach the key.
type Purpose uint8

// The purposes. Append-only. The zero value is no purpose and signs nothing.
const (
	PurposeIssuer     Purpose = 1 // certificates and CRLs of one issuer name
	PurposeOCSP       Purpose = 2 // OCSP ResponseData
	PurposeCheckpoint Purpose = 3 // checkpoints of one ledger
	PurposeCode       Purpose = 4 // code-signing frames
	PurposeDocument   Purpose = 5 // CMS signed attributes over a document
	PurposeTimestamp  Purpose = 6 // CMS signed attributes over a TSTInfo
	PurposeProbe      Purpose = 7 // the fixed probe text of one member
	PurposeSecret     Purpose = 8 // texts that secrets of the server are derived from
)

var purposeNames = [...]string{"", "issuer", "ocsp", "checkpoint", "code", "document", "timestamp", "probe", "secret"}

func (p Purpose) String() string {
	if int(p) < len(purposeNames) && p != 0 {
		return purposeNames[p]
	}
	return fmt.Sprintf("purpose(%d)", uint8(p))
}

// ParsePurpose is the inverse of [Purpose.String].
func ParsePurpose(s string) (Purpose, error) {
	for i, n := range purposeNames {
		if i > 0 && n == s {
			return Purpose(i), nil
		}
	}
	return 0, fmt.Errorf("unknown key purpose %q; allowed: %v", s, purposeNames[1:])
}

// Tag names a field of a leaf.
type Tag uint16

// tagOptional is the first tag that a reader may skip when it does not know it.
const tagOptional Tag = 0x8000

// The tags, with the shape of their value. Append-only.
const (
	TagRandom         Tag = 1   // 32 octets
	TagMode           Tag = 2   // u8: 1 dev, 2 prod
	TagDomain         Tag = 3   // text: operator domain, host part of the checkpoint origin
	TagPrevious       Tag = 4   // text: last checkpoint of the predecessor ledger
	TagCheckpointKeys Tag = 5   // list of SPKI DER (RFC 5280 §4.1.2.7)
	TagRoster         Tag = 6   // 32 octets: officer roster digest
	TagActs           Tag = 7   // list of text: the acts that genesis allows
	TagKey            Tag = 16  // 32 octets: SHA-256 of the key's SPKI DER
	TagPurpose        Tag = 17  // u8: Purpose
	TagAlgorithm      Tag = 18  // AlgorithmIdentifier DER (RFC 5280 §4.1.1.2)
	TagTBSHash        Tag = 19  // 32 octets: SHA-256 of the message
	TagTBSLength      Tag = 20  // u64: octets of the message
	TagIssuer         Tag = 21  // 32 octets: SHA-256 of the issuer's SPKI DER
	TagSerial         Tag = 22  // 1..20 octets, big-endian, positive (RFC 5280 §4.1.2.2)
	TagProfile        Tag = 23  // 32 octets: profile digest
	TagEvidence       Tag = 24  // 32 octets: digest of what the decision rests on
	TagRequester      Tag = 25  // text: pseudonym of who asked
	TagGrant          Tag = 26  // 32 octets: grant
	TagMaxAttempts    Tag = 27  // u8
	TagNode           Tag = 28  // text: node_id
	TagBuild          Tag = 29  // text: version of the program
	TagCRLNumber      Tag = 30  // u64 (RFC 5280 §5.2.3)
	TagThisUpdate     Tag = 31  // u64: seconds since 1970 (RFC 5280 §5.1.2.4)
	TagCovers         Tag = 32  // u64: the ledger size up to which revocations are contained
	TagIntentHash     Tag = 48  // 32 octets: Merkle leaf hash of the intent
	TagSignature      Tag = 49  // 32 octets: SHA-256 of the signature
	TagArtefact       Tag = 50  // 32 octets: SHA-256 of the finished artefact
	TagAttempts       Tag = 51  // list of (text member, u32 count): tries per member
	TagReason         Tag = 64  // text: why (failed, orphan), or the CRLReason name
	TagKeyName        Tag = 65  // text: name of the key in the cluster
	TagMember         Tag = 66  // text: name of the HSM member
	TagSerialNumber   Tag = 67  // text: token serial number (PKCS#11 CK_TOKEN_INFO)
	TagSPKI           Tag = 68  // SPKI DER
	TagSource         Tag = 69  // text: member that a copy came from
	TagMechanism      Tag = 70  // text: how a key was copied
	TagCounts         Tag = 71  // list of (text member, u64 probes, u64 checkpoints, 32 octets journal head)
	TagRevokedAt      Tag = 72  // u64: seconds since 1970 (RFC 5280 §5.1.2.6)
	TagAttributes     Tag = 73  // list of text: PKCS#11 attribute snapshot at birth
	TagSubject        Tag = 74  // 32 octets: digest of the object that an act concerns
	TagState          Tag = 100 // text: the state that a member or key is in from now on
	TagAttestation    Tag = 101 // the vendor's attestation evidence for a key, as it is
	TagManifest       Tag = 102 // 32 octets: SHA-256 of a backup manifest
	TagRecipient      Tag = 103 // text: name of a backup recipient
	TagWeak           Tag = 104 // list of text: attributes of an adopted key that are weaker than ours and were accepted
	TagCopies         Tag = 105 // list of text: every copy of a destroyed key: "member NAME token SERIAL", "backup RECIPIENT"
	TagFindings       Tag = 106 // list of text: what differs between tokens, database and ledger; empty: nothing any more
	TagWarrant        Tag = 107 // list: a proposal (ENCODINGS) of the predecessor's officers, then for each vote the SHA-256 of the officer's SPKI DER ‖ signature as in TagVote
	TagPredecessor    Tag = 108 // leaf 0 of the predecessor ledger
	TagCount          Tag = 109 // u64: how many revocations a restore carried over
	TagRole           Tag = 130 // text: what a member is for, if not for all keys: checkpoint
	TagNotAfter       Tag = 110 // u64: seconds since 1970: end of a certificate that a predecessor issued
	TagKnown          Tag = 111 // u64: size of the ledger that journal and anchors knew before a recovery
	TagCheckpoint     Tag = 112 // the newest anchored checkpoint, a signed note, of what a recovery gave up
	TagCommon         Tag = 113 // u64: entries below this one were not given up by a recovery
	TagVersion        Tag = 125 // u64: version of the roster that is in force from now on
	TagRoles          Tag = 126 // list of text: roles, each with its limits
	TagExpires        Tag = 127 // u64: seconds since 1970: when access ends
	TagAddress        Tag = 120 // commitment: address of the client, or one a line
	TagAsked          Tag = 121 // commitment: what a certificate was asked for, one a line: attributes of the subject, then the names in their order
	TagErased         Tag = 122 // openings that were erased: (index u64, tag u16) each, by index
	TagSince          Tag = 123 // u64: seconds since 1970: when counting began
	TagRefusal        Tag = 124 // text: what kind of request was refused
	TagProposal       Tag = 80  // proposal (ENCODINGS): TLV of its own
	TagProposalHash   Tag = 81  // 32 octets: H("proposal", proposal)
	TagOfficer        Tag = 82  // 32 octets: SHA-256 of an officer's SPKI DER
	TagDecision       Tag = 83  // u8: 0 request, 1 approve, 2 reject
	TagVote           Tag = 84  // by a CLI key: ECDSA signature over the CLI vote text, DER (RFC 3279 §2.2.3); by a passkey: list of authenticator data, client data, signature (WebAuthn Level 3 §6.3.3)
	TagVotes          Tag = 85  // leaf indexes of the votes of a grant, u64 each, ascending
	TagOutcome        Tag = 86  // text: done, failed, rejected, expired, cancelled
)

// shape is what a tag's value must look like.
type shape uint8

const (
	shapeBytes shape = iota // 1..n octets
	shapeHash               // 32 octets
	shapeU8
	shapeU64
	shapeText   // UTF-8 NFC, no controls
	shapeSerial // 1..20 octets, first not 0
)

var tagShapes = map[Tag]shape{
	TagRandom: shapeHash, TagMode: shapeU8, TagDomain: shapeText, TagPrevious: shapeBytes, TagCheckpointKeys: shapeBytes,
	TagRoster: shapeHash, TagActs: shapeBytes, TagKey: shapeHash, TagPurpose: shapeU8, TagAlgorithm: shapeBytes,
	TagTBSHash: shapeHash, TagTBSLength: shapeU64, TagIssuer: shapeHash, TagSerial: shapeSerial, TagProfile: shapeHash,
	TagEvidence: shapeHash, TagRequester: shapeText, TagGrant: shapeHash, TagMaxAttempts: shapeU8, TagNode: shapeText,
	TagBuild: shapeText, TagCRLNumber: shapeU64, TagThisUpdate: shapeU64, TagCovers: shapeU64, TagIntentHash: shapeHash,
	TagSignature: shapeHash, TagArtefact: shapeHash, TagAttempts: shapeBytes, TagReason: shapeText, TagKeyName: shapeText,
	TagMember: shapeText, TagSerialNumber: shapeText, TagSPKI: shapeBytes, TagSource: shapeText, TagMechanism: shapeText,
	TagCounts: shapeBytes, TagRevokedAt: shapeU64, TagAttributes: shapeBytes, TagSubject: shapeHash,
	TagState: shapeText, TagAttestation: shapeBytes, TagManifest: shapeHash, TagRecipient: shapeText, TagWeak: shapeBytes, TagCopies: shapeBytes, TagFindings: shapeBytes, TagWarrant: shapeBytes,
	TagPredecessor: shapeBytes, TagCount: shapeU64, TagNotAfter: shapeU64, TagKnown: shapeU64, TagCommon: shapeU64, TagCheckpoint: shapeBytes, TagRole: shapeText,
	TagVersion: shapeU64, TagRoles: shapeBytes, TagExpires: shapeU64,
	TagAddress: shapeHash, TagAsked: shapeHash, TagErased: shapeBytes, TagSince: shapeU64, TagRefusal: shapeText,
	TagProposal: shapeBytes, TagProposalHash: shapeHash, TagOfficer: shapeHash, TagDecision: shapeU8, TagVote: shapeBytes,
	TagVotes: shapeBytes, TagOutcome: shapeText,
}
