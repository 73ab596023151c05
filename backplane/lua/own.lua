-- Enter a connection among those that a pod owns.
-- KEYS: connections.  ARGV: connection id, entry (JSON), ttl (ms).
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
