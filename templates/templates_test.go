package templates_test

import (
	"bytes"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"testing"

	"chancery/templates"
)

func pages() map[string]templates.Page {
	evil := `"><img src=x onerror=alert(1)>`
	return map[string]templates.Page{
		"landing": templates.Landing{Name: "Example CA " + evil, Dev: true, DirectoryURL: "https://ca.example/acme/directory", Fingerprint: "AB:CD" + evil,
			CertbotLine: "certbot certonly -d 'a b'" + evil, RootsURL: "javascript:alert(1)", CheckpointURL: "/c", OpenAPIURL: "/o", ProblemsURL: "/problems",
			Issuers: []templates.Issuer{{Name: "issuing" + evil, CertificateURL: "http://ca.example/ca/issuing.cer", CRLURL: "http://ca.example/crl/issuing.crl"}}},
		"empty landing": templates.Landing{},
		"problem":       templates.Problem{Slug: "bad-csr", Title: "Bad CSR", Status: 400, Meaning: "m" + evil, Cure: "c", Retry: 5},
		"problem index": templates.ProblemIndex{Problems: []templates.Problem{{Slug: "x" + evil, Title: "t"}}},
	}
}

func TestEveryPageRendersAndEscapes(t *testing.T) {
	for name, p := range pages() {
		var b bytes.Buffer
		if err := p.Render(&b); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		got := b.String()
		if !strings.HasPrefix(got, "<!DOCTYPE html>") || !strings.Contains(got, "</html>") || !strings.Contains(got, "<h1>") {
			t.Errorf("%s is no whole page:\n%s", name, got)
		}
		if strings.Contains(got, "<img") || strings.Contains(got, `="javascript:`) {
			t.Errorf("%s: foreign text became markup:\n%s", name, got)
		}
	}
}

// The content security policy of the server forbids these; a page with one would
// look right in this test run and be broken in the browser.
func TestNothingInline(t *testing.T) {
	banned := regexp.MustCompile(`(?i)<script|<style|\sstyle=|\son[a-z]+=|\shx-|javascript:|<iframe|<object|<base|https?://`)
	files, err := fs.Glob(os.DirFS("."), "*.html")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if m := banned.Find(b); m != nil {
			t.Errorf("%s holds %q", f, m)
		}
	}
	if m := regexp.MustCompile(`(?i)@import|url\(|expression`).Find(templates.CSS); m != nil {
		t.Errorf("the style sheet fetches: %q", m)
	}
}

func TestFrameNamesTheStyleSheet(t *testing.T) {
	b, err := os.ReadFile("frame.html")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), `href="`+templates.CSSPath+`"`) {
		t.Errorf("frame.html does not link %s", templates.CSSPath)
	}
}
