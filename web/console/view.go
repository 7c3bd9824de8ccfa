package console

import (
	"bytes"
	"embed"
	"fmt"
	"html/template"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"chancery/admin"
)

//go:embed pages/*.html
var pageFiles embed.FS

// pages are the parsed templates by name, each with the frame around it. They are
// parsed when the program starts, so that a broken one cannot be shipped.
var pages = parsePages()

// around are the files that every page is made with.
var around = []string{"pages/frame.html", "pages/parts.html"}

func parsePages() map[string]*template.Template {
	out := map[string]*template.Template{}
	entries, err := pageFiles.ReadDir("pages")
	if err != nil {
		panic("console: embedded pages: " + err.Error())
	}
	for _, e := range entries {
		name := strings.TrimSuffix(e.Name(), ".html")
		if name == "frame" || name == "parts" {
			continue
		}
		t := template.New("frame.html").Option("missingkey=error").Funcs(template.FuncMap{"url": func() urls { return url }})
		out[name] = template.Must(t.ParseFS(pageFiles, append([]string{path.Join("pages", e.Name())}, around...)...))
	}
	return out
}

// view is what a template is given; Data is the page's own.
type view struct {
	Lang     Lang
	Page     string // which entry of the navigation is current
	Title    string
	Dev      bool
	SignedIn bool
	Who      foreign // who is signed in
	Form     string  // form token of the session
	Here     place
	Data     any
	now      time.Time
	session  *session
}

func (c *Console) view(r *request, page, title string, data any) *view {
	v := &view{Lang: r.lang, Page: page, Dev: c.cfg.Dev, Here: placeOf(r), Data: data, now: c.now(), session: r.session}
	if r.session != nil {
		v.SignedIn, v.Form, v.Who = true, r.session.Form, foreign(r.session.who.Name)
	}
	v.Title = v.Lang.text(title)
	return v
}

// T is a text of the catalogue. A key that is missing is an error, which a test of all
// templates in all languages finds.
func (v *view) T(key string, args ...any) (string, error) { return v.Lang.lookup(key, args...) }

// May tells whether who is signed in has a permission on anything: pages show only what one
// may do. A permission that is not in the table is an error.
func (v *view) May(p admin.Permission) (bool, error) {
	if !p.Known() {
		return false, fmt.Errorf("there is no permission %q", p)
	}
	return v.session != nil && v.session.who.MaySome(p), nil
}

// may is May on one resource.
func (v *view) may(p admin.Permission, on admin.Resource) bool {
	return v.session != nil && v.session.who.May(p, on)
}

// assignment is a role with its limits, in words.
func (v *view) assignment(a admin.Assignment) foreign {
	s := v.named("role.", string(a.Role))
	for _, limit := range []struct{ key, value string }{{"issuer", a.Issuer}, {"profile", a.Profile}, {"key", a.Key}} {
		if limit.value != "" {
			s += ", " + v.Lang.text("limit."+limit.key, limit.value)
		}
	}
	return foreign(s)
}

// show renders a page, or one block of it, and sends it whole or not at all.
func (c *Console) show(w http.ResponseWriter, status int, page, block string, v *view) error {
	t, ok := pages[page]
	if !ok {
		return fmt.Errorf("there is no page %q", page)
	}
	if block == "" {
		block = "frame.html"
	}
	var b bytes.Buffer
	if err := t.ExecuteTemplate(&b, block, v); err != nil {
		return fmt.Errorf("rendering %s: %w", page, err)
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Language", string(v.Lang))
	h.Set("Content-Length", strconv.Itoa(b.Len()))
	w.WriteHeader(status)
	b.WriteTo(w) // an error means that the browser went away
	return nil
}

// foreign is text that somebody else wrote: names, labels, reasons, error texts. A
// template shows it through String, so that it cannot mislead: control, format and bidi
// characters are escaped (Unicode TR36 §2.5, §3.1), long text is cut.
type foreign string

const foreignRunes = 256

func (f foreign) String() string { return shown(string(f), foreignRunes) }

// brailleBlank is a symbol that looks as if there were none.
const brailleBlank = '\u2800'

// shown makes text harmless to look at and at most max characters long.
func shown(s string, max int) string {
	var b strings.Builder
	n := 0
	for i := 0; i < len(s); n++ {
		if n == max {
			b.WriteRune('…')
			break
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case r == ' ' || unicode.IsPrint(r) && !unicode.In(r, unicode.Mn, unicode.Me, unicode.Other_Default_Ignorable_Code_Point) && r != brailleBlank:
			b.WriteRune(r)
		default: // marks, too: hundreds of them on one letter cover the lines around it; and letters for which nothing is drawn
			fmt.Fprintf(&b, `\u{%x}`, r)
		}
		i += size
	}
	return b.String()
}

// badge is a state: a picture and a word, and a colour for those who see it.
type badge struct {
	Tone string // ok, warn, bad or idle: a class of the style sheet
	Icon string // a shape of its own for each tone
	Text string
}

func (v *view) badge(tone, key string, args ...any) badge {
	return badge{Tone: tone, Icon: tone, Text: v.Lang.text(key, args...)}
}

// stamp is a time in UTC, for <time>.
type stamp struct {
	ISO  string
	Text string
	Ago  string // how far from now, in words
}

func (v *view) stamp(t time.Time) stamp {
	if t.IsZero() {
		return stamp{}
	}
	t = t.UTC()
	return stamp{ISO: t.Format(time.RFC3339), Text: t.Format("2006-01-02 15:04:05") + " UTC", Ago: v.distance(t)}
}

// distance says how far a time is from now: "in 3 days", "2 hours ago".
func (v *view) distance(t time.Time) string {
	d, key := t.Sub(v.now), "time.in"
	if d < 0 {
		d, key = -d, "time.ago"
	}
	unit, n := "second", int(d/time.Second)
	switch {
	case d >= 48*time.Hour:
		unit, n = "day", int(d/(24*time.Hour))
	case d >= 2*time.Hour:
		unit, n = "hour", int(d/time.Hour)
	case d >= 2*time.Minute:
		unit, n = "minute", int(d/time.Minute)
	case d < 2*time.Second:
		return v.Lang.text("time.now")
	}
	return v.Lang.text(key, v.Lang.text("time."+unit, n))
}

// thousands writes a number with a separator, as both languages do.
func thousands(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
