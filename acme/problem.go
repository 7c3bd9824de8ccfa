package acme

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"chancery/audit"
	"chancery/ca"
	"chancery/hsmstore"
)

// ProblemType is an error type of RFC 8555 §6.7.
type ProblemType string

const errorNS = "urn:ietf:params:acme:error:"

// The error types.
const (
	AccountDoesNotExist   ProblemType = errorNS + "accountDoesNotExist"
	AlreadyRevoked        ProblemType = errorNS + "alreadyRevoked"
	BadCSR                ProblemType = errorNS + "badCSR"
	BadNonce              ProblemType = errorNS + "badNonce"
	BadPublicKey          ProblemType = errorNS + "badPublicKey"
	BadRevocationReason   ProblemType = errorNS + "badRevocationReason"
	BadSignatureAlgorithm ProblemType = errorNS + "badSignatureAlgorithm"
	Compound              ProblemType = errorNS + "compound"
	Connection            ProblemType = errorNS + "connection"
	DNS                   ProblemType = errorNS + "dns"
	IncorrectResponse     ProblemType = errorNS + "incorrectResponse"
	InvalidContact        ProblemType = errorNS + "invalidContact"
	Malformed             ProblemType = errorNS + "malformed"
	OrderNotReady         ProblemType = errorNS + "orderNotReady"
	RateLimited           ProblemType = errorNS + "rateLimited"
	RejectedIdentifier    ProblemType = errorNS + "rejectedIdentifier"
	ServerInternal        ProblemType = errorNS + "serverInternal"
	TLS                   ProblemType = errorNS + "tls"
	Unauthorized          ProblemType = errorNS + "unauthorized"
	UnsupportedContact    ProblemType = errorNS + "unsupportedContact"
	UnsupportedIdentifier ProblemType = errorNS + "unsupportedIdentifier"
	UserActionRequired    ProblemType = errorNS + "userActionRequired"
)

// Problem is a problem document (RFC 9457, RFC 8555 §6.7). It says what was wrong,
// where, what is allowed and how to repair it; it never holds a secret or raw input.
type Problem struct {
	Type        ProblemType `json:"type"`
	Detail      string      `json:"detail"`
	Status      int         `json:"status,omitzero"`
	Identifier  *Identifier `json:"identifier,omitempty"` // in subproblems
	Subproblems []*Problem  `json:"subproblems,omitempty"`
	Algorithms  []string    `json:"algorithms,omitempty"` // with badSignatureAlgorithm

	retryAfter time.Duration
	location   string
	link       string
	allow      string
}

// Identifier is a name as ACME writes it (RFC 8555 §9.7.7, RFC 8738).
type Identifier struct {
	Type  string `json:"type"`
	Value string `json:"value"`
}

func identifier(n ca.Name) Identifier { return Identifier{Type: string(n.Kind), Value: n.Value} }

func (p *Problem) Error() string {
	return strings.TrimPrefix(string(p.Type), errorNS) + ": " + p.Detail
}

func problem(status int, t ProblemType, format string, args ...any) *Problem {
	return &Problem{Type: t, Status: status, Detail: fmt.Sprintf(format, args...)}
}

func malformed(format string, args ...any) *Problem {
	return problem(http.StatusBadRequest, Malformed, format, args...)
}

// quote makes foreign text fit to be shown: at most 64 characters of quoted ASCII.
func quote(s string) string {
	const limit = 64
	cut := ""
	if len(s) > limit {
		s, cut = s[:limit], "…"
	}
	q := strconv.QuoteToASCII(strings.ToValidUTF8(s, "?"))
	if len(q) > limit+2 {
		q, cut = strings.TrimRight(q[:limit], `\`)+`"`, "…"
	}
	return unmarked(q) + cut
}

// unmarked takes the characters away that could be markup wherever a text is shown.
func unmarked(s string) string {
	return strings.NewReplacer("<", `\x3c`, ">", `\x3e`, "&", `\x26`).Replace(s)
}

// noSuch is the answer for what is not there and for what belongs to another
// account: who asks cannot tell them apart.
func noSuch(what string) *Problem {
	return problem(http.StatusNotFound, Unauthorized, "this account has no such %s", what)
}

const retrySoon = 5 * time.Second

// problemFor turns an error into what the client is told; internal says that
// the operator should be told, too.
func problemFor(err error) (p *Problem, internal bool) {
	var refusal *ca.Refusal
	switch {
	case errors.As(err, &p):
		return p, false
	case errors.As(err, &refusal):
		return refused(refusal), false
	case unavailable(err):
		p = problem(http.StatusServiceUnavailable, ServerInternal, "the server cannot record or sign anything at the moment; nothing was changed; repeat the request later")
		p.retryAfter = retrySoon
		return p, true
	case errors.Is(err, audit.ErrConflict):
		return problem(http.StatusConflict, Malformed, "the object was changed by another request meanwhile; fetch it and decide again"), false
	default:
		return problem(http.StatusInternalServerError, ServerInternal, "the server failed; its log says why; repeat the request later"), true
	}
}

// unavailable tells errors that pass by themselves from those of the request.
func unavailable(err error) bool {
	for _, target := range []error{audit.ErrUnavailable, audit.ErrBusy, hsmstore.ErrUnavailable, hsmstore.ErrBusy, hsmstore.ErrClosed, hsmstore.ErrNoKey, context.DeadlineExceeded, context.Canceled} {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}

// refused translates a refusal of the CA.
func refused(r *ca.Refusal) *Problem {
	types := map[ca.Code]struct {
		t      ProblemType
		status int
	}{
		ca.BadCSR:            {BadCSR, http.StatusBadRequest},
		ca.BadPublicKey:      {BadPublicKey, http.StatusBadRequest},
		ca.BadName:           {RejectedIdentifier, http.StatusBadRequest},
		ca.BadReason:         {BadRevocationReason, http.StatusBadRequest},
		ca.AlreadyRevoked:    {AlreadyRevoked, http.StatusBadRequest},
		ca.NotFound:          {Malformed, http.StatusNotFound},
		ca.IssuerUnavailable: {ServerInternal, http.StatusServiceUnavailable},
	}
	e, ok := types[r.Code]
	if !ok {
		e.t, e.status = Malformed, http.StatusBadRequest
	}
	p := &Problem{Type: e.t, Status: e.status, Detail: unmarked(r.Detail)}
	if r.Field != "" {
		p.Detail = r.Field + ": " + p.Detail
	}
	if r.Name != nil {
		id := identifier(*r.Name)
		p.Subproblems = []*Problem{{Type: e.t, Detail: unmarked(r.Detail), Identifier: &id}}
	}
	if e.status == http.StatusServiceUnavailable {
		p.retryAfter = retrySoon
	}
	return p
}
