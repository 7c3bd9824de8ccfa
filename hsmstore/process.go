package hsmstore

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"chancery/admin"

	"golang.org/x/sys/unix"
)

// Names of the processes that this binary can be executed as.
const (
	workerCommand   = "hsm-worker"
	ceremonyCommand = "hsm-ceremony"
)

// maxSecret is the longest PIN; both fit into a pipe that nobody reads yet.
const maxSecret = 4096

// Descriptors that a child finds open.
const (
	childSocket  = 3 // frames, both ways
	childSecrets = 4 // u16 length ‖ secret, until EOF
)

// Exit codes of the children. The parent decides by them what to do next.
const (
	exitOK       = 0
	exitProtocol = 70 // what came over the socket makes no sense
	exitModule   = 71 // ErrModule
	exitToken    = 72 // token not there (yet)
	exitForeign  = 73 // another token than the enrolled one
	exitPIN      = 74 // ErrPIN
	exitJournal  = 75 // the worker's journal cannot be written
	exitDevice   = 76 // the HSM or its module failed
	exitRandom   = 77 // ErrRandom
	exitGrant    = 78 // admin.ErrNotGranted
)

// exitError gives the sentinel of an exit code.
func exitError(code int) error {
	switch code {
	case exitModule:
		return ErrModule
	case exitToken, exitForeign:
		return ErrToken
	case exitPIN:
		return ErrPIN
	case exitRandom:
		return ErrRandom
	case exitGrant:
		return admin.ErrNotGranted
	}
	return errDied
}

// RunIfWorker must be the first thing in main and in every TestMain: when this
// process was started as a worker it does the worker's job and never returns.
func RunIfWorker() {
	if len(os.Args) < 2 {
		return
	}
	switch os.Args[1] {
	case workerCommand:
		os.Exit(runChild(workerMain))
	case ceremonyCommand:
		os.Exit(runChild(ceremonyMain))
	case doctorCommand:
		os.Exit(runChild(doctorMain))
	}
}

// child is what a worker has: the socket and the secrets.
type child struct {
	conn    net.Conn
	r       *bufio.Reader
	secrets []string
}

// fault is an error with the exit code that it means.
type fault struct {
	code int
	err  error
}

func (f *fault) Error() string { return f.err.Error() }
func (f *fault) Unwrap() error { return f.err }

func faultf(code int, format string, args ...any) *fault {
	return &fault{code, fmt.Errorf(format, args...)}
}

// runChild makes the process fit to hold a PIN, then runs it. The process ignores
// the terminal's signals, so that Ctrl-C lets the parent drain first: it lives as
// long as its socket, also when the parent is killed.
func runChild(run func(*child) error) int {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	// No core dump and no /proc/PID/mem for others: the PIN is in here.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "hsm process: PR_SET_DUMPABLE:", err)
		return exitProtocol
	}
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	syscall.Umask(0o077)
	c, err := openChild()
	if err != nil {
		fmt.Fprintf(os.Stderr, "hsm process: %v; it is started by the server, not by hand\n", err)
		return exitProtocol
	}
	err = run(c)
	var f *fault
	switch {
	case err == nil || errors.Is(err, io.EOF):
		return exitOK
	case !errors.As(err, &f):
		f = &fault{exitProtocol, err}
	}
	// The last frame says why; id 0 is never a request.
	b := newFrame(0, statusFatal, 0)
	b = append(b, byte(f.code))
	_, _ = c.conn.Write(finishFrame(append(b, err.Error()...)))
	return f.code
}

func openChild() (*child, error) {
	s := os.NewFile(childSocket, "socket")
	conn, err := net.FileConn(s)
	s.Close()
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: %w", childSocket, err)
	}
	p := os.NewFile(childSecrets, "secrets")
	b, err := io.ReadAll(io.LimitReader(p, 64<<10))
	p.Close()
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: %w", childSecrets, err)
	}
	c := &child{conn: conn, r: bufio.NewReaderSize(conn, 64<<10)}
	for len(b) >= 2 && len(b) >= 2+int(binary.BigEndian.Uint16(b)) {
		n := 2 + int(binary.BigEndian.Uint16(b))
		c.secrets, b = append(c.secrets, string(b[2:n])), b[n:]
	}
	return c, nil
}

// process is a running child, seen from the parent.
type process struct {
	cmd    *exec.Cmd
	conn   net.Conn
	r      *bufio.Reader
	stderr *tail

	waitOnce sync.Once
	code     int
}

// startProcess executes this binary again. Only what vendors' modules need of our
// environment goes with it; secrets go through the pipe.
func startProcess(command string, m MemberConfig, secrets ...string) (*process, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("making a socket pair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "parent"), os.NewFile(uintptr(fds[1]), "child")
	defer ours.Close()
	defer theirs.Close()
	pr, pw, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("making a pipe: %w", err)
	}
	defer pr.Close()
	var b []byte
	for _, s := range secrets {
		if len(s) > maxSecret {
			return nil, fmt.Errorf("%w: a PIN of %d octets", ErrPIN, len(s))
		}
		b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
		b = append(b, s...)
	}
	_, err = pw.Write(b) // far below the capacity of a pipe
	clear(b)
	pw.Close()
	if err != nil {
		return nil, fmt.Errorf("writing the secrets pipe: %w", err)
	}
	p := &process{stderr: &tail{}}
	p.cmd = exec.Command("/proc/self/exe")
	p.cmd.Args = []string{"chancery", command, m.Name}
	p.cmd.Env = append(childEnv(), m.Env...)
	p.cmd.ExtraFiles = []*os.File{theirs, pr}
	p.cmd.Stderr = p.stderr
	p.cmd.WaitDelay = time.Second
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", command, err)
	}
	if p.conn, err = net.FileConn(ours); err != nil {
		p.kill()
		p.wait()
		return nil, err
	}
	p.r = bufio.NewReaderSize(p.conn, 64<<10)
	return p, nil
}

func childEnv() []string {
	keep := []string{"PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "GOCOVERDIR"}
	return slices.DeleteFunc(os.Environ(), func(kv string) bool {
		k, _, _ := strings.Cut(kv, "=")
		return !slices.Contains(keep, k)
	})
}

// kill ends the child now. When it returns the child can still exist for a moment,
// but nothing that it says will be heard.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	if p.conn != nil {
		_ = p.conn.Close()
	}
}

// wait reaps the child and returns its exit code; -1 if a signal ended it.
func (p *process) wait() int {
	p.waitOnce.Do(func() {
		_ = p.cmd.Wait()
		p.code = p.cmd.ProcessState.ExitCode()
	})
	return p.code
}

// stop lets the child end by closing its socket, and kills it after a second.
func (p *process) stop() {
	_ = p.conn.Close()
	t := time.AfterFunc(time.Second, func() { _ = p.cmd.Process.Kill() })
	p.wait()
	t.Stop()
}

// writeJSON sends one control frame directly.
func writeJSON(w io.Writer, id uint64, op byte, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f := newFrame(id, op, len(b))
	_, err = w.Write(finishFrame(append(f, b...)))
	return err
}

// fatalError reads the last words of a child.
func fatalError(payload []byte) error {
	if len(payload) == 0 {
		return errDied
	}
	is := exitError(int(payload[0]))
	return &fault{int(payload[0]), fmt.Errorf("%w: %s", is, strings.TrimPrefix(string(payload[1:]), is.Error()+": "))}
}

// tail keeps the last 4 KiB that a child wrote to stderr, for the log when it dies,
// and the first octets, where Go's runtime says which signal it was.
type tail struct {
	mu   sync.Mutex
	head []byte
	b    []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.head = append(t.head, p[:min(len(p), 256-len(t.head))]...)
	t.b = append(t.b, p...)
	if n := len(t.b) - 4096; n > 0 {
		t.b = append(t.b[:0], t.b[n:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.b))
}
