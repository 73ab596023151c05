-- Whether nobody has been left of a session for as long as a task waits for somebody (`left`).
-- KEYS: task, list's due, session base.
-- ARGV: task id, connections that the session has.
-- Returns {1} if so, else {0}; then it says when to look again.
local status, left, alone = unpack(redis.call('HMGET', KEYS[1], 'status', 'left', 'alone'))
local member = 'left ' .. ARGV[1]
if not status or not left or ENDED[status] or status == 'cancelling' then
  redis.call('ZREM', KEYS[2], member)
  return {0}
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if tonumber(ARGV[2]) > 0 then
  if alone then redis.call('HDEL', KEYS[1], 'alone') end
  redis.call('ZADD', KEYS[2], now + math.max(1000, math.min(left / 4, 15000)), member)
  return {0}
end
-- Who came and went since is known by the session's newest generation.
local generation = redis.call('HGET', KEYS[3], 'g') or '0'
local last, since = string.match(alone or '', '^(%d+) (%d+)$')
if last ~= generation then
  since = now
  redis.call('HSET', KEYS[1], 'alone', generation .. ' ' .. string.format('%.0f', now))
end
if now - since >= tonumber(left) then return {1} end
redis.call('ZADD', KEYS[2], since + left, member)
return {0}
