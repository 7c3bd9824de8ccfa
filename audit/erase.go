package audit

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"
)

// Selection says which openings are to be erased.
type Selection struct {
	query OpeningQuery
	match func(Opening) bool // nil: all
}

const allEntries = math.MaxInt64

// EntryOpenings are those of one entry.
func EntryOpenings(index uint64) Selection {
	return Selection{query: OpeningQuery{From: index, To: index + 1}}
}

// OpeningsOf are those of every entry that hold a value, see [Opening.Is].
func OpeningsOf(value string) Selection {
	return Selection{query: OpeningQuery{To: allEntries}, match: func(o Opening) bool { return o.Is(value) }}
}

// OpeningsBefore are those whose retention ended before a moment.
func OpeningsBefore(at time.Time) Selection {
	return Selection{query: OpeningQuery{To: allEntries, Before: at}}
}

// erasePage is how many openings one entry erases: its list has to fit into a leaf, and
// whoever issues meanwhile waits for its transaction.
const erasePage = 512

// Erase erases openings for good: each page of them in one transaction with an entry that
// names them and says why. It returns how many there were; 0 writes nothing. What was
// erased before an error stays erased. The reason stands in the ledger for ever and must not
// repeat what is erased. client is the address of who asks, or "": each entry commits to it,
// unless it is what is to be erased.
func (l *Ledger) Erase(ctx context.Context, which Selection, reason, requester, client string) (erased int, err error) {
	if which.match != nil && which.match(Opening{Tag: TagAddress, Value: []byte(client)}) {
		client = ""
	}
	defer func() {
		if erased == 0 {
			return
		}
		if err := l.st.Scrub(context.WithoutCancel(ctx)); err != nil { // after an error too
			l.opt.Log.Warn("what was erased may stay in the database's log files for a while", "err", err)
		}
	}()
	for conflicts := 0; ; {
		refs, err := l.refs(ctx, which)
		if err != nil {
			return erased, fmt.Errorf("looking for personal values: %w", err)
		}
		if len(refs) == 0 {
			return erased, nil
		}
		var list []byte
		for _, r := range refs {
			list = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint64(list, r.Index), uint16(r.Tag))
		}
		var f Fields
		f.Text(TagRequester, requester)
		f.Text(TagReason, reason)
		f.Uint64(TagCount, uint64(len(refs)))
		f.Bytes(TagErased, list)
		e := Event(OpErase, f)
		e.Private = []Private{{TagAddress, client}}
		_, err = l.Append(ctx, e, EraseOpenings{refs})
		if errors.Is(err, ErrConflict) && conflicts < 1000 { // somebody else erased some of them
			conflicts++
			continue
		}
		if err != nil {
			return erased, fmt.Errorf("erasing personal values: %w", err)
		}
		erased += len(refs)
		which.query.From = refs[len(refs)-1].Index + 1
	}
}

// refs finds the first page of what is to be erased.
func (l *Ledger) refs(ctx context.Context, which Selection) (refs []OpeningRef, err error) {
	full := errors.New("page is full")
	err = l.st.Openings(ctx, which.query, func(s StoredOpenings) error {
		for _, o := range s.Openings {
			if which.match == nil || which.match(o) {
				refs = append(refs, OpeningRef{s.Index, o.Tag})
			}
		}
		if len(refs) >= erasePage {
			return full
		}
		return nil
	})
	if errors.Is(err, full) {
		err = nil
	}
	return refs, err
}

// eraseEvery is how often personal values past their retention are looked for.
const eraseEvery = 24 * time.Hour

// RunRetention erases personal values whose retention has ended, at once and then once a
// day, until ctx is done.
func (l *Ledger) RunRetention(ctx context.Context) error {
	timer := time.NewTicker(eraseEvery)
	defer timer.Stop()
	for {
		n, err := l.Erase(ctx, OpeningsBefore(l.opt.Now()), "retention ended", "node:"+l.opt.Node, "")
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			l.opt.Log.Error("personal values past their retention could not be erased; it is tried again in a day", "err", err)
		case n > 0:
			l.opt.Log.Info("personal values past their retention are erased", "count", n)
		}
		select {
		case <-timer.C:
		case <-ctx.Done():
			return nil
		}
	}
}
