// Package console is the web console: the pages on which people look at a Chancery,
// find a certificate, revoke it, and read the ledger.
//
// It is one http.Handler for everything beneath /console/. Pages are rendered on the
// server and work without script, as links and plain forms; where there is script,
// htmx 4 renews parts of them. The package decides nothing about certificates, keys or
// the ledger: it asks its use-cases of an [Authority] and of the functions in [Config].
//
// A request goes through the same steps (serve.go): headers that forbid a browser all
// that the pages do not need, the route table (routes.go) with who may use a route and
// which form fields it takes, a look at the origin of whatever changes something, the
// session. Then a handler answers or returns an error, and one place (failure.go)
// makes a page of it that tells a person what to do and the log the rest.
//
// What keeps foreign text harmless: it has its own type, [foreign], which shows control
// and bidi characters escaped and cuts long text; html/template escapes everything; URLs
// come only from one typed builder (urls.go), since html/template does not protect
// the hx-* attributes of htmx; and the content security policy allows neither inline
// script nor inline style, with Trusted Types (W3C) in force for what htmx inserts.
package console

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"chancery/admin"
	"chancery/audit"
	"chancery/ca"
	"chancery/hsmstore"
	"chancery/web/console/oidc"
	"chancery/web/console/sessions"
)

// Authority is what the console asks of the CA; *ca.Authority is one.
type Authority interface {
	// Certificate finds a certificate by its serial in lower-case hex, or refuses
	// with ca.NotFound.
	Certificate(ctx context.Context, serial string) (*ca.Certificate, error)
	// Certificates lists certificates, newest first.
	Certificates(ctx context.Context, q ca.Query) ([]*ca.Certificate, error)
	// Revoke returns nil only once the revocation is durable. A certificate that is
	// revoked already is a *ca.Refusal with ca.AlreadyRevoked.
	Revoke(ctx context.Context, r ca.RevokeRequest) error
}

// Ledger is what the console reads of the ledger. All four must be set.
type Ledger struct {
	// Head is the last committed head.
	Head func() audit.Head
	// Entries calls fn for the leaves from..to-1 in order.
	Entries func(ctx context.Context, from, to uint64, fn func(index uint64, leaf []byte) error) error
	// Checkpoint is the newest signed checkpoint (C2SP tlog-checkpoint), or
	// audit.ErrNotFound before the first.
	Checkpoint func(ctx context.Context) (string, error)
	// Proof is the inclusion proof of a leaf (C2SP tlog-proof), or audit.ErrNotFound
	// while no checkpoint covers it.
	Proof func(ctx context.Context, index uint64) ([]byte, error)
}

// Board is where officers ask and decide; *admin.Board is one. Errors: *admin.Refusal, and
// the sentinels of audit.
type Board interface {
	Terms(ctx context.Context) (admin.Terms, error)
	Rosters(ctx context.Context) (admin.History, error)
	List(ctx context.Context, state admin.State) ([]*admin.Approval, error)
	Show(ctx context.Context, id string) (*admin.Approval, error)
	// Propose and Vote verify the officer's signature; they return when the leaf is durable.
	Propose(ctx context.Context, a admin.Ask) (*admin.Approval, error)
	Vote(ctx context.Context, id string, v admin.Ballot) (*admin.Approval, error)
	Cancel(ctx context.Context, id string) (*admin.Approval, error)
}

// Enrolments is where officers get their passkeys; *admin.Enrolments is one. Errors:
// *admin.Refusal, and the sentinels of audit.
type Enrolments interface {
	// Open makes a link; its secret is shown only now.
	Open(ctx context.Context, name string, roles []admin.Assignment, by string, lifetime time.Duration) (secret string, e admin.Enrolment, err error)
	// Find is the open enrolment of a secret.
	Find(ctx context.Context, secret string) (admin.Enrolment, error)
	AddPasskey(ctx context.Context, secret string, k admin.Passkey) (admin.Enrolment, error)
	// Finish closes the link with as many passkeys as the person saw, and returns the
	// proposal if the change is asked for at once.
	Finish(ctx context.Context, secret string, seen int) (admin.Enrolment, *admin.Approval, error)
	List(ctx context.Context) ([]admin.Enrolment, error)
	Named(ctx context.Context, id string) (admin.Enrolment, error)
	Withdraw(ctx context.Context, id, by string) error
	// RP is the relying party of passkeys, also before the roster has one.
	RP(ctx context.Context) (rpID string, origins []string, err error)
	// Parameters are those of admin.ChangeRoster for an enrolment that is done.
	Parameters(ctx context.Context, e admin.Enrolment) ([]byte, error)
}

// Sessions keeps who is signed in, for all nodes; dbstore.Sessions does.
type Sessions interface {
	// Session finds a session, ended or not; none is audit.ErrNotFound.
	Session(ctx context.Context, id sessions.ID) (sessions.Session, error)
	// Write makes the projections of package sessions durable, all or none, before it
	// returns nil.
	Write(ctx context.Context, p ...audit.Projection) error
}

// Config is what a [Console] works with. Every field without a remark must be set.
type Config struct {
	Certificates Authority
	Members      func() []hsmstore.MemberStatus
	Keys         func() []hsmstore.KeyInfo
	Ledger       Ledger

	Board      Board
	Enrolments Enrolments
	Machines   Machines
	Sessions   Sessions
	Provider   Provider // nil: people sign in with passkeys only
	Secret     []byte   // of challenges, the same on all nodes; 32 octets at least
	// Session records a sign-in or sign-out; nobody is signed in before it returns nil.
	Session func(ctx context.Context, s audit.Session) error
	// Refused counts what was refused. It neither waits nor fails.
	Refused func(audit.Refusal)

	KeyPurposes   []audit.Purpose // of keys that officers may ask for
	KeyAlgorithms []string

	ACMEDirectory string // URL
	CertbotLine   string // ready to be pasted into a shell
	PublicURL     string // https://ca.example:8443, without a path
	Dev           bool   // marks every page

	Log *slog.Logger     // nil: slog.Default
	Now func() time.Time // nil: time.Now
}

// Console is the web console.
type Console struct {
	cfg         Config
	log         *slog.Logger
	now         func() time.Time
	attempts    *limiter
	crossOrigin *http.CrossOriginProtection
	mux         *http.ServeMux
}

// New checks cfg and builds the console.
func New(cfg Config) (*Console, error) {
	l := cfg.Ledger
	if cfg.Certificates == nil || cfg.Members == nil || cfg.Keys == nil || l.Head == nil || l.Entries == nil || l.Checkpoint == nil || l.Proof == nil || cfg.Board == nil || cfg.Enrolments == nil || cfg.Machines == nil || cfg.Sessions == nil || cfg.Session == nil || cfg.Refused == nil {
		return nil, errors.New("console: Certificates, Members, Keys, all of Ledger, Board, Enrolments, Machines, Sessions, Session and Refused must be set")
	}
	if cfg.ACMEDirectory == "" || cfg.CertbotLine == "" || cfg.PublicURL == "" {
		return nil, errors.New("console: ACMEDirectory, CertbotLine and PublicURL must be set")
	}
	if len(cfg.Secret) < 32 {
		return nil, errors.New("console: Secret needs 32 octets at least")
	}
	c := &Console{cfg: cfg, log: cfg.Log, now: cfg.Now, crossOrigin: http.NewCrossOriginProtection()}
	if c.log == nil {
		c.log = slog.Default()
	}
	if c.now == nil {
		c.now = time.Now
	}
	c.attempts = newLimiter(c.now)
	var err error
	if c.mux, err = c.muxOf(c.routes()); err != nil {
		return nil, err
	}
	return c, nil
}

// Handler serves everything beneath /console/, with the prefix still in the path. It
// sets all headers of its answers itself; a request id that stands in the answer's
// X-Request-Id already is kept.
func (c *Console) Handler() http.Handler { return http.HandlerFunc(c.serve) }

var (
	_ Authority  = (*ca.Authority)(nil)
	_ Board      = (*admin.Board)(nil)
	_ Provider   = (*oidc.Provider)(nil)
	_ Enrolments = (*admin.Enrolments)(nil)
)
