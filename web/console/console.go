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

	"chancery/audit"
	"chancery/ca"
	"chancery/hsmstore"
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

// Config is what a [Console] works with. Every field without a remark must be set.
type Config struct {
	Certificates Authority
	Members      func() []hsmstore.MemberStatus
	Keys         func() []hsmstore.KeyInfo
	Ledger       Ledger

	// AdminToken compares a token with the stored hash in constant time.
	AdminToken func(token string) bool
	// Session records a sign-in or sign-out; nobody is signed in before it returns nil.
	Session func(ctx context.Context, s audit.Session) error
	// Refused counts what was refused. It neither waits nor fails.
	Refused func(audit.Refusal)

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
	sessions    *sessions
	attempts    *limiter
	crossOrigin *http.CrossOriginProtection
	mux         *http.ServeMux
}

// New checks cfg and builds the console. Sessions live in memory: they end with it.
func New(cfg Config) (*Console, error) {
	l := cfg.Ledger
	if cfg.Certificates == nil || cfg.Members == nil || cfg.Keys == nil || l.Head == nil || l.Entries == nil || l.Checkpoint == nil || l.Proof == nil || cfg.AdminToken == nil || cfg.Session == nil || cfg.Refused == nil {
		return nil, errors.New("console: Certificates, Members, Keys, all of Ledger, AdminToken, Session and Refused must be set")
	}
	if cfg.ACMEDirectory == "" || cfg.CertbotLine == "" || cfg.PublicURL == "" {
		return nil, errors.New("console: ACMEDirectory, CertbotLine and PublicURL must be set")
	}
	c := &Console{cfg: cfg, log: cfg.Log, now: cfg.Now, crossOrigin: http.NewCrossOriginProtection()}
	if c.log == nil {
		c.log = slog.Default()
	}
	if c.now == nil {
		c.now = time.Now
	}
	c.sessions, c.attempts = newSessions(c.now), newLimiter(c.now)
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

var _ Authority = (*ca.Authority)(nil)
