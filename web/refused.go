package web

import (
	"errors"

	"github.com/labstack/echo/v4"

	"chancery/admin"
	"chancery/audit"
	"chancery/ca"
)

// client is the address that a request came from; no header can change it.
func client(c echo.Context) string { return c.RealIP() }

// counted are the refusals of the CA that its policy ends with. All others are of state.
var counted = map[ca.Code]bool{ca.BadCSR: true, ca.BadPublicKey: true, ca.BadName: true, ca.BadProfile: true, ca.BadReason: true}

// note has the ledger count what policy or authentication refused: what a request was, and
// which field or slug ended it. Nothing of what was sent is written down.
func (s *Server) note(c echo.Context, err error, k slug) {
	var refusal *ca.Refusal
	var board *admin.Refusal
	kind, detail := "", ""
	switch {
	case errors.As(err, &refusal) && counted[refusal.Code]:
		kind, detail = string(refusal.Code), refusal.Field
	case errors.As(err, &board) && board.Code == admin.VoteRefused:
		kind, detail = string(k), board.Field
	case k == unauthorized, k == forbiddenHere, k == needsOfficers, k == crossOrigin:
		kind, detail = string(k), c.Path()
	default:
		return
	}
	s.cfg.Refused(audit.Refusal{Kind: "api:" + kind, Detail: detail, Client: client(c)})
}
