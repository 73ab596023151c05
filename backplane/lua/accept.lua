-- Accept a send: begins the session if there is none, and its task, unless the send is known or has to wait.
--
-- The task is only reserved: its action is pushed next, elsewhere, and whoever should have done that may die. So a
-- router looks at it soon (`reserve`); see due.lua. A send that comes twice, even meanwhile, is one task.
--
-- KEYS: session base, session's tasks, list's due, task, then the names under which a client may send it again.
-- ARGV: 1 lineage, 2 epoch for a new session, 3 ttl of a session (ms), 4 user (see _session.lua), 5 task id,
--       6 fingerprint of what was sent, 7 how long a name is kept (s), 8 policy for a session that is busy (concurrent,
--       reject, interrupt), 9 most tasks of a session, 10 reserve (ms since 1970), 11 how long the record is kept (ms),
--       12… its fields and values.
-- Returns {'not_yours'}, {'other', task} if a name was used for something else,
--   {'duplicate', task, its status, deadline, cursor ('' if its record is gone)}, {'busy', tasks…},
--   or {'new', epoch, head, tasks that are being cancelled for it…}.
local base, active, due, task = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local id, policy = ARGV[5], ARGV[8]
local prefix = string.sub(task, 1, -#id - 1)
local record = open_session(base, ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4])
if not record then return {'not_yours'} end

for i = 5, #KEYS do
  local known = redis.call('GET', KEYS[i])
  if known then
    local first, fingerprint = string.match(known, '^(%S+) (%S+)$')
    if fingerprint ~= ARGV[6] then return {'other', first or ''} end
    local told = redis.call('HMGET', prefix .. first, 'status', 'deadline', 'cursor')
    return {'duplicate', first, told[1] or '', told[2] or '', told[3] or ''}
  end
end

local running, cancelled = {}, {}
local most = tonumber(ARGV[9])
if policy ~= 'concurrent' or redis.call('ZCARD', active) >= most then
  for _, one in ipairs(redis.call('ZRANGE', active, 0, -1)) do
    local status = redis.call('HGET', prefix .. one, 'status')
    if not status or ENDED[status] then redis.call('ZREM', active, one)
    else running[#running + 1] = {one, status} end
  end
end
if #running >= most or (policy == 'reject' and #running > 0) then
  local reply = {'busy'}
  for i, one in ipairs(running) do reply[i + 1] = one[1] end
  return reply
end
if policy == 'interrupt' then
  for _, one in ipairs(running) do
    if one[2] ~= 'cancelling' then
      redis.call('HSET', prefix .. one[1], 'status', 'cancelling', 'reason', 'interrupted')
      redis.call('ZADD', due, ARGV[10], one[1])
      cancelled[#cancelled + 1] = one[1]
    end
  end
end

redis.call('ZADD', due, ARGV[10], id)  -- first, as it may be of a wrong type: then nothing has been accepted
redis.call('ZADD', active, ARGV[10], id)
redis.call('PEXPIRE', active, ARGV[3])
for i = 5, #KEYS do redis.call('SET', KEYS[i], id .. ' ' .. ARGV[6], 'EX', ARGV[7]) end
redis.call('HSET', task, 'status', 'reserved', 'cursor', record[1] .. ':' .. record[2], unpack(ARGV, 12))
redis.call('PEXPIRE', task, ARGV[11])
return {'new', record[1], tonumber(record[2]), unpack(cancelled)}
