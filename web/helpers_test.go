package web_test

import (
	"encoding/json/v2"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
)

func newBody(s string) io.ReadCloser    { return io.NopCloser(strings.NewReader(s)) }
func newDiscard() http.ResponseWriter   { return httptest.NewRecorder() }
func jsonMarshal(v any) ([]byte, error) { return json.Marshal(v) }
