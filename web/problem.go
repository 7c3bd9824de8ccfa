package web

import (
	"context"
	"encoding/json/v2"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"

	"github.com/labstack/echo/v4"

	"chancery/admin"
	"chancery/audit"
	"chancery/ca"
	"chancery/hsmstore"
)

// Problem is a problem document (RFC 9457). Its text is made for who asked: what was
// wrong, where, what is allowed, how to repair it; no secret and no raw input.
type Problem struct {
	Type      string `json:"type"` // URL of a help page
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Detail    string `json:"detail"`
	Instance  string `json:"instance"`            // urn:uuid of the request, as in the log
	Field     string `json:"field,omitempty"`     // JSON pointer into the request's body (RFC 6901)
	Parameter string `json:"parameter,omitempty"` // name in the path, the query or the headers
	Part      string `json:"part,omitempty"`      // of the server that is not ready

	slug slug
}

func (p *Problem) Error() string { return string(p.slug) + ": " + p.Detail }

func (p *Problem) at(field, parameter string) *Problem {
	p.Field, p.Parameter = field, parameter
	return p
}

func problemf(s slug, format string, args ...any) *Problem {
	return &Problem{slug: s, Detail: fmt.Sprintf(format, args...)}
}

// ErrProofPending: no checkpoint covers the leaf yet; one will within seconds.
var ErrProofPending = errors.New("no checkpoint covers the leaf yet")

// NotReady says which part of the server cannot do its work. Its text is public.
type NotReady struct {
	Part   string // "hsm", "ledger", "database", …
	Detail string
}

func (e *NotReady) Error() string { return e.Part + ": " + e.Detail }

// errPanic stands for a panic that was logged.
var errPanic = errors.New("panic")

// slug is the last part of a problem type's URL.
type slug string

const (
	malformedRequest     slug = "malformed-request"
	badJSON              slug = "bad-json"
	badParameter         slug = "bad-parameter"
	badCSR               slug = "bad-csr"
	badPublicKey         slug = "bad-public-key"
	rejectedName         slug = "rejected-name"
	badProfile           slug = "bad-profile"
	badReason            slug = "bad-revocation-reason"
	badDigest            slug = "bad-digest"
	badProposal          slug = "bad-proposal"
	unauthorized         slug = "unauthorized"
	forbiddenHere        slug = "forbidden"
	crossOrigin          slug = "cross-origin"
	needsOfficers        slug = "needs-officers"
	voteRefused          slug = "vote-refused"
	notFound             slug = "not-found"
	methodNotAllowed     slug = "method-not-allowed"
	conflict             slug = "conflict"
	alreadyRevoked       slug = "already-revoked"
	approvalClosed       slug = "approval-closed"
	hsmConflict          slug = "hsm-conflict"
	hsmFault             slug = "hsm-fault"
	tooLarge             slug = "too-large"
	unsupportedMediaType slug = "unsupported-media-type"
	internal             slug = "internal"
	busy                 slug = "busy"
	unavailable          slug = "unavailable"
	timedOut             slug = "timed-out"
	notReady             slug = "not-ready"
	proofPending         slug = "proof-pending"
)

// kind is what all problems of one type have in common.
type kind struct {
	slug    slug
	status  int
	title   string
	meaning string // for the help page
	cure    string
	retry   int // seconds of Retry-After; 0: none
}

// kinds is the table of all problem types. The first of a status stands for the errors of that status which echo makes.
var kinds = []kind{
	{malformedRequest, 400, "Malformed request", "The request is no proper HTTP request for this server.", "Read the detail; openapi.yaml describes every request.", 0},
	{badJSON, 400, "Bad JSON", "The body is no JSON object of the kind that this request takes: bad syntax, an unknown or repeated member, a wrong type, or too deep.", "The field points at the place. Send one object with the members that openapi.yaml lists, each once.", 0},
	{badParameter, 400, "Bad parameter", "A parameter in the query is unknown, repeated or out of its bounds.", "The detail says what is allowed.", 0},
	{badCSR, 400, "Bad certificate signing request", "The CSR cannot be read, is not signed by its own key, or asks for something that the profile does not give.", "Make a new CSR with the key that shall be certified and only the names that you need, e.g. openssl req -new -key key.pem -subj / -addext subjectAltName=DNS:www.example.org", 0},
	{badPublicKey, 400, "Public key refused", "The key in the CSR is too weak, of a kind that the profile does not allow, known to be compromised, or one of the CA's own.", "Make a new key of an allowed kind, e.g. openssl ecparam -name prime256v1 -genkey -noout -out key.pem", 0},
	{rejectedName, 400, "Name refused", "A name in the request is malformed or this CA may not certify it.", "Ask for names that the operator's policy allows, in their usual written form.", 0},
	{badProfile, 400, "Unknown profile", "The request names a profile that does not exist or is not for requests.", "Use a profile that the detail lists.", 0},
	{badReason, 400, "Bad revocation reason", "The reason is none of RFC 5280 §5.3.1 that may be asked for.", "Use one of the reasons that the detail lists.", 0},
	{badDigest, 400, "Bad digest", "The document's digest is missing or is no SHA-256.", "Hash the document with SHA-256 and send the 64 hex digits, e.g. of sha256sum FILE; chancery sign FILE does all of it.", 0},
	{badProposal, 400, "Bad proposal", "What the officers are to decide about is unknown, incomplete or could not be carried out.", "The detail says what is allowed; chancery key generate and chancery approve do all of it.", 0},
	{unauthorized, 401, "Not authorized", "The request does not show who asks: it has no token, or one that gives no access, or at the admin door a certificate that gives none.", "Send Authorization: Bearer followed by an API token, over HTTPS only; in dev the content of admin.token. Or use a client certificate at the admin door.", 0},
	{crossOrigin, 403, "Cross-origin request refused", "A browser sent this request on behalf of a page of another site.", "Use this server's own pages, or a program that is no browser.", 0},
	{forbiddenHere, 403, "Not permitted", "Who asks is known, but has no role that allows this, or not for this issuer, profile or key.", "GET /api/v1/whoami lists your roles. An administrator gives machines other ones; the officers give people other ones.", 0},
	{needsOfficers, 403, "Officers must approve this", "This act is so grave that the admin token does not suffice: several officers must approve it.", "Propose it with the command line tool (chancery approve --help) and have it approved.", 0},
	{voteRefused, 403, "Vote refused", "The vote does not count: it is not by an officer of this CA over exactly this proposal, or this officer may not vote on it.", "The detail says why. Look at the proposal with chancery approve show, then vote with chancery approve sign.", 0},
	{notFound, 404, "Not found", "There is nothing at this URL, or nothing with this name or serial.", "Check the spelling; serials are written in lower-case hex without colons.", 0},
	{methodNotAllowed, 405, "Method not allowed", "The URL exists, but does not take this method.", "Use a method that the header Allow lists.", 0},
	{conflict, 409, "State changed meanwhile", "Another request changed the same object at the same time.", "Fetch the object and decide again.", 0},
	{alreadyRevoked, 409, "Already revoked", "The certificate is revoked already; its first date and reason stay.", "Nothing needs to be done.", 0},
	{approvalClosed, 409, "Proposal is closed", "The proposal was decided, carried out, cancelled or has expired; or too many are waiting.", "Look at its state. Propose it again if it is still wanted.", 0},
	{hsmConflict, 409, "Does not fit the state", "The HSM member or key is in a state in which this cannot be done.", "The detail says in which state it is and what is possible; chancery hsm list and chancery key list show all.", 0},
	{hsmFault, 409, "HSM cannot be used", "The HSM or its module did not do what was asked: no token, a wrong PIN, a module that does not load.", "Operators: chancery doctor names the cause.", 0},
	{tooLarge, 413, "Request too large", "The body is larger than this server reads.", "Send less: a CSR has about 1,000 octets.", 0},
	{unsupportedMediaType, 415, "Unsupported media type", "The body is not of the type that this request takes.", "Send JSON and the header Content-Type: application/json.", 0},
	{internal, 500, "Internal error", "The server failed in a way that it did not foresee. Its log has an entry with the instance of this problem.", "Tell the operator the instance. Repeating the request may help; a certificate that was not handed out is revoked by itself.", 0},
	{unavailable, 503, "Temporarily unavailable", "The server cannot sign or record anything at the moment: no HSM or no database is available. No certificate was handed out.", "Repeat the request later; that is safe.", 5},
	{busy, 503, "Too busy", "More requests are waiting than the server takes. Nothing was changed.", "Repeat the request after the time in Retry-After.", 1},
	{timedOut, 503, "Took too long", "The server gave up waiting. The act may have been carried out after all.", "Look the object up before you repeat the request.", 5},
	{notReady, 503, "Not ready", "The server runs, but a part of it cannot do its work at the moment.", "Operators: chancery doctor names the cause. Clients: wait.", 5},
	{proofPending, 503, "Proof not made yet", "The certificate is on the ledger, but no signed checkpoint covers it yet.", "Ask again after the time in Retry-After.", 2},
}

func kindOf(s slug) kind {
	for _, k := range kinds {
		if k.slug == s {
			return k
		}
	}
	return kindOf(internal)
}

// refusals translates the codes of the CA.
var refusals = map[ca.Code]slug{
	ca.BadCSR: badCSR, ca.BadPublicKey: badPublicKey, ca.BadName: rejectedName, ca.BadProfile: badProfile, ca.BadReason: badReason,
	ca.AlreadyRevoked: alreadyRevoked, ca.NotFound: notFound, ca.IssuerUnavailable: unavailable,
}

// boardCodes translates the codes of the officers' board.
var boardCodes = map[admin.Code]slug{
	admin.BadProposal: badProposal, admin.NotFound: notFound, admin.VoteRefused: voteRefused, admin.Closed: approvalClosed, admin.NotAllowed: forbiddenHere,
}

// sentinels translates errors that lower floors wrap, in this order.
var sentinels = []struct {
	err    error
	slug   slug
	detail string
}{
	{audit.ErrBusy, busy, "too many requests wait for the ledger; nothing was changed; repeat the request"},
	{hsmstore.ErrBusy, busy, "too many requests wait for the HSMs; nothing was changed; repeat the request"},
	{context.DeadlineExceeded, timedOut, "it was not finished within the time limit and may have been carried out after all; look it up before you repeat the request"},
	{context.Canceled, timedOut, "the request was given up before it was finished; look the object up before you repeat it"},
	{audit.ErrUnavailable, unavailable, "the ledger cannot be written at the moment, and without it nothing is signed; repeat the request later"},
	{audit.ErrTampered, unavailable, "the ledger is closed until its operator has looked at it, and without it nothing is signed; repeat the request later"},
	{hsmstore.ErrUnavailable, unavailable, "no HSM can sign at the moment; repeat the request later"},
	{hsmstore.ErrClosed, unavailable, "the server is stopping; repeat the request later"},
	{hsmstore.ErrNoKey, unavailable, "the issuer's key is not available in the HSMs at the moment; repeat the request later"},
	{hsmstore.ErrToken, unavailable, "no HSM can sign at the moment; repeat the request later"},
	{hsmstore.ErrPIN, unavailable, "no HSM can sign at the moment; repeat the request later"},
	{hsmstore.ErrModule, unavailable, "no HSM can sign at the moment; repeat the request later"},
	{ErrProofPending, proofPending, "the next checkpoint, due within seconds, will cover this certificate; ask again"},
	{audit.ErrConflict, conflict, "the object was changed by another request meanwhile; fetch it and decide again"},
	{audit.ErrNotFound, notFound, "there is no such object"},
}

// problemFor turns any error into what the client is told.
func problemFor(err error) *Problem {
	var p *Problem
	var refusal *ca.Refusal
	var board *admin.Refusal
	var ready *NotReady
	var he *echo.HTTPError
	switch {
	case errors.As(err, &p):
		return p
	case errors.As(err, &refusal):
		return refused(refusal)
	case errors.As(err, &board):
		return refusedByBoard(board)
	case errors.As(err, &ready):
		p := problemf(notReady, "%s", ready.Error())
		p.Part = ready.Part
		return p
	}
	for _, s := range sentinels {
		if errors.Is(err, s.err) {
			return problemf(s.slug, "%s", s.detail)
		}
	}
	if errors.As(err, &he) {
		return ofStatus(he.Code)
	}
	return problemf(internal, "the server failed; its log has the cause under the instance of this problem; tell the operator that instance")
}

// refused translates a refusal. Fields of the CSR and of the path are named as the
// client knows them.
func refused(r *ca.Refusal) *Problem {
	s, ok := refusals[r.Code]
	if !ok {
		s = malformedRequest
	}
	p := problemf(s, "%s: %s", r.Field, r.Detail)
	switch head, _, _ := strings.Cut(r.Field, "."); head {
	case "csr", "profile", "reason":
		p.Field = "/" + head
	case "name":
		p.Field = "/csr"
	case "serial", "issuer":
		p.Parameter = head
	}
	return p
}

// refusedByBoard translates a refusal of the officers' board.
func refusedByBoard(r *admin.Refusal) *Problem {
	s, ok := boardCodes[r.Code]
	if !ok {
		s = malformedRequest
	}
	p := problemf(s, "%s", r.Detail)
	switch r.Field {
	case "officer", "proposal", "signature", "decision":
		p.Field = "/" + r.Field
	case "id", "state":
		p.Parameter = r.Field
	}
	return p
}

// ofStatus is for the errors that echo itself makes.
func ofStatus(status int) *Problem {
	switch status {
	case http.StatusNotFound:
		return problemf(notFound, "there is nothing at this URL; openapi.yaml lists what there is")
	case http.StatusMethodNotAllowed:
		return problemf(methodNotAllowed, "the URL does not take this method; the header Allow lists those that it takes")
	case http.StatusRequestEntityTooLarge:
		return tooLong()
	case http.StatusUnsupportedMediaType:
		return problemf(unsupportedMediaType, "the body must be JSON: Content-Type: application/json")
	}
	if status >= 400 && status < 500 {
		return problemf(malformedRequest, "the request cannot be understood; openapi.yaml describes every request")
	}
	return problemf(internal, "the server failed; its log has the cause under the instance of this problem; tell the operator that instance")
}

// acmeTypes are for the errors that befall a request to ACME before or in its handler
// (too many, a panic): ACME's clients know only ACME's types (RFC 8555 §6.7).
var acmeTypes = map[slug]string{internal: "urn:ietf:params:acme:error:serverInternal", busy: "urn:ietf:params:acme:error:rateLimited"}

// fail is the one place where an error becomes an answer; it is echo's HTTPErrorHandler.
func (s *Server) fail(err error, c echo.Context) {
	p := *problemFor(err)
	s.note(c, err, p.slug)
	k := kindOf(p.slug)
	if k.status >= 500 {
		level := slog.LevelError
		if k.retry > 0 {
			level = slog.LevelWarn // passes by itself
		}
		s.log.Log(c.Request().Context(), level, "request failed", "id", requestID(c), "problem", string(p.slug), "err", err)
	}
	if c.Response().Committed {
		return // the answer had begun; it ends here
	}
	p.Type, p.Title, p.Status, p.Instance = s.problemURL(k.slug), k.title, k.status, "urn:uuid:"+requestID(c)
	h := c.Response().Header()
	for _, name := range []string{"Location", "Link", "Etag", "Last-Modified", "Content-Disposition"} {
		h.Del(name) // of a success that did not come to pass
	}
	h.Set("Cache-Control", "no-store")
	if k.retry > 0 {
		h.Set("Retry-After", strconv.Itoa(k.retry))
	}
	if k.status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", `Bearer realm="chancery"`)
	}
	var b []byte
	var encErr error
	if t, ok := acmeTypes[k.slug]; ok && strings.HasPrefix(c.Request().URL.Path, "/acme/") {
		b, encErr = json.Marshal(map[string]any{"type": t, "status": k.status, "detail": p.Detail, "instance": p.Instance})
	} else {
		b, encErr = json.Marshal(p)
	}
	if encErr == nil {
		encErr = c.Blob(k.status, "application/problem+json", append(b, '\n'))
	}
	if encErr != nil {
		s.log.Debug("answer not sent", "id", requestID(c), "err", encErr)
	}
}

func (s *Server) problemURL(k slug) string { return s.base + "/problems/" + string(k) }
