package check

import (
	"bytes"
	"crypto/x509"
	"errors"
	"time"
)

// What is needed of certificates and CRLs is read here octet by octet: there may be a
// million of them, or as many entries of one, and crypto/x509 would make objects of all.

var errDER = errors.New("it is not DER of the expected kind")

// The tags of X.690 §8 that occur here.
const (
	tagBoolean     = 0x01
	tagInteger     = 0x02
	tagBitString   = 0x03
	tagOctets      = 0x04
	tagOID         = 0x06
	tagSequence    = 0x30
	tagUTCTime     = 0x17
	tagGeneralized = 0x18
)

// element takes the first DER element off b: its tag, its contents, and all of its octets.
func element(b []byte) (tag byte, inner, whole, rest []byte, err error) {
	if len(b) < 2 || b[0]&0x1f == 0x1f {
		return 0, nil, nil, nil, errDER
	}
	head, n := 2, int(b[1])
	if n >= 0x80 { // long form
		octets := n & 0x7f
		if octets == 0 || octets > 4 || len(b) < 2+octets {
			return 0, nil, nil, nil, errDER
		}
		n = 0
		for _, c := range b[2 : 2+octets] {
			n = n<<8 | int(c)
		}
		head += octets
	}
	if n > len(b)-head {
		return 0, nil, nil, nil, errDER
	}
	return b[0], b[head : head+n], b[:head+n], b[head+n:], nil
}

// reader goes through the elements of a sequence; the first error stays.
type reader struct {
	b   []byte
	err error
}

// next is the next element, which must be of a tag.
func (r *reader) next(want byte) (inner, whole []byte) {
	if r.err != nil {
		return nil, nil
	}
	tag, inner, whole, rest, err := element(r.b)
	if err != nil || tag != want {
		r.err = errDER
		return nil, nil
	}
	r.b = rest
	return inner, whole
}

// is tells whether an element of a tag comes next.
func (r *reader) is(tag byte) bool { return r.err == nil && len(r.b) > 0 && r.b[0] == tag }

// time reads UTCTime or GeneralizedTime (RFC 5280 §4.1.2.5), in seconds since 1970.
func (r *reader) time() int64 {
	tag, layout := byte(tagUTCTime), "060102150405Z"
	if r.is(tagGeneralized) {
		tag, layout = tagGeneralized, "20060102150405Z"
	}
	inner, _ := r.next(tag)
	if r.err != nil || len(inner) != len(layout) || inner[len(inner)-1] != 'Z' {
		r.err = errDER
		return 0
	}
	var v [7]int // century and year, or year; then the rest
	digits := inner[:len(inner)-1]
	for i := 0; i < len(digits); i += 2 {
		a, b := digits[i]-'0', digits[i+1]-'0'
		if a > 9 || b > 9 {
			r.err = errDER
			return 0
		}
		v[i/2] = int(a)*10 + int(b)
	}
	year, f := v[0]*100+v[1], v[2:]
	if tag == tagUTCTime {
		year, f = v[0]+1900, v[1:]
		if v[0] < 50 {
			year += 100
		}
	}
	return time.Date(year, time.Month(f[0]), f[1], f[2], f[3], f[4], 0, time.UTC).Unix()
}

// serialOf drops the zero that keeps an INTEGER positive.
func serialOf(v []byte) []byte {
	if len(v) > 1 && v[0] == 0 {
		return v[1:]
	}
	return v
}

// signed is SEQUENCE { tbs, algorithm, signature }: RFC 5280 §4.1.1, §5.1.1.
type signed struct{ tbs, inner, algorithm, signature []byte }

func readSigned(der []byte) (s signed, err error) {
	outer := reader{b: der}
	body, _ := outer.next(tagSequence)
	if outer.err != nil || len(outer.b) > 0 {
		return s, errDER
	}
	r := reader{b: body}
	s.inner, s.tbs = r.next(tagSequence)
	_, s.algorithm = r.next(tagSequence)
	s.signature, _ = r.next(tagBitString)
	if r.err != nil || len(r.b) > 0 || len(s.signature) < 1 || s.signature[0] != 0 {
		return s, errDER
	}
	s.signature = s.signature[1:]
	return s, nil
}

// certificate is what is looked at of one (RFC 5280 §4.1).
type certificate struct {
	signed
	serial, issuer, subject, spki []byte
	ends                          int64 // notAfter, seconds since 1970
	ca                            bool  // RFC 5280 §4.2.1.9
	names                         int   // subject alternative names, RFC 5280 §4.2.1.6
}

func readCertificate(der []byte) (c certificate, err error) {
	if c.signed, err = readSigned(der); err != nil {
		return c, err
	}
	r := reader{b: c.inner}
	if r.is(0xa0) { // version
		r.next(0xa0)
	}
	serial, _ := r.next(tagInteger)
	r.next(tagSequence) // signature
	_, c.issuer = r.next(tagSequence)
	validity, _ := r.next(tagSequence)
	_, c.subject = r.next(tagSequence)
	_, c.spki = r.next(tagSequence)
	v := reader{b: validity, err: r.err}
	v.time()
	c.ends, c.serial = v.time(), serialOf(serial)
	for _, unique := range []byte{0x81, 0x82} { // issuerUniqueID, subjectUniqueID
		if r.is(unique) {
			r.next(unique)
		}
	}
	if r.is(0xa3) {
		inner, _ := r.next(0xa3)
		r.err = extensions(inner, func(id, value []byte) {
			ext := reader{b: value}
			switch string(id) {
			case "\x55\x1d\x13": // id-ce-basicConstraints
				b, _ := ext.next(tagSequence)
				c.ca = bytes.HasPrefix(b, []byte{tagBoolean, 1}) && len(b) > 2 && b[2] != 0
			case "\x55\x1d\x11": // id-ce-subjectAltName
				names, _ := ext.next(tagSequence)
				for len(names) > 0 && ext.err == nil {
					_, _, _, names, ext.err = element(names)
					c.names++
				}
			}
		})
	}
	if r.err != nil || len(r.b) > 0 || v.err != nil || len(v.b) > 0 {
		return c, errDER
	}
	return c, nil
}

// extensions calls fn for each of a list: OID and value (RFC 5280 §4.1.2.9).
func extensions(b []byte, fn func(id, value []byte)) error {
	outer := reader{b: b}
	list, _ := outer.next(tagSequence)
	for l := (reader{b: list, err: outer.err}); len(l.b) > 0; {
		ext, _ := l.next(tagSequence)
		e := reader{b: ext, err: l.err}
		id, _ := e.next(tagOID)
		if e.is(tagBoolean) {
			e.next(tagBoolean)
		}
		value, _ := e.next(tagOctets)
		if e.err != nil {
			return errDER
		}
		fn(id, value)
	}
	return outer.err
}

// crl is what is looked at of one (RFC 5280 §5.1).
type crl struct {
	signed
	issuer []byte
	this   int64
	number []byte // RFC 5280 §5.2.3; nil if there is none
	list   []byte // the entries
}

func readCRL(der []byte) (c crl, err error) {
	if c.signed, err = readSigned(der); err != nil {
		return c, err
	}
	r := reader{b: c.inner}
	r.next(tagInteger) // version
	r.next(tagSequence)
	_, c.issuer = r.next(tagSequence)
	c.this = r.time()
	if r.is(tagUTCTime) || r.is(tagGeneralized) {
		r.time()
	}
	if r.is(tagSequence) {
		c.list, _ = r.next(tagSequence)
	}
	if r.is(0xa0) {
		inner, _ := r.next(0xa0)
		r.err = extensions(inner, func(id, value []byte) {
			if string(id) == "\x55\x1d\x14" { // id-ce-cRLNumber
				n := reader{b: value}
				number, _ := n.next(tagInteger)
				c.number = serialOf(number)
			}
		})
	}
	if r.err != nil || len(r.b) > 0 {
		return c, errDER
	}
	return c, nil
}

// serials calls fn for each serial on the CRL, as its octets.
func (c crl) serials(fn func([]byte)) error {
	for list := (reader{b: c.list}); len(list.b) > 0; {
		entry, _ := list.next(tagSequence)
		e := reader{b: entry, err: list.err}
		serial, _ := e.next(tagInteger)
		if e.err != nil {
			return errDER
		}
		fn(serialOf(serial))
	}
	return nil
}

// algorithms are those that issuers sign with, by the OID (RFC 5758, RFC 4055, RFC 8410).
var algorithms = []struct {
	oid string
	alg x509.SignatureAlgorithm
}{
	{"\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02", x509.ECDSAWithSHA256},
	{"\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x03", x509.ECDSAWithSHA384},
	{"\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x04", x509.ECDSAWithSHA512},
	{"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b", x509.SHA256WithRSA},
	{"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c", x509.SHA384WithRSA},
	{"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0d", x509.SHA512WithRSA},
	{"\x06\x03\x2b\x65\x70", x509.PureEd25519},
}

// pss are the hashes that stand in the parameters of RSASSA-PSS.
var pss = []struct {
	oid string
	alg x509.SignatureAlgorithm
}{
	{"\x60\x86\x48\x01\x65\x03\x04\x02\x01", x509.SHA256WithRSAPSS},
	{"\x60\x86\x48\x01\x65\x03\x04\x02\x02", x509.SHA384WithRSAPSS},
	{"\x60\x86\x48\x01\x65\x03\x04\x02\x03", x509.SHA512WithRSAPSS},
}

// verifiedBy tells whether the key of a certificate made the signature.
func (s signed) verifiedBy(c *x509.Certificate) bool {
	alg := x509.UnknownSignatureAlgorithm
	inner, _ := (&reader{b: s.algorithm}).next(tagSequence)
	for _, a := range algorithms {
		if bytes.HasPrefix(inner, []byte(a.oid)) {
			alg = a.alg
		}
	}
	if bytes.HasPrefix(inner, []byte("\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a")) {
		for _, a := range pss {
			if bytes.Contains(inner, []byte(a.oid)) {
				alg = a.alg
			}
		}
	}
	return c.CheckSignature(alg, s.tbs, s.signature) == nil
}
