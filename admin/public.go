package admin

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"fmt"

	"chancery/audit"
)

// ParseOfficer makes an officer of a name and the DER of a P-256 public key
// (SubjectPublicKeyInfo, RFC 5280 §4.1.2.7).
func ParseOfficer(name string, spki []byte) (Officer, error) {
	if name == "" || audit.Text(name, 64) != name {
		return Officer{}, fmt.Errorf("officer name %q: 1 to 64 octets of plain text, please", name)
	}
	pub, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return Officer{}, fmt.Errorf("officer %s: %w", name, err)
	}
	if k, ok := pub.(*ecdsa.PublicKey); !ok || k.Curve != elliptic.P256() {
		return Officer{}, fmt.Errorf("officer %s: the key must be ECDSA P-256", name)
	}
	return Officer{Name: name, SPKI: spki}, nil
}
