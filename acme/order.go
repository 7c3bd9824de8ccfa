package acme

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"time"

	"chancery/audit"
	"chancery/ca"
)

// orderObject is RFC 8555 §7.1.3.
type orderObject struct {
	Status         Status       `json:"status"`
	Expires        string       `json:"expires"`
	Identifiers    []Identifier `json:"identifiers"`
	Authorizations []string     `json:"authorizations"`
	Finalize       string       `json:"finalize"`
	Certificate    string       `json:"certificate,omitempty"`
	Error          *Problem     `json:"error,omitzero"`
}

// timestamp is RFC 3339 in whole seconds, as clients parse it with regular expressions.
func timestamp(t time.Time) string { return t.UTC().Truncate(time.Second).Format(time.RFC3339) }

func (s *Server) orderURL(id string) string { return s.url("/order/%s", id) }

func (s *Server) orderReply(status int, o Order) *reply {
	obj := orderObject{Status: o.At(s.now()), Expires: timestamp(o.Expires), Finalize: s.orderURL(o.ID) + "/finalize", Error: o.Error}
	for _, n := range o.Names {
		obj.Identifiers = append(obj.Identifiers, identifier(n))
	}
	for _, a := range o.Authzs {
		obj.Authorizations = append(obj.Authorizations, s.url("/authz/%s", a))
	}
	rep := &reply{status: status, location: s.orderURL(o.ID)}
	switch {
	case obj.Status == Valid:
		obj.Certificate = s.url("/certificate/%s", o.ID)
	case obj.Status == Processing:
		rep.retryAfter = time.Second
	case obj.Status == Invalid && o.Error == nil:
		obj.Error = problem(http.StatusForbidden, Malformed, "the order was not finalized before it expired; make a new one")
	}
	rep.body = obj
	return rep
}

// newOrder is RFC 8555 §7.4. An authorization of the account that is still valid is
// used again, so that a renewal needs no new proof.
func (s *Server) newOrder(ctx context.Context, q *request) (*reply, error) {
	var in struct {
		Identifiers []Identifier `json:"identifiers"`
		NotBefore   string       `json:"notBefore"`
		NotAfter    string       `json:"notAfter"`
	}
	if err := q.env.object(&in); err != nil {
		return nil, err
	}
	if in.NotBefore != "" || in.NotAfter != "" {
		return nil, malformed("notBefore and notAfter cannot be chosen: the profile sets the validity; leave them out")
	}
	names, err := s.parseNames(in.Identifiers)
	if err != nil {
		return nil, err
	}
	const tries = 3 // an authorization that was found may be given up before the order is stored
	for try := 1; ; try++ {
		p, err := s.composeOrder(ctx, q.account.ID, names)
		if err != nil {
			return nil, err
		}
		err = s.cfg.Ledger.Write(ctx, p)
		if err == nil {
			return s.orderReply(http.StatusCreated, p.Order), nil
		}
		if many := (*TooManyOrders)(nil); errors.As(err, &many) {
			p := problem(http.StatusTooManyRequests, RateLimited, "the account has %d orders that are pending or ready, or more than %d names in them; finalize them or deactivate their authorizations first", s.cfg.MaxOpenOrders, s.cfg.MaxOpenOrders*NamesPerOpen)
			p.retryAfter = min(max(many.Until.Sub(s.now()), retrySoon), time.Hour)
			return nil, p
		}
		if !errors.Is(err, audit.ErrConflict) || try == tries {
			return nil, fmt.Errorf("storing order: %w", err)
		}
	}
}

// minReuse is the least time that an authorization must have left to be used again.
const minReuse = time.Hour

func (s *Server) composeOrder(ctx context.Context, account string, names []ca.Name) (CreateOrder, error) {
	now := s.now().UTC().Truncate(time.Second)
	o := Order{ID: newID(), Account: account, Status: Ready, Names: names, Created: s.now().UTC(), Expires: now.Add(s.cfg.OrderLife)}
	var fresh []Authz
	for _, n := range names {
		a, err := s.cfg.Storage.ACMEValidAuthz(ctx, account, n, now.Add(minReuse))
		switch {
		case err == nil:
			if a.Expires.Before(o.Expires) { // an order must not outlive what it rests on
				o.Expires = a.Expires.Add(-time.Second)
			}
		case errors.Is(err, audit.ErrNotFound):
			o.Status = Pending
			a = Authz{ID: newID(), Account: account, Name: n, Status: Pending, Created: now, Expires: now.Add(s.cfg.OrderLife)}
			a.Challenges = []Challenge{{ID: newID(), Authz: a.ID, Type: HTTP01, Token: newToken(), Status: Pending}}
			fresh = append(fresh, a)
		default:
			return CreateOrder{}, fmt.Errorf("looking for a valid authorization: %w", err)
		}
		o.Authzs = append(o.Authzs, a.ID)
	}
	return CreateOrder{Order: o, New: fresh, MaxOpen: s.cfg.MaxOpenOrders}, nil
}

// ownOrder reads an order of the account that asks.
func (s *Server) ownOrder(ctx context.Context, q *request) (Order, error) {
	o, err := s.cfg.Storage.ACMEOrder(ctx, q.id)
	if errors.Is(err, audit.ErrNotFound) || err == nil && o.Account != q.account.ID {
		return Order{}, noSuch("order")
	}
	if err != nil {
		return Order{}, fmt.Errorf("reading order: %w", err)
	}
	return o, nil
}

func mustBeGet(q *request) error {
	if !q.asGet() {
		return malformed("this URL takes POST-as-GET only: the payload must be empty (RFC 8555 §6.3)")
	}
	return nil
}

// order is a POST-as-GET of an order.
func (s *Server) order(ctx context.Context, q *request) (*reply, error) {
	if err := mustBeGet(q); err != nil {
		return nil, err
	}
	o, err := s.ownOrder(ctx, q)
	if err != nil {
		return nil, err
	}
	return s.orderReply(0, o), nil
}

const ordersPage = 100

// orders is the list of RFC 8555 §7.1.2.1, newest first.
func (s *Server) orders(ctx context.Context, q *request) (*reply, error) {
	if q.id != q.account.ID {
		return nil, noSuch("list of orders")
	}
	if err := mustBeGet(q); err != nil {
		return nil, err
	}
	after, err := parseCursor(q.http.URL.Query().Get("cursor"))
	if err != nil {
		return nil, err
	}
	list, err := s.cfg.Storage.ACMEOrders(ctx, q.account.ID, after, ordersPage)
	if err != nil {
		return nil, fmt.Errorf("listing orders: %w", err)
	}
	body := struct {
		Orders []string `json:"orders"`
	}{Orders: []string{}}
	rep := &reply{}
	for _, o := range list {
		if o.At(s.now()) != Invalid {
			body.Orders = append(body.Orders, s.orderURL(o.ID))
		}
	}
	if len(list) == ordersPage {
		next := s.accountURL(q.account.ID) + "/orders?cursor=" + cursorText(list[len(list)-1])
		rep.links = []string{"<" + next + `>;rel="next"`}
	}
	rep.body = body
	return rep, nil
}

func cursorText(o Order) string {
	b := binary.BigEndian.AppendUint64(nil, uint64(o.Created.UnixMicro()))
	return base64.RawURLEncoding.EncodeToString(append(b, o.ID...))
}

func parseCursor(s string) (Cursor, error) {
	if s == "" {
		return Cursor{}, nil
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != 8+22 || !isID(string(b[8:])) {
		return Cursor{}, malformed("cursor is not one of this server's; follow the Link with rel=\"next\"")
	}
	return Cursor{Created: time.UnixMicro(int64(binary.BigEndian.Uint64(b))), ID: string(b[8:])}, nil
}
