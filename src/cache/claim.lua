-- Reads a value, and takes the lease to fill it where it is not there or no longer fresh.
-- KEYS: value, lease. ARGV: now, generation of the type, newer than, token, milliseconds of a lease, whether this was asked
-- before with an older generation.
-- Answers the value (or nil) and 0: it is fresh; 1: the lease is the asker's; 2: it is somebody else's.
local value = redis.pcall('GET', KEYS[1])
if type(value) == 'table' then value = false end
if value and #value >= 44 and string.sub(value, 1, 3) == 'tc\1' then
  local generation, stored, lifetime = struct.unpack('>I8I8I8', value, 5)
  if generation == tonumber(ARGV[2]) and stored + lifetime > tonumber(ARGV[1]) and stored > tonumber(ARGV[3]) then
    -- Asked with an older generation this looked missing, and the asker may have taken a lease it does not need.
    if ARGV[6] == '1' then
      local held = redis.call('GET', KEYS[2])
      if held == ARGV[4] or held == 'w' .. ARGV[4] then redis.call('DEL', KEYS[2]) end
    end
    return {value, 0}
  end
end
if redis.call('SET', KEYS[2], ARGV[4], 'NX', 'PX', ARGV[5]) then return {value, 1} end
local held = redis.call('GET', KEYS[2])
if held == ARGV[4] or held == 'w' .. ARGV[4] then return {value, 1} end
-- The w tells the holder that somebody waits to be told.
if string.sub(held, 1, 1) ~= 'w' then redis.call('SET', KEYS[2], 'w' .. held, 'KEEPTTL') end
return {value, 2}
