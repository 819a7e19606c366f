-- SHA-256 of what all tokens of a family begin with; families of before have none. Only if it is not there, as before.
SET @tidegate = IF(
    (SELECT COUNT(*) FROM information_schema.columns WHERE table_schema = DATABASE()
        AND table_name = 'token_families' AND column_name = 'handle') = 0,
    'ALTER TABLE token_families ADD COLUMN handle VARCHAR(64) NULL, ADD UNIQUE INDEX token_families_handle (handle)',
    'DO 0');
PREPARE tidegate FROM @tidegate;
EXECUTE tidegate;
DEALLOCATE PREPARE tidegate;
