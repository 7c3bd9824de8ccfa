package hsmstore_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A PIN is in no argument and no environment of a worker and in no log, and a core
// dump is impossible.
func TestAttack_HSM_02_SecretsOfWorker(t *testing.T) {
	c := newCluster(t)
	pin, err := c.members[0].PIN()
	must(err)
	pid := c.store.WorkerProcess("m1").Pid
	for _, f := range []string{"cmdline", "environ"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, f))
		if err == nil && bytes.Contains(b, []byte(pin)) {
			t.Errorf("the PIN is in %s", f)
		}
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	must(err)
	if !strings.Contains(string(limits), "Max core file size        0                    0 ") {
		t.Errorf("core dumps are possible:\n%s", limits)
	}
	if strings.Contains(c.log.String(), pin) {
		t.Error("the PIN is in the log")
	}
	// The terminal's signals do not end it.
	must(syscall.Kill(pid, syscall.SIGINT))
	must(syscall.Kill(pid, syscall.SIGTERM))
	time.Sleep(50 * time.Millisecond)
	if err := once(t.Context(), c.key(t, "issuing"), issue(t, nil)); err != nil || c.status("m1").Starts != 1 {
		t.Errorf("after SIGINT: %v, %d starts", err, c.status("m1").Starts)
	}
}

// parentProcess opens a store and waits to be killed.
func parentProcess() {
	c := &cluster{dir: os.Args[2], db: newMemory(), log: &logBuffer{}}
	for _, n := range []string{"m1", "m2"} {
		c.members = append(c.members, layout(c.dir, n))
	}
	_, err := c.open(context.Background())
	must(err)
	for _, m := range c.members {
		fmt.Println(c.store.WorkerProcess(m.Name).Pid)
	}
	time.Sleep(time.Minute)
}

func TestWorkersEndWithKilledParent(t *testing.T) {
	c := copyCluster(t)
	cmd := exec.Command("/proc/self/exe", "parent", c.dir)
	out, err := cmd.StdoutPipe()
	must(err)
	must(cmd.Start())
	var a, b int
	if _, err := fmt.Fscan(out, &a, &b); err != nil {
		t.Fatal(err)
	}
	must(cmd.Process.Kill())
	_ = cmd.Wait()
	for _, pid := range []int{a, b} {
		for i := 0; syscall.Kill(pid, 0) == nil && !zombie(pid); i++ {
			if i > 500 {
				t.Fatalf("worker %d outlives its parent", pid)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

func zombie(pid int) bool {
	b, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(pid), "stat"))
	return err != nil || strings.Contains(string(b), ") Z ")
}

// Nobody but the server can talk to a worker: its socket is one half of a pair without
// a name, it listens on nothing, and the program does not play worker for a shell.
func TestAttack_HSM_18_WorkerSocket(t *testing.T) {
	c := newCluster(t)
	pid := c.store.WorkerProcess("m1").Pid
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	must(err)
	table, err := os.ReadFile("/proc/net/unix")
	must(err)
	sockets := 0
	for _, fd := range fds {
		link, err := os.Readlink(fd)
		if err != nil || !strings.HasPrefix(link, "socket:[") {
			continue
		}
		sockets++
		inode := strings.TrimSuffix(strings.TrimPrefix(link, "socket:["), "]")
		for line := range strings.Lines(string(table)) {
			f := strings.Fields(line) // Num RefCount Protocol Flags Type St Inode Path
			if len(f) >= 7 && f[6] == inode && (len(f) > 7 || f[3] != "00000000") {
				t.Errorf("the worker's socket has a name or listens: %s", line)
			}
		}
	}
	if sockets != 1 {
		t.Errorf("the worker has %d sockets, one is expected", sockets)
	}
	cmd := exec.Command("/proc/self/exe", "hsm-worker", "m1")
	out, err := cmd.CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("not by hand")) {
		t.Errorf("started by hand: %v, %s", err, out)
	}
}
