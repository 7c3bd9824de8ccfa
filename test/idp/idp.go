// Package idp is an OpenID provider for tests, whose tokens a test may spoil.
package idp

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"
	"time"
)

// The one client that it knows.
const (
	ClientID = "chancery"
	Secret   = "a secret of the client"
)

// Issuer is the provider. Its fields are changed before it is asked.
type Issuer struct {
	*httptest.Server
	Key, Other *ecdsa.PrivateKey // Other is in no document

	mu        sync.Mutex
	challenge string // of the last authorization
	nonce     string
	asked     []string // paths

	Now    time.Time
	Claims map[string]any            // more, or others; nil takes one away
	Header map[string]any            // of the ID token
	Sign   func(input string) string // nil: properly
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// B64 is base64url without padding (RFC 7515 §2).
func B64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// New starts a provider for the time of a test.
func New(t testing.TB) *Issuer {
	i := &Issuer{Key: must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), Other: must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), Now: time.Now().Truncate(time.Second)}
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, v any) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(v)
	}
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]any{"issuer": i.URL, "authorization_endpoint": i.URL + "/authorize", "token_endpoint": i.URL + "/token", "jwks_uri": i.URL + "/keys", "id_token_signing_alg_values_supported": []string{"ES256", "none", "HS256"}})
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) {
		point := must(i.Key.PublicKey.Bytes())
		answer(w, map[string]any{"keys": []any{map[string]any{"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": "k1", "x": B64(point[1:33]), "y": B64(point[33:])}}})
	})
	mux.HandleFunc("/authorize", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		i.Authorize(q)
		back := q.Get("redirect_uri") + "?" + url.Values{"state": {q.Get("state")}, "code": {"good"}, "iss": {i.URL}}.Encode()
		http.Redirect(w, r, back, http.StatusFound)
	})
	mux.HandleFunc("/token", func(w http.ResponseWriter, r *http.Request) {
		r.ParseForm()
		sum := sha256.Sum256([]byte(r.Form.Get("code_verifier")))
		user, pass, _ := r.BasicAuth()
		i.mu.Lock()
		defer i.mu.Unlock()
		if r.Form.Get("code") != "good" || B64(sum[:]) != i.challenge || user != ClientID || pass != url.QueryEscape(Secret) {
			w.WriteHeader(http.StatusBadRequest)
			answer(w, map[string]any{"error": "invalid_grant"})
			return
		}
		answer(w, map[string]any{"access_token": "x", "token_type": "Bearer", "id_token": i.token()})
	})
	i.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i.mu.Lock()
		i.asked = append(i.asked, r.URL.Path)
		i.mu.Unlock()
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(i.Close)
	return i
}

// Authorize is what the provider keeps of an authorization request.
func (i *Issuer) Authorize(q url.Values) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.challenge, i.nonce = q.Get("code_challenge"), q.Get("nonce")
}

// Asked are the paths of all requests.
func (i *Issuer) Asked() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return append([]string(nil), i.asked...)
}

func (i *Issuer) token() string {
	header := map[string]any{"alg": "ES256", "kid": "k1"}
	maps.Copy(header, i.Header)
	claims := map[string]any{"iss": i.URL, "aud": ClientID, "sub": "u-17", "nonce": i.nonce, "iat": i.Now.Unix(), "exp": i.Now.Add(time.Hour).Unix(), "auth_time": i.Now.Unix(), "groups": []string{"pki", "staff"}}
	maps.Copy(claims, i.Claims)
	for k, v := range claims {
		if v == nil {
			delete(claims, k)
		}
	}
	input := B64(must(json.Marshal(header))) + "." + B64(must(json.Marshal(claims)))
	if i.Sign != nil {
		return input + "." + i.Sign(input)
	}
	return input + "." + Signature(i.Key, input)
}

// Signature is ES256 (RFC 7518 §3.4).
func Signature(key *ecdsa.PrivateKey, input string) string {
	sum := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		panic(err)
	}
	out := make([]byte, 64)
	r.FillBytes(out[:32])
	s.FillBytes(out[32:])
	return B64(out)
}
