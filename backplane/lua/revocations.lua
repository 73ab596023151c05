-- What has changed among the revocations since a version.
-- KEYS: revocations (hash), news (list), version.  ARGV: version known ('' for none), most news.
-- Returns {version, 0, news…} with the newest first, or {version, 1, what, entry, …} with all there are.
local version = tonumber(redis.call('GET', KEYS[3]) or 0)
local known = tonumber(ARGV[1])
local behind = known and version - known
local reply
if behind and behind >= 0 and behind <= redis.call('LLEN', KEYS[2]) then
  reply = behind > 0 and redis.call('LRANGE', KEYS[2], 0, behind - 1) or {}
  table.insert(reply, 1, 0)
else
  reply = redis.call('HGETALL', KEYS[1])
  table.insert(reply, 1, 1)
end
table.insert(reply, 1, version)
return reply
