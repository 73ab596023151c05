-- What became of a task that was only reserved. If its action was pushed, its question goes into the session's log,
-- unless an answer has brought it there already; else it is forgotten.
-- KEYS: task, list's due, session base, its tasks, log, digests and streams, then the names under which it may be sent
--       again.
-- ARGV: 1 lineage, 2 task id, 3 1 if its action was pushed, 4… what _append.lua takes.
-- Returns 1 if that was noted, 0 if it is not reserved any more.
local status, deadline = unpack(redis.call('HMGET', KEYS[1], 'status', 'deadline'))
if status ~= 'reserved' then return 0 end
if ARGV[3] == '1' then
  redis.call('HSET', KEYS[1], 'status', 'queued')
  redis.call('ZADD', KEYS[2], deadline + ARGV[13], ARGV[2])
  local append = appender(ARGV[1], 4)
  append(KEYS[3], 0, 0, 1, false, ARGV[2])
else
  redis.call('DEL', KEYS[1])
  redis.call('ZREM', KEYS[2], ARGV[2])
  redis.call('ZREM', KEYS[4], ARGV[2])
  for i = 8, #KEYS do
    if string.find(redis.call('GET', KEYS[i]) or '', ARGV[2] .. ' ', 1, true) == 1 then redis.call('DEL', KEYS[i]) end
  end
end
return 1
