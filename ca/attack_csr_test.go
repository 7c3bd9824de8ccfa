package ca_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/idna"

	"chancery/ca"
)

func TestAttack_CA_01(t *testing.T) {
	h := home(t)
	csr := good()
	csr[len(csr)-1] ^= 1
	if r := h.refuses(t, "one bit of the signature", func() error { return h.prepare(csr) }, ca.BadCSR); r.Field != "csr.signature" {
		t.Errorf("field %s", r.Field)
	}
	signed := asking(dns("www.lab.example")).der()
	i := bytes.Index(signed, []byte("www.lab"))
	signed[i] = 'v'
	h.refuses(t, "another name under the signature", func() error { return h.prepare(signed) }, ca.BadCSR)
}

func TestAttack_CA_02(t *testing.T) {
	h := home(t)
	other := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	for what, spki := range map[string][]byte{
		"another EC key": must(x509.MarshalPKIXPublicKey(other.Public())),
		"an RSA key":     must(x509.MarshalPKIXPublicKey(rsaKey().Public())),
	} {
		if r := h.refuses(t, what, func() error { return h.prepare(with(spki)) }, ca.BadCSR); r.Field != "csr.signature" {
			t.Errorf("%s: field %s", what, r.Field)
		}
	}
	issuing := must(x509.ParseCertificate(must(h.authority.IssuerCertificate("issuing"))))
	h.refuses(t, "the issuer's own key", func() error { return h.prepare(with(issuing.RawSubjectPublicKeyInfo)) }, ca.BadCSR)
}

// longForm writes the length of the outer SEQUENCE of der with n octets.
func longForm(der []byte, n int) []byte {
	var v asn1.RawValue
	must(asn1.Unmarshal(der, &v))
	out := []byte{der[0], 0x80 | byte(n)}
	for i := n - 1; i >= 0; i-- {
		out = append(out, byte(len(v.Bytes)>>(8*i)))
	}
	return append(out, v.Bytes...)
}

func TestAttack_CA_03(t *testing.T) {
	h := home(t)
	der := good()
	var outer asn1.RawValue
	must(asn1.Unmarshal(der, &outer))
	san := ext(oidSAN, sanValue(dns("www.lab.example")...))
	twice := pkix.Extension{Id: oidSAN, Value: sanValue(dns("evil.lab.example")...)}
	info := must(x509.ParseCertificateRequest(der)).RawTBSCertificateRequest
	var pieces bytes.Buffer // the SAN extension's OCTET STRING in pieces
	value := sanValue(dns("www.lab.example")...)
	pieces.Write([]byte{0x24, byte(len(value) + 2), 0x04, byte(len(value))})
	pieces.Write(value)
	sanID := must(asn1.Marshal(oidSAN))
	extension := append(sanID, pieces.Bytes()...)
	extension = append([]byte{0x30, byte(len(extension))}, extension...)
	extension = append([]byte{0x30, byte(len(extension))}, extension...)
	null := []byte{5, 0}

	for what, tc := range map[string]struct {
		csr    []byte
		offset bool // the answer says where
	}{
		"nothing":                       {nil, true},
		"cut short":                     {der[:len(der)-1], true},
		"trailing octet":                {append(bytes.Clone(der), 0), true},
		"second request behind":         {append(bytes.Clone(der), der...), true},
		"length in three octets":        {longForm(der, 3), true},
		"length in five octets":         {longForm(der, 5), true},
		"indefinite length":             {append(append([]byte{0x30, 0x80}, outer.Bytes...), 0, 0), true},
		"long length inside":            {request{}.sign(longForm(info, 3)), true},
		"indefinite length inside":      {request{}.sign(append(append([]byte{0x30, 0x80}, info[2:]...), 0, 0)), true},
		"octet string in pieces":        {request{attrs: [][]byte{attribute(oidExtRequest, extension)}}.der(), true},
		"long length in the SAN":        {asking(nil, ext(asn1.ObjectIdentifier{2, 5, 29, 14}, longForm(must(asn1.Marshal([]int{1})), 2))).der(), true},
		"trailing octet in the SAN":     {request{attrs: [][]byte{extensions(ext(oidSAN, append(sanValue(dns("a.example")...), 0)))}}.der(), true},
		"BOOLEAN 01":                    {asking(dns("a.example"), ext(oidBasic, []byte{0x30, 3, 1, 1, 1})).der(), true},
		"duplicate SAN":                 {request{attrs: [][]byte{extensions(san, twice)}}.der(), false},
		"two extension requests":        {request{attrs: [][]byte{extensions(san), extensions(twice)}}.der(), false},
		"two sets of extensions in one": {request{attrs: [][]byte{attribute(oidExtRequest, append(must(asn1.Marshal([]pkix.Extension{san})), must(asn1.Marshal([]pkix.Extension{twice}))...))}}.der(), false},
		"element behind the attributes": {request{attrs: [][]byte{extensions(san)}, more: null}.der(), false},
		"element behind the signature":  {request{attrs: [][]byte{extensions(san)}, tail: null}.der(), false},
		"a certificate":                 {must(h.authority.IssuerCertificate("root")), false},
		"another version":               {request{}.sign(bytes.Replace(info, []byte{2, 1, 0}, []byte{2, 1, 1}, 1)), false},
		"PEM":                           {[]byte("-----BEGIN CERTIFICATE REQUEST-----\n"), true},
		"nested 10,000 deep":            {request{attrs: [][]byte{attribute(oidChallenge, nested(10_000))}}.der(), true},
	} {
		r := h.refuses(t, what, func() error { return h.prepare(tc.csr) }, ca.BadCSR)
		if tc.offset != strings.Contains(r.Detail, "at octet") {
			t.Errorf("%s: %v", what, r)
		}
	}
	if err := h.prepare(der); err != nil {
		t.Error("the good one:", err)
	}
}

// nested is n SEQUENCEs, one in the other, whose lengths are right.
func nested(n int) []byte {
	var heads [][]byte
	size := 0
	for range n {
		var head []byte
		switch {
		case size < 0x80:
			head = []byte{0x30, byte(size)}
		case size < 0x100:
			head = []byte{0x30, 0x81, byte(size)}
		default:
			head = []byte{0x30, 0x82, byte(size >> 8), byte(size)}
		}
		heads = append(heads, head)
		size += len(head)
	}
	var out []byte
	for i := len(heads) - 1; i >= 0; i-- {
		out = append(out, heads[i]...)
	}
	return out
}

func TestAttack_CA_04(t *testing.T) {
	h := home(t)
	usage := func(bits byte) pkix.Extension {
		return ext(oidKeyUsage, must(asn1.Marshal(asn1.BitString{Bytes: []byte{bits}, BitLength: 8})))
	}
	name := dns("www.lab.example")
	for what, e := range map[string]pkix.Extension{
		"CA:TRUE":              ext(oidBasic, []byte{0x30, 3, 1, 1, 0xff}),
		"CA:TRUE, pathLen 0":   ext(oidBasic, []byte{0x30, 6, 1, 1, 0xff, 2, 1, 0}),
		"pathLen without CA":   ext(oidBasic, []byte{0x30, 3, 2, 1, 0}),
		"CA:TRUE behind":       ext(oidBasic, []byte{0x30, 6, 2, 1, 0, 1, 1, 0xff}),
		"no constraints":       ext(oidBasic, []byte{5, 0}),
		"keyCertSign":          usage(0x04),
		"cRLSign":              usage(0x02),
		"keyCertSign and more": usage(0x86),
		"no key usage":         ext(oidKeyUsage, []byte{5, 0}),
	} {
		h.refuses(t, what, func() error { return h.prepare(asking(name, e).der()) }, ca.BadCSR)
		e.Critical = true
		h.refuses(t, what+", critical", func() error { return h.prepare(asking(name, e).der()) }, ca.BadCSR)
	}
	for what, e := range map[string]pkix.Extension{
		"CA:FALSE": ext(oidBasic, []byte{0x30, 0}), "CA:FALSE in full": ext(oidBasic, []byte{0x30, 3, 1, 1, 0}), "digitalSignature": usage(0x80), "keyEncipherment": usage(0xa0),
	} {
		p, err := h.authority.Prepare(t.Context(), ca.Request{Profile: "tls-server", CSR: asking(name, e).der()})
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		if c := parseTBS(t, p.TBS()); c.IsCA || c.KeyUsage != x509.KeyUsageDigitalSignature {
			t.Errorf("%s: CA %v, usage %b", what, c.IsCA, c.KeyUsage)
		}
	}
	for _, profile := range []string{"root", "issuing", "", "TLS-server", "../root", strings.Repeat("x", 1<<20)} {
		h.refuses(t, "profile", func() error {
			_, err := h.authority.Prepare(context.Background(), ca.Request{Profile: profile, CSR: good()})
			return err
		}, ca.BadProfile)
	}
}

func TestAttack_CA_05(t *testing.T) {
	h := home(t)
	eku := func(ids ...asn1.ObjectIdentifier) []byte {
		return asking(dns("www.lab.example"), ext(oidEKU, must(asn1.Marshal(ids)))).der()
	}
	server, client := asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 1}, asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 2}
	for what, id := range map[string]asn1.ObjectIdentifier{
		"codeSigning": {1, 3, 6, 1, 5, 5, 7, 3, 3}, "emailProtection": {1, 3, 6, 1, 5, 5, 7, 3, 4}, "timeStamping": {1, 3, 6, 1, 5, 5, 7, 3, 8},
		"OCSPSigning": {1, 3, 6, 1, 5, 5, 7, 3, 9}, "any": {2, 5, 29, 37, 0}, "unknown": {1, 2, 3, 4},
	} {
		h.refuses(t, what, func() error { return h.prepare(eku(id)) }, ca.BadCSR)
		h.refuses(t, what+" behind serverAuth", func() error { return h.prepare(eku(server, id)) }, ca.BadCSR)
	}
	p, err := h.authority.Prepare(t.Context(), ca.Request{Profile: "tls-server", CSR: eku(server, client)})
	if err != nil {
		t.Fatal(err)
	}
	if c := parseTBS(t, p.TBS()); len(c.ExtKeyUsage) != 1 || c.ExtKeyUsage[0] != x509.ExtKeyUsageServerAuth || len(c.UnknownExtKeyUsage) != 0 {
		t.Errorf("extended key usage %v %v", c.ExtKeyUsage, c.UnknownExtKeyUsage)
	}
}

func TestAttack_CA_06(t *testing.T) {
	h := home(t)
	name := dns("www.lab.example")
	for what, id := range map[string]asn1.ObjectIdentifier{
		"unknown": {1, 2, 3, 4}, "nameConstraints": {2, 5, 29, 30}, "policyMappings": {2, 5, 29, 33}, "policies": {2, 5, 29, 32}, "issuerAltName": {2, 5, 29, 18},
		"ocsp-nocheck": {1, 3, 6, 1, 5, 5, 7, 48, 1, 5}, "authorityKeyId": {2, 5, 29, 35}, "AIA": {1, 3, 6, 1, 5, 5, 7, 1, 1}, "CT poison": {1, 3, 6, 1, 4, 1, 11129, 2, 4, 3},
	} {
		for _, critical := range []bool{false, true} {
			h.refuses(t, what, func() error {
				return h.prepare(asking(name, pkix.Extension{Id: id, Critical: critical, Value: []byte{5, 0}}).der())
			}, ca.BadCSR)
		}
	}
	// Must-staple is let pass and left out: there is no OCSP responder to staple from.
	staple := pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24}, Value: []byte{0x30, 3, 2, 1, 5}}
	if err := h.prepare(asking(name, staple).der()); err != nil {
		t.Errorf("must-staple: %v", err)
	}
	otherName := append([]byte{0x30, 19, 0xa0, 17, 6, 10}, 0x2b, 6, 1, 4, 1, 0x82, 0x37, 0x14, 2, 3)
	otherName = append(otherName, 0xa0, 3, 0x0c, 1, 'x')
	for what, value := range map[string][]byte{
		"e-mail":        sanValue(general{1, "a@lab.example"}),
		"URI":           sanValue(general{6, (&url.URL{Scheme: "https", Host: "lab.example"}).String()}),
		"registeredID":  sanValue(general{8, "\x2a\x03"}),
		"UPN otherName": otherName,
		"directoryName": {0x30, 4, 0xa4, 2, 0x30, 0},
		"with e-mail":   sanValue(append(dns("www.lab.example"), general{1, "a@lab.example"})...),
		"IPv4-mapped":   sanValue(general{7, "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xc0\x00\x02\x01"}),
		"IP of 5":       sanValue(general{7, "\xc0\x00\x02\x01\x00"}),
		"IP with mask":  sanValue(general{7, "\xc0\x00\x02\x01\xff\xff\xff\x00"}),
		"empty SAN":     {0x30, 0},
		"no SEQUENCE":   {5, 0},
	} {
		h.refuses(t, what, func() error { return h.prepare(request{attrs: [][]byte{extensions(ext(oidSAN, value))}}.der()) }, ca.BadCSR)
	}
	h.refuses(t, "no names at all", func() error { return h.prepare(request{}.der()) }, ca.BadCSR)
	r := asking(name, ext(asn1.ObjectIdentifier{2, 5, 29, 14}, []byte{4, 1, 7}))
	r.attrs = append(r.attrs, attribute(oidChallenge, []byte{0x0c, 1, 'x'}))
	if err := h.prepare(r.der()); err != nil {
		t.Error("subject key id and challenge password:", err)
	}
}

func TestAttack_CA_07(t *testing.T) {
	h := home(t)
	for _, name := range []string{
		"good.lab\x00.evil.com", "a\x01b.lab", "a\r\nb.lab", "a\n.lab", "a b.lab", " a.lab", "a.lab ", "a\t.lab", "a.lab.", ".a.lab", "a..lab", ".", "",
		strings.Repeat("a", 64) + ".lab", strings.Repeat("a.", 126) + "aa", strings.Repeat("a", 1000), "-a.lab", "a-.lab", "a_b.lab", "a/b.lab", "a:80.lab", "a@b.lab",
		"a.lab\x7f", "192.0.2.1", "a.1", "1.2.3", "[::1]", "ab--c.lab", "a%00.lab", "{{.Name}}.lab", "a\".lab",
	} {
		r := h.refuses(t, name, func() error { return h.prepare(good(name)) }, ca.BadCSR)
		if strings.ContainsAny(r.Detail, "\x00\r\n\x01") || r.Field != "csr.subjectAltName" {
			t.Errorf("%q: answer %q", name, r)
		}
		// beside a good one, and as a name of the order
		h.refuses(t, name, func() error { return h.prepare(good("ok.lab", name)) }, ca.BadCSR)
		h.refuses(t, name, func() error { _, err := ca.ParseName(ca.DNS, name); return err }, ca.BadName)
	}
	for _, name := range []string{strings.Repeat("a", 63) + ".lab", strings.Repeat("a.", 126) + "a", "localhost", "a-b.lab", "1a.lab", "0.a"} {
		if err := h.prepare(good(name)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"", "1.2.3", "1.2.3.4.5", "01.2.3.4", "::ffff:192.0.2.1", "fe80::1%eth0", "::1 ", "a.lab", "1.2.3.4/24"} {
		h.refuses(t, name, func() error { _, err := ca.ParseName(ca.IP, name); return err }, ca.BadName)
	}
	h.refuses(t, "kind", func() error { _, err := ca.ParseName("email", "a@b"); return err }, ca.BadName)
}

func TestAttack_CA_08(t *testing.T) {
	h := home(t)
	a := func(u string) string { return must(idna.Punycode.ToASCII(u)) } // encodes anything
	for what, name := range map[string]string{
		"raw UTF-8":            "bücher.lab",
		"full stop look-alike": "a。lab",
		"mixed scripts, raw":   "p\u0430ypal.lab",
		"Latin and Cyrillic":   a("p\u0430ypal") + ".lab",
		"Latin and Greek":      a("g\u03bfod") + ".lab",
		"no punycode":          "xn--a-ä.lab",
		"bad punycode":         "xn--99999999.lab",
		"empty":                "xn--.lab",
		"decodes to ASCII":     "xn--abc-.lab",
		"not NFC":              a("bu\u0308cher") + ".lab",
		"upper case inside":    a("B\u00dcCHER") + ".lab",
		"zero-width joiner":    a("a\u200db") + ".lab",
		"right-to-left mark":   a("a\u200fb") + ".lab",
		"bidi rule":            a("a\u05d0") + ".lab",
		"symbol":               a("a\u2603") + ".lab",
		"emoji":                a("\U0001f4a9") + ".lab",
		"begins with a mark":   a("\u0301a") + ".lab",
	} {
		h.refuses(t, what, func() error { return h.prepare(good(name)) }, ca.BadCSR)
	}
	for _, name := range []string{"xn--bcher-kva.lab", a("пример") + ".lab", a("日本語example") + ".lab", a("αβγ") + ".lab", "*.xn--bcher-kva.lab"} {
		if err := h.prepare(good(name)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAttack_CA_09(t *testing.T) {
	h := home(t)
	long := strings.Repeat("a", 60) + ".lab.example"
	for what, tc := range map[string]struct {
		names []general
		cns   []string
	}{
		"another name":           {dns("ok.lab"), []string{"evil.com"}},
		"an address":             {dns("ok.lab"), []string{"192.0.2.1"}},
		"an address alone":       {nil, []string{"192.0.2.1"}},
		"NUL":                    {dns("ok.lab"), []string{"ok.lab\x00evil.com"}},
		"over 64":                {dns(long), []string{long}},
		"two":                    {dns("ok.lab"), []string{"ok.lab", "evil.com"}},
		"two, the good one last": {dns("ok.lab"), []string{"evil.com", "ok.lab"}},
		"two, empty":             {dns("ok.lab"), []string{"ok.lab", ""}},
		"text":                   {dns("ok.lab"), []string{"My Server"}},
		"wildcard of it":         {dns("ok.lab"), []string{"*.ok.lab"}},
		"trailing dot":           {dns("ok.lab"), []string{"ok.lab."}},
	} {
		r := asking(tc.names)
		if tc.names == nil {
			r = request{}
		}
		r.subject = subject(tc.cns...)
		if got := h.refuses(t, what, func() error { return h.prepare(r.der()) }, ca.BadCSR); got.Field != "csr.subject.commonName" {
			t.Errorf("%s: %v", what, got)
		}
	}
	for what, r := range map[string]request{
		"one of the names":  {subject: subject("ok.lab"), attrs: asking(dns("a.lab", "ok.lab")).attrs},
		"in other case":     {subject: subject("OK.lab"), attrs: asking(dns("ok.lab")).attrs},
		"alone":             {subject: subject("ok.lab")},
		"empty":             {subject: subject(""), attrs: asking(dns("ok.lab")).attrs},
		"one of the IPs":    {subject: subject("192.0.2.1"), attrs: asking(ip("192.0.2.1")).attrs},
		"IP and other text": {subject: must(asn1.Marshal(pkix.Name{Organization: []string{oddName}, CommonName: "ok.lab"}.ToRDNSequence())), attrs: asking(dns("ok.lab")).attrs},
	} {
		p, err := h.authority.Prepare(t.Context(), ca.Request{Profile: "tls-server", CSR: r.der()})
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		if c := parseTBS(t, p.TBS()); len(c.Subject.Names) != 0 {
			t.Errorf("%s: subject %v", what, c.Subject)
		}
	}
}

func TestAttack_CA_10(t *testing.T) {
	h := home(t)
	r := asking(append(dns("OK.Lab", "b.lab", "ok.lab", "B.LAB"), ip("192.0.2.1", "192.0.2.1", "2001:db8::1")...))
	p, err := h.authority.Prepare(t.Context(), ca.Request{Profile: "tls-server", CSR: r.der()})
	if err != nil {
		t.Fatal(err)
	}
	c := parseTBS(t, p.TBS())
	if strings.Join(c.DNSNames, " ") != "ok.lab b.lab" || len(c.IPAddresses) != 2 {
		t.Errorf("names %v %v", c.DNSNames, c.IPAddresses)
	}
	// Entitled names: exactly these, in their own order, and a copy of them.
	names := []ca.Name{{Kind: ca.DNS, Value: "b.lab"}, {Kind: ca.DNS, Value: "ok.lab"}}
	p, err = h.authority.Prepare(t.Context(), ca.Request{Profile: "tls-server", CSR: good("OK.lab", "b.lab"), Names: names})
	if err != nil {
		t.Fatal(err)
	}
	names[0].Value = "evil.lab"
	got, err := h.authority.Issue(t.Context(), p, ca.Projections{})
	if err != nil {
		t.Fatal(err)
	}
	stored, err := h.authority.Certificate(t.Context(), got.Serial)
	if err != nil || stored.Names[0].Value != "b.lab" {
		t.Errorf("stored names %v, %v", stored.Names, err)
	}
	for _, names := range [][]ca.Name{{}, {{Kind: ca.DNS, Value: "ok.lab"}}, {{Kind: ca.DNS, Value: "ok.lab"}, {Kind: ca.DNS, Value: "ok.lab"}},
		{{Kind: ca.DNS, Value: "ok.lab"}, {Kind: ca.IP, Value: "b.lab"}}, {{Kind: ca.DNS, Value: "ok.lab"}, {Kind: ca.DNS, Value: "b.lab"}, {Kind: ca.DNS, Value: "c.lab"}}} {
		h.refuses(t, "other names", func() error {
			_, err := h.authority.Prepare(context.Background(), ca.Request{Profile: "tls-server", CSR: good("ok.lab", "b.lab"), Names: names})
			return err
		}, ca.BadCSR)
	}
}

func TestAttack_CA_11(t *testing.T) {
	h := home(t)
	for _, name := range []string{"*", "*.", "*.*.lab", "f*.lab", "*f.lab", "a.*.lab", "**.lab", "*.lab.", "*..lab", "a.*", "*.192.0.2.1", "xn--*.lab"} {
		h.refuses(t, name, func() error { return h.prepare(good(name)) }, ca.BadCSR)
	}
	if err := h.prepare(good("*.svc.lab", "svc.lab")); err != nil {
		t.Error(err)
	}
	defer ca.SwapProfile("tls-server", func(p *ca.Profile) { p.Wildcards = false })()
	if r := h.refuses(t, "profile without wildcards", func() error { return h.prepare(good("svc.lab", "*.lab")) }, ca.BadName); r.Name == nil || r.Name.Value != "*.lab" {
		t.Errorf("the answer does not name the wildcard: %v", r)
	}
}

// within tells whether f takes less than d in the best of three runs.
func within(t *testing.T, what string, d time.Duration, f func()) {
	t.Helper()
	best := time.Hour
	for range 3 {
		began := time.Now()
		f()
		best = min(best, time.Since(began))
	}
	if best > d {
		t.Errorf("%s took %v, at most %v are allowed", what, best, d)
	}
}

func TestAttack_CA_18(t *testing.T) {
	h := home(t)
	one := big.NewInt(1)
	random := func(bits int) *big.Int { // odd, of exactly that many bits
		n := must(rand.Int(rand.Reader, new(big.Int).Lsh(one, uint(bits))))
		return n.SetBit(n.SetBit(n, bits-1, 1), 0, 1)
	}
	sound := rsaKey().N
	p := must(rand.Prime(rand.Reader, 1024))
	q := new(big.Int).Add(p, big.NewInt(2))
	for !q.ProbablyPrime(10) {
		q.Add(q, big.NewInt(2))
	}
	// The ROCA form: a power of 65537 modulo the product of the first 39 primes.
	m := big.NewInt(1)
	for n, found := int64(2), 0; found < 39; n++ {
		if big.NewInt(n).ProbablyPrime(10) {
			m.Mul(m, big.NewInt(n))
			found++
		}
	}
	roca := new(big.Int).Exp(big.NewInt(65537), big.NewInt(123456789), m)
	k := new(big.Int).Div(new(big.Int).Sub(new(big.Int).Lsh(one, 2048), one), m)
	roca.Add(roca, k.Mul(k.Sub(k, one), m))
	for what, tc := range map[string]struct {
		n *big.Int
		e int64
	}{
		"1024 bits": {random(1024), 65537}, "2047 bits": {random(2047), 65537}, "2049 bits": {random(2049), 65537}, "16385 bits": {random(16385), 65537}, "8 bits": {big.NewInt(187), 65537},
		"400,000 bits": {random(400_000), 65537},
		"e = 1":        {sound, 1}, "e = 2": {sound, 2}, "e = 3": {sound, 3}, "e even": {sound, 65538}, "e = 65535": {sound, 65535},
		"even":         {new(big.Int).Add(sound, one), 65537},
		"small factor": {new(big.Int).Mul(must(rand.Prime(rand.Reader, 2038)), big.NewInt(751)), 65537},
		"close primes": {new(big.Int).Mul(p, q), 65537},
		"square":       {new(big.Int).Mul(p, p), 65537},
		"ROCA":         {roca, 65537},
	} {
		csr := with(rsaSPKI(tc.n, tc.e))
		h.refuses(t, what, func() error { return h.prepare(csr) }, ca.BadPublicKey)
		within(t, what, 50*time.Millisecond, func() { h.prepare(csr) })
	}
	r := h.refuses(t, "close primes", func() error { return h.prepare(with(rsaSPKI(new(big.Int).Mul(p, q), 65537))) }, ca.BadPublicKey)
	if !strings.Contains(r.Detail, "close together") {
		t.Error(r)
	}
	r = h.refuses(t, "ROCA", func() error { return h.prepare(with(rsaSPKI(roca, 65537))) }, ca.BadPublicKey)
	if !strings.Contains(r.Detail, "ROCA") {
		t.Error(r)
	}
	sane := asking(dns("www.lab.example"))
	sane.signer = rsaKey()
	if err := h.prepare(sane.der()); err != nil {
		t.Error("a sound key:", err)
	}
}

func TestAttack_CA_20(t *testing.T) {
	h := home(t)
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	ecdsaID := asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
	point := must(must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)).PublicKey.Bytes())
	off := bytes.Clone(point)
	off[64] ^= 1
	spki := must(x509.MarshalPKIXPublicKey(ecKey().Public()))
	for what, key := range map[string][]byte{
		"Ed25519":        must(x509.MarshalPKIXPublicKey(ed.Public())),
		"X25519":         otherSPKI(make([]byte, 32), asn1.ObjectIdentifier{1, 3, 101, 110}),
		"Ed448":          otherSPKI(make([]byte, 57), asn1.ObjectIdentifier{1, 3, 101, 113}),
		"ML-DSA-65":      otherSPKI(make([]byte, 1952), asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 3, 18}),
		"P-224":          must(x509.MarshalPKIXPublicKey(must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader)).Public())),
		"secp256k1":      otherSPKI(point, ecdsaID, asn1.ObjectIdentifier{1, 3, 132, 0, 10}),
		"DSA":            dsaSPKI(),
		"point off":      otherSPKI(off, ecdsaID, asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}),
		"compressed":     otherSPKI(append([]byte{2}, point[1:33]...), ecdsaID, asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}),
		"infinity":       otherSPKI([]byte{0}, ecdsaID, asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}),
		"no curve":       otherSPKI(point, ecdsaID),
		"element behind": append([]byte{0x30, spki[1] + 2}, append(bytes.Clone(spki[2:]), 5, 0)...),
	} {
		r := h.refuses(t, what, func() error { return h.prepare(with(key)) }, ca.BadPublicKey)
		if what != "element behind" && !strings.Contains(r.Detail, "P-256") && !strings.Contains(r.Detail, "point") || strings.ContainsAny(r.Detail, "*<") {
			t.Errorf("%s: %v", what, r)
		}
	}
}

func dsaSPKI() []byte {
	var out builder
	seq(&out, func(b *builder) {
		seq(b, func(b *builder) {
			b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 2, 840, 10040, 4, 1})
			seq(b, func(b *builder) { b.AddASN1Int64(23); b.AddASN1Int64(11); b.AddASN1Int64(4) })
		})
		b.AddASN1BitString([]byte{2, 1, 8})
	})
	return out.BytesOrPanic()
}

func TestAttack_CA_34(t *testing.T) {
	h := home(t)
	many := make([]string, 10_000)
	for i := range many {
		many[i] = "a.b"
	}
	var exts []pkix.Extension
	for i := range 3000 {
		exts = append(exts, ext(asn1.ObjectIdentifier{1, 2, 3, i}, []byte{5, 0}))
	}
	var attrs [][]byte
	for range 3000 {
		attrs = append(attrs, attribute(oidChallenge, []byte{5, 0}))
	}
	var cns []string
	for range 3000 {
		cns = append(cns, "a.b")
	}
	full := asking(dns("a.b"))
	full.subject = subject(cns...)
	for what, csr := range map[string][]byte{
		"1 MiB":             append(good(), make([]byte, 1<<20)...),
		"1 MiB, right":      asking(dns(strings.Repeat("a", 1<<20))).der(),
		"10,000 names":      good(many...),
		"101 names":         good(many[:101]...),
		"3,000 extensions":  asking(dns("a.b"), exts...).der(),
		"3,000 CNs":         full.der(),
		"10,000 levels":     request{attrs: [][]byte{attribute(oidChallenge, nested(10_000))}}.der(),
		"10,000 unfinished": bytes.Repeat([]byte{0x30, 0x82, 0xff, 0xff}, 10_000),
		"lengths of 2^24":   {0x30, 0x84, 0x7f, 0xff, 0xff, 0xff},
		"CSR in CSR":        request{attrs: [][]byte{extensions(ext(oidSAN, nested(9_000)))}}.der(),
	} {
		h.refuses(t, what, func() error { return h.prepare(csr) }, ca.BadCSR)
		within(t, what, 20*time.Millisecond, func() { h.prepare(csr) })
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		h.prepare(csr)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 8<<20 {
			t.Errorf("%s: %d octets of heap", what, n)
		}
	}
	if err := h.prepare(request{attrs: append(attrs[:10], asking(dns("a.b")).attrs...)}.der()); err != nil {
		t.Error("attributes that are known to nobody:", err)
	}
	distinct := make([]string, 100)
	for i := range distinct {
		distinct[i] = strings.Repeat("a", i%60+1) + string(rune('a'+i/60)) + "x.lab.example"
	}
	if err := h.prepare(good(distinct...)); err != nil {
		t.Error("100 names:", err)
	}
}
