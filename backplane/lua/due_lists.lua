-- The callback lists that have tasks at which a router has to look now.
-- KEYS: lists that have tasks, by when the first of them is due.  ARGV: 1 for all of them, due or not.
-- Returns {now (ms since 1970), lists…}.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local reply = redis.call('ZRANGE', KEYS[1], '-inf', ARGV[1] == '1' and '+inf' or now, 'BYSCORE')
table.insert(reply, 1, now)
return reply
