package web

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"chancery/admin"
	"chancery/ca"
)

// What a route may need besides the permissions of admin: nothing, or to be somebody.
const (
	public   admin.Permission = "public"
	somebody admin.Permission = "somebody" // whoever shows good access, with whatever roles
)

// Machines is who comes to the API, and how they get access; *admin.Machines is one.
type Machines interface {
	// ByToken and ByCertificate return the principal, or admin.ErrUnknownMachine.
	ByToken(ctx context.Context, token string) (admin.Principal, error)
	ByCertificate(ctx context.Context, issuer, spki [32]byte) (admin.Principal, error)
	List(ctx context.Context) ([]admin.Machine, error)
	// NewToken returns the token, which is shown only now.
	NewToken(ctx context.Context, by admin.Principal, name string, roles []admin.Assignment, lifetime time.Duration) (token string, m admin.Machine, err error)
	AddCertificate(ctx context.Context, by admin.Principal, name string, issuer, spki [32]byte, roles []admin.Assignment, lifetime time.Duration) (admin.Machine, error)
	Revoke(ctx context.Context, by admin.Principal, id, reason string) error
}

const keyPrincipal = "chancery.principal"

// principal is who asks; the zero one, who may do nothing, on public routes.
func principal(c echo.Context) admin.Principal {
	p, _ := c.Get(keyPrincipal).(admin.Principal)
	return p
}

// requester is how who asks stands in the ledger. The admin token was written this way
// before there was anybody else.
func requester(c echo.Context) string {
	if p := principal(c); p.Kind != admin.ByAdminToken {
		return p.Requester()
	}
	return "api:" + admin.AdminToken
}

// allow wraps a route's handler in what the route needs.
func (s *Server) allow(r route) (echo.HandlerFunc, error) {
	switch {
	case r.needs == public:
		return r.handle, nil
	case r.needs == somebody || r.needs.Known():
		return s.known(r.needs, r.handle), nil
	}
	return nil, fmt.Errorf("web: route %s %s does not say which permission it needs", r.method, r.path)
}

// known finds out who asks, and whether they have the permission on anything. A handler
// whose permission can be limited asks again, with [require].
func (s *Server) known(needs admin.Permission, next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		p, err := s.identity(c)
		if err != nil {
			return err
		}
		c.Set(keyPrincipal, p)
		if needs != somebody && !p.MaySome(needs) {
			return forbidden(p, needs)
		}
		return next(c)
	}
}

// forbidden is the problem of who is known and may not do it.
func forbidden(p admin.Principal, needs admin.Permission) error {
	var roles []string
	for _, r := range needs.Roles() {
		roles = append(roles, string(r))
	}
	return problemf(forbiddenHere, "%s lacks the permission %s here; roles that have it: %s", p.Requester(), needs, strings.Join(roles, ", "))
}

// require wants the permission on one resource.
func require(c echo.Context, needs admin.Permission, on admin.Resource) error {
	if p := principal(c); !p.May(needs, on) {
		return forbidden(p, needs)
	}
	return nil
}

// identity finds out who asks: at the admin door by the client certificate, else by a
// bearer token (RFC 6750 §2.1).
func (s *Server) identity(c echo.Context) (admin.Principal, error) {
	h := c.Request().Header.Values("Authorization")
	if c.Get(keyDoor) == doorAdmin {
		if len(h) > 0 {
			return admin.Principal{}, problemf(unauthorized, "at this door the client certificate says who asks; leave the header Authorization out, or send the request to %s", s.base)
		}
		return s.byCertificate(c)
	}
	if len(h) == 0 {
		return admin.Principal{}, problemf(unauthorized, "header Authorization is missing; send Authorization: Bearer followed by an API token, or in dev by the content of admin.token")
	}
	scheme, token, ok := strings.Cut(h[0], " ")
	if len(h) == 1 && ok && strings.EqualFold(scheme, officerScheme) {
		return s.byOfficer(c, token)
	}
	if len(h) > 1 || !ok || !strings.EqualFold(scheme, "Bearer") || token == "" {
		return admin.Principal{}, problemf(unauthorized, "header Authorization must stand there once and read: Bearer, one space, the token")
	}
	if s.cfg.AdminToken(token) {
		if s.cfg.TokenOver(c.Request().Context()) {
			return admin.Principal{}, problemf(unauthorized, "the admin token is refused since an officer is enrolled who lets others in; sign in at %s/console/, or use an API token or a client certificate that is made there", s.base)
		}
		return admin.Principal{Kind: admin.ByAdminToken}, nil
	}
	p, err := s.cfg.Machines.ByToken(c.Request().Context(), token)
	if errors.Is(err, admin.ErrUnknownMachine) {
		return p, problemf(unauthorized, "the bearer token gives no access here: it is unknown, revoked or expired, or its owner may not give its roles any more")
	}
	return p, err
}

// byCertificate trusts a client certificate that this CA issued for clients, that is valid
// now and not revoked, and that a machine is bound to. The handshake has verified its chain
// and that the client has the key; all else is looked up for each request, as a connection
// may be old.
func (s *Server) byCertificate(c echo.Context) (admin.Principal, error) {
	none := problemf(unauthorized, "the client certificate gives no access here: it is none of this CA for TLS clients, not valid now, revoked, or no machine is bound to it (chancery machine add-certificate)")
	t := c.Request().TLS
	if t == nil || len(t.VerifiedChains) == 0 || len(t.VerifiedChains[0]) < 2 {
		return admin.Principal{}, none
	}
	cert, issuer := t.VerifiedChains[0][0], t.VerifiedChains[0][1]
	if now := time.Now(); now.Before(cert.NotBefore) || now.After(cert.NotAfter) || !slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageClientAuth) || cert.IsCA {
		return admin.Principal{}, none
	}
	ctx := c.Request().Context()
	var refusal *ca.Refusal
	for i, one := range t.VerifiedChains[0] {
		found, err := s.cfg.CA.CertificateByDER(ctx, one.Raw)
		switch {
		case errors.As(err, &refusal) && i > 0: // a root, or an issuer that a restore took over
		case errors.As(err, &refusal), err == nil && (found.Revoked != nil || found.Predecessor): // of a predecessor's one cannot say that it is good
			return admin.Principal{}, none
		case err != nil:
			return admin.Principal{}, err
		}
	}
	p, err := s.cfg.Machines.ByCertificate(ctx, sha256.Sum256(issuer.RawSubjectPublicKeyInfo), sha256.Sum256(cert.RawSubjectPublicKeyInfo))
	if errors.Is(err, admin.ErrUnknownMachine) {
		return p, none
	}
	return p, err
}

// whoami is GET /api/v1/whoami.
func (s *Server) whoami(c echo.Context) error {
	p := principal(c)
	out := struct {
		Kind        admin.PrincipalKind `json:"kind"`
		Name        string              `json:"name"`
		Requester   string              `json:"requester"` // as the ledger names it
		Roles       []string            `json:"roles"`
		Permissions []admin.Permission  `json:"permissions"` // on something at least
	}{Kind: p.Kind, Name: p.Name, Requester: requester(c), Roles: roleTexts(p.Assignments), Permissions: []admin.Permission{}}
	for _, perm := range admin.Permissions() {
		if p.MaySome(perm) {
			out.Permissions = append(out.Permissions, perm)
		}
	}
	return writeJSON(c, http.StatusOK, out)
}

func roleTexts(as []admin.Assignment) []string {
	out := []string{}
	for _, a := range as {
		out = append(out, a.String())
	}
	return out
}

// machine is a machine as the API shows it.
type machine struct {
	ID       string            `json:"id"`
	Name     string            `json:"name"`
	Kind     admin.MachineKind `json:"kind"`
	Roles    []string          `json:"roles"`
	Owner    string            `json:"owner"`
	Created  time.Time         `json:"created"`
	Expires  time.Time         `json:"expires"`
	LastUsed *time.Time        `json:"last_used"`       // to the minute; null: never
	Revoked  *time.Time        `json:"revoked"`         // null: not
	Token    string            `json:"token,omitempty"` // only when it is made
}

func machineOf(m admin.Machine) machine {
	out := machine{ID: m.ID, Name: m.Name, Kind: m.Kind, Roles: roleTexts(m.Roles), Owner: m.Owner, Created: m.Created, Expires: m.Expires}
	if !m.LastUsed.IsZero() {
		out.LastUsed = &m.LastUsed
	}
	if !m.Revoked.IsZero() {
		out.Revoked = &m.Revoked
	}
	return out
}

// machines is GET /api/v1/machines.
func (s *Server) machines(c echo.Context) error {
	all, err := s.cfg.Machines.List(c.Request().Context())
	if err != nil {
		return err
	}
	out := struct {
		Machines []machine `json:"machines"`
	}{[]machine{}}
	for _, m := range all {
		out.Machines = append(out.Machines, machineOf(m))
	}
	return writeJSON(c, http.StatusOK, out)
}

// machineRequest is the body of POST /api/v1/machines.
type machineRequest struct {
	Name        string   `json:"name"`
	Roles       []string `json:"roles"`       // e.g. "signer,key=release"
	Lifetime    int64    `json:"lifetime"`    // seconds
	Certificate string   `json:"certificate"` // PEM, or DER in base64: a client certificate of this CA; "": a token is made
}

// makeMachine is POST /api/v1/machines.
func (s *Server) makeMachine(c echo.Context) error {
	var body machineRequest
	if err := readJSON(c, &body); err != nil {
		return err
	}
	if body.Lifetime < 0 || body.Lifetime > maxSeconds {
		return problemf(badProposal, "lifetime is in seconds, 60 to %d", int64(admin.MaxMachineLife/time.Second)).at("/lifetime", "")
	}
	roles, err := readRoles(body.Roles)
	if err != nil {
		return err
	}
	ctx, cancel := carryThrough(c)
	defer cancel()
	lifetime := time.Duration(body.Lifetime) * time.Second
	if body.Certificate == "" {
		token, m, err := s.cfg.Machines.NewToken(ctx, principal(c), body.Name, roles, lifetime)
		if err != nil {
			return err
		}
		out := machineOf(m)
		out.Token = token
		return writeJSON(c, http.StatusCreated, out)
	}
	issuer, spki, err := s.clientKey(ctx, body.Certificate)
	if err != nil {
		return err
	}
	m, err := s.cfg.Machines.AddCertificate(ctx, principal(c), body.Name, issuer, spki, roles, lifetime)
	if err != nil {
		return err
	}
	return writeJSON(c, http.StatusCreated, machineOf(m))
}

// clientKey reads a client certificate of this CA: SHA-256 of its issuer's SPKI and of its own.
func (s *Server) clientKey(ctx context.Context, text string) (issuer, spki [32]byte, err error) {
	der, err := readCertificate(text)
	if err != nil {
		return issuer, spki, err
	}
	found, err := s.cfg.CA.CertificateByDER(ctx, der)
	if err != nil {
		return issuer, spki, err
	}
	cert, err := x509.ParseCertificate(found.DER)
	if err != nil {
		return issuer, spki, fmt.Errorf("reading stored certificate %s: %w", found.Serial, err)
	}
	if !slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageClientAuth) || found.Revoked != nil || cert.IsCA || len(found.Chain) == 0 {
		return issuer, spki, problemf(badParameter, "the certificate is not for TLS clients, or revoked; the profile tls-client makes one").at("/certificate", "")
	}
	over, err := x509.ParseCertificate(found.Chain[0])
	if err != nil {
		return issuer, spki, fmt.Errorf("reading the issuer of certificate %s: %w", found.Serial, err)
	}
	return sha256.Sum256(over.RawSubjectPublicKeyInfo), sha256.Sum256(cert.RawSubjectPublicKeyInfo), nil
}

func readRoles(texts []string) (out []admin.Assignment, err error) {
	for _, t := range texts {
		a, err := admin.ParseAssignment(t)
		if err != nil {
			return nil, problemf(badProposal, "%v", err).at("/roles", "")
		}
		out = append(out, a)
	}
	return out, nil
}

// revokeMachine is POST /api/v1/machines/{id}/revoke.
func (s *Server) revokeMachine(c echo.Context) error {
	var body because
	if err := readJSON(c, &body); err != nil {
		return err
	}
	ctx, cancel := carryThrough(c)
	defer cancel()
	if err := s.cfg.Machines.Revoke(ctx, principal(c), param(c, "id", ""), body.Reason); err != nil {
		return err
	}
	return writeJSON(c, http.StatusOK, struct{}{})
}

// certificate finds a certificate for who asks. One that they may not read is not there for
// them: the answers are the same.
func (s *Server) certificate(ctx context.Context, c echo.Context, serial string) (*ca.Certificate, error) {
	found, err := s.cfg.CA.Certificate(ctx, serial)
	if err != nil {
		return nil, err
	}
	if !principal(c).May(admin.ReadCertificates, resourceOf(found)) {
		return nil, s.cfg.CA.Missing(found.Serial)
	}
	return found, nil
}

func resourceOf(c *ca.Certificate) admin.Resource {
	return admin.Resource{Issuer: c.Issuer, Profile: c.Profile}
}

var _ Machines = (*admin.Machines)(nil)
