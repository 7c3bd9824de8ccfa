package acme

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"

	"chancery/audit"
	"chancery/ca"
)

// revokeCert is RFC 8555 §7.6. It may be asked by the account that got the
// certificate, by one that holds valid authorizations for all its names, and by
// whoever holds the certificate's key.
func (s *Server) revokeCert(ctx context.Context, q *request) (*reply, error) {
	var in struct {
		Certificate string `json:"certificate"`
		Reason      int    `json:"reason"`
	}
	if err := q.env.object(&in); err != nil {
		return nil, err
	}
	der, err := decode64("certificate", in.Certificate)
	if err != nil {
		return nil, err
	}
	unknown := problem(http.StatusNotFound, Malformed, "this CA has not issued this certificate; certificate must be its DER in base64url")
	c, err := s.cfg.Authority.CertificateByDER(ctx, der)
	var refusal *ca.Refusal
	if errors.Is(err, audit.ErrNotFound) || errors.As(err, &refusal) && refusal.Code == ca.NotFound || err == nil && !bytes.Equal(c.DER, der) {
		return nil, unknown
	}
	if err != nil {
		return nil, fmt.Errorf("looking up certificate: %w", err)
	}
	who, err := s.mayRevoke(ctx, q, c)
	if err != nil {
		return nil, err
	}
	// Once asked for, a revocation is not given up because the client hangs up.
	ask := ca.RevokeRequest{Issuer: c.Issuer, Serial: c.Serial, Reason: ca.Reason(in.Reason), Requester: who, Client: clientOf(q.http)}
	if c.Predecessor {
		ask.Certificate = c.DER
	}
	err = s.cfg.Authority.Revoke(context.WithoutCancel(ctx), ask)
	if err != nil {
		return nil, fmt.Errorf("revoking: %w", err)
	}
	return &reply{}, nil
}

func (s *Server) mayRevoke(ctx context.Context, q *request, c *ca.Certificate) (who string, err error) {
	if q.byJWK {
		cert, err := x509.ParseCertificate(c.DER)
		if err != nil {
			return "", fmt.Errorf("reading our own certificate: %w", err)
		}
		if !q.key.equal(cert.PublicKey) {
			return "", problem(http.StatusForbidden, Unauthorized, "jwk is not the certificate's key; sign with that key, or with the account's and kid")
		}
		return "acme:certificate-key", nil
	}
	if who = requester(q.account.ID); c.Requester == who {
		return who, nil
	}
	for _, n := range c.Names {
		_, err := s.cfg.Storage.ACMEValidAuthz(ctx, q.account.ID, n, s.now())
		if errors.Is(err, audit.ErrNotFound) {
			return "", problem(http.StatusForbidden, Unauthorized, "the account neither got this certificate nor holds valid authorizations for all its names")
		}
		if err != nil {
			return "", fmt.Errorf("looking for authorizations: %w", err)
		}
	}
	if len(c.Names) == 0 {
		return "", problem(http.StatusForbidden, Unauthorized, "the account did not get this certificate")
	}
	return who, nil
}
