-- Take connections off a pod's counts, or with negative numbers add them; with 0, see to what is there.
-- KEYS: counts (hashes)….  ARGV: pod, ttl (ms), how many to take off each.
-- Returns what is left in each. That is never negative, and 0 is no field.
local pod, ttl, left = ARGV[1], ARGV[2], {}
for i, key in ipairs(KEYS) do
  local had = tonumber(redis.call('HGET', key, pod) or 0)
  local has = math.max(had - ARGV[i + 2], 0)
  if has == 0 then
    redis.call('HDEL', key, pod)
  else
    redis.call('PEXPIRE', key, ttl)  -- first: where memory is full, a write that needs none lets the others pass
    if has ~= had then redis.call('HSET', key, pod, has) end
    if had <= 0 then redis.call('PEXPIRE', key, ttl) end
  end
  left[i] = has
end
return left
