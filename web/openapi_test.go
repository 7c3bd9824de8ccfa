package web_test

import (
	"context"
	"encoding/json/v2"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"

	"chancery/admin"
	"chancery/audit"
	"chancery/ca"
	"chancery/hsmstore"
	"chancery/web"
)

func loadOpenAPI(t *testing.T) *openapi3.T {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromFile("openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(context.Background()); err != nil {
		t.Fatal(err)
	}
	return doc
}

func TestOpenAPIDescribesExactlyTheRoutes(t *testing.T) {
	doc := loadOpenAPI(t)
	described := map[string]bool{}
	secured, permission := map[string]bool{}, map[string]string{}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			key := method + " " + path
			described[key] = true
			secured[key] = op.Security != nil && len(*op.Security) > 0
			permission[key], _ = op.Extensions["x-permission"].(string)
		}
	}
	for _, r := range newFixture(t).Routes() {
		methods := []string{r.Method}
		if r.Method == "*" {
			methods = []string{"GET", "POST"}
		}
		for _, m := range methods {
			key := m + " " + r.Path
			if !described[key] {
				t.Errorf("openapi.yaml lacks %s", key)
			}
			if !r.Public && permission[key] != string(r.Permission) {
				t.Errorf("%s: openapi.yaml says that it needs %q, the table %q", key, permission[key], r.Permission)
			}
			if secured[key] == r.Public {
				t.Errorf("%s: openapi.yaml says admin token %v, the table says public %v", key, secured[key], r.Public)
			}
			delete(described, key)
		}
	}
	for key := range described {
		t.Errorf("openapi.yaml describes %s, which does not exist", key)
	}
}

func TestEveryRouteIsServedWhereTheTableSays(t *testing.T) {
	f := newFixture(t)
	fill := strings.NewReplacer("/members/{name}", "/members/alpha", "{serial}", f.leaf, "{issuer}", "issuing", "{slug}", "bad-csr", "/tile/{path}", "/tile/0/000", "{path}", "directory", "{index}", "7", "{id}", approvalID, "{name}", "issuing")
	for _, r := range f.Routes() {
		for _, plain := range []bool{false, true} {
			here := r.HTTPS && !plain || r.HTTP && plain
			m := strings.Replace(r.Method, "*", "GET", 1)
			w := f.do(call{method: m, path: fill.Replace(r.Path), plain: plain, body: map[string]string{"POST": "{}"}[m]})
			if served := w.Code != 404; served != here {
				t.Errorf("%s %s, plain %v: status %d, want served %v", m, r.Path, plain, w.Code, here)
			}
		}
	}
}

// checker validates answers against the description.
type checker struct {
	t      *testing.T
	router routers.Router
	seen   map[string]bool
}

func newChecker(t *testing.T) *checker {
	t.Helper()
	for _, ct := range []string{"application/pkix-crl", "application/pkix-cert", "application/x-pem-file", "text/html", "text/css"} {
		openapi3filter.RegisterBodyDecoder(ct, func(r io.Reader, _ http.Header, _ *openapi3.SchemaRef, _ openapi3filter.EncodingFn) (any, error) {
			b, err := io.ReadAll(r)
			return string(b), err
		})
	}
	router, err := gorillamux.NewRouter(loadOpenAPI(t))
	if err != nil {
		t.Fatal(err)
	}
	return &checker{t: t, router: router, seen: map[string]bool{}}
}

func (k *checker) check(r *http.Request, w *httptest.ResponseRecorder) {
	k.t.Helper()
	route, params, err := k.router.FindRoute(r)
	if err != nil {
		k.t.Errorf("%s %s: %v", r.Method, r.URL.Path, err)
		return
	}
	in := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{Request: r, PathParams: params, Route: route},
		Status:                 w.Code, Header: w.Header(), Options: &openapi3filter.Options{IncludeResponseStatus: true},
	}
	in.SetBodyBytes(w.Body.Bytes())
	if err := openapi3filter.ValidateResponse(context.Background(), in); err != nil {
		k.t.Errorf("%s %s answers %d against its description: %v", r.Method, r.URL.Path, w.Code, err)
	}
	k.seen[r.Method+" "+route.Path] = true
}

func TestAnswersMatchOpenAPI(t *testing.T) {
	k := newChecker(t)
	f := newFixture(t)
	post, certs := "POST", "/api/v1/certificates"
	ok := f.issueBody()
	revoke := `{"reason": "keyCompromise"}`
	const approvals = "/api/v1/approvals"
	const keyBody = `{"name": "k1", "purpose": "code", "algorithm": "P-256", "members": ["alpha"]}`
	const voteBody = `{"officer": "ada", "decision": "approve", "signature": "MAA="}`
	cases := []struct {
		name   string
		call   call
		fail   error
		status int
		slug   string
	}{
		{"issue", call{method: post, path: certs, body: ok}, nil, 201, ""},
		{"issue without token", call{method: post, path: certs, body: ok, noToken: true}, nil, 401, "unauthorized"},
		{"issue from elsewhere", call{method: post, path: certs, body: ok, header: map[string]string{"Origin": "https://evil.example"}}, nil, 403, "cross-origin"},
		{"issue text", call{method: post, path: certs, body: ok, header: map[string]string{"Content-Type": "text/plain"}}, nil, 415, "unsupported-media-type"},
		{"issue too much", call{method: post, path: certs, body: `{"csr": "` + strings.Repeat("x", 70000)}, nil, 413, "too-large"},
		{"issue nonsense", call{method: post, path: certs, body: `{"csr": "x", "profile": "tls-server"}`}, nil, 400, "bad-csr"},
		{"issue other profile", call{method: post, path: certs, body: strings.Replace(ok, "tls-server", "root", 1)}, nil, 400, "bad-profile"},
		{"issue without HSM", call{method: post, path: certs, body: ok}, hsmstore.ErrUnavailable, 503, "unavailable"},
		{"issue without ledger", call{method: post, path: certs, body: ok}, audit.ErrBusy, 503, "busy"},
		{"issue with a defect", call{method: post, path: certs, body: ok}, errors.New("pq: password secret"), 500, "internal"},
		{"list", call{path: certs}, nil, 200, ""},
		{"list page", call{path: certs + "?limit=2&name=example"}, nil, 200, ""},
		{"list too many", call{path: certs + "?limit=501"}, nil, 400, "bad-parameter"},
		{"list while the database is away", call{path: certs}, errors.New("disk I/O error"), 500, "internal"},
		{"show", call{path: certs + "/4f2a"}, nil, 200, ""},
		{"show none", call{path: certs + "/4f2aff"}, nil, 404, "not-found"},
		{"revoke", call{method: post, path: certs + "/4f2a/revoke", body: revoke}, nil, 200, ""},
		{"revoke again", call{method: post, path: certs + "/4f2a/revoke", body: `{"reason": "superseded"}`}, nil, 200, ""},
		{"revoke a CA", call{method: post, path: certs + "/51/revoke", body: revoke}, nil, 403, "needs-officers"},
		{"revoke none", call{method: post, path: certs + "/00/revoke", body: revoke}, nil, 404, "not-found"},
		{"revoke a predecessor's", call{method: post, path: certs + "/00/revoke", body: `{"reason": "superseded", "certificate": "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"}`}, nil, 404, "not-found"},
		{"revoke a predecessor's by itself", call{method: post, path: certs + "/77/revoke", body: string(must(json.Marshal(map[string]string{"reason": "superseded", "certificate": pemOf("CERTIFICATE", pki().old)})))}, nil, 202, ""},
		{"revoke what is no PEM", call{method: post, path: certs + "/00/revoke", body: `{"reason": "superseded", "certificate": "x"}`}, nil, 400, "bad-parameter"},
		{"revoke for fun", call{method: post, path: certs + "/4f2b/revoke", body: `{"reason": "fun"}`}, nil, 400, "bad-revocation-reason"},
		{"revoke without ledger", call{method: post, path: certs + "/4f2b/revoke", body: revoke}, audit.ErrUnavailable, 503, "unavailable"},
		{"show revoked", call{path: certs + "/4f2a"}, nil, 200, ""},
		{"proof", call{path: certs + "/4f2a/proof", noToken: true}, nil, 200, ""},
		{"proof too early", call{path: certs + "/4f2b/proof", noToken: true}, nil, 503, "proof-pending"},
		{"proof of none", call{path: certs + "/00/proof", noToken: true}, nil, 404, "not-found"},
		{"sign", call{method: post, path: "/api/v1/sign/cms", body: `{"sha256": "` + strings.Repeat("ab", 32) + `"}`}, nil, 201, ""},
		{"sign with key", call{method: post, path: "/api/v1/sign/cms", body: `{"sha256": "` + strings.Repeat("AB", 32) + `", "key": "document"}`}, nil, 201, ""},
		{"sign SHA-1", call{method: post, path: "/api/v1/sign/cms", body: `{"sha256": "` + strings.Repeat("ab", 20) + `"}`}, nil, 400, "bad-digest"},
		{"sign with an issuer's key", call{method: post, path: "/api/v1/sign/cms", body: `{"sha256": "` + strings.Repeat("ab", 32) + `", "key": "issuing"}`}, nil, 404, "not-found"},
		{"sign a whole document", call{method: post, path: "/api/v1/sign/cms", body: `{"document": "x"}`}, nil, 400, "bad-json"},
		{"sign without token", call{method: post, path: "/api/v1/sign/cms", body: `{}`, noToken: true}, nil, 401, "unauthorized"},
		{"sign without HSM", call{method: post, path: "/api/v1/sign/cms", body: `{"sha256": "` + strings.Repeat("ab", 32) + `"}`}, hsmstore.ErrUnavailable, 503, "unavailable"},
		{"erase an entry", call{method: post, path: "/api/v1/ledger/erase", body: `{"entry": 0, "reason": "asked for"}`}, nil, 200, ""},
		{"erase a value", call{method: post, path: "/api/v1/ledger/erase", body: `{"value": "192.0.2.7", "reason": "asked for"}`}, nil, 200, ""},
		{"erase what is not there", call{method: post, path: "/api/v1/ledger/erase", body: `{"entry": 9, "reason": "nothing there"}`}, nil, 404, "not-found"},
		{"erase nothing", call{method: post, path: "/api/v1/ledger/erase", body: `{"reason": "asked for"}`}, nil, 400, "bad-parameter"},
		{"erase both", call{method: post, path: "/api/v1/ledger/erase", body: `{"entry": 1, "value": "x", "reason": "asked for"}`}, nil, 400, "bad-parameter"},
		{"erase an odd entry", call{method: post, path: "/api/v1/ledger/erase", body: `{"entry": "1", "reason": "asked for"}`}, nil, 400, "bad-json"},
		{"erase for no reason", call{method: post, path: "/api/v1/ledger/erase", body: `{"entry": 1}`}, nil, 400, "bad-parameter"},
		{"erase and say it again", call{method: post, path: "/api/v1/ledger/erase", body: `{"value": "Jane Roe", "reason": "Jane Roe wrote"}`}, nil, 400, "bad-parameter"},
		{"erase and say it again in small letters", call{method: post, path: "/api/v1/ledger/erase", body: `{"value": "Jane Roe", "reason": "jane roe wrote"}`}, nil, 400, "bad-parameter"},
		{"erase too long a value", call{method: post, path: "/api/v1/ledger/erase", body: `{"value": "` + strings.Repeat("x", 2000) + `", "reason": "asked for"}`}, nil, 400, "bad-parameter"},
		{"erase without ledger", call{method: post, path: "/api/v1/ledger/erase", body: `{"entry": 1, "reason": "asked for"}`}, audit.ErrUnavailable, 503, "unavailable"},
		{"erase without token", call{method: post, path: "/api/v1/ledger/erase", body: `{}`, noToken: true}, nil, 401, "unauthorized"},
		{"key", call{method: post, path: "/api/v1/keys", body: keyBody}, nil, 202, ""},
		{"key for an issuer", call{method: post, path: "/api/v1/keys", body: strings.Replace(keyBody, "code", "issuer", 1)}, nil, 400, "bad-proposal"},
		{"key with a flag", call{method: post, path: "/api/v1/keys", body: `{"name": "k", "approved": true}`}, nil, 400, "bad-json"},
		{"key on one text", call{method: post, path: "/api/v1/keys", body: `{"name": "k", "members": "alpha"}`}, nil, 400, "bad-json"},
		{"key without ledger", call{method: post, path: "/api/v1/keys", body: keyBody}, audit.ErrUnavailable, 503, "unavailable"},
		{"key without token", call{method: post, path: "/api/v1/keys", body: keyBody, noToken: true}, nil, 401, "unauthorized"},
		{"members", call{path: "/api/v1/hsm/members"}, nil, 200, ""},
		{"one member", call{path: "/api/v1/hsm/members/alpha"}, nil, 200, ""},
		{"no member", call{path: "/api/v1/hsm/members/other"}, nil, 404, "not-found"},
		{"members without token", call{path: "/api/v1/hsm/members", noToken: true}, nil, 401, "unauthorized"},
		{"drain", call{method: post, path: "/api/v1/hsm/members/alpha/drain", body: `{"reason": "maintenance", "force": true}`}, nil, 200, ""},
		{"drain the last", call{method: post, path: "/api/v1/hsm/members/alpha/drain", body: `{}`}, hsmstore.ErrStanding, 409, "hsm-conflict"},
		{"drain by wish", call{method: post, path: "/api/v1/hsm/members/alpha/drain", body: `{"why": ""}`}, nil, 400, "bad-json"},
		{"fence", call{method: post, path: "/api/v1/hsm/members/alpha/fence", body: `{"reason": "odd"}`}, nil, 200, ""},
		{"fence nobody", call{method: post, path: "/api/v1/hsm/members/beta/fence", body: `{}`}, hsmstore.ErrNoMember, 404, "not-found"},
		{"admit", call{method: post, path: "/api/v1/hsm/members/alpha/admit", body: `{}`}, nil, 200, ""},
		{"admit with a wrong PIN", call{method: post, path: "/api/v1/hsm/members/alpha/admit", body: `{}`}, hsmstore.ErrPIN, 409, "hsm-fault"},
		{"candidate", call{path: "/api/v1/hsm/candidates/gamma"}, nil, 200, ""},
		{"candidate without a token", call{path: "/api/v1/hsm/candidates/gamma"}, hsmstore.ErrToken, 409, "hsm-fault"},
		{"backups", call{path: "/api/v1/hsm/backups"}, nil, 200, ""},
		{"backup candidate", call{path: "/api/v1/hsm/backup-candidates/far"}, nil, 200, ""},
		{"backup candidate not configured", call{path: "/api/v1/hsm/backup-candidates/far"}, hsmstore.ErrNoRecipient, 404, "not-found"},
		{"manifest", call{method: post, path: "/api/v1/hsm/backups/far/manifest", body: `{}`}, nil, 200, ""},
		{"verify a backup", call{method: post, path: "/api/v1/hsm/backups/far/verify", body: `{}`}, nil, 200, ""},
		{"verify", call{method: post, path: "/api/v1/hsm/verify", body: `{}`}, nil, 200, ""},
		{"ceremonies", call{path: "/api/v1/hsm/ceremonies"}, nil, 200, ""},
		{"share", call{method: post, path: "/api/v1/hsm/ceremonies/x/shares", body: `{"officer": "ada", "set": "y", "box": "MAA="}`}, nil, 200, ""},
		{"wrong share", call{method: post, path: "/api/v1/hsm/ceremonies/x/shares", body: `{"officer": "ada", "set": "y", "box": "MAA="}`}, hsmstore.ErrRefused, 409, "hsm-conflict"},
		{"keys", call{path: "/api/v1/keys"}, nil, 200, ""},
		{"one key", call{path: "/api/v1/keys/issuing"}, nil, 200, ""},
		{"no key", call{path: "/api/v1/keys/other"}, nil, 404, "not-found"},
		{"inspect", call{method: post, path: "/api/v1/keys/inspect", body: `{"member": "alpha", "label": "old"}`}, nil, 200, ""},
		{"inspect no hex", call{method: post, path: "/api/v1/keys/inspect", body: `{"member": "alpha", "cka_id": "zz"}`}, nil, 400, "bad-proposal"},
		{"inspect nothing", call{method: post, path: "/api/v1/keys/inspect", body: `{"member": "alpha"}`}, nil, 400, "bad-proposal"},
		{"inspect nowhere", call{method: post, path: "/api/v1/keys/inspect", body: `{"member": "other", "label": "old"}`}, nil, 400, "bad-proposal"},
		{"inspect what is not there", call{method: post, path: "/api/v1/keys/inspect", body: `{"member": "alpha", "label": "old"}`}, hsmstore.ErrNoKey, 404, "not-found"},
		{"inspect two", call{method: post, path: "/api/v1/keys/inspect", body: `{"member": "alpha", "label": "old"}`}, errors.New("two keys fit"), 409, "hsm-conflict"},
		{"import", call{method: post, path: "/api/v1/keys/import-sessions", body: `{"member": "alpha"}`}, nil, 200, ""},
		{"import nowhere", call{method: post, path: "/api/v1/keys/import-sessions", body: `{"member": "other"}`}, nil, 400, "bad-proposal"},
		{"import on one that is down", call{method: post, path: "/api/v1/keys/import-sessions", body: `{"member": "alpha"}`}, hsmstore.ErrUnavailable, 409, "hsm-conflict"},
		{"second import", call{method: post, path: "/api/v1/keys/import-sessions", body: `{"member": "alpha"}`}, hsmstore.ErrBusy, 503, "busy"},
		{"disable", call{method: post, path: "/api/v1/keys/issuing/disable", body: `{"reason": "lost trust"}`}, nil, 200, ""},
		{"disable none", call{method: post, path: "/api/v1/keys/other/disable", body: `{}`}, hsmstore.ErrNoKey, 404, "not-found"},
		{"disable twice", call{method: post, path: "/api/v1/keys/issuing/disable", body: `{}`}, hsmstore.ErrNoKey, 409, "hsm-conflict"},
		{"disable what lives", call{method: post, path: "/api/v1/keys/issuing/disable", body: `{}`}, errors.New("key is for checkpoint"), 409, "hsm-conflict"},
		{"disable without ledger", call{method: post, path: "/api/v1/keys/issuing/disable", body: `{}`}, audit.ErrUnavailable, 503, "unavailable"},
		{"enable", call{method: post, path: "/api/v1/keys/issuing/enable", body: `{}`}, nil, 200, ""},
		{"describe", call{method: post, path: "/api/v1/keys/issuing/describe", body: `{"reason": "for the shop"}`}, nil, 200, ""},
		{"propose", call{method: post, path: approvals, body: `{"action": "generate-key", "parameters": ` + keyBody + `}`}, nil, 202, ""},
		{"propose nonsense", call{method: post, path: approvals, body: `{"action": 7}`}, nil, 400, "bad-json"},
		{"propose without token", call{method: post, path: approvals, body: `{}`, noToken: true}, nil, 401, "unauthorized"},
		{"officers", call{path: "/api/v1/officers"}, nil, 200, ""},
		{"officers without token", call{path: "/api/v1/officers", noToken: true}, nil, 401, "unauthorized"},
		{"invite", call{method: post, path: "/api/v1/enrolments", body: `{"name": "dan", "roles": ["crypto-officer"], "lifetime": 3600}`}, nil, 201, ""},
		{"invite with an odd role", call{method: post, path: "/api/v1/enrolments", body: `{"name": "dan", "roles": ["god"]}`}, nil, 400, "bad-proposal"},
		{"invite for ever", call{method: post, path: "/api/v1/enrolments", body: `{"name": "dan", "lifetime": 99999999999}`}, nil, 400, "bad-proposal"},
		{"enrolment", call{path: "/api/v1/enrolments/" + approvalID}, nil, 200, ""},
		{"no enrolment", call{path: "/api/v1/enrolments/00"}, nil, 404, "not-found"},
		{"withdraw", call{method: post, path: "/api/v1/enrolments/" + approvalID + "/withdraw", body: `{}`}, nil, 200, ""},
		{"whoami", call{path: "/api/v1/whoami"}, nil, 200, ""},
		{"machines", call{path: "/api/v1/machines"}, nil, 200, ""},
		{"machines by a signer", call{path: "/api/v1/machines", header: map[string]string{"Authorization": "Bearer role:signer"}}, nil, 403, "forbidden"},
		{"a token", call{method: post, path: "/api/v1/machines", body: `{"name": "ci", "roles": ["signer,key=release"], "lifetime": 3600}`}, nil, 201, ""},
		{"a token that may not be given", call{method: post, path: "/api/v1/machines", body: `{"name": "ci", "roles": ["crypto-officer"], "lifetime": 3600}`}, &admin.Refusal{Code: admin.NotAllowed, Field: "roles", Detail: "not by you"}, 403, "forbidden"},
		{"a certificate that is none", call{method: post, path: "/api/v1/machines", body: `{"name": "ci", "roles": ["signer"], "lifetime": 3600, "certificate": "-"}`}, nil, 400, "bad-parameter"},
		{"end of a token", call{method: post, path: "/api/v1/machines/" + approvalID + "/revoke", body: `{"reason": "lost"}`}, nil, 200, ""},
		{"end of no token", call{method: post, path: "/api/v1/machines/00/revoke", body: `{"reason": "lost"}`}, nil, 404, "not-found"},
		{"approvals", call{path: approvals}, nil, 200, ""},
		{"approvals pending", call{path: approvals + "?state=pending"}, nil, 200, ""},
		{"approvals in no state", call{path: approvals + "?state=wild"}, nil, 400, "bad-proposal"},
		{"approvals by name", call{path: approvals + "?name=x"}, nil, 400, "bad-parameter"},
		{"approvals without token", call{path: approvals, noToken: true}, nil, 401, "unauthorized"},
		{"approval", call{path: approvals + "/" + approvalID}, nil, 200, ""},
		{"no approval", call{path: approvals + "/00"}, nil, 404, "not-found"},
		{"vote", call{method: post, path: approvals + "/" + approvalID + "/votes", body: voteBody}, nil, 200, ""},
		{"vote of nobody", call{method: post, path: approvals + "/" + approvalID + "/votes", body: strings.Replace(voteBody, "ada", "eve", 1)}, nil, 403, "vote-refused"},
		{"vote perhaps", call{method: post, path: approvals + "/" + approvalID + "/votes", body: strings.Replace(voteBody, "approve", "perhaps", 1)}, nil, 400, "bad-proposal"},
		{"vote in no base64", call{method: post, path: approvals + "/" + approvalID + "/votes", body: strings.Replace(voteBody, "MAA=", "?", 1)}, nil, 400, "bad-json"},
		{"vote on none", call{method: post, path: approvals + "/00/votes", body: voteBody}, nil, 404, "not-found"},
		{"vote without token", call{method: post, path: approvals + "/" + approvalID + "/votes", body: voteBody, noToken: true}, nil, 401, "unauthorized"},
		{"vote without ledger", call{method: post, path: approvals + "/" + approvalID + "/votes", body: voteBody}, audit.ErrBusy, 503, "busy"},
		{"cancel", call{method: post, path: approvals + "/" + approvalID + "/cancel"}, nil, 200, ""},
		{"cancel none", call{method: post, path: approvals + "/00/cancel"}, nil, 404, "not-found"},
		{"cancel too late", call{method: post, path: approvals + "/" + approvalID + "/cancel"}, &admin.Refusal{Code: admin.Closed, Detail: "the proposal is done"}, 409, "approval-closed"},
		{"leaf proof", call{path: "/ledger/proof/7"}, nil, 200, ""},
		{"leaf proof too early", call{path: "/ledger/proof/31"}, nil, 503, "proof-pending"},
		{"leaf proof beyond", call{path: "/ledger/proof/99"}, nil, 404, "not-found"},
		{"leaf proof of nonsense", call{path: "/ledger/proof/07"}, nil, 404, "not-found"},
		{"leaf proof without token", call{path: "/ledger/proof/7", noToken: true}, nil, 401, "unauthorized"},
		{"no tile", call{path: "/ledger/tile/x"}, nil, 404, "not-found"},
		{"tile without token", call{path: "/ledger/tile/x", noToken: true}, nil, 401, "unauthorized"},
		{"openapi", call{path: "/api/v1/openapi.yaml", noToken: true}, nil, 200, ""},
		{"checkpoint", call{path: "/ledger/checkpoint", noToken: true}, nil, 200, ""},
		{"healthz", call{path: "/healthz", noToken: true}, nil, 200, ""},
		{"readyz", call{path: "/readyz", noToken: true}, nil, 200, ""},
		{"roots", call{path: "/roots.pem", plain: true}, nil, 200, ""},
		{"crl", call{path: "/crl/issuing.crl", plain: true}, nil, 200, ""},
		{"no crl", call{path: "/crl/other.crl", plain: true}, nil, 404, "not-found"},
		{"issuer", call{path: "/ca/issuing.cer", plain: true}, nil, 200, ""},
		{"no issuer", call{path: "/ca/other.cer", plain: true}, nil, 404, "not-found"},
		{"landing", call{path: "/", noToken: true}, nil, 200, ""},
		{"problems", call{path: "/problems", noToken: true}, nil, 200, ""},
		{"problem", call{path: "/problems/bad-csr", noToken: true}, nil, 200, ""},
		{"no problem", call{path: "/problems/luck", noToken: true}, nil, 404, "not-found"},
		{"css", call{path: "/static/chancery.css", noToken: true}, nil, 200, ""},
		{"console", call{path: "/console/directory", noToken: true}, nil, 200, ""},
		{"console form", call{method: post, path: "/console/login", body: "a=b", noToken: true}, nil, 200, ""},
		{"acme", call{path: "/acme/directory", noToken: true}, nil, 200, ""},
		{"acme post", call{method: post, path: "/acme/new-order", body: "{}", noToken: true}, nil, 200, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			k.t = t
			f.ca.fail = c.fail
			w, r := f.roundTrip(c.call)
			if c.slug != "" {
				wantProblem(t, w, c.status, c.slug)
			} else if w.Code != c.status {
				t.Errorf("status %d, want %d: %s", w.Code, c.status, w.Body)
			}
			k.check(r, w)
		})
	}
	for _, r := range f.Routes() {
		if m := strings.Replace(r.Method, "*", "GET", 1); !k.seen[m+" "+r.Path] {
			t.Errorf("no case for %s %s", m, r.Path)
		}
	}
}

// Every error that a lower floor may return has a line in the table, so that none of
// them ends as 500; and every type that an answer names has its help page.
func TestEveryErrorHasItsProblem(t *testing.T) {
	wrap := func(err error) error { return errors.Join(errors.New("path /var/lib/secret"), err) }
	f := newFixture(t)
	for _, err := range []error{audit.ErrUnavailable, audit.ErrBusy, audit.ErrTampered, hsmstore.ErrUnavailable, hsmstore.ErrBusy, hsmstore.ErrPIN,
		hsmstore.ErrModule, hsmstore.ErrToken, hsmstore.ErrNoKey, hsmstore.ErrClosed, context.DeadlineExceeded, context.Canceled} {
		f.ca.fail = wrap(err)
		w := f.do(call{method: "POST", path: "/api/v1/certificates", body: f.issueBody()})
		if w.Code != 503 || w.Header().Get("Retry-After") == "" || strings.Contains(w.Body.String(), "secret") {
			t.Errorf("%v: %d %s", err, w.Code, w.Body)
		}
	}
	status := map[ca.Code]int{ca.BadCSR: 400, ca.BadPublicKey: 400, ca.BadName: 400, ca.BadProfile: 400, ca.BadReason: 400, ca.AlreadyRevoked: 409,
		ca.NotFound: 404, ca.IssuerUnavailable: 503, ca.Code("new one"): 400}
	for _, code := range slices.Sorted(maps.Keys(status)) {
		f.ca.fail = &ca.Refusal{Code: code, Field: "csr.subjectAltName", Detail: "the detail"}
		w := f.do(call{method: "POST", path: "/api/v1/certificates", body: f.issueBody()})
		m := decode(t, w)
		if w.Code != status[code] || m["field"] != "/csr" || m["detail"] != "csr.subjectAltName: the detail" {
			t.Errorf("%s: %d %s", code, w.Code, w.Body)
		}
		page := f.do(call{path: strings.TrimPrefix(m["type"].(string), publicURL), noToken: true})
		if page.Code != 200 || !strings.Contains(page.Body.String(), "<h1>") {
			t.Errorf("%s has no help page: %d", m["type"], page.Code)
		}
	}
}

func TestOpenAPIIsServedAsItIs(t *testing.T) {
	want, err := os.ReadFile("openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	w := newFixture(t).do(call{path: "/api/v1/openapi.yaml", noToken: true})
	if w.Body.String() != string(want) || w.Header().Get("Content-Type") != "application/yaml" {
		t.Errorf("%s, %d octets", w.Header().Get("Content-Type"), w.Body.Len())
	}
}

func TestNewRefusesHalfAConfig(t *testing.T) {
	good := newFixture(t).cfg
	for name, edit := range map[string]func(*web.Config){
		"no CA":         func(c *web.Config) { c.CA = nil },
		"no ACME":       func(c *web.Config) { c.ACME = nil },
		"no token":      func(c *web.Config) { c.AdminToken = nil },
		"no readiness":  func(c *web.Config) { c.Ready = nil },
		"plain public":  func(c *web.Config) { c.PublicURL = "http://ca.example" },
		"path":          func(c *web.Config) { c.PublicURL = "https://ca.example/pki" },
		"no host":       func(c *web.Config) { c.PublicURL = "https://:8443" },
		"user":          func(c *web.Config) { c.PublicURL = "https://u@ca.example" },
		"secure http":   func(c *web.Config) { c.PublicHTTPURL = "https://ca.example" },
		"no public URL": func(c *web.Config) { c.PublicHTTPURL = "" },
	} {
		c := good
		edit(&c)
		if _, err := web.New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
