package acme

import (
	"encoding/base64"
	"encoding/json/jsontext"
	"encoding/json/v2"
	"io"
	"mime"
	"net/http"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

// maxBody bounds a request: a CSR for 100 names is below 10 KiB.
const maxBody = 64 << 10

// envelope is a JWS in flattened JSON serialization (RFC 7515 §7.2.2), taken apart
// but not yet verified.
type envelope struct {
	protected, payload, signature string // base64url
	header                        header
	content                       []byte // payload, decoded; empty: POST-as-GET (RFC 8555 §6.3)
}

// header is what RFC 8555 §6.2 wants in the protected header. Other members are
// ignored (RFC 7515 §4), but for those that would change the meaning.
type header struct {
	Alg   string         `json:"alg"`
	Nonce string         `json:"nonce"`
	URL   string         `json:"url"`
	KID   *string        `json:"kid"`
	JWK   jsontext.Value `json:"jwk"`
	Crit  jsontext.Value `json:"crit"` // RFC 7515 §4.1.11: we know no extension
	B64   jsontext.Value `json:"b64"`  // RFC 7797 §7: not in ACME
	Zip   jsontext.Value `json:"zip"`  // RFC 7516 §4.1.3: no JWE here
}

// readBody reads the JWS of a request.
func readBody(r *http.Request) ([]byte, error) {
	media, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || media != "application/jose+json" || len(params) > 0 {
		return nil, problem(http.StatusUnsupportedMediaType, Malformed, "Content-Type must be application/jose+json (RFC 8555 §6.2)")
	}
	if r.Header.Get("Content-Encoding") != "" {
		return nil, problem(http.StatusUnsupportedMediaType, Malformed, "Content-Encoding is not supported; send the JWS as it is")
	}
	large := problem(http.StatusRequestEntityTooLarge, Malformed, "the request is larger than %d bytes", maxBody)
	if r.ContentLength > maxBody {
		return nil, large
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return nil, malformed("the request's body could not be read to its end")
	}
	if len(body) > maxBody {
		return nil, large
	}
	return body, nil
}

// parseJWS takes a JWS apart, strictly: one signature, everything protected, no
// member twice, nothing behind the end.
func parseJWS(body []byte) (*envelope, error) {
	var flat struct {
		Protected  *string        `json:"protected"`
		Payload    *string        `json:"payload"`
		Signature  *string        `json:"signature"`
		Header     jsontext.Value `json:"header"`
		Signatures jsontext.Value `json:"signatures"`
	}
	if err := json.Unmarshal(body, &flat); err != nil {
		return nil, malformed("the body is no JWS in flattened JSON serialization (RFC 7515 §7.2.2): %s", jsonFault(err))
	}
	switch {
	case flat.Signatures != nil:
		return nil, malformed("a JWS must have one signature in the member signature; signatures is not allowed (RFC 8555 §6.2)")
	case flat.Header != nil:
		return nil, malformed("a JWS must have no unprotected header; put its members into protected (RFC 8555 §6.2)")
	case flat.Protected == nil || flat.Payload == nil || flat.Signature == nil:
		return nil, malformed("a JWS needs the text members protected, payload and signature")
	}
	env := &envelope{protected: *flat.Protected, payload: *flat.Payload, signature: *flat.Signature}
	protected, err := decode64("protected", env.protected)
	if err != nil {
		return nil, err
	}
	if env.content, err = decode64("payload", env.payload); err != nil {
		return nil, err
	}
	if _, err := decode64("signature", env.signature); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(protected, &env.header); err != nil {
		return nil, malformed("the protected header is no JSON object as RFC 8555 §6.2 wants it: %s", jsonFault(err))
	}
	return env, env.header.check()
}

func (h *header) check() error {
	switch {
	case !allowed(h.Alg):
		return badAlgorithm("alg %s is not accepted", quote(h.Alg))
	case h.Crit != nil:
		return malformed("crit names extensions (RFC 7515 §4.1.11); this server knows none: leave it out")
	case h.B64 != nil:
		return malformed("b64 (RFC 7797) is not allowed in ACME: leave it out")
	case h.Zip != nil:
		return malformed("zip is not allowed in a JWS: leave it out")
	case h.KID != nil && h.JWK != nil:
		return malformed("jwk and kid exclude each other (RFC 8555 §6.2)")
	case h.KID == nil && h.JWK == nil:
		return malformed("the protected header needs kid, or jwk for a new account (RFC 8555 §6.2)")
	}
	return nil
}

// verify checks the signature by the key (RFC 8555 §6.2).
func (e *envelope) verify(k *accountKey) error {
	if !k.allows(e.header.Alg) {
		return badAlgorithm("alg %s does not fit the account key; for this key use %s", e.header.Alg, strings.Join(k.algorithms(), " or "))
	}
	jws, err := jose.ParseSignedCompact(e.protected+"."+e.payload+"."+e.signature, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(e.header.Alg)})
	if err != nil {
		return malformed("the JWS cannot be read")
	}
	if _, err := jws.Verify(k.public); err != nil {
		return malformed("the signature does not verify with the key of the account; sign protected + \".\" + payload with it")
	}
	return nil
}

// object decodes the payload, which must be one JSON object.
func (e *envelope) object(v any) error {
	if len(e.content) == 0 {
		return malformed("the payload is empty, which is a POST-as-GET (RFC 8555 §6.3); this URL needs a JSON object")
	}
	if jsontext.Value(e.content).Kind() != jsontext.KindBeginObject { // null would pass for one
		return malformed("the payload must be one JSON object (RFC 8555 §6.2)")
	}
	if err := json.Unmarshal(e.content, v); err != nil {
		return malformed("the payload is not the JSON object that this URL needs: %s", jsonFault(err))
	}
	return nil
}

// decode64 decodes base64url without padding, in its one canonical form.
func decode64(member, s string) ([]byte, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || strings.ContainsAny(s, "\r\n") {
		return nil, malformed("%s must be base64url without padding (RFC 7515 §2)", member)
	}
	return b, nil
}

// jsonFault tells what is wrong without repeating the input.
func jsonFault(err error) string {
	text := err.Error()
	switch {
	case strings.Contains(text, "duplicate"):
		return "a member appears twice"
	case strings.Contains(text, "UTF-8"):
		return "it is not UTF-8"
	case strings.Contains(text, "after top-level value"):
		return "something follows its end"
	case strings.Contains(text, "cannot unmarshal"):
		return "a member has the wrong JSON type"
	case strings.Contains(text, "EOF"):
		return "it ends too early"
	}
	return "it is not valid JSON"
}
