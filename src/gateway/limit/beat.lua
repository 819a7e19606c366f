-- Says that an instance lives. KEYS: the set of instances. ARGV: instance, microseconds that one is remembered.
-- Answers milliseconds since each of them, this one included, was last heard of.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - tonumber(ARGV[2])))
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1001)
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', tonumber(ARGV[2]) / 1000))
local all = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
local ages = {}
for i = 2, #all, 2 do ages[#ages + 1] = math.max(0, math.floor((now - tonumber(all[i])) / 1000)) end
return ages
