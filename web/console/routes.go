package console

import (
	"fmt"
	"net/http"

	"chancery/admin"
)

// Two rules besides the permissions of package admin. The zero value is nobody's: a route
// must say who may use it.
const (
	public   admin.Permission = "(public)"
	signedIn admin.Permission = "(signed in)" // what is one's own: language, sign-out, step-up; and the overview, which shows what one may see
)

// handler answers a request or returns an error that [Console.fail] makes a page of.
type handler func(w http.ResponseWriter, r *request) error

// route is one path with what it answers to GET and to POST. Only POST changes state.
type route struct {
	path   string           // as http.ServeMux has it
	may    admin.Permission // who may use it, on anything; the handler holds what it is used on against it, too
	get    handler
	post   handler
	fields []string // of the form that post takes, besides the session's form token
	form   int64    // octets that the form may have; 0: formBytes
	polled bool     // the request does not keep the session alive
	fresh  bool     // dangerous: needs a passkey shown lately
	plain  bool     // the session is not looked at
}

// longForm is for forms that carry a proposal with its parameters, in base64.
const longForm = 128 << 10

// routes is the whole table.
func (c *Console) routes() []route {
	return []route{
		{path: "/console", may: public, plain: true, get: func(w http.ResponseWriter, _ *request) error { return redirect(w, url.Dashboard()) }},
		{path: "/console/{$}", may: signedIn, get: c.dashboard},
		{path: "/console/live", may: signedIn, polled: true, get: c.dashboardLive},
		{path: "/console/sign-in", may: public, get: c.signInPage, post: c.signIn, fields: []string{"assertion", "to"}},
		{path: "/console/sign-in/options", may: public, plain: true, get: c.signInOptions},
		{path: "/console/signed-in", may: public, get: c.signedInCheck},
		{path: "/console/oidc/start", may: public, get: c.providerStart},
		{path: "/console/oidc/callback", may: public, plain: true, get: c.providerCallback},
		{path: "/console/sign-out", may: signedIn, post: c.signOut},
		{path: "/console/step-up", may: signedIn, get: c.stepUpPage, post: c.stepUp, fields: []string{"assertion", "to"}},
		{path: "/console/step-up/options", may: signedIn, get: c.stepUpOptions},
		{path: "/console/language", may: public, post: c.setLanguage, fields: []string{"lang", "to"}},

		{path: "/console/enrol", may: public, get: c.enrolPage, post: c.enrolShow, fields: []string{"secret"}},
		{path: "/console/enrol/options", may: public, plain: true, post: c.enrolOptions, fields: []string{"secret"}},
		{path: "/console/enrol/passkey", may: public, post: c.enrolPasskey, fields: []string{"secret", "label", "assertion"}},
		{path: "/console/enrol/finish", may: public, post: c.enrolFinish, fields: []string{"secret", "passkeys", "alone"}},

		{path: "/console/hsm", may: admin.ReadHSM, get: c.members},
		{path: "/console/hsm/live", may: admin.ReadHSM, polled: true, get: c.membersLive},
		{path: "/console/keys", may: admin.ReadKeys, get: c.keys},
		{path: "/console/keys/new", may: admin.Propose, get: c.newKeyPage, post: c.newKey, fields: []string{"name", "purpose", "algorithm", "reason"}},

		{path: "/console/certificates", may: admin.ReadCertificates, get: c.certificates},
		{path: "/console/certificates/{serial}", may: admin.ReadCertificates, get: c.certificate},
		{path: "/console/certificates/{serial}/revoke", may: admin.RevokeCertificates, fresh: true, get: c.revokePage, post: c.revoke, fields: []string{"serial", "digest", "reason"}},
		{path: "/console/certificates/{serial}/certificate.pem", may: admin.ReadCertificates, get: c.certificatePEM},
		{path: "/console/certificates/{serial}/chain.pem", may: admin.ReadCertificates, get: c.chainPEM},
		{path: "/console/certificates/{serial}/certificate.cer", may: admin.ReadCertificates, get: c.certificateDER},

		{path: "/console/ledger", may: admin.ReadLedger, get: c.ledger},
		{path: "/console/ledger/checkpoint", may: admin.ReadLedger, get: c.checkpoint},
		{path: "/console/ledger/{index}", may: admin.ReadLedger, get: c.entry},
		{path: "/console/ledger/{index}/proof", may: admin.ReadLedger, get: c.proof},

		{path: "/console/approvals", may: admin.ReadApprovals, get: c.approvals},
		{path: "/console/approvals/ask", may: admin.Propose, post: c.ask, form: longForm, fields: []string{"action", "parameters", "proposal", "digest", "fingerprint", "assertion"}},
		{path: "/console/approvals/{id}", may: admin.ReadApprovals, get: c.proposal},
		{path: "/console/approvals/{id}/proposal.bin", may: admin.ReadApprovals, get: c.proposalBytes},
		{path: "/console/approvals/{id}/parameters.json", may: admin.ReadApprovals, get: c.proposalParameters},
		{path: "/console/approvals/{id}/vote", may: admin.Vote, post: c.vote, fields: []string{"decision", "digest", "fingerprint", "assertion"}},
		{path: "/console/approvals/{id}/cancel", may: admin.CancelApprovals, fresh: true, get: c.cancelPage, post: c.cancel},

		{path: "/console/officers", may: admin.ReadOfficers, get: c.officers},
		{path: "/console/officers/invite", may: admin.ManageOfficers, fresh: true, get: c.invitePage, post: c.invite, fields: roleFields("name")},
		{path: "/console/officers/enrolments/{id}/withdraw", may: admin.ManageOfficers, fresh: true, get: c.withdrawPage, post: c.withdraw},
		{path: "/console/officers/accept", may: admin.Propose, post: c.acceptEnrolment, fields: []string{"id", "reason"}},
		{path: "/console/officers/remove", may: admin.Propose, post: c.removeOfficer, fields: []string{"name", "reason"}},
		{path: "/console/officers/roles", may: admin.Propose, get: c.rolesPage, post: c.changeRoles, fields: roleFields("name", "reason")},
		{path: "/console/officers/quorum", may: admin.Propose, get: c.quorumPage, post: c.changeQuorum, fields: []string{"quorum", "cli", "groups", "reason"}},

		{path: "/console/machines", may: admin.ReadMachines, get: c.machines},
		{path: "/console/machines/new", may: admin.ManageMachines, fresh: true, get: c.newMachinePage, post: c.newMachine, fields: roleFields("name", "days")},
		{path: "/console/machines/{id}/revoke", may: admin.ManageMachines, fresh: true, get: c.revokeMachinePage, post: c.revokeMachine, fields: []string{"reason"}},

		{path: "/console/static/{file}", may: public, plain: true, get: c.static},
	}
}

// muxOf makes the mux of the table; a route that does not say who may use it is an error.
func (c *Console) muxOf(table []route) (*http.ServeMux, error) {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { c.run(w, r, missing) })
	for _, rt := range table {
		if rt.may != public && rt.may != signedIn && !rt.may.Known() {
			return nil, fmt.Errorf("console: route %s does not say who may use it", rt.path)
		}
		mux.HandleFunc(rt.path, func(w http.ResponseWriter, r *http.Request) {
			c.run(w, r, func(w http.ResponseWriter, r *request) error { return c.dispatch(rt, w, r) })
		})
	}
	return mux, nil
}
