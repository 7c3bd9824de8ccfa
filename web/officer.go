package web

import (
	"bytes"
	"encoding/base64"
	"encoding/json/v2"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/labstack/echo/v4"

	"chancery/admin"
)

// An officer comes to the API with the CLI key alone: the request is signed, whole, and
// says who signed it. So officers can decide when there is no token at all, as when all
// passkeys are lost.
//
//	Authorization: Officer BASE64URL({"officer": NAME, "time": SECONDS, "nonce": BASE64, "signature": BASE64})

// officerHeader is what stands behind the scheme.
type officerHeader struct {
	Officer   string `json:"officer"`
	Time      int64  `json:"time"`  // seconds since 1970
	Nonce     []byte `json:"nonce"` // 16 octets, never used before
	Signature []byte `json:"signature"`
}

const officerScheme = "Officer"

// byOfficer verifies a signed request against the roster in force.
func (s *Server) byOfficer(c echo.Context, text string) (admin.Principal, error) {
	none := problemf(unauthorized, "the request is not signed by an officer's CLI key, for this host, within %s, and once; set the clock and send it to %s", admin.RequestTime, s.base)
	var h officerHeader
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(raw) > 4096 || json.Unmarshal(raw, &h, json.RejectUnknownMembers(true)) != nil || len(h.Nonce) != 16 {
		return admin.Principal{}, none
	}
	r := c.Request()
	body, err := io.ReadAll(http.MaxBytesReader(c.Response().Writer, r.Body, bodyBytes))
	if err != nil {
		var long *http.MaxBytesError
		if errors.As(err, &long) {
			return admin.Principal{}, tooLong()
		}
		return admin.Principal{}, problemf(malformedRequest, "the body could not be read to its end; send it again, with the right Content-Length")
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	rosters, err := s.cfg.Approvals.Rosters(r.Context())
	if err != nil {
		return admin.Principal{}, err
	}
	roster, at, now := rosters.Current(), time.Unix(h.Time, 0), time.Now()
	o, ok := roster.Officer(h.Officer)
	signed := admin.RequestText(strings.ToLower(r.Host), r.Method, r.URL.RequestURI(), at, [16]byte(h.Nonce), body)
	if !ok || at.Before(now.Add(-admin.RequestTime)) || at.After(now.Add(admin.RequestTime)) || !o.VerifyRequest(signed, h.Signature) || !s.nonces.spend([16]byte(h.Nonce), now) {
		return admin.Principal{}, none
	}
	return roster.Principal(o), nil
}

// nonces are those of signed requests, for as long as such a request could be sent again. Of
// several nodes each keeps its own: what is sent again there is a vote or a proposal, which
// count once, or an act that says the same twice.
type nonces struct {
	mu   sync.Mutex
	seen map[[16]byte]time.Time
}

const maxNonces = 1 << 16

// spend notes a nonce, and tells whether it is new and there is room for it.
func (n *nonces) spend(nonce [16]byte, now time.Time) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.seen) >= maxNonces {
		for k, at := range n.seen {
			if now.Sub(at) > 2*admin.RequestTime {
				delete(n.seen, k)
			}
		}
	}
	if _, was := n.seen[nonce]; was || len(n.seen) >= maxNonces {
		return false
	}
	if n.seen == nil {
		n.seen = map[[16]byte]time.Time{}
	}
	n.seen[nonce] = now
	return true
}
