package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"chancery/audit"
	"chancery/ca"
)

// ownCert is the server's own HTTPS certificate: issued by the issuing CA for a
// software key (mode 0600, outside P1), renewed when two thirds of its time are over.
type ownCert struct {
	key  *ecdsa.PrivateKey
	path string // of the chain, PEM
	cur  atomic.Pointer[tls.Certificate]
}

func (o *ownCert) get(*tls.ClientHelloInfo) (*tls.Certificate, error) { return o.cur.Load(), nil }

// ownCertificate loads the certificate that lies beside the intent journal, which is
// this node's own like the key, or has one issued.
func (s *server) ownCertificate(ctx context.Context) (*ownCert, error) {
	dir := filepath.Join(filepath.Dir(s.cfg.Ledger.Journal), "tls")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("HTTPS key: %w", err)
	}
	o := &ownCert{path: filepath.Join(dir, "cert.pem")}
	var err error
	if o.key, err = softwareKey(filepath.Join(dir, "key.pem")); err != nil {
		return nil, fmt.Errorf("HTTPS key: %w", err)
	}
	if err := o.load(s); err == nil {
		return o, nil
	}
	return o, o.renew(ctx, s)
}

func softwareKey(path string) (*ecdsa.PrivateKey, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		der, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			return nil, err
		}
		return k, writeFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
	}
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("%s holds no PEM key; remove it to have a new one made", path)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	ec, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s holds no ECDSA key", path)
	}
	return ec, nil
}

// load takes the stored chain if it is for our key, our names and our issuer, and
// not due for renewal.
func (o *ownCert) load(s *server) error {
	b, err := os.ReadFile(o.path)
	if err != nil {
		return err
	}
	var c tls.Certificate
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		c.Certificate = append(c.Certificate, block.Bytes)
	}
	if len(c.Certificate) == 0 {
		return errors.New("no certificate")
	}
	if c.Leaf, err = x509.ParseCertificate(c.Certificate[0]); err != nil {
		return err
	}
	issuing, err := s.authority.IssuerCertificate(issuingName)
	if err != nil {
		return err
	}
	parent, err := x509.ParseCertificate(issuing)
	if err != nil {
		return err
	}
	if err := c.Leaf.CheckSignatureFrom(parent); err != nil {
		return err
	}
	for _, n := range s.ownNames() {
		if err := c.Leaf.VerifyHostname(n.Value); err != nil {
			return err
		}
	}
	if !o.key.PublicKey.Equal(c.Leaf.PublicKey) || time.Now().After(renewAt(c.Leaf)) {
		return errors.New("another key, or due for renewal")
	}
	c.PrivateKey = o.key
	o.cur.Store(&c)
	return nil
}

func renewAt(c *x509.Certificate) time.Time {
	return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) * 2 / 3)
}

// ownNames are the names under which clients reach the server.
func (s *server) ownNames() []ca.Name {
	hosts := []string{s.cfg.host()}
	if s.dev {
		hosts = append(hosts, "localhost", "127.0.0.1")
	}
	if h, _, err := net.SplitHostPort(s.cfg.Listen.HTTPS); err == nil && s.dev {
		hosts = append(hosts, h)
	}
	var out []ca.Name
	for _, h := range hosts {
		n, err := ca.ParseName(ca.DNS, h)
		if err != nil {
			if n, err = ca.ParseName(ca.IP, h); err != nil {
				continue
			}
		}
		if !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

func (o *ownCert) renew(ctx context.Context, s *server) error {
	names := s.ownNames()
	var tmpl x509.CertificateRequest
	for _, n := range names {
		if n.Kind == ca.IP {
			tmpl.IPAddresses = append(tmpl.IPAddresses, n.Addr().AsSlice())
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, n.Value)
		}
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &tmpl, o.key)
	if err != nil {
		return fmt.Errorf("HTTPS certificate: %w", err)
	}
	p, err := s.authority.Prepare(ctx, ca.Request{Profile: "tls-server", CSR: csr, Names: names, Requester: "server:" + s.cfg.NodeID,
		Evidence: audit.Evidence{{Name: "request", Value: "the server's own TLS certificate"}}})
	if err != nil {
		return fmt.Errorf("HTTPS certificate: %w", err)
	}
	c, err := s.authority.Issue(ctx, p, ca.Projections{})
	if err != nil {
		return fmt.Errorf("HTTPS certificate: %w", err)
	}
	chain := append([][]byte{c.DER}, c.Chain...)
	if err := writeFile(o.path, pemCertificates(chain...), 0o644); err != nil {
		return fmt.Errorf("HTTPS certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(c.DER)
	if err != nil {
		return err
	}
	o.cur.Store(&tls.Certificate{Certificate: chain, PrivateKey: o.key, Leaf: leaf})
	s.log.Info("HTTPS certificate issued", "serial", c.Serial, "until", c.NotAfter)
	return nil
}

// run renews the certificate in time. A failed renewal is tried again each hour;
// a third of the validity is left for that.
func (o *ownCert) run(ctx context.Context, s *server) error {
	for {
		wait := min(max(time.Until(renewAt(o.cur.Load().Leaf)), 0), time.Hour)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		if time.Now().Before(renewAt(o.cur.Load().Leaf)) {
			continue
		}
		if err := o.renew(ctx, s); err != nil {
			s.log.Error("HTTPS certificate not renewed", "err", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(time.Hour):
			}
		}
	}
}
