-- +goose Up
-- What an HSM member is for: '' keys of all purposes, 'checkpoint' its own checkpoint key alone.
ALTER TABLE hsm_member ADD COLUMN role TEXT NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE hsm_member DROP COLUMN role;
