package acme

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"time"

	"chancery/ca"
)

// The bounds of one http-01 validation, besides its time.
const (
	maxHops   = 5        // redirects that are followed (RFC 8555 §8.3)
	maxHeader = 32 << 10 // bytes read of one answer, head and body
	maxAnswer = 128      // bytes of a body: the key authorization has 87
	userAgent = "chancery-acme-validation/1 (RFC 8555 section 8.3)"
)

// http01 fetches the key authorization from the name (RFC 8555 §8.3). It returns
// nil if it is there, and else what was wrong; of what it read it tells the status
// code only, so that nobody can read the operator's network through this server.
func (v *validator) http01(ctx context.Context, name ca.Name, token, keyAuthorization string) *Problem {
	ctx, cancel := context.WithTimeout(ctx, v.timeout)
	defer cancel()
	u := &url.URL{Scheme: "http", Host: hostInURL(name.Value), Path: "/.well-known/acme-challenge/" + token}
	port := v.httpPort
	if port != 80 { // so that a relative redirect leads to the same port
		u.Host += ":" + strconv.Itoa(int(port))
	}
	for hop := 0; ; hop++ {
		next, body, p := v.get(ctx, u, port)
		switch {
		case p != nil && ctx.Err() != nil:
			return problem(400, Connection, "%s did not answer completely within %s", name.Value, v.timeout)
		case p != nil && hop > 0 && p.Type == IncorrectResponse: // the target may be another's: not even its status
			return problem(403, IncorrectResponse, "%s redirects to a place that did not answer with status 200 and an uncompressed body", name.Value)
		case p != nil:
			return p
		case next == nil:
			return compare(name, body, keyAuthorization)
		case hop == maxHops:
			return problem(400, Connection, "%s redirects more than %d times", name.Value, maxHops)
		}
		if port, p = v.follow(next); p != nil {
			return p
		}
		u = next
	}
}

func compare(name ca.Name, body []byte, want string) *Problem {
	if len(body) > maxAnswer || string(bytes.TrimRight(body, " \t\r\n")) != want { // trailing white space is ignored
		return problem(403, IncorrectResponse, "the file beneath http://%s/.well-known/acme-challenge/ does not hold the key authorization of this account and token (RFC 8555 §8.1)", hostInURL(name.Value))
	}
	return nil
}

// follow judges where a redirect leads to and returns the port.
func (v *validator) follow(u *url.URL) (uint16, *Problem) {
	bad := func(what string) (uint16, *Problem) {
		return 0, problem(400, Connection, "the redirect is not followed: %s", what)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.Opaque != "" {
		return bad("it must lead to http or https, without user name")
	}
	if len(u.String()) > 2000 {
		return bad("its URL is longer than 2000 characters")
	}
	if _, err := netip.ParseAddr(u.Hostname()); err != nil {
		n, err := ca.ParseName(ca.DNS, u.Hostname())
		if err != nil || n.Wildcard() {
			return bad("its host is no valid name")
		}
		u.Host = n.Value + portSuffix(u)
	}
	port := map[string]uint16{"http": 80, "https": 443}[u.Scheme]
	if text := u.Port(); text != "" {
		n, err := strconv.ParseUint(text, 10, 16)
		if err != nil {
			return bad("its port is no number")
		}
		port = uint16(n)
	}
	if !slices.Contains([]uint16{80, 443, v.httpPort}, port) {
		return bad("it must lead to port 80 or 443")
	}
	return port, nil
}

func portSuffix(u *url.URL) string {
	if p := u.Port(); p != "" {
		return ":" + p
	}
	return ""
}

// get fetches one URL from a judged address. It speaks HTTP/1.1 by hand, so that no
// proxy, pool, cookie or decompression comes in between and every byte is counted.
func (v *validator) get(ctx context.Context, u *url.URL, port uint16) (redirect *url.URL, body []byte, p *Problem) {
	host := u.Hostname()
	conn, p := v.connect(ctx, host, port)
	if p != nil {
		return nil, nil, p
	}
	defer conn.Close()
	plain := conn // conn itself becomes the TLS connection, maybe at the same moment
	defer context.AfterFunc(ctx, func() { plain.SetDeadline(time.Unix(1, 0)) })()
	if u.Scheme == "https" {
		secure, err := handshake(ctx, conn, host)
		if err != nil {
			return nil, nil, problem(400, TLS, "no TLS connection to %s", host)
		}
		conn = secure
	}
	// Without the port: some clients refuse "name:80", and in tests the port stands for 80.
	head := "GET " + u.RequestURI() + " HTTP/1.1\r\nHost: " + hostInURL(host) + "\r\nUser-Agent: " + userAgent + "\r\nAccept: */*\r\nConnection: close\r\n\r\n"
	if _, err := io.WriteString(conn, head); err != nil {
		return nil, nil, noAnswer(host)
	}
	return readAnswer(conn, u)
}

func noAnswer(host string) *Problem {
	return problem(400, Connection, "%s closed the connection or did not answer in HTTP/1", host)
}

func readAnswer(conn net.Conn, u *url.URL) (redirect *url.URL, body []byte, p *Problem) {
	in := bufio.NewReader(io.LimitReader(conn, maxHeader))
	var resp *http.Response
	for interim := 0; ; interim++ { // 1xx answers may come before the real one (RFC 9110 §15.2)
		var err error
		if resp, err = http.ReadResponse(in, &http.Request{Method: http.MethodGet}); err != nil || interim > 5 {
			return nil, nil, noAnswer(u.Hostname())
		}
		if resp.StatusCode/100 != 1 {
			break
		}
	}
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		next, err := u.Parse(resp.Header.Get("Location"))
		if err != nil || resp.Header.Get("Location") == "" {
			return nil, nil, problem(400, Connection, "%s answered with status %d and no valid Location", u.Hostname(), resp.StatusCode)
		}
		next.Fragment = ""
		return next, nil, nil
	default:
		return nil, nil, problem(403, IncorrectResponse, "%s answered with status %d instead of 200", u.Hostname(), resp.StatusCode)
	}
	if resp.Header.Get("Content-Encoding") != "" {
		return nil, nil, problem(403, IncorrectResponse, "%s sent a compressed answer that was not asked for", u.Hostname())
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil && len(body) <= maxAnswer {
		return nil, nil, problem(400, Connection, "%s broke off its answer", u.Hostname())
	}
	return nil, body, nil
}

// handshake does not check the certificate: the name may be about to get its first
// one (RFC 8555 §8.3).
func handshake(ctx context.Context, conn net.Conn, host string) (net.Conn, error) {
	cfg := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}
	if _, err := netip.ParseAddr(host); err != nil {
		cfg.ServerName = host
	}
	c := tls.Client(conn, cfg)
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("TLS handshake: %w", err)
	}
	return c, nil
}

// hostInURL writes an IPv6 address in brackets.
func hostInURL(host string) string {
	if a, err := netip.ParseAddr(host); err == nil && a.Is6() {
		return "[" + host + "]"
	}
	return host
}
