-- Begin to cancel a task: what comes for it from now on is too late. Its end is appended next (end_task.lua), by
-- whoever asked for it, or by a router if that one dies.
-- KEYS: task, list's due, session base.  ARGV: task id, user (see _session.lua), why, when a router looks at it (ms).
-- Returns {'unknown'}, {'not_yours'}, or {its status before, then as many fields as are asked for from ARGV[5] on}.
local told = redis.call('HMGET', KEYS[1], 'status', unpack(ARGV, 5))
local status = told[1]
if not status then return {'unknown'} end
local owner = redis.call('HGET', KEYS[3], 'u')
if owner and owner ~= '' and owner ~= ARGV[2] and ARGV[2] ~= '*' then return {'not_yours'} end
if not ENDED[status] and status ~= 'cancelling' then
  redis.call('HSET', KEYS[1], 'status', 'cancelling', 'reason', ARGV[3])
  redis.call('ZADD', KEYS[2], ARGV[4], ARGV[1])
end
for i = 1, #told do told[i] = told[i] or '' end
return told
