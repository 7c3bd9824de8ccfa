package web

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"chancery/admin"
	"chancery/audit"
	"chancery/ca"
)

// Authority is what the edge asks of the CA; *ca.Authority is one.
type Authority interface {
	// Prepare decides about a request and changes nothing. Errors: *ca.Refusal.
	Prepare(ctx context.Context, r ca.Request) (*ca.Prepared, error)
	// Issue returns a certificate only once it is durable and on the ledger.
	Issue(ctx context.Context, p *ca.Prepared, with ca.Projections) (*ca.Certificate, error)
	// Revoke returns nil only once the revocation is durable. A certificate that is
	// revoked already is a *ca.Refusal with ca.AlreadyRevoked.
	Revoke(ctx context.Context, r ca.RevokeRequest) error
	// Certificate finds a certificate by its serial in lower-case hex.
	Certificate(ctx context.Context, serial string) (*ca.Certificate, error)
	// Missing is what Certificate says of a serial that no certificate has.
	Missing(serial string) error
	// CertificateByDER finds one, also of the ledger before this one.
	CertificateByDER(ctx context.Context, der []byte) (*ca.Certificate, error)
	// Certificates lists certificates, newest first.
	Certificates(ctx context.Context, q ca.Query) ([]*ca.Certificate, error)
	// CRL is the newest CRL of an issuer, DER, and when the next is due at the latest.
	CRL(ctx context.Context, issuer string) (der []byte, next time.Time, err error)
	// IssuerCertificate is the certificate of an issuer, DER.
	IssuerCertificate(name string) ([]byte, error)
	// Roots are the certificates of all roots, DER, in any order.
	Roots() [][]byte
}

// Landing is what the landing page shows besides URLs.
type Landing struct {
	Name            string   // of the CA; "": the host of PublicURL
	RootFingerprint string   // SHA-256 of the root certificate, in hex pairs with colons
	CertbotLine     string   // ready to be pasted into a shell
	Issuers         []string // names whose certificate and CRL are linked
}

// Config is what a [Server] works with. Every field without a remark must be set.
type Config struct {
	CA   Authority
	ACME http.Handler // serves everything beneath /acme/
	// Console serves everything beneath /console/.
	Console http.Handler

	// Checkpoint is the newest signed checkpoint (C2SP tlog-checkpoint);
	// audit.ErrNotFound before the first.
	Checkpoint func(ctx context.Context) (string, error)
	// Proof is the inclusion proof of a certificate's done leaf (C2SP tlog-proof), or
	// ErrProofPending while no checkpoint covers it, or a *ca.Refusal.
	Proof func(ctx context.Context, serial string) ([]byte, error)
	// LeafProof is the inclusion proof of any entry: as Proof; audit.ErrNotFound beyond the end.
	LeafProof func(ctx context.Context, index uint64) ([]byte, error)
	// Tile is w hashes of a tile of the tree of the newest checkpoint, Entries w entries of
	// it, both from n·256 on (C2SP tlog-tiles); audit.ErrNotFound for what it does not have.
	Tile    func(ctx context.Context, level int, n, w uint64) ([]byte, error)
	Entries func(ctx context.Context, n, w uint64) ([]byte, error)
	// Documents signs documents.
	Documents Documents
	// Approvals is where officers decide.
	Approvals Approvals
	// Officers is how they get their passkeys.
	Officers Officers
	// HSM is the cluster of HSM members with its keys.
	HSM HSM
	// Backup is where its keys are kept a second time.
	Backup Backup
	// Candidate looks at the token of a member that the configuration names and the
	// cluster does not have; its errors are those of hsmstore, or an *admin.Refusal.
	Candidate func(ctx context.Context, name string) (admin.MemberParameters, error)
	// Ready returns nil only while the server can sign and commit; a *NotReady says to
	// the public which part cannot. It is called at most once a second.
	Ready func(ctx context.Context) error
	// Alarms are broken promises that do not end the signing, for the public; nil: there are none.
	Alarms func() []string
	// AdminToken compares a token with the stored hash in constant time.
	AdminToken func(token string) bool
	// TokenOver tells whether the admin token is refused: somebody has better access.
	TokenOver func(ctx context.Context) bool
	// Machines is who else comes to the API.
	Machines Machines
	// Refused counts for the ledger what was refused. It neither waits nor fails.
	Refused func(audit.Refusal)
	// Erase erases the personal values of one entry, or of all entries that hold a value.
	Erase func(ctx context.Context, which audit.Selection, reason, requester, client string) (erased int, err error)

	Issuer        string // name of the one that signs what is asked for
	PublicURL     string // https://ca.example:8443, without a path
	PublicHTTPURL string // http://ca.example:8080, without a path
	Dev           bool   // landing page on the HTTP door too, no HSTS

	Landing Landing
	Log     *slog.Logger // nil: slog.Default

	// GetCertificate finds the server's own TLS certificate; only [Server.Run] needs it.
	GetCertificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
}

// Server is the HTTP edge. Its handlers work at once; [Server.Run] serves them.
type Server struct {
	cfg         Config
	log         *slog.Logger
	base        string // PublicURL in canonical form
	httpBase    string
	ready       readiness
	crls        crlCache
	nonces      nonces
	underWay    *tally
	crossOrigin *http.CrossOriginProtection
	https, http *echo.Echo
	admin       *echo.Echo
}

// New checks cfg and builds both doors.
func New(cfg Config) (*Server, error) {
	s := &Server{cfg: cfg, log: cfg.Log, underWay: newTally(requests, requestsPerAddress), crossOrigin: http.NewCrossOriginProtection(), ready: readiness{check: cfg.Ready}}
	if s.log == nil {
		s.log = slog.Default()
	}
	var err error
	if s.base, err = baseURL(cfg.PublicURL, "https"); err != nil {
		return nil, fmt.Errorf("web: PublicURL: %w", err)
	}
	if s.httpBase, err = baseURL(cfg.PublicHTTPURL, "http"); err != nil {
		return nil, fmt.Errorf("web: PublicHTTPURL: %w", err)
	}
	if cfg.CA == nil || cfg.ACME == nil || cfg.Console == nil || cfg.Checkpoint == nil || cfg.Proof == nil || cfg.LeafProof == nil || cfg.Tile == nil || cfg.Entries == nil || cfg.Documents == nil || cfg.Approvals == nil || cfg.Officers == nil || cfg.HSM == nil || cfg.Backup == nil || cfg.Candidate == nil || cfg.Ready == nil || cfg.AdminToken == nil || cfg.TokenOver == nil || cfg.Machines == nil || cfg.Refused == nil || cfg.Erase == nil {
		return nil, errors.New("web: CA, ACME, Console, Checkpoint, Proof, LeafProof, Tile, Entries, Documents, Approvals, Officers, HSM, Backup, Candidate, Ready, AdminToken, TokenOver, Machines, Refused and Erase must be set")
	}
	if s.https, err = s.door(doorHTTPS); err != nil {
		return nil, err
	}
	if s.http, err = s.door(doorHTTP); err != nil {
		return nil, err
	}
	if s.admin, err = s.door(doorAdmin); err != nil {
		return nil, err
	}
	return s, nil
}

// baseURL checks a base URL; everything but scheme, host and port is refused.
func baseURL(text, scheme string) (string, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != scheme || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return "", fmt.Errorf("%q must be like %s://ca.example, without path and query", text, scheme)
	}
	return u.Scheme + "://" + u.Host, nil
}

// door makes the handler of one listener from the route table.
func (s *Server) door(d door) (*echo.Echo, error) {
	e := echo.New()
	e.HideBanner, e.HidePort = true, true
	e.Logger.SetOutput(io.Discard) // what is worth a line goes to slog
	e.IPExtractor = echo.ExtractIPDirect()
	e.HTTPErrorHandler = s.fail
	e.Use(s.identify(d), s.logged(d), s.recovered, s.crowded, s.guarded(d))
	for _, r := range s.routes() {
		if r.doors&d == 0 {
			continue
		}
		h, err := s.allow(r)
		if err != nil {
			return nil, err
		}
		if r.method == anyMethod {
			e.Any(r.echoPath(), h)
			continue
		}
		e.Add(r.method, r.echoPath(), h)
		if r.method == http.MethodGet {
			e.Add(http.MethodHead, r.echoPath(), h)
		}
	}
	return e, nil
}

// HTTPS is the handler of the HTTPS door.
func (s *Server) HTTPS() http.Handler { return s.https }

// HTTP is the handler of the plain HTTP door.
func (s *Server) HTTP() http.Handler { return s.http }

// Admin is the handler of the door of client certificates. Whoever serves it verifies their
// chains in the handshake, see [Server.Run].
func (s *Server) Admin() http.Handler { return s.admin }

// The limits of a connection. A finalize of ACME may wait for an HSM, so that the
// answer has more time than the request.
const (
	headerTime   = 5 * time.Second // request line and headers, and the TLS handshake
	readTime     = 20 * time.Second
	requestTime  = 30 * time.Second // of a handler
	writeTime    = 60 * time.Second // from the end of the headers to the end of the answer
	idleTime     = 90 * time.Second
	headerBytes  = 16 << 10
	drainTime    = 10 * time.Second
	connections  = 4096 // open at each door
	perAddress   = 512  // of them from one address; loopback is exempt
	http2Streams = 100

	// Requests under way at both doors. Each may hold a body of 64 KiB, and 512
	// connections with 100 streams each would else be 3 GiB.
	requests           = 16384
	requestsPerAddress = 1024
)

// Listeners are where a [Server] is served. Admin may be nil: there is no such door.
type Listeners struct{ HTTPS, HTTP, Admin net.Listener }

// Run serves the listeners until ctx is done, then lets requests in flight finish
// for at most 10 s. It closes the listeners. An error means that a listener failed.
func (s *Server) Run(ctx context.Context, l Listeners) error {
	if s.cfg.GetCertificate == nil {
		return errors.New("web: GetCertificate must be set to serve TLS")
	}
	secure, plain := s.server(ctx, s.https), s.server(ctx, s.http)
	secure.TLSConfig = tlsConfig(s.cfg.GetCertificate)
	servers := []*http.Server{secure, plain}
	failed := make(chan error, 3)
	go func() { failed <- secure.ServeTLS(limited(l.HTTPS, connections, perAddress), "", "") }()
	go func() { failed <- plain.Serve(limited(l.HTTP, connections, perAddress)) }()
	if l.Admin != nil {
		inner := s.server(ctx, s.admin)
		inner.TLSConfig = s.clientTLS()
		servers = append(servers, inner)
		go func() { failed <- inner.ServeTLS(limited(l.Admin, connections, perAddress), "", "") }()
	}
	var err error
	left := len(servers)
	select {
	case <-ctx.Done():
	case err = <-failed:
		left--
	}
	s.drain(servers...)
	for range left {
		if e := <-failed; err == nil && !errors.Is(e, http.ErrServerClosed) {
			err = e
		}
	}
	if err != nil {
		return fmt.Errorf("serving: %w", err)
	}
	return nil
}

// clientTLS lets nobody in without a client certificate that leads to a root of this CA, or
// to its issuer, as many clients send theirs without the one above it (RFC 8446 §4.4.2).
// Nothing is resumed, so that each handshake verifies it.
func (s *Server) clientTLS() *tls.Config {
	roots := x509.NewCertPool()
	anchors := s.cfg.CA.Roots()
	if issuer, err := s.cfg.CA.IssuerCertificate(s.cfg.Issuer); err == nil {
		anchors = append(anchors, issuer)
	}
	for _, der := range anchors {
		if root, err := x509.ParseCertificate(der); err == nil {
			roots.AddCert(root)
		}
	}
	c := tlsConfig(s.cfg.GetCertificate)
	c.MinVersion, c.CipherSuites = tls.VersionTLS13, nil
	c.ClientAuth, c.ClientCAs, c.SessionTicketsDisabled = tls.RequireAndVerifyClientCert, roots, true
	return c
}

func (s *Server) server(ctx context.Context, h http.Handler) *http.Server {
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTime, ReadTimeout: readTime, WriteTimeout: writeTime, IdleTimeout: idleTime,
		MaxHeaderBytes: headerBytes,
		HTTP2:          &http.HTTP2Config{MaxConcurrentStreams: http2Streams, SendPingTimeout: 30 * time.Second, WriteByteTimeout: readTime},
		ErrorLog:       slog.NewLogLogger(s.log.Handler(), slog.LevelDebug), // broken handshakes and the like: the peer's doing
		// The end of ctx stops the listeners, but not the requests that were taken.
		BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
		Protocols:   new(http.Protocols),
	}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetHTTP2(true) // over TLS only; there is no h2c upgrade
	return srv
}

// drain ends the servers side by side.
func (s *Server) drain(servers ...*http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	done := make(chan struct{})
	for _, srv := range servers {
		go func() {
			defer func() { done <- struct{}{} }()
			if err := srv.Shutdown(ctx); err != nil {
				s.log.Warn("requests were cut off at shutdown", "after", drainTime, "err", err)
				srv.Close()
			}
		}()
	}
	for range servers {
		<-done
	}
}

// tlsConfig allows TLS 1.3, and 1.2 with forward secrecy and AEAD only (RFC 9325 §4.2).
func tlsConfig(get func(*tls.ClientHelloInfo) (*tls.Certificate, error)) *tls.Config {
	return &tls.Config{
		GetCertificate: get,
		MinVersion:     tls.VersionTLS12,
		CipherSuites: []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
			tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
	}
}

var _ Authority = (*ca.Authority)(nil)
