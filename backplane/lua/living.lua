-- The processes whose lease has not ended, by the clock by which leases are given.
-- KEYS: processes, by when their lease ends.
local time = redis.call('TIME')
return redis.call('ZRANGE', KEYS[1], time[1] * 1000 + math.floor(time[2] / 1000), '+inf', 'BYSCORE')
