package signing

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/sassoftware/relic/v8/lib/pkcs7"

	"chancery/audit"
	"chancery/ca"
	"chancery/hsmstore"
)

// Sentinels to branch on.
var (
	// ErrNoKey: there is no document key of that name.
	ErrNoKey = errors.New("no such document key")
)

// Keys finds keys of the cluster by name.
type Keys interface {
	Key(name string) (*hsmstore.Key, error)
}

// Certifier gives the present certificate of a key of the cluster.
type Certifier interface {
	CertificateFor(ctx context.Context, key, profile string) (*ca.Certificate, error)
}

// Config is what a [Signer] works with.
type Config struct {
	Keys   Keys
	CA     Certifier
	Ledger *audit.Ledger
	API    string           // base of the HTTPS URLs in receipts
	Now    func() time.Time // nil: time.Now
}

// Signer signs documents.
type Signer struct{ cfg Config }

// New makes a signer.
func New(cfg Config) *Signer {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Signer{cfg}
}

// Request asks for the signature of one document.
type Request struct {
	Key       string   // name of a document key
	Digest    [32]byte // SHA-256 of the document
	Requester string   // pseudonym, stands in the ledger
	Client    string   // address of who asks, or ""; the ledger commits to it
}

// Signature is a finished signature.
type Signature struct {
	CMS     []byte // DER of a detached SignedData (RFC 5652 §5.1)
	Time    time.Time
	Receipt audit.Receipt
}

// PutSignature commits with the done leaf of a document's signature.
type PutSignature struct {
	Key    string
	Digest [32]byte // SHA-256 of the document
	CMS    []byte
	At     time.Time
}

// Projection marks it as a row that commits with a leaf.
func (PutSignature) Projection() {}

// DocumentProfile is the profile of a document key's certificate.
const DocumentProfile = "document-signing"

// oidSigningCertificateV2 binds the signature to its certificate (RFC 5035 §3).
var oidSigningCertificateV2 = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 2, 47}

// unsigned stands in for the key while the attributes are built: it has the real
// public key and puts an empty signature where the real one will be.
type unsigned struct{ pub crypto.PublicKey }

func (u unsigned) Public() crypto.PublicKey { return u.pub }

func (unsigned) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) { return []byte{}, nil }

// SignCMS signs a document by its digest. When it returns nil, signature and done
// leaf are durable. Errors: ErrNoKey; hsmstore.ErrUnavailable, hsmstore.ErrBusy,
// audit.ErrUnavailable, audit.ErrBusy (try later).
func (s *Signer) SignCMS(ctx context.Context, r Request) (*Signature, error) {
	// 1. The key, and its certificate of this CA.
	key, err := s.cfg.Keys.Key(r.Key)
	if err != nil || key.Purpose() != audit.PurposeDocument {
		return nil, fmt.Errorf("%w: %.64q", ErrNoKey, r.Key)
	}
	cert, err := s.cfg.CA.CertificateFor(ctx, r.Key, DocumentProfile)
	if err != nil {
		return nil, fmt.Errorf("certificate of key %s: %w", r.Key, err)
	}
	// 2. The signed attributes, built here around the digest.
	now := s.cfg.Now().UTC().Truncate(time.Second)
	signed, attrs, err := build(key.Public(), cert, r.Digest, now)
	if err != nil {
		return nil, err
	}
	// 3. Through the door.
	op, err := key.Begin(ctx, hsmstore.SignRequest{Op: audit.OpCMS, Message: attrs, Evidence: r.Digest, Requester: r.Requester, Class: hsmstore.ClassBulk,
		Private: []audit.Private{{Tag: audit.TagAddress, Value: r.Client}}})
	if err != nil {
		return nil, err
	}
	defer op.Close() // without Commit: failed or orphan; the signature is never released
	if signed.Content.SignerInfos[0].EncryptedDigest, err = op.SignMessage(rand.Reader, attrs, crypto.SHA256); err != nil {
		return nil, fmt.Errorf("signing a document: %w", err)
	}
	der, err := signed.Marshal()
	if err != nil {
		return nil, fmt.Errorf("encoding the signature: %w", err)
	}
	// 4. Read back as a verifier would.
	if _, err := parse(der, r.Digest); err != nil {
		return nil, fmt.Errorf("reading back the signature: %w", err)
	}
	done, err := op.Commit(ctx, audit.Done{Artefact: sha256.Sum256(der)}, PutSignature{Key: r.Key, Digest: r.Digest, CMS: der, At: now})
	if err != nil {
		return nil, fmt.Errorf("recording the signature: %w", err)
	}
	return &Signature{CMS: der, Time: now, Receipt: audit.Receipt{Origin: s.cfg.Ledger.Origin(), Index: done.Index, Leaf: done.Bytes, ProofURL: fmt.Sprintf("%s/ledger/proof/%d", s.cfg.API, done.Index)}}, nil
}

// build makes the SignedData without its signature, and the DER of its signed
// attributes with the SET OF tag, over which the signature goes (RFC 5652 §5.4).
func build(pub crypto.PublicKey, cert *ca.Certificate, digest [32]byte, at time.Time) (*pkcs7.ContentInfoSignedData, []byte, error) {
	var chain []*x509.Certificate
	for _, der := range append([][]byte{cert.DER}, cert.Chain...) {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, nil, fmt.Errorf("reading the chain: %w", err)
		}
		chain = append(chain, c)
	}
	b := pkcs7.NewBuilder(unsigned{pub}, chain, crypto.SHA256)
	sum := sha256.Sum256(cert.DER)
	// SigningCertificateV2 with one ESSCertIDv2; SHA-256 is the default and left out (RFC 5035 §4).
	type essCertIDv2 struct{ Hash []byte }
	err := errors.Join(
		b.SetDetachedContent(pkcs7.OidData, digest[:]),
		b.AddAuthenticatedAttribute(pkcs7.OidAttributeSigningTime, at),
		b.AddAuthenticatedAttribute(oidSigningCertificateV2, struct{ Certs []essCertIDv2 }{[]essCertIDv2{{sum[:]}}}),
	)
	if err != nil {
		return nil, nil, fmt.Errorf("building signed attributes: %w", err)
	}
	signed, err := b.Sign()
	if err != nil {
		return nil, nil, fmt.Errorf("building signed attributes: %w", err)
	}
	if err := sortDER(signed.Content.SignerInfos[0].AuthenticatedAttributes); err != nil {
		return nil, nil, err
	}
	attrs, err := signed.Content.SignerInfos[0].AuthenticatedAttributesBytes()
	if err != nil {
		return nil, nil, fmt.Errorf("encoding signed attributes: %w", err)
	}
	return signed, attrs, nil
}

// sortDER puts attributes into the order of DER's SET OF (X.690 §11.6); the library
// leaves them as they were added, and verifiers that encode anew would see other bytes.
func sortDER(attrs pkcs7.AttributeList) error {
	encoded := make(map[string][]byte, len(attrs))
	for _, a := range attrs {
		b, err := asn1.Marshal(a)
		if err != nil {
			return fmt.Errorf("encoding signed attributes: %w", err)
		}
		encoded[a.Type.String()] = b // each type stands there once
	}
	slices.SortFunc(attrs, func(a, b pkcs7.Attribute) int {
		return bytes.Compare(encoded[a.Type.String()], encoded[b.Type.String()])
	})
	return nil
}
