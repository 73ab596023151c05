-- Enter or lift a revocation, and tell of it.
-- KEYS: revocations (hash: what -> entry), by when they may be forgotten (zset), news (list), version.
-- ARGV: what, entry (JSON; '' lifts it), forget at (s), now (s), most entries, most news.
-- Returns the new version, or -1 if there is no room.
for _, old in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', ARGV[4], 'LIMIT', 0, 100)) do
  redis.call('HDEL', KEYS[1], old)
  redis.call('ZREM', KEYS[2], old)
end
if ARGV[2] == '' then
  if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then return tonumber(redis.call('GET', KEYS[4]) or 0) end
  redis.call('ZREM', KEYS[2], ARGV[1])
else
  local known = redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1
  if not known and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[5]) then return -1 end
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
  redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
end
redis.call('LPUSH', KEYS[3], ARGV[2] == '' and '-' .. ARGV[1] or '+' .. ARGV[1] .. '\n' .. ARGV[2])
redis.call('LTRIM', KEYS[3], 0, tonumber(ARGV[6]) - 1)
return redis.call('INCR', KEYS[4])
