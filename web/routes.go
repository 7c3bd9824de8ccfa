package web

import (
	"context"
	"net/http"
	"strings"

	"github.com/labstack/echo/v4"

	"chancery/admin"
	"chancery/templates"
)

// door is one of the listeners, or several.
type door int

const (
	doorHTTPS door = 1 << iota
	doorHTTP
	doorAdmin // client certificates only
)

func (d door) String() string {
	switch d {
	case doorHTTPS:
		return "https"
	case doorAdmin:
		return "admin"
	}
	return "http"
}

// anyMethod marks a route whose handler looks at the method itself.
const anyMethod = "*"

// route is one line of the table. Paths are written as in OpenAPI.
type route struct {
	method, path string
	doors        door
	needs        admin.Permission // public, somebody, or one of admin; the zero value is nobody's: a route must say
	handle       echo.HandlerFunc
}

// routes is the whole table; openapi.yaml describes the same routes.
func (s *Server) routes() []route {
	table := s.table()
	for i := range table { // the whole API is at the door of client certificates too
		if r := &table[i]; r.doors&doorHTTPS != 0 && (strings.HasPrefix(r.path, "/api/v1/") || strings.HasPrefix(r.path, "/ledger/") || r.path == "/healthz") {
			r.doors |= doorAdmin
		}
	}
	return table
}

func (s *Server) table() []route {
	pages := doorHTTPS
	if s.cfg.Dev {
		pages |= doorHTTP
	}
	const get, post = http.MethodGet, http.MethodPost
	return []route{
		{anyMethod, "/acme/{path}", doorHTTPS, public, echo.WrapHandler(s.cfg.ACME)},
		{anyMethod, "/console/{path}", pages, public, echo.WrapHandler(s.cfg.Console)},

		{post, "/api/v1/certificates", doorHTTPS, admin.IssueCertificates, s.issue},
		{get, "/api/v1/certificates", doorHTTPS, admin.ReadCertificates, s.list},
		{get, "/api/v1/certificates/{serial}", doorHTTPS, admin.ReadCertificates, s.show},
		{post, "/api/v1/certificates/{serial}/revoke", doorHTTPS, admin.RevokeCertificates, s.revoke},
		{get, "/api/v1/certificates/{serial}/proof", doorHTTPS, public, s.proof},
		{post, "/api/v1/sign/cms", doorHTTPS, admin.SignDocuments, s.signCMS},
		{get, "/api/v1/hsm/members", doorHTTPS, admin.ReadHSM, s.listMembers},
		{get, "/api/v1/hsm/members/{name}", doorHTTPS, admin.ReadHSM, s.showMember},
		{post, "/api/v1/hsm/members/{name}/drain", doorHTTPS, admin.ManageHSM, s.drainMember},
		{post, "/api/v1/hsm/members/{name}/fence", doorHTTPS, admin.ManageHSM, s.withReason(func(ctx context.Context, name, reason string) error { return s.cfg.HSM.Fence(ctx, name, reason) })},
		{post, "/api/v1/hsm/members/{name}/admit", doorHTTPS, admin.ManageHSM, s.withReason(func(ctx context.Context, name, reason string) error { return s.cfg.HSM.Admit(ctx, name, reason) })},
		{get, "/api/v1/hsm/candidates/{name}", doorHTTPS, admin.ManageHSM, s.candidate},
		{get, "/api/v1/hsm/backups", doorHTTPS, admin.ReadBackups, s.listBackups},
		{get, "/api/v1/hsm/backup-candidates/{name}", doorHTTPS, admin.ManageBackups, s.backupCandidate},
		{post, "/api/v1/hsm/backups/{name}/manifest", doorHTTPS, admin.ManageBackups, s.makeManifest},
		{post, "/api/v1/hsm/backups/{name}/verify", doorHTTPS, admin.ManageBackups, s.verifyBackup},
		{post, "/api/v1/hsm/verify", doorHTTPS, admin.ManageHSM, s.verifyKeys},
		{get, "/api/v1/hsm/ceremonies", doorHTTPS, admin.ReadHSM, s.ceremonies},
		{post, "/api/v1/hsm/ceremonies/{id}/shares", doorHTTPS, admin.Vote, s.giveShare},
		{get, "/api/v1/keys", doorHTTPS, admin.ReadKeys, s.listKeys},
		{post, "/api/v1/keys", doorHTTPS, admin.Propose, s.proposeKey},
		{post, "/api/v1/keys/inspect", doorHTTPS, admin.ManageHSM, s.inspectKey},
		{post, "/api/v1/keys/import-sessions", doorHTTPS, admin.ManageHSM, s.openImport},
		{get, "/api/v1/keys/{name}", doorHTTPS, admin.ReadKeys, s.showKey},
		{post, "/api/v1/keys/{name}/disable", doorHTTPS, admin.ManageKeys, s.onKey(func(ctx context.Context, name, reason string) error { return s.cfg.HSM.Disable(ctx, name, reason) })},
		{post, "/api/v1/keys/{name}/enable", doorHTTPS, admin.ManageKeys, s.onKey(func(ctx context.Context, name, reason string) error { return s.cfg.HSM.Enable(ctx, name, reason) })},
		{post, "/api/v1/keys/{name}/describe", doorHTTPS, admin.ManageKeys, s.onKey(func(ctx context.Context, name, reason string) error { return s.cfg.HSM.Describe(ctx, name, reason) })},
		{get, "/api/v1/approvals", doorHTTPS, admin.ReadApprovals, s.approvals},
		{post, "/api/v1/approvals", doorHTTPS, admin.Propose, s.proposeAction},
		{get, "/api/v1/approvals/{id}", doorHTTPS, admin.ReadApprovals, s.approval},
		{post, "/api/v1/approvals/{id}/votes", doorHTTPS, admin.Vote, s.vote},
		{post, "/api/v1/approvals/{id}/cancel", doorHTTPS, admin.CancelApprovals, s.cancelApproval},
		{get, "/api/v1/officers", doorHTTPS, admin.ReadOfficers, s.officers},
		{post, "/api/v1/enrolments", doorHTTPS, admin.ManageOfficers, s.invite},
		{get, "/api/v1/enrolments/{id}", doorHTTPS, admin.ReadOfficers, s.enrolmentByID},
		{post, "/api/v1/enrolments/{id}/withdraw", doorHTTPS, admin.ManageOfficers, s.withdrawEnrolment},
		{get, "/api/v1/whoami", doorHTTPS, somebody, s.whoami},
		{get, "/api/v1/machines", doorHTTPS, admin.ReadMachines, s.machines},
		{post, "/api/v1/machines", doorHTTPS, admin.ManageMachines, s.makeMachine},
		{post, "/api/v1/machines/{id}/revoke", doorHTTPS, admin.ManageMachines, s.revokeMachine},
		{post, "/api/v1/ledger/erase", doorHTTPS, admin.EraseLedger, s.erase},
		{get, "/api/v1/openapi.yaml", doorHTTPS, public, s.openAPI},

		{get, "/ledger/checkpoint", doorHTTPS, public, s.checkpoint},
		{get, "/ledger/tile/{path}", doorHTTPS, admin.ReadLedger, s.tile},
		{get, "/ledger/proof/{index}", doorHTTPS, admin.ReadLedger, s.leafProof},
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
	Method     string // "*": the handler looks at it
	Path       string // as in OpenAPI: /crl/{issuer}.crl
	HTTPS      bool   // at the HTTPS door
	HTTP       bool   // at the HTTP door
	Admin      bool   // at the door of client certificates
	Public     bool
	Permission admin.Permission // that it needs, unless it is public; "somebody": none, but to be known
}

// Routes lists every route of all doors.
func Routes() []Route { return (&Server{}).Routes() }

// Routes lists every route of all doors.
func (s *Server) Routes() []Route {
	var out []Route
	for _, r := range s.routes() {
		out = append(out, Route{Method: r.method, Path: r.path, HTTPS: r.doors&doorHTTPS != 0, HTTP: r.doors&doorHTTP != 0, Admin: r.doors&doorAdmin != 0, Public: r.needs == public, Permission: r.needs})
	}
	return out
}
