package console

import (
	"fmt"
	"net/http"
	"time"

	"golang.org/x/text/language"
)

// Lang is a language of the console, as in an HTML lang attribute (BCP 47).
type Lang string

const (
	english  Lang = "en"
	japanese Lang = "ja"
)

// catalogues hold every text of the console; a test compares their keys.
var catalogues = map[Lang]map[string]string{english: textsEN, japanese: textsJA}

var matcher = language.NewMatcher([]language.Tag{language.English, language.Japanese})

const languageCookie = "chancery_lang"

// languageOf is the language that a person chose, else the one that the browser
// prefers (RFC 9110 §12.5.4), else English.
func languageOf(r *http.Request) Lang {
	if ck, err := r.Cookie(languageCookie); err == nil {
		if _, ok := catalogues[Lang(ck.Value)]; ok {
			return Lang(ck.Value)
		}
	}
	header := r.Header.Get("Accept-Language")
	if len(header) > 256 {
		return english
	}
	tags, _, err := language.ParseAcceptLanguage(header)
	if err != nil || len(tags) == 0 {
		return english
	}
	if _, i, _ := matcher.Match(tags...); i == 1 {
		return japanese
	}
	return english
}

// lookup is a text with its arguments filled in.
func (l Lang) lookup(key string, args ...any) (string, error) {
	s, ok := catalogues[l][key]
	if !ok {
		return "", fmt.Errorf("no text %q in language %q", key, l)
	}
	if len(args) == 0 {
		return s, nil
	}
	return fmt.Sprintf(s, args...), nil
}

// text is lookup for keys that stand in the code; a missing one shows itself.
func (l Lang) text(key string, args ...any) string {
	s, err := l.lookup(key, args...)
	if err != nil {
		return "[" + key + "]"
	}
	return s
}

// has tells whether the catalogue knows a key.
func (l Lang) has(key string) bool { _, ok := catalogues[l][key]; return ok }

// setLanguage is POST /console/language.
func (c *Console) setLanguage(w http.ResponseWriter, r *request) error {
	lang := Lang(r.form.Get("lang"))
	if _, ok := catalogues[lang]; !ok {
		return failure{status: http.StatusBadRequest, text: "error.form"}
	}
	http.SetCookie(w, &http.Cookie{Name: languageCookie, Value: string(lang), Path: "/", HttpOnly: true, Secure: r.TLS != nil, SameSite: http.SameSiteLaxMode, MaxAge: int(365 * 24 * time.Hour / time.Second)})
	return redirect(w, parsePlace(r.form.Get("to")).Path())
}
