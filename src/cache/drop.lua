-- Takes a value away, and the lease of who is reading the old one, and tells every instance.
-- KEYS: value, lease. ARGV: channel, message.
redis.call('UNLINK', KEYS[1], KEYS[2])
return redis.call('PUBLISH', ARGV[1], ARGV[2])
