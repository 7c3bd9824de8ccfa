package console_test

import (
	"crypto/sha256"
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestVendor: what we took from others is what VENDOR says.
func TestVendor(t *testing.T) {
	table, err := os.ReadFile("VENDOR")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line)
		if len(f) < 3 || len(f[1]) != 64 {
			continue
		}
		n++
		data, err := os.ReadFile(f[0])
		if err != nil {
			t.Error(err)
		} else if got := fmt.Sprintf("%x", sha256.Sum256(data)); got != f[1] {
			t.Errorf("%s has the checksum %s", f[0], got)
		}
	}
	if n != 2 {
		t.Errorf("%d files in VENDOR", n)
	}
}
