-- +goose Up
-- ACME (RFC 8555): accounts, orders, authorizations, challenges. Ids are 128 random
-- bits in base64url. Times are microseconds since 1970.
CREATE TABLE acme_account (
  id           TEXT     NOT NULL PRIMARY KEY,
  thumbprint   TEXT     NOT NULL UNIQUE,     -- RFC 7638
  jwk          BYTEA     NOT NULL,
  contact      TEXT     NOT NULL,            -- JSON list
  status       TEXT     NOT NULL,
  terms_agreed SMALLINT NOT NULL,
  created      BIGINT   NOT NULL
);

CREATE TABLE acme_order (
  id       TEXT   NOT NULL PRIMARY KEY,
  account  TEXT   NOT NULL,
  status   TEXT   NOT NULL,
  names    TEXT   NOT NULL,                  -- kind:value, by comma
  authzs   TEXT   NOT NULL,                  -- ids by comma, one per name; never changes
  created  BIGINT NOT NULL,
  expires  BIGINT NOT NULL,
  csr      BYTEA,                             -- from processing on
  serial   TEXT   NOT NULL,                  -- of the attempt under way or the certificate, or ''
  error    TEXT   NOT NULL                   -- problem document, or ''
);
CREATE INDEX acme_order_account ON acme_order (account, created, id);
CREATE INDEX acme_order_open ON acme_order (account, expires, status, length(authzs)) WHERE status IN ('pending', 'ready');
CREATE INDEX acme_order_stale ON acme_order (expires) WHERE status IN ('pending', 'ready', 'invalid');
CREATE INDEX acme_order_processing ON acme_order (created) WHERE status = 'processing';

CREATE TABLE acme_authz (
  id       TEXT   NOT NULL PRIMARY KEY,
  account  TEXT   NOT NULL,
  name     TEXT   NOT NULL,                  -- kind:value
  status   TEXT   NOT NULL,
  created  BIGINT NOT NULL,
  expires  BIGINT NOT NULL
);
CREATE INDEX acme_authz_reuse ON acme_authz (account, name, expires) WHERE status = 'valid';

-- Which orders a change of an authorization concerns.
CREATE TABLE acme_order_authz (
  order_id  TEXT NOT NULL,
  authz     TEXT NOT NULL,
  PRIMARY KEY (order_id, authz)
);
CREATE INDEX acme_order_authz_authz ON acme_order_authz (authz);

CREATE TABLE acme_challenge (
  id        TEXT   NOT NULL PRIMARY KEY,
  authz     TEXT   NOT NULL,
  type      TEXT   NOT NULL,
  token     TEXT   NOT NULL,
  status    TEXT   NOT NULL,
  validated BIGINT NOT NULL,                 -- 0: never
  error     TEXT   NOT NULL
);
CREATE INDEX acme_challenge_authz ON acme_challenge (authz);
CREATE INDEX acme_challenge_processing ON acme_challenge (id) WHERE status = 'processing';

-- +goose Down
DROP TABLE acme_challenge;
DROP TABLE acme_order_authz;
DROP TABLE acme_authz;
DROP TABLE acme_order;
DROP TABLE acme_account;
