-- A session's record is a hash: e epoch, h head (last seq), b bytes in the log, d highest seq that a socket
-- was sent, a when it was last tended (ms), g generation of its newest connection, l lineage of the server that
-- wrote its last entry, p epochs that ended (see _epoch.lua).

-- open_session(base, lineage, new_epoch, ttl_ms) -> HMGET's reply for e, h, p. Begins the record if there is none.
local function open_session(base, lineage, new_epoch, ttl_ms)
  local record = redis.call('HMGET', base, 'e', 'h', 'p')
  if not record[1] then
    record = {new_epoch, '0'}
    redis.pcall('LTRIM', base .. ':log', 1, 0)  -- a log that outlived its record: no seqs fit it
    redis.call('HSET', base, 'e', new_epoch, 'h', 0, 'b', 0, 'd', 0, 'a', 0, 'l', lineage)
  end
  redis.call('PEXPIRE', base, ttl_ms)
  return record
end
