-- +goose Up
-- Signatures of documents: each row commits with its done leaf.
CREATE TABLE document_signature (
  done      BIGINT  NOT NULL PRIMARY KEY,
  key_name  TEXT    NOT NULL,
  digest    BYTEA    NOT NULL,        -- SHA-256 of the document
  signed_at BIGINT  NOT NULL,        -- seconds since 1970, as in the signed attributes
  cms       BYTEA    NOT NULL
);
CREATE INDEX document_signature_digest ON document_signature (digest);

-- The present certificate of a key is looked for by the key.
CREATE INDEX certificate_spki ON certificate (spki_hash, not_after);

-- +goose Down
DROP INDEX certificate_spki;
DROP TABLE document_signature;
