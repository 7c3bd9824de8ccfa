package ca

import (
	"crypto/sha256"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"sync"

	zx "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	"github.com/zmap/zlint/v3/lint"
)

// lints are the rules of RFC 5280 and its kin, and three of the CA/Browser Forum's
// that hold for a private PKI too. One lint is left out: it checks each certificate
// against the signature of a compromised public CA, which costs 87 % of all lint
// time and cannot be true of a certificate of ours.
var (
	lintSources = lint.SourceList{lint.RFC3279, lint.RFC5280, lint.RFC5480, lint.RFC5891, lint.RFC8813, lint.Community}
	lintLeftOut = []string{"e_cert_issued_by_compromised_emudhra_ca"}
	lintAdded   = []string{"e_subject_common_name_not_exactly_from_san", "e_sub_cert_key_usage_cert_sign_bit_set", "e_underscore_not_permissible_in_dnsname"}
)

var lints = sync.OnceValues(func() (lint.Registry, error) {
	all := lint.GlobalRegistry()
	broad, err := all.Filter(lint.FilterOptions{IncludeSources: lintSources, ExcludeNames: lintLeftOut})
	if err != nil {
		return nil, err
	}
	names := append(broad.Names(), lintAdded...)
	return all.Filter(lint.FilterOptions{IncludeNames: names})
})

// lintReport is what the lints said of a certificate that they let pass.
type lintReport struct {
	ran           int      // lints that apply to it
	notApplicable int      // of the same set
	notices       []string // names; anything worse is not signed
}

// lintCertificate runs the lints over a certificate that is signed by a throw-away
// key. Any error or warning is a defect of ours, not of the requester.
func lintCertificate(der []byte) (lintReport, error) {
	reg, err := lints()
	if err != nil {
		return lintReport{}, fmt.Errorf("choosing lints: %w", err)
	}
	c, err := zx.ParseCertificate(der)
	if err != nil {
		return lintReport{}, fmt.Errorf("lint: parsing: %w", err)
	}
	return findings(zlint.LintCertificateEx(c, reg))
}

// lintCRL is lintCertificate for a CRL.
func lintCRL(der []byte) error {
	reg, err := lints()
	if err != nil {
		return fmt.Errorf("choosing lints: %w", err)
	}
	l, err := zx.ParseRevocationList(der)
	if err != nil {
		return fmt.Errorf("lint: parsing: %w", err)
	}
	_, err = findings(zlint.LintRevocationListEx(l, reg))
	return err
}

func findings(set *zlint.ResultSet) (rep lintReport, err error) {
	var found []string
	for name, r := range set.Results {
		switch {
		case r.Status >= lint.Warn:
			found = append(found, strings.TrimSpace(name+" "+r.Details))
		case r.Status == lint.Notice:
			rep.notices = append(rep.notices, name)
		}
		if r.Status == lint.NA || r.Status == lint.NE {
			rep.notApplicable++
		} else {
			rep.ran++
		}
	}
	slices.Sort(rep.notices)
	if len(found) > 0 {
		slices.Sort(found)
		return rep, fmt.Errorf("lint: %s", strings.Join(found, "; "))
	}
	return rep, nil
}

// linter names the lints: the version of zlint, their sources, and a digest of all their
// names, which changes with the set.
var linter = sync.OnceValue(func() string {
	version := "of unknown version"
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, d := range info.Deps {
			if d.Path == "github.com/zmap/zlint/v3" {
				version = d.Version
			}
		}
	}
	var sources []string
	for _, s := range lintSources {
		sources = append(sources, string(s))
	}
	text := "zlint " + version + " " + strings.Join(sources, ",") + " without " + strings.Join(lintLeftOut, ",") + " with " + strings.Join(lintAdded, ",")
	if reg, err := lints(); err == nil {
		names := slices.Sorted(slices.Values(reg.Names()))
		sum := sha256.Sum256([]byte(strings.Join(names, "\n")))
		text += fmt.Sprintf(" set %d %x", len(names), sum[:8])
	}
	return text
})
