// Package pgcluster gives tests a PostgreSQL of their own: a cluster in a temporary
// folder, reached through a socket in it, gone with the test.
package pgcluster

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// tb is the part of testing.TB that a cluster needs.
type tb interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
}

// outside stands in for a test where there is none yet.
type outside struct{}

func (outside) Helper()                           {}
func (outside) Fatal(args ...any)                 { panic(fmt.Sprint(args...)) }
func (outside) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
func (outside) Errorf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

// RunTwice runs all tests of a package on SQLite and then on PostgreSQL. use is told
// how the tests get the value of the setting "database": a new database each time.
func RunTwice(m *testing.M, use func(database func(t testing.TB) string)) (code int) {
	use(func(t testing.TB) string { return "sqlite:" + filepath.Join(t.TempDir(), "x.db") })
	if code = m.Run(); code != 0 || testing.Short() {
		return code
	}
	c := open(outside{})
	defer c.remove()
	fmt.Println("=== once more, on PostgreSQL")
	use(func(testing.TB) string { return c.Database() })
	return m.Run()
}

// Cluster is one PostgreSQL cluster.
type Cluster struct {
	t     tb
	dir   string
	bin   string
	opts  []string
	cmd   *exec.Cmd
	ended <-chan struct{} // closed when the postmaster has ended
	log   *os.File
	dbs   atomic.Int64
}

// New makes and starts a cluster that ends with the test. opts are settings such as
// "synchronous_commit=off".
func New(t testing.TB, opts ...string) *Cluster {
	t.Helper()
	c := open(t, opts...)
	t.Cleanup(c.remove)
	return c
}

// Standby makes and starts a cluster that follows this one. When it is synchronous this
// one tells no commit before the standby has it on disk.
func (c *Cluster) Standby(t testing.TB, synchronous bool) *Cluster {
	t.Helper()
	s := prepare(t)
	t.Cleanup(s.remove)
	s.run("pg_basebackup", "-d", "host="+c.dir+" user=postgres application_name=standby", "-D", s.data(), "-R", "-X", "stream", "-c", "fast", "--no-sync")
	s.Start()
	if synchronous {
		c.SQL("postgres", "ALTER SYSTEM SET synchronous_standby_names = 'standby'")
		c.SQL("postgres", "SELECT pg_reload_conf()")
		for c.SQL("postgres", "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") != "1\n" {
			time.Sleep(20 * time.Millisecond)
		}
	}
	return s
}

// Promote makes a standby the primary.
func (c *Cluster) Promote() { c.t.Helper(); c.SQL("postgres", "SELECT pg_promote(true)") }

// On is the URL of a database with the hosts of this cluster and of others: whichever is
// the primary.
func (c *Cluster) On(url string, others ...*Cluster) string {
	for _, o := range others {
		url += "," + o.dir
	}
	return url
}

func (c *Cluster) remove() {
	if c.cmd != nil {
		c.Stop(syscall.SIGINT)
	}
	os.RemoveAll(c.dir)
}

func open(t tb, opts ...string) *Cluster {
	t.Helper()
	c := prepare(t, opts...)
	c.run("initdb", "-D", c.data(), "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync")
	c.Start()
	return c
}

// prepare makes the folder of a cluster.
func prepare(t tb, opts ...string) *Cluster {
	t.Helper()
	bins, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil || len(bins) == 0 {
		t.Fatal("PostgreSQL is not installed: make deps-test installs it")
	}
	dir, err := os.MkdirTemp("/tmp", "chancery-pg-") // short: a socket's path has 107 characters at most
	if err != nil {
		t.Fatal(err)
	}
	c := &Cluster{t: t, dir: dir, bin: filepath.Dir(bins[len(bins)-1]), opts: opts}
	if os.Getuid() == 0 { // initdb refuses root
		u, err := user.Lookup("postgres")
		if err != nil {
			t.Fatal(err)
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		if err := os.Chown(dir, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func (c *Cluster) data() string { return filepath.Join(c.dir, "data") }

// command runs a program of PostgreSQL as the user that owns the folder.
func (c *Cluster) command(name string, args ...string) *exec.Cmd {
	path := filepath.Join(c.bin, name)
	if os.Getuid() == 0 {
		return exec.Command("runuser", append([]string{"-u", "postgres", "--", path}, args...)...)
	}
	return exec.Command(path, args...)
}

func (c *Cluster) run(name string, args ...string) string {
	c.t.Helper()
	cmd := c.command(name, args...)
	cmd.Dir = c.dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		c.t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return string(out)
}

// Start starts the postmaster and waits until it takes connections.
func (c *Cluster) Start() {
	c.t.Helper()
	args := []string{"-D", c.data(), "-k", c.dir, "-c", "listen_addresses=", "-c", "max_connections=50", "-c", "shared_buffers=32MB"}
	for _, o := range c.opts {
		args = append(args, "-c", o)
	}
	var err error
	if c.log, err = os.OpenFile(filepath.Join(c.dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600); err != nil {
		c.t.Fatal(err)
	}
	c.cmd = c.command("postgres", args...)
	c.cmd.Dir, c.cmd.Stdout, c.cmd.Stderr = c.dir, c.log, c.log
	if err := c.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func(cmd *exec.Cmd) { cmd.Wait(); close(ended) }(c.cmd)
	c.ended = ended
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		select {
		case <-ended: // shared memory of killed backends is not free yet
			if time.Now().Before(end) {
				c.log.Close()
				time.Sleep(20 * time.Millisecond)
				c.Start()
				return
			}
		default:
		}
		if c.command("pg_isready", "-q", "-h", c.dir).Run() == nil {
			return
		}
		if time.Now().After(end) {
			text, _ := os.ReadFile(filepath.Join(c.dir, "log"))
			c.t.Fatalf("PostgreSQL does not start:\n%s", text)
		}
	}
}

// Stop sends a signal to the postmaster and waits for its end: SIGINT to stop,
// SIGQUIT to stop without a checkpoint. SIGKILL kills all its backends as well, as a
// power cut would.
func (c *Cluster) Stop(sig syscall.Signal) {
	c.t.Helper()
	pid := c.postmaster()
	if sig == syscall.SIGKILL {
		_ = syscall.Kill(pid, syscall.SIGSTOP) // no new backend comes while the list is read
		for _, p := range append(c.backends(pid), pid) {
			_ = syscall.Kill(p, sig) // one that has ended by itself is fine
		}
	} else if err := syscall.Kill(pid, sig); err != nil {
		c.t.Errorf("stopping PostgreSQL: %v", err)
	}
	for { // runuser stops itself when its child is stopped
		_ = c.cmd.Process.Signal(syscall.SIGCONT)
		select {
		case <-c.ended:
		case <-time.After(50 * time.Millisecond):
			continue
		}
		break
	}
	c.cmd = nil
	c.log.Close()
}

func (c *Cluster) postmaster() int {
	c.t.Helper()
	b, err := os.ReadFile(filepath.Join(c.data(), "postmaster.pid"))
	if err != nil {
		c.t.Fatal(err)
	}
	first, _, _ := bytes.Cut(b, []byte("\n"))
	pid, err := strconv.Atoi(string(first))
	if err != nil {
		c.t.Fatal(err)
	}
	return pid
}

func (c *Cluster) backends(pid int) (out []int) {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	for _, f := range strings.Fields(string(b)) {
		if n, err := strconv.Atoi(f); err == nil {
			out = append(out, n)
		}
	}
	return out
}

// SQL runs a statement as the superuser.
func (c *Cluster) SQL(database, statement string) string {
	c.t.Helper()
	return c.run("psql", "-h", c.dir, "-U", "postgres", "-d", database, "-v", "ON_ERROR_STOP=1", "-qAtc", statement)
}

// Database makes a database that belongs to a role without special rights, and
// returns its URL for that role.
func (c *Cluster) Database() string {
	c.t.Helper()
	name := fmt.Sprintf("chancery%d", c.dbs.Add(1))
	c.SQL("postgres", "CREATE ROLE "+name+" LOGIN")
	c.SQL("postgres", "CREATE DATABASE "+name+" OWNER "+name)
	return fmt.Sprintf("postgres://%s@/%s?host=%s", name, name, c.dir)
}
