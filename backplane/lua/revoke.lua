-- Enter or lift a revocation, and note what has changed.
-- KEYS: revocations (hash: what -> 'issued before, forget at' in seconds), by when they may be forgotten (zset),
--       how many each tenant has (hash), news (list), version (hash: l lineage, n changes).
-- ARGV: what ('kind tenant name'), issued before (s; '' lifts it), forget at (s), now (s), most of one tenant,
--       most of all, most news, lineage for a new version.
-- Returns 1, 0 if there was nothing to lift, or -1 if there is no room. A new one never weakens an old one.
local function tenant_of(what) return string.match(what, '^%S+ (%S+)') end
local function remove(what)
  if redis.call('HDEL', KEYS[1], what) == 0 then return false end
  redis.call('ZREM', KEYS[2], what)
  local tenant = tenant_of(what)
  if redis.call('HINCRBY', KEYS[3], tenant, -1) <= 0 then redis.call('HDEL', KEYS[3], tenant) end
  return true
end

local what, before, forget_at = ARGV[1], ARGV[2], tonumber(ARGV[3])
for _, old in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', ARGV[4], 'LIMIT', 0, 100)) do remove(old) end
local news
if before == '' then
  if not remove(what) then return 0 end
  news = '-' .. what
else
  local known = redis.call('HGET', KEYS[1], what)
  if known then
    local was_before, was_forget_at = string.match(known, '^(%S+) (%S+)$')
    if tonumber(was_before) > tonumber(before) then before = was_before end
    forget_at = math.max(forget_at, tonumber(was_forget_at))
  else
    local tenant = tenant_of(what)
    local enough = tonumber(redis.call('HGET', KEYS[3], tenant) or 0) >= tonumber(ARGV[5])
    if enough or redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[6]) then return -1 end
    redis.call('HINCRBY', KEYS[3], tenant, 1)
  end
  local entry = before .. ' ' .. string.format('%d', forget_at)
  redis.call('HSET', KEYS[1], what, entry)
  redis.call('ZADD', KEYS[2], forget_at, what)
  news = '+' .. what .. ' ' .. entry
end
redis.call('LPUSH', KEYS[4], news)
redis.call('LTRIM', KEYS[4], 0, tonumber(ARGV[7]) - 1)
redis.call('HSETNX', KEYS[5], 'l', ARGV[8])
redis.call('HINCRBY', KEYS[5], 'n', 1)
return 1
