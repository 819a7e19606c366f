-- What has ended is looked for by when it did. Only if it is not there: MySQL makes it before it is noted that it did.
SET @tidegate = IF(
    (SELECT COUNT(*) FROM information_schema.statistics WHERE table_schema = DATABASE()
        AND table_name = 'refresh_tokens' AND index_name = 'refresh_tokens_expiry') = 0,
    'CREATE INDEX refresh_tokens_expiry ON refresh_tokens (expires_at)', 'DO 0');
PREPARE tidegate FROM @tidegate;
EXECUTE tidegate;
DEALLOCATE PREPARE tidegate;
