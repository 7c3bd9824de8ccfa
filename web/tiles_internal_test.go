package web

import (
	"fmt"
	"testing"
)

// A path that is taken is the one spelling of its tile.
func FuzzParseTile(f *testing.F) {
	for _, s := range []string{"0/000", "entries/x001/234.p/7", "7/x999/x999/x999/x999/x999/999.p/255", "0/x000/001", "entries/000.p/256", "x/000", "0/0000", "0/000.p/.p/1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		kind, n, w, ok := parseTile(path)
		if !ok {
			return
		}
		want := kind + "/" + tileNumber(n)
		if w != fullTile {
			want += fmt.Sprintf(".p/%d", w)
		}
		if path != want || w < 1 || w > fullTile {
			t.Errorf("%q is taken for %q", path, want)
		}
	})
}
