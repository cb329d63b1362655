"""What runs in Redis: a tick's requests of one gateway, many buckets at once, atomically and by the clock of Redis.

Arguments: the gateway's id, the number of live gateways, after how many microseconds slots lapse, then for each key a
kind and its numbers (`RateAsk` and `SlotsAsk` of `balance` in their order). The answer has two numbers for each key,
as text: Redis cuts numbers to whole ones.

A rate's key holds the microsecond at which its bucket is full, and is gone when it is. A slots' key is a hash: for each
gateway how many it holds, how many it would like, and the microsecond at which both lapse.
"""

SCRIPT = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local me = ARGV[1]
local gateways = tonumber(ARGV[2])
local lapse = tonumber(ARGV[3])

local function rate(key, per_second, burst, settle, want, least)
  local per_micro = per_second / 1000000
  local before = math.max(tonumber(redis.call('GET', key) or '0'), now)
  local full_at = math.max(before + settle / per_micro, now)
  local left = burst - (full_at - now) * per_micro
  local granted = 0
  if want > 0 and left >= math.min(least, burst) then
    granted = math.max(least, math.min(want, left))
    full_at = full_at + granted / per_micro
    left = left - granted
  end
  if full_at > now then
    redis.call('SET', key, string.format('%.3f', full_at), 'PX', math.ceil((full_at - now) / 1000))
  elseif before > now then
    redis.call('DEL', key)
  end
  return granted, left
end

-- Everybody may have what they would like up to one level, the highest that fits; what does not divide goes round.
local function fair(wishes, room)
  table.sort(wishes, function(a, b)
    if a.wish ~= b.wish then return a.wish < b.wish end
    return a.id < b.id
  end)
  for place, each in ipairs(wishes) do
    local sharers = #wishes - place + 1
    if each.wish * sharers > room then
      local level = math.floor(room / sharers)
      local ids = {}
      for other = place, #wishes do ids[#ids + 1] = wishes[other].id end
      table.sort(ids)
      for rank, id in ipairs(ids) do
        if id == me then
          local turn = (rank + math.floor(now / 1000000)) % sharers
          return turn < room - level * sharers and level + 1 or level
        end
      end
    end
    if each.id == me then return each.wish end
    room = room - each.wish
  end
end

local function slots(key, most, keep, wish)
  local entries = redis.call('HGETALL', key)
  local others = {}
  for field = 1, #entries, 2 do
    local held, wished, until_ = string.match(entries[field + 1], '(%d+) (%d+) (%d+)')
    if tonumber(until_) <= now then
      redis.call('HDEL', key, entries[field])
    elseif entries[field] ~= me then
      others[#others + 1] = {id = entries[field], held = tonumber(held), wish = tonumber(wished)}
    end
  end
  local alive = math.max(gateways, #others + 1)
  local start = most >= alive and 1 or 0
  local room = most - start * (alive - #others - 1)
  local free = room
  local wishes = {{id = me, wish = math.max(wish, start)}}
  for _, other in ipairs(others) do
    free = free - math.max(other.held, start)
    wishes[#wishes + 1] = {id = other.id, wish = math.max(other.wish, start)}
  end
  local target = fair(wishes, room)
  local held = math.max(keep, math.min(wish, target, free))
  if held == 0 and wish == 0 then
    redis.call('HDEL', key, me)
  else
    redis.call('HSET', key, me, string.format('%d %d %d', held, wish, now + lapse))
    redis.call('PEXPIRE', key, lapse / 1000)
  end
  return held, target
end

local answers = {}
local at = 4
for _, key in ipairs(KEYS) do
  local one, two
  if ARGV[at] == 'rate' then
    one, two = rate(key, tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]),
      tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5]))
    at = at + 6
  else
    one, two = slots(key, tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]))
    at = at + 4
  end
  answers[#answers + 1] = string.format('%.17g', one)
  answers[#answers + 1] = string.format('%.17g', two)
end
return answers
"""
