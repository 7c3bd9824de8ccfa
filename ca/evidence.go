package ca

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"chancery/audit"
)

// evidence is what the decision to issue rests on: what the caller says, and what was
// decided here. The names stand in the certificate and, as they were asked for, in a
// commitment of the intent; here they have no place.
func (p *Prepared) evidence() audit.Evidence {
	e := append(audit.Evidence{}, p.req.Evidence...)
	if p.req.CSR != nil {
		sum := sha256.Sum256(p.req.CSR)
		e = append(e, audit.Fact{Name: "csr-sha256", Value: hex.EncodeToString(sum[:])})
	}
	digest := p.profile.digest()
	e = append(e, audit.Fact{Name: "profile", Value: fmt.Sprintf("%s %x", p.profile.Name, digest)},
		audit.Fact{Name: "linter", Value: linter()},
		audit.Fact{Name: "lint", Value: fmt.Sprintf("%d passed, %d not applicable, 0 errors, 0 warnings, %d notices", p.lint.ran-len(p.lint.notices), p.lint.notApplicable, len(p.lint.notices))})
	for _, n := range p.lint.notices {
		e = append(e, audit.Fact{Name: "lint-notice", Value: n})
	}
	return e
}

// private is what the ledger commits to without saying it.
func (p *Prepared) private() []audit.Private {
	return []audit.Private{{Tag: audit.TagAddress, Value: p.req.Client}, {Tag: audit.TagAsked, Value: p.asked}}
}

// asked is what a request asks for, as audit.TagAsked has it: the attributes of its
// subject, most of which no certificate carries, then the names in the order given.
func (c *csr) asked(names []Name) string {
	var lines []string
	for _, a := range c.Subject.Names {
		kind := a.Type.String()
		if s, ok := attributeNames[kind]; ok {
			kind = s
		}
		lines = append(lines, kind+"="+audit.Text(fmt.Sprint(a.Value), 1024))
	}
	for _, n := range names {
		lines = append(lines, n.String())
	}
	return strings.Join(lines, "\n")
}

// attributeNames are the usual names of attributes (RFC 4514 §3, RFC 2985 §5.2.1).
var attributeNames = map[string]string{
	"2.5.4.3": "CN", "2.5.4.4": "SN", "2.5.4.5": "serialNumber", "2.5.4.6": "C", "2.5.4.7": "L", "2.5.4.8": "ST", "2.5.4.9": "STREET",
	"2.5.4.10": "O", "2.5.4.11": "OU", "2.5.4.12": "title", "2.5.4.17": "postalCode", "2.5.4.42": "GN", "0.9.2342.19200300.100.1.1": "UID",
	"0.9.2342.19200300.100.1.25": "DC", "1.2.840.113549.1.9.1": "emailAddress",
}
