-- Brings what one instance has of some products to one slot group, sums up the instances, and tells what the others did.
--
-- KEYS: the group's state (a hash: `seq` numbers changes, `at:INSTANCE` is that instance's last call), the products that
-- changed (a sorted set by number), the products by when their next bucket leaves (milliseconds); then for each product
-- the hash with a field an instance and, unless this is a cluster, the two plain keys of the sum. ARGV: instance, its mark
-- for this call, the last change it knows, now (milliseconds), how many changes to tell, whether plain keys are here; then
-- for each product its id and what this instance has of it, or nothing to have the sum made anew.
--
-- What an instance has is packed by MessagePack: version, from which second on it is exact, then twice (views, units):
-- how many buckets, and for each its distance from the one before and its count. All of it is absolute, so a call may be
-- made twice. The state is written first: what forbids writing (out of memory, read only) forbids that.
local state, changed, due = KEYS[1], KEYS[2], KEYS[3]
local me, mark, cursor, now, most, plain = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6] == '1'
local WIDTH, BUCKETS, AHEAD = {900000, 3600000}, {96, 168}, {4, 1}
local KEPT = 8 * 86400000

local found = redis.call('HMGET', state, 'at:' .. me, 'seq')
redis.call('HSET', state, 'at:' .. me, mark)
redis.call('PEXPIRE', state, KEPT)
local seq = found[2] or '0'
local news = redis.call('ZRANGEBYSCORE', changed, '(' .. cursor, '+inf', 'WITHSCORES', 'LIMIT', 0, most)

local running, oldest, newest = {}, {}, {}
for kind = 1, 2 do
  running[kind] = math.floor(now / WIDTH[kind])
  oldest[kind] = running[kind] - BUCKETS[kind] + 1
  newest[kind] = running[kind] + AHEAD[kind]
end

-- Sums, first and last bucket of what counts; raises an error when it is nothing of ours.
local function read(value)
  local list = cmsgpack.unpack(value)
  if list[1] ~= 1 then error('another version') end
  local sum, first, last, at = {0, 0}, {}, {}, 3
  for kind = 1, 2 do
    local bucket, n = 0, list[at]
    at = at + 1
    for _ = 1, n do
      bucket = bucket + list[at]
      if bucket >= oldest[kind] and bucket <= newest[kind] then
        sum[kind] = sum[kind] + list[at + 1]
        first[kind] = first[kind] or bucket
        last[kind] = bucket
      end
      at = at + 2
    end
  end
  return {sum, first, last}
end

local function leaves(kind, bucket) return (bucket + BUCKETS[kind]) * WIDTH[kind] end
local function digits(n) return string.format('%.0f', n) end

local results, scores, dues, gone, foreign = {}, {}, {}, {}, 0
local per, at = plain and 3 or 1, 4
for i = 7, #ARGV, 2 do
  local id, mine, key = ARGV[i], ARGV[i + 1], KEYS[at]
  local fields, dirty = {}, mine == ''
  -- Somebody else may have been here since it was due.
  if mine == '' then
    local score = redis.call('ZSCORE', due, id)
    dirty = score and tonumber(score) <= now
  end
  local result = {'0', '0', '0', '0', '0'}
  if mine ~= '' or dirty then
    fields = redis.pcall('HGETALL', key)
    if fields.err then
      foreign, fields, dirty = foreign + 1, {}, false
      gone[#gone + 1] = id
    elseif mine ~= '' then
      local own
      for f = 1, #fields, 2 do
        if fields[f] == me then own = f + 1 end
      end
      if not own or fields[own] ~= mine then
        redis.call('HSET', key, me, mine)
        dirty, own = true, own or #fields + 2
        fields[own - 1], fields[own] = me, mine
      end
    end
  end
  local dead = {}
  if dirty then
    local sum, next_due, last, unread = {0, 0}, nil, {0, 0}, false
    for f = 1, #fields, 2 do
      local ok, part = pcall(read, fields[f + 1])
      if not ok then
        unread = true
      elseif not part[2][1] and not part[2][2] then
        dead[#dead + 1] = fields[f]
      else
        for kind = 1, 2 do
          if part[2][kind] then
            sum[kind] = sum[kind] + part[1][kind]
            local first = leaves(kind, part[2][kind])
            next_due = math.min(next_due or first, first)
            last[kind] = math.max(last[kind], leaves(kind, part[3][kind]))
          end
        end
      end
    end
    local ends = math.max(last[1], last[2])
    if next_due then
      if #dead > 0 then redis.call('HDEL', key, unpack(dead)) end
      redis.call('PEXPIRE', key, ends - now)
      dues[#dues + 1] = next_due
      dues[#dues + 1] = id
    else
      if not unread then redis.call('DEL', key) end
      gone[#gone + 1] = id
    end
    if mine ~= '' and next_due then scores[#scores + 1] = id end
    result = {'1', digits(sum[1]), digits(sum[2]), digits(math.max(last[1] - now, 0)), digits(math.max(last[2] - now, 0))}
    if plain then
      for kind = 1, 2 do
        if sum[kind] > 0 then
          redis.call('SET', KEYS[at + kind], result[1 + kind], 'PX', result[3 + kind])
        else
          redis.call('DEL', KEYS[at + kind])
        end
      end
    end
  end
  for f = 1, #fields, 2 do
    if fields[f] ~= me then result[#result + 1] = fields[f + 1] end
  end
  results[#results + 1] = result
  at = at + per
end

-- unpack() has room for some thousands.
local function chunks(command, key, list)
  for a = 1, #list, 4000 do redis.call(command, key, unpack(list, a, math.min(a + 3999, #list))) end
end
if #gone > 0 then
  chunks('ZREM', changed, gone)
  chunks('ZREM', due, gone)
end
if #dues > 0 then
  chunks('ZADD', due, dues)
  redis.call('PEXPIRE', due, KEPT)
end
if #scores > 0 then
  local last = redis.call('HINCRBY', state, 'seq', #scores)
  local list = {}
  for i, id in ipairs(scores) do
    list[2 * i - 1] = digits(last - #scores + i)
    list[2 * i] = id
  end
  chunks('ZADD', changed, list)
  redis.call('PEXPIRE', changed, KEPT)
  seq = digits(last)
end
local waiting = redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, most)
return {found[1], seq, news, waiting, results, foreign}
