// Package templates holds the pages that people see, as typed values: each page is a
// struct whose fields are all that its template may show. The templates are embedded
// and parsed when the program starts, so that a broken one cannot be shipped.
//
// The pages work under a content security policy that allows nothing but the style
// sheet of this package: no script, no inline style, no picture from elsewhere. A
// test reads every template and keeps it so.
package templates

import (
	"bytes"
	"embed"
	"fmt"
	"html/template"
	"io"
)

//go:embed *.html
var files embed.FS

// CSS is the style sheet of all pages, light and dark.
//
//go:embed chancery.css
var CSS []byte

// CSSPath is the URL path at which the pages expect [CSS].
const CSSPath = "/static/chancery.css"

func parse(page string) *template.Template {
	return template.Must(template.New("frame.html").Option("missingkey=error").ParseFS(files, "frame.html", page))
}

var (
	landing      = parse("landing.html")
	problem      = parse("problem.html")
	problemIndex = parse("problems.html")
)

// Page is what can be shown.
type Page interface {
	// Render writes the whole page or, on an error, nothing.
	Render(w io.Writer) error
}

// Landing is the page that greets who opens the CA's address in a browser.
type Landing struct {
	Name          string // of the CA
	Dev           bool
	DirectoryURL  string // of ACME
	Fingerprint   string // SHA-256 of the root certificate, in hex pairs
	CertbotLine   string
	RootsURL      string
	CheckpointURL string
	OpenAPIURL    string
	ProblemsURL   string
	Issuers       []Issuer
}

// Issuer is an issuer on the [Landing] page.
type Issuer struct{ Name, CertificateURL, CRLURL string }

// Problem is the help page of one problem type (RFC 9457 §4).
type Problem struct {
	Slug, Title string
	Status      int
	Meaning     string
	Cure        string
	Retry       int // seconds after which a repetition makes sense; 0: not by itself
}

// ProblemIndex lists all problem types.
type ProblemIndex struct{ Problems []Problem }

func (p Landing) Render(w io.Writer) error      { return render(w, landing, p) }
func (p Problem) Render(w io.Writer) error      { return render(w, problem, p) }
func (p ProblemIndex) Render(w io.Writer) error { return render(w, problemIndex, p) }

func render(w io.Writer, t *template.Template, data any) error {
	var b bytes.Buffer
	if err := t.Execute(&b, data); err != nil {
		return fmt.Errorf("rendering %T: %w", data, err)
	}
	_, err := b.WriteTo(w)
	return err
}
