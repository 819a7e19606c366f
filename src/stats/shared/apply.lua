-- Applies one delta to one slot group, exactly once.
--
-- KEYS[1] is the instance's fence: a hash whose `next` says which journal entry comes next. KEYS[2..] are the keys of the
-- operations, in their order. ARGV: from, to, time of the last event, mode, base, since, then the operations: code, number
-- of arguments, when the key expires (Unix seconds, or nothing to leave that as it is), arguments. In mode 'base' there is
-- no fence yet, and base and since go into it.
--
-- The fence is written first: what forbids writing (out of memory, read only, no disk) forbids that, and nothing is done.
-- An operation on a key that holds something foreign is skipped and reported; it must not hold up the others.
local found = redis.call('HGET', KEYS[1], 'next')
local from, to = tonumber(ARGV[1]), tonumber(ARGV[2])
if ARGV[4] == 'base' then
  if found then return {'exists', found, 0, ''} end
elseif not found then
  return {'missing', '0', 0, ''}
else
  local at = tonumber(found)
  if at >= to then return {'already', found, 0, ''} end
  if at ~= from then return {at < from and 'behind' or 'inside', found, 0, ''} end
end
redis.call('HSET', KEYS[1], 'next', ARGV[2], 'time', ARGV[3])
if ARGV[4] == 'base' then
  redis.call('HSET', KEYS[1], 'base', ARGV[5], 'since', ARGV[6], 'parts', 'pending')
end

local errors, first = 0, ''
local function foreign(what)
  errors = errors + 1
  if first == '' then first = what end
end
local function run(...)
  local result = redis.pcall(...)
  if type(result) == 'table' and result.err then
    foreign(result.err)
    return nil
  end
  return result
end

-- Makes a counter; false when there is something.
local function make(key, n, expires)
  if expires then return redis.call('SET', key, n, 'EXAT', expires, 'NX') end
  return redis.call('SET', key, n, 'NX')
end

-- unpack() has room for some thousands.
local MOST = 4000
local function variadic(command, key, a, b)
  for at = a, b, MOST do
    run(command, key, unpack(ARGV, at, math.min(at + MOST - 1, b)))
  end
end

-- Adds to many members at once: reading all, then writing all, is two commands however many there are.
local function add(read, write, key, a, b, value_first)
  for at = a, b, MOST do
    local last = math.min(at + MOST - 1, b)
    local names = {}
    for i = at, last, 2 do names[#names + 1] = ARGV[i] end
    local old = run(read, key, unpack(names))
    if old then
      local new = {}
      for i, name in ipairs(names) do
        local sum = string.format('%.0f', (tonumber(old[i] or '0') or 0) + tonumber(ARGV[at + 2 * i - 1]))
        new[#new + 1] = value_first and sum or name
        new[#new + 1] = value_first and name or sum
      end
      run(write, key, unpack(new))
    end
  end
end

local i, k = 7, 2
while i <= #ARGV do
  local op, n, expires = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2]
  local a, b = i + 3, i + 2 + n
  local key = KEYS[k]
  k = k + 1
  if op == 'sadd' then
    variadic('SADD', key, a, b)
  elseif op == 'pfadd' then
    variadic('PFADD', key, a, b)
  elseif op == 'zincr' then
    add('ZMSCORE', 'ZADD', key, a, b, true)
  elseif op == 'hincr' then
    add('HMGET', 'HSET', key, a, b, false)
  elseif op == 'push' then
    -- The first argument is how long the list is to be. It is cut back at twice that: readers take its head.
    local length
    for at = a + 1, b, MOST do
      length = run('LPUSH', key, unpack(ARGV, at, math.min(at + MOST - 1, b)))
    end
    if length and length >= 2 * tonumber(ARGV[a]) then run('LTRIM', key, 0, tonumber(ARGV[a]) - 1) end
  elseif op == 'stream' then
    -- Most entries, the oldest that is kept (said with the last entry only), then one entry's fields.
    run('XADD', key, 'MAXLEN', '~', ARGV[a], '*', unpack(ARGV, a + 2, b))
    if ARGV[a + 1] ~= '' then run('XTRIM', key, 'MINID', '~', ARGV[a + 1]) end
  elseif op == 'set' then
    run('SET', key, ARGV[a])
  elseif op == 'total' or op == 'count' then
    -- Several counters, of which `key` is the first. Totals never expire and are written with one command; the others
    -- with one each, which sets their expiry too.
    local keys = {key}
    for j = 2, n do
      keys[j] = KEYS[k]
      k = k + 1
    end
    local old = redis.call('MGET', unpack(keys))
    local new = {}
    for j = 1, n do
      local more, was = ARGV[a + j - 1], tonumber(old[j] or '')
      if was then
        local sum = string.format('%.0f', was + tonumber(more))
        if op == 'count' then
          redis.call('SET', keys[j], sum, 'EXAT', expires)
        else
          new[#new + 1] = keys[j]
          new[#new + 1] = sum
        end
      -- Not there, or nothing that can be counted: what is there is not written over.
      elseif old[j] or not make(keys[j], more, op == 'count' and expires) then
        foreign('WRONGTYPE')
      end
    end
    if #new > 0 then run('MSET', unpack(new)) end
    expires = ''
  end
  if expires ~= '' then run('EXPIREAT', key, expires) end
  i = b + 1
end
return {'ok', ARGV[2], errors, first}
