package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// exportWidth is the number of entries of a full bundle (C2SP tlog-tiles).
const exportWidth = 256

// tilePath is the path of a tile or bundle of width w (C2SP tlog-tiles).
func tilePath(kind string, n, w uint64) string {
	name := fmt.Sprintf("%03d", n%1000)
	for n /= 1000; n > 0; n /= 1000 {
		name = fmt.Sprintf("x%03d/%s", n%1000, name)
	}
	if w < exportWidth {
		name += fmt.Sprintf(".p/%d", w)
	}
	return "tile/" + kind + "/" + name
}

// tree is a folder whose files are never there by halves.
type tree struct{ dir string }

func (x tree) path(name string) string { return filepath.Join(x.dir, filepath.FromSlash(name)) }

// put writes a file unless it holds just that already.
func (x tree) put(name string, b []byte) error {
	if old, err := os.ReadFile(x.path(name)); err == nil && bytes.Equal(old, b) {
		return nil
	}
	return x.stream(name, func(w io.Writer) error { _, err := w.Write(b); return err })
}

func (x tree) json(name string, v any) error {
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return err
	}
	return x.put(name, append(b, '\n'))
}

// stream writes a file. It is safe on disk only after [tree.sync].
func (x tree) stream(name string, fn func(io.Writer) error) error {
	path := x.path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return writeStream(path, fn)
}

// sync makes everything under the folder durable, in one go (syncfs(2)): a sync of each
// of some ten thousand files would take minutes.
func (x tree) sync() error {
	f, err := os.Open(x.dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}

// dropPartial takes away the partial tiles and bundles that a shorter export left. It is
// only tidying, as C2SP tlog-tiles allows: what cannot be removed stays.
func (x tree) dropPartial(size uint64) {
	drop := func(kind string, count uint64) {
		keep := x.path(tilePath(kind, count/exportWidth, count%exportWidth))
		_ = filepath.WalkDir(x.path("tile/"+kind), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() || !strings.HasSuffix(path, ".p") {
				return nil
			}
			files, _ := os.ReadDir(path)
			for _, f := range files {
				if p := filepath.Join(path, f.Name()); p != keep {
					_ = os.Remove(p)
				}
			}
			_ = os.Remove(path) // if it is empty
			return fs.SkipDir
		})
	}
	drop("entries", size)
	for level := 0; size>>(8*level) > 0; level++ {
		drop(fmt.Sprint(level), size>>(8*level))
	}
}

// writeStream writes a file beside its place and moves it there once it is whole.
func writeStream(path string, fn func(io.Writer) error) error { return writeStreamAs(path, 0o644, fn) }

func writeStreamAs(path string, mode fs.FileMode, fn func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<16)
	if err = fn(w); err == nil {
		err = w.Flush()
	}
	if err = errors.Join(err, f.Chmod(mode), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
