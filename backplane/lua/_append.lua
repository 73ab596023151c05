-- What every script shares that appends to session logs. Its arguments for that, from ARGV[at] on: epoch for new
-- sessions, retention (ms), oldest timestamp to keep, entries and bytes a log may have, digests a session remembers,
-- PUBLISH or SPUBLISH, what task records' names begin with, how long the record of a task that has ended is kept (ms),
-- how long after its deadline a task is waited for (ms), 'show' if answers after that are shown, bytes that are kept of
-- what an agent says, how often the log gets the same step of a task (ms).

-- Raise a write's error after taking back what was written before it: no retry must find the entries in the log
-- but not their digests, or the other way round.
local function or_undo(reply, base, log, count, record)
  if type(reply) ~= 'table' or not reply.err then return end
  for _ = 1, count do redis.call('RPOP', log) end
  if record then redis.call('HSET', base, 'h', record[2] or 0, 'b', record[4] or 0) end
  error(reply.err)
end

local function step_of(detail)
  return string.match(detail, '^[^ ]* [^ ]* [^ ]* [^ ]* ([^ ]+)$') or ''
end

-- appender(lineage, at) -> append, counts.
--
-- append(base, from, count, group, forced, behind) appends one session's entries. ARGV[from…] holds `count` times
-- position, digest, body, kind, task, detail. Without a digest it is only published. `kind` is 't' for what ends
-- a task (`detail` is how, and its usage), 'p' for a report of its progress (`detail` is its status, the ms by which it
-- asks to be given more time, the id of what it asks the user and until when, and which step it reports if others may
-- take its place), 'c' for a piece of its answer (`body` is the inside of a JSON string, `detail` see _stream.lua),
-- '' for what is of no task. `forced` entries end a task that is being cancelled; all others of such a task, or of one
-- that has ended, come too late. `behind` is a task of which the log lacks something that Redis has: what it was asked,
-- and what it reported last (see task_notes()).
-- Of each that is not in the log now `counts.traces` gets '#' and its position, and why: 'duplicate', 'late', 'ignored'
-- (a piece without use), or 'held' (see held_back()).
-- Returns an error text instead of appending if the session's keys are of a wrong type. Types are tried by reads and
-- by the first write, so that no group is left half written. A new epoch is that of the arguments, with `group` but
-- for 1, so that no two sessions ever have the same one.
local function appender(lineage, at)
  local new_epoch, retention, oldest = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2]
  local max_entries, max_bytes = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  local remembered, publish_command = tonumber(ARGV[at + 5]), ARGV[at + 6]
  local task_prefix, task_kept, grace, show = ARGV[at + 7], ARGV[at + 8], tonumber(ARGV[at + 9]), ARGV[at + 10] == 'show'
  local most_text, every = tonumber(ARGV[at + 11]), tonumber(ARGV[at + 12])
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  local counts = {appended = 0, duplicates = 0, unpublished = 0, late = 0, pieces_ignored = 0, collapsed = 0, soon = 0,
                  pieces = 0, seen = {}, traces = {}}

  local function publish(channel, payload)
    local reply = redis.pcall(publish_command, channel, payload)
    if type(reply) == 'table' and reply.err then counts.unpublished = counts.unpublished + 1 end
  end

  -- Keep a log within its bounds, and now and then see to its age and to when the session's keys expire. The
  -- newest entry always stays: what nobody was sent yet must not go because it is large.
  local function tend(base, log, seen, head, length, bytes, due)
    local before = bytes
    local function pop()
      bytes, length = bytes - #redis.call('LPOP', log), length - 1
    end
    if due then
      while length > 1 and string.sub(redis.call('LINDEX', log, 0), 15, 38) < oldest do pop() end
      redis.call('ZREMRANGEBYSCORE', seen, '-inf', head - remembered)
      for _, key in ipairs({base, log, seen}) do redis.call('PEXPIRE', key, retention + retention / 8) end
      redis.call('HSET', base, 'a', now)
    end
    while length > 1 and (length > max_entries or bytes > max_bytes) do pop() end
    if length == 1 and bytes > max_bytes then bytes = #redis.call('LINDEX', log, 0) end  -- had drifted
    if bytes ~= before then redis.call('HSET', base, 'b', bytes) end
  end

  local function append(base, from, count, group, forced, behind)
    local log, seen = base .. ':log', base .. ':seen'
    local record = redis.pcall('HMGET', base, 'e', 'h', 'p', 'b', 'a', 'l')
    local refused = wrong_type(record)
    if refused then return refused end

    local digests = {}
    for i = 0, count - 1 do digests[i + 1] = ARGV[from + 6 * i + 1] end
    local known = count == 0 and {} or redis.pcall('ZMSCORE', seen, unpack(digests))
    refused = wrong_type(known)
    if refused then return refused end

    local same = record[6] == lineage  -- this server wrote the last entry, so it has all that ever was in the log
    local epoch = same and record[1] or new_epoch .. (group > 1 and group or '')
    local head = tonumber(record[2] or 0)
    local bytes, grown = tonumber(record[4] or 0), 0
    local entries, scores, mine, segments, left_out = {}, {}, {}, {}, false
    local tasks = task_notes(task_prefix, base, epoch, now, task_kept, grace, show, every, counts)
    local streams = speech(task_prefix, base, now, task_kept, most_text)

    local function leave_out(at, why)
      counts.traces[#counts.traces + 1] = '#' .. ARGV[at]
      counts.traces[#counts.traces + 1] = why
    end

    local function enter(digest, body)
      mine[digest] = true
      head, grown = head + 1, grown + #body
      entries[#entries + 1] = body
      scores[#scores + 1] = head
      scores[#scores + 1] = digest
      local segment = segments[#segments]
      if segment and segment.log then
        segment[#segment + 1] = body
      else
        segments[#segments + 1] = {epoch .. ':' .. head, body, log = true}
      end
    end

    -- A task's question stands before the first that is said of it, whoever is faster.
    local function enter_question(task)
      local question = tasks.question(task, head + 1)
      local digest = 'question ' .. task
      if question and not redis.call('ZSCORE', seen, digest) then
        enter(digest, question)
        counts.appended = counts.appended - 1  -- that is no callback
      end
    end

    local function finish(task)
      if tasks.is_foreign(task) or not streams.finish(task, tasks.is_known(task)) then return end
      segments[#segments + 1] = {'-' .. task}
    end

    -- The same step again is not for the log yet, if at all: a newer one may take its place. It is known from now on,
    -- or a copy of it would take a newer one's.
    local function held_back(kind, task, detail, digest, body)
      local held, before = tasks.hold_back(task, kind == 'p' and step_of(detail) or '', digest, body)
      if before then counts.collapsed = counts.collapsed + 1 end
      if held then
        mine[digest], left_out = true, true
        scores[#scores + 1] = head
        scores[#scores + 1] = digest
      end
      return held
    end

    local function enter_pending(task, step)
      local body, digest, dropped = tasks.pending(task, step, head + 1)
      if body then enter(digest, body) end
      if dropped then counts.collapsed = counts.collapsed + 1 end
    end

    if behind then
      enter_question(behind)
      enter_pending(behind, '')
    end
    for i = 1, count do
      local digest, at = digests[i], from + 6 * (i - 1)
      local body, kind, task, detail = ARGV[at + 2], ARGV[at + 3], ARGV[at + 4], ARGV[at + 5]
      if kind == 'p' or kind == 't' then body = tasks.traced(task, body) end
      if kind == 'c' then
        local told, piece, begins
        if not tasks.is_over(task) and not tasks.is_foreign(task) then
          told, piece, begins = streams.grow(task, detail, body)
        end
        if told then
          enter_question(task)
          segments[#segments + 1] = {told, piece}
          counts.pieces = counts.pieces + 1
          tasks.note(task, kind, 'working#' .. string.match(detail, '%d+'), nil, begins)
        else
          counts.pieces_ignored = counts.pieces_ignored + 1
          leave_out(at, 'ignored')
        end
      elseif digest == '' then
        segments[#segments + 1] = {'~', body}
      elseif known[i] or mine[digest] then
        counts.duplicates = counts.duplicates + 1
        leave_out(at, 'duplicate')
        -- It is in the log; an error may have kept that from being noted with its task.
        if known[i] and kind == 't' then
          tasks.note(task, kind, detail, nil)
          finish(task)
        elseif kind == 'p' then
          tasks.repeated(task, detail)
        end
      elseif kind ~= '' and not forced and tasks.is_late(task, kind, body) then
        counts.late = counts.late + 1
        leave_out(at, 'late')
      elseif held_back(kind, task, detail, digest, body) then
        leave_out(at, 'held')
        tasks.note(task, kind, detail, nil)
      else
        if kind ~= '' then
          enter_question(task)
          enter_pending(task, kind == 'p' and step_of(detail) or nil)
          tasks.note(task, kind, detail, head + 1)
        end
        if kind == 't' then finish(task) end
        enter(digest, body)
      end
    end

    local function tell()
      streams.write()
      local begun, soon = tasks.write()
      for _, task in ipairs(begun) do publish(base, '?' .. task) end
      if soon then counts.soon = 1 end
      for _, segment in ipairs(segments) do publish(base, table.concat(segment, '\n')) end
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
      counts.appended = counts.appended + #entries
      tell()
      local due = length == #entries or head % 256 < #entries
      due = due or now - tonumber(record[5] or 0) > retention / 16
      tend(base, log, seen, head, length, bytes, due)
    else
      if left_out then redis.call('ZADD', seen, unpack(scores)) end
      tell()
    end
    -- Many of these may stand at one seq, so they do not go with that.
    if left_out and redis.call('ZCARD', seen) > remembered + 256 then
      redis.call('ZREMRANGEBYRANK', seen, 0, -remembered - 1)
    end
  end
  return append, counts
end
