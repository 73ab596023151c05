-- A task's record is a hash: status, session_id, agent_id, tier, user_id, queue (where its action is), accepted,
-- started, ended, deadline and latest (how far the deadline can be put off) in ms since 1970, attempt, cursor
-- (the session's position before it), epoch, first and last (of its messages in the log), question (what it was asked,
-- as a log entry, as long as that is not in the log), usage (JSON), reason (why it is cancelled), late and late_answer
-- (what came after its end), input and input_expires (what its agent asks the user: its id, until when) and
-- input_answer (the id of what was answered last, and a fingerprint of the answer).
--
-- A status: 'reserved' (its action is about to be pushed), 'queued', 'working', 'input_required', 'cancelling', and at
-- the end 'completed', 'failed', 'timeout' or 'cancelled'. A task that runs is in its session's `…:tasks` and in its
-- list's `…:due`, by the time at which a router has to look at it.

local ENDED = {completed = true, failed = true, timeout = true, cancelled = true}
local LATE_ANSWER_MAX = 65536

-- task_notes(prefix, base, epoch, now, kept, grace, show) -> what to do with the task records of one session's entries.
--   is_late(task, kind, body): it has ended, or is being cancelled; counts and keeps what came too late
--   is_over(task): the same, of what is only streamed
--   question(task, seq): what it was asked, if that is not in the log yet, where it now gets this seq
--   note(task, kind, detail, seq, begins): an entry of it stands in the log (seq nil: none, or from before); of a piece
--     of its answer whether an attempt begins with it
--   write(): writes all that was noted, once the entries stand; returns the tasks on which work has begun
local function task_notes(prefix, base, epoch, now, kept, grace, show)
  local found, notes, begun = {}, {}, {}
  local active, due = base .. ':tasks', string.sub(prefix, 1, -3) .. 'due'

  local function status_of(task)
    if found[task] == nil then
      local reply = redis.pcall('HMGET', prefix .. task, 'status', 'first', 'started', 'latest', 'deadline', 'question')
      found[task] = type(reply) == 'table' and not reply.err and reply or {false}
    end
    return found[task]
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

  local function question(task, seq)
    local record = status_of(task)
    local asked = record[1] and not ENDED[record[1]] and record[6]
    if not asked then return nil end
    record[2], record[6] = seq, false
    notes[task] = {first = seq, last = seq, epoch = epoch, asked = true}
    return asked
  end

  local function note(task, kind, detail, seq, begins)
    local record = status_of(task)
    if not record[1] or ENDED[record[1]] then return end  -- started elsewhere, or known to have ended
    if kind == 'c' and record[1] == 'working' and not begins then return end
    local fields = notes[task] or {}
    notes[task] = fields
    if seq then
      if not record[2] then record[2], fields.first = seq, seq end
      fields.last, fields.epoch = seq, epoch
    end
    if not record[3] then
      record[3], fields.started = now, now
      if kind ~= 't' then begun[#begun + 1] = task end
    end
    local status, attempt, more = string.match(detail, '^([%a_]+)#?(%d*) ?(.*)$')
    if attempt ~= '' then fields.attempt = attempt end
    if record[1] == 'reserved' then fields.due = true end  -- so it was pushed, and is waited for until its deadline
    record[1], fields.status = status, status
    if kind == 't' then
      fields.ended = now
      if more ~= '' then fields.usage = more end
    else
      local longer, input, expires = string.match(more, '^(%d*) ?(%S*) ?(%d*)$')
      if kind == 'p' then fields.input, fields.input_expires = input or '', expires or '' end
      local deadline = math.min(now + (tonumber(longer) or 0), tonumber(record[4] or 0))
      if deadline > tonumber(record[5] or 0) then
        record[5], fields.deadline, fields.due = deadline, deadline, true
      end
    end
  end

  local function write()
    for task, fields in pairs(notes) do
      local args, key = {}, prefix .. task
      local later = fields.due
      fields.due = nil
      if fields.asked then redis.call('HDEL', key, 'question') end
      fields.asked = nil
      for name, value in pairs(fields) do
        args[#args + 1] = name
        args[#args + 1] = value
      end
      redis.call('HSET', key, unpack(args))
      if fields.ended then
        redis.call('PEXPIRE', key, kept)
        redis.pcall('ZREM', active, task)  -- pcall: what is of a wrong type must not block the list
        redis.pcall('ZREM', due, task)
      elseif later then
        redis.pcall('ZADD', due, 'XX', tonumber(found[task][5] or 0) + grace, task)
      end
    end
    return begun
  end

  return {question = question, is_over = is_over, is_late = is_late, note = note, write = write}
end
