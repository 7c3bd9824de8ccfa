-- +goose Up
-- The ledger: leaves, full tiles of the tree, its head, signed checkpoints.
CREATE TABLE ledger_head (
  id     INTEGER PRIMARY KEY CHECK (id = 1),
  size   BIGINT NOT NULL,
  nodes  BLOB   NOT NULL            -- compact range, 32 octets per set bit of size
);
INSERT INTO ledger_head (id, size, nodes) VALUES (1, 0, x'');

CREATE TABLE ledger_leaf (
  idx    BIGINT   NOT NULL PRIMARY KEY,
  kind   SMALLINT NOT NULL,
  closes BIGINT   UNIQUE,           -- index of the intent; an intent is closed once
  leaf   BLOB     NOT NULL
);

-- Intents that nothing closes yet: what a restart has to look at.
CREATE TABLE ledger_open (
  idx    BIGINT NOT NULL PRIMARY KEY,
  node   TEXT   NOT NULL
);
CREATE INDEX ledger_open_node ON ledger_open (node);

CREATE TABLE ledger_tile (
  level  SMALLINT NOT NULL,
  n      BIGINT   NOT NULL,
  data   BLOB     NOT NULL,
  PRIMARY KEY (level, n)
);

CREATE TABLE ledger_checkpoint (
  size   BIGINT NOT NULL PRIMARY KEY,
  body   TEXT   NOT NULL,           -- stored before it is signed
  note   TEXT   NOT NULL            -- '' until signed
);

-- +goose StatementBegin
CREATE TRIGGER ledger_leaf_keep_u BEFORE UPDATE ON ledger_leaf BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER ledger_leaf_keep_d BEFORE DELETE ON ledger_leaf BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER ledger_tile_keep_u BEFORE UPDATE ON ledger_tile BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER ledger_tile_keep_d BEFORE DELETE ON ledger_tile BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
-- +goose StatementEnd

-- +goose Down
DROP TABLE ledger_checkpoint;
DROP TABLE ledger_tile;
DROP TABLE ledger_open;
DROP TABLE ledger_leaf;
DROP TABLE ledger_head;
