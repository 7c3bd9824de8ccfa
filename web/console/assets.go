package console

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"strings"
	"time"
)

//go:embed static/*.css static/*.js static/*.svg
var staticFiles embed.FS

// assets are the files of static/, each served under a name that has the first 64 bits
// of its SHA-256, so that a browser may keep it for ever (RFC 8246).
var assets = loadAssets()

type asset struct {
	data []byte
	kind string // content type
	etag string
}

type assetTable struct {
	served map[string]asset  // by served name
	names  map[string]string // file name to served name
}

var assetKinds = map[string]string{".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}

func loadAssets() assetTable {
	t := assetTable{map[string]asset{}, map[string]string{}}
	err := fs.WalkDir(staticFiles, "static", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := staticFiles.ReadFile(p)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(data)
		base, ext := path.Base(p), path.Ext(p)
		served := strings.TrimSuffix(base, ext) + "." + hex.EncodeToString(sum[:8]) + ext
		t.names[base] = served
		t.served[served] = asset{data, assetKinds[ext], `"` + hex.EncodeToString(sum[:16]) + `"`}
		return nil
	})
	if err != nil {
		panic("console: embedded files: " + err.Error())
	}
	return t
}

func (t assetTable) name(file string) (string, error) {
	s, ok := t.names[file]
	if !ok {
		return "", fmt.Errorf("there is no static file %q", file)
	}
	return s, nil
}

// static is GET /console/static/{file}.
func (c *Console) static(w http.ResponseWriter, r *request) error {
	a, ok := assets.served[r.PathValue("file")]
	if !ok {
		return failure{status: http.StatusNotFound, text: "error.notFound"}
	}
	h := w.Header()
	h.Set("Content-Type", a.kind)
	h.Set("ETag", a.etag)
	h.Set("Cache-Control", "public, max-age=31536000, immutable")
	h.Del("Vary")
	http.ServeContent(w, r.Request, "", time.Time{}, bytes.NewReader(a.data))
	return nil
}
