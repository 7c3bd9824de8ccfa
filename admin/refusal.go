package admin

import "fmt"

// Code says of what kind a refusal is.
type Code string

// The codes of refusals.
const (
	BadProposal Code = "bad-proposal" // what is asked for is malformed or not possible
	NotFound    Code = "not-found"
	VoteRefused Code = "vote-refused" // this officer, this signature, this moment does not count
	NotAllowed  Code = "not-allowed"  // who asks may not do that
	Closed      Code = "closed"       // the state of the proposal does not allow it any more
)

// Refusal says why the board did not take something. Its text is for who asked.
type Refusal struct {
	Code   Code
	Field  string // of the request, or ""
	Detail string
}

func (r *Refusal) Error() string { return string(r.Code) + ": " + r.Detail }

func refuse(code Code, field, format string, args ...any) *Refusal {
	return &Refusal{Code: code, Field: field, Detail: fmt.Sprintf(format, args...)}
}
