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

func (urls) Dashboard() Path          { return root }
func (urls) DashboardLive() Path      { return beneath("live") }
func (urls) SignIn(to place) Path     { return beneath("sign-in").with("to", to.String()) }
func (urls) SignedIn(to place) Path   { return beneath("signed-in").with("to", to.String()) }
func (urls) SignOut() Path            { return beneath("sign-out") }
func (urls) Language() Path           { return beneath("language") }
func (urls) Members() Path            { return beneath("hsm") }
func (urls) MembersLive() Path        { return beneath("hsm", "live") }
func (urls) Keys() Path               { return beneath("keys") }
func (urls) Certificates() Path       { return beneath("certificates") }
func (urls) Ledger() Path             { return beneath("ledger") }
func (urls) Checkpoint() Path         { return beneath("ledger", "checkpoint") }
func (urls) Entry(i uint64) Path      { return beneath("ledger", number(i)) }
func (urls) EntryProof(i uint64) Path { return beneath("ledger", number(i), "proof") }

// CertificatePage is a page of the list: what is searched for, and where it begins.
func (urls) CertificatePage(q string, before uint64) Path {
	return beneath("certificates").with("q", q, "before", cursor(before))
}

// LedgerPage is the page of entries below an index.
func (urls) LedgerPage(before uint64) Path { return beneath("ledger").with("before", cursor(before)) }

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

// parsePlace reads what [place.String] wrote; all else is the dashboard.
func parsePlace(s string) place {
	page, arg, has := strings.Cut(s, ":")
	switch page {
	case "hsm", "keys", "certificates", "ledger":
		if !has {
			return place{page: page}
		}
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
	switch p.page {
	case "hsm":
		return url.Members()
	case "keys":
		return url.Keys()
	case "certificates":
		return url.Certificates()
	case "ledger":
		return url.Ledger()
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
	switch {
	case page == "certificates" && sub == "revoke":
		return parsePlace("revoke:" + arg)
	case page == "certificates" && arg != "":
		return parsePlace("certificate:" + arg)
	case page == "ledger" && arg != "":
		return parsePlace("entry:" + arg)
	}
	return parsePlace(page)
}
