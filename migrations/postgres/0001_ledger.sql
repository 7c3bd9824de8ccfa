-- +goose Up
-- The ledger: leaves, full tiles of the tree, its head, signed checkpoints.
CREATE TABLE ledger_head (
  id     INTEGER PRIMARY KEY CHECK (id = 1),
  size   BIGINT NOT NULL,
  nodes  BYTEA  NOT NULL            -- compact range, 32 octets per set bit of size
);
INSERT INTO ledger_head (id, size, nodes) VALUES (1, 0, '');

CREATE TABLE ledger_leaf (
  idx    BIGINT   NOT NULL PRIMARY KEY,
  kind   SMALLINT NOT NULL,
  closes BIGINT   UNIQUE,           -- index of the intent; an intent is closed once
  leaf   BYTEA    NOT NULL
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
  data   BYTEA    NOT NULL,
  PRIMARY KEY (level, n)
);

CREATE TABLE ledger_checkpoint (
  size   BIGINT NOT NULL PRIMARY KEY,
  body   TEXT   NOT NULL,           -- stored before it is signed
  note   TEXT   NOT NULL            -- '' until signed
);

-- Whoever runs the service can add to the ledger and nothing else. The owner gives
-- the right away here, and the trigger stands in the way of who takes it back.
-- +goose StatementBegin
CREATE FUNCTION ledger_keep() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'the ledger is append-only';
END $$;
-- +goose StatementEnd
CREATE TRIGGER ledger_leaf_keep BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger_leaf FOR EACH STATEMENT EXECUTE FUNCTION ledger_keep();
CREATE TRIGGER ledger_tile_keep BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger_tile FOR EACH STATEMENT EXECUTE FUNCTION ledger_keep();
REVOKE UPDATE, DELETE, TRUNCATE ON ledger_leaf, ledger_tile FROM PUBLIC, CURRENT_USER;

-- +goose Down
DROP TABLE ledger_checkpoint;
DROP TABLE ledger_tile;
DROP TABLE ledger_open;
DROP TABLE ledger_leaf;
DROP TABLE ledger_head;
DROP FUNCTION ledger_keep;
