-- One bucket that instances share; see lease.rs.
-- KEYS: the bucket. ARGV: instance, number of the message, credit spent ever, and of that known to be debited, tokens held,
-- given back, wanted; units a microsecond, units a token, tokens at most, microseconds of a lease.
-- Answers 1, what of the hold stands, tokens granted, whole tokens left (negative: overdrawn), microseconds until there is
-- one; or 0 when the message is an old one.
local id, seq, owed, acked = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local hold, back, want = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local rate, unit, cap, lease = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local all = redis.call('HGETALL', KEYS[1])
local level, at, scale
local held, live, wants, ended = 0, 0, 0, 0
local seen, debited, noted = 0, 0, 0
local gone = {}
for i = 1, #all, 2 do
  local field, value = all[i], all[i + 1]
  if field == 'l' then level = tonumber(value)
  elseif field == 't' then at = tonumber(value)
  elseif field == 'u' then scale = tonumber(value)
  else
    local s, o, h, w, till = string.match(value, '^(%d+) (%d+) (%d+) (%d+) (%d+)$')
    h, till = tonumber(h), tonumber(till)
    held = held + h
    if till > now then
      live = live + h
      if field ~= id then wants = wants + tonumber(w) end
    else
      if till > ended then ended = till end
      if field ~= id then gone[#gone + 1] = field end
    end
    if field == id then
      seen = tonumber(s)
      if till > now then debited, noted = tonumber(o), h end
    end
  end
end
if seq <= seen then return {0} end
if level then
  if scale ~= unit then level = math.floor(level / scale * unit) end
  -- A clock that was put back by a little is waited for, one that was put back by much is believed.
  if now < at - 10000000 then at = now end
  local function fill(to, taken)
    if to > at then
      level = math.min(level + (to - at) * rate, (cap - taken) * unit)
      at = to
    end
  end
  -- What is held leaves no room. Of those whose lease has ended, it did until then.
  fill(math.min(ended, now), held)
  fill(now, live)
else
  level, at = cap * unit, now
end
local base = math.max(acked, debited)
if owed > base then level = level - (owed - base) * unit end
hold = math.min(hold, noted)
level = level + math.min(back, noted - hold) * unit
local granted, whole = 0, math.floor(level / unit)
if want > 0 and whole > 0 then
  -- In proportion to what others want, but at least half: they may have changed their mind.
  granted = math.min(want, math.max(math.ceil(whole * want / (wants + want)), math.ceil(whole / 2)))
  level = level - granted * unit
  whole = whole - granted
end
local mine = string.format('%.0f %.0f %.0f %.0f %.0f', seq, owed, hold + granted, want, now + lease)
redis.call('HSET', KEYS[1], 'l', string.format('%.0f', level), 't', string.format('%.0f', at),
  'u', string.format('%.0f', unit), id, mine)
if #gone > 0 then redis.call('HDEL', KEYS[1], unpack(gone)) end
-- Gone is the same as full, with nothing held.
local full = math.ceil((cap * unit - level) / rate / 1000) + math.ceil(lease / 1000) + 1000
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', math.min(full, 100000000000)))
local wait = 0
if level < unit then wait = math.ceil((unit - level) / rate) end
return {1, hold, granted, whole, wait}
