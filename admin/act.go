package admin

import (
	"crypto/sha256"
	"fmt"
	"strings"
)

// An act is one line of text that names one deed and all that matters about it.
// It stands in the ledger (leaf 0, TagActs), so the words below never change.

// GenerateKeyAct allows the birth of one key, its copies and its proofs. purpose
// is the text of an audit.Purpose, algorithm a name such as "P-256" or "RSA-3072".
// subject is the issuer Name (DER) that an issuer key is bound to for ever, else
// nil: it stands in the act as its SHA-256.
func GenerateKeyAct(name, purpose, algorithm string, subject []byte) string {
	if len(subject) == 0 {
		return act("generate-key", name, purpose, algorithm)
	}
	return act("generate-key", name, purpose, algorithm, fmt.Sprintf("%x", sha256.Sum256(subject)))
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
