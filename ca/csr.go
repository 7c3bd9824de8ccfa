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

// maxExtensions bounds the extensions of a request; those that are allowed are five.
const maxExtensions = 32

var (
	oidExtensionRequest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14} // PKCS #9, RFC 2985 §5.4.2
	oidCommonName       = asn1.ObjectIdentifier{2, 5, 4, 3}
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

// proofs are the signature algorithms that prove possession of the key.
var proofs = []x509.SignatureAlgorithm{x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512, x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA,
	x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS}

// parseCSR reads a PKCS #10 request (RFC 2986) strictly. Subject fields other than
// a CN that repeats a name are dropped, as clients fill them with all sorts of text;
// extensions outside a short list are refused rather than silently left out.
func parseCSR(der []byte, p *Profile) (*csr, error) {
	r, err := readCSR(der, p)
	if err != nil {
		return nil, err
	}
	if err := checkKey("csr.subjectPublicKeyInfo", r.PublicKey, p.Keys); err != nil {
		return nil, err
	}
	if spki, err := x509.MarshalPKIXPublicKey(r.PublicKey); err != nil || !bytes.Equal(spki, r.RawSubjectPublicKeyInfo) {
		return nil, refuse(BadPublicKey, "csr.subjectPublicKeyInfo", "the key is not encoded as RFC 3279 and RFC 5480 say")
	}
	if !slices.Contains(proofs, r.SignatureAlgorithm) {
		return nil, refuse(BadCSR, "csr.signatureAlgorithm", "sign the request with ECDSA or RSA and SHA-256, SHA-384 or SHA-512")
	}
	if err := r.CheckSignature(); err != nil {
		return nil, refuse(BadCSR, "csr.signature", "the request is not signed by the key that it carries (RFC 2986 §4.2)")
	}
	for _, e := range r.Extensions {
		if at, wrong := strictDER(e.Value); wrong != "" {
			return nil, refuse(BadCSR, "csr.extensions", "extension %s is not DER (X.690): %s, at octet %d of its value", e.Id, wrong, at)
		}
		if err := checkExtension(e.Id, e.Value, p); err != nil {
			return nil, err
		}
	}
	c := &csr{CertificateRequest: r, spki: sha256.Sum256(r.RawSubjectPublicKeyInfo)}
	if err := c.readNames(); err != nil {
		return nil, err
	}
	return c, c.readCommonName()
}

// readCSR takes the request apart. Nothing is decided here but the form.
func readCSR(der []byte, p *Profile) (*x509.CertificateRequest, error) {
	if len(der) > maxCSR {
		return nil, refuse(BadCSR, "csr", "it has %d octets, at most %d are read", len(der), maxCSR)
	}
	if at, wrong := strictDER(der); wrong != "" {
		return nil, refuse(BadCSR, "csr", "it is not DER (X.690): %s, at octet %d; make a new one, e.g. with openssl req -new -outform DER", wrong, at)
	}
	spki, err := onceOnly(der)
	if err != nil {
		return nil, err
	}
	r, err := x509.ParseCertificateRequest(der)
	if _, unreadable := x509.ParsePKIXPublicKey(spki); err != nil && unreadable != nil {
		return nil, refuse(BadPublicKey, "csr.subjectPublicKeyInfo", "the key is malformed or of an unknown kind; this profile allows %v", p.Keys)
	}
	if err != nil || r.Version != 0 {
		return nil, refuse(BadCSR, "csr", "it is DER, but no PKCS #10 request (RFC 2986), or its key, subject or names are malformed; make a new one, e.g. with openssl req -new")
	}
	return r, nil
}

// readNames collects the subject alternative names in canonical form, each once, in
// the order dNSName before iPAddress.
func (c *csr) readNames() error {
	if len(c.EmailAddresses) > 0 || len(c.URIs) > 0 {
		return refuse(BadCSR, "csr.subjectAltName", "it asks for e-mail or URI names; allowed: dNSName, iPAddress")
	}
	if n := len(c.DNSNames) + len(c.IPAddresses); n > maxNames {
		return refuse(BadCSR, "csr.subjectAltName", "it asks for %d names, at most %d are allowed in one certificate", n, maxNames)
	}
	for _, d := range c.DNSNames {
		n, err := ParseName(DNS, d)
		if err != nil {
			return asCSR(err)
		}
		c.add(n)
	}
	for _, ip := range c.IPAddresses {
		n, err := ParseName(IP, ip.String())
		if err != nil {
			return asCSR(err)
		}
		c.add(n)
	}
	return nil
}

// maxCommonName is ub-common-name of RFC 5280 appendix A.1.
const maxCommonName = 64

// readCommonName holds the CN, if there is one, against the names. It never makes a
// certificate say more than its subject alternative names.
func (c *csr) readCommonName() error {
	const field = "csr.subject.commonName"
	cns := 0
	for _, a := range c.Subject.Names {
		if a.Type.Equal(oidCommonName) {
			cns++
		}
	}
	cn := c.Subject.CommonName
	switch {
	case cns == 0 || cns == 1 && cn == "":
		return nil
	case cns > 1:
		return refuse(BadCSR, field, "there are %d of them; leave them out or repeat one of the subject alternative names", cns)
	case len(cn) > maxCommonName:
		return refuse(BadCSR, field, "it has %d characters, at most %d are allowed; leave it out", len(cn), maxCommonName)
	}
	n, err := ParseName(DNS, cn)
	if err != nil {
		if n, err = ParseName(IP, cn); err != nil {
			return refuse(BadCSR, field, "it is no name; leave it out or repeat one of the subject alternative names")
		}
	}
	switch {
	case slices.Contains(c.names, n):
		return nil
	case len(c.names) == 0 && n.Kind == DNS:
		c.add(n) // old clients put their only name here (RFC 8555 §7.4)
		return nil
	}
	return refuse(BadCSR, field, "%q is not among the subject alternative names; leave it out or repeat one of them", clip(cn))
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

// checkExtension holds one requested extension against the profile. Whether it is
// marked critical makes no difference: what is allowed is known, all else is refused.
func checkExtension(id asn1.ObjectIdentifier, value []byte, p *Profile) error {
	switch {
	case id.Equal(oidSAN):
		return onlyKnownSANs(value)
	case id.Equal(oidSKI): // computed from the key, whatever is asked for
		return nil
	case id.Equal(oidTLSFeature):
		return nil // certbot and mod_md can ask for must-staple; without an OCSP responder it would break their site, so it is left out
	case id.Equal(oidBasicConstraints):
		if !slices.Contains(noCA, string(value)) {
			return refuse(BadCSR, "csr.basicConstraints", "it asks for a CA certificate or a path length; profile %s issues end-entity certificates", p.Name)
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

// noCA are the encodings of the BasicConstraints of an end entity (RFC 5280 §4.2.1.9):
// the empty SEQUENCE, and the FALSE that some clients write although it is the default.
var noCA = []string{"\x30\x00", "\x30\x03\x01\x01\x00"}

// onceOnly refuses a request with fields that RFC 2986 §4 does not know, which
// crypto/x509 passes over, and one with two extension requests: which of them counts
// would be the parser's choice. It returns the SubjectPublicKeyInfo.
func onceOnly(der []byte) (spki []byte, err error) {
	bad := refuse(BadCSR, "csr", "it is DER, but its fields are not those of a PKCS #10 request (RFC 2986 §4)")
	in := cryptobyte.String(der)
	var request, body, key, attrs cryptobyte.String
	if !in.ReadASN1(&request, cbasn1.SEQUENCE) || !request.ReadASN1(&body, cbasn1.SEQUENCE) || !request.SkipASN1(cbasn1.SEQUENCE) || !request.SkipASN1(cbasn1.BIT_STRING) || !request.Empty() ||
		!body.SkipASN1(cbasn1.INTEGER) || !body.SkipASN1(cbasn1.SEQUENCE) || !body.ReadASN1Element(&key, cbasn1.SEQUENCE) ||
		!body.ReadOptionalASN1(&attrs, nil, cbasn1.Tag(0).ContextSpecific().Constructed()) || !body.Empty() {
		return nil, bad
	}
	requested := false
	for !attrs.Empty() {
		var attr, values, exts cryptobyte.String
		var id asn1.ObjectIdentifier
		if !attrs.ReadASN1(&attr, cbasn1.SEQUENCE) || !attr.ReadASN1ObjectIdentifier(&id) || !attr.ReadASN1(&values, cbasn1.SET) || !attr.Empty() {
			return nil, bad
		}
		if !id.Equal(oidExtensionRequest) {
			continue
		}
		if requested {
			return nil, refuse(BadCSR, "csr.attributes", "there are two extension requests; only one is allowed")
		}
		requested = true
		if !values.ReadASN1(&exts, cbasn1.SEQUENCE) || !values.Empty() {
			return nil, bad
		}
		if err := eachOnce(exts); err != nil {
			return nil, err
		}
	}
	return key, nil
}

// eachOnce refuses a list of extensions (RFC 5280 §4.1) that names one twice.
func eachOnce(exts cryptobyte.String) error {
	seen := map[string]bool{}
	for !exts.Empty() {
		var ext cryptobyte.String
		var id asn1.ObjectIdentifier
		if !exts.ReadASN1(&ext, cbasn1.SEQUENCE) || !ext.ReadASN1ObjectIdentifier(&id) || !ext.SkipOptionalASN1(cbasn1.BOOLEAN) || !ext.SkipASN1(cbasn1.OCTET_STRING) || !ext.Empty() {
			return refuse(BadCSR, "csr.extensions", "the requested extensions cannot be read (RFC 5280 §4.1)")
		}
		if len(seen) == maxExtensions {
			return refuse(BadCSR, "csr.extensions", "there are more than %d extensions", maxExtensions)
		}
		if seen[id.String()] {
			return refuse(BadCSR, "csr.extensions", "extension %s stands there twice", id)
		}
		seen[id.String()] = true
	}
	return nil
}

// onlyKnownSANs refuses kinds of names that crypto/x509 passes over in silence
// (otherName, directoryName, registeredID …).
func onlyKnownSANs(value []byte) error {
	in := cryptobyte.String(value)
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
	return nil
}
