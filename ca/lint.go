package ca

import (
	"fmt"
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
var lints = sync.OnceValues(func() (lint.Registry, error) {
	all := lint.GlobalRegistry()
	broad, err := all.Filter(lint.FilterOptions{
		IncludeSources: lint.SourceList{lint.RFC3279, lint.RFC5280, lint.RFC5480, lint.RFC5891, lint.RFC8813, lint.Community},
		ExcludeNames:   []string{"e_cert_issued_by_compromised_emudhra_ca"},
	})
	if err != nil {
		return nil, err
	}
	names := append(broad.Names(), "e_subject_common_name_not_exactly_from_san", "e_sub_cert_key_usage_cert_sign_bit_set", "e_underscore_not_permissible_in_dnsname")
	return all.Filter(lint.FilterOptions{IncludeNames: names})
})

// lintCertificate runs the lints over a certificate that is signed by a throw-away
// key. Any error or warning is a defect of ours, not of the requester.
func lintCertificate(der []byte) error {
	reg, err := lints()
	if err != nil {
		return fmt.Errorf("choosing lints: %w", err)
	}
	c, err := zx.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("lint: parsing: %w", err)
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
	return findings(zlint.LintRevocationListEx(l, reg))
}

func findings(set *zlint.ResultSet) error {
	var found []string
	for name, r := range set.Results {
		if r.Status >= lint.Warn {
			found = append(found, strings.TrimSpace(name+" "+r.Details))
		}
	}
	if len(found) > 0 {
		slices.Sort(found)
		return fmt.Errorf("lint: %s", strings.Join(found, "; "))
	}
	return nil
}
