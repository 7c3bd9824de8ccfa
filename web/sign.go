package web

import (
	"context"
	"encoding/hex"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/labstack/echo/v4"

	"chancery/admin"
	"chancery/audit"
	"chancery/signing"
)

// Documents signs documents by their digest.
type Documents interface {
	// SignCMS returns a signature only once it is durable and on the ledger. Errors:
	// signing.ErrNoKey, and the sentinels of audit and hsmstore.
	SignCMS(ctx context.Context, r signing.Request) (*signing.Signature, error)
}

// defaultKey is the document key that a request without a name means.
const defaultKey = "document"

// signRequest is the body of POST /api/v1/sign/cms. The document stays where it is.
type signRequest struct {
	SHA256 string `json:"sha256"` // of the document, hex
	Key    string `json:"key"`    // name of a document key; "": document
}

type signature struct {
	CMS      []byte    `json:"cms"`       // DER of a detached SignedData
	SignedAt time.Time `json:"signed_at"` // as in the signed attributes
	Receipt  receipt   `json:"receipt"`
}

// signCMS is POST /api/v1/sign/cms.
func (s *Server) signCMS(c echo.Context) error {
	var body signRequest
	if err := readJSON(c, &body); err != nil {
		return err
	}
	digest, err := hex.DecodeString(body.SHA256)
	if err != nil || len(digest) != 32 {
		return problemf(badDigest, "sha256 must be the SHA-256 of the document: 64 hex digits, as sha256sum prints them").at("/sha256", "")
	}
	if body.Key == "" {
		body.Key = defaultKey
	}
	if err := require(c, admin.SignDocuments, admin.Resource{Key: body.Key}); err != nil {
		return err
	}
	ctx, cancel := carryThrough(c)
	defer cancel()
	sig, err := s.cfg.Documents.SignCMS(ctx, signing.Request{Key: body.Key, Digest: [32]byte(digest), Requester: requester(c), Client: client(c)})
	if errors.Is(err, signing.ErrNoKey) {
		s.cfg.Refused(audit.Refusal{Kind: "api:no-key", Detail: "/key", Client: client(c)})
		return problemf(notFound, "there is no document key %s; leave key out to use the default one", quote(body.Key)).at("/key", "")
	}
	if err != nil {
		return err
	}
	return writeJSON(c, http.StatusCreated, signature{CMS: sig.CMS, SignedAt: sig.Time, Receipt: receipt{
		Origin: sig.Receipt.Origin, Index: sig.Receipt.Index, Leaf: sig.Receipt.Leaf, ProofURL: sig.Receipt.ProofURL}})
}

// leafProof is GET /ledger/proof/{index}: the proof of any entry, for who may see the ledger.
func (s *Server) leafProof(c echo.Context) error {
	text := param(c, "index", "")
	index, err := strconv.ParseUint(text, 10, 63)
	if err != nil || strconv.FormatUint(index, 10) != text {
		return problemf(notFound, "%s is no index; write the decimal number of an entry", quote(text)).at("", "index")
	}
	proof, err := s.cfg.LeafProof(c.Request().Context(), index)
	if err != nil {
		return err
	}
	return serve(c, "text/plain; charset=utf-8", proof, time.Time{}, 0)
}
