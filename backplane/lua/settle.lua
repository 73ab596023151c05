-- What became of a task that was only reserved. If its action was pushed, its question goes into the session's log,
-- unless an answer has brought it there already; else it is forgotten, also if it is being cancelled: nobody was told
-- that it was accepted.
-- KEYS: task, list's due, session base, its tasks, log, digests and streams, then the names under which it may be sent
--       again.
-- ARGV: 1 lineage, 2 task id, 3 1 if its action was pushed, 4… what _append.lua takes.
-- Returns {1 if that was noted, 0 if it is too late for that; 1 if a router has to look at the list soon}.
local status, deadline, unpushed = unpack(redis.call('HMGET', KEYS[1], 'status', 'deadline', 'unpushed'))
if ARGV[3] == '1' then
  if status ~= 'reserved' then return {0, 0} end
  redis.call('HSET', KEYS[1], 'status', 'queued')
  redis.call('HDEL', KEYS[1], 'action')
  redis.call('ZADD', KEYS[2], deadline + ARGV[13], ARGV[2])
  local append = appender(ARGV[1], 4)
  append(KEYS[3], 0, 0, 1, false, ARGV[2])
  return {1, 0}
end
if status ~= 'reserved' and not (status == 'cancelling' and unpushed == 'reserved') then return {0, 0} end
if status == 'cancelling' then  -- whoever cancels it again is told the same for a while
  redis.call('HSET', KEYS[1], 'status', 'cancelled')
  redis.call('PEXPIRE', KEYS[1], 60000)
else
  redis.call('DEL', KEYS[1])
end
redis.call('ZREM', KEYS[2], ARGV[2], 'left ' .. ARGV[2])
redis.call('ZREM', KEYS[4], ARGV[2])
for i = 8, #KEYS do
  if string.find(redis.call('GET', KEYS[i]) or '', ARGV[2] .. ' ', 1, true) == 1 then redis.call('DEL', KEYS[i]) end
end
local time, prefix = redis.call('TIME'), string.sub(KEYS[1], 1, -#ARGV[2] - 1)
local soon = let_go_on(prefix, KEYS[4], KEYS[2], time[1] * 1000 + math.floor(time[2] / 1000))
return {1, soon and 1 or 0}
