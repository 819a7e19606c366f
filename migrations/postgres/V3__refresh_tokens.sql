-- What has ended is looked for by when it did; and all tokens of a family begin with its handle, of which this is the SHA-256.
-- Families of before have none.

CREATE INDEX refresh_tokens_expiry ON refresh_tokens (expires_at);

ALTER TABLE token_families ADD COLUMN handle TEXT COLLATE "C";

CREATE UNIQUE INDEX token_families_handle ON token_families (handle);
