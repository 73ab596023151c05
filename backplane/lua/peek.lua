-- What is next in line on a callback list, and the fence under which it may be transferred.
-- KEYS: list, fence.  ARGV: count, budget (bytes), largest (bytes).
-- Returns {fence ('' if there was no transfer yet), callbacks…} as take() gives them.
local next_up = take(KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]))
table.insert(next_up, 1, redis.call('GET', KEYS[2]) or '')
return next_up
