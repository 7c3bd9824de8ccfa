package console

import (
	"bytes"
	"crypto/subtle"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/netip"
	neturl "net/url"
	"path"
	"runtime/debug"
	"slices"
	"strings"
	"time"
	"uuid"
)

// policy is the content security policy of all pages (CSP Level 3). Trusted Types
// allow the one policy that console.js makes for htmx.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; " +
	"frame-ancestors 'none'; base-uri 'none'; require-trusted-types-for 'script'; trusted-types htmx"

// formBytes bounds the body of a POST; the longest of most forms has a passkey's answer.
const formBytes = 16 << 10

// actTime is how long an act may take that goes on when the browser hangs up.
const actTime = 30 * time.Second

// request is a request on its way to a handler.
type request struct {
	*http.Request
	id      string
	lang    Lang
	session *session // nil: not signed in
	form    neturl.Values
	partial bool // htmx asks for a part of the page
}

// address is the peer's; no header can change it.
func (r *request) address() netip.Addr {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}

// client is address as text, "" if there is none.
func (r *request) client() string {
	if a := r.address(); a.IsValid() {
		return a.String()
	}
	return ""
}

// serve finds the route. A path that is not in its one form is no path: the mux would
// redirect it.
func (c *Console) serve(w http.ResponseWriter, hr *http.Request) {
	if clean := path.Clean(hr.URL.Path); clean != strings.TrimSuffix(hr.URL.Path, "/") {
		c.run(w, hr, missing)
		return
	}
	c.mux.ServeHTTP(w, hr)
}

func missing(http.ResponseWriter, *request) error {
	return failure{status: http.StatusNotFound, text: "error.notFound"}
}

// run takes a request through the steps that all of them go.
func (c *Console) run(w http.ResponseWriter, hr *http.Request, h handler) {
	r := &request{Request: hr, id: w.Header().Get("X-Request-Id"), lang: languageOf(hr), partial: hr.Header.Get("HX-Request-Type") == "partial"}
	if r.id == "" {
		r.id = uuid.NewV4().String()
	}
	headers(w.Header(), r.id)
	defer func() {
		v := recover()
		if v == nil {
			return
		}
		if e, ok := v.(error); ok && errors.Is(e, http.ErrAbortHandler) {
			panic(v) // net/http's way to cut a connection
		}
		c.log.Error("panic in the console", "id", r.id, "err", fmt.Sprint(v), "stack", string(debug.Stack()))
		c.fail(w, r, failure{status: http.StatusInternalServerError, text: "error.internal"})
	}()
	if err := h(w, r); err != nil {
		c.fail(w, r, err)
	}
}

// headers sets what every answer has. The Referrer-Policy is not no-referrer, since
// then browsers send "Origin: null" with our own forms (Fetch, "append a request Origin
// header"); same-origin tells other sites as little.
func headers(h http.Header, id string) {
	h.Set("X-Request-Id", id)
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Permissions-Policy", "camera=(), microphone=(), geolocation=(), payment=()")
	h.Set("Cache-Control", "no-store")
	h.Add("Vary", "Cookie, Accept-Language, HX-Request-Type")
}

// dispatch checks who asks and how before the handler of a route runs.
func (c *Console) dispatch(rt route, w http.ResponseWriter, r *request) error {
	h, err := rt.handlerFor(w, r)
	if err != nil {
		return err
	}
	changes := r.Method == http.MethodPost
	if changes {
		if err := c.crossOrigin.Check(r.Request); err != nil {
			return failure{status: http.StatusForbidden, text: "error.crossOrigin"}
		}
		if r.form, err = readForm(w, r.Request, rt); err != nil {
			return err
		}
	}
	if !rt.plain {
		if r.session, err = c.find(r, !rt.polled); err != nil {
			return err
		}
	}
	if rt.may == public {
		return h(w, r)
	}
	switch {
	case r.session == nil:
		return c.askToSignIn(w, r)
	case changes && subtle.ConstantTimeCompare([]byte(r.form.Get(formToken)), []byte(r.session.Form)) != 1:
		return failure{status: http.StatusForbidden, text: "error.formToken"}
	case rt.may != signedIn && !r.session.who.MaySome(rt.may):
		return c.forbidden(r, rt.may)
	case rt.fresh && !r.session.fresh(c.now()):
		return lead(w, r, url.StepUp(placeOf(r)))
	}
	return h(w, r)
}

// handlerFor picks the handler of the method (RFC 9110 §15.5.6).
func (rt route) handlerFor(w http.ResponseWriter, r *request) (handler, error) {
	switch {
	case rt.get != nil && (r.Method == http.MethodGet || r.Method == http.MethodHead):
		return rt.get, nil
	case rt.post != nil && r.Method == http.MethodPost:
		return rt.post, nil
	}
	var allow []string
	if rt.get != nil {
		allow = append(allow, "GET, HEAD")
	}
	if rt.post != nil {
		allow = append(allow, "POST")
	}
	w.Header().Set("Allow", strings.Join(allow, ", "))
	return nil, failure{status: http.StatusMethodNotAllowed, text: "error.method"}
}

// formToken is the hidden field that shows that a form came from a page of this session.
const formToken = "form_token"

// readForm reads a form strictly: URL-encoded, in the body only, only the fields that
// the route takes, each at most once.
func readForm(w http.ResponseWriter, r *http.Request, rt route) (neturl.Values, error) {
	bad := failure{status: http.StatusBadRequest, text: "error.form"}
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/x-www-form-urlencoded" {
		return nil, failure{status: http.StatusUnsupportedMediaType, text: "error.form"}
	}
	limit := rt.form
	if limit == 0 {
		limit = formBytes
	}
	var b bytes.Buffer
	if _, err := b.ReadFrom(http.MaxBytesReader(w, r.Body, limit)); err != nil {
		var long *http.MaxBytesError
		if errors.As(err, &long) {
			return nil, failure{status: http.StatusRequestEntityTooLarge, text: "error.form"}
		}
		return nil, bad
	}
	form, err := neturl.ParseQuery(b.String())
	if err != nil {
		return nil, bad
	}
	for name, values := range form {
		if len(values) != 1 || !slices.Contains(rt.fields, name) && !(rt.may != public && name == formToken) {
			return nil, bad
		}
	}
	return form, nil
}

// redirect sends the browser to a page of our own after a form (RFC 9110 §15.4.4).
func redirect(w http.ResponseWriter, to Path) error {
	w.Header().Set("Location", string(to))
	w.WriteHeader(http.StatusSeeOther)
	return nil
}
