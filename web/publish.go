package web

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	_ "embed"
	"encoding/hex"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/labstack/echo/v4"
)

//go:embed openapi.yaml
var openAPI []byte

// How long caches may keep what is published.
const (
	// A CRL is replaced at once when something is revoked, and no answer may call a
	// certificate good 10 s later. So caches ask again after seconds, however far
	// nextUpdate is away; an unchanged CRL costs a 304.
	crlAge    = 5 * time.Second
	issuerAge = 24 * time.Hour
	rootsAge  = 10 * time.Minute
)

// serve answers with bytes that have a strong ETag, including 304 and HEAD (RFC 9110
// §13). Ranges are ignored, as §14.2 allows, and with them the preconditions that
// protect ranges: net/http would refuse them in plain text.
func serve(c echo.Context, contentType string, body []byte, modified time.Time, age time.Duration) error {
	h := c.Response().Header()
	sum := sha256.Sum256(body)
	h.Set("Content-Type", contentType)
	h.Set("Etag", `"`+hex.EncodeToString(sum[:16])+`"`)
	if age > 0 {
		h.Set("Cache-Control", fmt.Sprintf("public, max-age=%d, must-revalidate", int(age.Seconds())))
	} else {
		h.Set("Cache-Control", "no-cache")
	}
	r := c.Request()
	for _, name := range []string{"Range", "If-Range", "If-Match", "If-Unmodified-Since"} {
		r.Header.Del(name)
	}
	http.ServeContent(c.Response(), r, "", modified, bytes.NewReader(body))
	return nil
}

// crlCache keeps thisUpdate of the newest CRL of each issuer, so that a large CRL is
// not parsed for every request.
type crlCache struct {
	mu   sync.Mutex
	this map[[32]byte]time.Time // by SHA-256 of the CRL
}

const crlCacheSize = 64

func (k *crlCache) thisUpdate(der []byte) (time.Time, error) {
	sum := sha256.Sum256(der)
	k.mu.Lock()
	defer k.mu.Unlock()
	if t, ok := k.this[sum]; ok {
		return t, nil
	}
	l, err := x509.ParseRevocationList(der)
	if err != nil {
		return time.Time{}, fmt.Errorf("reading stored CRL: %w", err)
	}
	if len(k.this) >= crlCacheSize || k.this == nil {
		k.this = map[[32]byte]time.Time{}
	}
	k.this[sum] = l.ThisUpdate
	return l.ThisUpdate, nil
}

// crl is GET /crl/{issuer}.crl (RFC 5280 §4.2.1.13, RFC 2585 §4).
func (s *Server) crl(c echo.Context) error {
	issuer := param(c, "issuer", ".crl")
	if issuer == "" {
		return echo.ErrNotFound
	}
	der, next, err := s.cfg.CA.CRL(c.Request().Context(), issuer)
	if err != nil {
		return err
	}
	this, err := s.crls.thisUpdate(der)
	if err != nil {
		return err
	}
	return serve(c, "application/pkix-crl", der, this, min(crlAge, time.Until(next)))
}

// issuerCertificate is GET /ca/{issuer}.cer (RFC 5280 §4.2.2.1, RFC 2585 §4).
func (s *Server) issuerCertificate(c echo.Context) error {
	issuer := param(c, "issuer", ".cer")
	if issuer == "" { // which the CA would take for its default
		return echo.ErrNotFound
	}
	der, err := s.cfg.CA.IssuerCertificate(issuer)
	if err != nil {
		return err
	}
	return serve(c, "application/pkix-cert", der, time.Time{}, issuerAge)
}

// roots is GET /roots.pem: all roots, in an order that does not change.
func (s *Server) roots(c echo.Context) error {
	ders := slices.SortedFunc(slices.Values(s.cfg.CA.Roots()), bytes.Compare)
	if len(ders) == 0 {
		return problemf(notFound, "this CA has no root yet; chancery init makes one")
	}
	return serve(c, "application/x-pem-file", []byte(pemText(ders...)), time.Time{}, rootsAge)
}

// checkpoint is GET /ledger/checkpoint (C2SP tlog-checkpoint).
func (s *Server) checkpoint(c echo.Context) error {
	note, err := s.cfg.Checkpoint(c.Request().Context())
	if err != nil {
		return err
	}
	return serve(c, "text/plain; charset=utf-8", []byte(note), time.Time{}, 0)
}

// proof is GET /api/v1/certificates/{serial}/proof (C2SP tlog-proof). It is public:
// who has the certificate, and only they know its serial, may check it.
func (s *Server) proof(c echo.Context) error {
	text, err := s.cfg.Proof(c.Request().Context(), param(c, "serial", ""))
	if err != nil {
		return err
	}
	return serve(c, "text/plain; charset=utf-8", text, time.Time{}, 0)
}

// openAPI is GET /api/v1/openapi.yaml (RFC 9512).
func (s *Server) openAPI(c echo.Context) error {
	return serve(c, "application/yaml", openAPI, time.Time{}, rootsAge)
}
