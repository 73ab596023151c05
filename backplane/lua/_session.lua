-- A session's record is a hash: e epoch, h head (last seq), b bytes in the log, d highest seq that a socket
-- was sent, a when it was last tended (ms), g generation of its newest connection, l lineage of the server that
-- wrote its last entry, p epochs that ended (see _epoch.lua), u the user to whom it belongs ('': to the whole tenant;
-- absent: nobody has used it yet, the router began it).

-- open_session(base, lineage, new_epoch, ttl_ms, user) -> HMGET's reply for e, h, p, u; nil if the session belongs to
-- another user. Begins the record if there is none. `user` is '' where the token names none, '*' where it may use
-- every session of its tenant. Who uses a session first has it.
local function open_session(base, lineage, new_epoch, ttl_ms, user)
  local record = redis.call('HMGET', base, 'e', 'h', 'p', 'u')
  local owner = record[4]
  if owner and owner ~= '' and owner ~= user and user ~= '*' then return nil end
  if not record[1] then
    record = {new_epoch, '0'}
    redis.pcall('LTRIM', base .. ':log', 1, 0)  -- a log that outlived its record: no seqs fit it
    redis.call('HSET', base, 'e', new_epoch, 'h', 0, 'b', 0, 'd', 0, 'a', 0, 'l', lineage)
  end
  if not owner and user ~= '*' then redis.call('HSET', base, 'u', user) end
  redis.call('PEXPIRE', base, ttl_ms)
  return record
end
