-- Remember how far sessions' sockets have been sent their log (for clients that come without a cursor).
-- KEYS: session base…  ARGV: for each, epoch and seq.  Returns how many were moved forward.
local moved = 0
for i, base in ipairs(KEYS) do
  local record = redis.call('HMGET', base, 'e', 'd')
  local seq = tonumber(ARGV[2 * i])
  if record[1] == ARGV[2 * i - 1] and seq > tonumber(record[2] or 0) then
    redis.call('HSET', base, 'd', seq)
    moved = moved + 1
  end
end
return moved
