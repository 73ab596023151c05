-- Say when a list's next task is due, unless a send has moved the list forward since it was put off.
-- KEYS: lists that have tasks.  ARGV: list, to when (ms since 1970) it was put off, when its next task is due ('' none).
if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or -1) ~= tonumber(ARGV[2]) then
  if ARGV[3] ~= '' then redis.call('ZADD', KEYS[1], 'LT', ARGV[3], ARGV[1]) end  -- it may be due before that send
  return 0
end
if ARGV[3] == '' then return redis.call('ZREM', KEYS[1], ARGV[1]) end
return redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
