// Package web is the HTTP edge of a Chancery: what a browser, a client of the REST
// API, an ACME client or a TLS library fetching a CRL meets first.
//
// There are two doors. The HTTPS door has the ACME directory, the REST API for the
// holder of the admin token, the ledger's checkpoint and the pages for people. The
// plain HTTP door has what must be had before TLS can work and is signed by itself:
// CRLs, issuer certificates and roots (RFC 5280 §4.2.1.13, §4.2.2.1). It takes no
// token and changes nothing.
//
// A request goes through the same steps at both (headers.go): it gets an id of our
// own, headers that forbid browsers everything we do not need, a look at its method
// and origin, and a line in the log without query and token. The route table
// (routes.go) says of every route who may use it; a route that does not say is no
// route, and one that openapi.yaml does not describe fails a test.
//
// Then a handler asks its use-case of an [Authority], which is *ca.Authority: this
// package decides nothing about certificates. Bodies are read strictly (json.go).
// Whatever goes wrong comes back as an error and becomes a problem document
// (RFC 9457) in one place (problem.go): from a table that knows the status, the help
// page and the cure for each; what the table does not know is answered with the
// request's id alone, and the log has the rest. ACME answers its own problems
// (RFC 8555 §6.7) with its own limits; it is only mounted here.
//
// No header of a request is believed: not X-Forwarded-For, not X-Forwarded-Host, not
// X-Request-Id. URLs in answers come from the configuration.
package web
