package console

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json/jsontext"
	"encoding/json/v2"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"chancery/admin"
	"chancery/audit"
	"chancery/web/console/passkey"
)

// full is foreign text of which nothing may be cut, as it is signed.
type full string

func (f full) String() string { return shown(string(f), math.MaxInt) }

// The tabs of the inbox.
const (
	tabWaiting = "waiting" // for the vote of who looks
	tabMine    = "mine"    // asked for by them
	tabHistory = "history" // all, newest first
)

var tabs = []string{tabWaiting, tabMine, tabHistory}

// approvalsData is what the inbox shows.
type approvalsData struct {
	Tab  string
	Tabs []tab
	Rows []proposalRow
}

type tab struct {
	Name    string
	Text    string
	Count   int // of waiting
	Current bool
}

type proposalRow struct {
	ID        string
	Title     string
	Requester foreign
	State     badge
	Votes     string
	Made      stamp
	Expires   stamp
}

// approvals is GET /console/approvals.
func (c *Console) approvals(w http.ResponseWriter, r *request) error {
	d := approvalsData{Tab: r.URL.Query().Get("tab")}
	if !slices.Contains(tabs, d.Tab) {
		d.Tab = tabWaiting
	}
	all, err := c.cfg.Board.List(r.Context(), admin.Pending)
	if err != nil {
		return err
	}
	if d.Tab != tabWaiting { // what is pending stands in the list also behind many that are over
		newest, err := c.cfg.Board.List(r.Context(), "")
		if err != nil {
			return err
		}
		pending := slices.DeleteFunc(all, func(a *admin.Approval) bool {
			return slices.ContainsFunc(newest, func(n *admin.Approval) bool { return n.ID == a.ID })
		})
		all = append(newest, pending...)
	}
	v := c.view(r, "approvals", "approvals.title", nil)
	waiting := 0
	for _, a := range all {
		waits, mine := r.session.waits(a, c.now()), r.session.asked(a)
		if waits {
			waiting++
		}
		if d.Tab == tabWaiting && waits || d.Tab == tabMine && mine || d.Tab == tabHistory {
			d.Rows = append(d.Rows, v.proposalRow(a))
		}
	}
	for _, name := range tabs {
		t := tab{Name: name, Text: v.Lang.text("approvals." + name), Current: name == d.Tab}
		if name == tabWaiting {
			t.Count = waiting
		}
		d.Tabs = append(d.Tabs, t)
	}
	v.Data = d
	return c.show(w, http.StatusOK, "approvals", "", v)
}

// waiting is how many proposals wait for who is signed in.
func (c *Console) waiting(ctx context.Context, s *session) (n int, err error) {
	if !s.who.MaySome(admin.Vote) {
		return 0, nil
	}
	all, err := c.cfg.Board.List(ctx, admin.Pending)
	for _, a := range all {
		if s.waits(a, c.now()) {
			n++
		}
	}
	return n, err
}

// asked tells whether a proposal was asked for by this person, or a machine of theirs.
func (s *session) asked(a *admin.Approval) bool {
	return s.roster.Asked(a.Asked.Requester, s.officer.Name)
}

// waits tells whether a proposal can have this person's vote now.
func (s *session) waits(a *admin.Approval, now time.Time) bool {
	return a.State == admin.Pending && now.Before(a.Expires) && a.Asked.Roster == s.roster.Digest() && s.who.MaySome(admin.Vote) && s.roster.Votes(s.officer) && !s.asked(a) &&
		!slices.ContainsFunc(a.Votes, func(v admin.VoteRecord) bool { return v.Officer == s.officer.Name })
}

var stateTones = map[admin.State]string{admin.Pending: "warn", admin.Approved: "event", admin.Done: "ok", admin.Failed: "bad", admin.Rejected: "bad", admin.Expired: "idle", admin.Cancelled: "idle"}

func (v *view) proposalState(a *admin.Approval) badge {
	tone, ok := stateTones[a.State]
	if !ok {
		return badge{Tone: "bad", Icon: "bad", Text: shown(string(a.State), 20)}
	}
	return v.badge(tone, "proposal."+string(a.State))
}

func (v *view) proposalRow(a *admin.Approval) proposalRow {
	approved := 0
	for _, vote := range a.Votes {
		if vote.Decision == admin.Approve {
			approved++
		}
	}
	return proposalRow{ID: a.ID, Title: v.proposalTitle(a.Asked.Action, a.Parameters), Requester: foreign(a.Asked.Requester), State: v.proposalState(a),
		Votes: fmt.Sprintf("%d / %d", approved, a.Quorum), Made: v.stamp(a.Asked.NotBefore), Expires: v.stamp(a.Asked.Expires)}
}

// proposalTitle says in words what would be done.
func (v *view) proposalTitle(action string, parameters []byte) string {
	title := v.named("action.", action)
	var p struct {
		Name   string `json:"name"`
		Roster struct {
			Version uint64 `json:"version"`
		} `json:"roster"`
	}
	if json.Unmarshal(parameters, &p) != nil {
		return title
	}
	switch {
	case action == admin.ChangeRoster:
		return v.Lang.text("action.rosterVersion", title, p.Roster.Version)
	case p.Name != "":
		return title + ": " + shown(p.Name, 60)
	}
	return title
}

// changeRow is one thing that a proposal changes; "" stands for what is not there.
type changeRow struct {
	What          foreign
	Name          full // of a parameter
	Before, After full
}

// voteRow is a vote as its page shows it.
type voteRow struct {
	Officer  foreign
	Decision badge
	Key      string // kind of key
	Label    foreign
	At       stamp
	Leaf     uint64
}

// needRow is a rule that must be reached, and how far it is.
type needRow struct {
	Text       string
	Have, Want int
	State      badge
}

// proposalData is what the page of a proposal shows. Script compares it with Bytes before
// anything is signed.
type proposalData struct {
	ID          string // "" while it is only drafted
	Title       string
	Action      full
	Requester   full
	Acts        []full
	From        stamp
	Expires     stamp
	Changes     []changeRow
	Parameters  []changeRow // What and After
	JSON        full
	JSONHex     string
	Bytes       string // hex
	Octets      int
	Fingerprint string

	RP          string
	Credentials string // of who is signed in, hex, separated by blanks

	State     badge
	Pending   bool
	Leaf      uint64
	EndLeaf   uint64
	Votes     []voteRow
	Needs     []needRow
	Result    full
	Reason    foreign
	Own       bool
	MayVote   bool
	MayCancel bool
	Voted     bool
	Outdated  bool // the roster changed since
	Problem   string
	Lines     []foreign // for CLI keys
}

// describe fills in what follows from the bytes of a proposal and its parameters.
func (v *view) describe(h admin.History, p admin.Proposal, raw, parameters []byte) proposalData {
	d := proposalData{Title: v.proposalTitle(p.Action, parameters), Action: full(p.Action), Requester: full(p.Requester), From: v.stamp(p.NotBefore), Expires: v.stamp(p.Expires),
		JSON: full(parameters), JSONHex: hex.EncodeToString(parameters), Bytes: hex.EncodeToString(raw), Octets: len(raw), Fingerprint: admin.Fingerprint(raw)}
	for _, a := range p.Acts {
		d.Acts = append(d.Acts, full(a))
	}
	if p.Action == admin.ChangeRoster {
		d.Changes = v.rosterChanges(h, parameters)
	} else {
		d.Parameters = v.parameterRows(parameters)
	}
	s := v.session
	d.RP = s.roster.RPID
	var ids []string
	for _, k := range s.officer.Passkeys {
		ids = append(ids, hex.EncodeToString(k.ID))
	}
	d.Credentials = strings.Join(ids, " ")
	return d
}

// parameterRows are the parameters by name: texts as they are, lists of plain words with
// commas, all else as JSON. Script makes the same of the JSON and compares.
func (v *view) parameterRows(parameters []byte) (out []changeRow) {
	var p map[string]jsontext.Value
	if json.Unmarshal(parameters, &p) != nil {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(p)) {
		text := string(p[name])
		var one string
		var list []string
		switch {
		case p[name].Kind() == '"' && json.Unmarshal(p[name], &one) == nil:
			text = one
		case p[name].Kind() == '[' && json.Unmarshal(p[name], &list) == nil:
			if !slices.ContainsFunc(list, func(s string) bool { return s == "" || strings.ContainsAny(s, ", ") }) {
				text = strings.Join(list, ", ")
			}
		}
		out = append(out, changeRow{What: foreign(v.named("parameter.", name)), Name: full(name), After: full(text)})
	}
	return out
}

// differenceWords are how admin.Roster.Differences names what is followed by a name.
var differenceWords = []string{"roles of officer ", "CLI key of officer ", "passkey of officer ", "officer ", "group "}

// rosterChanges is what a roster would change of the one that it follows.
func (v *view) rosterChanges(h admin.History, parameters []byte) (out []changeRow) {
	var p admin.RosterParameters
	if json.Unmarshal(parameters, &p) != nil {
		return nil
	}
	if p.Reason != "" {
		out = append(out, changeRow{What: foreign(v.Lang.text("parameter.reason")), After: full(p.Reason)})
	}
	before := h.Base
	for _, r := range append([]admin.RosterChange{{Roster: h.Base}}, h.Changes...) {
		if digest := r.Roster.Digest(); hex.EncodeToString(digest[:]) == p.Before {
			before = r.Roster
		}
	}
	for _, d := range before.Differences(p.Roster) {
		what := v.named("difference.", strings.ReplaceAll(d.What, " ", "-"))
		for _, word := range differenceWords {
			if name, ok := strings.CutPrefix(d.What, word); ok {
				what = v.Lang.text("difference."+strings.ReplaceAll(strings.TrimSpace(word), " ", "-"), shown(name, 64))
				break
			}
		}
		out = append(out, changeRow{What: foreign(what), Before: full(d.Before), After: full(d.After)})
	}
	return out
}

// proposal is GET /console/approvals/{id}.
func (c *Console) proposal(w http.ResponseWriter, r *request) error {
	return c.showProposal(w, r, http.StatusOK, "")
}

func (c *Console) showProposal(w http.ResponseWriter, r *request, status int, problem string) error {
	ctx := r.Context()
	a, err := c.cfg.Board.Show(ctx, r.PathValue("id"))
	if err != nil {
		return err
	}
	h, err := c.cfg.Board.Rosters(ctx)
	if err != nil {
		return err
	}
	v := c.view(r, "approvals", "proposal.title", nil)
	d := v.describe(h, a.Asked, a.Proposal, a.Parameters)
	s := r.session
	d.ID, d.State, d.Leaf, d.EndLeaf, d.Result, d.Reason, d.Problem = a.ID, v.proposalState(a), a.Leaf, a.EndLeaf, full(a.Result), foreign(a.Reason), problem
	d.Own, d.MayVote = s.asked(a), s.waits(a, c.now())
	d.Pending = a.State == admin.Pending
	d.MayCancel = d.Own && d.Pending && s.who.MaySome(admin.CancelApprovals)
	now := h.Current()
	d.Outdated = d.Pending && a.Asked.Roster != now.Digest()
	roster, known := rosterOf(h, a.Asked.Roster)
	if d.Votes, err = c.voteRows(ctx, v, roster, a.Votes); err != nil {
		return err
	}
	d.Voted = slices.ContainsFunc(a.Votes, func(v admin.VoteRecord) bool { return v.Officer == s.officer.Name })
	if known {
		d.Needs = v.needs(roster, a.Votes)
	}
	if d.Pending && !d.Outdated {
		for _, o := range now.ShareHolders() {
			if !now.Asked(a.Asked.Requester, o.Name) {
				d.Lines = append(d.Lines, signLine(a.ID, o.Name))
			}
		}
	}
	v.Data = d
	return c.show(w, status, "proposal", "", v)
}

func signLine(id, officer string) foreign {
	return foreign("chancery approve sign " + id + " --officer " + shellQuote(officer) + " --key " + shellQuote(officer+".pem"))
}

// rosterOf finds the roster of a digest.
func rosterOf(h admin.History, digest [32]byte) (admin.Roster, bool) {
	if h.Base.Digest() == digest {
		return h.Base, true
	}
	for _, c := range h.Changes {
		if c.Roster.Digest() == digest {
			return c.Roster, true
		}
	}
	return admin.Roster{}, false
}

// byCLI tells whether a vote is by an officer's CLI key.
func byCLI(r admin.Roster, v admin.VoteRecord) bool {
	o, ok := r.Officer(v.Officer)
	return ok && o.SPKI != nil && bytes.Equal(o.SPKI, v.SPKI)
}

func (c *Console) voteRows(ctx context.Context, v *view, roster admin.Roster, votes []admin.VoteRecord) (out []voteRow, err error) {
	for _, vote := range votes {
		row := voteRow{Officer: foreign(vote.Officer), Decision: v.badge("ok", "vote.approve"), Key: v.Lang.text("key.passkey"), Leaf: vote.Leaf}
		if vote.Decision != admin.Approve {
			row.Decision = v.badge("bad", "vote.reject")
		}
		if byCLI(roster, vote) {
			row.Key = v.Lang.text("key.cli")
		}
		o, _ := roster.Officer(vote.Officer)
		for _, k := range o.Passkeys {
			if bytes.Equal(k.SPKI, vote.SPKI) {
				row.Label = foreign(k.Label)
			}
		}
		err := c.cfg.Ledger.Entries(ctx, vote.Leaf, vote.Leaf+1, func(_ uint64, leaf []byte) error {
			if l, err := audit.DecodeLeaf(leaf); err == nil {
				row.At = v.stamp(l.Time)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		out = append(out, row)
	}
	return out, nil
}

// needs are the rules of a roster, and how far the votes are.
func (v *view) needs(r admin.Roster, votes []admin.VoteRecord) (out []needRow) {
	var names []string
	cli := 0
	for _, vote := range votes {
		if vote.Decision == admin.Approve {
			names = append(names, vote.Officer)
			if byCLI(r, vote) {
				cli++
			}
		}
	}
	add := func(text string, have, want int) {
		state := v.badge("warn", "need.open", max(0, want-have))
		if have >= want {
			state = v.badge("ok", "need.met")
		}
		out = append(out, needRow{text, have, want, state})
	}
	add(v.Lang.text("need.quorum"), len(names), r.Quorum)
	if r.CLI > 0 {
		add(v.Lang.text("need.cli"), cli, r.CLI)
	}
	for _, g := range r.Groups {
		n := 0
		for _, name := range names {
			if slices.Contains(g.Members, name) {
				n++
			}
		}
		add(v.Lang.text("need.group", shown(g.Name, 64)), n, g.Quorum)
	}
	return out
}

// proposalBytes is GET /console/approvals/{id}/proposal.bin.
func (c *Console) proposalBytes(w http.ResponseWriter, r *request) error {
	a, err := c.cfg.Board.Show(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return download(w, "application/octet-stream", a.ID+".bin", a.Proposal)
}

// proposalParameters is GET /console/approvals/{id}/parameters.json.
func (c *Console) proposalParameters(w http.ResponseWriter, r *request) error {
	a, err := c.cfg.Board.Show(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return download(w, "application/json", a.ID+".json", a.Parameters)
}

// vote is POST /console/approvals/{id}/vote. The form says which bytes and which decision the
// page showed, as script computed it; the server holds that against its own.
func (c *Console) vote(w http.ResponseWriter, r *request) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), actTime)
	defer cancel()
	a, err := c.cfg.Board.Show(ctx, r.PathValue("id"))
	if err != nil {
		return err
	}
	if r.session.asked(a) {
		return failure{status: http.StatusForbidden, text: "error.ownRequest"}
	}
	decision, err := admin.ParseVote(r.form.Get("decision"))
	if err != nil {
		return failure{status: http.StatusBadRequest, text: "error.form"}
	}
	if !sameDigest(r, decision, a.Proposal) {
		return failure{status: http.StatusConflict, text: "error.notShownProposal"}
	}
	credential, assertion, err := passkey.Vote([]byte(r.form.Get("assertion")))
	if err != nil {
		c.log.Warn("a vote could not be read", "id", r.id, "officer", r.session.officer.Name, "err", err)
		return c.showProposal(w, r, http.StatusUnprocessableEntity, "signin.wrong")
	}
	if _, err := c.cfg.Board.Vote(ctx, a.ID, admin.Ballot{Officer: r.session.officer.Name, Passkey: credential, Decision: decision, Signature: assertion.Encode()}); err != nil {
		return err
	}
	c.log.Info("vote", "id", r.id, "officer", r.session.officer.Name, "proposal", a.ID, "decision", decision, "remote", r.address())
	return redirect(w, url.Proposal(a.ID))
}

// sameDigest tells whether a form is about the decision and the bytes that the server knows.
func sameDigest(r *request, d admin.Decision, proposal []byte) bool {
	digest := admin.ApprovalDigest(d, proposal)
	return r.form.Get("digest") == hex.EncodeToString(digest[:]) && r.form.Get("fingerprint") == admin.Fingerprint(proposal)
}

// own finds a proposal that this person asked for.
func (c *Console) own(ctx context.Context, r *request) (*admin.Approval, error) {
	a, err := c.cfg.Board.Show(ctx, r.PathValue("id"))
	if err == nil && !r.session.asked(a) {
		return nil, failure{status: http.StatusForbidden, text: "error.notOwnRequest"}
	}
	return a, err
}

// cancelPage is GET /console/approvals/{id}/cancel.
func (c *Console) cancelPage(w http.ResponseWriter, r *request) error {
	a, err := c.own(r.Context(), r)
	if err != nil {
		return err
	}
	v := c.view(r, "approvals", "cancelProposal.title", nil)
	v.Data = v.proposalRow(a)
	return c.show(w, http.StatusOK, "cancel", "", v)
}

// cancel is POST /console/approvals/{id}/cancel.
func (c *Console) cancel(w http.ResponseWriter, r *request) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), actTime)
	defer cancel()
	a, err := c.own(ctx, r)
	if err != nil {
		return err
	}
	if _, err := c.cfg.Board.Cancel(ctx, a.ID); err != nil {
		return err
	}
	c.log.Info("proposal cancelled at the console", "id", r.id, "proposal", a.ID, "officer", r.session.officer.Name, "remote", r.address())
	return redirect(w, url.Proposal(a.ID))
}

// askData is what the page shows on which an officer signs what they ask for.
type askData struct {
	proposalData
	RawAction string
}

// draft shows the proposal of an action with its parameters, to be signed by who is signed
// in. Nothing is stored yet.
func (c *Console) draft(w http.ResponseWriter, r *request, page, action string, acts []string, parameters []byte) error {
	ctx := r.Context()
	terms, err := c.cfg.Board.Terms(ctx)
	if err != nil {
		return err
	}
	h, err := c.cfg.Board.Rosters(ctx)
	if err != nil {
		return err
	}
	if parameters, err = admin.WithReason(parameters, strings.TrimSpace(r.form.Get("reason"))); err != nil {
		return failure{status: http.StatusUnprocessableEntity, text: "error.board", detail: foreign(err.Error())}
	}
	p := terms.Draft(action, acts, parameters, r.session.who.Requester(), c.now(), 0)
	raw, err := p.Encode()
	if err != nil {
		return failure{status: http.StatusUnprocessableEntity, text: "error.board", detail: foreign(err.Error())}
	}
	v := c.view(r, page, "ask.title", nil)
	v.Data = askData{v.describe(h, p, raw, parameters), action}
	return c.show(w, http.StatusOK, "ask", "", v)
}

// ask is POST /console/approvals/ask: a draft, signed by who asks.
func (c *Console) ask(w http.ResponseWriter, r *request) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), actTime)
	defer cancel()
	parameters, err := hex.DecodeString(r.form.Get("parameters"))
	raw, err2 := hex.DecodeString(r.form.Get("proposal"))
	if errors.Join(err, err2) != nil {
		return failure{status: http.StatusBadRequest, text: "error.form"}
	}
	if !sameDigest(r, admin.Request, raw) {
		return failure{status: http.StatusConflict, text: "error.notShownProposal"}
	}
	credential, assertion, err := passkey.Vote([]byte(r.form.Get("assertion")))
	if err != nil {
		return failure{status: http.StatusUnprocessableEntity, text: "error.passkey"}
	}
	a, err := c.cfg.Board.Propose(ctx, admin.Ask{Action: r.form.Get("action"), Parameters: parameters, Officer: r.session.officer.Name, Passkey: credential, Proposal: raw, Signature: assertion.Encode()})
	if err != nil {
		return err
	}
	c.log.Info("asked for at the console", "id", r.id, "proposal", a.ID, "action", a.Asked.Action, "officer", r.session.officer.Name, "remote", r.address())
	return redirect(w, url.Proposal(a.ID))
}
