package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A server waits for no pipe and reads no endless file in the place of counts: its sweeper
// would check nothing meanwhile.
func TestCountsServing(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	if err := unix.Mkfifo(path("pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path("large"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path("large"), 1<<40); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path("good"), []byte("token_serial,key_spki_sha256,count,from,to\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, name := range []string{"pipe", "large", "missing", "good"} {
			if _, err := readCountsServing(path(name)); (err == nil) != (name == "good") {
				t.Errorf("%s: %v", name, err)
			}
		}
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("it waits")
	}
}
