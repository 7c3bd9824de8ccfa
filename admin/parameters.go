package admin

import (
	"encoding/json/jsontext"
	"encoding/json/v2"
	"fmt"

	"chancery/audit"
)

// The actions that officers decide about, besides those of genesis. Each has its
// parameters below, as JSON; they name all that the acts follow from.
const (
	GenerateKey  = "generate-key"  // a key is born: [KeyParameters]
	AddMember    = "add-member"    // an HSM member joins: [MemberParameters]
	RemoveMember = "remove-member" // a member leaves: [RemoveParameters]
	DestroyKey   = "destroy-key"   // every copy of a key ends: [DestroyParameters]
	RepairKey    = "repair-key"    // one copy is made anew: [RepairParameters]
	AdoptKey     = "adopt-key"     // a key of others comes into the cluster: [AdoptParameters]
	SplitSOPIN   = "split-so-pin"  // officers hold a member's SO PIN in shares: [SplitParameters]
	ImportKey    = "import-key"    // a wrapped key is unwrapped into the cluster: [ImportParameters]

	BackupRecipient = "backup-recipient"        // a token receives backups: [RecipientParameters]
	RemoveRecipient = "remove-backup-recipient" // it receives no more: [RecipientParameters]
	Backup          = "backup"                  // keys without a backup are wrapped to a recipient: [BackupParameters]
	Restore         = "restore"                 // a predecessor's keys come back, elsewhere: [RestoreParameters]
	RecoverLedger   = "recover-ledger"          // the ledger goes on from an older database: [RecoverParameters]
	ChangeRoster    = "change-roster"           // other people, roles, keys of theirs, or another quorum: [RosterParameters]
	RetireCluster   = "retire-cluster"          // nothing is signed here any more: [RetireParameters]
)

// Why is in the parameters of every action: what its requester wants it for. Officers read
// it before they sign, and sign it with the rest.
type Why struct {
	Reason string `json:"reason,omitempty"` // at most 500 octets of plain text
}

// maxReason bounds a reason in octets.
const maxReason = 500

// WithReason adds the reason to parameters, in canonical JSON; "" adds none.
func WithReason(parameters []byte, reason string) ([]byte, error) {
	if reason == "" {
		return CanonicalParameters(parameters)
	}
	var all map[string]jsontext.Value
	if err := json.Unmarshal(parameters, &all); err != nil {
		return nil, fmt.Errorf("parameters: no JSON object: %w", err)
	}
	b, err := json.Marshal(reason)
	if err != nil {
		return nil, fmt.Errorf("reason: %w", err)
	}
	all["reason"] = b
	if b, err = json.Marshal(all, json.Deterministic(true)); err != nil {
		return nil, fmt.Errorf("parameters: %w", err)
	}
	return CanonicalParameters(b)
}

// checkReason refuses a reason that a page or a terminal could show otherwise than it is.
func checkReason(parameters []byte) error {
	var w Why
	if err := json.Unmarshal(parameters, &w); err != nil || audit.Text(w.Reason, maxReason) != w.Reason {
		return refuse(BadProposal, "parameters", "reason must be plain text of at most %d octets", maxReason)
	}
	return nil
}

// KeyParameters are the parameters of [GenerateKey].
type KeyParameters struct {
	Why
	Name      string   `json:"name"`
	Purpose   string   `json:"purpose"`           // text of an audit.Purpose
	Algorithm string   `json:"algorithm"`         // e.g. "P-256"
	Members   []string `json:"members,omitempty"` // that shall hold the key; none: all
}

// MemberParameters are those of [AddMember]: the token as the server sees it.
type MemberParameters struct {
	Why
	Name         string `json:"name"`
	Serial       string `json:"serial"`
	Label        string `json:"label"`
	Manufacturer string `json:"manufacturer"`
	Model        string `json:"model"`
	Firmware     string `json:"firmware"`
	ProbeKey     string `json:"probe_key"` // name of the probe key that is born with it
	// The checkpoint key that is born with it, if it gets one.
	CheckpointKey       string `json:"checkpoint_key,omitempty"`
	CheckpointAlgorithm string `json:"checkpoint_algorithm,omitempty"`
	Role                string `json:"role,omitempty"` // what the token is for; "": keys of all purposes

	Module      string `json:"module"` // path of its PKCS#11 library
	Replication string `json:"replication"`
	WeakUnwrap  bool   `json:"weak_unwrap,omitempty"` // a module that ignores unwrap templates is accepted
}

// RemoveParameters are those of [RemoveMember].
type RemoveParameters struct {
	Why
	Name   string `json:"name"`
	Serial string `json:"serial"`
}

// DestroyParameters are those of [DestroyKey].
type DestroyParameters struct {
	Why
	Name string `json:"name"`
	SPKI string `json:"spki_sha256"` // hex: a later key of that name is safe
}

// RepairParameters are those of [RepairKey].
type RepairParameters struct {
	Why
	Name   string `json:"name"`
	Member string `json:"member"`
}

// AdoptParameters are those of [AdoptKey].
type AdoptParameters struct {
	Why
	Name        string   `json:"name"`
	Purpose     string   `json:"purpose"`
	Algorithm   string   `json:"algorithm"`
	Member      string   `json:"member"`                // that holds the key
	CKAID       string   `json:"cka_id,omitempty"`      // hex
	Label       string   `json:"label,omitempty"`       // CKA_LABEL
	Subject     []byte   `json:"subject,omitempty"`     // issuer keys: Name DER
	SPKI        string   `json:"spki_sha256"`           // hex
	AcceptWeak  []string `json:"accept_weak,omitempty"` // weak attributes that are accepted
	Attestation []byte   `json:"attestation,omitempty"` // the vendor's evidence
}

// SplitParameters are those of [SplitSOPIN].
type SplitParameters struct {
	Why
	Member    string `json:"member"`
	Threshold int    `json:"threshold"` // M of the officers
}

// ImportParameters are those of [ImportKey].
type ImportParameters struct {
	Why
	Session   string   `json:"session"` // of the wrapping key
	Name      string   `json:"name"`
	Purpose   string   `json:"purpose"`
	Algorithm string   `json:"algorithm"`
	Subject   []byte   `json:"subject,omitempty"` // issuer keys: Name DER
	SPKI      []byte   `json:"spki"`              // DER
	Mechanism string   `json:"mechanism"`
	Blob      []byte   `json:"blob"` // the wrapped private key
	Members   []string `json:"members,omitempty"`
}

// RecipientParameters are those of [BackupRecipient] and [RemoveRecipient].
type RecipientParameters struct {
	Why
	Name   string `json:"name"`
	Serial string `json:"serial"` // of its token
}

// BackupParameters are those of [Backup].
type BackupParameters struct {
	Why
	Recipient string `json:"recipient"`
	Serial    string `json:"serial"` // of its token
}

// RestoreParameters are those of [Restore].
type RestoreParameters struct {
	Why
	Manifest    string `json:"manifest_sha256"` // hex
	Ledger      string `json:"ledger"`          // id of the predecessor, hex
	Made        string `json:"made"`            // the manifest, RFC 3339
	Size        uint64 `json:"entries"`         // of the ledger at that time, as signed
	Recipient   string `json:"recipient"`
	Serial      string `json:"serial"` // of its token
	Keys        int    `json:"keys"`
	Issuers     int    `json:"issuers"`
	Revocations int    `json:"revocations"` // on their CRLs
}

// RecoverParameters are those of [RecoverLedger].
type RecoverParameters struct {
	Size    uint64 `json:"entries_left"`
	Root    string `json:"root"`          // of these, hex
	Common  uint64 `json:"entries_kept"`  // entries from this index on, up to Known, were known otherwise and are given up
	Known   uint64 `json:"entries_known"` // by the intent journal and the anchors
	Serials int    `json:"serials"`       // that the journal knows of lost entries: they are revoked
	Reason  string `json:"reason"`        // stands in the ledger
}

// RetireParameters are those of [RetireCluster].
type RetireParameters struct {
	Reason string `json:"reason"` // stands in the ledger
}

// RosterParameters are those of [ChangeRoster].
type RosterParameters struct {
	Why
	Before string `json:"before"` // digest of the roster in force, hex
	Roster Roster `json:"roster"` // the next one, whole
}
