package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"chancery/audit"
	"chancery/hsmstore"
)

// Keys finds keys of the cluster by name; [hsmstore.Store] is one.
type Keys interface {
	Key(name string) (*hsmstore.Key, error)
}

// Config is what an [Authority] works with.
type Config struct {
	Keys    Keys
	Ledger  *audit.Ledger
	Storage Storage
	URL     string // base of the plain-HTTP URLs in certificates (AIA, CDP), e.g. http://ca.example:8080
	API     string // base of the HTTPS URLs in receipts
	Issuer  string // name of the issuer that serves requests naming none
	Log     *slog.Logger
	Now     func() time.Time // nil: time.Now

	// Predecessor is the origin of the ledger whose issuers go on here, "" if there is none.
	// What it issued is not in this database and is revoked by the certificate itself.
	Predecessor string
}

// Authority issues certificates and CRLs.
type Authority struct {
	cfg Config

	mu       sync.RWMutex
	issuers  map[string]*issuer
	revoked  chan struct{} // a CRL is due
	keyCerts keyCerts
	crlMu    sync.Mutex // one CRL at a time
}

// issuer is an issuer whose certificate exists.
type issuer struct {
	name, parent string
	key          *hsmstore.Key
	spki         [32]byte
	cert         *x509.Certificate
	lint         crypto.Signer
	revoked      atomic.Bool // its certificate is: it signs CRLs, no certificates
	halted       atomic.Bool // by the sweeper: its CRL is wrong
}

func (i *issuer) root() bool { return i.parent == i.name }

// New reads the issuers from storage.
func New(ctx context.Context, cfg Config) (*Authority, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	cfg.URL = strings.TrimSuffix(cfg.URL, "/")
	a := &Authority{cfg: cfg, issuers: map[string]*issuer{}, revoked: make(chan struct{}, 1)}
	recs, err := cfg.Storage.Issuers(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading issuers: %w", err)
	}
	for _, r := range recs {
		if err := a.addIssuer(r.Name, r.KeyName, r.Parent, r.DER); err != nil {
			return nil, err
		}
	}
	for _, i := range a.issuers {
		if err := a.learnRevoked(ctx, i); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// learnRevoked asks storage whether an issuer's own certificate is revoked.
func (a *Authority) learnRevoked(ctx context.Context, i *issuer) error {
	up, err := a.issuer(i.parent)
	if err != nil {
		return fmt.Errorf("issuer %s: %w", i.name, err)
	}
	s, err := a.cfg.Storage.Certificate(ctx, up.spki, i.cert.SerialNumber.Bytes())
	if err != nil && !errors.Is(err, audit.ErrNotFound) {
		return fmt.Errorf("issuer %s: %w", i.name, err)
	}
	if err == nil && s.Revoked != nil {
		i.revoked.Store(true)
	}
	return nil
}

// disable stops the issuers whose certificates are among what by has revoked.
func (a *Authority) disable(by *issuer, revoked []RevokedSerial) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, i := range a.issuers {
		if i.parent != by.name || i.revoked.Load() {
			continue
		}
		serial := i.cert.SerialNumber.Bytes()
		if slices.ContainsFunc(revoked, func(r RevokedSerial) bool { return bytes.Equal(r.Serial, serial) }) {
			i.revoked.Store(true)
			a.cfg.Log.Warn("issuer is revoked and issues no more certificates", "issuer", i.name)
		}
	}
}

// Halt implements [audit.CRLs]: while a CRL is wrong its issuer signs no certificates.
func (a *Authority) Halt(issuer [32]byte, why string) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, i := range a.issuers {
		if i.spki == issuer && i.halted.CompareAndSwap(why == "", why != "") {
			a.cfg.Log.Warn("issuer is halted, or goes on, because of its CRL", "issuer", i.name, "halted", why != "", "why", why)
		}
	}
}

func (a *Authority) addIssuer(name, keyName, parent string, der []byte) error {
	key, err := a.cfg.Keys.Key(keyName)
	if err != nil {
		return fmt.Errorf("issuer %s: %w", name, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("issuer %s: %w", name, err)
	}
	spki := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	if spki != key.SPKIHash() {
		return fmt.Errorf("issuer %s: its certificate is for another key than %q", name, keyName)
	}
	lk, err := lintKey(key.Public())
	if err != nil {
		return fmt.Errorf("issuer %s: %w", name, err)
	}
	a.mu.Lock()
	a.issuers[name] = &issuer{name: name, parent: parent, key: key, spki: spki, cert: cert, lint: lk}
	a.mu.Unlock()
	return nil
}

func (a *Authority) issuer(name string) (*issuer, error) {
	if name == "" {
		name = a.cfg.Issuer
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	if i, ok := a.issuers[name]; ok {
		return i, nil
	}
	return nil, refuse(NotFound, "issuer", "there is no issuer %q", clip(name))
}

// HasIssuer tells whether an issuer's certificate exists.
func (a *Authority) HasIssuer(name string) bool { _, err := a.issuer(name); return err == nil }

// UsesKey tells whether an issuer signs with the key of that name.
func (a *Authority) UsesKey(name string) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, i := range a.issuers {
		if i.key.Name() == name {
			return true
		}
	}
	return false
}

// IssuerCertificate is the DER certificate of an issuer.
func (a *Authority) IssuerCertificate(name string) ([]byte, error) {
	i, err := a.issuer(name)
	if err != nil {
		return nil, err
	}
	return i.cert.Raw, nil
}

// Roots are the DER certificates of all roots.
func (a *Authority) Roots() [][]byte {
	a.mu.RLock()
	defer a.mu.RUnlock()
	var out [][]byte
	for _, i := range a.issuers {
		if i.root() {
			out = append(out, i.cert.Raw)
		}
	}
	slices.SortFunc(out, bytes.Compare) // the same order every time
	return out
}

// chain are the DER certificates above a leaf of i, nearest first, without the root.
func (a *Authority) chain(i *issuer) [][]byte {
	var out [][]byte
	for !i.root() {
		out = append(out, i.cert.Raw)
		up, err := a.issuer(i.parent)
		if err != nil {
			break
		}
		i = up
	}
	return out
}

// certificate makes the outward form of a stored certificate.
func (a *Authority) certificate(s *StoredCertificate) *Certificate {
	c := &Certificate{Serial: hex.EncodeToString(s.Serial), Profile: s.Profile, DER: s.DER, NotBefore: s.NotBefore, NotAfter: s.NotAfter,
		Names: s.Names, Requester: s.Requester, Done: s.Done, Revoked: s.Revoked}
	a.mu.RLock()
	var found *issuer
	for _, i := range a.issuers {
		if i.spki == s.Issuer {
			found = i
		}
	}
	a.mu.RUnlock()
	if found != nil {
		c.Issuer, c.Chain = found.name, a.chain(found)
	}
	c.Receipt = audit.Receipt{Origin: a.cfg.Ledger.Origin(), Index: s.Done, ProofURL: a.cfg.API + "/api/v1/certificates/" + c.Serial + "/proof"}
	return c
}

func parseSerial(s string) ([]byte, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) == 0 || len(b) > 20 || b[0] == 0 || s != strings.ToLower(s) {
		return nil, refuse(NotFound, "serial", "%q is no serial; give its octets in lower-case hex without leading zeros, e.g. 4f2a…", clip(s))
	}
	return b, nil
}

// Certificate finds a certificate of any issuer by its serial in lower-case hex.
func (a *Authority) Certificate(ctx context.Context, serial string) (*Certificate, error) {
	b, err := parseSerial(serial)
	if err != nil {
		return nil, err
	}
	a.mu.RLock()
	var all []*issuer
	for _, i := range a.issuers {
		all = append(all, i)
	}
	a.mu.RUnlock()
	for _, i := range all {
		s, err := a.cfg.Storage.Certificate(ctx, i.spki, b)
		if errors.Is(err, audit.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return a.certificate(s), nil
	}
	return nil, a.Missing(serial)
}

// Missing is what [Authority.Certificate] says of a serial that no certificate has.
func (a *Authority) Missing(serial string) error {
	if a.cfg.Predecessor != "" {
		return refuse(NotFound, "serial", "no certificate here has the serial %s; if it was issued before this CA was restored, revoke it by sending the certificate itself", serial)
	}
	return refuse(NotFound, "serial", "no certificate has the serial %s", serial)
}

// CertificateByDER finds a certificate that this CA, or the ledger before this one, issued
// by its very bytes.
func (a *Authority) CertificateByDER(ctx context.Context, der []byte) (*Certificate, error) {
	none := refuse(NotFound, "certificate", "this CA did not issue that certificate")
	c, err := x509.ParseCertificate(der)
	if err != nil || c.SerialNumber.Sign() <= 0 {
		return nil, none
	}
	found, err := a.Certificate(ctx, hex.EncodeToString(c.SerialNumber.Bytes()))
	var refusal *Refusal
	if err != nil && !errors.As(err, &refusal) {
		return nil, err
	}
	if err == nil && bytes.Equal(found.DER, der) {
		return found, nil
	}
	if is := a.predecessors(c); err != nil && is != nil {
		return &Certificate{Serial: hex.EncodeToString(c.SerialNumber.Bytes()), Issuer: is.name, DER: der, NotBefore: c.NotBefore, NotAfter: c.NotAfter, Names: namesOf(c), Predecessor: true}, nil
	}
	return nil, none
}

// predecessors finds the issuer of a certificate that the ledger before this one issued:
// the signature of an issuer's key says so. Certificates of CAs and expired ones are none.
func (a *Authority) predecessors(c *x509.Certificate) *issuer {
	if a.cfg.Predecessor == "" || c.IsCA || c.NotAfter.Before(a.cfg.Now()) {
		return nil
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, i := range a.issuers {
		if bytes.Equal(c.RawIssuer, i.cert.RawSubject) && c.CheckSignatureFrom(i.cert) == nil {
			return i
		}
	}
	return nil
}

// namesOf are the names of a certificate that identifiers can stand for.
func namesOf(c *x509.Certificate) (out []Name) {
	for _, n := range c.DNSNames {
		out = append(out, Name{Kind: DNS, Value: n})
	}
	for _, ip := range c.IPAddresses {
		out = append(out, Name{Kind: IP, Value: ip.String()})
	}
	return out
}

// Certificates lists certificates, newest first.
func (a *Authority) Certificates(ctx context.Context, q Query) ([]*Certificate, error) {
	rows, err := a.cfg.Storage.Certificates(ctx, q)
	if err != nil {
		return nil, err
	}
	out := make([]*Certificate, len(rows))
	for i := range rows {
		out[i] = a.certificate(&rows[i])
	}
	return out, nil
}
