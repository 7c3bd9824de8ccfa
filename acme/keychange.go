package acme

import (
	"context"
	"encoding/json/jsontext"
	"errors"
	"fmt"
	"net/http"

	"chancery/audit"
)

// keyChange is RFC 8555 §7.3.5: the old key signs, as payload, what the new key
// signed over the account's URL and the old key.
func (s *Server) keyChange(ctx context.Context, q *request) (*reply, error) {
	inner, err := parseJWS(q.env.content)
	if err != nil {
		return nil, err
	}
	switch {
	case inner.header.JWK == nil:
		return nil, malformed("the inner JWS must hold the new key as jwk (RFC 8555 §7.3.5)")
	case inner.header.Nonce != "":
		return nil, malformed("the inner JWS must have no nonce (RFC 8555 §7.3.5)")
	case inner.header.URL != q.env.header.URL:
		return nil, malformed("url of the inner JWS must be that of the outer one (RFC 8555 §7.3.5)")
	}
	next, err := parseKey(inner.header.JWK)
	if err != nil {
		return nil, err
	}
	if err := inner.verify(next); err != nil {
		return nil, err
	}
	var in struct {
		Account string         `json:"account"`
		OldKey  jsontext.Value `json:"oldKey"`
	}
	if err := inner.object(&in); err != nil {
		return nil, err
	}
	if in.Account != s.accountURL(q.account.ID) {
		return nil, malformed("account in the inner payload must be the kid of the outer JWS (RFC 8555 §7.3.5)")
	}
	old, err := parseKey(in.OldKey)
	if err != nil {
		return nil, err
	}
	if old.thumbprint != q.account.Thumbprint {
		return nil, malformed("oldKey in the inner payload must be the account's present key (RFC 8555 §7.3.5)")
	}
	err = s.cfg.Ledger.Write(ctx, ChangeAccountKey{ID: q.account.ID, Old: old.thumbprint, Thumbprint: next.thumbprint, JWK: next.json()})
	switch {
	case errors.Is(err, audit.ErrExists):
		return nil, s.keyInUse(ctx, next)
	case errors.Is(err, audit.ErrConflict):
		p := problem(http.StatusConflict, Malformed, "the account got another key, or was deactivated, in this moment; nothing was changed by this request")
		p.location = s.accountURL(q.account.ID)
		return nil, p
	case err != nil:
		return nil, fmt.Errorf("storing the new key: %w", err)
	}
	return s.accountReply(0, q.account), nil
}

// keyInUse is the 409 of RFC 8555 §7.3.5.
func (s *Server) keyInUse(ctx context.Context, k *accountKey) error {
	p := problem(http.StatusConflict, Malformed, "the new key has an account already, the one in Location; use a fresh key")
	a, err := s.cfg.Storage.ACMEAccountByKey(ctx, k.thumbprint)
	if err != nil {
		return fmt.Errorf("reading account: %w", err)
	}
	p.location = s.accountURL(a.ID)
	return p
}
