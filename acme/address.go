package acme

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
)

// addressPolicy says which addresses the server may reach out to. A stranger names
// them, so whatever is special to this host or its cloud is out: loopback,
// link-local, shared, multicast, unspecified and reserved addresses, unless the
// operator names them; metadata services and the server's own listeners, always. Private
// networks (RFC 1918, RFC 4193) are in: they are what a private CA is for.
type addressPolicy struct {
	allow  []netip.Prefix // operator's exceptions; win over deny and the special networks
	deny   []netip.Prefix // operator's control networks: HSM, database
	listen []netip.AddrPort
}

// metadata are addresses at which clouds hand out credentials: AWS and most others,
// AWS over IPv6, Google over IPv6, Alibaba, Azure, Oracle.
var metadata = addrs("169.254.169.254", "169.254.170.2", "fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192")

var special = []struct {
	network netip.Prefix
	what    string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "unspecified addresses"},
	{netip.MustParsePrefix("100.64.0.0/10"), "shared addresses of carriers and clouds (RFC 6598)"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback addresses"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local addresses"},
	{netip.MustParsePrefix("192.0.0.0/24"), "addresses of protocol assignments"},
	{netip.MustParsePrefix("192.88.99.0/24"), "relay anycast addresses (RFC 7526)"},
	{netip.MustParsePrefix("198.18.0.0/15"), "benchmarking addresses (RFC 2544)"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast addresses"},
	{netip.MustParsePrefix("240.0.0.0/4"), "reserved addresses"},
	{netip.MustParsePrefix("::/128"), "unspecified addresses"},
	{netip.MustParsePrefix("::1/128"), "loopback addresses"},
	{netip.MustParsePrefix("::/96"), "IPv4-compatible addresses"},
	{netip.MustParsePrefix("64:ff9b:1::/48"), "local translation addresses (RFC 8215)"},
	{netip.MustParsePrefix("100::/64"), "discard addresses"},
	{netip.MustParsePrefix("2001::/32"), "Teredo addresses"},
	{netip.MustParsePrefix("2001:2::/48"), "benchmarking addresses (RFC 5180)"},
	{netip.MustParsePrefix("2001:10::/28"), "overlay identifiers (RFC 4843)"},
	{netip.MustParsePrefix("2001:20::/28"), "overlay identifiers (RFC 7343)"},
	{netip.MustParsePrefix("5f00::/16"), "segment-routing addresses"},
	{netip.MustParsePrefix("fe80::/10"), "link-local addresses"},
	{netip.MustParsePrefix("fec0::/10"), "site-local addresses"},
	{netip.MustParsePrefix("ff00::/8"), "multicast addresses"},
}

var (
	nat64   = netip.MustParsePrefix("64:ff9b::/96") // RFC 6052 §2.1
	sixTo4  = netip.MustParsePrefix("2002::/16")    // RFC 3056 §2
	mapped4 = netip.MustParsePrefix("::ffff:0:0:0/96")
)

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// unwrap returns the IPv4 address that an IPv6 address carries, if it does.
func unwrap(a netip.Addr) (netip.Addr, bool) {
	b := a.As16()
	switch {
	case a.Is4():
		return a, false
	case a.Is4In6():
		return a.Unmap(), true
	case nat64.Contains(a), mapped4.Contains(a):
		return netip.AddrFrom4([4]byte(b[12:])), true
	case sixTo4.Contains(a):
		return netip.AddrFrom4([4]byte(b[2:6])), true
	case b[8]&^2 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe: // ISATAP, RFC 5214 §6.1
		return netip.AddrFrom4([4]byte(b[12:])), true
	}
	return a, false
}

// forbidden returns what kind of address it is that must not be reached, or "".
func (p *addressPolicy) forbidden(ap netip.AddrPort) string {
	a := ap.Addr()
	if a.Zone() != "" {
		return "addresses of one of its interfaces"
	}
	if inner, ok := unwrap(a); ok {
		if why := p.forbidden(netip.AddrPortFrom(inner, ap.Port())); why != "" {
			return why
		}
		if a.Is4In6() {
			return ""
		}
	}
	for _, m := range metadata {
		if a == m {
			return "metadata services"
		}
	}
	for _, l := range p.listen {
		if l.Port() == ap.Port() && (l.Addr() == a || (l.Addr().IsUnspecified() || a.IsUnspecified()) && local(a)) {
			return "its own listeners"
		}
	}
	for _, n := range p.allow {
		if n.Contains(a) {
			return ""
		}
	}
	for _, n := range p.deny {
		if n.Contains(a) {
			return "networks that its operator denies"
		}
	}
	for _, s := range special {
		if s.network.Contains(a) {
			return s.what
		}
	}
	return ""
}

// local tells whether the address is one of this host's.
func local(a netip.Addr) bool {
	if a.IsLoopback() || a.IsUnspecified() {
		return true
	}
	list, err := net.InterfaceAddrs()
	if err != nil {
		return true // in doubt it is ours
	}
	for _, i := range list {
		if n, ok := i.(*net.IPNet); ok {
			if mine, ok := netip.AddrFromSlice(n.IP); ok && mine.Unmap() == a {
				return true
			}
		}
	}
	return false
}

// parseListener reads a listen address like 127.0.0.1:8443, [::1]:8443 or :8443.
func parseListener(s string) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("acme: %q is no address:port", s)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("acme: %q has no port number", s)
	}
	switch host {
	case "":
		return netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(n)), nil
	case "localhost":
		host = "127.0.0.1"
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("acme: %q has no IP address", s)
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), nil
}
