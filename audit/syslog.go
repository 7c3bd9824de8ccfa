package audit

import (
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"
)

// Syslog sends signed checkpoints to a log system, RFC 5424: what is kept there is out of
// the reach of whoever rewrites database, journal and anchor file. It is connected to when
// there is something to send.
type Syslog struct {
	network, addr string
	host          string

	mu   sync.Mutex
	conn net.Conn
	rest time.Time // no try before, after a failure
}

const (
	syslogTime = time.Second      // bounds a connection, and a message: checkpoints are held up no longer
	syslogRest = 30 * time.Second // between tries at a log system that fails: one that hangs must not hold up each checkpoint
)

// NewSyslog takes where the messages go: unix:/dev/log (datagrams), udp:host:port
// (RFC 5426) or tcp:host:port (RFC 6587, with octet counts).
func NewSyslog(where string) (*Syslog, error) {
	network, addr, _ := strings.Cut(where, ":")
	bad := fmt.Errorf("%q is no place of a log system; allowed: unix:/dev/log, udp:HOST:PORT, tcp:HOST:PORT", where)
	switch network {
	case "unix":
		if network = "unixgram"; !strings.HasPrefix(addr, "/") {
			return nil, bad
		}
	case "udp", "tcp":
		if host, port, err := net.SplitHostPort(addr); err != nil || host == "" || port == "" {
			return nil, bad
		}
	default:
		return nil, bad
	}
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "-"
	}
	return &Syslog{network: network, addr: addr, host: host}, nil
}

// syslogPRI is facility 13, log audit, and severity 5, notice (RFC 5424 §6.2.1).
const syslogPRI = 13*8 + 5

// Send sends one signed checkpoint; its note is in base64, as its lines would end the record.
// After a failure nothing is sent, and nil returned, for half a minute.
func (s *Syslog) Send(c Checkpoint) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if now.Before(s.rest) {
		return nil
	}
	text := fmt.Sprintf("<%d>1 %s %s chancery %d checkpoint [checkpoint@32473 origin=\"%s\" size=\"%d\" root=\"%s\" note=\"%s\"] signed checkpoint of %d entries",
		syslogPRI, now.UTC().Format("2006-01-02T15:04:05.000000Z07:00"), s.host, os.Getpid(), syslogValue.Replace(c.Origin), c.Size,
		base64.StdEncoding.EncodeToString(c.Root[:]), base64.StdEncoding.EncodeToString([]byte(c.Note)), c.Size)
	if s.network == "tcp" {
		text = fmt.Sprintf("%d %s", len(text), text)
	}
	err := s.write(text)
	if err != nil { // a log system that was restarted since: once more, on a new connection
		err = s.write(text)
	}
	if err != nil {
		s.rest = time.Now().Add(syslogRest)
		return fmt.Errorf("syslog %s: %w", s.addr, err)
	}
	return nil
}

// write writes one message, on a new connection if there is none.
func (s *Syslog) write(text string) (err error) {
	if s.conn == nil {
		if s.conn, err = net.DialTimeout(s.network, s.addr, syslogTime); err != nil {
			s.conn = nil
			return err
		}
	}
	if err = s.conn.SetWriteDeadline(time.Now().Add(syslogTime)); err == nil {
		_, err = s.conn.Write([]byte(text))
	}
	if err != nil {
		_ = s.conn.Close()
		s.conn = nil
	}
	return err
}

// syslogValue quotes a PARAM-VALUE (RFC 5424 §6.3.3).
var syslogValue = strings.NewReplacer(`\`, `\\`, `"`, `\"`, `]`, `\]`)
