-- +goose Up
-- Backup recipients, and the keys that are wrapped to them.
CREATE TABLE hsm_recipient (
  name       TEXT     NOT NULL PRIMARY KEY,
  serial     TEXT     NOT NULL,               -- token serial number
  label      TEXT     NOT NULL,
  removed    SMALLINT NOT NULL,               -- 1: no new keys are wrapped to it
  leaf       BIGINT   NOT NULL                -- leaf of its designation
);

CREATE TABLE hsm_backup (
  key_id     BLOB     NOT NULL,               -- CKA_ID, as in hsm_key
  recipient  TEXT     NOT NULL,
  way        SMALLINT NOT NULL,               -- how it is wrapped
  kek        TEXT     NOT NULL,               -- JSON: the key on the token that unwraps it
  blob       BLOB     NOT NULL,
  leaf       BIGINT   NOT NULL,
  PRIMARY KEY (key_id, recipient)
);

-- +goose Down
DROP TABLE hsm_backup;
DROP TABLE hsm_recipient;
