package admin

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// An act is one line of text that names one deed and all that matters about it.
// It stands in the ledger (leaf 0, TagActs; proposals), so the words below never
// change. Hashes are written as 64 hex digits.

// GenerateKeyAct allows the birth of one key, its copies and its proofs. purpose
// is the text of an audit.Purpose, algorithm a name such as "P-256" or "RSA-3072".
// subject is the issuer Name (DER) that an issuer key is bound to for ever, else
// nil: it stands in the act as its SHA-256. members names the HSM members that shall
// hold the key, in any order; none means every member.
func GenerateKeyAct(name, purpose, algorithm string, subject []byte, members ...string) string {
	words := append([]string{"generate-key", name, purpose, algorithm}, subjectHash(subject)...)
	if len(members) > 0 {
		words = append(words, "on", memberList(members))
	}
	return act(words...)
}

// AdoptKeyAct allows a key that a member holds already to be taken into the cluster
// as it is. spkiHash is the SHA-256 of its SPKI DER, weak names the attributes that
// are accepted although they are weaker than our own keys', such as "DECRYPT=true", in
// any order; the rest is as for [GenerateKeyAct].
func AdoptKeyAct(name, purpose, algorithm string, subject []byte, spkiHash [32]byte, weak ...string) string {
	words := append([]string{"adopt-key", name, purpose, algorithm, hexHash(spkiHash)}, subjectHash(subject)...)
	if len(weak) > 0 {
		words = append(words, "accepting", memberList(weak))
	}
	return act(words...)
}

// ImportKeyAct allows a key that comes from outside the cluster to be unwrapped into
// it. The arguments are those of [AdoptKeyAct].
func ImportKeyAct(name, purpose, algorithm string, subject []byte, spkiHash [32]byte) string {
	return act(append([]string{"import-key", name, purpose, algorithm, hexHash(spkiHash)}, subjectHash(subject)...)...)
}

// DestroyKeyAct allows the end of every copy of one key. spkiHash is the SHA-256 of
// its SPKI DER, so that a later key of that name is safe.
func DestroyKeyAct(name string, spkiHash [32]byte) string {
	return act("destroy-key", name, hexHash(spkiHash))
}

// RepairKeyAct allows a key to be copied again to a member that lost it.
func RepairKeyAct(name, member string) string { return act("repair-key", name, member) }

// SignRootAct allows the self-signed certificate of one root.
func SignRootAct(name string) string { return act("sign-root", name) }

// SignCAAct allows the certificate of one subordinate CA.
func SignCAAct(issuer, name string) string { return act("sign-ca", issuer, name) }

// AddMemberAct allows one HSM member to join the cluster with one token. serial is
// the token's serial number (PKCS#11 CK_TOKEN_INFO), role is what the token is for, "" for all keys.
func AddMemberAct(name, serial, role string) string {
	if role == "" {
		return act("add-member", name, serial)
	}
	return act("add-member", name, serial, role)
}

// RemoveMemberAct allows one HSM member to leave the cluster; name and serial are
// those of [AddMemberAct].
func RemoveMemberAct(name, serial string) string { return act("remove-member", name, serial) }

// RotateSOPINAct allows a member's SO PIN to be changed to one that threshold of the
// officers hold in shares.
func RotateSOPINAct(member string, threshold int) string {
	return act("rotate-so-pin", member, strconv.Itoa(threshold))
}

// BackupRecipientAct allows a token to receive backups. serial is its serial number
// (PKCS#11 CK_TOKEN_INFO).
func BackupRecipientAct(name, serial string) string { return act("backup-recipient", name, serial) }

// RemoveRecipientAct ends that: new keys are not wrapped to the token any more.
func RemoveRecipientAct(name, serial string) string {
	return act("remove-backup-recipient", name, serial)
}

// BackupAct allows the keys of the cluster to be wrapped to a recipient, the token of
// that serial number.
func BackupAct(recipient, serial string) string { return act("backup", recipient, serial) }

// RestoreAct allows the keys of one backup to be restored. manifestHash is the
// SHA-256 of the backup's manifest.
func RestoreAct(manifestHash [32]byte) string { return act("restore", hexHash(manifestHash)) }

// RecoverAct lets the ledger go on from a database that lost its newest entries: size
// entries are left, whose tree has this root; entries from common on and up to known were
// known otherwise and are given up.
func RecoverAct(size uint64, root [32]byte, common, known uint64) string {
	return act("recover-ledger", strconv.FormatUint(size, 10), hexHash(root), strconv.FormatUint(common, 10), strconv.FormatUint(known, 10))
}

// ChangeRosterAct lets a roster, by its version and [Roster.Digest], follow the one of the
// digest before.
func ChangeRosterAct(version uint64, before, after [32]byte) string {
	return act("change-roster", strconv.FormatUint(version, 10), hexHash(before), hexHash(after))
}

// RetireAct ends the use of every key of a cluster, because another one goes on with
// them.
func RetireAct() string { return act("retire-cluster") }

func hexHash(h [32]byte) string { return fmt.Sprintf("%x", h) }

// subjectHash is the word for an issuer Name, if there is one.
func subjectHash(subject []byte) []string {
	if len(subject) == 0 {
		return nil
	}
	return []string{hexHash(sha256.Sum256(subject))}
}

// memberList is one word for a set of members; a comma inside a name is quoted.
func memberList(members []string) string {
	names := slices.Clone(members)
	for i, m := range names {
		if m == "" || strings.ContainsAny(m, `,"`) {
			names[i] = fmt.Sprintf("%q", m)
		}
	}
	slices.Sort(names)
	return strings.Join(slices.Compact(names), ",")
}

// act joins words by blanks; a blank inside a word would let one act pass for
// another, so it is quoted.
func act(words ...string) string {
	for i, w := range words {
		if w == "" || strings.ContainsFunc(w, func(r rune) bool { return r <= ' ' || r == '"' || r == 0x7f }) {
			words[i] = fmt.Sprintf("%q", w)
		}
	}
	return strings.Join(words, " ")
}
