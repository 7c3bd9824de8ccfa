package acme

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"chancery/audit"
)

// authzObject is RFC 8555 §7.1.4.
type authzObject struct {
	Identifier Identifier        `json:"identifier"`
	Status     Status            `json:"status"`
	Expires    string            `json:"expires"`
	Challenges []challengeObject `json:"challenges"`
}

func (s *Server) authzReply(a Authz) *reply {
	obj := authzObject{Identifier: identifier(a.Name), Status: a.At(s.now()), Expires: timestamp(a.Expires)}
	for _, c := range a.Challenges {
		obj.Challenges = append(obj.Challenges, s.challengeObject(c))
	}
	return &reply{body: obj}
}

// authz is RFC 8555 §7.5 (POST-as-GET) and §7.5.2 (deactivation).
func (s *Server) authz(ctx context.Context, q *request) (*reply, error) {
	a, err := s.ownAuthz(ctx, q)
	if err != nil {
		return nil, err
	}
	if q.asGet() {
		return s.authzReply(a), nil
	}
	var in struct {
		Status Status `json:"status"`
	}
	if err := q.env.object(&in); err != nil {
		return nil, err
	}
	if in.Status != Deactivated {
		return nil, malformed("status of an authorization can be set to deactivated only (RFC 8555 §7.5.2)")
	}
	if now := a.At(s.now()); now != Pending && now != Valid {
		return nil, malformed("the authorization is %s; only a pending or valid one can be deactivated", now)
	}
	id := identifier(a.Name)
	why := problem(http.StatusForbidden, Unauthorized, "the authorization for a name of the order was deactivated; make a new order")
	why.Subproblems = []*Problem{{Type: Unauthorized, Detail: "the authorization was deactivated", Identifier: &id}}
	if err := s.cfg.Ledger.Write(ctx, DeactivateAuthz{ID: a.ID, Account: a.Account, Error: why}); err != nil {
		return nil, fmt.Errorf("deactivating authorization: %w", err)
	}
	if a, err = s.ownAuthz(ctx, q); err != nil {
		return nil, err
	}
	return s.authzReply(a), nil
}

func (s *Server) ownAuthz(ctx context.Context, q *request) (Authz, error) {
	list, err := s.cfg.Storage.ACMEAuthzs(ctx, q.id)
	if errors.Is(err, audit.ErrNotFound) || err == nil && !slices.ContainsFunc(list, func(a Authz) bool { return a.Account == q.account.ID }) {
		return Authz{}, noSuch("authorization")
	}
	if err != nil {
		return Authz{}, fmt.Errorf("reading authorization: %w", err)
	}
	return list[0], nil
}
