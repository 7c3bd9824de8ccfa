-- +goose Up
-- Rosters that followed the first one, each with the decision of the officers before it.
CREATE TABLE roster_change (
  version    BIGINT   NOT NULL PRIMARY KEY,
  leaf       BIGINT   NOT NULL,               -- of the ledger; 0: of a ledger before this one
  roster     BLOB     NOT NULL,               -- JSON
  warrant    BLOB     NOT NULL                -- JSON
);

-- +goose Down
DROP TABLE roster_change;
