package console

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"chancery/admin"
)

// Machines is where programs get and lose access; *admin.Machines is one. Errors:
// *admin.Refusal, and the sentinels of audit.
type Machines interface {
	List(ctx context.Context) ([]admin.Machine, error)
	// NewToken makes a token, which is shown only now.
	NewToken(ctx context.Context, by admin.Principal, name string, roles []admin.Assignment, lifetime time.Duration) (token string, m admin.Machine, err error)
	// Revoke ends a machine's access at once.
	Revoke(ctx context.Context, by admin.Principal, id, reason string) error
}

type machineRow struct {
	ID       string
	Name     foreign
	Kind     string
	Roles    []foreign
	Owner    foreign
	Created  stamp
	Expires  stamp
	LastUsed stamp
	State    badge
	Active   bool
}

func (v *view) machineRow(m admin.Machine) machineRow {
	row := machineRow{ID: m.ID, Name: foreign(m.Name), Kind: v.named("machine.", string(m.Kind)), Owner: foreign(m.Owner), Created: v.stamp(m.Created), Expires: v.stamp(m.Expires), LastUsed: v.stamp(m.LastUsed)}
	for _, a := range m.Roles {
		row.Roles = append(row.Roles, v.assignment(a))
	}
	switch {
	case !m.Revoked.IsZero():
		row.State = v.badge("bad", "state.revoked")
	case !m.Expires.After(v.now):
		row.State = v.badge("idle", "state.expired")
	default:
		row.State, row.Active = v.badge("ok", "state.valid"), true
	}
	return row
}

// machines is GET /console/machines.
func (c *Console) machines(w http.ResponseWriter, r *request) error {
	all, err := c.cfg.Machines.List(r.Context())
	if err != nil {
		return err
	}
	v := c.view(r, "machines", "machines.title", nil)
	var rows []machineRow
	for _, m := range all {
		rows = append(rows, v.machineRow(m))
	}
	v.Data = rows
	return c.show(w, http.StatusOK, "machines", "", v)
}

// newMachineData is what the page shows that makes a token.
type newMachineData struct {
	Name    string
	Days    string
	Roles   rolesData
	Problem foreign
	Token   string // once it is made
	Machine machineRow
}

// newMachinePage is GET /console/machines/new.
func (c *Console) newMachinePage(w http.ResponseWriter, r *request) error {
	v := c.view(r, "machines", "newmachine.title", nil)
	v.Data = newMachineData{Days: "90", Roles: v.rolesData(nil)}
	return c.show(w, http.StatusOK, "newmachine", "", v)
}

// newMachine is POST /console/machines/new. The token is shown only in this answer.
func (c *Console) newMachine(w http.ResponseWriter, r *request) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), actTime)
	defer cancel()
	v := c.view(r, "machines", "newmachine.title", nil)
	d := newMachineData{Name: strings.TrimSpace(r.form.Get("name")), Days: strings.TrimSpace(r.form.Get("days"))}
	roles, err := rolesOf(r)
	d.Roles = v.rolesData(roles)
	days, err2 := strconv.Atoi(d.Days)
	if err2 != nil || days < 1 || days > int(admin.MaxMachineLife/(24*time.Hour)) {
		err = errors.Join(err, errors.New(v.Lang.text("newmachine.days.wrong", int(admin.MaxMachineLife/(24*time.Hour)))))
	}
	if err == nil {
		var m admin.Machine
		d.Token, m, err = c.cfg.Machines.NewToken(ctx, r.session.who, d.Name, roles, time.Duration(days)*24*time.Hour)
		var refusal *admin.Refusal
		if err != nil && !errors.As(err, &refusal) {
			return err
		}
		if refusal != nil {
			err = errors.New(refusal.Detail)
		}
		d.Machine = v.machineRow(m)
	}
	status := http.StatusOK
	if err != nil {
		status, d.Problem, d.Token = http.StatusUnprocessableEntity, foreign(err.Error()), ""
	}
	v.Data = d
	return c.show(w, status, "newmachine", "", v)
}

// machine finds a machine by the ID in the path.
func (c *Console) machine(ctx context.Context, r *request) (admin.Machine, error) {
	all, err := c.cfg.Machines.List(ctx)
	if err != nil {
		return admin.Machine{}, err
	}
	i := slices.IndexFunc(all, func(m admin.Machine) bool { return m.ID == r.PathValue("id") })
	if i < 0 {
		return admin.Machine{}, failure{status: http.StatusNotFound, text: "error.notFound"}
	}
	return all[i], nil
}

// revokeMachinePage is GET /console/machines/{id}/revoke.
func (c *Console) revokeMachinePage(w http.ResponseWriter, r *request) error {
	m, err := c.machine(r.Context(), r)
	if err != nil {
		return err
	}
	v := c.view(r, "machines", "revokemachine.title", nil)
	v.Data = v.machineRow(m)
	return c.show(w, http.StatusOK, "revokemachine", "", v)
}

// revokeMachine is POST /console/machines/{id}/revoke.
func (c *Console) revokeMachine(w http.ResponseWriter, r *request) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), actTime)
	defer cancel()
	if err := c.cfg.Machines.Revoke(ctx, r.session.who, r.PathValue("id"), strings.TrimSpace(r.form.Get("reason"))); err != nil {
		return err
	}
	return redirect(w, url.Machines())
}

var _ Machines = (*admin.Machines)(nil)
