-- Accept a send: begins the session if there is none, and its task, unless the send is known or has to be refused.
--
-- The task is only reserved: its action is pushed next, elsewhere, and whoever should have done that may die. So a
-- router looks at it soon (`reserve`); see due.lua. A send that comes twice, even meanwhile, is one task. With
-- `enqueue` it is held as long as others of its session run; see release.lua. All times are this server's.
--
-- KEYS: session base, session's tasks, list's due, task, then the names under which a client may send it again.
-- ARGV: 1 lineage, 2 epoch for a new session, 3 ttl of a session (ms), 4 user (see _session.lua), 5 task id,
--       6 fingerprint of what was sent, 7 how long a name is kept (s), 8 policy for a session that is busy (concurrent,
--       reject, interrupt, enqueue), 9 most tasks of a session, 10 reserve (ms), 11 its time and 12 how far that may be
--       put off (ms), 13 how long its record is kept beyond that (ms), 14 with enqueue its action, 15 how long nobody may
--       be there (ms; '' for ever) and 16 how soon that is looked at, 17… more of its record.
-- Returns {'not_yours'}, {'other', task} if a name was used for something else,
--   {'duplicate', now, task, its status, deadline, cursor, queue ('' if its record is gone), traceparent ('' if its
--   client gave none)}, {'busy', tasks…},
--   {'held', now, epoch, head} if it waits for others to end,
--   or {'new', now, epoch, head, tasks that are being cancelled for it…}.
local base, active, due, task = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local id, policy = ARGV[5], ARGV[8]
local prefix = string.sub(task, 1, -#id - 1)
local record = open_session(base, ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4])
if not record then return {'not_yours'} end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

for i = 5, #KEYS do
  local known = redis.call('GET', KEYS[i])
  if known then
    local first, fingerprint = string.match(known, '^(%S+) (%S+)$')
    if fingerprint ~= ARGV[6] then return {'other', first or ''} end
    local told = redis.call('HMGET', prefix .. first, 'status', 'deadline', 'cursor', 'queue', 'traceparent')
    return {'duplicate', now, first, told[1] or '', told[2] or '', told[3] or '', told[4] or '', told[5] or ''}
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
if policy ~= 'interrupt' and #running >= most or policy == 'reject' and #running > 0 then
  local reply = {'busy'}
  for i, one in ipairs(running) do reply[i + 1] = one[1] end
  return reply
end

local look_at = now + math.min(tonumber(ARGV[10]), tonumber(ARGV[11]))
if policy == 'interrupt' then
  for _, one in ipairs(running) do
    if one[2] ~= 'cancelling' then
      begin_cancel(prefix .. one[1], one[2], 'interrupted')
      redis.call('ZADD', due, look_at, one[1])
      cancelled[#cancelled + 1] = one[1]
    end
  end
end

-- Behind all others, also within a millisecond, and if the clock was put back: what waits, waits for those before it.
local last = tonumber(redis.call('ZRANGE', active, -1, -1, 'WITHSCORES')[2] or 0)
local status = 'reserved'
local fields = {'cursor', record[1] .. ':' .. record[2], 'accepted', now, 'deadline', now + ARGV[11], 'latest', now + ARGV[12]}
if policy == 'enqueue' and #running > 0 then
  status = 'held'
  for _, part in ipairs({'action', ARGV[14], 'timeout', ARGV[11], 'extended', ARGV[12]}) do fields[#fields + 1] = part end
end
redis.call('ZADD', due, look_at, id)  -- first, as it may be of a wrong type: then nothing has been accepted
redis.call('ZADD', active, math.max(now, last + 1), id)
local kept = ARGV[12] + ARGV[13]
local session_kept = math.max(tonumber(ARGV[3]), kept)
if redis.call('PTTL', active) < session_kept then redis.call('PEXPIRE', active, session_kept) end
if ARGV[15] ~= '' then
  redis.call('ZADD', due, now + ARGV[16], 'left ' .. id)
  redis.call('HSET', task, 'left', ARGV[15])
end
for i = 5, #KEYS do redis.call('SET', KEYS[i], id .. ' ' .. ARGV[6], 'EX', ARGV[7]) end
redis.call('HSET', task, 'status', status, unpack(fields))
redis.call('HSET', task, unpack(ARGV, 17))
redis.call('PEXPIRE', task, kept)
if status == 'held' then return {'held', now, record[1], tonumber(record[2])} end
return {'new', now, record[1], tonumber(record[2]), unpack(cancelled)}
