package admin

import (
	"fmt"
	"strings"
)

// An act is one line of text that names one deed and all that matters about it.
// It stands in the ledger (leaf 0, TagActs), so the words below never change.

// GenerateKeyAct allows the birth of one key, its copies and its proofs. purpose
// is the text of an audit.Purpose, algorithm a name such as "P-256" or "RSA-3072".
func GenerateKeyAct(name, purpose, algorithm string) string {
	return act("generate-key", name, purpose, algorithm)
}

// SignRootAct allows the self-signed certificate of one root.
func SignRootAct(name string) string { return act("sign-root", name) }

// SignCAAct allows the certificate of one subordinate CA.
func SignCAAct(issuer, name string) string { return act("sign-ca", issuer, name) }

// AddMemberAct allows one HSM member to join the cluster.
func AddMemberAct(name string) string { return act("add-member", name) }

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
