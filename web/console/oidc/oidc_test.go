package oidc_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"chancery/admin"
	"chancery/test/idp"
	"chancery/web/console/oidc"
)

var now = time.Now().Truncate(time.Second)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func config(i *idp.Issuer) oidc.Config {
	return oidc.Config{Issuer: i.URL, ClientID: idp.ClientID, ClientSecret: idp.Secret, RedirectURL: "https://ca.example/console/oidc/callback", Loopback: true,
		Roles: map[string][]admin.Assignment{"pki": {{Role: admin.RegistrationOfficer}}, "watch": {{Role: admin.Auditor}}}}
}

// authorize is what a browser does at the provider.
func authorize(t *testing.T, i *idp.Issuer, to string) {
	t.Helper()
	q := must(url.Parse(to)).Query()
	if q.Get("code_challenge_method") != "S256" || q.Get("code_challenge") == "" || q.Get("state") == "" || q.Get("nonce") == "" || q.Get("response_type") != "code" || q.Get("client_id") != idp.ClientID {
		t.Fatalf("no PKCE, state or nonce: %s", to)
	}
	i.Authorize(q)
}

func TestSignIn(t *testing.T) {
	i := idp.New(t)
	p := must(oidc.New(config(i)))
	to, flow, err := p.Start(t.Context(), now, false)
	if err != nil {
		t.Fatal(err)
	}
	authorize(t, i, to)
	flow = must(oidc.DecodeFlow(flow.Encode()))
	who, err := p.Finish(t.Context(), now, flow, url.Values{"state": {flow.State}, "code": {"good"}, "iss": {i.URL}})
	if err != nil || who.Subject != "u-17" || len(who.Roles) != 1 || !who.At.Equal(now) {
		t.Fatalf("%+v %v", who, err)
	}
	if pr := who.Principal(); pr.Requester() != "oidc:u-17" || !pr.May(admin.IssueCertificates, admin.Resource{}) || pr.May(admin.Vote, admin.Resource{}) {
		t.Errorf("%+v", pr)
	}
	to, _, _ = p.Start(t.Context(), now, true)
	if q := must(url.Parse(to)).Query(); q.Get("prompt") != "login" || q.Get("max_age") != "0" {
		t.Errorf("a fresh sign-in asks for %v", q)
	}
}

// WEB-21: whatever is wrong with what comes back, nobody is signed in.
func TestAttack_WEB_21(t *testing.T) {
	const evil = "http://127.0.0.1:9/evil"
	for name, c := range map[string]struct {
		spoil func(i *idp.Issuer)
		query func(q url.Values)
		flow  func(f *oidc.Flow)
		says  string
	}{
		"alg none": {spoil: func(i *idp.Issuer) {
			i.Header = map[string]any{"alg": "none"}
			i.Sign = func(string) string { return "" }
		}, says: "the ID token"},
		"HMAC by the secret": {spoil: func(i *idp.Issuer) {
			i.Header = map[string]any{"alg": "HS256"}
			i.Sign = func(in string) string {
				m := hmac.New(sha256.New, []byte(idp.Secret))
				m.Write([]byte(in))
				return idp.B64(m.Sum(nil))
			}
		}, says: "the ID token"},
		"another key": {spoil: func(i *idp.Issuer) { i.Sign = func(in string) string { return idp.Signature(i.Other, in) } }, says: "the ID token"},
		"a key of its own, jku": {spoil: func(i *idp.Issuer) {
			i.Header = map[string]any{"jku": evil, "x5u": evil, "kid": "../../k1' OR 1=1 --"}
			i.Sign = func(in string) string { return idp.Signature(i.Other, in) }
		}, says: "the ID token"},
		"a key of its own, jwk": {spoil: func(i *idp.Issuer) {
			point := must(i.Other.PublicKey.Bytes())
			i.Header = map[string]any{"jwk": map[string]any{"kty": "EC", "crv": "P-256", "x": idp.B64(point[1:33]), "y": idp.B64(point[33:])}}
			i.Sign = func(in string) string { return idp.Signature(i.Other, in) }
		}, says: "the ID token"},
		"no signature":             {spoil: func(i *idp.Issuer) { i.Sign = func(string) string { return "" } }, says: "the ID token"},
		"another client":           {spoil: func(i *idp.Issuer) { i.Claims = map[string]any{"aud": "other"} }, says: "the ID token"},
		"several, made for other":  {spoil: func(i *idp.Issuer) { i.Claims = map[string]any{"aud": []string{"other", idp.ClientID}, "azp": "other"} }, says: "made for"},
		"several, made for nobody": {spoil: func(i *idp.Issuer) { i.Claims = map[string]any{"aud": []string{"other", idp.ClientID}} }, says: "made for"},
		"another issuer":           {spoil: func(i *idp.Issuer) { i.Claims = map[string]any{"iss": "https://evil.example"} }, says: "the ID token"},
		"expired":                  {spoil: func(i *idp.Issuer) { i.Claims = map[string]any{"exp": now.Add(-time.Hour).Unix()} }, says: "the ID token"},
		"another sign-in":          {spoil: func(i *idp.Issuer) { i.Claims = map[string]any{"nonce": "other"} }, says: "another sign-in"},
		"no nonce":                 {spoil: func(i *idp.Issuer) { i.Claims = map[string]any{"nonce": nil} }, says: "another sign-in"},
		"no group of ours":         {spoil: func(i *idp.Issuer) { i.Claims = map[string]any{"groups": []string{"staff"}} }, says: "no group"},
		"groups as an object":      {spoil: func(i *idp.Issuer) { i.Claims = map[string]any{"groups": map[string]any{"pki": true}} }, says: "no group"},
		"an e-mail, unverified": {spoil: func(i *idp.Issuer) {
			i.Claims = map[string]any{"groups": nil, "email": "pki", "email_verified": false, "roles": []string{"pki"}}
		}, says: "no group"},
		"auditor and more":           {spoil: func(i *idp.Issuer) { i.Claims = map[string]any{"groups": []string{"pki", "watch"}} }, says: "auditor"},
		"a subject that lies":        {spoil: func(i *idp.Issuer) { i.Claims = map[string]any{"sub": "admin\u202e\n"} }, says: "subject"},
		"no subject":                 {spoil: func(i *idp.Issuer) { i.Claims = map[string]any{"sub": ""} }, says: "subject"},
		"another state":              {query: func(q url.Values) { q.Set("state", "other") }, says: "another sign-in"},
		"no state":                   {query: func(q url.Values) { q.Del("state") }, says: "another sign-in"},
		"two states":                 {query: func(q url.Values) { q.Add("state", "x") }, says: "another sign-in"},
		"another code":               {query: func(q url.Values) { q.Set("code", "stolen") }, says: "not taken"},
		"no code":                    {query: func(q url.Values) { q.Del("code") }, says: "no code"},
		"mixed up":                   {query: func(q url.Values) { q.Set("iss", "https://evil.example") }, says: "another provider"},
		"refused there":              {query: func(q url.Values) { q.Set("error", "access_denied") }, says: "access_denied"},
		"code of another's verifier": {flow: func(f *oidc.Flow) { f.Verifier = strings.Repeat("x", 43) }, says: "not taken"},
		"old":                        {flow: func(f *oidc.Flow) { f.Begun = now.Add(-time.Hour).Unix() }, says: "too long"},
		"from the future":            {flow: func(f *oidc.Flow) { f.Begun = now.Add(time.Hour).Unix() }, says: "too long"},
	} {
		t.Run(name, func(t *testing.T) {
			i := idp.New(t)
			p := must(oidc.New(config(i)))
			to, flow, err := p.Start(t.Context(), now, false)
			if err != nil {
				t.Fatal(err)
			}
			authorize(t, i, to)
			q := url.Values{"state": {flow.State}, "code": {"good"}}
			if c.spoil != nil {
				c.spoil(i)
			}
			if c.query != nil {
				c.query(q)
			}
			if c.flow != nil {
				c.flow(&flow)
			}
			who, err := p.Finish(t.Context(), now, flow, q)
			if !errors.Is(err, oidc.ErrRefused) || !strings.Contains(err.Error(), c.says) || who.Subject != "" {
				t.Errorf("ATTACK WORKED: %+v %v; want %q", who, err, c.says)
			}
			for _, path := range i.Asked() {
				if strings.Contains(path, "evil") {
					t.Errorf("it asked %s", path)
				}
			}
		})
	}
}

func TestConfig(t *testing.T) {
	i := idp.New(t)
	for name, edit := range map[string]func(*oidc.Config){
		"http":           func(c *oidc.Config) { c.Loopback = false },
		"no issuer":      func(c *oidc.Config) { c.Issuer = "" },
		"user in issuer": func(c *oidc.Config) { c.Issuer = "https://u@idp.example" },
		"no secret":      func(c *oidc.Config) { c.ClientSecret = "" },
		"no roles":       func(c *oidc.Config) { c.Roles = nil },
		"empty role":     func(c *oidc.Config) { c.Roles = map[string][]admin.Assignment{"g": nil} },
		"odd role":       func(c *oidc.Config) { c.Roles = map[string][]admin.Assignment{"g": {{Role: "god"}}} },
	} {
		c := config(i)
		edit(&c)
		if _, err := oidc.New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	// A provider that is away is no refusal: it may come back.
	c := config(i)
	c.Issuer = "http://127.0.0.1:1"
	if _, _, err := must(oidc.New(c)).Start(t.Context(), now, false); err == nil || errors.Is(err, oidc.ErrRefused) {
		t.Errorf("away: %v", err)
	}
}

func FuzzDecodeFlow(f *testing.F) {
	f.Add("a.b.c.1")
	f.Add("....")
	f.Fuzz(func(t *testing.T, text string) {
		flow, err := oidc.DecodeFlow(text)
		if err == nil && (flow.State == "" || flow.Nonce == "" || flow.Verifier == "") {
			t.Errorf("%q: %+v", text, flow)
		}
	})
}

// WEB-21: every address that the provider names is https, that of its keys, too: who can
// change them on the way makes ID tokens.
func TestAttack_WEB_21_PlainKeys(t *testing.T) {
	for name, c := range map[string]struct {
		auth, token, keys string
		good              bool
	}{
		"all https":      {"https", "https", "https", true},
		"sign-in page":   {"http", "https", "https", false},
		"token endpoint": {"https", "http", "https", false},
		"keys":           {"https", "https", "http", false},
		"keys in a file": {"https", "https", "file", false},
	} {
		var srv *httptest.Server
		srv = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"issuer":%q,"authorization_endpoint":"%s://idp.example/a","token_endpoint":"%s://idp.example/t","jwks_uri":"%s://idp.example/k"}`, srv.URL, c.auth, c.token, c.keys)
		}))
		defer srv.Close()
		cfg := config(idp.New(t))
		cfg.Issuer, cfg.Loopback, cfg.Client = srv.URL, false, srv.Client()
		_, _, err := must(oidc.New(cfg)).Start(t.Context(), now, false)
		if (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}
