package check

import (
	"slices"
	"strconv"
	"strings"

	"chancery/cmd/chancery-verify/internal/leaf"
)

// mandate is what a grant allows, and what was made of it.
type mandate struct {
	Acts  []string     `json:"acts"`
	Used  map[int]bool `json:"used,omitempty"` // by place in Acts: those that count once
	Ended bool         `json:"ended,omitempty"`
}

func newMandate(acts [][]byte) *mandate {
	m := &mandate{Used: map[int]bool{}}
	for _, a := range acts {
		m.Acts = append(m.Acts, string(a))
	}
	return m
}

// granted wants a grant that an entry names to have been made before, for just that act,
// and not to be used up (P7); needs: the entry must name one.
func (s *State) granted(index uint64, l *leaf.Leaf, needs bool) error {
	g, named := l.Hash(leaf.TagGrant)
	m := s.Grants[g]
	switch {
	case !named && needs:
		return bad(index, "%s was done without a grant", l.Op)
	case !named:
	case m == nil:
		return bad(index, "the grant %x that it names was never made", g[:8])
	case l.Kind == leaf.Event && !m.allow(l):
		return bad(index, "the grant %x that it names is for something else, or is used up", g[:8])
	}
	return nil
}

// act is what an entry does in the words of the acts that officers sign: the first says
// what, the others to whom. The rest of an act, which entries do not repeat, is not compared.
type act struct {
	words []string
	once  bool // a grant is for one of it
	whole bool // nothing may follow the words
}

// actsOf lists the acts of which one has to stand in the grant; none: the grant need not
// name what the entry does.
func actsOf(l *leaf.Leaf) []act {
	name, member, serial := l.Text(leaf.TagKeyName), l.Text(leaf.TagMember), l.Text(leaf.TagSerialNumber)
	recipient, state := l.Text(leaf.TagRecipient), l.Text(leaf.TagState)
	purpose := ""
	if n, _ := l.Uint(leaf.TagPurpose); n < uint64(len(purposes)) {
		purpose = purposes[n]
	}
	key, named := l.Hash(leaf.TagKey)
	manifest, _ := l.Hash(leaf.TagManifest)
	once := func(words ...string) act { return act{words: words, once: true} }
	any := func(words ...string) act { return act{words: words} }
	joins := act{words: []string{"add-member", member, serial}, once: l.Op == leaf.OpMemberAdd, whole: true} // with a role it is another act
	if role := l.Text(leaf.TagRole); role != "" && joins.once {
		joins.words = append(joins.words, role)
	}
	switch l.Op {
	case leaf.OpKeyGenerate:
		return []act{once("generate-key", name, purpose)}
	case leaf.OpKeyAdopt:
		return []act{once("adopt-key", name, purpose)}
	case leaf.OpKeyImport:
		return []act{once("import-key", name, purpose)}
	case leaf.OpKeyReplicate:
		return []act{any("generate-key", name), any("import-key", name), any("repair-key", name, member), joins}
	case leaf.OpKeyDestroy:
		return []act{any("destroy-key", name, key.String())}
	case leaf.OpMemberAdd:
		return []act{joins}
	case leaf.OpRestore:
		return []act{any("restore", manifest.String())}
	case leaf.OpRecovery:
		return []act{any("recover-ledger")}
	case leaf.OpRevoke:
		if state == stateLost {
			return []act{any("recover-ledger")}
		}
	case leaf.OpMemberState:
		switch state {
		case "removed":
			return []act{any("remove-member", member, serial)}
		case "retired":
			return []act{any("retire-cluster")}
		}
	case leaf.OpBackup:
		switch {
		case state == "designated":
			return []act{once("backup-recipient", recipient, serial)}
		case state == "removed":
			return []act{once("remove-backup-recipient", recipient, serial)}
		case named:
			return []act{any("backup", recipient, serial), any("generate-key", name), any("import-key", name)}
		}
	}
	return nil
}

// purposes are the names of keys' purposes in acts.
var purposes = [...]string{"", "issuer", "ocsp", "checkpoint", "code", "document", "timestamp", "probe", "secret"}

// allow tells whether the grant is for what an entry does, and uses it.
func (m *mandate) allow(l *leaf.Leaf) bool {
	if m.Ended {
		return false
	}
	wanted := actsOf(l)
	for _, a := range wanted {
		if m.use(a) {
			return true
		}
	}
	return wanted == nil
}

func (m *mandate) use(a act) bool {
	for i, w := range a.words {
		a.words[i] = word(w)
	}
	want := strings.Join(a.words, " ")
	for i, have := range m.Acts {
		if (have == want || !a.whole && strings.HasPrefix(have, want+" ")) && !(a.once && m.Used[i]) {
			if a.once {
				m.Used[i] = true
			}
			return true
		}
	}
	return false
}

// word quotes what would not be one word of an act.
func word(w string) string {
	if w == "" || strings.ContainsFunc(w, func(r rune) bool { return r <= ' ' || r == '"' || r == 0x7f }) {
		return strconv.Quote(w)
	}
	return w
}

// signsCA tells whether the grant is for the certificate of a CA. Entries do not have the
// names that the act has.
func (m *mandate) signsCA() bool {
	return m != nil && slices.ContainsFunc(m.Acts, func(a string) bool {
		return strings.HasPrefix(a, "sign-root ") || strings.HasPrefix(a, "sign-ca ")
	})
}
