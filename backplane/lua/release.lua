-- Let a task go on that waits for others of its session to end (`enqueue`), if they have. From now on it is reserved,
-- and its time runs.
-- KEYS: task, list's due, session's tasks.
-- ARGV: task id, how long its record is kept beyond its time (ms), when to look at it again if it still waits (ms from
--       now).
-- Returns {0} if it still waits, or does no longer; {1, its deadline (ms since 1970)} if it goes on.
local id, kept = ARGV[1], tonumber(ARGV[2])
local status, timeout, extended = unpack(redis.call('HMGET', KEYS[1], 'status', 'timeout', 'extended'))
if status ~= 'held' then return {0} end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local prefix = string.sub(KEYS[1], 1, -#id - 1)
for _, one in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do
  if one == id then break end
  local before = redis.call('HGET', prefix .. one, 'status')
  if before and not ENDED[before] then
    redis.call('ZADD', KEYS[2], now + ARGV[3], id)
    redis.call('PEXPIRE', KEYS[1], ARGV[3] + extended + kept)
    return {0}
  end
  redis.call('ZREM', KEYS[3], one)
end
local deadline = now + timeout
redis.call('HSET', KEYS[1], 'status', 'reserved', 'deadline', deadline, 'latest', now + math.max(timeout, extended))
redis.call('PEXPIRE', KEYS[1], math.max(timeout, extended) + kept)
return {1, deadline}
