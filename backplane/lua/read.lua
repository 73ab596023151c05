-- A page of a session's log after a position.
-- KEYS: session base, log.  ARGV: epoch, seq, count, budget (bytes).
-- Returns {epoch ('' if there is no session), head, oldest, entries…}; no entries if the epoch is another.
local record = redis.call('HMGET', KEYS[1], 'e', 'h')
local head = tonumber(record[2] or 0)
local oldest = head + 1 - redis.call('LLEN', KEYS[2])
local reply = {}
if record[1] == ARGV[1] then
  reply = page(KEYS[2], oldest, tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]))
end
for i, part in ipairs({record[1] or '', head, oldest}) do table.insert(reply, i, part) end
return reply
