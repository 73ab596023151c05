-- Move callbacks from the right of a callback list into their sessions' logs, publish them, trim the list.
--
-- The router has read the callbacks (peek) and turned each into a log entry; here each gets its seq, and
-- nothing is taken from the list before everything else is done. A router that died half-way has moved
-- nothing, or all. A router that slept since it read is refused by the fence.
--
-- A session whose keys hold something else (WRONGTYPE) must not block its list: its callbacks go to the
-- dead letters. Types are tried by reads and by the first write, so that no group is left half written.
-- Any other error ends the script with the list untrimmed; what was appended by then is known by its digest
-- when the router tries again.
--
-- KEYS: list, fence, dead letters, session base…; on a cluster also all other keys that it writes to, so that
--       Redis refuses while only a part of them has been moved to another node.
-- ARGV: 1 lineage, 2 fence read, 3 new fence, 4 callbacks taken, 5 count, 6 budget and 7 largest for take(),
--       8 epoch for new sessions, 9 retention (ms), 10 oldest timestamp to keep, 11 entries and
--       12 bytes a log may have, 13 digests a session remembers, 14 dead letters and 15 bytes of them to keep,
--       16 PUBLISH or SPUBLISH, 17 sessions;
--       then for each session: how many, and as many times position, digest, body
--       ('' as digest: publish only); then to the end: position, reason, detail of each dead letter.
-- Returns {0} if the fence has moved, else
--   {1, appended, duplicates, dead, dead letters dropped for room, publishes refused, callbacks…}.
local list, fence, dead = KEYS[1], KEYS[2], KEYS[3]
if (redis.call('GET', fence) or '') ~= ARGV[2] then return {0} end
local lineage, taken = ARGV[1], tonumber(ARGV[4])
if redis.call('LLEN', list) < taken then return {0} end

local retention, max_entries, max_bytes = tonumber(ARGV[9]), tonumber(ARGV[11]), tonumber(ARGV[12])
local remembered, publish_command = tonumber(ARGV[13]), ARGV[16]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local appended, duplicates, buried, dropped, unpublished = 0, 0, 0, 0, 0

-- Returns the error reply if `reply` is WRONGTYPE; raises any other error.
local function wrong_type(reply)
  if type(reply) ~= 'table' or not reply.err then return nil end
  if string.find(reply.err, 'WRONGTYPE', 1, true) then return reply.err end
  error(reply.err)
end

local function bury(position, reason, detail)
  local raw, most = redis.call('LINDEX', list, -position - 1), tonumber(ARGV[15])
  local size = #raw
  if size > most then raw = string.sub(raw, 1, math.min(most, 4096)) end
  redis.call('XADD', dead, '*', 'reason', reason, 'detail', detail, 'size', size, 'raw', raw)
  local bytes, kept = redis.call('INCRBY', dead .. ':bytes', #raw), redis.call('XLEN', dead)
  while kept > 1 and (kept > tonumber(ARGV[14]) or bytes > most) do
    local old = redis.call('XRANGE', dead, '-', '+', 'COUNT', 1)[1]
    redis.call('XDEL', dead, old[1])
    bytes = redis.call('DECRBY', dead .. ':bytes', #old[2][8])
    dropped, kept = dropped + 1, kept - 1
  end
  if kept == 1 then redis.call('SET', dead .. ':bytes', #raw) end  -- others may delete letters and not count
  buried = buried + 1
end

local function publish(channel, payload)
  local reply = redis.pcall(publish_command, channel, payload)
  if type(reply) == 'table' and reply.err then unpublished = unpublished + 1 end
end

-- Keep a log within its bounds, and now and then see to its age and to when the session's keys expire. The
-- newest entry always stays: what nobody was sent yet must not go because it is large.
local function tend(base, log, seen, head, length, bytes, due)
  local before = bytes
  local function pop()
    bytes, length = bytes - #redis.call('LPOP', log), length - 1
  end
  if due then
    while length > 1 and string.sub(redis.call('LINDEX', log, 0), 15, 38) < ARGV[10] do pop() end
    redis.call('ZREMRANGEBYSCORE', seen, '-inf', head - remembered)
    for _, key in ipairs({base, log, seen}) do redis.call('PEXPIRE', key, retention + retention / 8) end
    redis.call('HSET', base, 'a', now)
  end
  while length > 1 and (length > max_entries or bytes > max_bytes) do pop() end
  if length == 1 and bytes > max_bytes then bytes = #redis.call('LINDEX', log, 0) end  -- had drifted
  if bytes ~= before then redis.call('HSET', base, 'b', bytes) end
end

-- Raise a write's error after taking back what was written before it: no retry must find the entries in the log
-- but not their digests, or the other way round.
local function or_undo(reply, base, log, count, record)
  if type(reply) ~= 'table' or not reply.err then return end
  for _ = 1, count do redis.call('RPOP', log) end
  if record then redis.call('HSET', base, 'h', record[2] or 0, 'b', record[4] or 0) end
  error(reply.err)
end

-- Append one session's entries. ARGV[at…] holds `count` triples. Returns an error text instead of appending.
-- A new epoch is ARGV[8], with `group` but for the first, so that no two sessions ever have the same one.
local function append(base, at, count, group)
  local log, seen = base .. ':log', base .. ':seen'
  local record = redis.pcall('HMGET', base, 'e', 'h', 'p', 'b', 'a', 'l')
  local refused = wrong_type(record)
  if refused then return refused end

  local digests = {}
  for i = 0, count - 1 do digests[i + 1] = ARGV[at + 3 * i + 1] end
  local known = redis.pcall('ZMSCORE', seen, unpack(digests))
  refused = wrong_type(known)
  if refused then return refused end

  local same = record[6] == lineage  -- this server wrote the last entry, so it has all that ever was in the log
  local epoch, head = same and record[1] or ARGV[8] .. (group > 4 and group or ''), tonumber(record[2] or 0)
  local bytes, grown = tonumber(record[4] or 0), 0
  local entries, scores, mine, segments = {}, {}, {}, {}
  for i = 1, count do
    local digest, body = digests[i], ARGV[at + 3 * (i - 1) + 2]
    if digest == '' then
      segments[#segments + 1] = {'~', body}
    elseif known[i] or mine[digest] then
      duplicates = duplicates + 1
    else
      mine[digest] = true
      head, grown = head + 1, grown + #body
      entries[#entries + 1] = body
      scores[#scores + 1] = head
      scores[#scores + 1] = digest
      local segment = segments[#segments]
      if segment and segment[1] ~= '~' then
        segment[#segment + 1] = body
      else
        segments[#segments + 1] = {epoch .. ':' .. head, body}
      end
    end
  end

  if #entries > 0 then
    if not record[1] then redis.pcall('LTRIM', log, 1, 0) end  -- the log outlived its record: no seqs fit it
    local length = redis.pcall('RPUSH', log, unpack(entries))
    refused = wrong_type(length)
    if refused then return refused end
    if length == #entries then bytes = 0 end  -- the log had expired, or is new
    bytes = bytes + grown
    or_undo(redis.pcall('HSET', base, 'h', head, 'b', bytes), base, log, #entries)
    if not same then
      redis.call('HSET', base, 'e', epoch, 'l', lineage)
      if record[1] then redis.call('HSET', base, 'p', earlier(record)) end
    end
    or_undo(redis.pcall('ZADD', seen, unpack(scores)), base, log, #entries, record)
    appended = appended + #entries
    for _, segment in ipairs(segments) do publish(base, table.concat(segment, '\n')) end
    local due = length == #entries or head % 256 < #entries
    due = due or now - tonumber(record[5] or 0) > retention / 16
    tend(base, log, seen, head, length, bytes, due)
  else
    for _, segment in ipairs(segments) do publish(base, table.concat(segment, '\n')) end
  end
end

local at = 18
for group = 4, 3 + tonumber(ARGV[17]) do
  local count = tonumber(ARGV[at])
  local refused = append(KEYS[group], at + 1, count, group)
  if refused then
    for i = 0, count - 1 do
      if ARGV[at + 3 * i + 2] ~= '' then bury(tonumber(ARGV[at + 3 * i + 1]), 'session_unusable', refused) end
    end
  end
  at = at + 1 + 3 * count
end
while ARGV[at] do
  bury(tonumber(ARGV[at]), ARGV[at + 1], ARGV[at + 2])
  at = at + 3
end

redis.call('SET', fence, ARGV[3], 'EX', 604800)
redis.call('LTRIM', list, 0, -taken - 1)
local reply = take(list, tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]))
for i, count in ipairs({1, appended, duplicates, buried, dropped, unpublished}) do
  table.insert(reply, i, count)
end
return reply
