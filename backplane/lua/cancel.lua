-- Begin to cancel a task: what comes for it from now on is too late. Its end is appended next (end_task.lua), by
-- whoever asked for it, or by a router if that one dies.
-- KEYS: task, list's due, session base.  ARGV: task id, user (see _session.lua), why, in how long a router looks at it
--       (ms), then the fields to return.
-- Returns {'unknown'}, {'not_yours'}, or {its status before, fields…}.
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return {'unknown'} end
local owner = redis.call('HGET', KEYS[3], 'u')
if owner and owner ~= '' and owner ~= ARGV[2] and ARGV[2] ~= '*' then return {'not_yours'} end
if not ENDED[status] and status ~= 'cancelling' then
  local time = redis.call('TIME')
  begin_cancel(KEYS[1], status, ARGV[3])
  redis.call('ZADD', KEYS[2], time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[4], ARGV[1])
end
local reply = redis.call('HMGET', KEYS[1], unpack(ARGV, 5))
for i = 1, #reply do reply[i] = reply[i] or '' end
table.insert(reply, 1, status)
return reply
