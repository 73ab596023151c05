-- Append one entry to a session's log that is of no task.
-- KEYS: session base; on a cluster also its log, digests, tasks and streams.
-- ARGV: 1 lineage, 2… what _append.lua takes, 15… what append() takes for one entry.
-- Returns {1 if it was appended, 0 if it had been before}, or {-1, error} if the session's keys are of a wrong type.
local append, counts = appender(ARGV[1], 2)
local refused = append(KEYS[1], 15, 1, 1)
if refused then return {-1, refused} end
return {counts.appended}
