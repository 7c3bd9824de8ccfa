package ca

import (
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"time"

	"chancery/audit"
)

// Profile is what a kind of certificate looks like.
type Profile struct {
	Name        string
	Keys        []KeyAlgorithm // public keys that may be certified
	Validity    time.Duration  // from notBefore to notAfter, both included (RFC 5280 §4.1.2.5)
	KeyUsage    x509.KeyUsage
	ExtKeyUsage []x509.ExtKeyUsage
	Kinds       []NameKind // kinds of subject alternative names
	Wildcards   bool

	allowedEKU []asn1.ObjectIdentifier // what a CSR may ask for in vain or not
	otherEKU   []asn1.ObjectIdentifier // usages that crypto/x509 has no name for
	clusterKey bool                    // for keys of the cluster only, never for a request
	isCA       bool
	maxPathLen int // with isCA; -1: no limit
}

const day = 24 * time.Hour

// maxBackdate is how far notBefore lies before the time of issue, for clients whose clocks are late.
const maxBackdate = 5 * time.Minute

var leafKeys = []KeyAlgorithm{"P-256", "P-384", "P-521", "RSA-2048", "RSA-3072", "RSA-4096"}

var (
	oidServerAuth = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 1}
	oidClientAuth = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 2}

	oidDocumentSigning = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 36} // RFC 9336 §3.1
)

// profiles are the shipped profiles by name. Validity is inclusive of both ends: 90
// days last from notBefore to notBefore + 90 d - 1 s.
var profiles = map[string]*Profile{
	"tls-server": {
		Name: "tls-server", Keys: leafKeys, Validity: 90 * day, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, Kinds: []NameKind{DNS, IP}, Wildcards: true,
		// clients commonly ask for both usages (certbot's and cert-manager's CSRs); the certificate carries serverAuth alone
		allowedEKU: []asn1.ObjectIdentifier{oidServerAuth, oidClientAuth},
	},
	"tls-client": { // machines that come to the admin door, and whatever else checks client certificates
		Name: "tls-client", Keys: leafKeys, Validity: 90 * day, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, Kinds: []NameKind{DNS, IP},
		allowedEKU: []asn1.ObjectIdentifier{oidServerAuth, oidClientAuth},
	},
	"document-signing": {
		Name: "document-signing", Keys: []KeyAlgorithm{"P-256", "P-384", "RSA-3072", "RSA-4096"}, Validity: 365 * day,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment, otherEKU: []asn1.ObjectIdentifier{oidDocumentSigning}, clusterKey: true,
	},
	"root": {
		Name: "root", Keys: []KeyAlgorithm{"P-384", "P-256", "RSA-3072", "RSA-4096"}, Validity: 20 * 365 * day,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, isCA: true, maxPathLen: -1,
	},
	"issuing": {
		Name: "issuing", Keys: []KeyAlgorithm{"P-256", "P-384", "RSA-3072", "RSA-4096"}, Validity: 5 * 365 * day,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, isCA: true, maxPathLen: 0,
	},
}

// digest names exactly this content of a profile in the ledger.
func (p *Profile) digest() [32]byte {
	b, err := json.Marshal(struct {
		*Profile
		AllowedEKU, OtherEKU []asn1.ObjectIdentifier
		ClusterKey, IsCA     bool
		MaxPathLen           int
	}{p, p.allowedEKU, p.otherEKU, p.clusterKey, p.isCA, p.maxPathLen})
	if err != nil {
		panic("ca: profile cannot be encoded: " + err.Error()) // plain data
	}
	return audit.Digest("profile", b)
}
