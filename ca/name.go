package ca

import (
	"net/netip"
	"strings"
	"unicode"

	"golang.org/x/net/idna"
)

// idnaStrict accepts what may be registered: IDNA2008 with STD3 and bidi rules
// (RFC 5891 §4, RFC 5280 §7.2).
var idnaStrict = idna.New(idna.ValidateForRegistration(), idna.StrictDomainName(true), idna.VerifyDNSLength(true), idna.CheckHyphens(false))

// ParseName checks a name and gives its canonical form. DNS names are taken as
// A-labels (RFC 5280 §7.2), in any case, also "*." in front (whether a profile
// allows a wildcard is the profile's matter). The error is a [*Refusal].
func ParseName(kind NameKind, s string) (Name, error) {
	switch kind {
	case DNS:
		v, err := dnsName(s)
		return Name{DNS, v}, err
	case IP:
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			return Name{}, refuse(BadName, "name", "%q is no IP address; allowed: 192.0.2.1 or 2001:db8::1", clip(s))
		}
		if a.Is4In6() {
			return Name{}, refuse(BadName, "name", "%q is an IPv4 address in IPv6 form; write %s", clip(s), a.Unmap())
		}
		return Name{IP, a.String()}, nil
	}
	return Name{}, refuse(BadName, "name", "kind %q is not known; allowed: dns, ip", clip(string(kind)))
}

func dnsName(s string) (string, error) {
	bad := func(why string) (string, error) {
		return "", refuse(BadName, "name", "%q is no DNS name: %s", clip(s), why)
	}
	if len(s) == 0 || len(s) > 253 {
		return bad("it must have 1 to 253 characters (RFC 1035 §2.3.4)")
	}
	lower := make([]byte, len(s))
	for i := range len(s) {
		c := s[i]
		switch {
		case 'A' <= c && c <= 'Z':
			c += 'a' - 'A'
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '.':
		case c == '*' && i == 0 && strings.HasPrefix(s, "*."):
		case c >= 0x80:
			return bad("write it as A-labels (xn--…), not as Unicode (RFC 5280 §7.2)")
		default:
			return bad("allowed are letters, digits, hyphens and dots, and one \"*.\" in front")
		}
		lower[i] = c
	}
	name := string(lower)
	host := strings.TrimPrefix(name, "*.")
	if _, err := netip.ParseAddr(host); err == nil {
		return bad("it is an IP address; ask for it as an identifier of type ip (RFC 8738)")
	}
	for label := range strings.SplitSeq(host, ".") {
		switch {
		case label == "":
			return bad("it has an empty label or a trailing dot")
		case len(label) > 63:
			return bad("a label has more than 63 characters")
		case label[0] == '-' || label[len(label)-1] == '-':
			return bad("a label begins or ends with a hyphen")
		case len(label) > 3 && label[2:4] == "--" && !strings.HasPrefix(label, "xn--"):
			return bad("hyphens at places 3 and 4 are reserved (RFC 5891 §4.2.3.1)")
		case strings.HasPrefix(label, "xn--"):
			u, err := idnaStrict.ToUnicode(label)
			if err != nil || isASCII(u) {
				return bad("an xn-- label is no valid A-label (RFC 5891 §4)")
			}
			if back, err := idnaStrict.ToASCII(u); err != nil || back != label {
				return bad("an xn-- label is no valid A-label (RFC 5891 §4)")
			}
			if !letters(u) {
				return bad("an xn-- label has a character that is no letter, mark or digit (RFC 5892 §2)")
			}
			if mixed(u) {
				return bad("an xn-- label mixes alphabets that look alike (UTS #39 §5)")
			}
		}
	}
	if last := host[strings.LastIndexByte(host, '.')+1:]; strings.Trim(last, "0123456789") == "" {
		return bad("its last label is a number (RFC 1123 §2.1)")
	}
	return name, nil
}

// contextual are the characters that are neither and yet allowed in their place (RFC
// 5892 appendix A).
const contextual = "-\u00b7\u0375\u05f3\u05f4\u30fb\u200c\u200d"

// letters tells whether a label has nothing but what IDNA2008 allows; x/net/idna lets
// symbols pass, as UTS #46 does.
func letters(label string) bool {
	for _, r := range label {
		if !unicode.In(r, unicode.L, unicode.Mn, unicode.Mc, unicode.Nd) && !strings.ContainsRune(contextual, r) {
			return false
		}
	}
	return true
}

// lookalikes are the alphabets whose letters can pass for one another's.
var lookalikes = []*unicode.RangeTable{unicode.Latin, unicode.Cyrillic, unicode.Greek, unicode.Armenian, unicode.Cherokee}

// mixed tells whether a label has letters of two alphabets that look alike.
func mixed(label string) bool {
	var first *unicode.RangeTable
	for _, r := range label {
		for _, t := range lookalikes {
			if unicode.Is(t, r) {
				if first != nil && first != t {
					return true
				}
				first = t
			}
		}
	}
	return false
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// Wildcard tells whether the name stands for all names one label below it.
func (n Name) Wildcard() bool { return n.Kind == DNS && strings.HasPrefix(n.Value, "*.") }

// clip makes foreign text fit for a message: at most 64 characters of it, escaped by %q at the caller.
func clip(s string) string {
	if len(s) > 64 {
		return s[:61] + "..."
	}
	return s
}
