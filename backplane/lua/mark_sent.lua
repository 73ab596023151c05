-- Remember how far sessions' sockets have been sent their log (for clients that come without a cursor).
-- KEYS: session base…  ARGV: for each, epoch and seq.  Returns how many were moved forward.
local moved = 0
for i, base in ipairs(KEYS) do
  local record = redis.call('HMGET', base, 'e', 'h', 'p', 'd')
  local seq = math.min(tonumber(ARGV[2 * i]), standing(record, ARGV[2 * i - 1]))
  if seq > tonumber(record[4] or 0) then
    redis.call('HSET', base, 'd', seq)
    moved = moved + 1
  end
end
return moved
