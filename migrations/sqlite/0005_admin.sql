-- +goose Up
-- Officers and what they decide. Times are seconds since 1970.
CREATE TABLE roster (
  id         INTEGER  NOT NULL PRIMARY KEY CHECK (id = 1),
  quorum     SMALLINT NOT NULL
);

CREATE TABLE officer (
  name       TEXT     NOT NULL PRIMARY KEY,
  spki       BLOB     NOT NULL UNIQUE         -- P-256, DER
);

CREATE TABLE proposal (
  hash       BLOB     NOT NULL PRIMARY KEY,   -- H("proposal", proposal)
  id         TEXT     NOT NULL UNIQUE,        -- first 16 hex digits of it
  leaf       BIGINT   NOT NULL UNIQUE,
  state      TEXT     NOT NULL,
  expires    BIGINT   NOT NULL,
  proposal   BLOB     NOT NULL,
  parameters BLOB     NOT NULL,               -- canonical JSON
  signature  BLOB,                            -- of the officer who asked
  votes      SMALLINT NOT NULL,
  grant_hash BLOB     UNIQUE,                 -- from here on: once it is approved
  grant_leaf BIGINT   UNIQUE,
  node       TEXT     NOT NULL,
  end_leaf   BIGINT   UNIQUE,                 -- once it has ended
  result     BLOB,                            -- JSON
  reason     TEXT     NOT NULL
);
CREATE INDEX proposal_state ON proposal (state, leaf);

-- An officer has one vote, by name and by key.
CREATE TABLE vote (
  leaf       BIGINT   NOT NULL PRIMARY KEY,
  proposal   BLOB     NOT NULL REFERENCES proposal (hash),
  officer    TEXT     NOT NULL,
  spki       BLOB     NOT NULL,
  decision   SMALLINT NOT NULL,               -- 1 approve, 2 reject
  signature  BLOB     NOT NULL,
  UNIQUE (proposal, officer),
  UNIQUE (proposal, spki)
);

-- +goose Down
DROP TABLE vote;
DROP TABLE proposal;
DROP TABLE officer;
DROP TABLE roster;
