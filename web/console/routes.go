package console

import (
	"fmt"
	"net/http"
)

// access says who may use a route. The zero value is nobody's: a route must say.
type access int

const (
	public access = iota + 1
	signedIn
	polled // signed in, and the request does not keep the session alive
)

// handler answers a request or returns an error that [Console.fail] makes a page of.
type handler func(w http.ResponseWriter, r *request) error

// route is one path with what it answers to GET and to POST. Only POST changes state.
type route struct {
	path   string // as http.ServeMux has it
	access access
	get    handler
	post   handler
	fields []string // of the form that post takes, besides the session's form token
}

// routes is the whole table.
func (c *Console) routes() []route {
	return []route{
		{path: "/console", access: public, get: func(w http.ResponseWriter, _ *request) error { return redirect(w, url.Dashboard()) }},
		{path: "/console/{$}", access: signedIn, get: c.dashboard},
		{path: "/console/live", access: polled, get: c.dashboardLive},
		{path: "/console/sign-in", access: public, get: c.signInPage, post: c.signIn, fields: []string{"token", "to"}},
		{path: "/console/signed-in", access: public, get: c.signedInCheck},
		{path: "/console/sign-out", access: signedIn, post: c.signOut},
		{path: "/console/language", access: public, post: c.setLanguage, fields: []string{"lang", "to"}},

		{path: "/console/hsm", access: signedIn, get: c.members},
		{path: "/console/hsm/live", access: polled, get: c.membersLive},
		{path: "/console/keys", access: signedIn, get: c.keys},

		{path: "/console/certificates", access: signedIn, get: c.certificates},
		{path: "/console/certificates/{serial}", access: signedIn, get: c.certificate},
		{path: "/console/certificates/{serial}/revoke", access: signedIn, get: c.revokePage, post: c.revoke, fields: []string{"serial", "digest", "reason"}},
		{path: "/console/certificates/{serial}/certificate.pem", access: signedIn, get: c.certificatePEM},
		{path: "/console/certificates/{serial}/chain.pem", access: signedIn, get: c.chainPEM},
		{path: "/console/certificates/{serial}/certificate.cer", access: signedIn, get: c.certificateDER},

		{path: "/console/ledger", access: signedIn, get: c.ledger},
		{path: "/console/ledger/checkpoint", access: signedIn, get: c.checkpoint},
		{path: "/console/ledger/{index}", access: signedIn, get: c.entry},
		{path: "/console/ledger/{index}/proof", access: signedIn, get: c.proof},

		{path: "/console/static/{file}", access: public, get: c.static},
	}
}

// muxOf makes the mux of the table; a route that does not say who may use it is an error.
func (c *Console) muxOf(table []route) (*http.ServeMux, error) {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { c.run(w, r, missing) })
	for _, rt := range table {
		if rt.access != public && rt.access != signedIn && rt.access != polled {
			return nil, fmt.Errorf("console: route %s does not say who may use it", rt.path)
		}
		mux.HandleFunc(rt.path, func(w http.ResponseWriter, r *http.Request) {
			c.run(w, r, func(w http.ResponseWriter, r *request) error { return c.dispatch(rt, w, r) })
		})
	}
	return mux, nil
}
