package console

import (
	"context"
	"encoding/hex"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"chancery/admin"
	"chancery/audit"
)

// enrolData is what the enrolment page shows. Without Secret it asks for it: script takes
// it from behind the # of the link, which browsers send nowhere (RFC 9110 §7.1).
type enrolData struct {
	Secret   string
	Name     foreign
	By       foreign
	Roles    []foreign
	Expires  stamp
	Passkeys []passkeyRow
	Problem  string
	Detail   foreign
	Minutes  int
	Done     bool
	Proposal *asked // once the change is asked for
}

type passkeyRow struct {
	Label foreign
	SPKI  string // SHA-256 in hex
}

// asked is a proposal that waits for the officers, with the lines that sign it.
type asked struct {
	ID          string
	Fingerprint string
	Lines       []foreign
}

// enrolPage is GET /console/enrol.
func (c *Console) enrolPage(w http.ResponseWriter, r *request) error {
	return c.showEnrol(w, r, http.StatusOK, enrolData{})
}

func (c *Console) showEnrol(w http.ResponseWriter, r *request, status int, d enrolData) error {
	return c.show(w, status, "enrol", "", c.view(r, "", "enrol.title", d))
}

// invited finds the enrolment of the secret that a form has. Guesses are limited.
func (c *Console) invited(ctx context.Context, w http.ResponseWriter, r *request) (admin.Enrolment, enrolData, error) {
	if wait, ok := c.admit(w, r, "enrol"); !ok {
		return admin.Enrolment{}, enrolData{Problem: "signin.wait", Minutes: int(wait/time.Minute) + 1}, nil
	}
	secret := strings.TrimSpace(r.form.Get("secret"))
	e, err := c.cfg.Enrolments.Find(ctx, secret)
	var refusal *admin.Refusal
	if errors.As(err, &refusal) {
		c.cfg.Refused(audit.Refusal{Kind: "console:enrol", Detail: "unknown link", Client: r.client()})
		return e, enrolData{Problem: "enrol.unknown"}, nil
	}
	c.attempts.giveBack("enrol", r.address())
	if err != nil {
		return e, enrolData{}, err
	}
	return e, c.enrolDataOf(r, secret, e), nil
}

func (c *Console) enrolDataOf(r *request, secret string, e admin.Enrolment) enrolData {
	v := c.view(r, "", "enrol.title", nil)
	d := enrolData{Secret: secret, Name: foreign(e.Name), By: foreign(e.By), Expires: v.stamp(e.Expires)}
	for _, a := range e.Roles {
		d.Roles = append(d.Roles, v.assignment(a))
	}
	d.Passkeys = passkeyRows(e.Passkeys)
	return d
}

func (d enrolData) status() int {
	switch {
	case d.Problem == "signin.wait":
		return http.StatusTooManyRequests
	case d.Problem == "enrol.unknown":
		return http.StatusNotFound
	case d.Problem != "":
		return http.StatusUnprocessableEntity
	}
	return http.StatusOK
}

// enrolShow is POST /console/enrol: it shows the invitation and changes nothing.
func (c *Console) enrolShow(w http.ResponseWriter, r *request) error {
	_, d, err := c.invited(r.Context(), w, r)
	if err != nil {
		return err
	}
	return c.showEnrol(w, r, d.status(), d)
}

// enrolOptions is POST /console/enrol/options: what script needs to make a passkey.
func (c *Console) enrolOptions(w http.ResponseWriter, r *request) error {
	ctx := r.Context()
	e, d, err := c.invited(ctx, w, r)
	if err != nil {
		return err
	}
	if d.Problem != "" {
		return failure{status: d.status(), text: "error.enrol"}
	}
	rp, err := c.rp(ctx)
	if err != nil {
		return err
	}
	user, err := c.users(ctx)
	if err != nil {
		return err
	}
	have, err := c.owned(ctx, e)
	if err != nil {
		return err
	}
	b, err := rp.CreationOptions(user(e.Name), have, c.challenge(toEnrol+e.ID))
	if err != nil {
		return err
	}
	return sendJSON(w, b)
}

// owned are the credentials that the person of an enrolment has already.
func (c *Console) owned(ctx context.Context, e admin.Enrolment) (have [][]byte, err error) {
	h, err := c.cfg.Board.Rosters(ctx)
	if err != nil {
		return nil, err
	}
	o, _ := h.Current().Officer(e.Name)
	return append(credentials(o), credentials(admin.Officer{Passkeys: e.Passkeys})...), nil
}

// enrolPasskey is POST /console/enrol/passkey: a passkey was made.
func (c *Console) enrolPasskey(w http.ResponseWriter, r *request) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), actTime)
	defer cancel()
	e, d, err := c.invited(ctx, w, r)
	if err != nil {
		return err
	}
	if d.Problem != "" {
		return c.showEnrol(w, r, d.status(), d)
	}
	k, err := c.made(ctx, e, r.form.Get("assertion"))
	var refused *refusedPasskey
	var refusal *admin.Refusal
	if err == nil {
		k.Label = audit.Text(strings.TrimSpace(r.form.Get("label")), 64)
		e, err = c.cfg.Enrolments.AddPasskey(ctx, d.Secret, k)
	}
	switch {
	case errors.As(err, &refused):
		c.log.Warn("a passkey was not taken", "id", r.id, "enrolment", e.ID, "remote", r.address(), "err", refused.error)
		d.Problem = "enrol.refused"
	case errors.As(err, &refusal):
		d.Problem, d.Detail = "enrol.refused", foreign(refusal.Detail)
	case err != nil:
		return err
	default:
		d = c.enrolDataOf(r, d.Secret, e)
	}
	return c.showEnrol(w, r, d.status(), d)
}

// made verifies a passkey that was made for an enrolment, and spends the challenge.
func (c *Console) made(ctx context.Context, e admin.Enrolment, response string) (admin.Passkey, error) {
	challenge, err := c.challenged(toEnrol+e.ID, []byte(response))
	if err != nil {
		return admin.Passkey{}, &refusedPasskey{err}
	}
	user, err := c.users(ctx)
	if err != nil {
		return admin.Passkey{}, err
	}
	rp, err := c.rp(ctx)
	if err != nil {
		return admin.Passkey{}, err
	}
	k, err := rp.Created(user(e.Name), challenge, []byte(response))
	if err != nil {
		return k, &refusedPasskey{err}
	}
	if err := c.spend(ctx, challenge); errors.Is(err, errChallenge) {
		return k, &refusedPasskey{err}
	} else if err != nil {
		return k, err
	}
	return k, nil
}

// enrolFinish is POST /console/enrol/finish: it closes the link. The form says how many
// passkeys the page showed; none ever goes, so that another one shows in the number.
func (c *Console) enrolFinish(w http.ResponseWriter, r *request) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), actTime)
	defer cancel()
	e, d, err := c.invited(ctx, w, r)
	if err != nil {
		return err
	}
	if d.Problem != "" {
		return c.showEnrol(w, r, d.status(), d)
	}
	seen, err := strconv.Atoi(r.form.Get("passkeys"))
	if err != nil || seen != len(e.Passkeys) {
		d.Problem = "enrol.meanwhile"
		return c.showEnrol(w, r, d.status(), d)
	}
	if len(e.Passkeys) < 2 && r.form.Get("alone") != "yes" {
		d.Problem = "enrol.oneOnly"
		return c.showEnrol(w, r, d.status(), d)
	}
	_, proposal, err := c.cfg.Enrolments.Finish(ctx, d.Secret, seen)
	var refusal *admin.Refusal
	if errors.As(err, &refusal) {
		d.Problem, d.Detail = "enrol.refused", foreign(refusal.Detail)
		return c.showEnrol(w, r, d.status(), d)
	}
	if err != nil {
		return err
	}
	c.log.Info("enrolment finished", "id", r.id, "enrolment", e.ID, "officer", e.Name, "remote", r.address())
	d.Secret, d.Done = "", true
	if proposal != nil {
		if d.Proposal, err = c.askedFor(ctx, proposal); err != nil {
			return err
		}
	}
	return c.showEnrol(w, r, http.StatusOK, d)
}

// askedFor is a proposal with the command of each officer who may decide with a CLI key.
func (c *Console) askedFor(ctx context.Context, a *admin.Approval) (*asked, error) {
	h, err := c.cfg.Board.Rosters(ctx)
	if err != nil {
		return nil, err
	}
	roster := h.Current()
	out := &asked{ID: a.ID, Fingerprint: admin.Fingerprint(a.Proposal)}
	for _, o := range roster.ShareHolders() {
		if !roster.Asked(a.Asked.Requester, o.Name) {
			out.Lines = append(out.Lines, signLine(a.ID, o.Name))
		}
	}
	return out, nil
}

// shellQuote makes one word of a POSIX shell.
func shellQuote(s string) string {
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-/", r))
	}) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func passkeyRows(ks []admin.Passkey) (out []passkeyRow) {
	for _, k := range ks {
		sum := spkiHash(k.SPKI)
		out = append(out, passkeyRow{foreign(k.Label), hex.EncodeToString(sum[:])})
	}
	return out
}
