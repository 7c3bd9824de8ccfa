package web

import (
	"net/http"
	"strings"

	"github.com/labstack/echo/v4"

	"chancery/audit"
)

// eraseRequest is the body of POST /api/v1/ledger/erase: entry or value.
type eraseRequest struct {
	Entry  *uint64 `json:"entry"`  // all that is personal of one entry
	Value  string  `json:"value"`  // everything of all entries that hold it
	Reason string  `json:"reason"` // stands in the ledger for ever
}

type erased struct {
	Erased int `json:"erased"` // personal values
}

// maxErase bounds value and reason in octets.
const maxErase = 1024

// erase is POST /api/v1/ledger/erase. The entries stay, with the commitments in them.
func (s *Server) erase(c echo.Context) error {
	var body eraseRequest
	if err := readJSON(c, &body); err != nil {
		return err
	}
	switch {
	case (body.Entry != nil) == (body.Value != ""):
		return problemf(badParameter, "send either entry, the index of one, or value, what is to be erased in all of them").at("/entry", "")
	case len(body.Value) > maxErase:
		return problemf(badParameter, "value has %d octets, at most %d are allowed", len(body.Value), maxErase).at("/value", "")
	case body.Reason == "" || len(body.Reason) > maxErase:
		return problemf(badParameter, "reason must say why, in 1 to %d octets; it stands in the ledger for ever, so do not repeat what is to be erased", maxErase).at("/reason", "")
	case body.Value != "" && strings.Contains(strings.ToLower(body.Reason), strings.ToLower(body.Value)):
		return problemf(badParameter, "reason repeats what is to be erased, and it stands in the ledger for ever").at("/reason", "")
	}
	which := audit.OpeningsOf(body.Value)
	if body.Entry != nil {
		which = audit.EntryOpenings(*body.Entry)
	}
	ctx, cancel := unhurried(c)
	defer cancel()
	n, err := s.cfg.Erase(ctx, which, body.Reason, requester(c), client(c))
	if err != nil {
		return err
	}
	if n == 0 {
		return problemf(notFound, "no entry holds such a personal value, or it was erased before")
	}
	return writeJSON(c, http.StatusOK, erased{n})
}
