package acme

import (
	"errors"
	"net/http"
	"net/netip"
	"strings"

	"golang.org/x/net/publicsuffix"

	"chancery/ca"
)

// Names says for which names certificates may be ordered. What is not permitted is
// denied; an empty Permit permits all. An entry is a domain ("corp.example": the name
// and all beneath it) or a network ("10.0.0.0/8": IP identifiers).
type Names struct {
	Permit []string
	Deny   []string // wins over Permit
	// PrivateOnly refuses names beneath a public top-level domain.
	PrivateOnly bool
}

// maxNames bounds an order; other CAs draw the line there, too.
const maxNames = 100

// parseNames reads the identifiers of an order: canonical, each once. Every bad one
// gets a subproblem (RFC 8555 §6.7.1).
func (s *Server) parseNames(ids []Identifier) ([]ca.Name, error) {
	if len(ids) == 0 {
		return nil, malformed("identifiers must name at least one name, like {\"type\":\"dns\",\"value\":\"host.example\"}")
	}
	if len(ids) > maxNames {
		return nil, problem(http.StatusBadRequest, RejectedIdentifier, "the order has %d identifiers; at most %d are allowed in one certificate: split it", len(ids), maxNames)
	}
	var names []ca.Name
	var bad []*Problem
	seen := map[ca.Name]bool{}
	for _, id := range ids {
		n, p := s.parseName(id)
		switch {
		case p != nil:
			p.Status = 0
			p.Identifier = &Identifier{Type: shown(id.Type), Value: shown(id.Value)}
			bad = append(bad, p)
		case !seen[n]:
			seen[n] = true
			names = append(names, n)
		}
	}
	if len(bad) == 0 {
		return names, nil
	}
	all := &Problem{Type: bad[0].Type, Status: http.StatusBadRequest, Detail: bad[0].Detail, Subproblems: bad}
	if len(bad) > 1 {
		all.Detail = "several identifiers are refused; the subproblems say why each"
		for _, p := range bad {
			if p.Type != all.Type {
				all.Type = Compound
			}
		}
	}
	return nil, all
}

// shown is an identifier as it may be shown again: as it is, if it is harmless.
func shown(s string) string {
	plain := strings.IndexFunc(s, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && !strings.ContainsRune("-.:*_", r)
	}) < 0
	if plain && len(s) <= 253 {
		return s
	}
	return strings.Trim(quote(s), `"`)
}

func rejected(detail string) *Problem { return &Problem{Type: RejectedIdentifier, Detail: detail} }

func (s *Server) parseName(id Identifier) (ca.Name, *Problem) {
	kind := ca.NameKind(id.Type)
	if kind != ca.DNS && kind != ca.IP {
		return ca.Name{}, &Problem{Type: UnsupportedIdentifier, Detail: "the type of the identifier is not supported; allowed: dns, ip"}
	}
	n, err := ca.ParseName(kind, id.Value)
	var r *ca.Refusal
	if errors.As(err, &r) {
		return n, rejected(unmarked(r.Detail))
	}
	if err != nil {
		return n, rejected("the identifier is no valid name")
	}
	if kind == ca.IP {
		return n, s.judgeAddress(n)
	}
	return n, s.judgeDomain(n)
}

func (s *Server) judgeAddress(n ca.Name) *Problem {
	if why := s.validate.forbidden(netip.AddrPortFrom(n.Addr(), s.validate.httpPort)); why != "" {
		return rejected("this server does not reach out to " + why + ", so it cannot validate the address")
	}
	if !s.cfg.Names.permits(n) {
		return rejected("the policy of this CA does not permit this address")
	}
	return nil
}

func (s *Server) judgeDomain(n ca.Name) *Problem {
	d := n.Value
	if strings.HasPrefix(d, "*.") {
		return rejected("a wildcard name needs the challenge dns-01 (RFC 8555 §8.4), which this server does not offer yet; order the names one by one")
	}
	if (d == "localhost" || strings.HasSuffix(d, ".localhost")) && !s.cfg.Validation.LocalhostToLoopback {
		return rejected("names at localhost mean another machine to everybody (RFC 6761 §6.3) and get no certificate")
	}
	suffix, icann := publicsuffix.PublicSuffix(d)
	switch {
	case icann && d == suffix:
		return rejected("the name is a public suffix, beneath which others register names")
	case icann && s.cfg.Names.PrivateOnly:
		return rejected("the name is beneath a public top-level domain; this CA serves private names only")
	case !s.cfg.Names.permits(n):
		return rejected("the policy of this CA does not permit this name")
	}
	return nil
}

func (p Names) permits(n ca.Name) bool {
	for _, e := range p.Deny {
		if covers(e, n) {
			return false
		}
	}
	for _, e := range p.Permit {
		if covers(e, n) {
			return true
		}
	}
	return len(p.Permit) == 0
}

func covers(entry string, n ca.Name) bool {
	if prefix, err := netip.ParsePrefix(entry); err == nil {
		return n.Kind == ca.IP && prefix.Contains(n.Addr())
	}
	return n.Kind == ca.DNS && (n.Value == entry || strings.HasSuffix(n.Value, "."+entry))
}

func (p Names) check() error {
	for _, e := range append(append([]string{}, p.Permit...), p.Deny...) {
		if _, err := netip.ParsePrefix(e); err == nil {
			continue
		}
		if n, err := ca.ParseName(ca.DNS, e); err != nil || n.Value != e {
			return errors.New("acme: names: " + quote(e) + " is neither a lower-case domain like corp.example nor a network like 10.0.0.0/8")
		}
	}
	return nil
}
