-- Prolongs a lease, if it still is the asker's.
-- KEYS: lease. ARGV: token, milliseconds.
local held = redis.call('GET', KEYS[1])
if held == ARGV[1] or held == 'w' .. ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0
