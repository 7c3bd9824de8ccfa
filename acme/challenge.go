package acme

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"chancery/audit"
)

// challengeObject is RFC 8555 §7.1.5 and §8. Every one has a token: there are
// clients that give an order up at the first challenge without.
type challengeObject struct {
	Type      string   `json:"type"`
	URL       string   `json:"url"`
	Status    Status   `json:"status"`
	Token     string   `json:"token"`
	Validated string   `json:"validated,omitempty"`
	Error     *Problem `json:"error,omitzero"`
}

func (s *Server) challengeObject(c Challenge) challengeObject {
	obj := challengeObject{Type: c.Type, URL: s.url("/challenge/%s", c.ID), Status: c.Status, Token: c.Token, Error: c.Error}
	if !c.Validated.IsZero() {
		obj.Validated = timestamp(c.Validated)
	}
	return obj
}

func (s *Server) challengeReply(c Challenge) *reply {
	rep := &reply{location: s.url("/challenge/%s", c.ID), links: []string{"<" + s.url("/authz/%s", c.Authz) + `>;rel="up"`}, body: s.challengeObject(c)}
	if c.Status == Processing {
		rep.retryAfter = time.Second
	}
	return rep
}

// settleTime is how long the answer to a challenge waits for the validation, which
// goes on by itself: most end sooner, and the client then needs no second poll.
const settleTime = 400 * time.Millisecond

// challenge is RFC 8555 §7.5.1: any JSON object says that the answer is in place; a
// POST-as-GET only looks.
func (s *Server) challenge(ctx context.Context, q *request) (*reply, error) {
	a, c, err := s.ownChallenge(ctx, q)
	if err != nil {
		return nil, err
	}
	if q.asGet() || c.Status != Pending {
		return s.challengeReply(c), nil
	}
	if err := q.env.object(&struct{}{}); err != nil {
		return nil, err
	}
	if now := a.At(s.now()); now != Pending {
		return nil, malformed("the authorization is %s; make a new order", now)
	}
	source := sourceOf(q.http)
	if !s.work.reserve(a.Account, source) {
		p := problem(http.StatusServiceUnavailable, RateLimited, "too many validations wait; repeat the request later")
		p.retryAfter = retrySoon
		return nil, p
	}
	err = s.cfg.Ledger.Write(ctx, ChallengeProcessing{ID: c.ID, Authz: a.ID, Now: s.now()})
	if err != nil {
		s.work.release(a.Account, source)
		if !errors.Is(err, audit.ErrConflict) {
			return nil, fmt.Errorf("storing the begin of a validation: %w", err)
		}
	} else {
		c.Status = Processing
		select {
		case <-s.work.start(PendingValidation{Challenge: c, Account: a.Account, Thumbprint: q.account.Thumbprint, Name: a.Name, source: source}):
		case <-time.After(settleTime):
		case <-ctx.Done():
		}
	}
	if _, c, err = s.ownChallenge(ctx, q); err != nil {
		return nil, err
	}
	return s.challengeReply(c), nil
}

func (s *Server) ownChallenge(ctx context.Context, q *request) (Authz, Challenge, error) {
	a, err := s.cfg.Storage.ACMEAuthzByChallenge(ctx, q.id)
	if err != nil && !errors.Is(err, audit.ErrNotFound) {
		return Authz{}, Challenge{}, fmt.Errorf("reading challenge: %w", err)
	}
	if err == nil && a.Account == q.account.ID {
		for _, c := range a.Challenges {
			if c.ID == q.id {
				return a, c, nil
			}
		}
	}
	return Authz{}, Challenge{}, noSuch("challenge")
}
