package acme

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/mail"
	"strings"

	"chancery/audit"
)

const (
	maxContacts = 10
	maxContact  = 254 + len("mailto:")
)

// accountObject is RFC 8555 §7.1.2.
type accountObject struct {
	Status      Status   `json:"status"`
	Contact     []string `json:"contact,omitempty"`
	TermsAgreed bool     `json:"termsOfServiceAgreed,omitzero"`
	Orders      string   `json:"orders"`
}

func (s *Server) accountURL(id string) string { return s.url("/account/%s", id) }

func (s *Server) accountReply(status int, a Account) *reply {
	return &reply{status: status, location: s.accountURL(a.ID), body: accountObject{
		Status: a.Status, Contact: a.Contact, TermsAgreed: a.TermsAgreed, Orders: s.accountURL(a.ID) + "/orders"}}
}

// newAccount is RFC 8555 §7.3. A key that has an account gets that account and 200,
// whatever else the request says; clients ask for it in that way (§7.3.1).
func (s *Server) newAccount(ctx context.Context, q *request) (*reply, error) {
	var in struct {
		Contact     []string `json:"contact"`
		TermsAgreed bool     `json:"termsOfServiceAgreed"`
		OnlyReturn  bool     `json:"onlyReturnExisting"`
	}
	if err := q.env.object(&in); err != nil {
		return nil, err
	}
	rep, err := s.existingAccount(ctx, q.key)
	if !errors.Is(err, audit.ErrNotFound) {
		return rep, err
	}
	if in.OnlyReturn {
		return nil, problem(http.StatusBadRequest, AccountDoesNotExist, "this key has no account; send newAccount without onlyReturnExisting to make one")
	}
	if s.cfg.TermsOfService != "" && !in.TermsAgreed {
		p := problem(http.StatusForbidden, UserActionRequired, "agree to the terms of service at %s by termsOfServiceAgreed true", s.cfg.TermsOfService)
		p.link = "<" + s.cfg.TermsOfService + `>;rel="terms-of-service"`
		return nil, p
	}
	if err := checkContacts(in.Contact); err != nil {
		return nil, err
	}
	if ok, wait := s.arrivals.admit(sourceOf(q.http), s.now(), s.cfg.AccountsPerHour); !ok {
		p := problem(http.StatusTooManyRequests, RateLimited, "more than %d accounts were made from this address within an hour; use one account for many orders, or repeat the request later", s.cfg.AccountsPerHour)
		p.retryAfter = wait
		return nil, p
	}
	a := Account{ID: newID(), Thumbprint: q.key.thumbprint, JWK: q.key.json(), Contact: in.Contact, Status: Valid, TermsAgreed: in.TermsAgreed, Created: s.now()}
	err = s.cfg.Ledger.Write(ctx, CreateAccount{a})
	if errors.Is(err, audit.ErrExists) { // the same key registered in this very moment
		return s.existingAccount(ctx, q.key)
	}
	if err != nil {
		return nil, fmt.Errorf("storing account: %w", err)
	}
	return s.accountReply(http.StatusCreated, a), nil
}

func (s *Server) existingAccount(ctx context.Context, k *accountKey) (*reply, error) {
	a, err := s.cfg.Storage.ACMEAccountByKey(ctx, k.thumbprint)
	if err != nil {
		return nil, fmt.Errorf("reading account: %w", err)
	}
	if a.Status != Valid {
		return nil, problem(http.StatusUnauthorized, Unauthorized, "the account of this key is %s; use another key", a.Status)
	}
	return s.accountReply(http.StatusOK, a), nil
}

// account is RFC 8555 §7.3.2 (update) and §7.3.6 (deactivation).
func (s *Server) account(ctx context.Context, q *request) (*reply, error) {
	if q.id != q.account.ID {
		return nil, problem(http.StatusForbidden, Unauthorized, "an account can be seen and changed by its own key only")
	}
	if q.asGet() {
		return s.accountReply(0, q.account), nil
	}
	var in struct {
		Contact *[]string `json:"contact"`
		Status  Status    `json:"status"`
	}
	if err := q.env.object(&in); err != nil {
		return nil, err
	}
	var change []audit.Projection
	a := q.account
	switch in.Status {
	case "", Valid:
	case Deactivated:
		a.Status = Deactivated
		change = append(change, DeactivateAccount{ID: a.ID})
	default:
		return nil, malformed("status can be set to deactivated only (RFC 8555 §7.3.6)")
	}
	if in.Contact != nil && a.Status == Valid {
		if err := checkContacts(*in.Contact); err != nil {
			return nil, err
		}
		a.Contact = *in.Contact
		change = append(change, UpdateContact{ID: a.ID, Contact: a.Contact})
	}
	if len(change) > 0 {
		if err := s.cfg.Ledger.Write(ctx, change...); err != nil {
			return nil, fmt.Errorf("updating account: %w", err)
		}
	}
	return s.accountReply(0, a), nil
}

// checkContacts is RFC 8555 §7.3: mailto with one address and no header fields.
func checkContacts(contacts []string) error {
	if len(contacts) > maxContacts {
		return problem(http.StatusBadRequest, InvalidContact, "there are %d contacts; at most %d are allowed", len(contacts), maxContacts)
	}
	for i, c := range contacts {
		scheme, address, ok := strings.Cut(c, ":")
		if !ok || !strings.EqualFold(scheme, "mailto") {
			return problem(http.StatusBadRequest, UnsupportedContact, "contact %d is no mailto: URL; others are not supported", i+1)
		}
		if !goodAddress(address) || len(c) > maxContact {
			return problem(http.StatusBadRequest, InvalidContact, "contact %d must be mailto: and one plain address like admin@example.org, in ASCII, without header fields (RFC 8555 §7.3)", i+1)
		}
	}
	return nil
}

func goodAddress(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`?,<>"()\&%`, c) >= 0 {
			return false
		}
	}
	a, err := mail.ParseAddress(s)
	return err == nil && a.Address == s
}
