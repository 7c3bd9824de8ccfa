-- +goose Up
-- Keys of the cluster, issuers, serials, certificates, revocations, CRLs.
-- Times are seconds since 1970. "issuer" is the SHA-256 of the issuer's SPKI.
CREATE TABLE hsm_key (
  id         BYTEA     NOT NULL PRIMARY KEY,   -- CKA_ID
  name       TEXT     NOT NULL UNIQUE,
  purpose    SMALLINT NOT NULL,
  algorithm  TEXT     NOT NULL,
  spki       BYTEA     NOT NULL,
  spki_hash  BYTEA     NOT NULL UNIQUE,
  subject    BYTEA,                            -- issuer name DER of an issuer key
  origin     TEXT     NOT NULL,               -- member of birth
  members    TEXT     NOT NULL,               -- names of the members that hold a copy, by comma
  birth      BIGINT   NOT NULL,               -- leaf of the birth
  usable     SMALLINT NOT NULL                -- 1 once proved on every member
);

CREATE TABLE hsm_member (
  name       TEXT     NOT NULL PRIMARY KEY,
  serial     TEXT     NOT NULL UNIQUE,        -- token serial number
  label      TEXT     NOT NULL,
  leaf       BIGINT   NOT NULL                -- leaf of its joining
);

CREATE TABLE issuer (
  name       TEXT     NOT NULL PRIMARY KEY,
  spki_hash  BYTEA     NOT NULL UNIQUE,
  key_name   TEXT     NOT NULL,
  parent     TEXT     NOT NULL,               -- name of the issuer of its certificate; its own for a root
  der        BYTEA     NOT NULL,
  crl_number BIGINT   NOT NULL,               -- last number given to an intent
  crl_this   BIGINT   NOT NULL,               -- thisUpdate of that number
  crl_next   BIGINT   NOT NULL,               -- nextUpdate of the CRL below
  crl_cover  BIGINT   NOT NULL,               -- ledger size that the CRL below covers
  crl        BYTEA                             -- newest signed CRL
);

-- Every serial that an intent ever named. The key makes a second use impossible.
CREATE TABLE serial (
  issuer     BYTEA     NOT NULL,
  serial     BYTEA     NOT NULL,
  intent     BIGINT   NOT NULL,
  not_after  BIGINT   NOT NULL,
  PRIMARY KEY (issuer, serial)
);

CREATE TABLE certificate (
  issuer     BYTEA     NOT NULL,
  serial     BYTEA     NOT NULL,
  done       BIGINT   NOT NULL UNIQUE,        -- leaf that closes the intent
  intent     BIGINT   NOT NULL UNIQUE,
  profile    TEXT     NOT NULL,
  requester  TEXT     NOT NULL,
  names      TEXT     NOT NULL,               -- kind:value, by comma
  not_before BIGINT   NOT NULL,
  not_after  BIGINT   NOT NULL,
  spki_hash  BYTEA     NOT NULL,
  der        BYTEA     NOT NULL,
  PRIMARY KEY (issuer, serial)
);
CREATE INDEX certificate_serial ON certificate (serial);
CREATE INDEX certificate_not_after ON certificate (not_after);

CREATE TABLE revocation (
  issuer     BYTEA     NOT NULL,
  serial     BYTEA     NOT NULL,
  leaf       BIGINT   NOT NULL,
  reason     SMALLINT NOT NULL,
  revoked_at BIGINT   NOT NULL,
  not_after  BIGINT   NOT NULL,
  PRIMARY KEY (issuer, serial)
);
CREATE INDEX revocation_not_after ON revocation (issuer, not_after);

-- Small values that must survive a restart: the nonce key, the hash of the admin token.
CREATE TABLE setting (
  name       TEXT     NOT NULL PRIMARY KEY,
  value      BYTEA     NOT NULL
);

-- +goose Down
DROP TABLE setting;
DROP TABLE revocation;
DROP TABLE certificate;
DROP TABLE serial;
DROP TABLE issuer;
DROP TABLE hsm_member;
DROP TABLE hsm_key;
