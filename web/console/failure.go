package console

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"chancery/admin"
	"chancery/audit"
	"chancery/ca"
	"chancery/hsmstore"
)

// failure is an error that is made for the person in front of the page.
type failure struct {
	status int
	text   string // key of the catalogue; text+".cure" says what to do
	retry  int    // seconds, for Retry-After
	detail foreign
}

func (f failure) Error() string { return strconv.Itoa(f.status) + " " + f.text }

// failureOf finds what a person can be told of an error; all else is "internal".
func failureOf(err error) failure {
	var f failure
	var refusal *ca.Refusal
	var board *admin.Refusal
	switch {
	case errors.As(err, &f):
		return f
	case errors.As(err, &refusal):
		switch refusal.Code {
		case ca.NotFound:
			return failure{status: http.StatusNotFound, text: "error.noCertificate"}
		case ca.IssuerUnavailable:
			return failure{status: http.StatusServiceUnavailable, text: "error.busy", retry: 5}
		}
		return failure{status: http.StatusConflict, text: "error.refused", detail: foreign(refusal.Detail)}
	case errors.As(err, &board):
		switch board.Code {
		case admin.NotFound:
			return failure{status: http.StatusNotFound, text: "error.notFound", detail: foreign(board.Detail)}
		case admin.NotAllowed:
			return failure{status: http.StatusForbidden, text: "error.board", detail: foreign(board.Detail)}
		case admin.Closed:
			return failure{status: http.StatusConflict, text: "error.board", detail: foreign(board.Detail)}
		}
		return failure{status: http.StatusUnprocessableEntity, text: "error.board", detail: foreign(board.Detail)}
	case errors.Is(err, audit.ErrNotFound):
		return failure{status: http.StatusNotFound, text: "error.notFound"}
	case errors.Is(err, audit.ErrUnavailable), errors.Is(err, audit.ErrBusy), errors.Is(err, hsmstore.ErrUnavailable), errors.Is(err, hsmstore.ErrBusy), errors.Is(err, context.DeadlineExceeded):
		return failure{status: http.StatusServiceUnavailable, text: "error.busy", retry: 5}
	}
	return failure{status: http.StatusInternalServerError, text: "error.internal"}
}

// forbidden says which role would allow what was asked for.
func (c *Console) forbidden(r *request, p admin.Permission) error {
	var roles []string
	for _, role := range rolesWith(p) {
		roles = append(roles, r.lang.text("role."+string(role)))
	}
	return failure{status: http.StatusForbidden, text: "error.forbidden", detail: foreign(r.lang.text("forbidden.roles", strings.Join(roles, ", ")))}
}

// rolesWith are the roles that give a permission.
func rolesWith(p admin.Permission) (out []admin.Role) {
	for _, role := range admin.Roles {
		if (admin.Principal{Kind: admin.ByOfficer, Assignments: []admin.Assignment{{Role: role}}}).MaySome(p) {
			out = append(out, role)
		}
	}
	return out
}

// errorData is what the error page shows.
type errorData struct {
	Status    int
	Text      string
	Detail    foreign
	RequestID string
}

// fail answers with a page that says what went wrong and what to do. It never shows
// the text of an error that is not made for people.
func (c *Console) fail(w http.ResponseWriter, r *request, err error) {
	f := failureOf(err)
	if f.status >= 500 {
		c.log.Error("console request failed", "id", r.id, "method", r.Method, "status", f.status, "err", err)
	}
	if f.retry > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(f.retry))
	}
	r.partial = false
	v := c.view(r, "", "error.title", errorData{Status: f.status, Text: f.text, Detail: f.detail, RequestID: r.id})
	if e := c.show(w, f.status, "error", "", v); e != nil {
		c.log.Error("the error page failed", "id", r.id, "err", e)
		http.Error(w, "error "+r.id, http.StatusInternalServerError)
	}
}
