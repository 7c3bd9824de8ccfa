-- +goose Up
-- Access of machines: API tokens and client certificates. Times are seconds since 1970; 0: never.
CREATE TABLE machine (
  id         TEXT     NOT NULL PRIMARY KEY,
  name       TEXT     NOT NULL,
  kind       TEXT     NOT NULL,               -- token, certificate
  secret     BLOB     NOT NULL,               -- SHA-256 of the token's secret or of the certificate's SPKI
  issuer     BLOB     NOT NULL,               -- SHA-256 of the issuer's SPKI
  roles      TEXT     NOT NULL,               -- JSON
  owner      TEXT     NOT NULL,               -- requester
  created    BIGINT   NOT NULL,
  expires    BIGINT   NOT NULL,
  last_used  BIGINT   NOT NULL,
  revoked    BIGINT   NOT NULL
);
CREATE INDEX machine_secret ON machine (secret);

-- +goose Down
DROP TABLE machine;
