package console

import (
	"io/fs"
	"maps"
	"net/http"
	"slices"

	"chancery/admin"
)

// What the tests of the outside need to see of the inside.

const (
	CookieName    = cookieName
	Attempts      = attemptLimit
	Window        = attemptWindow
	Policy        = policy
	PerPage       = perPage
	ChallengeTime = challengeTime
	FreshTime     = freshTime
)

type RouteInfo struct {
	Path             string
	Get, Post        bool
	Public, SignedIn bool
	May              admin.Permission
	Fresh            bool
	Fields           []string
}

func (c *Console) Routes() []RouteInfo {
	var out []RouteInfo
	for _, r := range c.routes() {
		out = append(out, RouteInfo{r.path, r.get != nil, r.post != nil, r.may == public, r.may == signedIn, r.may, r.fresh, r.fields})
	}
	return out
}

// UndeclaredRoute tries routes that do not say who may use them.
func (c *Console) UndeclaredRoute() (none, unknown error) {
	get := func(http.ResponseWriter, *request) error { return nil }
	_, none = c.muxOf([]route{{path: "/console/x", get: get}})
	_, unknown = c.muxOf([]route{{path: "/console/x", may: "everything.do", get: get}})
	return none, unknown
}

// EntryDigest is the digest that a session of an officer has.
func EntryDigest(r admin.Roster, name string) [32]byte {
	o, ok := r.Officer(name)
	d, err := entryDigest(r, o)
	if err != nil || !ok {
		panic("no such officer")
	}
	return d
}

func (c *Console) Challenge(purpose string) []byte { return c.challenge(purpose) }

func Catalogues() map[string]map[string]string {
	return map[string]map[string]string{"en": textsEN, "ja": textsJA}
}

func PageNames() []string { return slices.Sorted(maps.Keys(pages)) }

func Templates() fs.FS { return pageFiles }

func Shown(s string, max int) string { return shown(s, max) }

func SerialIn(q string) string { return serialIn(q) }

func ParsePlace(s string) string { return string(parsePlace(s).Path()) }

func AssetPath(name string) (string, error) { p, err := url.Asset(name); return string(p), err }

func CertificatePage(q string, before uint64) string { return string(url.CertificatePage(q, before)) }
