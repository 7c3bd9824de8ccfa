package leaf

import "fmt"

// Kind is the kind of a leaf.
type Kind uint8

// The kinds.
const (
	Genesis Kind = iota // index 0 only
	Intent              // a key is about to be used
	Done                // it was used, and what came of it is recorded
	Failed              // it was not used, or gave nothing that verifies
	Orphan              // nobody knows
	Event               // an act without a key
)

func (k Kind) String() string {
	if names := [...]string{"genesis", "intent", "done", "failed", "orphan", "event"}; int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Op says what a leaf is about.
type Op uint16

// The operations.
const (
	OpGenesis      Op = 1
	OpCertificate  Op = 2
	OpCRL          Op = 3
	OpOCSP         Op = 4
	OpCMS          Op = 5
	OpTimestamp    Op = 6
	OpCode         Op = 7
	OpKeyProof     Op = 8
	OpKeyGenerate  Op = 9
	OpKeyReplicate Op = 10
	OpKeyDestroy   Op = 11
	OpMemberAdd    Op = 12
	OpRevoke       Op = 13
	OpCounts       Op = 14
	OpConfig       Op = 15
	OpProposal     Op = 16
	OpVote         Op = 17
	OpGrant        Op = 18
	OpGrantResult  Op = 19
	OpProposalEnd  Op = 20
	OpMemberState  Op = 32
	OpKeyState     Op = 33
	OpKeyAdopt     Op = 34
	OpKeyImport    Op = 35
	OpKeyDrift     Op = 36
	OpBackup       Op = 37
	OpRestore      Op = 38
	OpSecret       Op = 39
	OpRecovery     Op = 40
	OpRoster       Op = 41
	OpMachine      Op = 42
	OpEnrol        Op = 43
	OpErase        Op = 48
	OpRefusals     Op = 49
	OpSession      Op = 50
)

// ops has the name of each operation and the purpose that a key must have for it: 0 if
// it is an act without a key, any if every key does it.
var ops = map[Op]struct {
	name    string
	purpose uint8
}{
	OpGenesis:      {"genesis", 0},
	OpCertificate:  {"certificate", 1},
	OpCRL:          {"crl", 1},
	OpOCSP:         {"ocsp", 2},
	OpCMS:          {"cms", 5},
	OpTimestamp:    {"timestamp", 6},
	OpCode:         {"code", 4},
	OpKeyProof:     {"key-proof", any},
	OpKeyGenerate:  {"key-generate", 0},
	OpKeyReplicate: {"key-replicate", 0},
	OpKeyDestroy:   {"key-destroy", 0},
	OpMemberAdd:    {"member-add", 0},
	OpRevoke:       {"revoke", 0},
	OpCounts:       {"counts", 0},
	OpConfig:       {"config", 0},
	OpProposal:     {"proposal", 0},
	OpVote:         {"vote", 0},
	OpGrant:        {"grant", 0},
	OpGrantResult:  {"grant-result", 0},
	OpProposalEnd:  {"proposal-end", 0},
	OpMemberState:  {"member-state", 0},
	OpKeyState:     {"key-state", 0},
	OpKeyAdopt:     {"key-adopt", 0},
	OpKeyImport:    {"key-import", 0},
	OpKeyDrift:     {"key-drift", 0},
	OpBackup:       {"backup", 0},
	OpRestore:      {"restore", 0},
	OpSecret:       {"secret", 8},
	OpRecovery:     {"recovery", 0},
	OpRoster:       {"roster", 0},
	OpMachine:      {"machine", 0},
	OpEnrol:        {"enrol", 0},
	OpErase:        {"erase", 0},
	OpRefusals:     {"refusals", 0},
	OpSession:      {"session", 0},
}

const any = 255

func (o Op) String() string {
	if s, ok := ops[o]; ok {
		return s.name
	}
	return fmt.Sprintf("op %d", uint16(o))
}

// Known tells whether the table has the operation.
func (o Op) Known() bool { _, ok := ops[o]; return ok }

// Signs tells whether an operation uses a key: then it has an intent.
func (o Op) Signs() bool { return ops[o].purpose != 0 }

// Allows tells whether a key of a purpose may do the operation (P8).
func (o Op) Allows(purpose uint64) bool {
	p := ops[o].purpose
	return p == any && purpose != 0 || p != 0 && uint64(p) == purpose
}

// Tag names a field.
type Tag uint16

// optional is the first tag that may be skipped if it is unknown.
const optional Tag = 0x8000

// The tags.
const (
	TagRandom         Tag = 1
	TagMode           Tag = 2
	TagDomain         Tag = 3
	TagPrevious       Tag = 4
	TagCheckpointKeys Tag = 5
	TagRoster         Tag = 6
	TagActs           Tag = 7
	TagKey            Tag = 16
	TagPurpose        Tag = 17
	TagAlgorithm      Tag = 18
	TagTBSHash        Tag = 19
	TagTBSLength      Tag = 20
	TagIssuer         Tag = 21
	TagSerial         Tag = 22
	TagProfile        Tag = 23
	TagEvidence       Tag = 24
	TagRequester      Tag = 25
	TagGrant          Tag = 26
	TagMaxAttempts    Tag = 27
	TagNode           Tag = 28
	TagBuild          Tag = 29
	TagCRLNumber      Tag = 30
	TagThisUpdate     Tag = 31
	TagCovers         Tag = 32
	TagIntentHash     Tag = 48
	TagSignature      Tag = 49
	TagArtefact       Tag = 50
	TagAttempts       Tag = 51
	TagReason         Tag = 64
	TagKeyName        Tag = 65
	TagMember         Tag = 66
	TagSerialNumber   Tag = 67
	TagSPKI           Tag = 68
	TagSource         Tag = 69
	TagMechanism      Tag = 70
	TagCounts         Tag = 71
	TagRevokedAt      Tag = 72
	TagAttributes     Tag = 73
	TagSubject        Tag = 74
	TagProposal       Tag = 80
	TagProposalHash   Tag = 81
	TagOfficer        Tag = 82
	TagDecision       Tag = 83
	TagVote           Tag = 84
	TagVotes          Tag = 85
	TagOutcome        Tag = 86
	TagState          Tag = 100
	TagAttestation    Tag = 101
	TagManifest       Tag = 102
	TagRecipient      Tag = 103
	TagWeak           Tag = 104
	TagCopies         Tag = 105
	TagFindings       Tag = 106
	TagWarrant        Tag = 107
	TagPredecessor    Tag = 108
	TagCount          Tag = 109
	TagNotAfter       Tag = 110
	TagKnown          Tag = 111
	TagCheckpoint     Tag = 112
	TagCommon         Tag = 113
	TagVersion        Tag = 125
	TagRoles          Tag = 126
	TagExpires        Tag = 127
	TagRole           Tag = 130
	TagAddress        Tag = 120
	TagAsked          Tag = 121
	TagErased         Tag = 122
	TagSince          Tag = 123
	TagRefusal        Tag = 124
)

// Committed tells whether a value is a commitment: H("commit", ledger_id ‖ op_id ‖ tag ‖ salt ‖ value).
func (t Tag) Committed() bool { return t == TagAddress || t == TagAsked }

// shape is what a value must look like.
type shape uint8

const (
	octets shape = iota // one or more
	hash                // 32
	u8
	u64
	text   // UTF-8 in normal form C without controls
	serial // 1 to 20 octets, the first is not 0
)

// shapes are the known tags.
var shapes = map[Tag]shape{
	TagRandom:         hash,
	TagMode:           u8,
	TagDomain:         text,
	TagPrevious:       octets,
	TagCheckpointKeys: octets,
	TagRoster:         hash,
	TagActs:           octets,
	TagKey:            hash,
	TagPurpose:        u8,
	TagAlgorithm:      octets,
	TagTBSHash:        hash,
	TagTBSLength:      u64,
	TagIssuer:         hash,
	TagSerial:         serial,
	TagProfile:        hash,
	TagEvidence:       hash,
	TagRequester:      text,
	TagGrant:          hash,
	TagMaxAttempts:    u8,
	TagNode:           text,
	TagBuild:          text,
	TagCRLNumber:      u64,
	TagThisUpdate:     u64,
	TagCovers:         u64,
	TagIntentHash:     hash,
	TagSignature:      hash,
	TagArtefact:       hash,
	TagAttempts:       octets,
	TagReason:         text,
	TagKeyName:        text,
	TagMember:         text,
	TagSerialNumber:   text,
	TagSPKI:           octets,
	TagSource:         text,
	TagMechanism:      text,
	TagCounts:         octets,
	TagRevokedAt:      u64,
	TagAttributes:     octets,
	TagSubject:        hash,
	TagProposal:       octets,
	TagProposalHash:   hash,
	TagOfficer:        hash,
	TagDecision:       u8,
	TagVote:           octets,
	TagVotes:          octets,
	TagOutcome:        text,
	TagState:          text,
	TagAttestation:    octets,
	TagManifest:       hash,
	TagRecipient:      text,
	TagWeak:           octets,
	TagCopies:         octets,
	TagFindings:       octets,
	TagWarrant:        octets,
	TagPredecessor:    octets,
	TagCount:          u64,
	TagNotAfter:       u64,
	TagKnown:          u64,
	TagCheckpoint:     octets,
	TagCommon:         u64,
	TagVersion:        u64,
	TagRoles:          octets,
	TagExpires:        u64,
	TagRole:           text,
	TagAddress:        hash,
	TagAsked:          hash,
	TagErased:         octets,
	TagSince:          u64,
	TagRefusal:        text,
}
