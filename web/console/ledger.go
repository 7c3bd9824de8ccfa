package console

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"chancery/audit"
)

func hexText(b []byte) string { return hex.EncodeToString(b) }

// checkpointHead reads origin and size of a checkpoint (C2SP tlog-checkpoint).
func checkpointHead(note string) (origin string, size uint64, err error) {
	lines := strings.SplitN(note, "\n", 3)
	if len(lines) < 3 {
		return "", 0, errors.New("the newest checkpoint has no three lines")
	}
	if size, err = strconv.ParseUint(lines[1], 10, 63); err != nil {
		return "", 0, fmt.Errorf("size of the newest checkpoint: %w", err)
	}
	return lines[0], size, nil
}

// entryRow is a ledger entry in words.
type entryRow struct {
	Index  uint64
	Time   stamp
	Kind   badge
	Op     string
	Facts  []fact
	Closes uint64
	Closed bool // Closes is set
}

// fact is one thing that an entry says.
type fact struct {
	Label string
	Text  foreign
	To    Path // "": no link
	Mono  bool
}

// kindTones says how the kinds of leaves look.
var kindTones = map[audit.Kind]string{audit.KindGenesis: "idle", audit.KindIntent: "idle", audit.KindDone: "ok", audit.KindFailed: "warn", audit.KindOrphan: "bad", audit.KindEvent: "event"}

// names finds what hashes in the ledger are called.
type names struct{ keys map[[32]byte]string }

func (c *Console) names() names {
	n := names{map[[32]byte]string{}}
	for _, k := range c.cfg.Keys() {
		n.keys[spkiHash(k.SPKI)] = k.Name
	}
	return n
}

// entryRow puts a leaf in words; intent is the leaf that it closes, if that is at hand.
func (v *view) entryRow(n names, index uint64, leaf, intent []byte) entryRow {
	l, err := audit.DecodeLeaf(leaf)
	if err != nil {
		return entryRow{Index: index, Kind: v.badge("bad", "entry.unreadable")}
	}
	row := entryRow{Index: index, Time: v.stamp(l.Time), Op: v.named("op.", l.Op.String())}
	row.Kind = badge{Tone: kindTones[l.Kind], Icon: kindTones[l.Kind], Text: v.named("kind.", l.Kind.String())}
	if l.Closes != audit.NoIndex {
		row.Closes, row.Closed = l.Closes, true
	}
	row.Facts = v.facts(n, l)
	if in, err := audit.DecodeLeaf(intent); err == nil && in.ID == l.ID {
		row.Facts = append(v.facts(n, in), row.Facts...)
	}
	return row
}

// telling are the tags that the list shows, in its order.
var telling = []audit.Tag{audit.TagKeyName, audit.TagKey, audit.TagSerial, audit.TagCRLNumber, audit.TagMember, audit.TagSource, audit.TagReason, audit.TagRequester, audit.TagDomain, audit.TagAttempts}

func (v *view) facts(n names, l audit.Leaf) []fact {
	var out []fact
	for _, t := range telling {
		value, ok := l.Get(t)
		if !ok || t == audit.TagKey && slices.ContainsFunc(l.Fields, func(f audit.Field) bool { return f.Tag == audit.TagKeyName }) {
			continue
		}
		f := v.fact(n, l, t, value)
		if t == audit.TagKey && len(f.Text) > 16 && f.Mono {
			f.Text = f.Text[:16] + "…"
		}
		out = append(out, f)
	}
	return out
}

// ledgerData is what the ledger page shows.
type ledgerData struct {
	Head    headData
	Rows    []entryRow
	Next    uint64 // 0: these are the oldest
	Newest  bool
	Index   string // as typed into the search form, if there is no such entry
	Missing bool
}

// ledger is GET /console/ledger: entries, newest first, or one that is asked for.
func (c *Console) ledger(w http.ResponseWriter, r *request) error {
	v := c.view(r, "ledger", "ledger.title", nil)
	q := r.URL.Query()
	size := c.cfg.Ledger.Head().Size
	d := ledgerData{Newest: true}
	before := size
	if b := q.Get("before"); b != "" {
		n, err := strconv.ParseUint(b, 10, 63)
		if err != nil {
			return failure{status: http.StatusBadRequest, text: "error.page"}
		}
		before, d.Newest = min(n, size), false
	}
	if typed := strings.TrimSpace(q.Get("index")); typed != "" {
		n, err := strconv.ParseUint(strings.TrimPrefix(strings.ReplaceAll(typed, ",", ""), "#"), 10, 63)
		if err == nil && n < size {
			return redirect(w, url.Entry(n))
		}
		d.Index, d.Missing = shown(typed, 40), true
	}
	var err error
	if d.Head, err = c.headData(r.Context(), v); err != nil {
		return err
	}
	if d.Rows, err = c.entries(r.Context(), v, before); err != nil {
		return err
	}
	if before > perPage {
		d.Next = before - perPage
	}
	v.Data = d
	return c.show(w, http.StatusOK, "ledger", "", v)
}

// entries reads the page of entries below an index, newest first.
func (c *Console) entries(ctx context.Context, v *view, before uint64) ([]entryRow, error) {
	from := before - min(before, perPage)
	leaves := make([][]byte, 0, perPage)
	if from < before {
		err := c.cfg.Ledger.Entries(ctx, from, before, func(_ uint64, leaf []byte) error {
			leaves = append(leaves, slices.Clone(leaf))
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	n := c.names()
	var rows []entryRow
	for i, leaf := range slices.Backward(leaves) {
		var intent []byte
		if l, err := audit.DecodeLeaf(leaf); err == nil && l.Closes != audit.NoIndex && l.Closes >= from && l.Closes < from+uint64(i) {
			intent = leaves[l.Closes-from]
		}
		rows = append(rows, v.entryRow(n, from+uint64(i), leaf, intent))
	}
	return rows, nil
}

// entryData is what the page of one entry shows.
type entryData struct {
	entryRow
	OpID    string
	Ledger  string
	Hash    string // Merkle leaf hash, RFC 6962 §2.1
	Fields  []fact
	Octets  string
	Raw     string
	Before  uint64
	After   uint64
	Covered bool // by the newest checkpoint
	Last    bool
}

// leaf reads the one leaf that the path names.
func (c *Console) leaf(ctx context.Context, index uint64) (leaf []byte, err error) {
	err = c.cfg.Ledger.Entries(ctx, index, index+1, func(_ uint64, b []byte) error { leaf = slices.Clone(b); return nil })
	if err == nil && leaf == nil {
		err = fmt.Errorf("%w: entry %d", audit.ErrNotFound, index)
	}
	return leaf, err
}

func (c *Console) indexOf(r *request) (uint64, error) {
	index, err := strconv.ParseUint(r.PathValue("index"), 10, 63)
	if err != nil || number(index) != r.PathValue("index") || index >= c.cfg.Ledger.Head().Size {
		return 0, failure{status: http.StatusNotFound, text: "error.noEntry"}
	}
	return index, nil
}

// entry is GET /console/ledger/{index}.
func (c *Console) entry(w http.ResponseWriter, r *request) error {
	index, err := c.indexOf(r)
	if err != nil {
		return err
	}
	leaf, err := c.leaf(r.Context(), index)
	if err != nil {
		return err
	}
	v := c.view(r, "ledger", "entry.title", nil)
	n := c.names()
	hash := audit.LeafHash(leaf)
	d := entryData{entryRow: v.entryRow(n, index, leaf, nil), Hash: hexText(hash[:]), Octets: thousands(uint64(len(leaf))), Raw: hex.Dump(leaf), Before: max(index, 1) - 1, After: index + 1, Last: index+1 >= c.cfg.Ledger.Head().Size}
	if l, err := audit.DecodeLeaf(leaf); err == nil {
		d.OpID, d.Ledger = hexText(l.ID[:]), hexText(l.Ledger[:])
		for _, f := range l.Fields {
			d.Fields = append(d.Fields, v.fact(n, l, f.Tag, f.Value))
		}
	}
	if text, err := c.cfg.Ledger.Checkpoint(r.Context()); err == nil {
		_, size, err := checkpointHead(text)
		d.Covered = err == nil && index < size
	} else if !errors.Is(err, audit.ErrNotFound) {
		return err
	}
	v.Data = d
	return c.show(w, http.StatusOK, "entry", "", v)
}

// proof is GET /console/ledger/{index}/proof (C2SP tlog-proof).
func (c *Console) proof(w http.ResponseWriter, r *request) error {
	index, err := c.indexOf(r)
	if err != nil {
		return err
	}
	text, err := c.cfg.Ledger.Proof(r.Context(), index)
	if errors.Is(err, audit.ErrNotFound) {
		return failure{status: http.StatusServiceUnavailable, text: "error.noProof", retry: 2}
	}
	if err != nil {
		return err
	}
	return download(w, "text/plain; charset=utf-8", "entry-"+number(index)+".tlog-proof", text)
}

// checkpoint is GET /console/ledger/checkpoint.
func (c *Console) checkpoint(w http.ResponseWriter, r *request) error {
	text, err := c.cfg.Ledger.Checkpoint(r.Context())
	if errors.Is(err, audit.ErrNotFound) {
		return failure{status: http.StatusServiceUnavailable, text: "error.noProof", retry: 2}
	}
	if err != nil {
		return err
	}
	return download(w, "text/plain; charset=utf-8", "checkpoint.txt", []byte(text))
}
