package web

import (
	"context"
	"encoding/hex"
	"encoding/json/jsontext"
	"encoding/json/v2"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/labstack/echo/v4"

	"chancery/admin"
)

// Approvals is where officers decide about sensitive acts; *admin.Board is one. The
// admin token that opens these routes decides nothing: what counts are the officers'
// signatures. Errors: *admin.Refusal, and the sentinels of audit.
type Approvals interface {
	Terms(ctx context.Context) (admin.Terms, error)
	// Rosters are all rosters up to the one in force.
	Rosters(ctx context.Context) (admin.History, error)
	// Propose returns once the proposal is durable and on the ledger.
	Propose(ctx context.Context, a admin.Ask) (*admin.Approval, error)
	// Vote returns once the vote is durable and on the ledger; the last one that was
	// needed begins the act, which goes on after the answer.
	Vote(ctx context.Context, id string, v admin.Ballot) (*admin.Approval, error)
	Cancel(ctx context.Context, id string) (*admin.Approval, error)
	Show(ctx context.Context, id string) (*admin.Approval, error)
	// List returns the newest proposals in a state, or in all ("").
	List(ctx context.Context, state admin.State) ([]*admin.Approval, error)
}

// askedBy is what every request for a sensitive act may have besides its own members:
// who asks, if it is an officer.
type askedBy struct {
	Officer   string `json:"officer"`   // "": who sends the request asks, and is no officer
	Proposal  []byte `json:"proposal"`  // of an officer: the proposal, made on the officer's machine
	Signature []byte `json:"signature"` // of an officer: over decision "request" and the proposal
	Lifetime  int64  `json:"lifetime"`  // seconds that the request may wait; 0: 24 h. An officer's proposal says it itself
}

// keyRequest is the body of POST /api/v1/keys.
type keyRequest struct {
	Name      string   `json:"name"`
	Purpose   string   `json:"purpose"`   // as in the ledger: code, document, …
	Algorithm string   `json:"algorithm"` // e.g. P-256
	Members   []string `json:"members"`   // that shall hold the key; absent: all
	askedBy
}

// proposeKey is POST /api/v1/keys: a key is born when officers have approved.
func (s *Server) proposeKey(c echo.Context) error {
	var body keyRequest
	if err := readJSON(c, &body); err != nil {
		return err
	}
	return s.propose(c, admin.GenerateKey, admin.KeyParameters{Name: body.Name, Purpose: body.Purpose, Algorithm: body.Algorithm, Members: body.Members}, body.askedBy)
}

// propose has an act decided by the officers: every route for a sensitive act ends
// here. The answer is 202 with the proposal and how to approve it.
func (s *Server) propose(c echo.Context, action string, parameters any, by askedBy) error {
	if most := int64(admin.MaxLifetime / time.Second); by.Lifetime < 0 || by.Lifetime > most {
		return problemf(badProposal, "lifetime must be a number of seconds from 1 to %d", most).at("/lifetime", "")
	}
	j, err := json.Marshal(parameters)
	if err != nil {
		return fmt.Errorf("encoding the parameters of %s: %w", action, err)
	}
	ctx, cancel := carryThrough(c)
	defer cancel()
	a, err := s.cfg.Approvals.Propose(ctx, admin.Ask{Action: action, Parameters: j, Lifetime: time.Duration(by.Lifetime) * time.Second,
		Officer: by.Officer, Proposal: by.Proposal, Signature: by.Signature, Requester: principal(c).Requester()})
	if err != nil {
		return err
	}
	c.Response().Header().Set("Location", s.base+"/api/v1/approvals/"+url.PathEscape(a.ID))
	return writeJSON(c, http.StatusAccepted, approvalOf(a))
}

// approvalVote is one vote of an approval.
type approvalVote struct {
	Officer   string `json:"officer"`
	Decision  string `json:"decision"`
	Signature []byte `json:"signature"`
	Leaf      uint64 `json:"leaf"` // index in the ledger
}

// approval is a proposal with its votes and what became of it.
type approval struct {
	ID         string         `json:"id"`
	State      admin.State    `json:"state"`
	Action     string         `json:"action"`
	Acts       []string       `json:"acts"`
	Requester  string         `json:"requester"`
	Parameters jsontext.Value `json:"parameters"`
	Proposal   []byte         `json:"proposal"` // what officers sign
	NotBefore  time.Time      `json:"not_before"`
	Expires    time.Time      `json:"expires"`
	Quorum     int            `json:"quorum"`
	Votes      []approvalVote `json:"votes"`
	Leaf       uint64         `json:"leaf"`            // index of the proposal in the ledger
	Grant      string         `json:"grant,omitempty"` // hex, once approved
	Result     jsontext.Value `json:"result,omitempty"`
	Reason     string         `json:"reason,omitempty"` // once failed
	Approve    string         `json:"approve"`          // how an officer approves it
}

func approvalOf(a *admin.Approval) approval {
	out := approval{ID: a.ID, State: a.State, Action: a.Asked.Action, Acts: a.Asked.Acts, Requester: a.Asked.Requester, Parameters: a.Parameters, Proposal: a.Proposal,
		NotBefore: a.Asked.NotBefore, Expires: a.Asked.Expires, Quorum: a.Quorum, Votes: []approvalVote{}, Leaf: a.Leaf, Result: a.Result, Reason: a.Reason,
		Approve: "chancery approve sign " + a.ID + " --officer NAME --key FILE"}
	for _, v := range a.Votes {
		out.Votes = append(out.Votes, approvalVote{Officer: v.Officer, Decision: v.Decision.String(), Signature: v.Signature, Leaf: v.Leaf})
	}
	if a.Grant != ([32]byte{}) {
		out.Grant = hex.EncodeToString(a.Grant[:])
	}
	return out
}

// terms is what one needs to know to make a proposal.
type terms struct {
	Ledger       string       `json:"ledger"` // hex
	Roster       admin.Roster `json:"roster"`
	RosterDigest string       `json:"roster_digest"` // hex
	PolicyDigest string       `json:"policy_digest"` // hex
}

type approvalList struct {
	Approvals []approval `json:"approvals"`
	Terms     terms      `json:"terms"`
}

// approvals is GET /api/v1/approvals.
func (s *Server) approvals(c echo.Context) error {
	values, err := url.ParseQuery(c.Request().URL.RawQuery)
	if err != nil {
		return problemf(badParameter, "the query cannot be read; write ?state=pending")
	}
	for key, vs := range values {
		if key != "state" || len(vs) != 1 {
			return problemf(badParameter, "%s is not known here or stands there twice; allowed: state, once", quote(key)).at("", clip(key))
		}
	}
	found, err := s.cfg.Approvals.List(c.Request().Context(), admin.State(values.Get("state")))
	if err != nil {
		return err
	}
	t, err := s.cfg.Approvals.Terms(c.Request().Context())
	if err != nil {
		return err
	}
	out := approvalList{Approvals: []approval{}, Terms: terms{Ledger: hex.EncodeToString(t.Ledger[:]), Roster: t.Roster,
		RosterDigest: hex.EncodeToString(t.RosterDigest[:]), PolicyDigest: hex.EncodeToString(t.PolicyDigest[:])}}
	for _, a := range found {
		out.Approvals = append(out.Approvals, approvalOf(a))
	}
	return writeJSON(c, http.StatusOK, out)
}

// approval is GET /api/v1/approvals/{id}.
func (s *Server) approval(c echo.Context) error {
	a, err := s.cfg.Approvals.Show(c.Request().Context(), param(c, "id", ""))
	if err != nil {
		return err
	}
	return writeJSON(c, http.StatusOK, approvalOf(a))
}

// voteRequest is the body of POST /api/v1/approvals/{id}/votes.
type voteRequest struct {
	Officer   string `json:"officer"`
	Decision  string `json:"decision"`  // approve or reject
	Signature []byte `json:"signature"` // ECDSA P-256, DER
}

// vote is POST /api/v1/approvals/{id}/votes.
func (s *Server) vote(c echo.Context) error {
	var body voteRequest
	if err := readJSON(c, &body); err != nil {
		return err
	}
	d, err := admin.ParseVote(body.Decision)
	if err != nil {
		return problemf(badProposal, "%v", err).at("/decision", "")
	}
	ctx, cancel := carryThrough(c)
	defer cancel()
	a, err := s.cfg.Approvals.Vote(ctx, param(c, "id", ""), admin.Ballot{Officer: body.Officer, Decision: d, Signature: body.Signature})
	if err != nil {
		return err
	}
	return writeJSON(c, http.StatusOK, approvalOf(a))
}

// cancelApproval is POST /api/v1/approvals/{id}/cancel.
func (s *Server) cancelApproval(c echo.Context) error {
	ctx, cancel := carryThrough(c)
	defer cancel()
	a, err := s.cfg.Approvals.Cancel(ctx, param(c, "id", ""))
	if err != nil {
		return err
	}
	return writeJSON(c, http.StatusOK, approvalOf(a))
}

var _ Approvals = (*admin.Board)(nil)
