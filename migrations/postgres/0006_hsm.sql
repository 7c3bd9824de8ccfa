-- +goose Up
-- States of keys and members, adopted keys, nonces of ECDSA signatures.
ALTER TABLE hsm_key ADD COLUMN state TEXT NOT NULL DEFAULT 'born';
UPDATE hsm_key SET state = 'usable' WHERE usable = 1;
ALTER TABLE hsm_key DROP COLUMN usable;
ALTER TABLE hsm_key ADD COLUMN adopted TEXT NOT NULL DEFAULT '';   -- JSON: how an adopted key is found; '' if born here
ALTER TABLE hsm_key ADD COLUMN description TEXT NOT NULL DEFAULT '';   -- free text for people
ALTER TABLE hsm_key ADD COLUMN confined SMALLINT NOT NULL DEFAULT 0; -- 1: only on the members that were named at its birth
ALTER TABLE hsm_member ADD COLUMN replication TEXT NOT NULL DEFAULT 'wrap';
ALTER TABLE hsm_member ADD COLUMN standing TEXT NOT NULL DEFAULT 'active';

-- What r an ECDSA key has used, and for which message: SHA-256 of each, cut to 16
-- octets. A second message under one r gives the private key away.
CREATE TABLE hsm_nonce (
  spki_hash  BYTEA NOT NULL,
  r          BYTEA NOT NULL,
  message    BYTEA NOT NULL,
  PRIMARY KEY (spki_hash, r)
);

-- SO PINs that officers hold in shares; each share is sealed to its officer.
CREATE TABLE hsm_share (
  member     TEXT     NOT NULL,
  current    SMALLINT NOT NULL,               -- 1 in force; 0 the next one, if a crash came while it was put into force
  data       TEXT     NOT NULL,               -- JSON
  PRIMARY KEY (member, current)
);

-- +goose Down
DROP TABLE hsm_share;
DROP TABLE hsm_nonce;
ALTER TABLE hsm_member DROP COLUMN standing;
ALTER TABLE hsm_member DROP COLUMN replication;
ALTER TABLE hsm_key DROP COLUMN description;
ALTER TABLE hsm_key DROP COLUMN confined;
ALTER TABLE hsm_key DROP COLUMN adopted;
ALTER TABLE hsm_key ADD COLUMN usable SMALLINT NOT NULL DEFAULT 0;
UPDATE hsm_key SET usable = 1 WHERE state = 'usable';
ALTER TABLE hsm_key DROP COLUMN state;
