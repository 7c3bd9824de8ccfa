package web

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/labstack/echo/v4"
)

// fullTile is the number of hashes or entries in a full tile (C2SP tlog-tiles).
const fullTile = 256

// tile is GET /ledger/tile/<level>/<n>[.p/<w>] and /ledger/tile/entries/<n>[.p/<w>] (C2SP
// tlog-tiles), for who may see the ledger: entries tell what was signed, and so does their
// number. What is served never changes, but no cache that others share may keep it.
func (s *Server) tile(c echo.Context) error {
	kind, n, w, ok := parseTile(c.Param("*"))
	if !ok {
		return problemf(notFound, "%s is no tile; write LEVEL/N or entries/N, N in groups of three digits as x001/234, and .p/W behind it for the first W of a tile that is not full", quote(c.Param("*"))).at("", "path")
	}
	var body []byte
	var err error
	if kind == "entries" {
		body, err = s.cfg.Entries(c.Request().Context(), n, w)
	} else {
		level, _ := strconv.Atoi(kind) // parseTile has seen it
		body, err = s.cfg.Tile(c.Request().Context(), level, n, w)
	}
	if err != nil {
		return err
	}
	c.Response().Header().Set("Content-Type", "application/octet-stream")
	c.Response().Header().Set("Cache-Control", "private, max-age=31536000, immutable")
	if c.Request().Method == http.MethodHead {
		c.Response().Header().Set("Content-Length", strconv.Itoa(len(body)))
		return c.NoContent(http.StatusOK)
	}
	_, err = c.Response().Write(body)
	return err
}

// parseTile takes the one spelling of a tile's path apart. kind is "entries" or a level.
func parseTile(path string) (kind string, n, w uint64, ok bool) {
	kind, rest, _ := strings.Cut(path, "/")
	if kind != "entries" && (len(kind) != 1 || kind[0] < '0' || kind[0] > '7') {
		return "", 0, 0, false
	}
	number, width, partial := strings.Cut(rest, ".p/")
	w = fullTile
	if partial {
		var err error
		if w, err = strconv.ParseUint(width, 10, 8); err != nil || w == 0 || width != strconv.FormatUint(w, 10) {
			return "", 0, 0, false
		}
	}
	groups := strings.Split(number, "/")
	if len(groups) > 6 { // 2^63 entries have fewer tiles than 10^18
		return "", 0, 0, false
	}
	for i, g := range groups {
		if i < len(groups)-1 {
			if g, ok = strings.CutPrefix(g, "x"); !ok {
				return "", 0, 0, false
			}
		}
		digits, err := strconv.ParseUint(g, 10, 16)
		if err != nil || len(g) != 3 {
			return "", 0, 0, false
		}
		n = n*1000 + digits
	}
	return kind, n, w, tileNumber(n) == number
}

// tileNumber writes a number as C2SP tlog-tiles does: groups of three digits, all but the
// last behind an x.
func tileNumber(n uint64) string {
	s := fmt.Sprintf("%03d", n%1000)
	for n /= 1000; n > 0; n /= 1000 {
		s = fmt.Sprintf("x%03d/%s", n%1000, s)
	}
	return s
}
