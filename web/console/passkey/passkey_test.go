package passkey_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"slices"
	"testing"

	"github.com/go-webauthn/webauthn/protocol/webauthncbor"

	"chancery/admin"
	"chancery/web/console/passkey"
)

var (
	rp   = passkey.RP{ID: "ca.example", Origins: []string{"https://ca.example"}}
	user = passkey.User{Handle: []byte("0123456789abcdef"), Name: "ada"}
	b64  = base64.RawURLEncoding
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// made is what a browser and an authenticator say when a passkey is made.
type made struct {
	typ, origin, rp string
	challenge       []byte
	flags           byte
	curve           int
	cross           bool
}

// attest is the response to [passkey.RP.CreationOptions] of a software authenticator, and its key.
func attest(m made) (response []byte, key *ecdsa.PrivateKey) {
	key = must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	point := must(key.PublicKey.Bytes())
	cose := must(webauthncbor.Marshal(map[int]any{1: 2, 3: -7, -1: m.curve, -2: point[1:33], -3: point[33:]}))
	client := must(json.Marshal(map[string]any{"type": m.typ, "challenge": b64.EncodeToString(m.challenge), "origin": m.origin, "crossOrigin": m.cross}))
	sum := sha256.Sum256([]byte(m.rp))
	id := []byte("credential-of-16")
	data := slices.Concat(sum[:], []byte{m.flags, 0, 0, 0, 0}, make([]byte, 16), []byte{0, byte(len(id))}, id, cose)
	object := must(webauthncbor.Marshal(map[string]any{"fmt": "none", "attStmt": map[string]any{}, "authData": data}))
	return must(json.Marshal(map[string]any{"id": b64.EncodeToString(id), "rawId": b64.EncodeToString(id), "type": "public-key", "clientExtensionResults": map[string]any{},
		"response": map[string]any{"clientDataJSON": b64.EncodeToString(client), "attestationObject": b64.EncodeToString(object)}})), key
}

// A passkey comes in with its own public key, and only if it was made for this challenge, for
// this host, from our pages, with its user verified.
func TestCreated(t *testing.T) {
	challenge := make([]byte, 56)
	rand.Read(challenge)
	good := made{typ: "webauthn.create", origin: "https://ca.example", rp: "ca.example", challenge: challenge, flags: 0x45, curve: 1}
	response, _ := attest(good)
	k, err := rp.Created(user, challenge, response)
	if err != nil || k.Check() != nil || string(k.ID) != "credential-of-16" {
		t.Fatalf("%+v %v", k, err)
	}
	if got, err := passkey.Challenge(response); err != nil || string(got) != string(challenge) {
		t.Errorf("challenge %x %v", got, err)
	}
	for name, edit := range map[string]func(*made){
		"another challenge": func(m *made) { m.challenge = make([]byte, 56) },
		"another origin":    func(m *made) { m.origin = "https://evil.example" },
		"another port":      func(m *made) { m.origin = "https://ca.example:8443" },
		"another RP":        func(m *made) { m.rp = "evil.example" },
		"an assertion":      func(m *made) { m.typ = "webauthn.get" },
		"not verified":      func(m *made) { m.flags = 0x41 },
		"nobody there":      func(m *made) { m.flags = 0x44 },
		"no credential":     func(m *made) { m.flags = 0x05 },
		"another curve":     func(m *made) { m.curve = 2 },
		"framed by others":  func(m *made) { m.cross = true },
	} {
		m := good
		edit(&m)
		response, _ := attest(m)
		if k, err := rp.Created(user, challenge, response); err == nil {
			t.Errorf("%s: %+v", name, k)
		}
	}
}

// What a browser must ask for: a passkey that stays in the authenticator, with its user
// verified, without attestation, and none that is there already.
func TestCreationOptions(t *testing.T) {
	b, err := rp.CreationOptions(user, [][]byte{[]byte("have")}, []byte("0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	var o struct {
		Attestation            string
		AuthenticatorSelection struct{ ResidentKey, UserVerification string }
		ExcludeCredentials     []struct{ ID string }
		Challenge              string
		RP                     struct{ ID string }
	}
	if err := json.Unmarshal(b, &o); err != nil || o.Attestation != "none" && o.Attestation != "" || o.AuthenticatorSelection.ResidentKey != "required" || o.AuthenticatorSelection.UserVerification != "required" ||
		len(o.ExcludeCredentials) != 1 || o.ExcludeCredentials[0].ID != b64.EncodeToString([]byte("have")) || o.Challenge != b64.EncodeToString([]byte("0123456789abcdef")) || o.RP.ID != "ca.example" {
		t.Errorf("%s %v", b, err)
	}
}

// Whatever a browser sends is taken apart or refused, and nobody is signed in by it.
func FuzzResponse(f *testing.F) {
	response, _ := attest(made{typ: "webauthn.create", origin: "https://ca.example", rp: "ca.example", challenge: make([]byte, 56), flags: 0x45, curve: 1})
	f.Add(response)
	f.Add([]byte(`{"id":"AA","rawId":"AA","type":"public-key","response":{"clientDataJSON":"e30","authenticatorData":"AA","signature":"AA","userHandle":"AA"}}`))
	f.Add([]byte(`{"response":{"clientDataJSON":"e30"}}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, response []byte) {
		passkey.Challenge(response)
		if id, a, err := passkey.Vote(response); err == nil && (len(id) == 0 || len(a.Encode()) == 0) {
			t.Error("a vote without a credential")
		}
		rp.Created(user, make([]byte, 56), response)
		_, err := rp.Signed(make([]byte, 56), response, func([]byte) (passkey.User, admin.Passkey, bool) { return passkey.User{}, admin.Passkey{}, false })
		if err == nil {
			t.Error("nobody signed in")
		}
	})
}
