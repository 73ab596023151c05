-- Move callbacks from the right of a callback list into their sessions' logs, publish them, trim the list.
--
-- The router has read the callbacks (peek) and turned each into a log entry; here each gets its seq, and
-- nothing is taken from the list before everything else is done. A router that died half-way has moved
-- nothing, or all. A router that slept since it read is refused by the fence.
--
-- A session whose keys hold something else (WRONGTYPE) must not block its list: its callbacks go to the
-- dead letters. Any other error ends the script with the list untrimmed; what was appended by then is known by its digest
-- when the router tries again.
--
-- KEYS: list, fence, dead letters, session base…; on a cluster also all other keys that it writes to, so that
--       Redis refuses while only a part of them has been moved to another node.
-- ARGV: 1 lineage, 2 fence read, 3 new fence, 4 callbacks taken, 5 count, 6 budget and 7 largest for take(),
--       8 dead letters and 9 bytes of them to keep, 10… what _append.lua takes, 23 sessions;
--       then for each session: how many, and as many times what append() takes; then to the end: position, reason,
--       detail of each dead letter.
-- Returns {0} if the fence has moved, else
--   {1, appended, duplicates, dead, dead letters dropped for room, publishes refused, late, pieces ignored,
--   steps left out for newer ones, 1 if the tasks of the list have to be looked at soon, pieces of answers that were
--   published, what was seen of tasks (see task_notes()), {task, its client's traceparent, …} of entries that were put
--   into that trace and {'#position', why, …} of what is not in a log, callbacks…}.
local list, fence, dead = KEYS[1], KEYS[2], KEYS[3]
if (redis.call('GET', fence) or '') ~= ARGV[2] then return {0} end
local taken = tonumber(ARGV[4])
if redis.call('LLEN', list) < taken then return {0} end

local buried, dropped = 0, 0

local function bury(position, reason, detail)
  local raw, most = redis.call('LINDEX', list, -position - 1), tonumber(ARGV[9])
  local size = #raw
  if size > most then raw = string.sub(raw, 1, math.min(most, 4096)) end
  redis.call('XADD', dead, '*', 'reason', reason, 'detail', detail, 'size', size, 'raw', raw)
  local bytes, kept = redis.call('INCRBY', dead .. ':bytes', #raw), redis.call('XLEN', dead)
  while kept > 1 and (kept > tonumber(ARGV[8]) or bytes > most) do
    local old = redis.call('XRANGE', dead, '-', '+', 'COUNT', 1)[1]
    redis.call('XDEL', dead, old[1])
    bytes = redis.call('DECRBY', dead .. ':bytes', #old[2][8])
    dropped, kept = dropped + 1, kept - 1
  end
  if kept == 1 then redis.call('SET', dead .. ':bytes', #raw) end  -- others may delete letters and not count
  buried = buried + 1
end

local append, counts = appender(ARGV[1], 10)
local at = 23
for group = 1, tonumber(ARGV[23]) do
  local count = tonumber(ARGV[at + 1])
  local refused = append(KEYS[group + 3], at + 2, count, group)
  if refused then
    for i = 0, count - 1 do
      if ARGV[at + 6 * i + 3] ~= '' then
        bury(tonumber(ARGV[at + 6 * i + 2]), 'session_unusable', refused)
        counts.traces[#counts.traces + 1] = '#' .. ARGV[at + 6 * i + 2]
        counts.traces[#counts.traces + 1] = 'dead'
      end
    end
  end
  at = at + 1 + 6 * count
end
at = at + 1
while ARGV[at] do
  bury(tonumber(ARGV[at]), ARGV[at + 1], ARGV[at + 2])
  at = at + 3
end

redis.call('SET', fence, ARGV[3], 'EX', 604800)
redis.call('LTRIM', list, 0, -taken - 1)
local reply = take(list, tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]))
local told = {1, counts.appended, counts.duplicates, buried, dropped, counts.unpublished, counts.late,
              counts.pieces_ignored, counts.collapsed, counts.soon, counts.pieces,
              counts.seen, counts.traces}
for i, count in ipairs(told) do table.insert(reply, i, count) end
return reply
