package console

import (
	"encoding/hex"
	neturl "net/url"
	"strconv"
	"strings"
)

// Path is the path, with query, of a page of this console. Only urls makes one, so
// that neither a link nor a redirect can lead elsewhere, and no value can add a
// parameter to it.
type Path string

// urls is the one builder of URLs; templates know it as {{url}}. Its methods encode
// what they are given. html/template protects href and action by itself, but takes
// hx-get and its kind for plain text.
type urls struct{}

var url urls

const root = "/console/"

func beneath(segments ...string) Path {
	for i, s := range segments {
		segments[i] = neturl.PathEscape(s)
	}
	return Path(root + strings.Join(segments, "/"))
}

func (p Path) with(pairs ...string) Path {
	v := neturl.Values{}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			v.Set(pairs[i], pairs[i+1])
		}
	}
	if len(v) == 0 {
		return p
	}
	return p + Path("?"+v.Encode())
}

func number(n uint64) string { return strconv.FormatUint(n, 10) }

// cursor is a position in a list; 0 is its beginning.
func cursor(n uint64) string {
	if n == 0 {
		return ""
	}
	return number(n)
}

func (urls) Dashboard() Path             { return root }
func (urls) DashboardLive() Path         { return beneath("live") }
func (urls) SignIn(to place) Path        { return beneath("sign-in").with("to", to.String()) }
func (urls) ProviderStart(to place) Path { return beneath("oidc", "start").with("to", to.String()) }
func (urls) SignedIn(to place) Path      { return beneath("signed-in").with("to", to.String()) }
func (urls) SignInOptions() Path         { return beneath("sign-in", "options") }
func (urls) StepUp(to place) Path        { return beneath("step-up").with("to", to.String()) }
func (urls) StepUpOptions() Path         { return beneath("step-up", "options") }
func (urls) Enrol() Path                 { return beneath("enrol") }
func (urls) EnrolOptions() Path          { return beneath("enrol", "options") }
func (urls) EnrolPasskey() Path          { return beneath("enrol", "passkey") }
func (urls) EnrolFinish() Path           { return beneath("enrol", "finish") }
func (urls) SignOut() Path               { return beneath("sign-out") }
func (urls) Language() Path              { return beneath("language") }
func (urls) Members() Path               { return beneath("hsm") }
func (urls) MembersLive() Path           { return beneath("hsm", "live") }
func (urls) Keys() Path                  { return beneath("keys") }
func (urls) Certificates() Path          { return beneath("certificates") }
func (urls) NewKey() Path                { return beneath("keys", "new") }
func (urls) Ask() Path                   { return beneath("approvals", "ask") }
func (urls) Officers() Path              { return beneath("officers") }
func (urls) Invite() Path                { return beneath("officers", "invite") }
func (urls) Accept() Path                { return beneath("officers", "accept") }
func (urls) RemoveOfficer() Path         { return beneath("officers", "remove") }
func (urls) ChangeRoles() Path           { return beneath("officers", "roles") }
func (urls) Quorum() Path                { return beneath("officers", "quorum") }
func (urls) Machines() Path              { return beneath("machines") }
func (urls) NewMachine() Path            { return beneath("machines", "new") }
func (urls) Ledger() Path                { return beneath("ledger") }
func (urls) Checkpoint() Path            { return beneath("ledger", "checkpoint") }
func (urls) Entry(i uint64) Path         { return beneath("ledger", number(i)) }
func (urls) EntryProof(i uint64) Path    { return beneath("ledger", number(i), "proof") }

// CertificatePage is a page of the list: what is searched for, and where it begins.
func (urls) CertificatePage(q string, before uint64) Path {
	return beneath("certificates").with("q", q, "before", cursor(before))
}

// LedgerPage is the page of entries below an index.
func (urls) LedgerPage(before uint64) Path { return beneath("ledger").with("before", cursor(before)) }

// Inbox is where what waits for one's vote is.
func (urls) Inbox() Path { return beneath("approvals") }

// Approvals is a tab of the inbox.
func (urls) Approvals(tab string) Path { return beneath("approvals").with("tab", tab) }

func (urls) Proposal(id string) Path           { return beneath("approvals", id) }
func (urls) ProposalBytes(id string) Path      { return beneath("approvals", id, "proposal.bin") }
func (urls) ProposalParameters(id string) Path { return beneath("approvals", id, "parameters.json") }
func (urls) CastVote(id string) Path           { return beneath("approvals", id, "vote") }
func (urls) CancelProposal(id string) Path     { return beneath("approvals", id, "cancel") }

// Roles is the page that changes an officer's roles.
func (urls) Roles(officer string) Path    { return beneath("officers", "roles").with("name", officer) }
func (urls) Withdraw(id string) Path      { return beneath("officers", "enrolments", id, "withdraw") }
func (urls) RevokeMachine(id string) Path { return beneath("machines", id, "revoke") }

func (urls) Certificate(serial string) Path { return beneath("certificates", serial) }
func (urls) Revoke(serial string) Path      { return beneath("certificates", serial, "revoke") }
func (urls) CertificatePEM(serial string) Path {
	return beneath("certificates", serial, "certificate.pem")
}
func (urls) ChainPEM(serial string) Path { return beneath("certificates", serial, "chain.pem") }
func (urls) CertificateDER(serial string) Path {
	return beneath("certificates", serial, "certificate.cer")
}

// Asset is a file of static/, under a name that has its hash.
func (urls) Asset(name string) (Path, error) {
	served, err := assets.name(name)
	return beneath("static", served), err
}

// place is where a form leads back to: one of our pages, never a URL from outside.
// The zero value is the dashboard.
type place struct{ page, arg string }

// placePages are the places without an argument, and where they are.
var placePages = map[string]func() Path{
	"hsm": url.Members, "keys": url.Keys, "certificates": url.Certificates, "ledger": url.Ledger, "officers": url.Officers, "machines": url.Machines,
	"approvals": url.Inbox, "invite": url.Invite, "quorum": url.Quorum, "new-key": url.NewKey, "new-machine": url.NewMachine,
}

// placeIDs are the places with the ID of something.
var placeIDs = map[string]func(id string) Path{"proposal": url.Proposal, "cancel": url.CancelProposal, "withdraw": url.Withdraw, "revoke-machine": url.RevokeMachine}

// parsePlace reads what [place.String] wrote; all else is the dashboard.
func parsePlace(s string) place {
	page, arg, has := strings.Cut(s, ":")
	if _, ok := placePages[page]; ok && !has {
		return place{page: page}
	}
	if _, ok := placeIDs[page]; ok && isID(arg) {
		return place{page, arg}
	}
	switch page {
	case "certificate", "revoke":
		if isSerial(arg) {
			return place{page, arg}
		}
	case "entry":
		if n, err := strconv.ParseUint(arg, 10, 63); err == nil {
			return place{page, number(n)}
		}
	}
	return place{}
}

// isID tells whether s is the ID of a proposal, an enrolment or a machine: 16 hex digits.
func isID(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 8 && s == strings.ToLower(s)
}

// isSerial tells whether s is a serial as the ledger writes it.
func isSerial(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) > 0 && len(b) <= 20 && b[0] != 0 && s == strings.ToLower(s)
}

func (p place) String() string {
	if p.arg == "" {
		return p.page
	}
	return p.page + ":" + p.arg
}

// Path is the page's path.
func (p place) Path() Path {
	if at, ok := placePages[p.page]; ok {
		return at()
	}
	if at, ok := placeIDs[p.page]; ok {
		return at(p.arg)
	}
	switch p.page {
	case "certificate":
		return url.Certificate(p.arg)
	case "revoke":
		return url.Revoke(p.arg)
	case "entry":
		n, _ := strconv.ParseUint(p.arg, 10, 63)
		return url.Entry(n)
	}
	return url.Dashboard()
}

// placeOf is the page that a request is for, as far as one can lead back to it.
func placeOf(r *request) place {
	rest, _ := strings.CutPrefix(r.URL.Path, root)
	page, rest, _ := strings.Cut(rest, "/")
	arg, sub, _ := strings.Cut(rest, "/")
	switch page + "/" + sub {
	case "certificates/revoke":
		return parsePlace("revoke:" + arg)
	case "approvals/cancel":
		return parsePlace("cancel:" + arg)
	case "machines/revoke":
		return parsePlace("revoke-machine:" + arg)
	}
	if id, ok := strings.CutSuffix(sub, "/withdraw"); ok && page == "officers" && arg == "enrolments" {
		return parsePlace("withdraw:" + id)
	}
	switch {
	case page == "keys" && arg == "new", page == "machines" && arg == "new":
		return parsePlace("new-" + strings.TrimSuffix(page, "s"))
	case page == "officers" && (arg == "invite" || arg == "quorum"):
		return parsePlace(arg)
	case page == "certificates" && arg != "":
		return parsePlace("certificate:" + arg)
	case page == "approvals" && isID(arg):
		return parsePlace("proposal:" + arg)
	case page == "ledger" && arg != "":
		return parsePlace("entry:" + arg)
	}
	return parsePlace(page)
}
