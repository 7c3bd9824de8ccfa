package ca

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// maxCSR bounds a certification request in octets.
const maxCSR = 64 << 10

// maxNames bounds the names of one certificate.
const maxNames = 100

var (
	oidExtensionRequest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14} // PKCS #9, RFC 2985 §5.4.2
	oidSAN              = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidBasicConstraints = asn1.ObjectIdentifier{2, 5, 29, 19}
	oidKeyUsage         = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidExtKeyUsage      = asn1.ObjectIdentifier{2, 5, 29, 37}
	oidSKI              = asn1.ObjectIdentifier{2, 5, 29, 14}
	oidTLSFeature       = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24} // must-staple, RFC 7633
)

// csr is what a certification request may contribute to a certificate: its public
// key, proved by its signature, and the names that it asks for.
type csr struct {
	*x509.CertificateRequest
	names []Name
	spki  [32]byte
}

// parseCSR reads a PKCS #10 request (RFC 2986) strictly. Subject fields other than
// a CN that repeats a name are dropped, as clients fill them with all sorts of text;
// extensions outside a short list are refused rather than silently left out.
func parseCSR(der []byte, p *Profile) (*csr, error) {
	if len(der) > maxCSR {
		return nil, refuse(BadCSR, "csr", "it has %d octets, at most %d are read", len(der), maxCSR)
	}
	r, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, refuse(BadCSR, "csr", "it is no DER-encoded PKCS #10 request (RFC 2986); make a new one, e.g. with openssl req -new")
	}
	if err := onceOnly(r.RawTBSCertificateRequest); err != nil {
		return nil, err
	}
	if err := checkKey(r.PublicKey, p.Keys); err != nil {
		return nil, err
	}
	if err := r.CheckSignature(); err != nil {
		return nil, refuse(BadCSR, "csr.signature", "the request is not signed by the key that it carries (RFC 2986 §4.2)")
	}
	for _, e := range r.Extensions {
		if err := checkExtension(e.Id, e.Value, e.Critical, p); err != nil {
			return nil, err
		}
	}
	if len(r.EmailAddresses) > 0 || len(r.URIs) > 0 {
		return nil, refuse(BadCSR, "csr.subjectAltName", "it asks for e-mail or URI names; profile %s allows dns and ip", p.Name)
	}
	if err := onlyKnownSANs(r); err != nil {
		return nil, err
	}
	c := &csr{CertificateRequest: r, spki: sha256.Sum256(r.RawSubjectPublicKeyInfo)}
	if len(r.DNSNames)+len(r.IPAddresses) > maxNames {
		return nil, refuse(BadCSR, "csr.subjectAltName", "it asks for %d names, at most %d are allowed in one certificate", len(r.DNSNames)+len(r.IPAddresses), maxNames)
	}
	for _, d := range r.DNSNames {
		n, err := ParseName(DNS, d)
		if err != nil {
			return nil, asCSR(err)
		}
		c.add(n)
	}
	for _, ip := range r.IPAddresses {
		n, err := ParseName(IP, ip.String())
		if err != nil {
			return nil, asCSR(err)
		}
		c.add(n)
	}
	if cn := r.Subject.CommonName; cn != "" {
		n, err := ParseName(DNS, cn)
		if err != nil {
			if n, err = ParseName(IP, cn); err != nil {
				return nil, refuse(BadCSR, "csr.subject.commonName", "it is no name; leave it out or repeat one of the subject alternative names")
			}
		}
		if len(c.names) == 0 {
			c.add(n) // old clients put their only name here (RFC 8555 §7.4)
		} else if !slices.Contains(c.names, n) {
			return nil, refuse(BadCSR, "csr.subject.commonName", "%q is not among the subject alternative names; leave it out or repeat one of them", clip(cn))
		}
	}
	return c, nil
}

func (c *csr) add(n Name) {
	if !slices.Contains(c.names, n) {
		c.names = append(c.names, n)
	}
}

func asCSR(err error) error {
	if r, ok := err.(*Refusal); ok {
		return &Refusal{Code: BadCSR, Field: "csr.subjectAltName", Detail: r.Detail}
	}
	return err
}

func checkExtension(id asn1.ObjectIdentifier, value []byte, critical bool, p *Profile) error {
	switch {
	case id.Equal(oidSAN), id.Equal(oidSKI), id.Equal(oidTLSFeature):
		return nil
	case id.Equal(oidBasicConstraints):
		var bc struct {
			IsCA    bool `asn1:"optional"`
			PathLen int  `asn1:"optional,default:-1"`
		}
		if rest, err := asn1.Unmarshal(value, &bc); err != nil || len(rest) > 0 || bc.IsCA {
			return refuse(BadCSR, "csr.basicConstraints", "it asks for a CA certificate; profile %s issues end-entity certificates", p.Name)
		}
		return nil
	case id.Equal(oidKeyUsage):
		var bits asn1.BitString
		if rest, err := asn1.Unmarshal(value, &bits); err != nil || len(rest) > 0 {
			return refuse(BadCSR, "csr.keyUsage", "it is no key usage (RFC 5280 §4.2.1.3)")
		}
		if bits.At(5) != 0 || bits.At(6) != 0 {
			return refuse(BadCSR, "csr.keyUsage", "it asks for keyCertSign or cRLSign; profile %s issues end-entity certificates", p.Name)
		}
		return nil
	case id.Equal(oidExtKeyUsage):
		var ekus []asn1.ObjectIdentifier
		if rest, err := asn1.Unmarshal(value, &ekus); err != nil || len(rest) > 0 {
			return refuse(BadCSR, "csr.extKeyUsage", "it is no extended key usage (RFC 5280 §4.2.1.12)")
		}
		for _, e := range ekus {
			if !slices.ContainsFunc(p.allowedEKU, e.Equal) {
				return refuse(BadCSR, "csr.extKeyUsage", "it asks for %s, which profile %s does not give", e, p.Name)
			}
		}
		return nil
	}
	return refuse(BadCSR, "csr.extensions", "extension %s is not allowed in a request; leave it out: the profile decides", id)
}

// onceOnly refuses a request with two extension requests or the same extension
// twice: which of them counts would be the parser's choice.
func onceOnly(tbs []byte) error {
	bad := refuse(BadCSR, "csr.attributes", "attributes cannot be read (RFC 2986 §4.1)")
	in := cryptobyte.String(tbs)
	var body, attrs cryptobyte.String
	var present bool
	if !in.ReadASN1(&body, cbasn1.SEQUENCE) || !body.SkipASN1(cbasn1.INTEGER) || !body.SkipASN1(cbasn1.SEQUENCE) || !body.SkipASN1(cbasn1.SEQUENCE) ||
		!body.ReadOptionalASN1(&attrs, &present, cbasn1.Tag(0).ContextSpecific().Constructed()) || !body.Empty() {
		return bad
	}
	requests, seen := 0, map[string]bool{}
	for !attrs.Empty() {
		var attr, values cryptobyte.String
		var id asn1.ObjectIdentifier
		if !attrs.ReadASN1(&attr, cbasn1.SEQUENCE) || !attr.ReadASN1ObjectIdentifier(&id) || !attr.ReadASN1(&values, cbasn1.SET) || !attr.Empty() {
			return bad
		}
		if !id.Equal(oidExtensionRequest) {
			continue
		}
		if requests++; requests > 1 {
			return refuse(BadCSR, "csr.attributes", "there are two extension requests; only one is allowed")
		}
		var exts cryptobyte.String
		if !values.ReadASN1(&exts, cbasn1.SEQUENCE) || !values.Empty() {
			return bad
		}
		for !exts.Empty() {
			var ext cryptobyte.String
			var id asn1.ObjectIdentifier
			if !exts.ReadASN1(&ext, cbasn1.SEQUENCE) || !ext.ReadASN1ObjectIdentifier(&id) {
				return bad
			}
			if seen[id.String()] {
				return refuse(BadCSR, "csr.extensions", "extension %s stands there twice", id)
			}
			seen[id.String()] = true
		}
	}
	return nil
}

// onlyKnownSANs refuses kinds of names that crypto/x509 passes over in silence
// (otherName, directoryName, registeredID …).
func onlyKnownSANs(r *x509.CertificateRequest) error {
	for _, e := range r.Extensions {
		if !e.Id.Equal(oidSAN) {
			continue
		}
		in := cryptobyte.String(bytes.Clone(e.Value))
		var names cryptobyte.String
		if !in.ReadASN1(&names, cbasn1.SEQUENCE) || !in.Empty() {
			return refuse(BadCSR, "csr.subjectAltName", "it cannot be read (RFC 5280 §4.2.1.6)")
		}
		for !names.Empty() {
			var v cryptobyte.String
			var tag cbasn1.Tag
			if !names.ReadAnyASN1(&v, &tag) || (tag != cbasn1.Tag(2).ContextSpecific() && tag != cbasn1.Tag(7).ContextSpecific()) {
				return refuse(BadCSR, "csr.subjectAltName", "it holds a kind of name that is not allowed; allowed: dNSName, iPAddress")
			}
		}
	}
	return nil
}
