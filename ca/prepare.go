package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"chancery/admin"
	"chancery/audit"
	"chancery/hsmstore"
)

// Prepared is the permission to issue exactly one certificate with exactly these
// bytes. Only the checks of this package make one; [Authority.Issue] spends it.
type Prepared struct {
	issuer  *issuer // who signs; for a root, itself to be
	profile *Profile
	tmpl    *x509.Certificate
	pub     crypto.PublicKey
	names   []Name
	tbs     []byte
	serial  []byte
	req     Request
	grant   [32]byte
	becomes *IssuerSpec // set when the certificate makes an issuer
	asked   string      // what the request asks for, see audit.TagAsked
	lint    lintReport
	spent   atomic.Bool
}

// Serial is the serial in lower-case hex.
func (p *Prepared) Serial() string { return hex.EncodeToString(p.serial) }

// NotBefore is the first second of validity.
func (p *Prepared) NotBefore() time.Time { return p.tmpl.NotBefore }

// NotAfter is the last second of validity.
func (p *Prepared) NotAfter() time.Time { return p.tmpl.NotAfter }

// Prepare decides whether and how a request becomes a certificate. Nothing is
// written and no HSM is called. Errors: a [*Refusal], or a defect of ours (lint).
func (a *Authority) Prepare(_ context.Context, r Request) (*Prepared, error) {
	// 1. The profile.
	prof, ok := profiles[r.Profile]
	if !ok || prof.isCA || prof.clusterKey {
		return nil, refuse(BadProfile, "profile", "there is no profile %q for requests; allowed: tls-client, tls-server", clip(r.Profile))
	}
	is, err := a.issuer("")
	if err != nil {
		return nil, err
	}
	// 2. The request: form, proof of possession, key, extensions.
	req, err := parseCSR(r.CSR, prof)
	if err != nil {
		return nil, err
	}
	if a.isOurs(req.spki) {
		return nil, refuse(BadPublicKey, "csr.subjectPublicKeyInfo", "the key belongs to this CA; make a key of your own")
	}
	// 3. The names: exactly those that the requester is entitled to.
	names := req.names
	if r.Names != nil {
		if !sameNames(names, r.Names) {
			return nil, refuse(BadCSR, "csr.subjectAltName", "the request asks for %s, allowed is exactly %s", list(names), list(r.Names))
		}
		names = slices.Clone(r.Names)
	}
	if len(names) == 0 {
		return nil, refuse(BadCSR, "csr.subjectAltName", "it names nothing; profile %s needs at least one DNS name or IP address", prof.Name)
	}
	for _, n := range names {
		if !slices.Contains(prof.Kinds, n.Kind) || n.Wildcard() && !prof.Wildcards {
			return nil, &Refusal{Code: BadName, Field: "csr.subjectAltName", Detail: fmt.Sprintf("profile %s does not allow %q", prof.Name, n.Value), Name: &n}
		}
	}
	// 4. Validity, within the issuer's.
	p := &Prepared{issuer: is, profile: prof, pub: req.PublicKey, names: names, req: r, asked: req.asked(names)}
	p.tmpl = a.template(prof, is.cert, req.RawSubjectPublicKeyInfo)
	for _, n := range names {
		if n.Kind == IP {
			p.tmpl.IPAddresses = append(p.tmpl.IPAddresses, net.IP(n.Addr().AsSlice()))
		} else {
			p.tmpl.DNSNames = append(p.tmpl.DNSNames, n.Value)
		}
	}
	p.tmpl.CRLDistributionPoints = []string{a.crlURL(is.name)}
	p.tmpl.IssuingCertificateURL = []string{a.issuerURL(is.name)}
	if err := a.checkIssuer(is, p.tmpl); err != nil {
		return nil, err
	}
	// 5. to 7. Serial, TBS bytes, lint.
	if err := p.seal(); err != nil {
		return nil, err
	}
	return p, nil
}

// IssuerSpec describes an issuer to be made.
type IssuerSpec struct {
	Name    string // in the ledger, in URLs
	Profile string // "root" or "issuing"
	KeyName string // key of the cluster, purpose issuer
	Subject pkix.Name
	Parent  string // name of the issuer that signs; its own for a root
}

// PrepareIssuer is Prepare for the certificate of an issuer. The grant must allow the
// act; it is spent last, so that a refusal costs no vote.
func (a *Authority) PrepareIssuer(_ context.Context, g *admin.Grant, spec IssuerSpec) (*Prepared, error) {
	key, prof, err := a.checkSpec(spec)
	if err != nil {
		return nil, err
	}
	p := &Prepared{profile: prof, pub: key.Public(), becomes: &spec, grant: g.Hash(), req: Request{Profile: spec.Profile, Requester: "ceremony",
		Evidence: audit.Evidence{{Name: "request", Value: "an issuer, by the grant of the intent"}}}}
	act := admin.SignCAAct(spec.Parent, spec.Name)
	if spec.Parent == spec.Name {
		act = admin.SignRootAct(spec.Name)
		lk, err := lintKey(key.Public())
		if err != nil {
			return nil, err
		}
		p.issuer = &issuer{name: spec.Name, parent: spec.Name, key: key, spki: key.SPKIHash(), lint: lk}
		p.tmpl = a.template(prof, nil, key.SPKI())
		p.tmpl.AuthorityKeyId = p.tmpl.SubjectKeyId // its own key signs it (RFC 5280 §4.2.1.1)
	} else {
		if p.issuer, err = a.issuer(spec.Parent); err != nil {
			return nil, err
		}
		p.tmpl = a.template(prof, p.issuer.cert, key.SPKI())
		p.tmpl.CRLDistributionPoints = []string{a.crlURL(spec.Parent)}
		p.tmpl.IssuingCertificateURL = []string{a.issuerURL(spec.Parent)}
		if err := a.checkIssuer(p.issuer, p.tmpl); err != nil {
			return nil, err
		}
	}
	p.tmpl.RawSubject = key.Subject()
	if err := p.seal(); err != nil {
		return nil, err
	}
	if err := g.Spend(act); err != nil {
		return nil, fmt.Errorf("making issuer %s: %w", spec.Name, err)
	}
	return p, nil
}

// checkSpec holds the description of an issuer against profiles and keys. The name
// that the key is bound to must be the one that the certificate says: the worker
// signs nothing under another (P8).
func (a *Authority) checkSpec(spec IssuerSpec) (*hsmstore.Key, *Profile, error) {
	prof, ok := profiles[spec.Profile]
	if !ok || !prof.isCA {
		return nil, nil, refuse(BadProfile, "profile", "there is no issuer profile %q; allowed: root, issuing", clip(spec.Profile))
	}
	if self := spec.Parent == spec.Name; self != (prof.Name == "root") {
		return nil, nil, refuse(BadProfile, "parent", "profile root is for an issuer that signs itself, profile issuing for one below another")
	}
	if !issuerName(spec.Name) {
		return nil, nil, refuse(BadProfile, "name", "an issuer's name stands in URLs: 1 to 64 letters, digits, hyphens, underscores and dots, beginning with a letter or digit")
	}
	if a.HasIssuer(spec.Name) {
		return nil, nil, refuse(BadProfile, "name", "issuer %s exists", spec.Name)
	}
	key, err := a.cfg.Keys.Key(spec.KeyName)
	if err != nil {
		return nil, nil, err
	}
	subject, err := asn1.Marshal(spec.Subject.ToRDNSequence())
	if err != nil {
		return nil, nil, refuse(BadProfile, "subject", "it cannot be encoded as a Name (RFC 5280 §4.1.2.6)")
	}
	switch {
	case key.Purpose() != audit.PurposeIssuer:
		return nil, nil, refuse(BadProfile, "key", "key %s is for %s, not for an issuer", key.Name(), key.Purpose())
	case a.isOurs(key.SPKIHash()):
		return nil, nil, refuse(BadProfile, "key", "key %s belongs to another issuer", key.Name())
	case !bytes.Equal(subject, key.Subject()):
		return nil, nil, refuse(BadProfile, "subject", "key %s is bound to another subject", key.Name())
	}
	return key, prof, checkKey("key", key.Public(), prof.Keys)
}

func issuerName(s string) bool {
	for i := range len(s) {
		c := s[i]
		alnum := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !alnum && (i == 0 || c != '-' && c != '_' && c != '.') {
			return false
		}
	}
	return 0 < len(s) && len(s) <= 64
}

// template fills in what the profile and the issuer decide.
func (a *Authority) template(prof *Profile, parent *x509.Certificate, spki []byte) *x509.Certificate {
	from := a.cfg.Now().UTC().Add(-maxBackdate).Truncate(time.Second)
	if parent != nil && from.Before(parent.NotBefore) {
		from = parent.NotBefore
	}
	t := &x509.Certificate{
		NotBefore: from, NotAfter: from.Add(prof.Validity - time.Second),
		KeyUsage: prof.KeyUsage, ExtKeyUsage: prof.ExtKeyUsage, UnknownExtKeyUsage: prof.otherEKU, BasicConstraintsValid: true, IsCA: prof.isCA,
		SubjectKeyId: keyID(spki),
	}
	if prof.isCA {
		t.MaxPathLen, t.MaxPathLenZero = prof.maxPathLen, prof.maxPathLen == 0
	}
	if parent != nil {
		t.AuthorityKeyId = parent.SubjectKeyId
	}
	return t
}

// keyID is method 1 of RFC 7093 §2: the first 160 bits of the SHA-256 of the key's BIT STRING.
func keyID(spki []byte) []byte {
	bits, err := publicKeyBits(spki)
	if err != nil {
		bits = spki
	}
	sum := sha256.Sum256(bits)
	return sum[:20]
}

// checkIssuer refuses what the issuer's own certificate and those above it do not
// cover (RFC 5280 §6.1).
func (a *Authority) checkIssuer(is *issuer, tmpl *x509.Certificate) error {
	now, parent := a.cfg.Now(), is.cert
	switch {
	case tmpl.IsCA && parent.MaxPathLenZero:
		return refuse(IssuerUnavailable, "issuer", "the issuer may not have CAs below it (pathLen 0)")
	case now.Before(parent.NotBefore) || now.After(parent.NotAfter):
		return refuse(IssuerUnavailable, "issuer", "the issuer's certificate is valid from %s to %s only", parent.NotBefore.Format(time.RFC3339), parent.NotAfter.Format(time.RFC3339))
	case tmpl.NotAfter.After(parent.NotAfter):
		return refuse(IssuerUnavailable, "issuer", "the certificate would outlive its issuer, which ends at %s; renew the issuer first", parent.NotAfter.Format(time.RFC3339))
	case tmpl.NotBefore.Before(parent.NotBefore):
		return refuse(IssuerUnavailable, "issuer", "the certificate would begin before its issuer, which begins at %s", parent.NotBefore.Format(time.RFC3339))
	}
	if is.halted.Load() {
		return refuse(IssuerUnavailable, "issuer", "the CRL of issuer %s is not what it must be; no certificate is signed until it is issued anew", is.name)
	}
	for {
		if is.revoked.Load() {
			return refuse(IssuerUnavailable, "issuer", "the certificate of issuer %s is revoked", is.name)
		}
		if is.root() {
			return nil
		}
		up, err := a.issuer(is.parent)
		if err != nil {
			return err
		}
		is = up
	}
}

// newSerial draws 126 random bits; the first octet is 0x40..0x7f, so that every
// serial has 16 octets and is positive (RFC 5280 §4.1.2.2).
func newSerial() []byte {
	s := make([]byte, 16)
	rand.Read(s)
	s[0] = s[0]&0x3f | 0x40
	return s
}

// seal draws the serial, makes the TBS bytes once, and lints them under a throw-away signature.
func (p *Prepared) seal() error {
	p.serial = newSerial()
	p.tmpl.SerialNumber = new(big.Int).SetBytes(p.serial)
	sigAlg, hash, err := signatureAlgorithm(p.issuer.key.Public())
	if err != nil {
		return err
	}
	p.tmpl.SignatureAlgorithm = sigAlg
	parent := p.issuer.cert
	if parent == nil {
		parent = p.tmpl // a root
	}
	p.tbs, err = captureTBS(p.issuer.key.Public(), func(s crypto.Signer) error {
		_, err := x509.CreateCertificate(rand.Reader, p.tmpl, parent, p.pub, s)
		return err
	})
	if err != nil {
		return err
	}
	der, err := p.issuer.rehearse(p.tbs, hash)
	if err != nil {
		return err
	}
	if err := p.compare(der, parent.RawSubject); err != nil {
		return err
	}
	p.lint, err = lintCertificate(der)
	return err
}

// rehearse makes of tbs what the cluster will make of it, but signed by the throw-away key.
func (i *issuer) rehearse(tbs []byte, hash crypto.Hash) ([]byte, error) {
	sig, err := crypto.SignMessage(i.lint, rand.Reader, tbs, hash)
	if err != nil {
		return nil, fmt.Errorf("signing for lint: %w", err)
	}
	return assemble(tbs, sig)
}

// compare reads the certificate back and holds it against what was decided.
func (p *Prepared) compare(der, issuerName []byte) error {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("reading back the certificate: %w", err)
	}
	spki, err := x509.MarshalPKIXPublicKey(p.pub)
	if err != nil {
		return err
	}
	subject := p.tmpl.RawSubject
	if len(subject) == 0 {
		subject = noName
	}
	var names []Name
	for _, d := range c.DNSNames {
		names = append(names, Name{DNS, d})
	}
	for _, ip := range c.IPAddresses {
		names = append(names, Name{IP, ip.String()})
	}
	switch {
	case !bytes.Equal(c.RawTBSCertificate, p.tbs):
		return errors.New("reading back the certificate: other TBS bytes")
	case !bytes.Equal(c.RawSubjectPublicKeyInfo, spki):
		return errors.New("reading back the certificate: other key")
	case !sameNames(names, p.names) || len(c.EmailAddresses)+len(c.URIs) > 0:
		return errors.New("reading back the certificate: other names")
	case !c.NotBefore.Equal(p.tmpl.NotBefore) || !c.NotAfter.Equal(p.tmpl.NotAfter) || c.NotAfter.Sub(c.NotBefore) != p.profile.Validity-time.Second:
		return errors.New("reading back the certificate: other validity")
	case c.IsCA != p.profile.isCA || c.KeyUsage != p.profile.KeyUsage || !slices.Equal(c.ExtKeyUsage, p.profile.ExtKeyUsage) || !slices.EqualFunc(c.UnknownExtKeyUsage, p.profile.otherEKU, asn1.ObjectIdentifier.Equal):
		return errors.New("reading back the certificate: other usage")
	case !bytes.Equal(c.SerialNumber.Bytes(), p.serial):
		return errors.New("reading back the certificate: other serial")
	case !bytes.Equal(c.RawIssuer, issuerName) || !bytes.Equal(c.RawSubject, subject):
		return errors.New("reading back the certificate: other issuer or subject")
	case c.IsCA && c.MaxPathLen != p.profile.maxPathLen, !bytes.Equal(c.SubjectKeyId, p.tmpl.SubjectKeyId) || !bytes.Equal(c.AuthorityKeyId, p.tmpl.AuthorityKeyId):
		return errors.New("reading back the certificate: other path length or key identifiers")
	}
	return nil
}

// noName is the empty Name: certificates of end entities say who they are in their
// subject alternative names alone (RFC 5280 §4.1.2.6).
var noName = []byte{0x30, 0}

func (a *Authority) isOurs(spki [32]byte) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, i := range a.issuers {
		if i.spki == spki {
			return true
		}
	}
	return false
}

func sameNames(a, b []Name) bool {
	if len(a) != len(b) {
		return false
	}
	for _, n := range a {
		if !slices.Contains(b, n) {
			return false
		}
	}
	return true
}

// list names at most five names for a message.
func list(ns []Name) string {
	s := ""
	for i, n := range ns {
		if i == 5 {
			return fmt.Sprintf("%s and %d more", s, len(ns)-i)
		}
		if i > 0 {
			s += ", "
		}
		s += clip(n.Value)
	}
	if s == "" {
		return "nothing"
	}
	return s
}

func (a *Authority) crlURL(issuer string) string    { return a.cfg.URL + "/crl/" + issuer + ".crl" }
func (a *Authority) issuerURL(issuer string) string { return a.cfg.URL + "/ca/" + issuer + ".cer" }

var _ Keys = (*hsmstore.Store)(nil)
