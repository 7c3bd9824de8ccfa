package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func TestProgressOnATerminal(t *testing.T) {
	var b bytes.Buffer
	p := &progress{w: &b, live: true, width: 40}
	p.show("waits for %d more approvals", 2)
	p.show("waits for %d more approvals", 2)
	if n := strings.Count(b.String(), "waits for 2 more approvals … 0s"); n != 1 {
		t.Errorf("the same step is drawn %d times", n)
	}
	p.Write([]byte("a line of the log\n"))
	p.show("runs, and that takes a very long line of text that no terminal has")
	p.end()
	p.end()
	p.Write([]byte("result\n"))
	const clear = "\r\x1b[K"
	if s := b.String(); !strings.Contains(s, clear+"a line of the log\n"+clear+"waits") || !strings.HasSuffix(s, clear+"result\n") {
		t.Errorf("%q", s)
	}
	for _, line := range strings.Split(b.String(), clear) {
		if len(strings.TrimSuffix(line, "\n")) > 40+len("…")-1 {
			t.Errorf("too long for the terminal: %q", line)
		}
	}
}

// Where no terminal is, nothing is written but what commands write themselves.
func TestProgressElsewhere(t *testing.T) {
	var out, errs bytes.Buffer
	c := &cobra.Command{}
	c.SetOut(&out)
	c.SetErr(&errs)
	p := follow(c)
	p.show("a step")
	p.end()
	if out.Len() != 0 || errs.Len() != 0 {
		t.Errorf("%q %q", out.String(), errs.String())
	}
}
