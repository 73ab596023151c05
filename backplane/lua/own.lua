-- Enter a connection among those that a pod owns.
-- KEYS: connections, tenants.  ARGV: connection id, entry (JSON), tenant, ttl (ms).
if redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) == 1 then redis.call('HINCRBY', KEYS[2], ARGV[3], 1) end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return 1
