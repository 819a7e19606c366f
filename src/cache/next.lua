-- Begins a new generation of a type: every value of an older one is no longer read.
-- KEYS: generation. ARGV: now, channel, message.
-- The time as generation never comes again, not even after this key was lost.
local before = tonumber(redis.call('GET', KEYS[1]) or '0')
local next = math.max(before + 1, tonumber(ARGV[1]))
local text = string.format('%.0f', next)
redis.call('SET', KEYS[1], text)
redis.call('PUBLISH', ARGV[2], ARGV[3])
return text
