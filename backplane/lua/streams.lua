-- What the agents of a session's tasks have said so far.
-- KEYS: session's streams.  ARGV: what task records' names begin with.
-- Returns for each task that has a stream: task, attempt, characters of text, text, characters of reasoning, reasoning.
-- Keys of a wrong type are as good as none. Those that are missing here are not forgotten: their slot may be on its way.
local function or_none(reply)
  if type(reply) ~= 'table' or not reply.err then return reply end
  if string.find(reply.err, 'WRONGTYPE', 1, true) then return {} end
  error(reply.err)
end

local reply = {}
for _, task in ipairs(or_none(redis.pcall('ZRANGE', KEYS[1], 0, -1))) do
  local key = ARGV[1] .. task
  local told = or_none(redis.pcall('HMGET', key .. ':stream', 'attempt', 'text', 'reasoning'))
  if told[1] then
    reply[#reply + 1] = task
    reply[#reply + 1] = tonumber(told[1])
    for i, part in ipairs({'text', 'reasoning'}) do
      local chars, inner = tonumber(told[i + 1]), or_none(redis.pcall('GET', key .. ':' .. part))
      if type(inner) ~= 'string' then chars, inner = 0, '' end
      reply[#reply + 1] = chars
      reply[#reply + 1] = inner
    end
  end
end
return reply
