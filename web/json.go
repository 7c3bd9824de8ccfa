package web

import (
	"bytes"
	"encoding/json/jsontext"
	"encoding/json/v2"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/labstack/echo/v4"
)

// The limits of a request body.
const (
	bodyBytes = 64 << 10
	bodyDepth = 8
)

// readJSON reads a request's body into a struct, strictly: RFC 8259 with the
// restrictions of RFC 7493 (I-JSON), one object, no member twice, none that dst does
// not know. Two parsers can then not read two things from it.
func readJSON(c echo.Context, dst any) error {
	r := c.Request()
	if err := wantJSON(r.Header); err != nil {
		return err
	}
	body, err := io.ReadAll(http.MaxBytesReader(c.Response().Writer, r.Body, bodyBytes))
	var long *http.MaxBytesError
	switch {
	case errors.As(err, &long):
		return tooLong()
	case err != nil:
		return problemf(malformedRequest, "the body could not be read to its end; send it again, with the right Content-Length")
	case len(bytes.TrimSpace(body)) == 0:
		return problemf(badJSON, "the body is empty; send a JSON object with the members %s", members(dst))
	}
	if err := checkDepth(body); err != nil {
		return err
	}
	if err := json.Unmarshal(body, dst, json.RejectUnknownMembers(true)); err != nil {
		return explain(err, dst)
	}
	return nil
}

func wantJSON(h http.Header) error {
	ct := h.Values("Content-Type")
	if len(ct) == 1 {
		if t, params, err := mime.ParseMediaType(ct[0]); err == nil && t == "application/json" && (len(params) == 0 || len(params) == 1 && strings.EqualFold(params["charset"], "utf-8")) {
			if e := h.Get("Content-Encoding"); e == "" || strings.EqualFold(e, "identity") {
				return nil
			}
			return problemf(unsupportedMediaType, "Content-Encoding is not understood; send the body as it is").at("", "Content-Encoding")
		}
	}
	return problemf(unsupportedMediaType, "the body must be JSON in UTF-8 and say so: Content-Type: application/json").at("", "Content-Type")
}

func tooLong() *Problem {
	return problemf(tooLarge, "the body is longer than the %d octets that are read; a CSR needs about 1,000", bodyBytes)
}

// checkDepth walks the body once without keeping it. It finds bad grammar, too.
func checkDepth(body []byte) error {
	d := jsontext.NewDecoder(bytes.NewReader(body))
	for {
		_, err := d.ReadToken()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return explain(err, nil)
		}
		if d.StackDepth() > bodyDepth {
			return problemf(badJSON, "it nests deeper than %d levels; this API needs one", bodyDepth).at(pointer(d.StackPointer()), "")
		}
		if d.StackDepth() == 0 {
			if _, err := d.ReadToken(); err != io.EOF {
				return problemf(badJSON, "something follows the JSON object at octet %d; send one object and nothing else", d.InputOffset())
			}
			return nil
		}
	}
}

// explain says what was wrong, where, and the cure, without the raw input.
func explain(err error, dst any) error {
	var syntax *jsontext.SyntacticError
	var semantic *json.SemanticError
	switch {
	case errors.As(err, &syntax) && errors.Is(err, jsontext.ErrDuplicateName):
		return problemf(badJSON, "member %s stands there twice; send it once", quoteMember(syntax.JSONPointer)).at(pointer(syntax.JSONPointer), "")
	case errors.As(err, &syntax):
		return problemf(badJSON, "it is no JSON (RFC 8259) in valid UTF-8: the fault is at octet %d of the body", syntax.ByteOffset).at(pointer(syntax.JSONPointer), "")
	case errors.As(err, &semantic) && errors.Is(err, json.ErrUnknownName):
		return problemf(badJSON, "member %s is not known here; allowed: %s", quoteMember(semantic.JSONPointer), members(dst)).at(pointer(semantic.JSONPointer), "")
	case errors.As(err, &semantic):
		return problemf(badJSON, "the value has the wrong type: it is %s, wanted is %s", kindName(semantic.JSONKind), wanted(semantic.GoType)).at(pointer(semantic.JSONPointer), "")
	}
	return problemf(badJSON, "the body cannot be read; send a JSON object with the members %s", members(dst))
}

// pointer is p, unless the client's own member names in it are too long or too odd to
// be shown as they are.
func pointer(p jsontext.Pointer) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/_-.~", r)
	}
	if len(p) > 64 || strings.ContainsFunc(string(p), func(r rune) bool { return !plain(r) }) {
		return ""
	}
	return string(p)
}

func quoteMember(p jsontext.Pointer) string { return quote(p.LastToken()) }

func kindName(k jsontext.Kind) string {
	switch k {
	case jsontext.KindNull:
		return "null"
	case jsontext.KindTrue, jsontext.KindFalse:
		return "a boolean"
	case jsontext.KindString:
		return "a string"
	case jsontext.KindNumber:
		return "a number"
	case jsontext.KindBeginObject:
		return "an object"
	case jsontext.KindBeginArray:
		return "an array"
	}
	return "something else"
}

func wanted(t reflect.Type) string {
	switch {
	case t == nil:
	case t.Kind() == reflect.String:
		return "a string"
	case t.Kind() == reflect.Int64:
		return "a whole number"
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8:
		return "a string in base64 (RFC 4648 §4)"
	case t.Kind() == reflect.Slice:
		return "an array"
	}
	return "an object"
}

// members lists the members of a request's struct for messages.
func members(dst any) string {
	if dst == nil {
		return "of the description in openapi.yaml"
	}
	var out []string
	for _, f := range reflect.VisibleFields(reflect.TypeOf(dst).Elem()) {
		if f.Anonymous { // its own fields follow
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		out = append(out, name)
	}
	return strings.Join(out, ", ")
}

// writeJSON answers with a value.
func writeJSON(c echo.Context, status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding the answer: %w", err)
	}
	h := c.Response().Header()
	if h.Get("Cache-Control") == "" {
		h.Set("Cache-Control", "no-store")
	}
	return c.Blob(status, "application/json", append(b, '\n'))
}

// clip shortens foreign text to 64 octets.
func clip(s string) string { return clipTo(s, 64) }

func clipTo(s string, limit int) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) <= limit {
		return s
	}
	cut := limit
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}

// quote makes foreign text fit to be shown: short, quoted, ASCII, no markup.
func quote(s string) string {
	return strings.NewReplacer("<", `\x3c`, ">", `\x3e`, "&", `\x26`).Replace(strconv.QuoteToASCII(clip(s)))
}
