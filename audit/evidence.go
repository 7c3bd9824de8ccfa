package audit

import (
	"errors"
	"strings"
)

// Evidence is what the decision to use a key rests on: facts in order, a name may come
// more than once. It holds nothing personal, for it is kept and exported like the leaf:
// whoever is meant stands there by a pseudonym, a digest, or a number in the commitment
// TagAsked of the same leaf.
//
// Its record is text, one line "name value" for each fact behind the line evidenceMagic.
// The intent's TagEvidence is H("evidence", record).
type Evidence []Fact

// Fact is one line of a record.
type Fact struct {
	Name  string // lower-case letters, digits and hyphens
	Value string // one line
}

const evidenceMagic = "chancery/evidence/v1\n"

// Record is the canonical encoding: what a text cannot carry on one line is replaced.
func (e Evidence) Record() []byte {
	var b strings.Builder
	b.WriteString(evidenceMagic)
	for _, f := range e {
		b.WriteString(f.Name + " " + Text(f.Value, 4096) + "\n")
	}
	return []byte(b.String())
}

// EvidenceDigest is what an intent says of a record.
func EvidenceDigest(record []byte) [32]byte { return Digest("evidence", record) }

// KeepsEvidence tells whether what the intent rests on is kept as a record. Before
// commitments there were none, only digests.
func (l Leaf) KeepsEvidence() bool {
	_, digest := l.Get(TagEvidence)
	_, asked := l.Get(TagAsked)
	return l.Kind == KindIntent && l.Op == OpCertificate && digest && asked
}

// ParseEvidence reads a record.
func ParseEvidence(record []byte) (Evidence, error) {
	text, ok := strings.CutPrefix(string(record), evidenceMagic)
	if !ok || text != "" && !strings.HasSuffix(text, "\n") {
		return nil, errors.New("it is no record of evidence")
	}
	var e Evidence
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if !ok || name == "" {
			return nil, errors.New("a line of the record of evidence has no value")
		}
		e = append(e, Fact{name, value})
	}
	return e, nil
}

// All returns the values of a name.
func (e Evidence) All(name string) (out []string) {
	for _, f := range e {
		if f.Name == name {
			out = append(out, f.Value)
		}
	}
	return out
}
