// Command ratios reads the output of go test -bench and prints the figures that are
// compared, as ratios within that run: absolute rates say little on another machine.
package main

import (
	"bufio"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
)

// compared lists what is held against what: name of the benchmark and unit.
var compared = []struct{ what, name, unit, limit, limitName, limitUnit string }{
	{"P-256 through the store ÷ raw C_Sign", "StoreSign/issuing", "sign/s", "raw C_Sign on both tokens", "RawSign/P-256", "sign/s"},
	{"P-256 through the door ÷ raw C_Sign", "Door/issuing", "sign/s", "raw C_Sign on both tokens", "RawSign/P-256", "sign/s"},
	{"RSA-2048 through the store ÷ raw C_Sign", "StoreSign/document", "sign/s", "raw C_Sign on both tokens", "RawSign/RSA-2048", "sign/s"},
	{"RSA-2048 through the door ÷ raw C_Sign", "Door/document", "sign/s", "raw C_Sign on both tokens", "RawSign/RSA-2048", "sign/s"},
	{"API, SQLite, 32 clients ÷ raw C_Sign", "API/sqlite/clients=32", "op/s", "raw C_Sign on both tokens", "RawSign/P-256", "sign/s"},
	{"API, PostgreSQL, 32 clients ÷ raw C_Sign", "API/postgres/clients=32", "op/s", "raw C_Sign on both tokens", "RawSign/P-256", "sign/s"},
	{"API, PostgreSQL ÷ SQLite, 32 clients", "API/postgres/clients=32", "op/s", "SQLite", "API/sqlite/clients=32", "op/s"},
	{"ACME, PostgreSQL ÷ SQLite, 32 clients", "ACME/postgres/clients=32", "op/s", "SQLite", "ACME/sqlite/clients=32", "op/s"},
	{"ledger operation, SQLite, 64 callers ÷ fsync", "Operation/sqlite/callers=64", "ops/s", "fsync of 4 KiB", "Limits/fsync-4KiB", "fsync/s"},
	{"ledger operation, PostgreSQL, 64 callers ÷ fsync", "Operation/postgres/callers=64", "ops/s", "fsync of 4 KiB", "Limits/fsync-4KiB", "fsync/s"},
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: ratios FILE")
		os.Exit(2)
	}
	f, err := os.Open(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, "ratios:", err)
		os.Exit(1)
	}
	defer f.Close()
	figures := read(f)
	for _, c := range compared {
		v, limit := figures[c.name+" "+c.unit], figures[c.limitName+" "+c.limitUnit]
		if v == 0 || limit == 0 {
			fmt.Printf("%-49s not measured\n", c.what)
			continue
		}
		fmt.Printf("%-49s %5.2f   (%.0f %s, %s %.0f %s)\n", c.what, v/limit, v, c.unit, c.limit, limit, c.limitUnit)
	}
}

var cpus = regexp.MustCompile(`-\d+$`)

// read collects every metric of every benchmark by "name unit".
func read(f *os.File) map[string]float64 {
	out := map[string]float64{}
	for sc := bufio.NewScanner(f); sc.Scan(); {
		fields := strings.Fields(sc.Text())
		if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") {
			continue
		}
		name := cpus.ReplaceAllString(strings.TrimPrefix(fields[0], "Benchmark"), "")
		for i := 2; i+1 < len(fields); i += 2 {
			if v, err := strconv.ParseFloat(fields[i], 64); err == nil {
				out[name+" "+fields[i+1]] = v
			}
		}
	}
	return out
}
