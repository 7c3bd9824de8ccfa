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
	{"P-384 through the store ÷ raw C_Sign", "StoreSign/root", "sign/s", "raw C_Sign on both tokens", "RawSign/P-384", "sign/s"},
	{"RSA-2048 through the store ÷ raw C_Sign", "StoreSign/document", "sign/s", "raw C_Sign on both tokens", "RawSign/RSA-2048", "sign/s"},
	{"RSA-2048 through the door ÷ raw C_Sign", "Door/document", "sign/s", "raw C_Sign on both tokens", "RawSign/RSA-2048", "sign/s"},
	{"API, SQLite, 32 clients ÷ raw C_Sign", "API/sqlite/clients=32", "op/s", "raw C_Sign on both tokens", "RawSign/P-256", "sign/s"},
	{"API, PostgreSQL, 32 clients ÷ raw C_Sign", "API/postgres/clients=32", "op/s", "raw C_Sign on both tokens", "RawSign/P-256", "sign/s"},
	{"API, PostgreSQL ÷ SQLite, 32 clients", "API/postgres/clients=32", "op/s", "SQLite", "API/sqlite/clients=32", "op/s"},
	{"ACME, PostgreSQL ÷ SQLite, 32 clients", "ACME/postgres/clients=32", "op/s", "SQLite", "ACME/sqlite/clients=32", "op/s"},
	{"ledger operation, SQLite, 64 callers ÷ fsync", "Operation/sqlite/callers=64", "ops/s", "fsync of 4 KiB", "Limits/fsync-4KiB", "fsync/s"},
	{"ledger operation, PostgreSQL, 64 callers ÷ fsync", "Operation/postgres/callers=64", "ops/s", "fsync of 4 KiB", "Limits/fsync-4KiB", "fsync/s"},
	{"whole RSA-2048 operation, SQLite ÷ raw C_Sign", "Whole/sqlite/RSA-2048/callers=64", "op/s", "raw C_Sign on both tokens", "RawSign/RSA-2048", "sign/s"},
	{"whole RSA-2048 operation, PostgreSQL ÷ raw", "Whole/postgres/RSA-2048/callers=64", "op/s", "raw C_Sign on both tokens", "RawSign/RSA-2048", "sign/s"},
	{"P-256, SQLite, 10⁶ old entries ÷ none", "Whole/sqlite/P-256/old=1000000/callers=64", "op/s", "a new ledger", "Whole/sqlite/P-256/old=0/callers=64", "op/s"},
	{"P-256, PostgreSQL, 10⁶ old entries ÷ none", "Whole/postgres/P-256/old=1000000/callers=64", "op/s", "a new ledger", "Whole/postgres/P-256/old=0/callers=64", "op/s"},
}

// goals are figures that a benchmark gives as they are, or against another one of the
// same benchmark, with what they shall be.
var goals = []struct {
	what, name, unit, of string
	atLeast, atMost      float64
}{
	{what: "P-256, store without verification ÷ raw C_Sign", name: "Share/P-256", unit: "store-sign/s", of: "raw-sign/s", atLeast: 0.65},
	{what: "P-384, store without verification ÷ raw C_Sign", name: "Share/P-384", unit: "store-sign/s", of: "raw-sign/s", atLeast: 0.92},
	{what: "RSA-2048, store without verification ÷ raw", name: "Share/RSA-2048", unit: "store-sign/s", of: "raw-sign/s", atLeast: 0.92},
	{what: "P-256, the same by processor time", name: "Share/P-256", unit: "cpu-share", atLeast: 0.65},
	{what: "P-384, the same by processor time", name: "Share/P-384", unit: "cpu-share", atLeast: 0.92},
	{what: "RSA-2048, the same by processor time", name: "Share/RSA-2048", unit: "cpu-share", atLeast: 0.92},
	{what: "added for one caller, µs", name: "OneCaller", unit: "added-µs", atMost: 60},
	{what: "HSMs 5 ms away, 2 × 4 sessions ÷ possible", name: "Sessions/4_sessions", unit: "sign/s", of: "limit-sign/s", atLeast: 0.7},
	{what: "HSMs 5 ms away, 2 × 16 sessions ÷ possible", name: "Sessions/16_sessions", unit: "sign/s", of: "limit-sign/s", atLeast: 0.7},
	{what: "HSMs 5 ms away, 2 × 64 sessions ÷ possible", name: "Sessions/64_sessions", unit: "sign/s", of: "limit-sign/s", atLeast: 0.7},
	{what: "28 members ÷ what the cores allow", name: "ManyMembers", unit: "sign/s", of: "limit-sign/s", atLeast: 0.85},
	{what: "SoftHSM, p99 of CRLs in a bulk flood ÷ idle", name: "Classes/softhsm", unit: "flood-crl-p99-µs", of: "idle-crl-p99-µs", atMost: 2},
	{what: "SoftHSM, p99 of ACME in a bulk flood ÷ idle", name: "Classes/softhsm", unit: "flood-acme-p99-µs", of: "idle-acme-p99-µs", atMost: 2},
	{what: "network HSM, p99 of CRLs in a flood ÷ idle", name: "Classes/network", unit: "flood-crl-p99-µs", of: "idle-crl-p99-µs", atMost: 2},
	{what: "network HSM, p99 of ACME in a flood ÷ idle", name: "Classes/network", unit: "flood-acme-p99-µs", of: "idle-acme-p99-µs", atMost: 2},
	{what: "P-256 operations/s, PostgreSQL, 64 callers", name: "Whole/postgres/P-256/old=0/callers=64", unit: "op/s", atLeast: 3500},
	{what: "P-256 operation at 16 callers, SQLite, p50 ms", name: "Whole/sqlite/P-256/old=0/callers=16", unit: "p50-ms", atMost: 6},
	{what: "P-256 operation at 16 callers, PostgreSQL, p50", name: "Whole/postgres/P-256/old=0/callers=16", unit: "p50-ms", atMost: 6},
	{what: "RSA-2048, far HSMs, SQLite ÷ possible", name: "Whole/sqlite/RSA-2048/far/callers=128", unit: "op/s", of: "limit-op/s", atLeast: 0.85},
	{what: "RSA-2048, far HSMs, PostgreSQL ÷ possible", name: "Whole/postgres/RSA-2048/far/callers=128", unit: "op/s", of: "limit-op/s", atLeast: 0.85},
	{what: "idle cluster, % of a core", name: "Idle", unit: "%core", atMost: 0.5},
	{what: "memory of a worker without shared pages, MB", name: "Idle", unit: "worker-own-MB", atMost: 20},
	{what: "memory of a worker, MB", name: "Idle", unit: "worker-MB", atMost: 20},
}

// judge prints the figures that have a goal.
func judge(figures map[string]float64) {
	fmt.Println()
	for _, g := range goals {
		v, measured := figures[g.name+" "+g.unit]
		if g.of != "" {
			limit := figures[g.name+" "+g.of]
			measured = measured && limit > 0
			v /= limit
		}
		goal, met := fmt.Sprintf("≥ %g", g.atLeast), v >= g.atLeast
		if g.atMost > 0 {
			goal, met = fmt.Sprintf("≤ %g", g.atMost), v <= g.atMost
		}
		switch {
		case !measured:
			fmt.Printf("%-49s not measured\n", g.what)
		case met:
			fmt.Printf("%-49s %7.2f   goal %s\n", g.what, v, goal)
		default:
			fmt.Printf("%-49s %7.2f   goal %s, MISSED\n", g.what, v, goal)
		}
	}
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
	judge(figures)
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
