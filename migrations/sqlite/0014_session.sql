-- +goose Up
-- Sessions of the console, for all nodes. Times are microseconds since 1970.
CREATE TABLE console_session (
  id         BLOB     NOT NULL PRIMARY KEY,   -- SHA-256 of what the browser has
  kind       TEXT     NOT NULL,               -- officer, oidc
  subject    TEXT     NOT NULL,               -- the officer's name, or the provider's subject
  credential BLOB     NOT NULL,               -- ID of the passkey
  entry      BLOB     NOT NULL,               -- digest of the officer's entry on the roster
  created    BIGINT   NOT NULL,
  seen       BIGINT   NOT NULL,
  stepped    BIGINT   NOT NULL,               -- last proof that the person is there
  form       TEXT     NOT NULL,               -- token of its forms
  roles      TEXT     NOT NULL,               -- JSON; '' for officers
  op         BLOB     NOT NULL                -- of its entries in the ledger
);
CREATE INDEX console_session_seen ON console_session (seen);

-- Challenges that were answered, until nobody takes them anyway.
CREATE TABLE console_challenge (
  hash       BLOB     NOT NULL PRIMARY KEY,
  expires    BIGINT   NOT NULL                -- seconds since 1970
);

-- +goose Down
DROP TABLE console_challenge;
DROP TABLE console_session;
