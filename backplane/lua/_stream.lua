-- What an agent has said so far of its answer stands in `<task record>:stream` (hash: attempt, and how many characters
-- of text and of reasoning) and in the strings `<task record>:text` and `…:reasoning`, as the inside of a JSON string.
-- All three are gone with the task's end, whose message has the whole. The session's `…:streams` (sorted set) says which
-- tasks have them, and when they expire (ms since 1970).

-- Returns the error reply if `reply` is WRONGTYPE; raises any other error.
local function wrong_type(reply)
  if type(reply) ~= 'table' or not reply.err then return nil end
  if string.find(reply.err, 'WRONGTYPE', 1, true) then return reply.err end
  error(reply.err)
end

local OVER = 9007199254740992  -- the attempt of an answer that is over: later than any
local OVER_KEPT_MS = 3600000

-- after(inner, count) -> the inside of a JSON string without its first `count` characters. It is as msgspec writes it:
-- UTF-8, with escapes for single characters only.
local function after(inner, count)
  local at = 1
  while count > 0 do
    local odd = string.find(inner, '[\\\128-\255]', at) or #inner + 1
    if odd - at >= count then return string.sub(inner, at + count) end
    count = count - (odd - at) - 1
    local byte = string.byte(inner, odd) or 0
    if byte == 92 then at = odd + (string.sub(inner, odd + 1, odd + 1) == 'u' and 6 or 2)
    elseif byte < 224 then at = odd + 2
    elseif byte < 240 then at = odd + 3
    else at = odd + 4 end
  end
  return string.sub(inner, at)
end

-- speech(prefix, base, now, kept, most) -> what to do with the streams of one session's tasks. Keys of a wrong type are as
-- good as none: they must not block the list.
--   grow(task, detail, piece): what the agent says next. `detail` is attempt, part, offset ('-': where the last one ended)
--     and length (characters).
--     Returns the head under which the rest of it is published, that rest, and whether the attempt begins with it;
--     nothing if it is a copy, of an earlier attempt, of a task that ends with this batch, does not follow, or if
--     there is no room for it
--   finish(task, known): it ends; returns whether it had a stream. One that is not known (it has no record) could begin
--     again with a copy of its first piece: that is remembered for a while
--   write(): writes all that
local function speech(prefix, base, now, kept, most)
  local streams, ended, strangers = {}, {}, {}

  local function stream_of(task)
    if not streams[task] then
      local state = redis.pcall('HMGET', prefix .. task .. ':stream', 'attempt', 'text', 'reasoning')
      local unusable = wrong_type(state)
      if unusable then state = {} end
      streams[task] = {
        unusable = unusable,
        attempt = tonumber(state[1] or 0), text = tonumber(state[2] or 0), reasoning = tonumber(state[3] or 0),
        new = {text = '', reasoning = ''}, size = {},
      }
    end
    return streams[task]
  end

  -- Bytes that are kept of a part; nil if they cannot be, or are no longer what was kept.
  local function size_of(stream, task, part)
    if stream.size[part] then return stream.size[part] end
    local size = redis.pcall('STRLEN', prefix .. task .. ':' .. part)
    if wrong_type(size) or (size == 0 and stream[part] > 0) then return nil end
    return size
  end

  local function grow(task, detail, piece)
    local attempt, part, offset, length = string.match(detail, '^(%d+) (%a+) ([%d-]+) (%d+)$')
    attempt, length = tonumber(attempt), tonumber(length)
    local stream = stream_of(task)
    if stream.unusable or ended[task] ~= nil or attempt < stream.attempt then return end
    local begins = attempt > stream.attempt
    if begins then
      stream.anew = true
      stream.attempt, stream.text, stream.reasoning, stream.changed = attempt, 0, 0, true
      stream.new, stream.size = {text = '', reasoning = ''}, {text = 0, reasoning = 0}
    end
    local has = stream[part]
    offset = tonumber(offset) or has
    if offset > has or offset + length <= has then return end
    local size = size_of(stream, task, part)
    if not size or size + offset + length - has > most then return end  -- before it costs anything
    if offset < has then piece = after(piece, has - offset) end
    if size + #piece > most then return end
    stream.size[part], stream[part], stream.changed = size + #piece, offset + length, true
    stream.new[part] = stream.new[part] .. piece
    local head = {'+' .. task, string.format('%.0f', attempt), part, has, offset + length - has}
    return table.concat(head, ' '), piece, begins
  end

  local function finish(task, known)
    if not known then strangers[task] = true end
    local stream = stream_of(task)
    ended[task] = stream.unusable ~= nil or stream.attempt > 0 and stream.attempt < OVER
    return ended[task]
  end

  -- The hash first: if Redis has no memory left, nothing has been written then.
  local function keep(task, stream)
    local key = prefix .. task
    local left = redis.call('PTTL', key .. ':stream')
    local attempt = string.format('%.0f', stream.attempt)
    redis.call('HSET', key .. ':stream', 'attempt', attempt, 'text', stream.text, 'reasoning', stream.reasoning)
    if stream.anew then redis.call('DEL', key .. ':text', key .. ':reasoning') end
    local renew = left < kept / 2  -- an agent may speak for longer than that
    for part, piece in pairs(stream.new) do
      local first = piece ~= '' and redis.call('APPEND', key .. ':' .. part, piece) == #piece
      if first or renew then redis.call('PEXPIRE', key .. ':' .. part, kept) end
    end
    if renew then
      redis.call('PEXPIRE', key .. ':stream', kept)
      wrong_type(redis.pcall('ZREMRANGEBYSCORE', base .. ':streams', '-inf', now))
      wrong_type(redis.pcall('ZADD', base .. ':streams', now + kept, task))
      redis.call('PEXPIRE', base .. ':streams', kept)
    end
  end

  local function write()
    for task, stream in pairs(streams) do
      if stream.changed and ended[task] == nil then keep(task, stream) end
    end
    for task, had in pairs(ended) do
      if had then
        redis.call('DEL', prefix .. task .. ':stream', prefix .. task .. ':text', prefix .. task .. ':reasoning')
        wrong_type(redis.pcall('ZREM', base .. ':streams', task))
        if strangers[task] then
          redis.call('HSET', prefix .. task .. ':stream', 'attempt', string.format('%.0f', OVER), 'text', 0, 'reasoning', 0)
          redis.call('PEXPIRE', prefix .. task .. ':stream', math.min(kept, OVER_KEPT_MS))
        end
      end
    end
  end

  return {grow = grow, finish = finish, write = write}
end
