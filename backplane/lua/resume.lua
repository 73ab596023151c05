-- Where a new connection stands in its session's log, and the first page of what it lacks.
-- KEYS: session base, log.
-- ARGV: lineage, epoch and seq of the cursor ('' and 0 without one), count and budget (bytes) of a page,
--       epoch for a new session, ttl (ms), user (see _session.lua).
-- Returns {status, epoch, from, head, oldest, generation, entries…}; `from` is the seq before the first entry.
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
elseif from > standing(record, ARGV[2]) then
  status, from = 'reset', -1
end
if from + 1 < oldest then status, from = 'reset', oldest - 1 end
local generation = redis.call('HINCRBY', KEYS[1], 'g', 1)
local reply = page(KEYS[2], oldest, from, tonumber(ARGV[4]), tonumber(ARGV[5]))
for i, part in ipairs({status, epoch, from, head, oldest, generation}) do table.insert(reply, i, part) end
return reply
