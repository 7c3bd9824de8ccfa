-- +goose Up
-- What opens the commitments of a leaf: personal values, which can be erased.
CREATE TABLE opening (
  idx          INTEGER NOT NULL PRIMARY KEY,  -- of the leaf; the rowid
  retain_until BIGINT  NOT NULL,              -- seconds since 1970
  data         BLOB    NOT NULL               -- (tag u16, salt 32, u32 length, value) for each
);

-- What the decision to sign rests on; its digest stands in the intent.
ALTER TABLE serial ADD COLUMN evidence BLOB;

-- +goose Down
ALTER TABLE serial DROP COLUMN evidence;
DROP TABLE opening;
