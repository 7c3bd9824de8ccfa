package signing

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"time"

	"github.com/sassoftware/relic/v8/lib/pkcs7"
)

// ErrInvalid is wrapped by every refusal of a signature.
var ErrInvalid = errors.New("signature is not valid")

// Verified is what a valid signature says.
type Verified struct {
	Signer *x509.Certificate
	Time   time.Time // as claimed by the signer
}

// Verify checks a detached CMS signature over the document with the given digest:
// signature, digest, the bound certificate and its chain to one of the roots at the
// claimed time. Errors wrap [ErrInvalid].
func Verify(der []byte, digest [32]byte, roots *x509.CertPool) (*Verified, error) {
	s, err := parse(der, digest)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	var at time.Time
	if err := s.SignerInfo.AuthenticatedAttributes.GetOne(pkcs7.OidAttributeSigningTime, &at); err != nil {
		return nil, fmt.Errorf("%w: it claims no time: %w", ErrInvalid, err)
	}
	pool := x509.NewCertPool()
	for _, c := range s.Intermediates {
		pool.AddCert(c)
	}
	_, err = s.Certificate.Verify(x509.VerifyOptions{Roots: roots, Intermediates: pool, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil, fmt.Errorf("%w: its certificate: %w", ErrInvalid, err)
	}
	if !documentSigner(s.Certificate) {
		return nil, fmt.Errorf("%w: its certificate is not for documents", ErrInvalid)
	}
	return &Verified{Signer: s.Certificate, Time: at}, nil
}

// documentSigner tells whether a certificate is for signing documents (RFC 9336 §3.2).
func documentSigner(c *x509.Certificate) bool {
	for _, u := range c.UnknownExtKeyUsage {
		if u.Equal(OIDDocumentSigning) {
			return c.KeyUsage&x509.KeyUsageDigitalSignature != 0
		}
	}
	return false
}

// OIDDocumentSigning is id-kp-documentSigning (RFC 9336 §3.1).
var OIDDocumentSigning = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 36}

// parse reads a detached SignedData with one signer, checks that it is over the
// digest, and verifies the signature with the certificate that the signature itself
// is bound to.
func parse(der []byte, digest [32]byte) (*pkcs7.Signature, error) {
	p, err := pkcs7.Unmarshal(der)
	if err != nil {
		return nil, fmt.Errorf("no CMS SignedData: %w", err)
	}
	if len(p.Content.SignerInfos) != 1 {
		return nil, fmt.Errorf("%d signers, one is expected", len(p.Content.SignerInfos))
	}
	certs, err := p.Content.Certificates.Parse()
	if err != nil {
		return nil, fmt.Errorf("certificates: %w", err)
	}
	si := &p.Content.SignerInfos[0]
	cert, err := si.FindCertificate(certs)
	if err != nil {
		return nil, err
	}
	// The attributes' digest first: what follows verifies the attributes alone.
	var md []byte
	if err := si.AuthenticatedAttributes.GetOne(pkcs7.OidAttributeMessageDigest, &md); err != nil {
		return nil, fmt.Errorf("message digest: %w", err)
	}
	if !bytes.Equal(md, digest[:]) {
		return nil, errors.New("the document is another one, or was changed")
	}
	var bound struct {
		Certs []struct{ Hash []byte }
	}
	if err := si.AuthenticatedAttributes.GetOne(oidSigningCertificateV2, &bound); err != nil || len(bound.Certs) != 1 {
		return nil, errors.New("it is not bound to a certificate (RFC 5035)")
	}
	if sum := sha256.Sum256(cert.Raw); !bytes.Equal(bound.Certs[0].Hash, sum[:]) {
		return nil, errors.New("it is bound to another certificate")
	}
	attrs, err := si.AuthenticatedAttributesBytes()
	if err != nil {
		return nil, err
	}
	alg := x509.ECDSAWithSHA256
	if cert.PublicKeyAlgorithm == x509.RSA {
		alg = x509.SHA256WithRSA
	}
	if err := cert.CheckSignature(alg, attrs, si.EncryptedDigest); err != nil {
		return nil, err
	}
	return &pkcs7.Signature{SignerInfo: si, Certificate: cert, Intermediates: certs}, nil
}
