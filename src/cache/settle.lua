-- Ends a lease, if it still is the asker's: an invalidation has taken it away from whoever read before it.
-- KEYS: value, lease. ARGV: token, value or '', milliseconds it is kept, channel, message for who waits.
local held = redis.call('GET', KEYS[2])
if not held then return 0 end
local waited = string.sub(held, 1, 1) == 'w'
if waited then held = string.sub(held, 2) end
if held ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[2])
if ARGV[2] ~= '' then redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
if waited then redis.call('PUBLISH', ARGV[4], ARGV[5]) end
return 1
