package acme_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf16"

	"chancery/acme"
)

type header = map[string]any

func body(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// Algorithm confusion: none, MAC with the public key as secret, another key's
// algorithm, extensions that are not understood.
func TestAttack_ACME_01(t *testing.T) {
	h := newHouse(t)
	c := h.member()
	url := h.url + "/acme/new-order"
	payload := body(dnsNames("a.lab"))
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	other := &client{h: h, key: rsaKey, http: http.DefaultClient}
	a := other.post("/acme/new-account", header{}, func(h header) { h["alg"] = "RS256" })
	if a.status != 201 {
		t.Fatalf("RS256 account: %d %s", a.status, a.body)
	}
	mac := func() []byte {
		head := c.header(url)
		head["alg"] = "HS256"
		jws := sign(c.key, head, payload)
		m := hmac.New(sha256.New, jwk(c.key.Public()))
		io.WriteString(m, jws["protected"].(string)+"."+jws["payload"].(string))
		jws["signature"] = b64(m.Sum(nil))
		return body(jws)
	}
	with := func(change func(header)) []byte {
		head := c.header(url)
		change(head)
		return body(sign(c.key, head, payload))
	}
	none := with(func(h header) { h["alg"] = "none" })
	for name, req := range map[string][]byte{
		"none":          none,
		"none, no sig":  bytes.Replace(none, []byte(`"signature":"`), []byte(`"signature":"","x":"`), 1),
		"HS256":         mac(),
		"RS256 on EC":   with(func(h header) { h["alg"] = "RS256" }),
		"EdDSA on EC":   with(func(h header) { h["alg"] = "EdDSA" }),
		"ES384 on P256": with(func(h header) { h["alg"] = "ES384" }),
		"ES256 on RSA": body(sign(rsaKey, header{"alg": "ES256", "nonce": c.nonce(), "url": url, "kid": a.header.Get("Location")},
			payload)),
		"ES256K":   with(func(h header) { h["alg"] = "ES256K" }),
		"alg ANSI": with(func(h header) { h["alg"] = "\x1b[31m<script>\r\n" }),
		"no alg":   with(func(h header) { delete(h, "alg") }),
	} {
		t.Run(name, func(t *testing.T) {
			p := c.send(url, req).wants(t, 400, "badSignatureAlgorithm")
			if fmt.Sprint(p.Algorithms) != "[ES256 ES384 ES512 RS256 PS256 EdDSA]" {
				t.Errorf("algorithms: %v", p.Algorithms)
			}
		})
	}
	for name, change := range map[string]func(header){
		"crit":       func(h header) { h["crit"] = []string{"exp"}; h["exp"] = 1 },
		"empty crit": func(h header) { h["crit"] = []string{} },
		"b64 false":  func(h header) { h["b64"] = false },
		"b64 crit":   func(h header) { h["b64"] = false; h["crit"] = []string{"b64"} },
		"b64 true":   func(h header) { h["b64"] = true },
		"zip":        func(h header) { h["zip"] = "DEF" },
	} {
		t.Run(name, func(t *testing.T) { c.send(url, with(change)).wants(t, 400, "malformed") })
	}
	t.Run("another key", func(t *testing.T) {
		c.send(url, body(sign(newKey(t), c.header(url), payload))).wants(t, 400, "malformed")
	})
}

// Weak account keys.
func TestWeakAccountKeys(t *testing.T) {
	h := newHouse(t)
	p256 := newKey(t)
	off := jwk(p256.Public())
	off = bytes.Replace(off, []byte(`"y":"`), []byte(`"y":"AAAA`), 1)
	big1024 := new(big.Int).Lsh(big.NewInt(1), 1023)
	big1024.Add(big1024, big.NewInt(1))
	n2048 := new(big.Int).Lsh(big.NewInt(1), 2047)
	n2048.Add(n2048, big.NewInt(1))
	for name, key := range map[string]string{
		"RSA-1024":     string(jwk(&rsa.PublicKey{N: big1024, E: 65537})),
		"RSA e=3":      string(jwk(&rsa.PublicKey{N: n2048, E: 3})),
		"RSA e even":   string(jwk(&rsa.PublicKey{N: n2048, E: 65538})),
		"RSA even n":   string(jwk(&rsa.PublicKey{N: new(big.Int).Add(n2048, big.NewInt(1)), E: 65537})),
		"RSA huge":     string(jwk(&rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 16383), E: 65537})),
		"off curve":    string(off),
		"zero point":   `{"kty":"EC","crv":"P-256","x":"` + strings.Repeat("A", 43) + `","y":"` + strings.Repeat("A", 43) + `"}`,
		"P-224":        `{"kty":"EC","crv":"P-224","x":"` + strings.Repeat("A", 38) + `","y":"` + strings.Repeat("A", 38) + `"}`,
		"oct":          `{"kty":"oct","k":"c2VjcmV0"}`,
		"private":      string(body(map[string]any{"kty": "EC", "crv": "P-256", "x": b64(make([]byte, 32)), "y": b64(make([]byte, 32)), "d": b64(make([]byte, 32))})),
		"Ed25519 bad":  `{"kty":"OKP","crv":"Ed25519","x":"AAAA"}`,
		"unknown type": `{"kty":"XYZ"}`,
		"no object":    `[1]`,
		"twice":        `{"kty":"EC","kty":"EC"}`,
	} {
		t.Run(name, func(t *testing.T) {
			if err := acme.ParseKey([]byte(key)); err == nil {
				t.Error("accepted")
			}
			c := h.client()
			url := h.url + "/acme/new-account"
			head := header{"alg": "ES256", "nonce": c.nonce(), "url": url, "jwk": json.RawMessage(key)}
			var buf bytes.Buffer // as it is, with members twice
			fmt.Fprintf(&buf, `{"alg":"ES256","nonce":%q,"url":%q,"jwk":%s}`, head["nonce"], url, key)
			jws := sign(c.key, header{}, []byte("{}"))
			jws["protected"] = b64(buf.Bytes())
			if a := c.send(url, body(jws)); a.status != 400 {
				t.Errorf("%d %s", a.status, a.body)
			}
		})
	}
}

// Two signatures, unprotected headers, jwk and kid together or missing.
func TestAttack_ACME_02(t *testing.T) {
	h := newHouse(t)
	c := h.member()
	url := h.url + "/acme/new-order"
	payload := body(dnsNames("a.lab"))
	jws := func(change func(head header)) map[string]any {
		head := c.header(url)
		change(head)
		return sign(c.key, head, payload)
	}
	plain := jws(func(header) {})
	cases := map[string]map[string]any{
		"both":    jws(func(h header) { h["jwk"] = jwk(c.key.Public()) }),
		"neither": jws(func(h header) { delete(h, "kid") }),
		"jwk":     jws(func(h header) { delete(h, "kid"); h["jwk"] = jwk(c.key.Public()) }),
		"general": {"payload": plain["payload"], "signatures": []any{map[string]any{"protected": plain["protected"], "signature": plain["signature"]},
			map[string]any{"protected": plain["protected"], "signature": plain["signature"]}}},
		"both forms":   {"payload": plain["payload"], "protected": plain["protected"], "signature": plain["signature"], "signatures": []any{}},
		"unprotected":  {"payload": plain["payload"], "protected": plain["protected"], "signature": plain["signature"], "header": map[string]any{"kid": c.kid}},
		"no protected": {"payload": plain["payload"], "header": map[string]any{"alg": "ES256"}, "signature": plain["signature"]},
		"null":         {"payload": nil, "protected": plain["protected"], "signature": plain["signature"]},
	}
	for name, jws := range cases {
		t.Run(name, func(t *testing.T) { c.send(url, body(jws)).wants(t, 400, "malformed") })
	}
	t.Run("kid for newAccount", func(t *testing.T) { c.post("/acme/new-account", header{}).wants(t, 400, "malformed") })
	for name, kid := range map[string]string{"foreign": "https://other/acme/account/x", "unknown": h.url + "/acme/account/AAAAAAAAAAAAAAAAAAAAAA",
		"path": c.kid + "/../x", "empty": ""} {
		t.Run("kid "+name, func(t *testing.T) {
			c.post("/acme/new-order", payload, func(h header) { h["kid"] = kid }).wants(t, 400, "accountDoesNotExist")
		})
	}
}

// The url header is not the request's URL.
func TestAttack_ACME_04(t *testing.T) {
	h := newHouse(t)
	c := h.member()
	right := h.url + "/acme/new-order"
	for name, url := range map[string]any{
		"scheme": strings.Replace(right, "http:", "https:", 1), "host": "http://localhost/acme/new-order", "host case": strings.Replace(right, "http://127", "HTTP://127", 1),
		"port": "http://127.0.0.1/acme/new-order", "path": right + "/", "query": right + "?x=1", "dots": h.url + "/acme/x/../new-order",
		"other": h.url + "/acme/new-account", "empty": "", "userinfo": strings.Replace(right, "http://", "http://a@", 1), "fragment": right + "#x",
	} {
		t.Run(name, func(t *testing.T) {
			c.post(right, dnsNames("a.lab"), func(h header) { h["url"] = url }).wants(t, 401, "unauthorized")
		})
	}
	t.Run("missing", func(t *testing.T) {
		c.post(right, dnsNames("a.lab"), func(h header) { delete(h, "url") }).wants(t, 401, "unauthorized")
	})
	t.Run("query in the request only", func(t *testing.T) {
		head := c.header(right)
		c.send(right+"?x=1", body(sign(c.key, head, body(dnsNames("a.lab"))))).wants(t, 401, "unauthorized")
	})
}

// Nonces: missing, reused in parallel, of another node, old, long.
func TestAttack_ACME_05(t *testing.T) {
	h := newHouse(t)
	c := h.member()
	use := func(nonce any) answer {
		return c.post("/acme/new-order", dnsNames("a.lab"), func(h header) { h["nonce"] = nonce })
	}
	foreign := acme.NewNonces(bytes.Repeat([]byte{1}, 32), time.Now).Make()
	good := c.nonce()
	changed := []byte(good)
	changed[20] ^= 1
	old := c.nonce()
	h.clock.advance(61 * time.Minute)
	for name, n := range map[string]string{"empty": "", "foreign": foreign, "old": old, "long": strings.Repeat("A", 10<<10), "garbage": "!!!", "changed": string(changed)} {
		t.Run(name, func(t *testing.T) {
			p := use(n).wants(t, 400, "badNonce")
			if strings.Contains(p.Detail, "AAAA") {
				t.Error(p.Detail)
			}
		})
	}
	t.Run("missing", func(t *testing.T) {
		c.post("/acme/new-order", dnsNames("a.lab"), func(h header) { delete(h, "nonce") }).wants(t, 400, "badNonce")
	})
	t.Run("reuse", func(t *testing.T) {
		url := h.url + "/acme/new-order"
		req := body(sign(c.key, c.header(url), body(dnsNames("a.lab"))))
		var won, lost atomic.Int64
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				switch a := c.send(url, req); a.status {
				case 201:
					won.Add(1)
				default:
					lost.Add(1)
					a.wants(t, 400, "badNonce")
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 || lost.Load() != 99 {
			t.Errorf("%d of 100 uses of one nonce succeeded", won.Load())
		}
	})
	t.Run("restart", func(t *testing.T) {
		n := c.nonce()
		h.restart()
		if a := use(n); a.status != 201 {
			t.Errorf("a nonce did not survive the restart: %s", a.body)
		}
		use(n).wants(t, 400, "badNonce")
	})
	t.Run("bad signature spends nothing", func(t *testing.T) {
		n := c.nonce()
		url := h.url + "/acme/new-order"
		head := c.header(url)
		head["nonce"] = n
		c.send(url, body(sign(newKey(t), head, []byte("{}")))).wants(t, 400, "malformed")
		if a := use(n); a.status != 201 {
			t.Errorf("%s", a.body)
		}
	})
}

// A million nonces cost no memory, and the server still answers.
func TestAttack_ACME_06(t *testing.T) {
	n := acme.NewNonces(make([]byte, 32), time.Now)
	first := n.Make()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range 1_000_000 {
		n.Make()
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grew := int64(after.HeapAlloc) - int64(before.HeapAlloc); grew > 1<<20 {
		t.Errorf("10^6 nonces took %d bytes", grew)
	}
	if !n.Use(first) || n.Use(first) {
		t.Error("the first nonce must be good once")
	}
	for range 3000 { // spent all over 3 × 2^26 nonces
		n.Skip(1 << 16)
		if s := n.Make(); !n.Use(s) || n.Use(s) {
			t.Fatal("a fresh nonce must be good once")
		}
	}
	if n.Chunks() > 1024 {
		t.Errorf("%d chunks are kept", n.Chunks())
	}
	if n.Use(first) {
		t.Error("a forgotten nonce came back to life")
	}
}

// Bodies that are no flattened JWS.
func TestAttack_ACME_07(t *testing.T) {
	h := newHouse(t)
	c := h.member()
	url := h.url + "/acme/new-order"
	good := func() []byte { return body(sign(c.key, c.header(url), body(dnsNames("a.lab")))) }
	var wide []byte
	for _, u := range utf16.Encode([]rune("\ufeff" + string(good()))) {
		wide = append(wide, byte(u>>8), byte(u))
	}
	dup := bytes.Replace(good(), []byte(`{`), []byte(`{"payload":"e30",`), 1)
	deep := []byte(`{"protected":` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + `}`)
	for name, b := range map[string][]byte{
		"empty": nil, "null": []byte("null"), "array": []byte("[]"), "compact": []byte("a.b.c"), "duplicate": dup, "deep": deep, "utf-16": wide,
		"trailing": append(good(), []byte("{}")...), "padding": bytes.Replace(good(), []byte(`","protected"`), []byte(`==","protected"`), 1),
		"invalid utf-8": []byte("{\"protected\":\"\xff\"}"), "newline in base64": bytes.Replace(good(), []byte(`"payload":"`), []byte(`"payload":"\n`), 1),
		"jwe": []byte(`{"protected":"e30","encrypted_key":"","iv":"","ciphertext":"","tag":""}`),
	} {
		t.Run(name, func(t *testing.T) { c.send(url, b).wants(t, 400, "malformed") })
	}
	t.Run("1 MiB", func(t *testing.T) {
		c.send(url, bytes.Repeat([]byte(" "), 1<<20)).wants(t, 413, "malformed")
	})
	for _, ct := range []string{"", "application/json", "text/plain", "application/jose", "application/jose+json; charset=utf-8"} {
		t.Run("type "+ct, func(t *testing.T) {
			c.send(url, good(), func(r *http.Request) { r.Header.Set("Content-Type", ct) }).wants(t, 415, "malformed")
		})
	}
	t.Run("gzip", func(t *testing.T) {
		c.send(url, good(), func(r *http.Request) { r.Header.Set("Content-Encoding", "gzip") }).wants(t, 415, "malformed")
	})
	t.Run("duplicate in header", func(t *testing.T) {
		jws := sign(c.key, header{}, nil)
		jws["protected"] = b64([]byte(`{"alg":"ES256","alg":"none","url":"` + url + `"}`))
		c.send(url, body(jws)).wants(t, 400, "malformed")
	})
	for name, payload := range map[string]string{"duplicate": `{"identifiers":[],"identifiers":[]}`, "array": "[]", "text": `"x"`, "trailing": "{}{}", "type": `{"identifiers":5}`} {
		t.Run("payload "+name, func(t *testing.T) { c.post(url, payload).wants(t, 400, "malformed") })
	}
}

// FuzzJWS: whatever comes, the envelope is refused with a problem or taken apart.
func FuzzJWS(f *testing.F) {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	f.Add(body(sign(key, header{"alg": "ES256", "kid": "x"}, []byte("{}"))))
	f.Add([]byte(`{"protected":"e30","payload":"","signature":""}`))
	f.Add([]byte(`{"protected":"","payload":"","signature":"","signatures":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		err := acme.ParseJWS(b)
		if p, ok := err.(*acme.Problem); err != nil && (!ok || p.Detail == "" || p.Status == 0) {
			t.Fatalf("%T %v", err, err)
		}
	})
}

func FuzzJWK(f *testing.F) {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	f.Add([]byte(jwk(key.Public())))
	f.Add([]byte(`{"kty":"RSA","n":"AQAB","e":"AQAB"}`))
	f.Add([]byte(`{"kty":"OKP","crv":"Ed25519","x":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}`))
	f.Fuzz(func(t *testing.T, b []byte) { acme.ParseKey(b) })
}

// FuzzQuote: what is shown again is short, printable ASCII without markup.
func FuzzQuote(f *testing.F) {
	for _, s := range []string{"", "plain", "\x1b[31m", "<script>", "\xff\xfe", strings.Repeat("\u202e", 40), strings.Repeat(`\`, 100), "a\r\nb"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		q := strings.TrimSuffix(acme.Quote(s), "…")
		if len(q) > 64*4+2 {
			t.Errorf("%d bytes", len(q))
		}
		for _, r := range q {
			if r < ' ' || r > '~' || r == '<' || r == '>' {
				t.Errorf("%q in %q", r, q)
			}
		}
	})
}
