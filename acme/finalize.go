package acme

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"chancery/audit"
	"chancery/ca"
)

// issueTime bounds one issuance. It does not end with the client's connection.
const issueTime = 60 * time.Second

// flights holds the orders that this process issues at the moment, so that a second
// finalize waits for the first instead of preparing a certificate for nothing. What
// keeps two certificates from being made is OrderProcessing, not this.
type flights struct {
	mu sync.Mutex
	m  map[string]chan struct{}
}

// enter returns nil and a function to leave, or a channel that closes when the
// other one leaves.
func (f *flights) enter(id string) (leave func(), busy <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if ch, ok := f.m[id]; ok {
		return nil, ch
	}
	ch := make(chan struct{})
	f.m[id] = ch
	return func() {
		f.mu.Lock()
		delete(f.m, id)
		f.mu.Unlock()
		close(ch)
	}, nil
}

// finalize is RFC 8555 §7.4. Its steps, and what a crash after each leaves:
//
//  1. checks: nothing
//  2. intent, serial and ready → processing with the CSR, in one commit: Run issues
//     that CSR again under a new serial
//  3. signature: the same; the first serial is an orphan and revoked
//  4. certificate, done leaf and processing → valid, in one commit: all is well
func (s *Server) finalize(ctx context.Context, q *request) (*reply, error) {
	var in struct {
		CSR string `json:"csr"`
	}
	if err := q.env.object(&in); err != nil {
		return nil, err
	}
	der, err := decode64("csr", in.CSR)
	if err != nil {
		return nil, err
	}
	o, err := s.ownOrder(ctx, q)
	if err != nil {
		return nil, err
	}
	if err := s.readyOrder(o); err != nil {
		return nil, err
	}
	for {
		leave, busy := s.issuing.enter(o.ID)
		if busy == nil {
			defer leave()
			break
		}
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if o, err = s.ownOrder(ctx, q); err != nil || o.Status != Ready {
			return s.orderOr(o, err)
		}
	}
	if o, err = s.ownOrder(ctx, q); err != nil || o.Status != Ready { // it may have changed while we waited
		return s.orderOr(o, err)
	}
	if err := s.checkCSR(ctx, q.key, o, der); err != nil {
		return nil, err
	}
	detached, cancel := context.WithTimeout(context.WithoutCancel(ctx), issueTime)
	defer cancel()
	settled := false
	defer func() {
		if !settled { // a panic: what it left in processing is resumed
			s.leave(o.ID, "")
		}
	}()
	serial, failed := s.issue(detached, o, der, clientOf(q.http))
	settled = true
	if failed == nil {
		return s.orderOr(s.ownOrder(detached, q))
	}
	// Where did it stop? The order tells: before step 2 it is still ready.
	after, err := s.ownOrder(detached, q)
	switch {
	case err != nil:
		return nil, errors.Join(failed, err)
	case after.Status != Ready:
		if after.Status == Processing && after.Serial == serial { // else another node issues it
			s.log.Error("acme order stays in processing and will be resumed", "order", o.ID, "err", failed)
			s.leave(o.ID, serial)
		}
		return s.orderReply(0, after), nil
	case errors.Is(failed, audit.ErrConflict):
		if err := s.readyOrder(after); err != nil { // it expired in this moment
			return nil, err
		}
		return nil, problem(http.StatusForbidden, Unauthorized, "the account or an authorization of the order is no longer valid; make a new order")
	}
	return nil, failed
}

func (s *Server) orderOr(o Order, err error) (*reply, error) {
	if err != nil {
		return nil, err
	}
	return s.orderReply(0, o), nil
}

func (s *Server) readyOrder(o Order) error {
	switch st := o.At(s.now()); st {
	case Ready:
		return nil
	case Pending:
		return problem(http.StatusForbidden, OrderNotReady, "the order is pending: first answer a challenge of each authorization in it (RFC 8555 §7.4)")
	case Valid:
		return problem(http.StatusForbidden, OrderNotReady, "the order has its certificate; the order's member certificate says where")
	case Processing:
		return problem(http.StatusForbidden, OrderNotReady, "the order is being issued; poll it by POST-as-GET")
	default:
		return problem(http.StatusForbidden, OrderNotReady, "the order is %s or has expired; make a new one", st)
	}
}

// issue makes the certificate of an order that is ready or, with a serial, processing.
// client is the address of who asks, "" if nobody does any more. It returns the serial
// that it tried.
func (s *Server) issue(ctx context.Context, o Order, csr []byte, client string) (serial string, err error) {
	evidence, err := s.evidence(ctx, o)
	if err != nil {
		return "", err
	}
	var p Prepared
	for try := 0; ; try++ {
		p, err = s.cfg.Authority.Prepare(ctx, ca.Request{Profile: s.cfg.Profile, CSR: csr, Names: o.Names, Requester: requester(o.Account), Client: client, Evidence: evidence})
		if err != nil {
			return "", fmt.Errorf("preparing certificate: %w", err)
		}
		_, err = s.cfg.Authority.Issue(ctx, p, ca.Projections{
			Intent: []audit.Projection{OrderProcessing{ID: o.ID, Account: o.Account, CSR: csr, Serial: p.Serial(), Old: o.Serial, Now: s.now()}},
			Done:   []audit.Projection{OrderValid{ID: o.ID, Serial: p.Serial()}},
		})
		if !errors.Is(err, ca.ErrSerialTaken) || try == 2 {
			break
		}
	}
	if err != nil {
		return p.Serial(), fmt.Errorf("issuing certificate: %w", err)
	}
	return p.Serial(), nil
}

func requester(account string) string { return "acme:" + account }

// evidence is what entitles the account to the names: the order and, for each name by its
// number in the order, the authorization and the challenge that proved it. The names
// themselves are committed to (audit.TagAsked), in the same order.
func (s *Server) evidence(ctx context.Context, o Order) (audit.Evidence, error) {
	authzs, err := s.cfg.Storage.ACMEAuthzs(ctx, o.Authzs...)
	if err != nil {
		return nil, fmt.Errorf("reading authorizations: %w", err)
	}
	e := audit.Evidence{{Name: "request", Value: "ACME finalize (RFC 8555)"}, {Name: "order", Value: o.ID}, {Name: "account", Value: o.Account}}
	for i, a := range authzs {
		if a.Name != o.Names[i] || a.Account != o.Account { // every name, never one name many times
			return nil, fmt.Errorf("order %s: authorization %d is for another name", o.ID, i)
		}
		e = append(e, audit.Fact{Name: "authorization", Value: fmt.Sprintf("name %d %s", i+1, a.ID)})
		for _, c := range a.Challenges {
			if c.Status == Valid {
				e = append(e, audit.Fact{Name: "proof", Value: fmt.Sprintf("name %d %s %s token %s at %s", i+1, c.Type, c.ID, c.Token, c.Validated.UTC().Format(time.RFC3339Nano))})
			}
		}
	}
	return e, nil
}

func badCSR(format string, args ...any) *Problem {
	return problem(http.StatusBadRequest, BadCSR, format, args...)
}

// checkCSR is what RFC 8555 §7.4 and §11.1 ask of a CSR; all else is package ca's.
func (s *Server) checkCSR(ctx context.Context, account *accountKey, o Order, der []byte) error {
	r, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return badCSR("csr is no DER-encoded PKCS #10 request (RFC 2986) in base64url")
	}
	if err := s.notAccountKey(ctx, account, r); err != nil {
		return err
	}
	asked, err := csrNames(r)
	if err != nil {
		return err
	}
	missing := slices.ContainsFunc(o.Names, func(n ca.Name) bool { return !slices.Contains(asked, n) })
	if missing || len(asked) != len(o.Names) {
		return badCSR("the names of the CSR (subjectAltName and commonName) must be exactly the identifiers of the order: it has %d names, the order %d (RFC 8555 §7.4)", len(asked), len(o.Names))
	}
	return nil
}

func (s *Server) notAccountKey(ctx context.Context, account *accountKey, r *x509.CertificateRequest) error {
	reused := problem(http.StatusBadRequest, BadCSR, "the key of the CSR is an account key (RFC 8555 §11.1); make another key for the certificate")
	if account != nil && account.equal(r.PublicKey) {
		return reused
	}
	k, err := newKey(r.PublicKey)
	if err != nil {
		return nil // of a type that no account can have; package ca judges it
	}
	_, err = s.cfg.Storage.ACMEAccountByKey(ctx, k.thumbprint)
	switch {
	case err == nil:
		return reused
	case errors.Is(err, audit.ErrNotFound):
		return nil
	}
	return fmt.Errorf("comparing with account keys: %w", err)
}

// csrNames are the names that a CSR asks for, each once: subjectAltName, and the
// common name, which must be one of the order's if it is there.
func csrNames(r *x509.CertificateRequest) ([]ca.Name, error) {
	if len(r.EmailAddresses) > 0 || len(r.URIs) > 0 {
		return nil, badCSR("the CSR asks for e-mail addresses or URIs; only the order's identifiers are allowed")
	}
	if n := len(r.DNSNames) + len(r.IPAddresses); n > maxNames { // before each is compared with each
		return nil, badCSR("subjectAltName of the CSR has %d names; at most %d are allowed in one certificate", n, maxNames)
	}
	var names []ca.Name
	add := func(kind ca.NameKind, s string) bool {
		n, err := ca.ParseName(kind, s)
		if err == nil && !slices.Contains(names, n) {
			names = append(names, n)
		}
		return err == nil
	}
	for _, d := range r.DNSNames {
		if !add(ca.DNS, d) {
			return nil, badCSR("subjectAltName of the CSR holds a dNSName that is no valid name")
		}
	}
	for _, ip := range r.IPAddresses {
		add(ca.IP, ip.String())
	}
	if cn := r.Subject.CommonName; cn != "" && !add(ca.DNS, cn) && !add(ca.IP, cn) {
		return nil, badCSR("commonName of the CSR must be one of the order's identifiers, or left out")
	}
	return names, nil
}
