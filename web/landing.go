package web

import (
	"bytes"
	"net/http"
	"net/url"
	"time"

	"github.com/labstack/echo/v4"

	"chancery/templates"
)

// show renders a page under the content security policy of pages.
func showPage(c echo.Context, p templates.Page) error {
	var b bytes.Buffer
	if err := p.Render(&b); err != nil {
		return err
	}
	h := c.Response().Header()
	h.Set("Content-Security-Policy", cspPage)
	h.Set("Cache-Control", "no-cache")
	return c.HTMLBlob(http.StatusOK, b.Bytes())
}

// landing is GET /.
func (s *Server) landing(c echo.Context) error {
	l := s.cfg.Landing
	if l.Name == "" {
		if u, err := url.Parse(s.base); err == nil {
			l.Name = u.Hostname()
		}
	}
	dir := s.base + "/acme/directory"
	if l.CertbotLine == "" {
		l.CertbotLine = "certbot certonly --standalone --server " + dir + " -d NAME"
	}
	p := templates.Landing{Name: l.Name, Dev: s.cfg.Dev, DirectoryURL: dir, Fingerprint: l.RootFingerprint, CertbotLine: l.CertbotLine,
		RootsURL: s.httpBase + "/roots.pem", CheckpointURL: s.base + "/ledger/checkpoint", OpenAPIURL: s.base + "/api/v1/openapi.yaml", ProblemsURL: s.base + "/problems"}
	for _, name := range l.Issuers {
		e := url.PathEscape(name)
		p.Issuers = append(p.Issuers, templates.Issuer{Name: name, CertificateURL: s.httpBase + "/ca/" + e + ".cer", CRLURL: s.httpBase + "/crl/" + e + ".crl"})
	}
	return showPage(c, p)
}

// help is the help page of a problem type.
func help(k kind) templates.Problem {
	return templates.Problem{Slug: string(k.slug), Title: k.title, Status: k.status, Meaning: k.meaning, Cure: k.cure, Retry: k.retry}
}

// problemIndex is GET /problems.
func (s *Server) problemIndex(c echo.Context) error {
	var p templates.ProblemIndex
	for _, k := range kinds {
		p.Problems = append(p.Problems, help(k))
	}
	return showPage(c, p)
}

// problemPage is GET /problems/{slug}.
func (s *Server) problemPage(c echo.Context) error {
	want := slug(param(c, "slug", ""))
	k := kindOf(want)
	if k.slug != want {
		return problemf(notFound, "there is no problem type %s; %s/problems lists all", quote(string(want)), s.base)
	}
	return showPage(c, help(k))
}

// css is the style sheet of all pages.
func (s *Server) css(c echo.Context) error {
	return serve(c, "text/css; charset=utf-8", templates.CSS, time.Time{}, rootsAge)
}
