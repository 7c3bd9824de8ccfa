package console

import (
	"io/fs"
	"maps"
	"net/http"
	"slices"
)

// What the tests of the outside need to see of the inside.

const (
	CookieName  = cookieName
	IdleTime    = idleTime
	WholeTime   = wholeTime
	MaxSessions = maxSessions
	Attempts    = attemptLimit
	Window      = attemptWindow
	Policy      = policy
	PerPage     = perPage
)

type RouteInfo struct {
	Path             string
	Get, Post        bool
	Public, SignedIn bool
	Fields           []string
}

func (c *Console) Routes() []RouteInfo {
	var out []RouteInfo
	for _, r := range c.routes() {
		out = append(out, RouteInfo{r.path, r.get != nil, r.post != nil, r.access == public, r.access == signedIn || r.access == polled, r.fields})
	}
	return out
}

func (c *Console) UndeclaredRoute() error {
	_, err := c.muxOf([]route{{path: "/console/x", get: func(http.ResponseWriter, *request) error { return nil }}})
	return err
}

func (c *Console) Sessions() int {
	c.sessions.mu.Lock()
	defer c.sessions.mu.Unlock()
	return len(c.sessions.byHash)
}

// Holds tells whether the session table has a key or a value that spells s.
func (c *Console) Holds(id string) bool {
	c.sessions.mu.Lock()
	defer c.sessions.mu.Unlock()
	for h, e := range c.sessions.byHash {
		if string(h[:]) == id || hexText(h[:]) == id || e.form == id {
			return true
		}
	}
	return false
}

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
