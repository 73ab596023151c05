-- What has changed among the revocations since a version.
-- KEYS: revocations (hash), news (list), version (hash: l lineage, n changes).
-- ARGV: lineage and changes that are known ('' and -1: none).
-- Returns {lineage, changes, 0, news…} with the newest first, or {lineage, changes, 1, what, entry, …} with all.
local version = redis.call('HMGET', KEYS[3], 'l', 'n')
local lineage, changes = version[1] or '', tonumber(version[2] or 0)
local behind, whole, reply = changes - tonumber(ARGV[2]), 1, nil
if lineage == ARGV[1] and behind >= 0 and behind <= redis.call('LLEN', KEYS[2]) then
  whole, reply = 0, behind > 0 and redis.call('LRANGE', KEYS[2], 0, behind - 1) or {}
else
  reply = redis.call('HGETALL', KEYS[1])
end
for i, part in ipairs({lineage, changes, whole}) do table.insert(reply, i, part) end
return reply
