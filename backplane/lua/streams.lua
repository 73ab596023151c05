-- What the agents of a session's tasks have said so far.
-- KEYS: session's streams.  ARGV: what task records' names begin with.
-- Returns for each task that has a stream: task, attempt, characters of text, text, characters of reasoning, reasoning.
local reply = {}
for _, task in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local key = ARGV[1] .. task
  local told = redis.call('HMGET', key .. ':stream', 'attempt', 'text', 'reasoning')
  if told[1] then
    reply[#reply + 1] = task
    reply[#reply + 1] = tonumber(told[1])
    for i, part in ipairs({'text', 'reasoning'}) do
      reply[#reply + 1] = tonumber(told[i + 1])
      reply[#reply + 1] = redis.call('GET', key .. ':' .. part) or ''
    end
  end
end
return reply
