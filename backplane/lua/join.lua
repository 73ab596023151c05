-- Count a connection of a pod with its tenant, session and user, or with none of them if one has enough.
--
-- Each has a hash of how many connections each pod has. A pod that was killed leaves its fields behind, so the
-- pod names those that live, as far as it knows. Fields of others are told, and nothing is changed; when the pod
-- has made sure that these are dead, it names them so, and they are deleted. Whoever is merely not among the living
-- is not: that pod may have come, and counted a connection, since the view was taken.
--
-- KEYS: limits, tenant's counts, session's, user's (absent: no user).
-- ARGV: pod, ttl (ms), most connections of the tenant, session and user (0: unlimited), live pods, dead pods
--       (each with a space before and behind it).
-- Returns {'counted'}; {'tenant', 'session' or 'user', most} of the first that has enough;
--   or {'unknown', pods…}: these have fields and were not named.
local pod, ttl, live, dead = ARGV[1], ARGV[2], ARGV[6], ARGV[7]
local most = {tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])}
local override = redis.call('HGET', KEYS[1], 'connections')
if override and string.find(override, '^%d+$') then most[1] = tonumber(override) end

local full, left_behind, unknown = nil, {}, {'unknown'}
for i = 2, #KEYS do
  local counts, sum = redis.call('HGETALL', KEYS[i]), 0
  for field = 1, #counts, 2 do
    local name = ' ' .. counts[field] .. ' '
    if string.find(live, name, 1, true) then
      sum = sum + counts[field + 1]
    elseif string.find(dead, name, 1, true) then
      left_behind[#left_behind + 1] = {KEYS[i], counts[field]}
    else
      unknown[#unknown + 1] = counts[field]
    end
  end
  local enough = most[i - 1]
  if not full and enough > 0 and sum >= enough then
    full = {({'tenant', 'session', 'user'})[i - 1], enough}
  end
end
if unknown[2] then return unknown end

for _, field in ipairs(left_behind) do redis.call('HDEL', field[1], field[2]) end
if full then return full end
for i = 2, #KEYS do
  redis.call('HINCRBY', KEYS[i], pod, 1)
  redis.call('PEXPIRE', KEYS[i], ttl)
end
return {'counted'}
