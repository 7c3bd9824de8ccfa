-- +goose Up
-- Links by which officers make their passkeys. Times are seconds since 1970.
CREATE TABLE enrolment (
  id         TEXT     NOT NULL PRIMARY KEY,
  secret     BLOB     NOT NULL UNIQUE,        -- SHA-256 of the link's secret
  name       TEXT     NOT NULL,               -- of the officer
  roles      TEXT     NOT NULL,               -- JSON
  made_by    TEXT     NOT NULL,               -- requester
  created    BIGINT   NOT NULL,
  expires    BIGINT   NOT NULL,
  state      TEXT     NOT NULL,               -- open, done, withdrawn
  leaf       BIGINT   NOT NULL DEFAULT 0      -- entry that ended it; 0: it is open
);

CREATE TABLE enrolment_passkey (
  credential BLOB     NOT NULL PRIMARY KEY,   -- its ID
  enrolment  TEXT     NOT NULL REFERENCES enrolment (id),
  spki       BLOB     NOT NULL,               -- DER
  label      TEXT     NOT NULL,
  made       BIGINT   NOT NULL                -- microseconds since 1970
);

-- +goose Down
DROP TABLE enrolment_passkey;
DROP TABLE enrolment;
