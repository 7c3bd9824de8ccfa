package console

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"chancery/admin"
)

// officersData is what the page of the officers shows.
type officersData struct {
	Version    uint64
	Entry      uint64 // that put the roster into force
	Digest     string
	Quorum     int
	Voters     int
	CLI        int
	RPID       foreign
	Groups     []groupRow
	Officers   []officerRow
	Enrolments []enrolmentRow
	Roles      []string // of the matrix
	Matrix     []matrixRow
	MayAsk     bool
}

type groupRow struct {
	Name    foreign
	Quorum  int
	Members []foreign
}

type officerRow struct {
	Raw      string // for URLs and forms
	Name     foreign
	Roles    []foreign
	Votes    bool
	CLI      bool
	Passkeys []passkeyRow
	Few      bool // fewer than two passkeys
	Me       bool
}

type enrolmentRow struct {
	ID       string
	Name     foreign
	Roles    []foreign
	By       foreign
	Expires  stamp
	Passkeys int
	State    badge
	Open     bool
	Done     bool // and not yet on the roster
}

type matrixRow struct {
	Permission string
	Text       string
	Allowed    []bool
}

// officers is GET /console/officers.
func (c *Console) officers(w http.ResponseWriter, r *request) error {
	h, err := c.cfg.Board.Rosters(r.Context())
	if err != nil {
		return err
	}
	all, err := c.cfg.Enrolments.List(r.Context())
	if err != nil {
		return err
	}
	v := c.view(r, "officers", "officers.title", nil)
	roster := h.Current()
	d := officersData{Version: roster.Version, Digest: hexText(digestOf(roster)), Quorum: roster.Quorum, CLI: roster.CLI, RPID: foreign(roster.RPID), MayAsk: r.session.who.MaySome(admin.Propose)}
	if n := len(h.Changes); n > 0 {
		d.Entry = h.Changes[n-1].Leaf
	}
	for _, o := range roster.Officers {
		row := officerRow{Raw: o.Name, Name: foreign(o.Name), Votes: roster.Votes(o), CLI: o.SPKI != nil, Passkeys: passkeyRows(o.Passkeys), Few: len(o.Passkeys) < 2, Me: o.Name == r.session.officer.Name}
		for _, a := range roster.Principal(o).Assignments {
			row.Roles = append(row.Roles, v.assignment(a))
		}
		if row.Votes {
			d.Voters++
		}
		d.Officers = append(d.Officers, row)
	}
	for _, g := range roster.Groups {
		row := groupRow{Name: foreign(g.Name), Quorum: g.Quorum}
		for _, m := range g.Members {
			row.Members = append(row.Members, foreign(m))
		}
		d.Groups = append(d.Groups, row)
	}
	for _, e := range all {
		if row, ok := v.enrolmentRow(h, e); ok {
			d.Enrolments = append(d.Enrolments, row)
		}
	}
	for _, role := range admin.Roles {
		d.Roles = append(d.Roles, v.Lang.text("role."+string(role)))
	}
	for _, p := range admin.Permissions() {
		row := matrixRow{Permission: string(p), Text: v.Lang.text("permission." + string(p))}
		with := rolesWith(p)
		for _, role := range admin.Roles {
			row.Allowed = append(row.Allowed, slices.Contains(with, role))
		}
		d.Matrix = append(d.Matrix, row)
	}
	v.Data = d
	return c.show(w, http.StatusOK, "officers", "", v)
}

func digestOf(r admin.Roster) []byte { d := r.Digest(); return d[:] }

// enrolmentRow is an enrolment that still matters: open, or done and not yet used.
func (v *view) enrolmentRow(h admin.History, e admin.Enrolment) (enrolmentRow, bool) {
	row := enrolmentRow{ID: e.ID, Name: foreign(e.Name), By: foreign(e.By), Expires: v.stamp(e.Expires), Passkeys: len(e.Passkeys)}
	for _, a := range e.Roles {
		row.Roles = append(row.Roles, v.assignment(a))
	}
	switch {
	case e.State == admin.EnrolmentOpen && e.Expires.After(v.now):
		row.Open, row.State = true, v.badge("warn", "enrolment.open")
		return row, true
	case e.State == admin.EnrolmentDone && !e.Used(h):
		row.Done, row.State = true, v.badge("event", "enrolment.done")
		return row, v.now.Sub(e.Created) < 30*24*time.Hour
	}
	return row, false
}

// roleChoice is a role in a form.
type roleChoice struct {
	Field   string
	Text    string
	Checked bool
}

// rolesData is the part of a form that asks for roles.
type rolesData struct {
	Choices []roleChoice
	Limited string // one limited role a line, as admin.ParseAssignment reads it
}

// roleFields are the fields of that part.
func roleFields(others ...string) []string {
	for _, r := range admin.Roles {
		others = append(others, "role-"+string(r))
	}
	return append(others, "limited")
}

func (v *view) rolesData(have []admin.Assignment) (d rolesData) {
	for _, r := range admin.Roles {
		d.Choices = append(d.Choices, roleChoice{"role-" + string(r), v.Lang.text("role." + string(r)), slices.Contains(have, admin.Assignment{Role: r})})
	}
	var limited []string
	for _, a := range have {
		if a != (admin.Assignment{Role: a.Role}) {
			limited = append(limited, a.String())
		}
	}
	d.Limited = strings.Join(limited, "\n")
	return d
}

// rolesOf reads that part of a form.
func rolesOf(r *request) (out []admin.Assignment, err error) {
	for _, role := range admin.Roles {
		if r.form.Get("role-"+string(role)) == "yes" {
			out = append(out, admin.Assignment{Role: role})
		}
	}
	for line := range strings.Lines(r.form.Get("limited")) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		a, err := admin.ParseAssignment(line)
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, admin.CheckAssignments(out)
}

// inviteData is what the page shows that makes a link.
type inviteData struct {
	Name    string
	Roles   rolesData
	Problem foreign
	Link    string // once it is made
	Person  foreign
	Expires stamp
}

// invitePage is GET /console/officers/invite.
func (c *Console) invitePage(w http.ResponseWriter, r *request) error {
	v := c.view(r, "officers", "invite.title", nil)
	v.Data = inviteData{Roles: v.rolesData(nil)}
	return c.show(w, http.StatusOK, "invite", "", v)
}

// invite is POST /console/officers/invite. The link is shown only in this answer.
func (c *Console) invite(w http.ResponseWriter, r *request) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), actTime)
	defer cancel()
	v := c.view(r, "officers", "invite.title", nil)
	name := strings.TrimSpace(r.form.Get("name"))
	d := inviteData{Name: name}
	roles, err := rolesOf(r)
	d.Roles = v.rolesData(roles)
	var secret string
	var e admin.Enrolment
	if err == nil {
		secret, e, err = c.cfg.Enrolments.Open(ctx, name, roles, r.session.who.Requester(), 0)
		var refusal *admin.Refusal
		if err != nil && !errors.As(err, &refusal) {
			return err
		}
		if refusal != nil {
			err = errors.New(refusal.Detail)
		}
	}
	if err != nil {
		d.Problem, v.Data = foreign(err.Error()), d
		v.Data = d
		return c.show(w, http.StatusUnprocessableEntity, "invite", "", v)
	}
	_, origins, err := c.cfg.Enrolments.RP(ctx)
	if err != nil {
		return err
	}
	base := c.cfg.PublicURL
	for _, o := range origins {
		if strings.HasSuffix(o, "://"+r.Host) {
			base = o
		}
	}
	c.log.Info("enrolment link made at the console", "id", r.id, "enrolment", e.ID, "officer", r.session.officer.Name, "remote", r.address())
	d.Link, d.Person, d.Expires = base+string(url.Enrol())+"#"+secret, foreign(e.Name), v.stamp(e.Expires)
	v.Data = d
	return c.show(w, http.StatusOK, "invite", "", v)
}

// withdrawPage is GET /console/officers/enrolments/{id}/withdraw.
func (c *Console) withdrawPage(w http.ResponseWriter, r *request) error {
	e, err := c.cfg.Enrolments.Named(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	h, err := c.cfg.Board.Rosters(r.Context())
	if err != nil {
		return err
	}
	v := c.view(r, "officers", "withdraw.title", nil)
	v.Data, _ = v.enrolmentRow(h, e)
	return c.show(w, http.StatusOK, "withdraw", "", v)
}

// withdraw is POST /console/officers/enrolments/{id}/withdraw.
func (c *Console) withdraw(w http.ResponseWriter, r *request) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), actTime)
	defer cancel()
	if err := c.cfg.Enrolments.Withdraw(ctx, r.PathValue("id"), r.session.who.Requester()); err != nil {
		return err
	}
	return redirect(w, url.Officers())
}

// acceptEnrolment is POST /console/officers/accept: it drafts the roster with the passkeys of an
// enrolment.
func (c *Console) acceptEnrolment(w http.ResponseWriter, r *request) error {
	e, err := c.cfg.Enrolments.Named(r.Context(), r.form.Get("id"))
	if err != nil {
		return err
	}
	if e.State != admin.EnrolmentDone {
		return failure{status: http.StatusConflict, text: "error.board"}
	}
	parameters, err := c.cfg.Enrolments.Parameters(r.Context(), e)
	if err != nil {
		return err
	}
	return c.draftRoster(w, r, parameters)
}

func (c *Console) draftRoster(w http.ResponseWriter, r *request, parameters []byte) error {
	acts, err := admin.RosterActs(parameters)
	if err != nil {
		return failure{status: http.StatusUnprocessableEntity, text: "error.board", detail: foreign(err.Error())}
	}
	return c.draft(w, r, "officers", admin.ChangeRoster, acts, parameters)
}

// change drafts the roster that edit makes of the one in force.
func (c *Console) change(w http.ResponseWriter, r *request, edit func(next *admin.Roster) error) error {
	now := r.session.roster
	next := now.Successor()
	err := edit(&next)
	if err == nil {
		err = next.Check()
	}
	if err != nil {
		return failure{status: http.StatusUnprocessableEntity, text: "error.board", detail: foreign(err.Error())}
	}
	parameters, err := admin.ChangeParameters(now, next)
	if err != nil {
		return err
	}
	return c.draftRoster(w, r, parameters)
}

// removeOfficer is POST /console/officers/remove: it drafts the roster without somebody.
func (c *Console) removeOfficer(w http.ResponseWriter, r *request) error {
	return c.change(w, r, func(next *admin.Roster) error {
		name, n := r.form.Get("name"), len(next.Officers)
		next.Officers = slices.DeleteFunc(next.Officers, func(o admin.Officer) bool { return o.Name == name })
		if len(next.Officers) == n {
			return fmt.Errorf("%q is not on the roster", shown(name, 64))
		}
		for i := range next.Groups {
			next.Groups[i].Members = slices.DeleteFunc(next.Groups[i].Members, func(m string) bool { return m == name })
		}
		return nil
	})
}

// rolesPageData is what the page shows that changes somebody's roles.
type rolesPageData struct {
	Raw   string
	Name  foreign
	Roles rolesData
}

// rolesPage is GET /console/officers/roles.
func (c *Console) rolesPage(w http.ResponseWriter, r *request) error {
	o, ok := r.session.roster.Officer(r.URL.Query().Get("name"))
	if !ok {
		return failure{status: http.StatusNotFound, text: "error.notFound"}
	}
	v := c.view(r, "officers", "roles.title", nil)
	v.Data = rolesPageData{o.Name, foreign(o.Name), v.rolesData(r.session.roster.Principal(o).Assignments)}
	return c.show(w, http.StatusOK, "roles", "", v)
}

// changeRoles is POST /console/officers/roles.
func (c *Console) changeRoles(w http.ResponseWriter, r *request) error {
	return c.change(w, r, func(next *admin.Roster) error {
		name := r.form.Get("name")
		i := slices.IndexFunc(next.Officers, func(o admin.Officer) bool { return o.Name == name })
		if i < 0 {
			return fmt.Errorf("%q is not on the roster", shown(name, 64))
		}
		roles, err := rolesOf(r)
		next.Officers[i].Roles = roles
		return err
	})
}

// quorumData is what the page shows that changes how the officers decide.
type quorumData struct {
	Quorum, CLI int
	Voters      int
	Groups      string // "NAME M: a, b" a line
}

// quorumPage is GET /console/officers/quorum.
func (c *Console) quorumPage(w http.ResponseWriter, r *request) error {
	roster := r.session.roster
	d := quorumData{Quorum: roster.Quorum, CLI: roster.CLI}
	for _, o := range roster.Officers {
		if roster.Votes(o) {
			d.Voters++
		}
	}
	var lines []string
	for _, g := range roster.Groups {
		lines = append(lines, fmt.Sprintf("%s %d: %s", g.Name, g.Quorum, strings.Join(g.Members, ", ")))
	}
	d.Groups = strings.Join(lines, "\n")
	return c.show(w, http.StatusOK, "quorum", "", c.view(r, "officers", "quorum.title", d))
}

// changeQuorum is POST /console/officers/quorum.
func (c *Console) changeQuorum(w http.ResponseWriter, r *request) error {
	return c.change(w, r, func(next *admin.Roster) (err error) {
		var err2 error
		next.Quorum, err = strconv.Atoi(strings.TrimSpace(r.form.Get("quorum")))
		next.CLI, err2 = strconv.Atoi(strings.TrimSpace(r.form.Get("cli")))
		if errors.Join(err, err2) != nil {
			return errors.New("quorum and cli_votes are numbers")
		}
		next.Groups, err = groupsOf(r.form.Get("groups"))
		return err
	})
}

// groupsOf reads groups, one a line: "NAME M: member, member".
func groupsOf(text string) (out []admin.Group, err error) {
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		head, members, ok := strings.Cut(line, ":")
		words := strings.Fields(head)
		if !ok || len(words) != 2 {
			return nil, fmt.Errorf("a group is one line, NAME M: member, member; this is none: %q", shown(line, 100))
		}
		g := admin.Group{Name: words[0]}
		if g.Quorum, err = strconv.Atoi(words[1]); err != nil {
			return nil, fmt.Errorf("group %s: %q is no number", shown(words[0], 64), shown(words[1], 20))
		}
		for m := range strings.SplitSeq(members, ",") {
			g.Members = append(g.Members, strings.TrimSpace(m))
		}
		out = append(out, g)
	}
	return out, nil
}
