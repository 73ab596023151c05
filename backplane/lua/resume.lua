-- Where a new connection stands in its session's log, and the first page of what it lacks.
-- KEYS: session base, log.
-- ARGV: lineage, epoch and seq of the cursor ('' and 0 without one), count and budget (bytes) of a page,
--       epoch for a new session, ttl (ms), user (see _session.lua), what task records' names begin with, a seq from
--       which on to read although the client has it ('' for none).
-- Returns {status ('unknown' if the cursor's epoch is none of this log), epoch, from, head, oldest, generation, streams, running, entries…}; `from` is the seq before the first
-- entry, `streams` 1 if an answer of the session may be streamed,
-- `running` has for each task that runs: task, status, agent, attempt, accepted and deadline (ms since 1970).
-- {} if the session belongs to another user.
local record = open_session(KEYS[1], ARGV[1], ARGV[6], tonumber(ARGV[7]), ARGV[8])
if not record then return {} end
local epoch, head = record[1], tonumber(record[2])
local oldest = head + 1 - redis.call('LLEN', KEYS[2])
local status, from = 'replayed', tonumber(ARGV[3])
if ARGV[2] == '' then
  -- Store and forward: what no socket of the session has been sent.
  from = math.min(tonumber(redis.call('HGET', KEYS[1], 'd') or 0), head)
  if from == head then status = 'fresh' end
else
  local stands = standing(record, ARGV[2])
  if stands < 0 then status, from = 'unknown', -1
  elseif from > stands then status, from = 'reset', -1 end
end
if from + 1 < oldest then
  if status ~= 'unknown' then status = 'reset' end
  from = oldest - 1
end
if ARGV[10] ~= '' and status ~= 'reset' and status ~= 'unknown' then from = math.max(math.min(from, tonumber(ARGV[10])), oldest - 1) end
local generation = redis.call('HINCRBY', KEYS[1], 'g', 1)
local reply = page(KEYS[2], oldest, from, tonumber(ARGV[4]), tonumber(ARGV[5]))
local running = {}
for _, task in ipairs(redis.call('ZRANGE', KEYS[1] .. ':tasks', 0, -1)) do
  local fields = {'status', 'agent_id', 'attempt', 'accepted', 'deadline'}
  local told = redis.call('HMGET', ARGV[9] .. task, unpack(fields))
  if told[1] and not ENDED[told[1]] then
    running[#running + 1] = task
    for j = 1, #fields do running[#running + 1] = told[j] or '' end
  end
end
local streams = redis.call('EXISTS', KEYS[1] .. ':streams')
for i, part in ipairs({status, epoch, from, head, oldest, generation, streams, running}) do table.insert(reply, i, part) end
return reply
