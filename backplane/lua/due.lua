-- The tasks of a callback list at which a router has to look now: reserved ones whose action may never have been
-- pushed, ones that are being cancelled, and those past their deadline.
-- KEYS: list's due.  ARGV: what task records' names begin with, how many, when they are looked at again (ms from now),
--       then the fields to return.
-- Returns {when the next is due (ms since 1970; '' none), then for each task: id, fields…}. A task whose record
-- is gone is forgotten.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local reply = {''}
for _, task in ipairs(redis.call('ZRANGE', KEYS[1], '-inf', now, 'BYSCORE', 'LIMIT', 0, ARGV[2])) do
  local told = redis.call('HMGET', ARGV[1] .. task, unpack(ARGV, 4))
  if not told[1] or ENDED[told[1]] then
    redis.call('ZREM', KEYS[1], task)
  else
    redis.call('ZADD', KEYS[1], now + ARGV[3], task)
    reply[#reply + 1] = task
    for i = 1, #ARGV - 3 do reply[#reply + 1] = told[i] or '' end
  end
end
local following = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if following[2] then reply[1] = string.format('%.0f', following[2]) end
return reply
