package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// failingSync is a library that is loaded before the C library: while the file $SYNC_FAILS
// exists, fsync and fdatasync of a file whose path contains $SYNC_PATH fail with EIO.
const failingSync = `
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int fails(int fd)
{
	const char *flag = getenv("SYNC_FAILS"), *part = getenv("SYNC_PATH");
	char link[64], path[4096];
	if (flag == NULL || part == NULL || access(flag, F_OK) != 0)
		return 0;
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	ssize_t n = readlink(link, path, sizeof path - 1);
	if (n < 0)
		return 0;
	path[n] = 0;
	return strstr(path, part) != NULL;
}

#define SYNC(name)                                              \
	int name(int fd)                                        \
	{                                                       \
		int (*real)(int) = dlsym(RTLD_NEXT, #name);     \
		if (fails(fd)) {                                \
			errno = EIO;                            \
			return -1;                              \
		}                                               \
		return real(fd);                                \
	}

SYNC(fsync)
SYNC(fdatasync)
`

// AUD-14: the disk under the database says EIO at an fsync. The kernel may have dropped
// the pages, and a second fsync would say "fine": the server ends, gives nothing out,
// and its next start reads what is really there.
func TestAttack_AUD_14(t *testing.T) {
	t.Parallel()
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("gcc is missing, which compiles the failing fsync; apt install gcc libc6-dev")
	}
	dir := t.TempDir()
	src, lib, flag := filepath.Join(dir, "sync.c"), filepath.Join(dir, "sync.so"), filepath.Join(dir, "fail")
	if err := os.WriteFile(src, []byte(failingSync), 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, nil, gcc, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", lib, src, "-ldl")
	s := newSite(t)
	s.env = []string{"LD_PRELOAD=" + lib, "SYNC_FAILS=" + flag, "SYNC_PATH=chancery.db"}
	s.start()
	client, token := s.client(), s.token()
	var given []string
	for i := range 3 {
		crt, err := s.issue(client, token, fmt.Sprintf("n%d.example.org", i))
		if err != nil {
			t.Fatal(err)
		}
		given = append(given, crt.Serial)
	}
	if err := os.WriteFile(flag, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if crt, err := s.issue(client, token, "lost.example.org"); err == nil {
		t.Errorf("a certificate %s from a disk that does not keep it", crt.Serial)
	}
	select { // by itself
	case <-s.exited:
		s.cmd = nil
	case <-time.After(30 * time.Second):
		t.Fatal("the server goes on upon a disk that failed")
	}
	if err := os.Remove(flag); err != nil {
		t.Fatal(err)
	}
	s.env = nil
	s.start()
	client = s.client()
	for _, serial := range given {
		if status, err := s.api(client, token, "GET", "/api/v1/certificates/"+serial, nil, nil); status != 200 {
			t.Errorf("certificate %s, given out before, is lost: %v", serial, err)
		}
	}
	if _, err := s.issue(client, token, "after.example.org"); err != nil {
		t.Error(err)
	}
	if rep := s.auditVerify(); rep.Open != 0 {
		t.Errorf("%d intents open", rep.Open)
	}
}
