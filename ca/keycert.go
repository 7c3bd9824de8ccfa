package ca

import (
	"context"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"sync"
	"time"

	"chancery/audit"
)

// keyCerts remembers the present certificates of keys of the cluster.
type keyCerts struct {
	mu   sync.Mutex
	cert map[string]*Certificate // by key name and profile
}

// CertificateFor returns the present certificate of a key of the cluster, e.g. the
// document key's with profile "document-signing". Until a third of its validity is
// left it is the one that exists; then, or if there is none or it was revoked, the
// default issuer makes a new one through Prepare and Issue.
func (a *Authority) CertificateFor(ctx context.Context, key, profile string) (*Certificate, error) {
	a.keyCerts.mu.Lock()
	defer a.keyCerts.mu.Unlock()
	id := key + " " + profile
	now := a.cfg.Now()
	if c := a.keyCerts.cert[id]; c != nil && now.Before(renewAt(c)) {
		if s, err := a.Certificate(ctx, c.Serial); err == nil && s.Revoked == nil {
			return c, nil
		}
	}
	k, err := a.cfg.Keys.Key(key)
	if err != nil {
		return nil, err
	}
	stored, err := a.cfg.Storage.CertificateOfKey(ctx, k.SPKIHash(), profile)
	if err != nil && !errors.Is(err, audit.ErrNotFound) {
		return nil, err
	}
	var c *Certificate
	if err == nil {
		c = a.certificate(stored)
	}
	if c == nil || !now.Before(renewAt(c)) || len(c.Chain) == 0 {
		p, err := a.prepareKey(key, profile)
		if err != nil {
			return nil, err
		}
		if c, err = a.Issue(ctx, p, Projections{}); err != nil {
			return nil, err
		}
	}
	if a.keyCerts.cert == nil {
		a.keyCerts.cert = map[string]*Certificate{}
	}
	a.keyCerts.cert[id] = c
	return c, nil
}

func renewAt(c *Certificate) time.Time {
	return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) * 2 / 3)
}

// prepareKey is Prepare for a key of the cluster: its possession is proved by its
// birth, and its subject names the key.
func (a *Authority) prepareKey(name, profile string) (*Prepared, error) {
	prof, ok := profiles[profile]
	if !ok || !prof.clusterKey {
		return nil, refuse(BadProfile, "profile", "there is no profile %q for keys of the cluster; allowed: document-signing", clip(profile))
	}
	key, err := a.cfg.Keys.Key(name)
	if err != nil {
		return nil, err
	}
	if key.Purpose() != audit.PurposeDocument {
		return nil, refuse(BadProfile, "profile", "key %s is for %s, profile %s is for documents", name, key.Purpose(), profile)
	}
	if err := checkKey("key", key.Public(), prof.Keys); err != nil {
		return nil, err
	}
	is, err := a.issuer("")
	if err != nil {
		return nil, err
	}
	p := &Prepared{issuer: is, profile: prof, pub: key.Public(), req: Request{Profile: profile, Requester: "key:" + name,
		Evidence: audit.Evidence{{Name: "request", Value: "certificate of a key of the cluster, whose possession its birth proves"}}}}
	p.tmpl = a.template(prof, is.cert, key.SPKI())
	p.tmpl.CRLDistributionPoints = []string{a.crlURL(is.name)}
	p.tmpl.IssuingCertificateURL = []string{a.issuerURL(is.name)}
	subject, err := asn1.Marshal(pkix.Name{Organization: is.cert.Subject.Organization, CommonName: "Document signing, key " + name}.ToRDNSequence())
	if err != nil {
		return nil, fmt.Errorf("encoding the subject: %w", err)
	}
	p.tmpl.RawSubject = subject
	if err := a.checkIssuer(is, p.tmpl); err != nil {
		return nil, err
	}
	if err := p.seal(); err != nil {
		return nil, err
	}
	return p, nil
}
