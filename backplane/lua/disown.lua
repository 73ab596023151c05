-- Strike a connection out of those that a pod owns.
-- KEYS: connections, tenants.  ARGV: connection id, tenant.
if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then return 0 end
if redis.call('HINCRBY', KEYS[2], ARGV[2], -1) <= 0 then redis.call('HDEL', KEYS[2], ARGV[2]) end
return 1
