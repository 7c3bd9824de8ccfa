package web

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/labstack/echo/v4"

	"chancery/templates"
)

// door is one of the two listeners, or both.
type door int

const (
	doorHTTPS door = 1 << iota
	doorHTTP
)

func (d door) String() string {
	if d == doorHTTPS {
		return "https"
	}
	return "http"
}

// access says who may use a route. The zero value is nobody's: a route must say.
type access int

const (
	public      access = iota + 1
	tokenHolder        // holder of the admin token
)

// anyMethod marks a route whose handler looks at the method itself.
const anyMethod = "*"

// route is one line of the table. Paths are written as in OpenAPI.
type route struct {
	method, path string
	doors        door
	access       access
	handle       echo.HandlerFunc
}

// routes is the whole table; openapi.yaml describes the same routes.
func (s *Server) routes() []route {
	pages := doorHTTPS
	if s.cfg.Dev {
		pages |= doorHTTP
	}
	const get, post = http.MethodGet, http.MethodPost
	return []route{
		{anyMethod, "/acme/{path}", doorHTTPS, public, echo.WrapHandler(s.cfg.ACME)},
		{anyMethod, "/console/{path}", pages, public, echo.WrapHandler(s.cfg.Console)},

		{post, "/api/v1/certificates", doorHTTPS, tokenHolder, s.issue},
		{get, "/api/v1/certificates", doorHTTPS, tokenHolder, s.list},
		{get, "/api/v1/certificates/{serial}", doorHTTPS, tokenHolder, s.show},
		{post, "/api/v1/certificates/{serial}/revoke", doorHTTPS, tokenHolder, s.revoke},
		{get, "/api/v1/certificates/{serial}/proof", doorHTTPS, public, s.proof},
		{post, "/api/v1/sign/cms", doorHTTPS, tokenHolder, s.signCMS},
		{get, "/api/v1/hsm/members", doorHTTPS, tokenHolder, s.listMembers},
		{get, "/api/v1/hsm/members/{name}", doorHTTPS, tokenHolder, s.showMember},
		{post, "/api/v1/hsm/members/{name}/drain", doorHTTPS, tokenHolder, s.drainMember},
		{post, "/api/v1/hsm/members/{name}/fence", doorHTTPS, tokenHolder, s.withReason(s.cfg.HSM.Fence)},
		{post, "/api/v1/hsm/members/{name}/admit", doorHTTPS, tokenHolder, s.withReason(s.cfg.HSM.Admit)},
		{get, "/api/v1/hsm/candidates/{name}", doorHTTPS, tokenHolder, s.candidate},
		{get, "/api/v1/hsm/backups", doorHTTPS, tokenHolder, s.listBackups},
		{get, "/api/v1/hsm/backup-candidates/{name}", doorHTTPS, tokenHolder, s.backupCandidate},
		{post, "/api/v1/hsm/backups/{name}/manifest", doorHTTPS, tokenHolder, s.makeManifest},
		{post, "/api/v1/hsm/backups/{name}/verify", doorHTTPS, tokenHolder, s.verifyBackup},
		{post, "/api/v1/hsm/verify", doorHTTPS, tokenHolder, s.verifyKeys},
		{get, "/api/v1/hsm/ceremonies", doorHTTPS, tokenHolder, s.ceremonies},
		{post, "/api/v1/hsm/ceremonies/{id}/shares", doorHTTPS, tokenHolder, s.giveShare},
		{get, "/api/v1/keys", doorHTTPS, tokenHolder, s.listKeys},
		{post, "/api/v1/keys", doorHTTPS, tokenHolder, s.proposeKey},
		{post, "/api/v1/keys/inspect", doorHTTPS, tokenHolder, s.inspectKey},
		{post, "/api/v1/keys/import-sessions", doorHTTPS, tokenHolder, s.openImport},
		{get, "/api/v1/keys/{name}", doorHTTPS, tokenHolder, s.showKey},
		{post, "/api/v1/keys/{name}/disable", doorHTTPS, tokenHolder, s.onKey(s.cfg.HSM.Disable)},
		{post, "/api/v1/keys/{name}/enable", doorHTTPS, tokenHolder, s.onKey(s.cfg.HSM.Enable)},
		{post, "/api/v1/keys/{name}/describe", doorHTTPS, tokenHolder, s.onKey(s.cfg.HSM.Describe)},
		{get, "/api/v1/approvals", doorHTTPS, tokenHolder, s.approvals},
		{post, "/api/v1/approvals", doorHTTPS, tokenHolder, s.proposeAction},
		{get, "/api/v1/approvals/{id}", doorHTTPS, tokenHolder, s.approval},
		{post, "/api/v1/approvals/{id}/votes", doorHTTPS, tokenHolder, s.vote},
		{post, "/api/v1/approvals/{id}/cancel", doorHTTPS, tokenHolder, s.cancelApproval},
		{get, "/api/v1/officers", doorHTTPS, tokenHolder, s.officers},
		{post, "/api/v1/enrolments", doorHTTPS, tokenHolder, s.invite},
		{get, "/api/v1/enrolments/{id}", doorHTTPS, tokenHolder, s.enrolmentByID},
		{post, "/api/v1/enrolments/{id}/withdraw", doorHTTPS, tokenHolder, s.withdrawEnrolment},
		{post, "/api/v1/ledger/erase", doorHTTPS, tokenHolder, s.erase},
		{get, "/api/v1/openapi.yaml", doorHTTPS, public, s.openAPI},

		{get, "/ledger/checkpoint", doorHTTPS, public, s.checkpoint},
		{get, "/ledger/tile/{path}", doorHTTPS, tokenHolder, s.tile},
		{get, "/ledger/proof/{index}", doorHTTPS, tokenHolder, s.leafProof},
		{get, "/healthz", doorHTTPS | doorHTTP, public, s.healthz},
		{get, "/readyz", doorHTTPS, public, s.readyz},
		{get, "/roots.pem", doorHTTPS | doorHTTP, public, s.roots},
		{get, "/crl/{issuer}.crl", doorHTTP, public, s.crl},
		{get, "/ca/{issuer}.cer", doorHTTP, public, s.issuerCertificate},

		{get, "/", pages, public, s.landing},
		{get, "/problems", pages, public, s.problemIndex},
		{get, "/problems/{slug}", pages, public, s.problemPage},
		{get, templates.CSSPath, pages, public, s.css},
	}
}

// echoPath writes the path as echo wants it: {x} is :x, and everything beneath a {path} is
// one route.
func (r route) echoPath() string {
	return strings.NewReplacer("{path}", "*", "{", ":", "}", "").Replace(r.path)
}

// param is the value of {name} in the path, without the suffix that follows it there.
func param(c echo.Context, name, suffix string) string {
	v, ok := strings.CutSuffix(c.Param(name+suffix), suffix)
	if !ok {
		return ""
	}
	return v
}

// Route describes a route for those who compare or document them.
type Route struct {
	Method string // "*": the handler looks at it
	Path   string // as in OpenAPI: /crl/{issuer}.crl
	HTTPS  bool   // at the HTTPS door
	HTTP   bool   // at the HTTP door
	Public bool   // else: admin token
}

// Routes lists every route of both doors.
func (s *Server) Routes() []Route {
	var out []Route
	for _, r := range s.routes() {
		out = append(out, Route{Method: r.method, Path: r.path, HTTPS: r.doors&doorHTTPS != 0, HTTP: r.doors&doorHTTP != 0, Public: r.access == public})
	}
	return out
}

// allow wraps a route's handler in what its access demands.
func (s *Server) allow(r route) (echo.HandlerFunc, error) {
	switch r.access {
	case public:
		return r.handle, nil
	case tokenHolder:
		return s.asAdmin(r.handle), nil
	}
	return nil, fmt.Errorf("web: route %s %s does not say who may use it", r.method, r.path)
}
