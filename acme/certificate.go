package acme

import (
	"context"
	"encoding/pem"
	"fmt"
	"net/http"
)

// certificate is RFC 8555 §7.4.2. The certificate's id is that of its order.
func (s *Server) certificate(ctx context.Context, q *request) (*reply, error) {
	if err := mustBeGet(q); err != nil {
		return nil, err
	}
	o, err := s.ownOrder(ctx, q)
	if err != nil {
		return nil, err
	}
	if o.Status != Valid {
		return nil, problem(http.StatusNotFound, Malformed, "the order is %s and has no certificate", o.At(s.now()))
	}
	c, err := s.cfg.Authority.Certificate(ctx, o.Serial)
	if err != nil {
		return nil, fmt.Errorf("reading certificate: %w", err)
	}
	var body []byte
	for _, der := range append([][]byte{c.DER}, c.Chain...) {
		body = append(body, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return &reply{contentType: "application/pem-certificate-chain", body: body}, nil
}
