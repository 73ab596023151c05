-- Charge one to each of a tenant's quotas, or to none of them if one is used up; or give one back to each.
--
-- A quota is a bucket of `most`, refilled evenly over its window (GCRA, ITU-T I.371). Its key holds when the bucket
-- will be full again (the theoretical arrival time) and expires then: microseconds since 1970 with three decimals,
-- as text, because a double has no room for them. All that is computed with is how far that is ahead, in whole
-- nanoseconds, so that bursts are exact and a rate is too high by less than a nanosecond per charge. More than one
-- a microsecond counts as that.
--
-- A bucket can be further from full than an empty one: the clock was put back, or the window is shorter now. It
-- counts as empty, and that is written down although nothing is charged, or it would refuse until the clock has
-- caught up.
--
-- KEYS: overrides (hash), then each quota's.
-- ARGV: 1 to charge or -1 to give back, each quota's field of the overrides, then for each its most (0: unlimited)
--       and window (s).
-- Returns {wait, then for each quota: most that is in force, remaining, time until full, and at the end what else of
--   the overrides a send has to know: its tenant's `busy_policy` ('' none)}, times in microseconds; `wait` is 0 if one was charged to all, else how long until all will allow it.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local overrides = redis.call('HMGET', KEYS[1], 'busy_policy', unpack(ARGV, 2, #KEYS))
local stored = redis.call('MGET', unpack(KEYS, 2))  -- false for what is not a string, and SET replaces that

local function most_of(i, window)
  local override = string.match(overrides[i + 1] or '', '^%d+$')
  return math.min(tonumber(override or ARGV[#KEYS + 2 * i - 1]), window * 1000000)
end

-- The time (ns) from now until the bucket is full, going by what its key holds.
local function until_full(text)
  local us, ns = string.match(text or '', '^(%d+)%.(%d%d%d)$')
  return us and math.max((us - now) * 1000 + ns, 0) or 0
end

local function write(key, ahead)
  if ahead == 0 then return redis.call('DEL', key) end
  local full_at = string.format('%.0f.%03.0f', now + math.floor(ahead / 1000), ahead % 1000)
  return redis.call('SET', key, full_at, 'PXAT', math.ceil((now + math.ceil(ahead / 1000)) / 1000))
end

local step, wait, buckets = tonumber(ARGV[1]), 0, {}
for i = 1, #stored do
  local window = tonumber(ARGV[#KEYS + 2 * i])
  local most = most_of(i, window)
  if most > 0 then
    local interval, was = math.floor(window * 1000000000 / most), until_full(stored[i])
    local ahead = math.min(was, most * interval)
    buckets[i] = {most = most, interval = interval, was = was, ahead = ahead}
    if step > 0 then wait = math.max(wait, ahead - (most - 1) * interval) end
  end
end
if wait > 0 then step = 0 end

local reply = {math.ceil(wait / 1000)}
for i = 1, #stored do
  local bucket = buckets[i]
  local most, remaining, full_in = 0, 0, 0
  if bucket then
    local ahead = math.max(bucket.ahead + step * bucket.interval, 0)
    if ahead ~= bucket.was then write(KEYS[i + 1], ahead) end
    most, remaining = bucket.most, bucket.most - math.ceil(ahead / bucket.interval)
    full_in = math.ceil(ahead / 1000)
  end
  for _, number in ipairs({most, remaining, full_in}) do reply[#reply + 1] = number end
end
reply[#reply + 1] = overrides[1] or ''
return reply
