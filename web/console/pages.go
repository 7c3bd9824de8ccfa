package console

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"chancery/admin"
	"chancery/audit"
	"chancery/ca"
	"chancery/hsmstore"
)

// newest is how many certificates the dashboard shows.
const newest = 8

// notice is something that needs a person.
type notice struct {
	State badge
	To    Path
}

// dashboardData is what the dashboard shows.
type dashboardData struct {
	Notices    []notice
	Members    []memberRow
	Up         int
	Signatures string
	Keys       int // that who looks may see
	Waiting    int // proposals, for the vote of who looks
	Ledger     headData
	Newest     []certificateRow
	Directory  string
	Certbot    string
}

// dashboard is GET /console/.
func (c *Console) dashboard(w http.ResponseWriter, r *request) error {
	v := c.view(r, "dashboard", "dashboard.title", nil)
	d, err := c.dashboardData(r.Context(), v)
	if err != nil {
		return err
	}
	if r.session.who.MaySome(admin.ReadCertificates) {
		found, err := c.cfg.Certificates.Certificates(r.Context(), ca.Query{Limit: newest})
		if err != nil {
			return err
		}
		d.Newest = v.certificateRows(found)
	}
	v.Data = d
	return c.show(w, http.StatusOK, "dashboard", "", v)
}

// dashboardLive is GET /console/live: what changes by itself.
func (c *Console) dashboardLive(w http.ResponseWriter, r *request) error {
	v := c.view(r, "dashboard", "dashboard.title", nil)
	d, err := c.dashboardData(r.Context(), v)
	if err != nil {
		return err
	}
	v.Data = d
	return c.show(w, http.StatusOK, "dashboard", "live", v)
}

func (c *Console) dashboardData(ctx context.Context, v *view) (dashboardData, error) {
	members, keys := c.cfg.Members(), c.cfg.Keys()
	d := dashboardData{Members: v.memberRows(members, keys), Directory: c.cfg.ACMEDirectory, Certbot: c.cfg.CertbotLine}
	for _, k := range keys {
		if v.may(admin.ReadKeys, admin.Resource{Key: k.Name}) {
			d.Keys++
		}
	}
	var calls uint64
	for _, m := range members {
		calls += m.Calls
		if m.State == hsmstore.Up {
			d.Up++
		}
	}
	d.Signatures = thousands(calls)
	d.Notices = v.notices(members, keys)
	var err error
	if d.Waiting, err = c.waiting(ctx, v.session); err != nil {
		return d, err
	}
	d.Ledger, err = c.headData(ctx, v)
	return d, err
}

// notices lists what needs a person, worst first.
func (v *view) notices(members []hsmstore.MemberStatus, keys []hsmstore.KeyInfo) []notice {
	var bad, warn []notice
	add := func(tone, key string, to Path, args ...any) {
		n := notice{v.badge(tone, key, args...), to}
		if tone == "bad" {
			bad = append(bad, n)
		} else {
			warn = append(warn, n)
		}
	}
	if len(members) == 0 {
		add("bad", "notice.noMembers", url.Members())
	}
	for _, m := range members {
		switch m.State {
		case hsmstore.Up, hsmstore.Joining:
		case hsmstore.Fenced:
			add("bad", "notice.fenced", url.Members(), foreign(m.Name))
		case hsmstore.Out:
			add("warn", "notice.drained", url.Members(), foreign(m.Name))
		case hsmstore.Starting:
			add("warn", "notice.starting", url.Members(), foreign(m.Name))
		default:
			add("bad", "notice.down", url.Members(), foreign(m.Name))
		}
	}
	for _, k := range keys {
		switch {
		case k.State == hsmstore.KeyBorn:
			add("warn", "notice.unproved", url.Keys(), foreign(k.Name))
		case k.State == hsmstore.KeyDestroyed || k.State == hsmstore.KeyDisabled: // as people wanted it
		case k.State == hsmstore.KeyQuarantined:
			add("bad", "notice.quarantined", url.Keys(), foreign(k.Name))
		case k.Purpose == audit.PurposeProbe || k.Purpose == audit.PurposeCheckpoint && len(k.Members) == 1: // it lives and goes with its member
		case len(k.Ready) == 0:
			add("bad", "notice.keyAway", url.Keys(), foreign(k.Name))
		}
	}
	return append(bad, warn...)
}

// headData is the ledger in short.
type headData struct {
	Size   string
	Root   string
	Signed badge
	Covers string // size of the newest checkpoint, "" before the first
	Newest stamp  // time of the newest entry that it covers
	Origin foreign
	Note   []foreign // its lines
}

// headData reads head and newest checkpoint. A checkpoint has no time of its own (C2SP
// tlog-checkpoint); the newest entry that it covers has.
func (c *Console) headData(ctx context.Context, v *view) (headData, error) {
	head := c.cfg.Ledger.Head()
	root := head.Root()
	d := headData{Size: thousands(head.Size), Root: hexText(root[:])}
	text, err := c.cfg.Ledger.Checkpoint(ctx)
	if errors.Is(err, audit.ErrNotFound) {
		d.Signed = v.badge("warn", "checkpoint.none")
		return d, nil
	}
	if err != nil {
		return d, err
	}
	for line := range strings.Lines(text) {
		d.Note = append(d.Note, foreign(strings.TrimSuffix(line, "\n")))
	}
	origin, size, err := checkpointHead(text)
	if err != nil {
		return d, err
	}
	d.Origin, d.Covers = foreign(origin), thousands(size)
	d.Signed = v.badge("ok", "checkpoint.all") // also if it grew since the head was read
	if size < head.Size {
		d.Signed = v.badge("idle", "checkpoint.behind", head.Size-size)
	}
	if size > 0 && size <= head.Size {
		err = c.cfg.Ledger.Entries(ctx, size-1, size, func(_ uint64, leaf []byte) error {
			if l, err := audit.DecodeLeaf(leaf); err == nil {
				d.Newest = v.stamp(l.Time)
			}
			return nil
		})
	}
	return d, err
}
