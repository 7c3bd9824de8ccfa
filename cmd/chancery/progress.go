package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// progress is the line at the end of a terminal that says what a long command does and
// for how long already. It is written anew in place and is gone when the command ends.
// Where standard error is no terminal it is silent; standard output is never touched.
type progress struct {
	mu    sync.Mutex
	w     io.Writer
	live  bool // w is a terminal
	width int  // its columns; 0: not known
	step  string
	began time.Time     // of the step
	quit  chan struct{} // nil: nothing is shown
}

// stderr is the line of this process; what else goes to standard error goes through it.
var stderr = newProgress(os.Stderr)

func newProgress(f *os.File) *progress {
	p := &progress{w: f}
	if size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil {
		p.live, p.width = os.Getenv("TERM") != "dumb", int(size.Col)
	}
	return p
}

// follow is the line of a command: silent if the command's standard error is another.
func follow(c *cobra.Command) *progress {
	if c.ErrOrStderr() == io.Writer(os.Stderr) {
		return stderr
	}
	return &progress{w: c.ErrOrStderr()}
}

// redrawEvery is how often the time on the line moves.
const redrawEvery = 500 * time.Millisecond

// show says what happens from now on. The same step goes on with its time.
func (p *progress) show(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	step := visible(fmt.Sprintf(format, args...))
	if !p.live || p.quit != nil && step == p.step {
		return
	}
	p.step, p.began = step, time.Now()
	if p.quit == nil {
		p.quit = make(chan struct{})
		go p.run(p.quit)
	}
	p.draw()
}

// end takes the line away. It may be called twice.
func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.quit != nil {
		close(p.quit)
		p.quit = nil
		p.clear()
	}
}

func (p *progress) run(quit chan struct{}) {
	t := time.NewTicker(redrawEvery)
	defer t.Stop()
	for {
		select {
		case <-quit:
			return
		case <-t.C:
		}
		p.mu.Lock()
		if p.quit == quit {
			p.draw()
		}
		p.mu.Unlock()
	}
}

// Write puts lines, of the log for instance, above the progress.
func (p *progress) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.quit == nil {
		return p.w.Write(b)
	}
	p.clear()
	n, err := p.w.Write(b)
	p.draw()
	return n, err
}

func (p *progress) clear() { fmt.Fprint(p.w, "\r\x1b[K") } // EL, ECMA-48 §8.3.41

func (p *progress) draw() {
	took := fmt.Sprintf(" … %s", time.Since(p.began).Truncate(time.Second))
	step := p.step
	if room := p.width - len(took); p.width > 0 && len(step) > room { // visible: one octet, one column
		step = step[:max(0, room)]
	}
	fmt.Fprintf(p.w, "\r\x1b[K%s%s", step, took)
}
