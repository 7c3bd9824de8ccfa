-- +goose Up
-- Where the ledger went on from an older database, as the officers decided.
CREATE TABLE ledger_recovery (
  leaf BIGINT NOT NULL PRIMARY KEY
);

-- +goose Down
DROP TABLE ledger_recovery;
