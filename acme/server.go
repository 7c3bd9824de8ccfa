package acme

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"chancery/audit"
)

// Config of a [Server].
type Config struct {
	PublicURL string // https://ca.example, without a path: every URL begins with it
	Profile   string // ca profile of every certificate; "": tls-server
	Authority Authority
	Ledger    Ledger
	Storage   Storage
	NonceKey  []byte // 32 random bytes, this node's own, kept over restarts

	Names      Names
	Validation Validation

	OrderLife time.Duration // to prove the names and finalize; 0: 7 days
	AuthzLife time.Duration // of a valid authorization; 0: 30 days

	MaxOpenOrders   int // pending and ready ones of an account; 0: 1000, negative: any number
	AccountsPerHour int // new ones from one address (IPv6: /64) but loopback; 0: 1000, negative: any number

	TermsOfService string // URL; if set, new accounts must agree to it
	Website        string // URL, for people

	Log *slog.Logger
	Now func() time.Time // nil: time.Now
}

// Server is an ACME server. Its handler works at once; validations need [Server.Run].
type Server struct {
	cfg      Config
	log      *slog.Logger
	now      func() time.Time
	base     string // PublicURL + "/acme"
	dir      []byte // the directory object
	routes   map[string]endpoint
	nonces   *nonces
	keys     *keyCache
	arrivals arrivals
	validate *validator
	work     *dispatcher
	issuing  flights
	left     leftovers
	again    chan struct{} // something was left in processing: Run looks for it
}

// New checks cfg and makes a server.
func New(cfg Config) (*Server, error) {
	u, err := url.Parse(cfg.PublicURL)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
		return nil, fmt.Errorf("acme: PublicURL must be like https://ca.example:8443, without path and query")
	}
	switch {
	case cfg.Authority == nil || cfg.Ledger == nil || cfg.Storage == nil:
		return nil, errors.New("acme: Authority, Ledger and Storage must be set")
	case len(cfg.NonceKey) != 32:
		return nil, errors.New("acme: NonceKey must have 32 bytes")
	}
	if cfg.Profile == "" {
		cfg.Profile = "tls-server"
	}
	if cfg.OrderLife == 0 {
		cfg.OrderLife = 7 * 24 * time.Hour
	}
	if cfg.AuthzLife == 0 {
		cfg.AuthzLife = 30 * 24 * time.Hour
	}
	if cfg.MaxOpenOrders == 0 {
		cfg.MaxOpenOrders = 1000
	}
	if cfg.AccountsPerHour == 0 {
		cfg.AccountsPerHour = 1000
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	s := &Server{cfg: cfg, log: cfg.Log, now: cfg.Now, base: u.Scheme + "://" + u.Host + "/acme",
		nonces: newNonces(cfg.NonceKey, cfg.Now), keys: newKeyCache(4096), again: make(chan struct{}, 1)}
	if err := cfg.Names.check(); err != nil {
		return nil, err
	}
	if s.validate, err = newValidator(cfg.Validation); err != nil {
		return nil, err
	}
	s.work = newDispatcher(s.runValidation, s.resumeSoon)
	s.issuing.m = map[string]chan struct{}{}
	s.left.orders = map[string]string{}
	s.routes = s.endpoints()
	if s.dir, err = s.directory(); err != nil {
		return nil, err
	}
	return s, nil
}

// request is a verified request.
type request struct {
	http    *http.Request
	id      string  // of the object in the URL
	account Account // signed by kid: who asks
	key     *accountKey
	byJWK   bool
	env     *envelope
}

// asGet tells a POST-as-GET (RFC 8555 §6.3).
func (q *request) asGet() bool { return len(q.env.content) == 0 }

// reply is what a handler answers.
type reply struct {
	status      int // 0: 200
	location    string
	links       []string // values of Link besides the directory's
	retryAfter  time.Duration
	contentType string // "": application/json
	body        any    // []byte goes out as it is
}

// signer says whose signature an endpoint wants (RFC 8555 §6.2).
type signer int

const (
	byKID signer = iota
	byJWK
	byEither
)

type endpoint struct {
	signer signer
	post   func(context.Context, *request) (*reply, error)
}

func (s *Server) endpoints() map[string]endpoint {
	return map[string]endpoint{
		"new-account":         {byJWK, s.newAccount},
		"account/{id}":        {byKID, s.account},
		"account/{id}/orders": {byKID, s.orders},
		"key-change":          {byKID, s.keyChange},
		"new-order":           {byKID, s.newOrder},
		"order/{id}":          {byKID, s.order},
		"order/{id}/finalize": {byKID, s.finalize},
		"authz/{id}":          {byKID, s.authz},
		"challenge/{id}":      {byKID, s.challenge},
		"certificate/{id}":    {byKID, s.certificate},
		"revoke-cert":         {byEither, s.revokeCert},
	}
}

// route finds the endpoint of a path beneath /acme/ and the id in it.
func (s *Server) route(path string) (e endpoint, id string, ok bool) {
	parts := strings.Split(path, "/")
	if len(parts) > 1 {
		id = parts[1]
		parts[1] = "{id}"
	}
	e, ok = s.routes[strings.Join(parts, "/")]
	return e, id, ok
}

// Handler serves everything beneath /acme/.
func (s *Server) Handler() http.Handler { return http.HandlerFunc(s.serve) }

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	path, _ := strings.CutPrefix(r.URL.EscapedPath(), "/acme/")
	get := r.Method == http.MethodGet || r.Method == http.MethodHead
	var rep *reply
	var err error
	switch e, id, ok := s.route(path); {
	case path == "directory" && (get || r.Method == http.MethodPost): // RFC 8555 §7.1.1, POST-as-GET allowed
		rep = &reply{body: s.dir}
	case path == "new-nonce" && get: // RFC 8555 §7.2
		rep = &reply{status: http.StatusNoContent}
		if r.Method == http.MethodHead {
			rep.status = http.StatusOK
		}
	case path == "directory" || path == "new-nonce":
		err = notAllowed("GET, HEAD")
	case !ok:
		err = problem(http.StatusNotFound, Malformed, "there is nothing at this URL; the directory at %s/directory lists what there is", s.base)
	case r.Method != http.MethodPost:
		err = notAllowed("POST")
	default:
		rep, err = s.post(r, e, id)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.answer(w, rep)
}

func notAllowed(allow string) *Problem {
	p := problem(http.StatusMethodNotAllowed, Malformed, "this URL takes %s only", allow)
	p.allow = allow
	return p
}

// post verifies a request and runs its endpoint.
func (s *Server) post(r *http.Request, e endpoint, id string) (*reply, error) {
	q, err := s.authenticate(r, e.signer)
	if err != nil {
		return nil, err
	}
	q.id = id
	return e.post(r.Context(), q)
}

// authenticate carries out RFC 8555 §6.2 to §6.5. The nonce is spent last, so that
// only holders of the key can spend one.
func (s *Server) authenticate(r *http.Request, want signer) (*request, error) {
	body, err := readBody(r)
	if err != nil {
		return nil, err
	}
	env, err := parseJWS(body)
	if err != nil {
		return nil, err
	}
	if env.header.URL != s.requestURL(r) {
		return nil, problem(http.StatusUnauthorized, Unauthorized, "url in the protected header must be exactly the URL of the request, as this server wrote it (RFC 8555 §6.4); all its URLs begin with %s/", s.base)
	}
	spend, ok := s.nonces.check(env.header.Nonce)
	if !ok {
		return nil, badNonce()
	}
	q := &request{http: r, env: env, byJWK: env.header.KID == nil}
	switch {
	case q.byJWK && want == byKID:
		return nil, malformed("this URL needs kid, the account's URL, instead of jwk (RFC 8555 §6.2)")
	case !q.byJWK && want == byJWK:
		return nil, malformed("this URL needs jwk instead of kid (RFC 8555 §6.2)")
	case q.byJWK:
		q.key, err = parseKey(env.header.JWK)
	default:
		err = s.resolveKID(r.Context(), q)
	}
	if err != nil {
		return nil, err
	}
	if err := env.verify(q.key); err != nil {
		return nil, err
	}
	if !s.nonces.spend(spend) {
		return nil, badNonce()
	}
	if !q.byJWK && q.account.Status != Valid { // RFC 8555 §7.3.6: 401
		return nil, problem(http.StatusUnauthorized, Unauthorized, "the account is %s and cannot be used any more; register another key", q.account.Status)
	}
	return q, nil
}

func badNonce() *Problem {
	return problem(http.StatusBadRequest, BadNonce, "the nonce is not of this server, was used, or is older than %s; repeat the request with the nonce in Replay-Nonce of this answer", nonceLife)
}

// requestURL is the URL of the request as a client knows it.
func (s *Server) requestURL(r *http.Request) string {
	u := strings.TrimSuffix(s.base, "/acme") + r.URL.EscapedPath()
	if r.URL.RawQuery != "" || r.URL.ForceQuery {
		u += "?" + r.URL.RawQuery
	}
	return u
}

func (s *Server) resolveKID(ctx context.Context, q *request) error {
	unknown := problem(http.StatusBadRequest, AccountDoesNotExist, "kid must be the URL of an account of this server, as Location of newAccount gave it")
	id, ok := strings.CutPrefix(*q.env.header.KID, s.base+"/account/")
	if !ok || !isID(id) {
		return unknown
	}
	var err error
	if q.account, err = s.cfg.Storage.ACMEAccount(ctx, id); errors.Is(err, audit.ErrNotFound) {
		return unknown
	} else if err != nil {
		return fmt.Errorf("reading account: %w", err)
	}
	q.key, err = s.keys.get(q.account)
	return err
}
