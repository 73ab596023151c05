-- Push an action for the AES, once: unless its queue is full, it was pushed before, or must not be any more.
-- KEYS: actions queue, mark of the action.
-- ARGV: action (JSON; '': it must not be pushed from now on), most actions the queue may hold, how long the mark is
--       kept (s).
-- Returns 'pushed', 'full', or 'void'.
local mark = redis.call('GET', KEYS[2])
if mark then return mark end
if ARGV[1] == '' then
  redis.call('SET', KEYS[2], 'void', 'EX', ARGV[3])
  return 'void'
end
if redis.call('LLEN', KEYS[1]) >= tonumber(ARGV[2]) then return 'full' end
redis.call('SET', KEYS[2], 'pushed', 'EX', ARGV[3])
redis.call('LPUSH', KEYS[1], ARGV[1])
return 'pushed'
