package web_test

import (
	"strings"
	"testing"
)

// Tiles have one spelling each; only who holds the admin token sees them, and no shared
// cache may keep them.
func TestTiles(t *testing.T) {
	f := newFixture(t)
	for path, want := range map[string]string{"entries/000": "0 256", "entries/x001/234": "1234 256", "entries/x001/x000/000.p/7": "1000000 7", "entries/255.p/255": "255 255",
		"0/000": strings.Repeat("\x00", 32*256), "0/x001/234.p/1": strings.Repeat("\x00", 32)} {
		w := f.do(call{path: "/ledger/tile/" + path})
		if h := w.Header(); w.Code != 200 || w.Body.String() != want || h.Get("Cache-Control") != "private, max-age=31536000, immutable" || h.Get("Content-Type") != "application/octet-stream" {
			t.Errorf("%s: %d %q, %v", path, w.Code, w.Body, h)
		}
		if w := f.do(call{path: "/ledger/tile/" + path, noToken: true}); w.Code != 401 {
			t.Errorf("%s without the token: %d", path, w.Code)
		}
		if w := f.do(call{method: "HEAD", path: "/ledger/tile/" + path}); w.Code != 200 || w.Body.Len() != 0 {
			t.Errorf("HEAD %s: %d, %d octets", path, w.Code, w.Body.Len())
		}
	}
	for _, path := range []string{"", "0", "0/", "8/000", "00/000", "0/0", "0/0000", "0/x000/000", "0/001/000", "0/x001/", "0/000.p/0", "0/000.p/256", "0/000.p/01", "0/000.p/", "0/000.p/1/2", "0/+01", "0/-01",
		"entries/x001/x001/x001/x001/x001/x001/000", "data/000", "1/000", "0/x001/235", "../checkpoint", "0/000/"} {
		if w := f.do(call{path: "/ledger/tile/" + path}); w.Code != 404 {
			t.Errorf("%q: %d", path, w.Code)
		}
	}
}
