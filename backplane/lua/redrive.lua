-- Take a dead letter away; with a list as third key, put it back in line there as the AES would.
-- KEYS: dead letters, their bytes, callback list (absent: drop it).  ARGV: id.
-- Returns 1; 0 if there is no such dead letter; -1 if it was stored cut and cannot be put back whole.
local found = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1]
if not found then return 0 end
local size, raw = tonumber(found[2][6]), found[2][8]
if KEYS[3] then
  if size ~= #raw then return -1 end
  redis.call('LPUSH', KEYS[3], raw)
end
redis.call('XDEL', KEYS[1], ARGV[1])
redis.call('DECRBY', KEYS[2], #raw)
return 1
