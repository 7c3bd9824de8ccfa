package acme

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// resolver asks recursive name servers. The system's own resolver is not used: its
// search list and hosts file are this host's, not the world's.
type resolver struct {
	servers   []string
	localhost bool // localhost and *.localhost are 127.0.0.1 (RFC 6761 §6.3)
}

const queryTimeout = 3 * time.Second

func newResolver(servers []string, localhost bool) (*resolver, error) {
	if len(servers) == 0 {
		servers = systemServers()
	}
	for _, s := range servers {
		if _, _, err := net.SplitHostPort(s); err != nil {
			return nil, fmt.Errorf("acme: resolver %q is no host:port", s)
		}
	}
	return &resolver{servers: servers, localhost: localhost}, nil
}

func systemServers() []string {
	conf, err := dns.ClientConfigFromFile("/etc/resolv.conf")
	if err != nil || len(conf.Servers) == 0 {
		return []string{"127.0.0.1:53"} // resolv.conf(5)
	}
	var out []string
	for _, s := range conf.Servers {
		out = append(out, net.JoinHostPort(s, conf.Port))
	}
	return out
}

// addresses returns the addresses of a host, IPv6 first.
func (r *resolver) addresses(ctx context.Context, host string) ([]netip.Addr, *Problem) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil
	}
	if r.localhost && (host == "localhost" || strings.HasSuffix(host, ".localhost")) {
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}, nil
	}
	type answer struct {
		addrs []netip.Addr
		err   error
	}
	v6 := make(chan answer, 1)
	go func() {
		a, err := r.query(ctx, host, dns.TypeAAAA)
		v6 <- answer{a, err}
	}()
	v4, err4 := r.query(ctx, host, dns.TypeA)
	six := <-v6
	all := append(six.addrs, v4...)
	if len(all) > 0 {
		return slices.Compact(all), nil
	}
	if err := errors.Join(err4, six.err); err != nil {
		return nil, problem(400, DNS, "looking up the addresses of %s: %s; the name must have an A or AAAA record that this CA's resolver finds", host, strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return nil, problem(400, DNS, "%s has no A or AAAA record; add one", host)
}

// query asks each server in turn until one answers.
func (r *resolver) query(ctx context.Context, host string, qtype uint16) ([]netip.Addr, error) {
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(host), qtype)
	m.SetEdns0(1232, false)
	var last error
	for _, server := range r.servers {
		in, err := exchange(ctx, server, m)
		switch {
		case err != nil:
			last = fmt.Errorf("no answer to the %s query", dns.TypeToString[qtype])
		case in.Rcode == dns.RcodeSuccess:
			return records(in), nil
		case in.Rcode == dns.RcodeNameError:
			return nil, errors.New("no such name (NXDOMAIN)")
		default:
			last = fmt.Errorf("%s to the %s query", dns.RcodeToString[in.Rcode], dns.TypeToString[qtype])
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, last
}

func exchange(ctx context.Context, server string, m *dns.Msg) (in *dns.Msg, err error) {
	defer func() {
		if recover() != nil { // in its own goroutine nobody else would catch it
			in, err = nil, errors.New("the answer cannot be read")
		}
	}()
	m = m.Copy()
	m.Id = dns.Id()
	for _, network := range []string{"udp", "tcp"} {
		c := dns.Client{Net: network, Timeout: queryTimeout}
		in, _, err := c.ExchangeContext(ctx, m, server)
		if err != nil {
			return nil, err
		}
		if len(in.Question) != 1 || !strings.EqualFold(in.Question[0].Name, m.Question[0].Name) || in.Question[0].Qtype != m.Question[0].Qtype {
			return nil, errors.New("answer to another question")
		}
		if !in.Truncated || network == "tcp" {
			return in, nil
		}
	}
	return nil, errors.New("unreachable")
}

func records(in *dns.Msg) (out []netip.Addr) {
	for _, rr := range in.Answer {
		var ip net.IP
		switch rr := rr.(type) {
		case *dns.A:
			ip = rr.A.To4()
		case *dns.AAAA:
			ip = rr.AAAA
		}
		if a, ok := netip.AddrFromSlice(ip); ok {
			out = append(out, a)
		}
	}
	return out
}
