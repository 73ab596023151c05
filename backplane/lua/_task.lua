-- A task's record is a hash: status, session_id, agent_id, tier, user_id, queue (where its action is), accepted,
-- started, ended, deadline and latest (how far the deadline can be put off) in ms since 1970, attempt, cursor
-- (the session's position before it), epoch, first and last (of its messages in the log), question (what it was asked,
-- as a log entry, as long as that is not in the log), usage (JSON), reason (why it is cancelled), late and late_answer
-- (what came after its end), input and input_expires (what its agent asks the user: its id, until when) and
-- input_answer (the id of what was answered last, and a fingerprint of the answer).
-- If its client brought a trace: traceparent.
-- Of one that was cancelled before its action was known to be pushed: unpushed (see _cancel.lua).
-- Of a task that waits for others: action (what is pushed when it goes on), timeout and extended (its time, and how far
-- that can be put off, ms). Of one that is cancelled when nobody is left: left (ms for which nobody may be there) and
-- alone (the generation of the session's newest connection, and since when (ms) there is none). Of one that reports a
-- step again and again: shown (which step is in the log, and since when) and pending (what was reported of it since:
-- 12 bytes digest, and the log entry).
--
-- A status: 'held' (it waits for others of its session to end), 'reserved' (its action is about to be pushed), 'queued',
-- 'working', 'input_required', 'cancelling', and at the end 'completed', 'failed', 'timeout' or 'cancelled'. A task that
-- runs is in its session's `…:tasks` and in its list's `…:due`, by the time at which a router has to look at it; there
-- also as 'left <task>' to see whether anybody is left, and as 'pending <task>' if something is.

local ENDED = {completed = true, failed = true, timeout = true, cancelled = true}

-- let_go_on(prefix, active, due, now): what waits for others of its session goes on if they have ended. A router looks
-- at it then; here its action cannot be pushed. Returns whether there is something.
local function let_go_on(prefix, active, due, now)
  local following = redis.pcall('ZRANGE', active, 0, 0)[1]  -- pcall: what is of a wrong type must not block the list
  if not following or redis.pcall('HGET', prefix .. following, 'status') ~= 'held' then return false end
  redis.pcall('ZADD', due, now, following)
  return true
end

local LATE_ANSWER_MAX = 65536
local NOTED_FIELDS = {
  'status', 'first', 'started', 'latest', 'deadline', 'question', 'shown', 'pending', 'session_id', 'accepted', 'tier',
  'agent_id', 'traceparent',
}

-- task_notes(prefix, base, epoch, now, kept, grace, show, every, told) -> what to do with the task records of one session's
-- entries.
--   is_late(task, kind, body): it has ended, or is being cancelled; counts and keeps what came too late
--   is_over(task): the same, of what is only streamed
--   question(task, seq): what it was asked, if that is not in the log yet, where it now gets this seq
--   hold_back(task, step, digest, body): whether it reports a step that is in the log for less than `every` ms: then
--     this is pending now. Returns also what was
--   pending(task, step, seq): what is pending, with its digest, if it is not of this step; it gets this seq, or is gone.
--     Returns also whether something was left out for good
--   traced(task, body): an entry of it, in its client's trace if that brought one and its agent does not know it; then
--     both are put into `told.traces`
--   note(task, kind, detail, seq, begins): an entry of it stands in the log (seq nil: none, or from before); of a piece
--     of its answer whether an attempt begins with it
--   repeated(task, detail): a report of it that is in the log: its time may go on all the same
--   is_known(task), is_foreign(task): whether it has a record; whether that is of another session
--   into `told.seen` goes what operators want to know: 'started' or how a task ended, ms since it was accepted, tier,
--   agent, and the client's traceparent (or its own id, if no client brought one)
--   write(): writes all that was noted, once the entries stand; returns the tasks on which work has begun, and whether a
--     router has to look at the list soon
local function task_notes(prefix, base, epoch, now, kept, grace, show, every, told)
  local found, notes, waits, begun, soon = {}, {}, {}, {}, false
  local active, due = base .. ':tasks', string.sub(prefix, 1, -3) .. 'due'
  local session = string.sub(base, #prefix + 1)  -- both begin alike, but for one letter

  local function status_of(task)
    if found[task] == nil then
      local reply = redis.pcall('HMGET', prefix .. task, unpack(NOTED_FIELDS))
      if type(reply) ~= 'table' or reply.err then reply = {false} end
      if reply[1] and reply[9] ~= session then reply = {false, foreign = true} end
      found[task] = reply
    end
    return found[task]
  end

  local function notes_of(task)
    notes[task] = notes[task] or {}
    return notes[task]
  end

  local function runs(task)
    local status = status_of(task)[1]
    return status and not ENDED[status]
  end

  local function is_over(task)
    local status = status_of(task)[1]
    return status and (ENDED[status] or status == 'cancelling')
  end

  local function is_late(task, kind, body)
    if not is_over(task) then return false end
    redis.call('HINCRBY', prefix .. task, 'late', 1)
    if kind ~= 't' then return true end
    if #body <= LATE_ANSWER_MAX then redis.call('HSET', prefix .. task, 'late_answer', body) end
    return not (show and status_of(task)[1] == 'timeout')
  end

  -- Whether a task has asked its user something that he may still answer.
  local function is_asking(task)
    local input, expires, answer = unpack(redis.call('HMGET', prefix .. task, 'input', 'input_expires', 'input_answer'))
    if (input or '') == '' or string.find(answer or '', input .. ' ', 1, true) == 1 then return false end
    return (tonumber(expires) or 0) == 0 or now <= tonumber(expires)
  end

  -- An entry ends in "metadata":{"traceparent":"00-<trace>-<span>-<flags>", if it has a trace (trace_context.py). Only one
  -- in the task's own trace, which follows from its id, knows no better. A span that is not of the id is the router's.
  local function traced(task, body)
    local given = status_of(task)[13]
    if not given then return body end
    local own = string.gsub(task, '-', '')
    if string.sub(body, -57, -23) ~= '00-' .. own then return body end
    told.traces[#told.traces + 1] = task
    told.traces[#told.traces + 1] = given
    if string.sub(body, -21, -6) == string.sub(own, 17) then return string.sub(body, 1, -58) .. given .. '",' end
    return string.sub(body, 1, -55) .. string.sub(given, 4, 35) .. string.sub(body, -22, -5) .. string.sub(given, 54) .. '",'
  end

  local function question(task, seq)
    local record = status_of(task)
    local asked = runs(task) and record[6]
    if not asked then return nil end
    local fields = notes_of(task)
    record[2], record[6] = seq, false
    fields.first, fields.last, fields.epoch, fields.question = seq, seq, epoch, false
    return asked
  end

  local function hold_back(task, step, digest, body)
    if step == '' or every == 0 or not runs(task) then return false end
    local record = status_of(task)
    local shown, at = string.match(record[7] or '', '^(%S+) (%d+)$')
    if shown ~= step or now - at >= every then return false end
    local before = record[8]
    if not before then waits[task] = at + every end
    notes_of(task).pending, record[8] = digest .. body, digest .. body
    return true, before
  end

  local function has_shown(task, step)
    local record = status_of(task)
    record[7] = step .. ' ' .. string.format('%.0f', now)
    notes_of(task).shown = record[7]
  end

  local function pending(task, step, seq)
    local record = status_of(task)
    local waiting = runs(task) and record[8]
    if not waiting then return nil end
    local fields = notes_of(task)
    fields.pending, record[8] = false, false
    local shown = string.match(record[7] or '', '^%S+') or ''
    if step == shown then return nil, nil, true end
    has_shown(task, shown)
    fields.last, fields.epoch = seq, epoch
    return string.sub(waiting, 13), string.sub(waiting, 1, 12)
  end

  local function lengthen(task, by)
    local record = status_of(task)
    local deadline = math.min(now + (tonumber(by) or 0), tonumber(record[4] or 0))
    if deadline <= tonumber(record[5] or 0) then return end
    local fields = notes_of(task)
    record[5], fields.deadline, fields.due = deadline, deadline, true
  end

  local function measure(what, task)
    local record = status_of(task)
    local after = math.max(0, now - (tonumber(record[10] or '') or now))
    told.seen[#told.seen + 1] =
      string.format('%s %.0f %s %s %s', what, after, record[11] or '', record[12] or '', record[13] or task)
  end

  local function note(task, kind, detail, seq, begins)
    local record = status_of(task)
    if not runs(task) then return end  -- started elsewhere, or known to have ended
    if kind == 'c' and record[1] == 'working' and not begins then return end
    local fields = notes_of(task)
    if seq then
      if not record[2] then record[2], fields.first = seq, seq end
      fields.last, fields.epoch = seq, epoch
    end
    if not record[3] then
      record[3], fields.started = now, now
      measure('started', task)
      if kind ~= 't' then begun[#begun + 1] = task end
    end
    local status, attempt, more = string.match(detail, '^([%a_]+)#?(%d*) ?(.*)$')
    if attempt ~= '' then fields.attempt = attempt end
    if record[1] == 'reserved' then fields.due = true end  -- so it was pushed, and is waited for until its deadline
    if kind == 't' then
      record[1], fields.status, fields.ended = status, status, now
      measure(status, task)
      if more ~= '' then fields.usage = more end
      return
    end
    local longer, input, expires, step = string.match(more, '^(%d*) ?([^ ]*) ?(%d*) ?([^ ]*)$')
    -- What it goes on saying does not take back what it has asked.
    if record[1] ~= 'input_required' or status == record[1] or not is_asking(task) then
      record[1], fields.status = status, status
      if kind == 'p' then fields.input, fields.input_expires = input or '', expires or '' end
    end
    if seq and every > 0 and step and step ~= '' then has_shown(task, step) end
    lengthen(task, longer)
  end

  local function repeated(task, detail)
    if runs(task) then lengthen(task, string.match(detail, '^[^ ]* (%d+)')) end
  end

  local function write()
    for task, fields in pairs(notes) do
      local set, gone, key = {}, {}, prefix .. task
      local later = fields.due
      fields.due = nil
      if fields.ended then fields.pending, fields.shown, fields.action, fields.alone = false, false, false, false end
      for name, value in pairs(fields) do
        if value then
          set[#set + 1] = name
          set[#set + 1] = value
        else
          gone[#gone + 1] = name
        end
      end
      if #gone > 0 then redis.call('HDEL', key, unpack(gone)) end
      if #set > 0 then redis.call('HSET', key, unpack(set)) end
      if fields.ended then
        redis.call('PEXPIRE', key, kept)
        redis.pcall('ZREM', active, task)
        redis.pcall('ZREM', due, task)
        soon = let_go_on(prefix, active, due, now) or soon
      elseif later then
        redis.pcall('ZADD', due, 'XX', tonumber(found[task][5] or 0) + grace, task)
      end
      if fields.pending and waits[task] then
        redis.pcall('ZADD', due, waits[task], 'pending ' .. task)
        soon = true
      end
    end
    return begun, soon
  end

  return {
    is_over = is_over, is_late = is_late, question = question, hold_back = hold_back, pending = pending, note = note,
    traced = traced, repeated = repeated, write = write,
    is_known = function(task) return status_of(task)[1] ~= false end,
    is_foreign = function(task) return status_of(task).foreign end,
  }
end
