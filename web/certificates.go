package web

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"chancery/admin"
	"chancery/audit"
	"chancery/ca"
)

// issueRequest is the body of POST /api/v1/certificates.
type issueRequest struct {
	CSR     string `json:"csr"`     // PEM
	Profile string `json:"profile"` // e.g. tls-server
}

// revokeRequest is the body of POST /api/v1/certificates/{serial}/revoke.
type revokeRequest struct {
	Reason      string `json:"reason"`      // as RFC 5280 §5.3.1 writes it
	Certificate string `json:"certificate"` // PEM or DER in base64; of one that the ledger before this one issued
}

// receipt is an audit.Receipt as the API writes it.
type receipt struct {
	Origin   string `json:"origin"`
	Index    uint64 `json:"index"`
	Leaf     []byte `json:"leaf,omitempty"` // only in the answer to the issuance
	ProofURL string `json:"proof_url"`
}

type name struct {
	Type  string `json:"type"` // dns or ip
	Value string `json:"value"`
}

type revocation struct {
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
}

// summary is a certificate in a list.
type summary struct {
	Serial    string      `json:"serial"`
	Issuer    string      `json:"issuer"`
	Profile   string      `json:"profile"`
	Names     []name      `json:"names"`
	Requester string      `json:"requester"`
	NotBefore time.Time   `json:"not_before"`
	NotAfter  time.Time   `json:"not_after"`
	Revoked   *revocation `json:"revoked"` // null while good
}

// certificate is a whole certificate.
type certificate struct {
	summary
	Certificate string  `json:"certificate"` // PEM
	Chain       string  `json:"chain"`       // PEM, nearest first, without the root
	Receipt     receipt `json:"receipt"`
}

func summaryOf(c *ca.Certificate) summary {
	s := summary{Serial: c.Serial, Issuer: c.Issuer, Profile: c.Profile, Requester: c.Requester, NotBefore: c.NotBefore.UTC(), NotAfter: c.NotAfter.UTC(), Names: []name{}}
	for _, n := range c.Names {
		s.Names = append(s.Names, name{string(n.Kind), n.Value})
	}
	if c.Revoked != nil {
		s.Revoked = &revocation{Reason: c.Revoked.Reason.String(), At: c.Revoked.At.UTC()}
	}
	return s
}

func certificateOf(c *ca.Certificate) certificate {
	return certificate{
		summary: summaryOf(c), Certificate: pemText(c.DER), Chain: pemText(c.Chain...),
		Receipt: receipt{Origin: c.Receipt.Origin, Index: c.Receipt.Index, Leaf: c.Receipt.Leaf, ProofURL: c.Receipt.ProofURL},
	}
}

func pemText(ders ...[]byte) string {
	var b bytes.Buffer
	for _, der := range ders {
		pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: der}) // a bytes.Buffer takes everything
	}
	return b.String()
}

func (s *Server) certificateURL(serial string) string {
	return s.base + "/api/v1/certificates/" + url.PathEscape(serial)
}

// issue is POST /api/v1/certificates.
func (s *Server) issue(c echo.Context) error {
	var body issueRequest
	if err := readJSON(c, &body); err != nil {
		return err
	}
	if body.Profile == "" {
		return problemf(badProfile, "profile is missing; allowed: tls-client, tls-server").at("/profile", "")
	}
	csr, err := readCSR(body.CSR)
	if err != nil {
		return err
	}
	if err := require(c, admin.IssueCertificates, admin.Resource{Issuer: s.cfg.Issuer, Profile: body.Profile}); err != nil {
		return err
	}
	ctx, cancel := carryThrough(c)
	defer cancel()
	prepared, err := s.cfg.CA.Prepare(ctx, ca.Request{Profile: body.Profile, CSR: csr, Requester: requester(c), Client: client(c),
		Evidence: audit.Evidence{{Name: "request", Value: "POST /api/v1/certificates by " + requester(c)}}})
	if err != nil {
		return err
	}
	issued, err := s.cfg.CA.Issue(ctx, prepared, ca.Projections{})
	if err != nil {
		return err
	}
	c.Response().Header().Set("Location", s.certificateURL(issued.Serial))
	return writeJSON(c, http.StatusCreated, certificateOf(issued))
}

// readCSR takes one PEM block (RFC 7468 §7) and nothing else.
func readCSR(text string) ([]byte, error) {
	const cure = `send one PEM block, -----BEGIN CERTIFICATE REQUEST----- … -----END CERTIFICATE REQUEST-----, as openssl req -new writes it`
	bad := func(format string, args ...any) error {
		return problemf(badCSR, format+"; "+cure, args...).at("/csr", "")
	}
	if strings.TrimSpace(text) == "" {
		return nil, bad("csr is missing")
	}
	if strings.Contains(text, "PRIVATE KEY-----") {
		return nil, problemf(badCSR, "csr holds a private key; take it as compromised, make a new one, and send only the request that openssl req -new -key makes from it").at("/csr", "")
	}
	block, rest := pem.Decode([]byte(text))
	if block == nil {
		return nil, bad("csr is no PEM")
	}
	if block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST" {
		return nil, bad("csr is a PEM block of type %s", quote(block.Type))
	}
	if !strings.HasPrefix(strings.TrimSpace(text), "-----BEGIN ") || len(bytes.TrimSpace(rest)) > 0 || len(block.Headers) > 0 {
		return nil, bad("csr holds more than the request: text before or after the PEM block, or headers in it")
	}
	return block.Bytes, nil
}

// The page size of a list.
const (
	defaultLimit = 50
	maxLimit     = 500
	maxNamePart  = 253
)

type page struct {
	Certificates []summary `json:"certificates"`
	Next         string    `json:"next,omitempty"` // URL of the next page
}

// list is GET /api/v1/certificates: keyset pages, newest first (RFC 8288 for the link).
func (s *Server) list(c echo.Context) error {
	q, err := readQuery(c)
	if err != nil {
		return err
	}
	p := page{Certificates: []summary{}}
	before, err := s.fill(c, q, &p)
	if err != nil {
		return err
	}
	if before > 0 {
		v := url.Values{"limit": {strconv.Itoa(q.Limit)}, "before": {strconv.FormatUint(before, 10)}}
		if q.Name != "" {
			v.Set("name", q.Name)
		}
		p.Next = s.base + "/api/v1/certificates?" + v.Encode()
		c.Response().Header().Set("Link", "<"+p.Next+`>; rel="next"`)
	}
	return writeJSON(c, http.StatusOK, p)
}

// maxScanned bounds the certificates that one page looks at.
const maxScanned = 20 * maxLimit

// fill puts a page together of what who asks may read. before is where the next page begins,
// 0 after the last. A page is full, or the last, unless [maxScanned] of others lie between.
func (s *Server) fill(c echo.Context, q ca.Query, p *page) (before uint64, err error) {
	who, limit := principal(c), q.Limit
	for scanned := 0; scanned < maxScanned; scanned += q.Limit {
		found, err := s.cfg.CA.Certificates(c.Request().Context(), q)
		if err != nil {
			return 0, err
		}
		for _, f := range found {
			if q.Before = f.Done; who.May(admin.ReadCertificates, resourceOf(f)) {
				p.Certificates = append(p.Certificates, summaryOf(f))
			}
			if len(p.Certificates) == limit {
				return q.Before, nil
			}
		}
		if len(found) < q.Limit {
			return 0, nil
		}
		q.Limit = maxLimit // what is not theirs is passed in large steps
	}
	return q.Before, nil
}

func readQuery(c echo.Context) (ca.Query, error) {
	q := ca.Query{Limit: defaultLimit}
	values, err := url.ParseQuery(c.Request().URL.RawQuery)
	if err != nil {
		return q, problemf(badParameter, "the query cannot be read; write ?limit=50&name=example")
	}
	for key, vs := range values {
		if len(vs) != 1 {
			return q, problemf(badParameter, "%s stands there %d times; send it once", quote(key), len(vs)).at("", clip(key))
		}
		v := vs[0]
		switch key {
		case "limit":
			if q.Limit, err = strconv.Atoi(v); err != nil || q.Limit < 1 || q.Limit > maxLimit {
				return q, problemf(badParameter, "limit must be a number from 1 to %d", maxLimit).at("", key)
			}
		case "before":
			if q.Before, err = strconv.ParseUint(v, 10, 63); err != nil || q.Before == 0 {
				return q, problemf(badParameter, "before must be taken from the link to the next page").at("", key)
			}
		case "name":
			if v == "" || len(v) > maxNamePart || strings.ContainsFunc(v, func(r rune) bool { return r <= ' ' || r > '~' }) {
				return q, problemf(badParameter, "name must be a part of a DNS name or IP address, 1 to %d printable ASCII characters", maxNamePart).at("", key)
			}
			q.Name = strings.ToLower(v)
		default:
			return q, problemf(badParameter, "%s is not known here; allowed: limit, before, name", quote(key)).at("", clip(key))
		}
	}
	return q, nil
}

// show is GET /api/v1/certificates/{serial}.
func (s *Server) show(c echo.Context) error {
	found, err := s.certificate(c.Request().Context(), c, param(c, "serial", ""))
	if err != nil {
		return err
	}
	return writeJSON(c, http.StatusOK, certificateOf(found))
}

// reasons are the reasons that may be asked for by name.
var reasons = func() map[string]ca.Reason {
	m := map[string]ca.Reason{}
	for _, r := range []ca.Reason{ca.Unspecified, ca.KeyCompromise, ca.AffiliationChanged, ca.Superseded, ca.CessationOfOperation, ca.PrivilegeWithdrawn} {
		m[r.String()] = r
	}
	return m
}()

// revoke is POST /api/v1/certificates/{serial}/revoke. A second revocation answers
// with the first one's date and reason, so that a client may repeat a request whose
// answer it lost.
func (s *Server) revoke(c echo.Context) error {
	var body revokeRequest
	if err := readJSON(c, &body); err != nil {
		return err
	}
	reason, ok := reasons[body.Reason]
	if !ok {
		return problemf(badReason, "reason must be one of unspecified, keyCompromise, affiliationChanged, superseded, cessationOfOperation, privilegeWithdrawn").at("/reason", "")
	}
	ctx, cancel := carryThrough(c)
	defer cancel()
	serial := param(c, "serial", "")
	found, err := s.certificate(ctx, c, serial)
	var refusal *ca.Refusal
	if errors.As(err, &refusal) && refusal.Code == ca.NotFound && body.Certificate != "" {
		return s.revokePredecessors(c, ctx, serial, body.Certificate, reason)
	}
	if err == nil {
		err = require(c, admin.RevokeCertificates, resourceOf(found))
	}
	if err != nil {
		return err
	}
	if err := endEntity(found); err != nil {
		return err
	}
	err = s.cfg.CA.Revoke(ctx, ca.RevokeRequest{Issuer: found.Issuer, Serial: found.Serial, Reason: reason, Requester: requester(c), Client: client(c)})
	if err != nil && !(errors.As(err, &refusal) && refusal.Code == ca.AlreadyRevoked) {
		return err
	}
	if found, err = s.cfg.CA.Certificate(ctx, found.Serial); err != nil {
		return fmt.Errorf("reading certificate after its revocation: %w", err)
	}
	return writeJSON(c, http.StatusOK, certificateOf(found))
}

// revokePredecessors revokes what a CA that was restored does not have: the certificate
// itself must be given, and its signature says that it is one of this CA.
func (s *Server) revokePredecessors(c echo.Context, ctx context.Context, serial, text string, reason ca.Reason) error {
	der, err := readCertificate(text)
	if err != nil {
		return err
	}
	found, err := s.cfg.CA.CertificateByDER(ctx, der)
	if err == nil {
		err = require(c, admin.RevokeCertificates, resourceOf(found))
	}
	if err != nil {
		return err
	}
	if found.Serial != serial {
		return problemf(badParameter, "the certificate has the serial %s, the URL %s", found.Serial, quote(serial)).at("/certificate", "")
	}
	if err := endEntity(found); err != nil {
		return err
	}
	err = s.cfg.CA.Revoke(ctx, ca.RevokeRequest{Issuer: found.Issuer, Serial: found.Serial, Reason: reason, Requester: requester(c), Client: client(c), Certificate: found.DER})
	var refusal *ca.Refusal
	if err != nil && !(errors.As(err, &refusal) && refusal.Code == ca.AlreadyRevoked) {
		return err
	}
	return writeJSON(c, http.StatusAccepted, struct{}{})
}

// readCertificate takes one PEM block (RFC 7468 §5), or DER in base64.
func readCertificate(text string) ([]byte, error) {
	if der, err := base64.StdEncoding.DecodeString(text); err == nil && len(der) > 0 {
		return der, nil
	}
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, problemf(badParameter, "certificate must be one PEM block CERTIFICATE, or the DER in base64").at("/certificate", "")
	}
	return block.Bytes, nil
}

// endEntity refuses to let the admin token take a CA down: that needs officers (P7).
func endEntity(c *ca.Certificate) error {
	cert, err := x509.ParseCertificate(c.DER)
	if err != nil {
		return fmt.Errorf("reading stored certificate %s: %w", c.Serial, err)
	}
	if cert.IsCA {
		return problemf(needsOfficers, "%s is the certificate of a CA; officers must approve its revocation", c.Serial).at("", "serial")
	}
	return nil
}
