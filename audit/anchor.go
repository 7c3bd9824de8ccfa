package audit

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// An anchor is a file outside the database that keeps every signed checkpoint, one
// after the other, each followed by an empty line: whoever rewrites or cuts the
// database must change it as well.

// anchorTail is how much of the anchor is looked at when the ledger is opened.
const anchorTail = 64 << 10

// appendAnchor makes a note durable in the anchor file.
func appendAnchor(path, note string) error {
	f, err := openAppend(path, os.O_RDWR)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	text := note + "\n"
	if size := st.Size(); size > 0 {
		last := make([]byte, 1)
		if _, err := f.ReadAt(last, size-1); err != nil {
			return err
		}
		if last[0] != '\n' { // a crash cut the last note off
			text = "\n" + text
		}
	}
	if _, err := f.WriteString(text); err != nil {
		return errors.Join(err, f.Truncate(st.Size()))
	}
	return errors.Join(f.Sync(), f.Close())
}

// readAnchor calls fn for each whole note of an origin. It may begin within a note;
// what a crash cut off is passed over.
func readAnchor(r io.Reader, origin string, fn func(note string) error) error {
	var note strings.Builder
	empty := 0
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		line := sc.Text()
		switch {
		case line == origin:
			note.Reset()
			empty = 0
		case note.Len() == 0:
			continue
		case line == "":
			if empty++; empty == 2 {
				if err := fn(note.String()); err != nil {
					return err
				}
				note.Reset()
				continue
			}
		}
		note.WriteString(line)
		note.WriteByte('\n')
	}
	return sc.Err()
}

// compareAnchor refuses a ledger that does not go on from the newest anchored
// checkpoint: one that was cut, rolled back or rewritten.
func (l *Ledger) compareAnchor(ctx context.Context) error {
	if l.opt.Anchor == "" {
		return nil
	}
	f, err := os.Open(l.opt.Anchor)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening the anchor: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	head := l.Head()
	if head.Size == 0 {
		if st.Size() > 0 {
			return fmt.Errorf("%w: the database is empty, but %s anchors a ledger: the database was lost. Put it back, or name another anchor for a new ledger", ErrTampered, l.opt.Anchor)
		}
		return nil
	}
	at, err := l.st.Recoveries(ctx)
	if err != nil {
		return fmt.Errorf("reading recoveries: %w", err)
	}
	recs, err := l.warranted(ctx, head, at)
	if err != nil {
		return err
	}
	var newest Checkpoint
	off := max(st.Size()-anchorTail, 0)
	err = readAnchor(io.NewSectionReader(f, off, st.Size()-off), l.Origin(), func(note string) error {
		c, err := OpenCheckpoint(note, l.Origin(), l.checkpointKeys())
		if err != nil { // of what was given up, perhaps with the birth of its key
			if size, bad := noteSize(note); bad == nil && gaveUp(recs, size) {
				return nil
			}
			return fmt.Errorf("%w: the anchor %s: %v", ErrTampered, l.opt.Anchor, err)
		}
		if gaveUp(recs, c.Size) {
			if same, err := l.isPrefix(ctx, head, c); err != nil || !same {
				return err
			}
		}
		if c.Size > newest.Size {
			newest = c
		}
		return nil
	})
	if err != nil {
		return err
	}
	if newest.Size > head.Size {
		return fmt.Errorf("%w: a checkpoint of %d entries is anchored in %s, the database holds %d: it was rolled back. Put the newer database back; if there is none any more, the officers decide to go on: %s. Nothing is signed before", ErrTampered, newest.Size, l.opt.Anchor, head.Size, recoverCommand)
	}
	if newest.Size == 0 {
		return nil
	}
	same, err := l.isPrefix(ctx, head, newest)
	if err != nil {
		return err
	}
	if !same {
		return fmt.Errorf("%w: the first %d entries are not those of the checkpoint anchored in %s", ErrTampered, newest.Size, l.opt.Anchor)
	}
	return nil
}

// isPrefix tells whether a checkpoint is of the first entries of the tree of head.
func (l *Ledger) isPrefix(ctx context.Context, head Head, c Checkpoint) (bool, error) {
	if c.Size > head.Size {
		return false, nil
	}
	root, err := tlog.TreeHash(int64(c.Size), hashes(ctx, l.st, head.Size))
	if err != nil {
		return false, fmt.Errorf("computing the tree of %d entries: %w", c.Size, err)
	}
	return root == c.Root, nil
}
