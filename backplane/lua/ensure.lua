-- The position of a session's log now; begins the session if there is none.
-- KEYS: session base, log.  ARGV: lineage, epoch for a new session, ttl (ms), user (see _session.lua).
-- Returns {epoch, head}, or {} if the session belongs to another user.
local record = open_session(KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4])
if not record then return {} end
return {record[1], tonumber(record[2])}
