package web_test

import (
	"reflect"
	"strings"
	"testing"

	"chancery/audit"
	"chancery/ca"
)

// What policy or authentication refuses is counted once, by what it was and where; nothing
// that was sent is among it. Faults and mistakes of form are not counted.
func TestRefusalsAreCounted(t *testing.T) {
	f := newFixture(t)
	issue := call{method: "POST", path: certs, body: f.issueBody()}
	for _, x := range []struct {
		name string
		call call
		fail error
		want *audit.Refusal // without the client
	}{
		{"no token", call{path: certs, noToken: true}, nil, &audit.Refusal{Kind: "api:unauthorized", Detail: certs}},
		{"wrong token", call{path: certs + "/4f2a", noToken: true, header: map[string]string{"Authorization": "Bearer canary"}}, nil, &audit.Refusal{Kind: "api:unauthorized", Detail: certs + "/:serial"}},
		{"no such role", call{path: certs, header: map[string]string{"Authorization": "Bearer role:signer"}}, nil, &audit.Refusal{Kind: "api:forbidden", Detail: certs}},
		{"not for this key", call{method: "POST", path: "/api/v1/sign/cms", body: `{"sha256": "` + strings.Repeat("ab", 32) + `"}`, header: map[string]string{"Authorization": "Bearer role:signer,key=canary"}}, nil, &audit.Refusal{Kind: "api:forbidden", Detail: "/api/v1/sign/cms"}},
		{"hidden", call{path: certs + "/4f2a", header: map[string]string{"Authorization": "Bearer role:registration-officer,issuer=canary"}}, nil, nil},
		{"bad name", issue, &ca.Refusal{Code: ca.BadName, Field: "csr.subjectAltName", Detail: "canary"}, &audit.Refusal{Kind: "api:rejectedIdentifier", Detail: "csr.subjectAltName"}},
		{"bad key", issue, &ca.Refusal{Code: ca.BadPublicKey, Field: "csr.subjectPublicKeyInfo"}, &audit.Refusal{Kind: "api:badPublicKey", Detail: "csr.subjectPublicKeyInfo"}},
		{"a CA", call{method: "POST", path: certs + "/51/revoke", body: `{"reason": "keyCompromise"}`}, nil, &audit.Refusal{Kind: "api:needs-officers", Detail: certs + "/:serial/revoke"}},
		{"other key", call{method: "POST", path: "/api/v1/sign/cms", body: `{"sha256": "` + strings.Repeat("ab", 32) + `", "key": "issuing"}`}, nil, &audit.Refusal{Kind: "api:no-key", Detail: "/key"}},
		{"other site", call{method: "POST", path: certs, body: "{}", header: map[string]string{"Origin": "https://evil.example"}}, nil, &audit.Refusal{Kind: "api:cross-origin", Detail: certs}},
		{"no PEM", call{method: "POST", path: certs, body: `{"csr": "x", "profile": "tls-server"}`}, nil, nil},
		{"no issuer", issue, &ca.Refusal{Code: ca.IssuerUnavailable, Field: "issuer"}, nil},
		{"fault", issue, audit.ErrUnavailable, nil},
		{"nothing there", call{path: certs + "/00"}, nil, nil},
		{"well", call{path: certs}, nil, nil},
	} {
		f.ca.mu.Lock()
		f.ca.fail, f.ca.refused = x.fail, nil
		f.ca.mu.Unlock()
		f.do(x.call)
		var want []audit.Refusal
		if x.want != nil {
			x.want.Client = "192.0.2.1"
			want = []audit.Refusal{*x.want}
		}
		if !reflect.DeepEqual(f.ca.refused, want) {
			t.Errorf("%s: counted %+v, want %+v", x.name, f.ca.refused, want)
		}
	}
}

// The address of who asks goes with the request, and nothing in a header changes it.
func TestClientAddress(t *testing.T) {
	f := newFixture(t)
	h := map[string]string{"X-Forwarded-For": "198.51.100.9", "X-Real-Ip": "198.51.100.9", "Forwarded": "for=198.51.100.9"}
	if w := f.do(call{method: "POST", path: certs, body: f.issueBody(), header: h}); w.Code != 201 || f.ca.asked.Client != "192.0.2.1" {
		t.Errorf("%d, client %q", w.Code, f.ca.asked.Client)
	}
	if w := f.do(call{method: "POST", path: certs + "/4f2a/revoke", body: `{"reason": "superseded"}`, header: h}); w.Code != 200 || f.ca.revoked[0].Client != "192.0.2.1" {
		t.Errorf("%d %+v", w.Code, f.ca.revoked)
	}
}
