-- Push an action for the AES unless its queue is full.
-- KEYS: actions queue.  ARGV: action (JSON), most actions the queue may hold.
-- Returns the queue's length, or -1 if it is full.
if redis.call('LLEN', KEYS[1]) >= tonumber(ARGV[2]) then return -1 end
return redis.call('LPUSH', KEYS[1], ARGV[1])
