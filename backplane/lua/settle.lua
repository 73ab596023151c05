-- What became of a task that was only reserved.
-- KEYS: task, list's due, session's tasks, then the names under which it may be sent again.
-- ARGV: task id, 1 if its action was pushed, how long after its deadline a task is waited for (ms).
-- Returns 1 if that was noted, 0 if it is not reserved any more.
local status, deadline = unpack(redis.call('HMGET', KEYS[1], 'status', 'deadline'))
if status ~= 'reserved' then return 0 end
if ARGV[2] == '1' then
  redis.call('HSET', KEYS[1], 'status', 'queued')
  redis.call('ZADD', KEYS[2], deadline + ARGV[3], ARGV[1])
else
  redis.call('DEL', KEYS[1])
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('ZREM', KEYS[3], ARGV[1])
  for i = 4, #KEYS do
    if string.find(redis.call('GET', KEYS[i]) or '', ARGV[1] .. ' ', 1, true) == 1 then redis.call('DEL', KEYS[i]) end
  end
end
return 1
