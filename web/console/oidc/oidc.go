// Package oidc lets people sign in at the console with an OpenID provider (OpenID Connect
// Core 1.0, authorization code with PKCE). The provider says who somebody is and in which
// groups; the configuration says which roles a group gives. It never counts as an
// approval: such a person neither asks the officers nor votes, see admin.ByOIDC.
//
// A sign-in is two requests. [Provider.Start] sends the browser away with a [Flow], which
// the browser keeps in a cookie of its own; [Provider.Finish] holds what comes back
// against it. What the provider says counts only as its signed ID token, for our client,
// with our nonce: no e-mail address, no name, nothing from the browser.
package oidc

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"chancery/admin"
	"chancery/audit"
)

// Config of a [Provider]. Every field without a remark must be set.
type Config struct {
	Issuer       string // URL, https
	ClientID     string
	ClientSecret string
	RedirectURL  string                        // of our callback, as it is registered there
	GroupsClaim  string                        // "": groups
	Roles        map[string][]admin.Assignment // by group
	Scopes       []string                      // besides openid
	Client       *http.Client                  // nil: one with a time limit
	Loopback     bool                          // http://127.0.0.1 and http://localhost are allowed, for tests and dev
}

// The limits of what a provider may send and take.
const (
	patience   = 10 * time.Second
	maxAnswer  = 1 << 20
	maxSubject = 128
	flowTime   = 10 * time.Minute
	leeway     = time.Minute // of an authentication's time
)

// ErrRefused is wrapped by every refusal of what came back; the rest of the text is for
// the log, not for who signs in.
var ErrRefused = errors.New("the sign-in with the provider was refused")

// Provider is one OpenID provider.
type Provider struct {
	cfg Config

	mu    sync.Mutex
	ready *endpoints
}

type endpoints struct {
	oauth    oauth2.Config
	verifier *oidc.IDTokenVerifier
}

// New checks cfg; the provider is asked for its endpoints when somebody signs in.
func New(cfg Config) (*Provider, error) {
	u, err := url.Parse(cfg.Issuer)
	local := err == nil && cfg.Loopback && u.Scheme == "http" && (u.Hostname() == "127.0.0.1" || u.Hostname() == "localhost")
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Scheme != "https" && !local {
		return nil, fmt.Errorf("oidc: issuer %q must be an https URL, as the provider names itself", cfg.Issuer)
	}
	if cfg.ClientID == "" || cfg.ClientSecret == "" || cfg.RedirectURL == "" || len(cfg.Roles) == 0 {
		return nil, errors.New("oidc: client_id, client_secret and roles must be set")
	}
	for group, roles := range cfg.Roles {
		if err := admin.CheckAssignments(roles); err != nil || len(roles) == 0 {
			return nil, fmt.Errorf("oidc: roles of group %q: %w", group, errors.Join(err, noRoles(roles)))
		}
	}
	if cfg.GroupsClaim == "" {
		cfg.GroupsClaim = "groups"
	}
	if cfg.Client == nil {
		cfg.Client = &http.Client{Timeout: patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	cfg.Client.Transport = bounded{cfg.Client.Transport}
	return &Provider{cfg: cfg}, nil
}

func noRoles(roles []admin.Assignment) error {
	if len(roles) == 0 {
		return errors.New("name at least one role")
	}
	return nil
}

// bounded cuts answers that are too long.
type bounded struct{ next http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	next := b.next
	if next == nil {
		next = http.DefaultTransport
	}
	resp, err := next.RoundTrip(r)
	if err == nil {
		resp.Body = http.MaxBytesReader(nil, resp.Body, maxAnswer)
	}
	return resp, err
}

// algorithms are those that an ID token may be signed with (RFC 7518 §3.1): no "none", and
// nothing that the client secret could make.
var algorithms = []string{oidc.RS256, oidc.RS384, oidc.RS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.EdDSA}

// Fingerprint is a digest of all settings but the secret.
func (p *Provider) Fingerprint() [32]byte {
	var b strings.Builder
	for _, s := range append([]string{p.cfg.Issuer, p.cfg.ClientID, p.cfg.GroupsClaim}, p.cfg.Scopes...) {
		fmt.Fprintf(&b, "%q\n", s)
	}
	for _, group := range slices.Sorted(maps.Keys(p.cfg.Roles)) {
		fmt.Fprintf(&b, "%q %q\n", group, p.cfg.Roles[group])
	}
	return audit.Digest("oidc-settings", []byte(b.String()))
}

// discover asks the provider for its endpoints (OpenID Connect Discovery 1.0 §4), once.
// Keys come only from there, whatever a token names.
func (p *Provider) discover(ctx context.Context) (*endpoints, error) {
	p.mu.Lock()
	have := p.ready
	p.mu.Unlock()
	if have != nil {
		return have, nil
	}
	// The keys are fetched again later with this context, so that it must not end.
	keep := oidc.ClientContext(context.WithoutCancel(ctx), p.cfg.Client)
	found, err := oidc.NewProvider(keep, p.cfg.Issuer)
	if err != nil {
		return nil, fmt.Errorf("asking the OpenID provider: %w", err)
	}
	var named struct {
		Keys string `json:"jwks_uri"`
	}
	if err := found.Claims(&named); err != nil {
		return nil, fmt.Errorf("reading what the OpenID provider says of itself: %w", err)
	}
	e := &endpoints{
		oauth: oauth2.Config{ClientID: p.cfg.ClientID, ClientSecret: p.cfg.ClientSecret, RedirectURL: p.cfg.RedirectURL, Endpoint: found.Endpoint(),
			Scopes: append([]string{oidc.ScopeOpenID}, p.cfg.Scopes...)},
		verifier: found.VerifierContext(keep, &oidc.Config{ClientID: p.cfg.ClientID, SupportedSigningAlgs: algorithms}),
	}
	for _, u := range []string{e.oauth.Endpoint.AuthURL, e.oauth.Endpoint.TokenURL, named.Keys} {
		if parsed, err := url.Parse(u); err != nil || parsed.Scheme != "https" && !p.cfg.Loopback {
			return nil, fmt.Errorf("the OpenID provider names the endpoint %q, which is not https", audit.Text(u, 200))
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ready = e
	return e, nil
}

// Flow is a sign-in under way. The browser keeps it, in a cookie that scripts cannot read.
type Flow struct {
	State    string
	Nonce    string
	Verifier string // RFC 7636 §4.1
	Begun    int64  // seconds since 1970
}

// Encode is the text of the cookie, DecodeFlow reads it.
func (f Flow) Encode() string {
	return fmt.Sprintf("%s.%s.%s.%d", f.State, f.Nonce, f.Verifier, f.Begun)
}

// DecodeFlow reads what [Flow.Encode] wrote.
func DecodeFlow(text string) (f Flow, err error) {
	parts := strings.Split(text, ".")
	if len(parts) != 4 || len(text) > 512 {
		return Flow{}, fmt.Errorf("%w: there is no sign-in under way in this browser", ErrRefused)
	}
	f.State, f.Nonce, f.Verifier = parts[0], parts[1], parts[2]
	_, err = fmt.Sscan(parts[3], &f.Begun)
	if err != nil || f.State == "" || f.Nonce == "" || f.Verifier == "" {
		return Flow{}, fmt.Errorf("%w: there is no sign-in under way in this browser", ErrRefused)
	}
	return f, nil
}

// Start returns where the browser goes, and the flow that it keeps. fresh wants the person
// to show anew that they are there, whatever session they have at the provider (OpenID
// Connect Core §3.1.2.1, prompt and max_age).
func (p *Provider) Start(ctx context.Context, now time.Time, fresh bool) (to string, f Flow, err error) {
	e, err := p.discover(ctx)
	if err != nil {
		return "", f, err
	}
	f = Flow{State: rand.Text(), Nonce: rand.Text(), Verifier: oauth2.GenerateVerifier(), Begun: now.Unix()}
	opts := []oauth2.AuthCodeOption{oidc.Nonce(f.Nonce), oauth2.S256ChallengeOption(f.Verifier)}
	if fresh {
		opts = append(opts, oauth2.SetAuthURLParam("prompt", "login"), oauth2.SetAuthURLParam("max_age", "0"))
	}
	return e.oauth.AuthCodeURL(f.State, opts...), f, nil
}

// Person is whom the provider vouched for.
type Person struct {
	Subject string // of the ID token; the provider never gives it to somebody else
	Roles   []admin.Assignment
	At      time.Time // when they last showed the provider that they are there (auth_time); zero: it does not say
}

// Principal is the person at the console.
func (p Person) Principal() admin.Principal {
	return admin.Principal{Kind: admin.ByOIDC, Name: p.Subject, Assignments: p.Roles}
}

// Finish holds the query of the callback against the flow and fetches the ID token. Errors
// wrap [ErrRefused], or are those of asking the provider.
func (p *Provider) Finish(ctx context.Context, now time.Time, f Flow, query url.Values) (Person, error) {
	refuse := func(format string, args ...any) (Person, error) {
		return Person{}, fmt.Errorf("%w: "+format, append([]any{ErrRefused}, args...)...)
	}
	begun := time.Unix(f.Begun, 0)
	switch {
	case len(query["state"]) != 1 || subtle.ConstantTimeCompare([]byte(query.Get("state")), []byte(f.State)) != 1:
		return refuse("the answer belongs to another sign-in")
	case now.Before(begun.Add(-leeway)) || now.Sub(begun) > flowTime:
		return refuse("it took too long")
	case query.Get("error") != "":
		return refuse("the provider says %q", audit.Text(query.Get("error"), 100))
	case len(query["code"]) != 1:
		return refuse("the answer has no code")
	case len(query["iss"]) > 0 && query.Get("iss") != p.cfg.Issuer: // RFC 9207 §2.4
		return refuse("the answer is of another provider")
	}
	e, err := p.discover(ctx)
	if err != nil {
		return Person{}, err
	}
	ctx, cancel := context.WithTimeout(oidc.ClientContext(ctx, p.cfg.Client), 2*patience)
	defer cancel()
	token, err := e.oauth.Exchange(ctx, query.Get("code"), oauth2.VerifierOption(f.Verifier))
	if err != nil {
		return refuse("the code was not taken: %s", audit.Text(err.Error(), 200))
	}
	raw, ok := token.Extra("id_token").(string)
	if !ok {
		return refuse("the provider sent no ID token")
	}
	id, err := e.verifier.Verify(ctx, raw)
	if err != nil {
		return refuse("the ID token: %s", audit.Text(err.Error(), 200))
	}
	if subtle.ConstantTimeCompare([]byte(id.Nonce), []byte(f.Nonce)) != 1 {
		return refuse("the ID token was made for another sign-in")
	}
	return p.person(now, id)
}

// person reads the claims of a verified ID token.
func (p *Provider) person(now time.Time, id *oidc.IDToken) (Person, error) {
	refuse := func(format string, args ...any) (Person, error) {
		return Person{}, fmt.Errorf("%w: "+format, append([]any{ErrRefused}, args...)...)
	}
	var raw claims
	if err := id.Claims(&raw.all); err != nil {
		return refuse("its claims cannot be read")
	}
	if id.Subject == "" || audit.Text(id.Subject, maxSubject) != id.Subject {
		return refuse("its subject is no plain text of 1 to %d octets", maxSubject)
	}
	// Several audiences are allowed only if we are the one that it was made for (§2, azp).
	if azp := raw.text("azp"); len(id.Audience) > 1 && azp != p.cfg.ClientID || azp != "" && azp != p.cfg.ClientID {
		return refuse("the ID token was made for %q", audit.Text(azp, 100))
	}
	who := Person{Subject: id.Subject}
	if at, ok := raw.number("auth_time"); ok && at > 0 && !time.Unix(at, 0).After(now.Add(leeway)) {
		who.At = time.Unix(at, 0)
	}
	for _, group := range raw.texts(p.cfg.GroupsClaim) {
		for _, a := range p.cfg.Roles[group] {
			if !slices.Contains(who.Roles, a) {
				who.Roles = append(who.Roles, a)
			}
		}
	}
	if len(who.Roles) == 0 {
		return refuse("%s is in no group that has a role here", id.Subject)
	}
	if err := admin.CheckAssignments(who.Roles); err != nil {
		return refuse("the groups of %s: %v", id.Subject, err)
	}
	return who, nil
}

// claims are those of a token, in whatever types the provider has them.
type claims struct{ all map[string]any }

func (c claims) text(name string) string { s, _ := c.all[name].(string); return s }

func (c claims) number(name string) (int64, bool) {
	n, ok := c.all[name].(float64)
	return int64(n), ok && n == float64(int64(n))
}

// texts is a claim that is a list of texts, or one text.
func (c claims) texts(name string) (out []string) {
	if s := c.text(name); s != "" {
		return []string{s}
	}
	list, _ := c.all[name].([]any)
	for _, v := range list {
		if s, ok := v.(string); ok {
			out = append(out, s)
		}
	}
	return out
}
