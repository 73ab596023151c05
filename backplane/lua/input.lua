-- Take a client's answer to what a task's agent has asked him. The first one counts; it may be sent again.
-- KEYS: task, session base.  ARGV: user (see _session.lua), what was asked (id), fingerprint of the answer, then the
--       fields to return.
-- Returns {'unknown'}, {'not_yours'}, {'not_wanted'}, {'expired'}, or {'taken', fields…}.
local asked = ARGV[2]
local told = redis.call('HMGET', KEYS[1], 'status', 'input', 'input_expires', 'input_answer')
local owner = redis.call('HGET', KEYS[2], 'u')
if not told[1] then return {'unknown'} end
if owner and owner ~= '' and owner ~= ARGV[1] and ARGV[1] ~= '*' then return {'not_yours'} end
local answer = asked .. ' ' .. ARGV[3]
if told[4] ~= answer or ENDED[told[1]] then
  if told[1] ~= 'input_required' or told[2] ~= asked then return {'not_wanted'} end
  if string.find(told[4] or '', asked .. ' ', 1, true) == 1 then return {'not_wanted'} end
  local time = redis.call('TIME')
  local expires = tonumber(told[3] or 0)
  if expires > 0 and time[1] * 1000 + math.floor(time[2] / 1000) > expires then return {'expired'} end
  redis.call('HSET', KEYS[1], 'input_answer', answer)
end
local reply = redis.call('HMGET', KEYS[1], unpack(ARGV, 4))
for i = 1, #reply do reply[i] = reply[i] or '' end
table.insert(reply, 1, 'taken')
return reply
