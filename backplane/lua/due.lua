-- The tasks of a callback list at which a router has to look now: reserved ones whose action may never have been
-- pushed, ones that are being cancelled, and those past their deadline. Their records are read next, each by itself:
-- here they could not be told from ones that are gone while their slot is moved to another node.
-- KEYS: list's due.  ARGV: how many, when they are looked at again (ms from now).
-- Returns {when the next is due (ms since 1970; '' none), ids…}.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local reply = redis.call('ZRANGE', KEYS[1], '-inf', now, 'BYSCORE', 'LIMIT', 0, ARGV[1])
for _, task in ipairs(reply) do redis.call('ZADD', KEYS[1], now + ARGV[2], task) end
local following = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
table.insert(reply, 1, following[2] and string.format('%.0f', following[2]) or '')
return reply
