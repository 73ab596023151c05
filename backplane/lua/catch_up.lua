-- Append to a session's log what Redis has of a task and the log lacks: what it was asked, and what it reported last.
-- KEYS: session base, list's due; on a cluster also task, and the session's log, digests, tasks and streams.
-- ARGV: 1 lineage, 2 task id, 3… what _append.lua takes.
-- Returns nothing.
local append = appender(ARGV[1], 3)
append(KEYS[1], 0, 0, 1, false, ARGV[2])
redis.call('ZREM', KEYS[2], 'pending ' .. ARGV[2])
