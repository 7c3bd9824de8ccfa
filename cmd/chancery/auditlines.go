package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"chancery/audit"
)

// lineTime is RFC 3339 with microseconds, which RFC 5424 §6.2.3 takes as well.
const lineTime = "2006-01-02T15:04:05.000000Z07:00"

// line is an entry for a log system.
type line struct {
	Index    uint64         `json:"index"`
	TreeSize uint64         `json:"tree_size"` // of the newest signed checkpoint
	Origin   string         `json:"origin"`
	Time     string         `json:"time"`
	Kind     string         `json:"kind"`
	Op       string         `json:"op"`
	OpID     string         `json:"op_id"`
	Closes   *uint64        `json:"closes,omitempty"`
	LeafHash string         `json:"leaf_hash"`
	Fields   map[string]any `json:"fields"`
}

func newLine(origin string, index, size uint64, raw []byte) (line, audit.Leaf, error) {
	l, err := audit.DecodeLeaf(raw)
	if err != nil {
		return line{}, l, fmt.Errorf("%w: entry %d: %w", audit.ErrTampered, index, err)
	}
	h := audit.LeafHash(raw)
	out := line{Index: index, TreeSize: size, Origin: origin, Time: l.Time.Format(lineTime), Kind: l.Kind.String(), Op: l.Op.String(),
		OpID: fmt.Sprintf("%x", l.ID[:]), LeafHash: fmt.Sprintf("%x", h[:]), Fields: map[string]any{}}
	if l.Closes != audit.NoIndex {
		out.Closes = &l.Closes
	}
	for _, f := range l.Fields {
		out.Fields[f.Tag.String()] = f.Show()
	}
	return out, l, nil
}

// linesPage is how many entries are read at once.
const linesPage = 4096

// lines writes one line per entry from..size-1, as JSON or RFC 5424.
func (e *export) lines(c *cobra.Command, format, out string, from uint64) error {
	write := func(to io.Writer) error {
		w := bufio.NewWriterSize(to, 1<<16)
		for at := from; at < e.size; at += linesPage {
			if out != "" {
				e.p.show("entries: %d of %d (%d %%)", at, e.size, at*100/e.size)
			}
			err := e.st.Leaves(c.Context(), at, min(at+linesPage, e.size), func(index uint64, raw []byte) error {
				l, leaf, err := newLine(e.origin, index, e.size, raw)
				if err != nil {
					return err
				}
				if format == formatSyslog {
					_, err = io.WriteString(w, l.syslog(leaf)+"\n")
					return err
				}
				b, err := json.Marshal(l)
				if err != nil {
					return err
				}
				_, err = w.Write(append(b, '\n'))
				return err
			})
			if err != nil {
				return err
			}
		}
		return w.Flush()
	}
	if out == "" {
		e.p.end()
		return write(c.OutOrStdout())
	}
	return writeStream(out, write)
}

// The PRI of RFC 5424 §6.2.1: facility 13, log audit; severity 6, informational, or 4,
// warning, for what did not end well.
const (
	priInfo    = 13*8 + 6
	priWarning = 13*8 + 4
)

// syslog is the line of RFC 5424. Its SD-ID is under the private enterprise number that
// RFC 5612 keeps for examples: the project has none of its own.
func (l line) syslog(leaf audit.Leaf) string {
	pri := priInfo
	if leaf.Kind == audit.KindFailed || leaf.Kind == audit.KindOrphan {
		pri = priWarning
	}
	var b strings.Builder
	host, _, _ := strings.Cut(l.Origin, "/")
	fmt.Fprintf(&b, "<%d>1 %s %s chancery - %s [chancery@32473 index=\"%d\" tree_size=\"%d\" origin=%s kind=%s op=%s op_id=%s", pri, l.Time,
		syslogName(host, 255), syslogName(l.Op, 32), l.Index, l.TreeSize, sdValue(l.Origin), sdValue(l.Kind), sdValue(l.Op), sdValue(l.OpID))
	if l.Closes != nil {
		fmt.Fprintf(&b, " closes=\"%d\"", *l.Closes)
	}
	fmt.Fprintf(&b, " leaf_hash=%s", sdValue(l.LeafHash))
	for _, f := range leaf.Fields {
		value := f.Show()
		text := fmt.Sprint(value)
		if list, ok := value.([]string); ok {
			text = strings.Join(list, "; ")
		}
		fmt.Fprintf(&b, " %s=%s", f.Tag, sdValue(text))
	}
	fmt.Fprintf(&b, "] entry %d: %s of %s", l.Index, l.Kind, l.Op)
	return b.String()
}

// sdValue quotes a PARAM-VALUE (RFC 5424 §6.3.3). Line ends would end the record.
func sdValue(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `]`, `\]`, "\n", " ", "\r", " ").Replace(s) + `"`
}

// syslogName keeps what a header field may hold: printable ASCII without spaces.
func syslogName(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '_'
		}
		return r
	}, s)
	if s == "" {
		return "-"
	}
	return s[:min(len(s), most)]
}
