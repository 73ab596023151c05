-- What an agent has said so far of its answer stands in `<task record>:stream` (hash: attempt, and how many characters
-- of text and of reasoning) and in the strings `<task record>:text` and `…:reasoning`, as the inside of a JSON string.
-- All three are gone with the task's end, whose message has the whole. The session's `…:streams` says which tasks
-- have them.

-- after(inner, count) -> the inside of a JSON string without its first `count` characters. It is as msgspec writes it:
-- UTF-8, with escapes for single characters only.
local function after(inner, count)
  local at = 1
  for _ = 1, count do
    local byte = string.byte(inner, at) or 0
    if byte == 92 then at = at + (string.sub(inner, at + 1, at + 1) == 'u' and 6 or 2)
    elseif byte < 192 then at = at + 1
    elseif byte < 224 then at = at + 2
    elseif byte < 240 then at = at + 3
    else at = at + 4 end
  end
  return string.sub(inner, at)
end

-- speech(prefix, base, kept, most) -> what to do with the streams of one session's tasks.
--   grow(task, detail, piece): what the agent says next. `detail` is attempt, part, offset and length (characters).
--     Returns the head under which the rest of it is published, and that rest; nothing if it is a copy, of an earlier
--     attempt, does not follow, or if there is no room for it
--   finish(task): it ends; returns whether it had a stream
--   write(): writes all that
local function speech(prefix, base, kept, most)
  local streams, ended = {}, {}

  local function stream_of(task)
    if not streams[task] then
      local state = redis.pcall('HMGET', prefix .. task .. ':stream', 'attempt', 'text', 'reasoning')
      if type(state) ~= 'table' or state.err then state = {} end
      streams[task] = {
        attempt = tonumber(state[1] or 0), text = tonumber(state[2] or 0), reasoning = tonumber(state[3] or 0),
        new = {text = '', reasoning = ''}, size = {},
      }
    end
    return streams[task]
  end

  local function grow(task, detail, piece)
    local attempt, part, offset, length = string.match(detail, '^(%d+) (%a+) (%d+) (%d+)$')
    attempt, offset, length = tonumber(attempt), tonumber(offset), tonumber(length)
    local stream = stream_of(task)
    if attempt < stream.attempt then return end
    if attempt > stream.attempt then
      stream.anew = stream.attempt > 0
      stream.attempt, stream.text, stream.reasoning, stream.changed = attempt, 0, 0, true
      stream.new, stream.size = {text = '', reasoning = ''}, {text = 0, reasoning = 0}
    end
    local has = stream[part]
    if offset > has or offset + length <= has then return end
    if offset < has then piece = after(piece, has - offset) end
    local size = stream.size[part] or redis.call('STRLEN', prefix .. task .. ':' .. part)
    if size + #piece > most then return end
    stream.size[part], stream[part], stream.changed = size + #piece, offset + length, true
    stream.new[part] = stream.new[part] .. piece
    return table.concat({'+' .. task, attempt, part, has, offset + length - has}, ' '), piece
  end

  local function finish(task)
    ended[task] = streams[task] ~= nil or redis.call('EXISTS', prefix .. task .. ':stream') == 1
    return ended[task]
  end

  local function write()
    for task, stream in pairs(streams) do
      local key = prefix .. task
      if stream.changed and ended[task] == nil then
        if stream.anew then redis.call('DEL', key .. ':text', key .. ':reasoning') end
        for part, piece in pairs(stream.new) do
          if piece ~= '' and redis.call('APPEND', key .. ':' .. part, piece) == #piece then
            redis.call('PEXPIRE', key .. ':' .. part, kept)
          end
        end
        local fields = {'attempt', stream.attempt, 'text', stream.text, 'reasoning', stream.reasoning}
        if redis.call('HSET', key .. ':stream', unpack(fields)) > 0 then
          redis.call('PEXPIRE', key .. ':stream', kept)
          redis.call('SADD', base .. ':streams', task)
          redis.call('PEXPIRE', base .. ':streams', kept)
        end
      end
    end
    for task, had in pairs(ended) do
      if had then
        redis.call('DEL', prefix .. task .. ':stream', prefix .. task .. ':text', prefix .. task .. ':reasoning')
        redis.call('SREM', base .. ':streams', task)
      end
    end
  end

  return {grow = grow, finish = finish, write = write}
end
