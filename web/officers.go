package web

import (
	"context"
	"encoding/hex"
	"encoding/json/jsontext"
	"errors"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"chancery/admin"
)

// Officers is who the officers are, and how they get their passkeys; *admin.Enrolments is
// one. Errors: *admin.Refusal, and the sentinels of audit.
type Officers interface {
	// Open makes a link; its secret is shown only now.
	Open(ctx context.Context, name string, roles []admin.Assignment, by string, lifetime time.Duration) (secret string, e admin.Enrolment, err error)
	List(ctx context.Context) ([]admin.Enrolment, error)
	Named(ctx context.Context, id string) (admin.Enrolment, error)
	Withdraw(ctx context.Context, id, by string) error
	// Parameters are those of admin.ChangeRoster for an enrolment that is done; one that is
	// used is refused with admin.Closed.
	Parameters(ctx context.Context, e admin.Enrolment) ([]byte, error)
}

// enrolment is a link as the API shows it.
type enrolment struct {
	ID         string         `json:"id"`
	Name       string         `json:"name"`
	Roles      []string       `json:"roles"`
	By         string         `json:"by"`
	Created    time.Time      `json:"created"`
	Expires    time.Time      `json:"expires"`
	Passkeys   int            `json:"passkeys"`
	State      string         `json:"state"`
	Link       string         `json:"link,omitempty"`       // only when it is made
	Parameters jsontext.Value `json:"parameters,omitempty"` // of the action change-roster, once it is done and until it is used
}

func enrolmentOf(e admin.Enrolment) enrolment {
	return enrolment{ID: e.ID, Name: e.Name, Roles: roleTexts(e.Roles), By: e.By, Created: e.Created, Expires: e.Expires, Passkeys: len(e.Passkeys), State: e.State}
}

type officerList struct {
	Version      uint64       `json:"version"`
	Entry        uint64       `json:"entry"`         // that put the roster into force
	RosterDigest string       `json:"roster_digest"` // hex
	Roster       admin.Roster `json:"roster"`
	Enrolments   []enrolment  `json:"enrolments"`
}

// officers is GET /api/v1/officers.
func (s *Server) officers(c echo.Context) error {
	ctx := c.Request().Context()
	h, err := s.cfg.Approvals.Rosters(ctx)
	if err != nil {
		return err
	}
	r := h.Current()
	digest := r.Digest()
	out := officerList{Version: r.Version, RosterDigest: hex.EncodeToString(digest[:]), Roster: r, Enrolments: []enrolment{}}
	if n := len(h.Changes); n > 0 {
		out.Entry = h.Changes[n-1].Leaf
	}
	all, err := s.cfg.Officers.List(ctx)
	if err != nil {
		return err
	}
	for _, e := range all {
		out.Enrolments = append(out.Enrolments, enrolmentOf(e))
	}
	return writeJSON(c, http.StatusOK, out)
}

// inviteRequest is the body of POST /api/v1/enrolments.
type inviteRequest struct {
	Name     string   `json:"name"`     // of the officer
	Roles    []string `json:"roles"`    // e.g. "signer,key=release"; none: those that the officer has
	Lifetime int64    `json:"lifetime"` // seconds; 0: 24 h
}

// maxSeconds bounds a lifetime before it becomes a duration.
const maxSeconds = 400 * 24 * 3600

// invite is POST /api/v1/enrolments.
func (s *Server) invite(c echo.Context) error {
	var body inviteRequest
	if err := readJSON(c, &body); err != nil {
		return err
	}
	if body.Lifetime < 0 || body.Lifetime > maxSeconds {
		return problemf(badProposal, "lifetime is in seconds, at most %d", int64(admin.MaxEnrolment/time.Second)).at("/lifetime", "")
	}
	roles, err := readRoles(body.Roles)
	if err != nil {
		return err
	}
	ctx, cancel := carryThrough(c)
	defer cancel()
	secret, e, err := s.cfg.Officers.Open(ctx, body.Name, roles, principal(c).Requester(), time.Duration(body.Lifetime)*time.Second)
	if err != nil {
		return err
	}
	out := enrolmentOf(e)
	out.Link = s.enrolmentLink(secret)
	return writeJSON(c, http.StatusCreated, out)
}

// enrolmentLink has the secret behind the #, which browsers keep to themselves (RFC 9110
// §7.1), so that it stands in no log.
func (s *Server) enrolmentLink(secret string) string {
	base := s.base
	if s.cfg.Dev { // on http://localhost passkeys work without a trusted root
		base = s.httpBase
	}
	return base + "/console/enrol#" + secret
}

// enrolmentByID is GET /api/v1/enrolments/{id}.
func (s *Server) enrolmentByID(c echo.Context) error {
	e, err := s.cfg.Officers.Named(c.Request().Context(), param(c, "id", ""))
	if err != nil {
		return err
	}
	out := enrolmentOf(e)
	if e.State == admin.EnrolmentDone {
		var used *admin.Refusal
		if out.Parameters, err = s.cfg.Officers.Parameters(c.Request().Context(), e); err != nil && !(errors.As(err, &used) && used.Code == admin.Closed) {
			return err
		}
	}
	return writeJSON(c, http.StatusOK, out)
}

// withdrawEnrolment is POST /api/v1/enrolments/{id}/withdraw.
func (s *Server) withdrawEnrolment(c echo.Context) error {
	ctx, cancel := carryThrough(c)
	defer cancel()
	id := param(c, "id", "")
	if err := s.cfg.Officers.Withdraw(ctx, id, principal(c).Requester()); err != nil {
		return err
	}
	e, err := s.cfg.Officers.Named(ctx, id)
	if err != nil {
		return err
	}
	return writeJSON(c, http.StatusOK, enrolmentOf(e))
}

var _ Officers = (*admin.Enrolments)(nil)
