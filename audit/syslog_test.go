package audit_test

import (
	"bufio"
	"encoding/base64"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"chancery/audit"
)

var checkpointRecord = regexp.MustCompile(`^<109>1 \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z \S+ chancery \d+ checkpoint \[checkpoint@32473 origin="([^"]+)" size="(\d+)" root="([^"]+)" note="([^"]+)"\] `)

// checkRecord holds one message of the log system against the signed note that the database has.
func checkRecord(t *testing.T, record, signed string) {
	t.Helper()
	m := checkpointRecord.FindStringSubmatch(record)
	if m == nil {
		t.Fatalf("no RFC 5424 record: %q", record)
	}
	note, err := base64.StdEncoding.DecodeString(m[4])
	if err != nil || string(note) != signed {
		t.Errorf("note %q (%v), signed was %q", note, err, signed)
	}
	lines := strings.Split(signed, "\n")
	if m[1] != lines[0] || m[2] != lines[1] || m[3] != lines[2] {
		t.Errorf("record has %q, the checkpoint %q", m[1:4], lines[:3])
	}
}

func TestSyslogAnchor(t *testing.T) {
	b := newLedger(t)
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	path := filepath.Join(t.TempDir(), "log")
	local, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	ok(err)
	defer local.Close()
	remote, err := net.Listen("tcp", "127.0.0.1:0")
	ok(err)
	defer remote.Close()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	ok(err)
	ok(gone.Close()) // nobody answers at its address

	var logs []*audit.Syslog
	for _, where := range []string{"tcp:" + gone.Addr().String(), "unix:" + path, "tcp:" + remote.Addr().String()} {
		s, err := audit.NewSyslog(where)
		ok(err)
		logs = append(logs, s)
	}
	cp := audit.NewCheckpointer(b.ledger, b.signer, b.path("anchor"), logs...)

	// sign signs a checkpoint: a log system that cannot be reached must not hold it up.
	sign := func() string {
		t.Helper()
		b.fill(1)
		ok(cp.Sign(t.Context()))
		signed, err := cp.Latest(t.Context())
		ok(err)
		return signed
	}
	datagram := func() string {
		t.Helper()
		buf := make([]byte, 4096)
		n, err := local.Read(buf)
		ok(err)
		return string(buf[:n])
	}
	stream := func(r *bufio.Reader) string {
		t.Helper()
		count, err := r.ReadString(' ')
		ok(err)
		n, err := strconv.Atoi(strings.TrimSuffix(count, " "))
		ok(err)
		buf := make([]byte, n)
		_, err = io.ReadFull(r, buf)
		ok(err)
		return string(buf)
	}

	signed := sign()
	conn, err := remote.Accept()
	ok(err)
	defer conn.Close()
	r := bufio.NewReader(conn)
	checkRecord(t, datagram(), signed)
	checkRecord(t, stream(r), signed)

	signed = sign() // on the same connection
	checkRecord(t, datagram(), signed)
	checkRecord(t, stream(r), signed)

	// The local log system is started anew: the socket under its name is another one.
	ok(local.Close())
	ok(os.Remove(path))
	local, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	ok(err)
	defer local.Close()
	signed = sign()
	checkRecord(t, datagram(), signed)
}

func TestSyslogPlaces(t *testing.T) {
	for _, where := range []string{"", "unix:", "unix:log", "udp:", "udp:host", "tcp::514", "tcp:host:", "tls:host:6514", "http://x"} {
		if _, err := audit.NewSyslog(where); err == nil || !strings.Contains(err.Error(), "allowed: unix:/dev/log") {
			t.Errorf("%q: %v", where, err)
		}
	}
}
