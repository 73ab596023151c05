-- End a task that the AES does not end: append its last message, publish it, and note it with the task.
-- KEYS: session base, task, list's due; on a cluster also the session's log, digests and tasks.
-- ARGV: 1 lineage, 2 task id, 3 status that it must have ('' any but an end), 4… what _append.lua takes,
--       17… what append() takes for one entry.
-- Returns {1, 1 if a router has to look at the list soon} if this has ended it, {0, its status ('' if there is no record)} if not, or {-1, error} if the session's
-- keys are of a wrong type.
local status, deadline = unpack(redis.call('HMGET', KEYS[2], 'status', 'deadline'))
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if not status or ENDED[status] then return {0, status or ''} end
if ARGV[3] == '' then
  if status == 'cancelling' or now < tonumber(deadline) + tonumber(ARGV[13]) then return {0, status} end
elseif ARGV[3] ~= status then
  return {0, status}
end
local append, counts = appender(ARGV[1], 4)
local refused = append(KEYS[1], 17, 1, 1, true)
if refused then return {-1, refused} end
return {1, counts.soon}
