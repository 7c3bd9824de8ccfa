package audit

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// mandate is what a grant allows, and what was made of it.
type mandate struct {
	acts  []string
	used  map[string]bool // acts that count once: births, adoptions, imports, members that join
	ended bool            // what came of it is recorded
}

func newMandate(list []byte) *mandate {
	m := &mandate{used: map[string]bool{}}
	items, _ := ParseList(list) // a list that cannot be read allows nothing
	for _, b := range items {
		m.acts = append(m.acts, string(b))
	}
	return m
}

// once uses up one act, exactly as it stands there.
func (m *mandate) once(act string) bool {
	if m.used[act] || !slices.Contains(m.acts, act) {
		return false
	}
	m.used[act] = true
	return true
}

// allows tells whether an event is about an act of the grant. The acts are those of admin:
// words, the first says what is done, the next to whom. What leaves do not have, as the
// members of a key, is not compared.
func (m *mandate) allows(l Leaf) bool {
	if m.ended {
		return false
	}
	text := func(t Tag) string { b, _ := l.Get(t); return string(b) }
	key, _ := l.Hash(TagKey)
	purpose, _ := l.Uint(TagPurpose)
	name, member, serial, hash := text(TagKeyName), text(TagMember), text(TagSerialNumber), hex.EncodeToString(key[:])
	recipient, state := text(TagRecipient), text(TagState)
	find := func(once, whole bool, words []string) bool {
		for i, w := range words {
			words[i] = actWord(w)
		}
		want := strings.Join(words, " ")
		i := slices.IndexFunc(m.acts, func(act string) bool {
			return (act == want || !whole && strings.HasPrefix(act, want+" ")) && !(once && m.used[act])
		})
		if i >= 0 && once {
			m.used[m.acts[i]] = true
		}
		return i >= 0
	}
	has := func(once bool, words ...string) bool { return find(once, false, words) }
	p := Purpose(purpose).String()
	joins := []string{"add-member", member, serial} // nothing may follow: the act of a member with a role is another
	if role := text(TagRole); l.Op == OpMemberAdd && role != "" {
		joins = append(joins, role)
	}
	switch l.Op {
	case OpKeyGenerate:
		return has(true, "generate-key", name, p)
	case OpKeyAdopt:
		return has(true, "adopt-key", name, p)
	case OpKeyImport:
		return has(true, "import-key", name, p)
	case OpKeyReplicate:
		return has(false, "generate-key", name) || has(false, "import-key", name) || has(false, "repair-key", name, member) || find(false, true, joins)
	case OpKeyDestroy:
		return has(false, "destroy-key", name, hash)
	case OpMemberAdd:
		return find(true, true, joins)
	case OpMemberState:
		switch state {
		case "removed":
			return has(false, "remove-member", member, serial)
		case "retired":
			return has(false, "retire-cluster")
		}
	case OpBackup:
		switch _, named := l.Get(TagKey); {
		case state == "designated":
			return has(true, "backup-recipient", recipient, serial)
		case state == "removed":
			return has(true, "remove-backup-recipient", recipient, serial)
		case named:
			return has(false, "backup", recipient, serial) || has(false, "generate-key", name) || has(false, "import-key", name)
		}
	case OpRecovery:
		return has(false, "recover-ledger")
	case OpRevoke:
		return state != stateLost || has(false, "recover-ledger")
	case OpRestore:
		manifest, _ := l.Hash(TagManifest)
		return has(false, "restore", hex.EncodeToString(manifest[:]))
	}
	return true
}

// actWord quotes a word as admin does in acts.
func actWord(w string) string {
	if w == "" || strings.ContainsFunc(w, func(r rune) bool { return r <= ' ' || r == '"' || r == 0x7f }) {
		return fmt.Sprintf("%q", w)
	}
	return w
}

// signsCA wants a grant for the certificate of a CA (P7).
func (a *approvals) signsCA(index uint64, intent Leaf) error {
	g, ok := intent.Hash(TagGrant)
	m := a.grants[g]
	if !ok || m == nil || !slices.ContainsFunc(m.acts, func(act string) bool {
		return strings.HasPrefix(act, "sign-root ") || strings.HasPrefix(act, "sign-ca ")
	}) {
		return violate(index, "it signs the certificate of a CA without a grant for that")
	}
	return nil
}
