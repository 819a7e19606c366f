-- Where a release stands that instances share; see ledger.rs.
-- KEYS: the release. ARGV: the token that is thought to be there ("" for none), the token and the state to put in its place
-- ("" to only look), milliseconds that the state is remembered, and what people may like to see: phase, weight.
-- Answers the token that is there now; if it is not the one that was thought or put, with its state.
local held = redis.call('HMGET', KEYS[1], 'token', 'state')
local there = held[1] or ''
if there ~= ARGV[1] then return {there, held[2] or ''} end
if ARGV[2] ~= '' then
  there = ARGV[2]
  redis.call('HSET', KEYS[1], 'token', there, 'state', ARGV[3], 'phase', ARGV[5], 'weight', ARGV[6])
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
elseif there ~= '' and redis.call('PTTL', KEYS[1]) < tonumber(ARGV[4]) / 2 then
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
end
return {there}
