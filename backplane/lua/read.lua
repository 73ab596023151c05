-- A page of a session's log after a position.
-- KEYS: session base, log.  ARGV: epoch, seq, count, budget (bytes).
-- Returns {epoch ('' if there is no session), head, oldest, standing, entries…}: `standing` is the highest seq of
-- the asked epoch that still stands; there are entries only if the position does.
local record = redis.call('HMGET', KEYS[1], 'e', 'h', 'p')
local head = tonumber(record[2] or 0)
local oldest = head + 1 - redis.call('LLEN', KEYS[2])
local stands, seq, reply = standing(record, ARGV[1]), tonumber(ARGV[2]), {}
if seq <= stands then
  reply = page(KEYS[2], oldest, seq, tonumber(ARGV[3]), tonumber(ARGV[4]))
end
for i, part in ipairs({record[1] or '', head, oldest, stands}) do table.insert(reply, i, part) end
return reply
